"""Initialization by plan: factors that were found on the model and its data, issued before step 0."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lipadvisor.policies.checks import require_pairs, require_positive
from lipadvisor.policies.contract import Observation
from lipadvisor.policies.initial_scale import Factors, InitialScale, named_once

__all__ = ["PlannedInitialization"]

PACKED = {"in_proj": ("q_proj", "k_proj", "v_proj")}  # one weight of a plan, measured as three


@dataclass(frozen=True, slots=True)
class PlannedInitialization(InitialScale):
    """Before step 0, multiplies weights by given factors: for schemes that need more than an observation, as data.

    ``lipadvisor.modules`` finds such factors (``spectral``, ``depth_scaled``, ``lsuv``, ``dead_zone_rescue``), and
    ``policy()`` of its plans returns this part. Put it last in a chain, where it is the last word::

        chain(Lipschitz(), lsuv(model, batch).policy())

    A name that is not among the measured layers is left out and reported: the reason says ``init:absent``, and what
    was read has the factor under ``absent[name]``.

    Args:
        factors: (layer, factor > 0), each layer once. ``X.in_proj`` stands for the three projections of an attention
            ``X`` whose weight is packed.

    Raises:
        ValueError: a factor is out of its range, or a layer is named twice.
    """

    factors: Factors

    title: ClassVar[str] = "planned_initialization"
    reason: ClassVar[str] = "init:planned"

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", require_pairs("PlannedInitialization", "factors", self.factors))
        named_once("PlannedInitialization", "factors", (name for name, _ in self.factors))
        for _, factor in self.factors:
            require_positive("PlannedInitialization", "factors", factor)

    def factors_for(self, observation: Observation) -> Factors:
        """Return the plan, packed projections one by one."""
        layers = {layer.name for layer in observation.layers}
        found: dict[str, float] = {}
        for name, factor in self.factors:
            prefix, dot, last = name.rpartition(".")
            parts = [f"{prefix}{dot}{part}" for part in PACKED.get(last, ())]
            measured = [part for part in parts if part in layers] if name not in layers else []
            found |= dict.fromkeys(measured or [name], float(factor))
        return tuple(found.items())
