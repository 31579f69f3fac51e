"""Several processes for a test, each a rank of a gloo group, that end in order.

A gloo thread that lets go of a tensor which Python knows asks for the interpreter's lock; where the interpreter is
ending by then its thread is unwound through code that must not be, and torch aborts: "terminate called without an
active exception" (pytorch/pytorch issues 38228 and 190489). So meshes and sharded models are collected and the group is
taken down while all ranks still stand, and a rank that is done leaves without ending its interpreter: nothing of it is
needed any more.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

__all__ = ["on_ranks"]


def on_ranks(ranks: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return what ``work(rank, folder, *arguments)`` returned on each rank: numbers, strings, tensors, containers.

    Args:
        ranks: how many processes.
        folder: empty, for what they leave.
        work: a function at the top of a module.
        arguments: handed on.
    """
    torch.multiprocessing.spawn(_rank, (ranks, str(folder), work, arguments), ranks)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(ranks)]


def _rank(rank: int, ranks: int, folder: str, work: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(work(rank, folder, *arguments), f"{folder}/{rank}.pt")
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an error on the way never comes here: it is raised where the processes were started
