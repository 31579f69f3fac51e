"""What single steps do not show, measured when asked for: the loss's curvature, its noise, the network's local slope.

How the parts combine::

    Inspector.measure(loss_fn, batch) -> Sharpness (H, and P^(1/2) H P^(1/2)) -> expansion of the update map
                                      -> part_gradients -> NoiseScale
                                      -> TrackedLipschitz

Each quantity keeps its vectors or averages from visit to visit. The model is afterwards what it was.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lipadvisor.dynamics import expansion_factor
from lipadvisor.fail_open import FailOpen
from lipadvisor.modules.tracked_local import TrackedLipschitz
from lipadvisor.policies import Status
from lipadvisor.probe.gathered import gathered
from lipadvisor.probe.noise_scale import NoiseScale, part_gradients
from lipadvisor.probe.sharpness import LossHessian, Sharpness
from lipadvisor.probe.untouched import untouched
from lipadvisor.probe.update_map import UpdateMap, trained_parameters, update_map

__all__ = ["QUANTITIES", "Inspection", "Inspector", "Reading"]

QUANTITIES = ("sharpness", "preconditioned_sharpness", "expansion", "noise_scale", "local_log_norm")
PRODUCTS = 8  # Hessian-vector products of a visit at most: many steps may lie between two, and the batches differ
TOLERANCE = 2e-2  # residual of an eigenvector at which a visit stops; the value's error is of the order of its square
_OF_CURVATURE = frozenset(QUANTITIES[:3])
_NAN = float("nan")
_Found: TypeAlias = tuple[float, float, Status]  # value, residual, status
_ByGroup: TypeAlias = tuple[Mapping[int, float], Mapping[int, float]]  # learning rate and decoupled decay


@dataclass(frozen=True, slots=True)
class Reading:
    """One quantity at one visit.

    Attributes:
        quantity: one of ``QUANTITIES``.
        value: ``sharpness`` in units of the loss per squared unit of the weights; ``preconditioned_sharpness`` per
            unit of tau (largest eigenvalue of ``P H``, of Adam only); ``expansion`` a factor per step, above 1 where
            the update map expands along its stiffest direction; ``noise_scale`` in samples; ``local_log_norm`` in nats.
        residual: relative residual of the eigenvector behind it; nan where there is none.
        status: whether the value may be trusted.
        measure_s: seconds it took.
    """

    quantity: str
    value: float
    residual: float
    status: Status
    measure_s: float


@dataclass(frozen=True, slots=True)
class Inspection:
    """What one visit found, of the weights after ``step`` steps."""

    step: int
    readings: tuple[Reading, ...]

    def __getitem__(self, quantity: str) -> float:
        """Return the value of a quantity.

        Raises:
            KeyError: it was not measured; names those that were.
        """
        for reading in self.readings:
            if reading.quantity == quantity:
                return reading.value
        raise KeyError(f"{quantity!r} was not measured; there are {[r.quantity for r in self.readings]}")

    @property
    def measure_s(self) -> float:
        """Seconds that the visit took."""
        return math.fsum(reading.measure_s for reading in self.readings)


class Inspector:
    """Measures a model and its optimizer whenever it is asked to.

    Args:
        model: the network that trains.
        optimizer: holds its parameters.
        seed: of the first vectors.
        raises: raise where a quantity cannot be measured, instead of counting it and measuring the others.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 0, *, raises: bool = False
    ) -> None:
        self.model, self._optimizer = model, optimizer
        self._errors = FailOpen(raises=raises)
        self._sharpness, self._preconditioned = (Sharpness(PRODUCTS, tolerance=TOLERANCE, seed=seed) for _ in range(2))
        self._noise, self._local = NoiseScale(), TrackedLipschitz(seed=seed)
        self._mark = 0.0  # when the last reading was complete

    def measure(
        self,
        step: int,
        loss_fn: Callable[..., Tensor],
        batch: Any = None,
        knobs: _ByGroup | None = None,
        quantities: Sequence[str] = QUANTITIES,
    ) -> Inspection:
        """Measure what is asked for, as far as ``loss_fn`` and ``batch`` allow: noise and local slope need a batch.

        Args:
            step: steps taken.
            loss_fn: returns the loss with its graph; called without arguments, or with ``batch``: a tuple or list by
                position, a mapping by keyword, a tensor as it is.
            batch: samples first. A mapping, or else its first part, is what the model itself is called with.
            knobs: learning rate and decoupled decay in force by parameter group; those of the optimizer if None.
            quantities: some of ``QUANTITIES``.

        Raises:
            ValueError: a quantity is not known.
        """
        unknown = [name for name in quantities if name not in QUANTITIES]
        if unknown or isinstance(quantities, str):
            raise ValueError(f"inspect(quantities=...) must be some of {QUANTITIES}, got {quantities!r}.")
        wanted = frozenset(quantities)
        found = self._errors.guard(lambda: self._measure(loss_fn, batch, knobs or _own_knobs(self._optimizer), wanted))
        return Inspection(step, found or ())

    def _measure(
        self, loss_fn: Callable[..., Tensor], batch: Any, knobs: _ByGroup, wanted: frozenset[str]
    ) -> tuple[Reading, ...]:
        self._mark = time.perf_counter()

        def loss_of(part: Any) -> Tensor:
            return loss_fn() if part is None else _call(loss_fn, part)

        with gathered(self.model, trained_parameters(self._optimizer)) as parameters, untouched(self.model):
            readings: list[Reading] = []
            if wanted & _OF_CURVATURE:
                hessian = self._errors.guard(lambda: LossHessian(loss_of(batch), parameters))
                readings = self._curvature(hessian, knobs, wanted)
            if batch is not None and "noise_scale" in wanted:
                readings.append(self._read("noise_scale", lambda: self._noises(loss_of, batch, parameters)))
            if batch is not None and "local_log_norm" in wanted:
                inputs = batch if isinstance(batch, (Tensor, Mapping)) else batch[0]
                readings.append(self._read("local_log_norm", lambda: self._slope(inputs)))
        return tuple(readings)

    @property
    def errors(self) -> int:
        """Errors caught so far."""
        return self._errors.count

    def state_dict(self) -> dict[str, Any]:
        """Return the vectors and averages that later visits start from: tensors and numbers."""
        return {
            "sharpness": self._sharpness.state_dict(),
            "preconditioned": self._preconditioned.state_dict(),
            "noise": self._noise.state_dict(),
            "local": self._local.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self._sharpness.load_state_dict(state["sharpness"])
        self._preconditioned.load_state_dict(state["preconditioned"])
        self._noise.load_state_dict(state["noise"])
        self._local.load_state_dict(state["local"])

    # -- one quantity each -------------------------------------------------------------------------------------------

    def _read(self, quantity: str, measure: Callable[[], _Found]) -> Reading:
        """Return what ``measure`` finds with the time since the last reading; NOT_MEASURED where it fails."""
        value, residual, status = self._errors.guard(measure) or (_NAN, _NAN, Status.NOT_MEASURED)
        now = time.perf_counter()
        spent_s, self._mark = now - self._mark, now
        return Reading(quantity, value, residual, status, spent_s)

    def _curvature(self, hessian: LossHessian | None, knobs: _ByGroup, wanted: frozenset[str]) -> list[Reading]:
        linear = self._errors.guard(lambda: update_map(self._optimizer, *knobs))
        scale_P = None if linear is None else linear.scale_P
        readings: list[Reading] = []
        stiffest = Reading("sharpness", _NAN, _NAN, Status.NOT_MEASURED, 0.0)
        if "sharpness" in wanted or (scale_P is None and "expansion" in wanted):
            stiffest = self._read("sharpness", lambda: _follow(self._sharpness, hessian, None))
            readings.append(stiffest)
        if scale_P is not None and wanted & {"preconditioned_sharpness", "expansion"}:
            stiffest = self._read("preconditioned_sharpness", lambda: _follow(self._preconditioned, hessian, scale_P))
            readings.append(stiffest)
        if "expansion" in wanted:
            readings.append(self._read("expansion", lambda: _expansion(linear, stiffest)))
        return readings

    def _noises(self, loss_of: Callable[[Any], Tensor], batch: Any, parameters: Sequence[nn.Parameter]) -> _Found:
        seen = part_gradients(loss_of, batch, parameters)
        if seen is None:
            return _NAN, _NAN, Status.NOT_MEASURED
        status = self._noise.update(seen)
        return self._noise.value, _NAN, status

    def _slope(self, inputs: Any) -> _Found:
        found = self._local.measure(self.model, inputs)
        return math.log(found.value) if found.value > 0.0 else _NAN, found.residual, found.status


def _follow(tracked: Sharpness, hessian: LossHessian | None, scale_P: Tensor | None) -> _Found:
    if hessian is None or (scale_P is not None and not bool(scale_P.any())):
        return _NAN, _NAN, Status.NOT_MEASURED
    found = tracked.measure(hessian, scale_P)
    return found.value, found.residual, found.status


def _expansion(linear: UpdateMap | None, stiffest: Reading) -> _Found:
    """Return the factor by which the update map stretches its stiffest direction each step."""
    if linear is None or not math.isfinite(stiffest.value):
        return _NAN, _NAN, Status.NOT_MEASURED if linear is None else stiffest.status
    eigenvalue = stiffest.value + (linear.l2 if linear.scale_P is None else 0.0)
    factor = expansion_factor(
        linear.optimizer, linear.momentum, linear.lr, eigenvalue, linear.weight_decay, linear.nesterov
    )
    return factor, stiffest.residual, stiffest.status


def _call(loss_fn: Callable[..., Tensor], batch: Any) -> Tensor:
    if isinstance(batch, Mapping):
        return loss_fn(**batch)
    return loss_fn(*batch) if isinstance(batch, (tuple, list)) else loss_fn(batch)


def _own_knobs(optimizer: torch.optim.Optimizer) -> _ByGroup:
    groups = list(enumerate(optimizer.param_groups))
    decoupled = {
        i: isinstance(optimizer, torch.optim.AdamW) or bool(g.get("decoupled_weight_decay")) for i, g in groups
    }
    decay = {i: float(g.get("weight_decay", 0.0)) if decoupled[i] else 0.0 for i, g in groups}
    return {i: float(g["lr"]) for i, g in groups}, decay
