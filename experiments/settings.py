"""What a comparison is made of. Checked whole before any work; a run's directory belongs to one such configuration."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lipadvisor.experiments.arms import ARMS
from lipadvisor.policies import from_json

__all__ = ["PLACEMENTS", "QUICK", "Settings"]

PLACEMENTS = ("trial", "hub")


@dataclass(frozen=True, slots=True)
class Settings:
    """One comparison of arms on workloads.

    Args:
        workloads: names of workloads, each once.
        arms: names of arms, each once.
        trials: configurations that each searched arm tries on each workload, >= 1.
        steps: optimizer steps of every trial, >= 1.
        replicates: fresh seeds for each selected configuration, >= 1.
        evaluations: how often a trial evaluates on the validation split, >= 1.
        seed: of the searches; the repetitions take the numbers after it; >= 0.
        policy_at: where decisions are made: ``"trial"`` or ``"hub"``.
        max_overhead: share of a trial's time that measuring may take, in (0, 1]; then every trial measures as often as
            that allows. ``None`` measures every step, except in the searches of the baselines, whose schedules read no
            measurement: there it may take a tenth of the time.

    Raises:
        ValueError: an argument is out of range, or a name unknown.
    """

    workloads: tuple[str, ...] = ("digits_mlp", "digits_convnet")
    arms: tuple[str, ...] = tuple(ARMS)
    trials: int = 8
    steps: int = 300
    replicates: int = 3
    evaluations: int = 15
    seed: int = 0
    policy_at: str = "trial"
    max_overhead: float | None = None

    def __post_init__(self) -> None:
        from lipadvisor.experiments.workloads import WORKLOADS  # here, since it imports torch

        for what, names, known in (("workload", self.workloads, WORKLOADS), ("arm", self.arms, ARMS)):
            if not names:
                raise ValueError(f"at least one {what} is needed, got none.")
            for name in names:
                if name not in known:
                    raise ValueError(f"there is no {what} {name!r}; there are {', '.join(known)}.")
            if len(set(names)) != len(names):
                raise ValueError(f"every {what} may be named once, got {', '.join(names)}.")
        for what in ("trials", "steps", "replicates", "evaluations"):
            if getattr(self, what) < 1:
                raise ValueError(f"{what} must be at least 1, got {getattr(self, what)}.")
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}.")
        if self.policy_at not in PLACEMENTS:
            raise ValueError(f"policy_at must be one of {', '.join(PLACEMENTS)}, got {self.policy_at!r}.")
        if self.max_overhead is not None and not 0 < self.max_overhead <= 1:
            raise ValueError(f"max_overhead must be in (0, 1], got {self.max_overhead}.")

    def differences(self, recorded: Any) -> tuple[str, ...]:
        """Return what differs from settings read back as JSON, one phrase for each: ``steps 300, was 200``.

        Raises:
            ValueError: ``recorded`` is not the record of settings.
        """
        other = from_json(Settings, recorded)
        fields = (field.name for field in dataclasses.fields(self))
        return tuple(
            f"{name} {_shown(getattr(self, name))}, was {_shown(getattr(other, name))}"
            for name in fields
            if getattr(self, name) != getattr(other, name)
        )


def _shown(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


QUICK: dict[str, Any] = {"arms": ("cosine", "lipschitz"), "trials": 2, "steps": 30, "replicates": 2, "evaluations": 3}
