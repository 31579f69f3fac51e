"""What was tried on the design list: the default with one part changed or taken out, and the older rules."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lipadvisor.experiments.benchmarks.blind import Blind
from lipadvisor.experiments.benchmarks.function_mean import FunctionMean
from lipadvisor.experiments.benchmarks.rules import FirstRule, SecondRule
from lipadvisor.policies import Lipschitz, Policy, TotalDecay, chain, guard

__all__ = ["VARIANTS"]


def spectral_alone(factor: float = 1.0) -> Policy[Any]:
    """Return the default with the spectral size as its only measure of a step, held at ``factor`` times its own."""
    median, *others = Lipschitz().scaled(factor).line().members
    return guard(chain(median.rate, *others, name="spectral_alone"))


def no_average(**constants: float) -> Policy[Any]:
    """Return the default that ends with its last weights."""
    members = Lipschitz(**constants).line().members
    return guard(chain(*(part for part in members if part.name != "averaging"), name="no_average"))


def decay_blind_to_validation() -> Policy[Any]:
    """Return the default whose weight decay does not look at the gap between validation and training loss."""
    members = Lipschitz().line().members
    blind = (replace(part, most_factor=1.0) if isinstance(part, TotalDecay) else part for part in members)
    return guard(chain(*blind, name="decay_blind_to_validation"))


VARIANTS: dict[str, Policy[Any]] = {
    "default": Lipschitz(),
    "no lift of hidden layers": Lipschitz(low_gain=0.1),
    "lift to 1.2, in chains to more": Lipschitz(low_gain=1.2),
    "budget 0.15": Lipschitz(budget=0.15),
    "budget 0.6": Lipschitz(budget=0.6),
    "budget 0.9": Lipschitz(budget=0.9),
    "no budget": Lipschitz(budget=1e6),
    "budget blind to the loss": Lipschitz(budget=0.35, loss_room=0.0),
    "loss room 6": Lipschitz(loss_room=6.0),
    "step / 2": Lipschitz().scaled(0.5),
    "step x 2": Lipschitz().scaled(2.0),
    "same step at every horizon": Lipschitz(horizon_power=0.0),
    "step as 1 / horizon": Lipschitz(horizon_power=1.0),
    "no decay": Lipschitz(decay_total=0.0),
    "decay 1.5": Lipschitz(decay_total=1.5),
    "decay blind to validation": decay_blind_to_validation(),
    "no average": no_average(),
    "no average, annealed to 0.1 %": no_average(cooldown_end=0.001),
    "ratio remembered for 50 steps": Lipschitz(memory=1e6),
    "ratio remembered for 3 % of the run": Lipschitz(memory=0.03),
    "blind to validation": Blind(Lipschitz()),
    "all three steps x 8": Lipschitz().scaled(8.0),
    "all three steps / 8": Lipschitz().scaled(1.0 / 8.0),
    "spectral step alone": spectral_alone(),
    "spectral step alone x 8": spectral_alone(8.0),
    "spectral step alone / 8": spectral_alone(1.0 / 8.0),
    "mean with the function's change": FunctionMean(),
    "mean, step x 8": FunctionMean(Lipschitz().scaled(8.0)),
    "mean, step / 8": FunctionMean(Lipschitz().scaled(1.0 / 8.0)),
    "first rule": FirstRule(),
    "second rule": SecondRule(),
}
