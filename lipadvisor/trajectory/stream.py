"""One table of one attempt as a file: an Arrow IPC stream that grows while the run lives, then a Parquet file.

The stream's first message is the schema; each batch after it is one message, written by one ``write`` call, with its
sequence number in the column ``sequence``. A file whose writer was killed ends in a torn message at worst: readers stop
there, and the next writer cuts it off. Batches are numbered from 1 on; a number that is there already is not written
again, so that a batch may be sent twice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lipadvisor.trajectory.schema import TABLES
from lipadvisor.trajectory.whole_files import write_bytes

__all__ = ["TableFile", "read_stream"]


@dataclass(frozen=True, slots=True)
class _Stream:
    table: pa.Table
    whole_bytes: int  # where the last whole message ends
    complete: bool = True  # whether the file itself has all columns


def read_stream(path: Path, schema: pa.Schema) -> _Stream:
    """Read the whole messages of a stream file; a torn tail is left out, columns that came later are empty.

    Raises:
        ValueError: the file is a stream of another schema.
    """
    batches: list[pa.RecordBatch] = []
    whole_bytes = 0
    with pa.OSFile(str(path), "rb") as source:
        try:
            found = pa.ipc.read_schema(pa.ipc.read_message(source))
        except (EOFError, pa.ArrowException, OSError):
            return _Stream(schema.empty_table(), 0)
        if not found.equals(pa.schema([field for field in schema if field.name in found.names])):
            raise ValueError(f"{path} holds other columns than these: {found.names} instead of {schema.names}.")
        whole_bytes = source.tell()
        while True:
            try:
                batches.append(pa.ipc.read_record_batch(pa.ipc.read_message(source), found))
            except (EOFError, pa.ArrowException, OSError):
                break
            whole_bytes = source.tell()
    complete = found.equals(schema)
    return _Stream(_completed(pa.Table.from_batches(batches, schema=found), schema), whole_bytes, complete)


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with all columns of ``schema``; those that it lacks are empty."""
    empty = {field.name: pa.nulls(table.num_rows, field.type) for field in schema}
    columns = [table[name] if name in table.column_names else none for name, none in empty.items()]
    return pa.Table.from_arrays(columns, schema=schema)


class TableFile:
    """Appends batches to one table of one attempt, each once.

    Args:
        path: Path without suffix; ``.arrows`` is the live stream, ``.parquet`` the sealed file.
        table: Name of the table.
    """

    def __init__(self, path: Path, table: str) -> None:
        self._stream_path = path.with_name(path.name + ".arrows")
        self._sealed_path = path.with_name(path.name + ".parquet")
        self._schema = TABLES[table].insert(0, pa.field("sequence", pa.int64()))
        self._handle: int | None = None
        self._last: int | None = None

    @property
    def last_sequence(self) -> int:
        """Number of the last batch stored; 0 if there is none."""
        if self._last is None:
            self._last = int(pc.max(self.read()["sequence"]).as_py() or 0)
        return self._last

    def append(self, sequence: int, table: pa.Table) -> None:
        """Append a batch of rows, as ``schema.as_table`` gives them, unless it is there already.

        Raises:
            OSError: the disk did not take it; the file is as it was.
        """
        if not table.num_rows or sequence <= self.last_sequence:
            return
        numbers = pa.array([sequence] * table.num_rows, type=pa.int64())
        batch = pa.Table.from_arrays([numbers, *table.columns], schema=self._schema).combine_chunks().to_batches()[0]
        self._write(memoryview(batch.serialize()))
        self._last = sequence

    def read(self) -> pa.Table:
        """Return all rows stored so far, in order, with their ``sequence``. Safe while a writer is at work."""
        # The sealed file comes first: a stream that is sealed meanwhile is gone only after its Parquet file is there.
        for _ in range(3):
            live = self._read_live()
            sealed = pq.read_table(self._sealed_path, schema=self._schema) if self._sealed_path.exists() else None
            if live is not None or sealed is not None or not self._stream_path.exists():
                break
        if sealed is None:
            return live if live is not None else self._schema.empty_table()
        if live is None or not live.num_rows:
            return sealed
        last = pc.max(sealed["sequence"]).as_py() or 0
        return pa.concat_tables([sealed, live.filter(pc.greater(live["sequence"], last))])

    def seal(self) -> None:
        """Turn what is there into one zstd Parquet file. Idempotent; a crash in between loses nothing."""
        self.close()
        if not self._stream_path.exists():
            return
        buffer = pa.BufferOutputStream()
        pq.write_table(self.read(), buffer, compression="zstd")
        write_bytes(self._sealed_path, buffer.getvalue().to_pybytes())
        self._stream_path.unlink()

    def close(self) -> None:
        """Let go of the file; the next append opens it again."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
        self._last = None

    def _read_live(self) -> pa.Table | None:
        try:
            return read_stream(self._stream_path, self._schema).table
        except FileNotFoundError:
            return None

    def _open(self) -> int:
        self._stream_path.parent.mkdir(parents=True, exist_ok=True)
        live = read_stream(self._stream_path, self._schema) if self._stream_path.exists() else None
        if live is not None and not live.complete:  # of an earlier version: what comes now has more columns
            self.seal()
        whole = live.whole_bytes if live is not None and live.complete else 0
        handle = os.open(self._stream_path, os.O_RDWR | os.O_CREAT, 0o666)
        os.ftruncate(handle, whole)
        os.lseek(handle, 0, os.SEEK_END)
        return handle

    def _write(self, message: memoryview) -> None:
        if self._handle is None:
            self._handle = self._open()
        end = os.lseek(self._handle, 0, os.SEEK_END)
        content = bytes(message) if end else self._schema.serialize().to_pybytes() + bytes(message)
        try:
            written = os.write(self._handle, content)
            if written != len(content):
                raise OSError(f"only {written} of {len(content)} bytes could be written to {self._stream_path}")
        except OSError:
            os.ftruncate(self._handle, end)
            raise
