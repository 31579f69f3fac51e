"""The arms of a comparison: which policy, what of it is searched, and whether it counts as a baseline.

An arm is plain data. Its policy runs behind the same contract as any other, so every trial is measured and recorded
alike. The ranges of the baselines depend on the optimizer's kind: they are centred on values in common use and reach
an order of magnitude or more to either side.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lipadvisor.experiments.space import Range
from lipadvisor.policies import Lipschitz, Policy, named_policy

__all__ = ["ARMS", "STEP_FACTOR", "Arm"]

STEP_FACTOR = "step_factor"  # a parameter of arms on the default policy: what its steps are scaled by


@dataclass(frozen=True, slots=True)
class Arm:
    """A policy and the space its parameters are searched in; an empty space means: its defaults, untuned."""

    name: str
    summary: str  # one line, for people
    policy_name: str
    baseline: bool
    space: Callable[[str], tuple[Range, ...]]  # by optimizer kind, "adamw" or "sgd"

    def policy(self, parameters: Mapping[str, float]) -> Policy[Any]:
        """Return the arm's policy with ``parameters``.

        Raises:
            ValueError: a parameter is unknown or out of range.
        """
        own = {name: value for name, value in parameters.items() if name != STEP_FACTOR}
        policy = named_policy(self.policy_name, **own)
        if STEP_FACTOR not in parameters:
            return policy
        if not isinstance(policy, Lipschitz):
            raise ValueError(
                f"parameter {STEP_FACTOR!r} is for policies whose steps can be scaled, not {self.policy_name!r}."
            )
        return policy.scaled(parameters[STEP_FACTOR])


def _baseline_space(optimizer_kind: str) -> tuple[Range, ...]:
    """Learning rate, decoupled weight decay and warmup, for AdamW and for SGD with momentum."""
    warmup = Range("warmup_fraction", 0.0, 0.3, 0.05)
    if optimizer_kind == "adamw":
        return (Range("lr", 3e-4, 3e-2, 3e-3, log=True), Range("weight_decay", 1e-3, 3.0, 1e-2, log=True), warmup)
    return (Range("lr", 3e-3, 0.3, 0.05, log=True), Range("weight_decay", 1e-5, 0.3, 5e-4, log=True), warmup)


def _lipschitz_space(_: str) -> tuple[Range, ...]:
    """The default policy's own constants, a factor of three to either side of their defaults; for every optimizer."""
    defaults = Lipschitz()
    values = {STEP_FACTOR: 1.0, "budget": defaults.budget, "decay_total": defaults.decay_total}
    return tuple(Range(name, value / 3, value * 3, value, log=True) for name, value in values.items())


def _nothing(_: str) -> tuple[Range, ...]:
    return ()


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("constant", "constant learning rate; lr, weight decay and warmup tuned", "constant", True, _baseline_space),
        Arm("cosine", "cosine decay; lr, weight decay and warmup tuned", "cosine", True, _baseline_space),
        Arm("wsd", "warmup, stable, decay; lr, weight decay and warmup tuned", "wsd", True, _baseline_space),
        Arm(
            "lipschitz_tuned",
            "Lipschitz-aware policy; its own three constants tuned",
            "lipschitz",
            False,
            _lipschitz_space,
        ),
        Arm("lipschitz", "Lipschitz-aware policy as it comes, nothing tuned", "lipschitz", False, _nothing),
    )
}
