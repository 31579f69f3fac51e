"""What an audit says: one problem, or one piece of advice."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One problem (or one piece of advice) with its cure.

    Attributes:
        module: where; ``""`` is the whole model.
        problem: short name, e.g. ``"init_scale"``.
        cure: short name and value, e.g. ``"scale_weight 0.033"``.
        reason: the numbers that led here.
        source: paper and place.
        weight: how bad, nats; findings are sorted by it.
        value: the cure's number, where it has one.
    """

    module: str
    problem: str
    cure: str
    reason: str
    source: str
    weight: float
    value: float | None = None
