"""From the tensors of one measured step to :class:`lipadvisor.terms.Terms`, in one device synchronisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lipadvisor.policies import Status
from lipadvisor.terms import Array

__all__ = ["COLUMNS", "Readings", "noise_covariance", "read", "statuses"]

# Per-layer values, in the order in which the probe stacks them.
COLUMNS = (
    *("s_1", "s_2", "sum_squares", "residual", "s_1_after", "s_2_after"),
    *("first", "curvature", "change", "update_ratio", "noise_curvature"),
)

CLOSE_GAP = 1e-3  # below this relative gap the second-order form is floored
LOOSE_RESIDUAL = 0.1  # |W v - s u| / s above which the vectors cannot be trusted


@dataclass(frozen=True, slots=True)
class Readings:
    """Numbers of one measurement on the host, float64: ``columns[name]`` is (L,), ``noise_LL`` is (L, L)."""

    columns: dict[str, Array]
    noise_LL: Array


def noise_covariance(scalars: list[Tensor | None], samples: int) -> Tensor:
    """Return the covariance (L, L) of the batch mean of the layers' per-sample scalars.

    Unbiased: ``1 / (M (M - 1)) sum_i`` of the centred products. A layer that saw no batch contributes zeros, one whose
    samples cannot be told apart, or a batch of one, not-a-numbers.

    Args:
        scalars: (B,) of each layer; B a multiple of ``samples`` where a layer flattened time into its batch.
        samples: M.
    """
    like = next(s for s in scalars if s is not None)
    rows = []
    for scalar_B in scalars:
        if scalar_B is None:
            rows.append(like.new_zeros(samples))
        elif scalar_B.shape[0] % samples:
            rows.append(like.new_full((samples,), float("nan")))
        else:
            # The layer's own B entered as the number of samples; a sum over its rows of a sample is scaled back.
            share = samples / scalar_B.shape[0]
            rows.append((scalar_B.reshape(samples, -1).sum(1) * share).to(like))
    centred_LM = torch.stack(rows)
    centred_LM = centred_LM - centred_LM.mean(1, keepdim=True)
    if samples < 2:
        return torch.full((len(rows), len(rows)), float("nan")).to(like)
    return centred_LM @ centred_LM.mT / (samples * (samples - 1))


def read(values_LC: Tensor, noise_LL: Tensor | None) -> Readings:
    """Bring everything to the host at once."""
    layers, columns = values_LC.shape
    parts = [values_LC.reshape(-1)] if noise_LL is None else [values_LC.reshape(-1), noise_LL.reshape(-1)]
    flat = torch.cat(parts).double().cpu().numpy()
    table = flat[: layers * columns].reshape(layers, columns)
    noise = (
        flat[layers * columns :].reshape(layers, layers) if noise_LL is not None else np.full((layers, layers), np.nan)
    )
    named = {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(COLUMNS)}
    return Readings(named, noise)


def statuses(readings: Readings, needed: tuple[str, ...], unsettled: tuple[bool, ...]) -> tuple[str, ...]:
    """Return each layer's :class:`~lipadvisor.policies.Status` as text.

    Args:
        readings: of the step.
        needed: columns that must be finite.
        unsettled: layers whose operator norm is only a bound so far.
    """
    columns = readings.columns
    finite_L = np.logical_and.reduce([np.isfinite(columns[name]) for name in needed]) & (columns["s_1"] > 0)
    if "noise_curvature" in needed:
        finite_L &= np.isfinite(np.diag(readings.noise_LL))
    result = []
    for index, finite in enumerate(finite_L):
        gap = 1.0 - columns["s_2"][index] / columns["s_1"][index] if finite else 0.0
        if not finite:
            result.append(Status.NON_FINITE)
        elif unsettled[index] or columns["residual"][index] > LOOSE_RESIDUAL:
            result.append(Status.NOT_CONVERGED)
        elif gap < CLOSE_GAP:
            result.append(Status.GAP_LIMITED)
        else:
            result.append(Status.OK)
    return tuple(status.value for status in result)
