"""A training between two of its steps, as something that tries its future sees it.

:func:`lipadvisor.rehearse` needs no more than a :class:`Stage` of whatever trains: ``Advisor.stage()`` gives its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import nn
from torch.optim import Optimizer

from lipadvisor.apply import Applier
from lipadvisor.forecast import Forecast, Standing
from lipadvisor.line import Line
from lipadvisor.probe import Probe
from lipadvisor.probe.exact_norms import exact_log_norms
from lipadvisor.terms import Array

__all__ = ["AdvisedStage", "Stage"]


@runtime_checkable
class Stage(Protocol):
    """What a rehearsal needs of a training."""

    @property
    def model(self) -> nn.Module:
        """What trains."""
        ...

    @property
    def optimizer(self) -> Optimizer:
        """What moves its weights."""
        ...

    @property
    def processes(self) -> int:
        """How many processes train it together."""
        ...

    @property
    def measured(self) -> bool:
        """Whether a step was measured: before, nothing can be forecast."""
        ...

    @property
    def first_loss(self) -> float:
        """The run's first training loss; 0 where it is not known."""
        ...

    @property
    def steered(self) -> bool:
        """Whether knobs that a plan does not name are to be written too, as the loop's owner would do."""
        ...

    def knobs(self) -> Standing:
        """Return the knobs of the next step, by parameter group.

        Where a decay is ``per_step`` the optimizer has none of its own: it acts on the matrices before each step.
        """
        ...

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None) -> Forecast:
        """Forecast from the present step on.

        Raises:
            ValueError: the horizon or the plan is impossible.
        """
        ...

    def log_norms(self) -> Array:
        """Return the log-norms of the weights as they are now: the layers, then the network; nats."""
        ...

    def cleared(self, before_update: Callable[[], None]) -> AbstractContextManager[None]:
        """Keep everybody's hands off the optimizer; ``before_update`` is called before each of its steps instead."""
        ...


class AdvisedStage:
    """The stage of a training under an advisor.

    Args:
        model: what trains.
        probe: measures it.
        applier: holds its knobs.
        line: of the training.

    Attributes:
        understudy: what acts before an optimizer step in the advisor's place; ``None``: the advisor does.
    """

    def __init__(self, model: nn.Module, probe: Probe, applier: Applier, line: Line) -> None:
        self.model, self.optimizer = model, applier.optimizer
        self._probe, self._applier, self._line = probe, applier, line
        self.steered = applier.mode != "shadow"
        self.understudy: Callable[[], None] | None = None

    @property
    def processes(self) -> int:
        """How many processes train it together."""
        return self._probe.ranks.size

    @property
    def measured(self) -> bool:
        """Whether a step was measured."""
        prediction = self._line.prediction
        return prediction is not None and prediction.measurements > 0

    @property
    def first_loss(self) -> float:
        """The first training loss that the advisor was told at a measurement; 0 before."""
        prediction = self._line.prediction
        return 0.0 if prediction is None else prediction.forecaster.first_loss

    @property
    def spared(self) -> frozenset[int]:
        """Parameters, by ``id``, that no decay of the policy's acts on."""
        return self._applier.spared

    def knobs(self) -> Standing:
        """Return the knobs of the next step, by parameter group; the policy's own decay is coupled to its own rate."""
        lr, weight_decay = self._applier.in_force()
        owned, groups = self._applier.owned_decays(), sorted(lr)
        return Standing(
            np.array([lr[group] for group in groups]),
            np.array([weight_decay[group] for group in groups]),
            np.array([group in owned for group in groups]),
        )

    def forecast(self, horizon: int, plan: Mapping[str, Any] | None = None) -> Forecast:
        """Forecast from the present step on, under ``plan`` and the knobs of the next step where it names none.

        Raises:
            ValueError: the horizon or the plan is impossible.
        """
        self._line.start(())
        assert self._line.prediction is not None
        forecaster, knobs = self._line.prediction.forecaster, self.knobs()
        group_L = [layer.group for layer in self._probe.layers]
        standing = Standing(knobs.lr_G[group_L], knobs.weight_decay_G[group_L], knobs.per_step_G[group_L])
        return forecaster.forecast(horizon, plan, max(self._line.step, forecaster.step), standing)

    def log_norms(self) -> Array:
        """Return the log-norms of the weights as they are now: the layers, then the network; nats."""
        return exact_log_norms(self._probe.layers, self._probe.following.capture.input_shapes)

    @contextmanager
    def cleared(self, before_update: Callable[[], None]) -> Iterator[None]:
        """Keep the advisor's hands off the optimizer; the time is measuring's."""
        with self._probe.aside():
            self.understudy = before_update
            try:
                yield
            finally:
                self.understudy = None
