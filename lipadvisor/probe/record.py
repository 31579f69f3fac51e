"""From the tensors of one measured step to :class:`lipadvisor.terms.Terms`, in one device synchronisation."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lipadvisor.policies import Status
from lipadvisor.probe import optimizers
from lipadvisor.probe.layers import TrackedLayer
from lipadvisor.probe.ranks import ALONE, Ranks
from lipadvisor.terms import Array, Terms

__all__ = [
    "COLUMNS",
    "NOISE",
    "Measured",
    "Readings",
    "in_order",
    "noise_covariance",
    "read",
    "sample_sums",
    "statuses",
    "terms",
]

# Per-layer values, in the order in which the probe stacks them: of the weights before the step, after it, of the step.
BEFORE = ("s_1", "s_2", "s_last", "sum_squares", "residual")
AFTER = ("s_1_after", "s_2_after", "s_last_after", "sum_squares_after", "residual_after")
STEP = ("first", "curvature", "change", "update_ratio", "frobenius_ratio", "row_ratio", "noise_curvature")
NOISE = ("share", "square", "gradient", "pair", "pair_curvature")
SUMMED = ("share", "square", "noise_curvature")  # over the samples
COLUMNS = BEFORE + AFTER + STEP + NOISE
PER_NORM = ("first", "curvature", "update_ratio", "noise_curvature")  # read as they are, then divided by s_1

NEEDED = {
    "norms": ("s_1", "sum_squares"),
    "drift": ("s_1", "sum_squares", "first", "curvature", "change", "update_ratio"),
    "noise": ("s_1", "sum_squares", "first", "curvature", "change", "update_ratio", "noise"),
    "full": ("s_1", "sum_squares", "first", "curvature", "change", "update_ratio", "noise", "noise_curvature"),
}

CLOSE_GAP = 1e-3  # below this relative gap the second-order form is floored
LOOSE_RESIDUAL = 0.1  # |W v - s u| / s above which the vectors cannot be trusted


@dataclass(frozen=True, slots=True)
class Readings:
    """Numbers of one measurement on the host, float64: ``columns[name]`` is (L,), ``noise_LL`` is (L, L)."""

    columns: dict[str, Array]
    noise_LL: Array
    samples: int = 0  # of the whole batch


def noise_covariance(scalars: Sequence[Tensor | None], samples: int) -> Tensor:
    """Return the covariance (L, L) of the batch mean of the layers' per-sample scalars.

    Unbiased: ``1 / (M (M - 1)) sum_i`` of the centred products. A layer that saw no batch contributes zeros, one whose
    samples cannot be told apart, or a batch of one, not-a-numbers.

    Args:
        scalars: (B,) of each layer; B a multiple of ``samples`` where a layer flattened time into its batch.
        samples: M.
    """
    like = next(s for s in scalars if s is not None)
    if samples < 2:
        return torch.full((len(scalars), len(scalars)), float("nan")).to(like)
    rows = []
    for scalar_B in scalars:
        if scalar_B is None:
            rows.append(like.new_zeros(samples))
        elif scalar_B.shape[0] == samples:
            rows.append(scalar_B)
        elif scalar_B.shape[0] % samples:
            rows.append(like.new_full((samples,), float("nan")))
        else:
            # The layer's own B entered as the number of samples; a sum over its rows of a sample is scaled back.
            share = samples / scalar_B.shape[0]
            rows.append((scalar_B.reshape(samples, -1).sum(1) * share).to(like))
    centred_LM = torch.stack(rows)
    centred_LM = centred_LM - centred_LM.mean(1, keepdim=True)
    return centred_LM @ centred_LM.mT / (samples * (samples - 1))


def sample_sums(scalars: Sequence[Tensor], like_l: Tensor) -> Tensor:
    """Return, of each layer's samples, the sum of their shares and of its squares (l, 2); nan without samples."""
    if not scalars:
        return torch.full((len(like_l), 2), float("nan"), dtype=like_l.dtype, device=like_l.device)
    if len({len(scalar_B) for scalar_B in scalars}) == 1:
        shares_lB = torch.stack(list(scalars)) / len(scalars[0])
        return torch.stack([shares_lB.sum(1), shares_lB.square().sum(1)], dim=1).to(like_l)
    rows = []
    for scalar_B in scalars:
        share_B = scalar_B / len(scalar_B)
        rows.append(torch.stack([share_B.sum(), share_B.square().sum()]))
    return torch.stack(rows).to(like_l)


def in_order(tables: Sequence[Tensor], place_L: Sequence[int]) -> Tensor:
    """Return the packs' rows as one table in the layers' order.

    Args:
        tables: of each pack, its layers as rows.
        place_L: row of each layer among all of them.
    """
    if len(tables) == 1:
        return tables[0]
    rows_L = torch.tensor(place_L).to(tables[0].device, non_blocking=True)
    return torch.cat([table.to(tables[0]) for table in tables])[rows_L]


def read(values_LC: Tensor, noise_LL: Tensor | None, samples: int = 0, ranks: Ranks = ALONE) -> Readings:
    """Bring everything to the host at once.

    Args:
        values_LC: columns as in ``COLUMNS``, or fewer of them; the rest is nan.
        noise_LL: covariance of ``u' g v``, if measured.
        samples: M of this process.
        ranks: that the samples are spread over.
    """
    layers, columns = values_LC.shape
    values_LC = values_LC.double()
    if noise_LL is None:
        noise_LL = values_LC.new_full((layers, layers) if columns == len(COLUMNS) else (0, 0), float("nan"))
    if columns == len(COLUMNS):
        summed = [COLUMNS.index(name) for name in SUMMED]
        values, noise, samples = ranks.pool(values_LC, noise_LL.double(), samples, summed, COLUMNS.index("share"))
    else:
        values, noise = ranks.whole(values_LC), np.full((layers, layers), np.nan)
    table = np.full((layers, len(COLUMNS)), np.nan)
    table[:, :columns] = values
    named = {name: np.ascontiguousarray(table[:, i]) for i, name in enumerate(COLUMNS)}
    with np.errstate(all="ignore"):
        for name in PER_NORM:
            named[name] /= named["s_1"]
        noise = noise / np.outer(named["s_1"], named["s_1"])
    if samples < 2:  # one sample has no spread
        named["noise_curvature"] = np.full(layers, np.nan)
    return Readings(named, noise, samples)


def statuses(
    readings: Readings, needed: tuple[str, ...], unsettled: tuple[bool, ...], doubts: tuple[Status | None, ...] = ()
) -> tuple[str, ...]:
    """Return each layer's :class:`~lipadvisor.policies.Status` as text.

    Args:
        readings: of the step.
        needed: columns that must be finite; "noise" stands for the covariance.
        unsettled: layers whose operator norm is only a bound so far, or whose tracker has just begun anew.
        doubts: what must be said of each layer's noise where nothing graver is to be said; () for nothing.
    """
    columns = readings.columns
    finite_L = np.logical_and.reduce([np.isfinite(columns[name]) for name in needed if not name.startswith("noise")])
    finite_L &= columns["s_1"] > 0
    noisy_L = np.isfinite(np.diag(readings.noise_LL)) | ("noise" not in needed)
    noisy_L &= np.isfinite(columns["noise_curvature"]) | ("noise_curvature" not in needed)
    result = []
    for index, finite in enumerate(finite_L):
        gap = 1.0 - columns["s_2"][index] / columns["s_1"][index] if finite else 0.0
        doubt = doubts[index] if doubts else None
        if unsettled[index] and columns["s_1"][index] > 0:
            result.append(Status.NOT_CONVERGED)
        elif not finite or (not noisy_L[index] and doubt is None):
            result.append(Status.NON_FINITE)
        elif columns["residual"][index] > LOOSE_RESIDUAL:
            result.append(Status.NOT_CONVERGED)
        elif gap < CLOSE_GAP:
            result.append(Status.GAP_LIMITED)
        else:
            result.append(Status.OK if doubt is None else doubt)
    return tuple(status.value for status in result)


@dataclass(frozen=True, slots=True)
class Measured:
    """What is known of a measured step beside the readings; see :class:`lipadvisor.terms.Terms`."""

    step: int
    level: str
    knobs: tuple[tuple[float, float], ...]  # learning rate and decoupled weight decay of each layer
    samples: int
    unsettled: tuple[bool, ...]
    measure_s: float
    step_s: float
    interval: int
    doubts: tuple[Status | None, ...] = ()  # of the noise, by layer
    population: int | None = None  # rows the batches are drawn from without replacement
    sizes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # of convolutions' input maps


def terms(
    readings: Readings,
    layers: Sequence[TrackedLayer],
    optimizer: torch.optim.Optimizer,
    updates: int,
    measured: Measured,
) -> Terms:
    """Return the record of one measured step.

    Args:
        readings: numbers of the step.
        layers: measured ones.
        optimizer: that made the step.
        updates: optimizer steps seen so far, for optimizers that do not count.
        measured: everything else.
    """
    columns = readings.columns
    s_1, squares, after = columns["s_1"], columns["sum_squares"], columns["s_1_after"]
    lr_L = np.array([lr for lr, _ in measured.knobs], dtype=np.float64)
    weight_decay_L = np.array([weight_decay for _, weight_decay in measured.knobs], dtype=np.float64)
    sizes = np.array([math.prod(layer.form.kernel_shape) for layer in layers], dtype=np.float64)
    composition_L = np.array([layer.composition for layer in layers], dtype=np.float64)
    counted_L = composition_L != 0.0
    fan_in = np.array([layer.shape[1] for layer in layers], dtype=np.float64)
    fan_in[~counted_L] = np.nan  # a table or a gain takes in no independent inputs
    with np.errstate(all="ignore"):
        log_norm_L = np.log(s_1)
        gap_L = 1.0 - columns["s_2"] / s_1
        log_after_L = np.log(np.where(after > 0, after, np.nan))
        gap_after_L = 1.0 - columns["s_2_after"] / after
        log_gain_L = 0.5 * np.log(squares / sizes * fan_in)
        change_L = columns["change"] + np.log1p(-lr_L * weight_decay_L)
    stepped = bool(np.isfinite(after).any())
    share = 1.0  # of the noise of independent draws that is left: batches of M of N rows, [D] Prop 5
    if measured.population is not None:
        share = max(0.0, 1.0 - measured.samples / measured.population)
    counted = optimizers.seen_steps(optimizer, layers[0].weight)
    return Terms(
        step=measured.step,
        names=tuple(layer.name for layer in layers),
        kinds=tuple(layer.kind for layer in layers),
        shapes=tuple(layer.shape for layer in layers),
        groups=tuple(layer.group for layer in layers),
        lr_L=lr_L,
        weight_decay_L=weight_decay_L,
        composition_L=composition_L,
        log_norm_L=log_norm_L,
        gap_L=gap_L,
        log_gain_L=log_gain_L,
        first_L=columns["first"],
        curvature_L=columns["curvature"],
        change_L=change_L,
        update_ratio_L=columns["update_ratio"],
        noise_LL=readings.noise_LL * share,
        noise_curvature_L=columns["noise_curvature"] * share,
        network_log_norm=float((log_norm_L[counted_L] * composition_L[counted_L]).sum()),
        batch_size=measured.samples,
        optimizer=optimizers.optimizer_name(optimizer),
        momentum=optimizers.first_moment(optimizer),
        optimizer_step=updates if counted is None else counted,
        status_L=statuses(readings, NEEDED[measured.level], measured.unsettled, measured.doubts),
        level=measured.level,
        measure_s=measured.measure_s,
        step_s=measured.step_s,
        frobenius_L=np.sqrt(squares),
        log_norm_after_L=log_after_L if stepped else np.zeros(0),
        gap_after_L=gap_after_L if stepped else np.zeros(0),
        interval=measured.interval,
        population=measured.population,
        frobenius_ratio_L=columns["frobenius_ratio"],
        row_ratio_L=columns["row_ratio"],
        input_sizes=tuple(measured.sizes.get(layer.name, ()) for layer in layers),
    )
