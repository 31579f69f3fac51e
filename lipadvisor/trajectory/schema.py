"""The four tables of a trajectory and the turns between rows, Arrow tables and pandas frames.

``observations`` has one row for each (step, layer); the network is the layer ``"*"``. What belongs to the step as a
whole (loss, overhead, knobs, ...) stands on its ``"*"`` row and is empty on the others. ``forecasts`` has one row for
each (step, layer, horizon, plan); ``decisions`` one for each (step, parameter group); ``inspections`` one for each
(step, quantity) that was measured because it was asked for.

Empty is nan for floats, ``""`` for text and ``<NA>`` for the two whole numbers that may be unknown. Text columns called
JSON hold Python's dialect (``NaN`` and ``Infinity`` allowed), so that what is read back equals what was written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa

__all__ = ["EXTRAS", "SCHEMA_VERSION", "TABLES", "Batch", "Row", "Sink", "as_frame", "as_table", "empty_frame"]

SCHEMA_VERSION = 1

Row: TypeAlias = tuple[Any, ...]
Batch: TypeAlias = Mapping[str, Sequence[Row]]  # rows by table, in the order of the table's columns
Sink: TypeAlias = Callable[[Batch], None]  # takes batches, in order

EXTRAS = (
    "predicted",  # nats: log-norm predicted from step 0 by integrating the finite-step form
    "predicted_paper",  # nats: the same by the form of the paper
    "change",  # nats: change of the log-norm over this step, as predicted to second order
    "curvature",  # nats per tau^2
    "interval",  # steps from this measurement to the next, as planned
)

_INT, _FLOAT, _TEXT, _FLAG = pa.int64(), pa.float64(), pa.string(), pa.bool_()


def _schema(*columns: tuple[pa.DataType, str]) -> pa.Schema:
    fields = [pa.field(name, kind) for kind, names in columns for name in names.split()]
    return pa.schema(fields, metadata={"lipadvisor_schema": str(SCHEMA_VERSION)})


TABLES: Mapping[str, pa.Schema] = {
    "observations": _schema(
        (_INT, "step"),
        (_FLOAT, "tau"),
        (_TEXT, "layer kind shape"),  # shape: "64x10"; "" for the network
        (_INT, "group"),
        (_FLOAT, "composition_weight log_norm gap log_gain"),
        (_FLOAT, "drift diffusion noise_curvature finite_step decay update_ratio frobenius_ratio row_ratio"),
        (_TEXT, "status"),
        (_FLOAT, "lr weight_decay"),  # of the layer's group; of group 0 on the row "*"
        (_FLOAT, " ".join(EXTRAS)),
        (_INT, "measured_step total_steps"),
        (_TEXT, "optimizer"),
        (_FLOAT, "momentum loss validation_loss"),
        (_INT, "validation_step"),
        (_FLOAT, "overhead measure_s step_s"),
        (_TEXT, "step_status given knobs"),  # given: which losses there were, nan is one; knobs: JSON of all groups
        (_TEXT, "alarm"),  # on the row "*", signs of a divergence to come: "forecast update"; "" while not raised
        (_TEXT, "input_size"),  # "3x32x32": maps that a convolution's norm is for; "" for all other layers
    ),
    "forecasts": _schema(
        (_INT, "step"),
        (_TEXT, "layer"),
        (_INT, "horizon"),
        (_FLOAT, "mean std lower upper"),
        (_TEXT, "status plan"),  # plan: "present" where the present knobs go on, else the plan's name
        (_FLOAT, "lr weight_decay"),
    ),
    "decisions": _schema(
        (_INT, "step"),
        (_TEXT, "policy reason source mode"),
        (_INT, "group"),
        (_FLOAT, "lr_before lr_proposed lr_applied"),
        (_FLOAT, "weight_decay_before weight_decay_proposed weight_decay_applied"),
        (_FLAG, "warmup_ended cooldown_started rollback rewind"),
        (_TEXT, "refused read init_scale weight_scale"),  # the last three: JSON objects
    ),
    "inspections": _schema(
        (_INT, "step"),
        (_TEXT, "quantity"),
        (_FLOAT, "value residual"),  # residual: relative, of the eigenvector behind the value
        (_TEXT, "status"),
        (_FLOAT, "measure_s"),
    ),
}

_MAY_BE_UNKNOWN = frozenset({"total_steps", "validation_step"})


def as_table(name: str, rows: Sequence[Row]) -> pa.Table:
    """Turn rows into the Arrow table called ``name``.

    Raises:
        ValueError: there is no such table, a row has the wrong length, or a value the wrong type; names the column.
    """
    if name not in TABLES:
        raise ValueError(f"a trajectory has the tables {sorted(TABLES)}, got {name!r}.")
    schema = TABLES[name]
    width = len(schema)
    for row in rows:
        if len(row) != width:
            raise ValueError(f"a row of {name!r} must have {width} values, got {len(row)}.")
    arrays = []
    for index, field in enumerate(schema):
        try:
            arrays.append(pa.array([row[index] for row in rows], type=field.type))
        except (pa.ArrowException, TypeError, OverflowError) as error:
            raise ValueError(f"column {field.name!r} of {name!r} must be {field.type}: {error}.") from error
        if field.name not in _MAY_BE_UNKNOWN and field.type != _FLOAT and arrays[-1].null_count:
            raise ValueError(f"column {field.name!r} of {name!r} must not be empty, got None.")
    return pa.Table.from_arrays(arrays, schema=schema)


def as_frame(table: pa.Table) -> pd.DataFrame:
    """Turn an Arrow table of these columns (and others) into a pandas frame with the dtypes of this schema."""
    frame: pd.DataFrame = table.to_pandas(integer_object_nulls=True)
    for column in frame.columns.intersection(sorted(_MAY_BE_UNKNOWN)):
        frame[column] = frame[column].astype("Int64")
    texts = [field.name for field in table.schema if field.type == _TEXT]
    return frame.astype(dict.fromkeys(texts, "str"))


def empty_frame(name: str) -> pd.DataFrame:
    """Return the frame of table ``name`` without rows, with all its columns and their dtypes."""
    return as_frame(TABLES[name].empty_table())
