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
from lipadvisor.policies import Policy, named_policy

__all__ = ["ARMS", "Arm"]


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
        return named_policy(self.policy_name, **parameters)


def _baseline_space(optimizer_kind: str) -> tuple[Range, ...]:
    """Learning rate, decoupled weight decay and warmup, for AdamW and for SGD with momentum."""
    warmup = Range("warmup_fraction", 0.0, 0.3, 0.05)
    if optimizer_kind == "adamw":
        return (Range("lr", 3e-4, 3e-2, 3e-3, log=True), Range("weight_decay", 1e-3, 3.0, 1e-2, log=True), warmup)
    return (Range("lr", 3e-3, 0.3, 0.05, log=True), Range("weight_decay", 1e-5, 0.3, 5e-4, log=True), warmup)


def _lipschitz_space(_: str) -> tuple[Range, ...]:
    """The default policy's own constants, a factor of three to either side of their defaults; for every optimizer."""
    defaults = named_policy("lipschitz")
    return tuple(
        Range(name, value / 3, value * 3, value, log=True)
        for name, value in ((name, float(getattr(defaults, name))) for name in _LIPSCHITZ_CONSTANTS)
    )


_LIPSCHITZ_CONSTANTS = ("relative_step", "budget", "decay_total")


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
