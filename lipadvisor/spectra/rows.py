"""Short vectors and small matrices as arrays of NumPy's, where they are on a processor; as tensors elsewhere.

A measured step does a thousand small operations, whose price is that of the call: NumPy's is a third of torch's. Arrays
share their memory with the tensors that they were made of. What is written with these functions, operators (``@``,
``*``, ``.mT``, ``.sum(-1)``) and basic indexing takes either, and gives the kind that it was given.

Only what is small is made an array: NumPy's own library would wake threads for more, which then wait for work at full
speed beside those of torch.

Shapes: leading dimensions hold layers; ``K`` rows of ``N`` entries.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from lipadvisor.spectra.linear import LinearOperator

__all__ = [
    "FEW",
    "TINY",
    "Kernel",
    "Operator",
    "Rows",
    "adjoint",
    "apply",
    "at_least",
    "decomposed",
    "eigen",
    "extremes",
    "finite",
    "identity",
    "joined",
    "like",
    "log",
    "lower_factor",
    "normal",
    "orthonormal",
    "quiet",
    "root",
    "row_lengths",
    "rows",
    "singular_values",
    "solved",
    "squares",
    "tensor",
    "unit",
    "where",
    "whitening",
    "wide",
]

Rows: TypeAlias = Any  # a tensor, or an array
Operator: TypeAlias = Any  # a LayerOperator, or several that are joined
Kernel: TypeAlias = Any  # a tensor, or Before; of operators that are joined a tuple with one of each
TINY = 1e-30
FEW = 9_000  # entries of a block or a matrix up to which NumPy's library multiplies without waking its threads
_QUIET = {"all": "ignore"}


def quiet() -> np.errstate:
    """Return a context in which arrays overflow and divide by zero as silently as tensors do."""
    return np.errstate(**_QUIET)  # type: ignore[arg-type]


def rows(x: Tensor) -> Rows:
    """Return a tensor of a processor as an array."""
    return x.numpy()


def tensor(x: Rows) -> Tensor:
    """Return the tensor that shares the memory of ``x``, or is it."""
    return x if isinstance(x, Tensor) else torch.from_numpy(x)


def apply(operator: Operator, kernel: Kernel, x_KN: Rows) -> Rows:
    """Return the operator's images (K, M)."""
    if isinstance(x_KN, Tensor) or isinstance(kernel, tuple):
        return operator.apply(kernel, x_KN)
    if isinstance(operator, LinearOperator) and operator.outputs * operator.inputs <= FEW:
        return x_KN @ kernel.numpy().mT
    return operator.apply(kernel, torch.from_numpy(x_KN)).numpy()


def adjoint(operator: Operator, kernel: Kernel, y_KM: Rows) -> Rows:
    """Return the images (K, N) under the operator's adjoint."""
    if isinstance(y_KM, Tensor) or isinstance(kernel, tuple):
        return operator.adjoint(kernel, y_KM)
    if isinstance(operator, LinearOperator) and operator.outputs * operator.inputs <= FEW:
        return y_KM @ kernel.numpy()
    return operator.adjoint(kernel, torch.from_numpy(y_KM)).numpy()


def row_lengths(kernel: Tensor) -> Tensor:
    """Return the length of each row of the kernels' first dimension (l, r)."""
    lengths: Tensor = torch.linalg.vector_norm(kernel.flatten(2) if kernel.dim() > 2 else kernel[..., None], dim=-1)
    return lengths


def joined(parts: Sequence[Rows], axis: int = -2) -> Rows:
    """Return the parts one behind the other."""
    return torch.cat(list(parts), axis) if isinstance(parts[0], Tensor) else np.concatenate(parts, axis)


def squares(x_KN: Rows) -> Rows:
    """Return each row's sum of squares (K,)."""
    return x_KN.square().sum(-1) if isinstance(x_KN, Tensor) else np.vecdot(x_KN, x_KN)


def root(x: Rows) -> Rows:
    """Return the square roots."""
    return x.sqrt() if isinstance(x, Tensor) else np.sqrt(x)


def log(x: Rows) -> Rows:
    """Return the natural logarithms."""
    return x.log() if isinstance(x, Tensor) else np.log(x)


def unit(x_KN: Rows) -> Rows:
    """Return the rows at length one; zeros stay zeros."""
    return x_KN / at_least(root(squares(x_KN)), TINY)[..., None]


def at_least(x: Rows, floor: float) -> Rows:
    """Return the larger of entries and ``floor``; not-a-numbers stay."""
    return x.clamp_min(floor) if isinstance(x, Tensor) else np.maximum(x, floor)


def where(condition: Rows, x: Rows, other: float) -> Rows:
    """Return entries of ``x``, or ``other`` where the condition does not hold."""
    return torch.where(condition, x, other) if isinstance(x, Tensor) else np.where(condition, x, x.dtype.type(other))


def normal(x: Rows) -> Rows:
    """Return entries with zeros for those that are not finite."""
    if isinstance(x, Tensor):
        return torch.nan_to_num(x, 0.0, 0.0, 0.0)
    known = np.isfinite(x)
    return x if known.all() else np.where(known, x, x.dtype.type(0.0))


def finite(x: Rows) -> Rows:
    """Return whether all entries of each matrix are finite (...,)."""
    return (torch.isfinite(x) if isinstance(x, Tensor) else np.isfinite(x)).all(-1).all(-1)


def wide(x: Rows) -> Rows:
    """Return entries in float64."""
    return x.double() if isinstance(x, Tensor) else x.astype(np.float64, copy=False)


def like(x: Rows, other: Rows) -> Rows:
    """Return entries in the type of ``other``."""
    return x.to(other.dtype) if isinstance(x, Tensor) else x.astype(other.dtype, copy=False)


def extremes(x_K: Rows) -> tuple[Rows, Rows]:
    """Return the smallest and the largest of the entries (1,)."""
    if isinstance(x_K, Tensor):
        least, most = x_K.aminmax(dim=-1, keepdim=True)
        return least, most
    return x_K.min(-1, keepdims=True), x_K.max(-1, keepdims=True)


def identity(side: int, like: Rows) -> Rows:
    """Return unit matrices (side, side) with the leading dimensions, type and device of ``like``."""
    if isinstance(like, Tensor):
        return torch.eye(side, dtype=like.dtype, device=like.device).expand(*like.shape[:-2], side, side)
    matrices = np.zeros((*like.shape[:-2], side, side), like.dtype)
    matrices.reshape(*like.shape[:-2], -1)[..., :: side + 1] = 1.0
    return matrices


def orthonormal(x_KN: Rows) -> tuple[Rows, Rows]:
    """Return rows ``q`` (K, N) and a factor (K, K), upper triangular, with ``x' = q' factor``.

    Of rows in the span of the others, or of zeros, any orthonormal ones are made.
    """
    q_NK, upper_KK = torch.linalg.qr(tensor(x_KN).mT)
    return (q_NK.mT, upper_KK) if isinstance(x_KN, Tensor) else (q_NK.numpy().mT, upper_KK.numpy())


def decomposed(x: Rows) -> tuple[Rows, Rows, Rows]:
    """Return singular vectors, values and vectors of small matrices; what is not finite counts as zero."""
    if isinstance(x, Tensor):
        u, s, v = torch.linalg.svd(normal(x))
        return u, s, v
    return np.linalg.svd(normal(x))


def eigen(x: Rows) -> tuple[Rows, Rows]:
    """Return eigenvalues, descending, and eigenvectors (columns) of small symmetric matrices."""
    if isinstance(x, Tensor):
        values, vectors = torch.linalg.eigh(x)
        return values.flip(-1), vectors.flip(-1)
    values, vectors = np.linalg.eigh(x)
    return values[..., ::-1], vectors[..., ::-1]


def whitening(x_KN: Rows, least: float | None = None) -> Rows | None:
    """Return ``T`` (K, K), float64 and triangular, for which the rows of ``T x`` are orthonormal.

    Args:
        x_KN: rows, none of which is near the span of the others: what is made of them is off by the square of that.
        least: of arrays, the distance of each row, at length one, from those before it below which None is returned.
    """
    gram_KK = wide(x_KN @ x_KN.mT)
    unit_KK = identity(gram_KK.shape[-1], gram_KK)
    inverse_K1 = 1.0 / root(at_least((gram_KK * unit_KK).sum(-1), TINY * TINY))[..., None]
    lower_KK = lower_factor(gram_KK * inverse_K1 * inverse_K1.mT)
    if least is not None and not lower_KK.diagonal(0, -2, -1).min() >= least:
        return None
    return solved(lower_KK, unit_KK * inverse_K1)


def singular_values(x: Rows) -> Rows:
    """Return singular values (..., k) of small matrices, descending; what is not finite counts as zero."""
    return torch.linalg.svdvals(normal(x)) if isinstance(x, Tensor) else np.linalg.svd(normal(x), compute_uv=False)


def lower_factor(x: Rows) -> Rows:
    """Return the Cholesky factor of small matrices; anything where they have none."""
    factor = torch.linalg.cholesky_ex(tensor(x))[0]
    return factor if isinstance(x, Tensor) else factor.numpy()


def solved(triangle: Rows, right: Rows, upper: bool = False) -> Rows:
    """Return the solution of triangular systems."""
    solution = torch.linalg.solve_triangular(tensor(triangle), tensor(right), upper=upper)
    return solution if isinstance(right, Tensor) else solution.numpy()
