"""Counts the tensors that are alive: exact, the same in each run, and blind to what an allocator keeps back.

Counted are the storages of all tensors that an operation was given or gave, on a processor, from the moment on at which
it is done; what it needs meanwhile, and arrays of NumPy's, are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

__all__ = ["LiveStorages"]


class LiveStorages(TorchDispatchMode):
    """A context; what was made before it is counted once it is used.

    Attributes:
        live_bytes: alive now, as far as it was looked at.
        peak_bytes: the most since :meth:`restart`.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def restart(self) -> None:
        """Forget the peak."""
        self.look()
        self.peak_bytes = self.live_bytes

    def look(self) -> int:
        """Return what is alive now, bytes."""
        for key in [key for key, (reference, _) in self._live.items() if reference.expired()]:
            self.live_bytes -= self._live.pop(key)[1]
        return self.live_bytes

    def __torch_dispatch__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Do the operation, and count what it was given and what it gave."""
        found = func(*args, **(kwargs or {}))
        for x in tree_iter((args, kwargs, found)):
            if isinstance(x, Tensor) and x.device.type == "cpu" and x.layout == torch.strided:
                self._count(x.untyped_storage())
        if self.live_bytes > self.peak_bytes:  # unless some of it is gone
            self.peak_bytes = max(self.peak_bytes, self.look())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        _, before = self._live.get(key, (None, 0))  # the same place may be another one's by now, or have grown
        self._live[key] = (StorageWeakRef(storage), size)
        self.live_bytes += size - before
