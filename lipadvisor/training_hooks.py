"""What torch calls around an optimizer step: the first forward pass, and before and after the optimizer's own work."""

from __future__ import annotations

import time
from typing import Any

import torch

from lipadvisor.announce import log_unclosed
from lipadvisor.apply import Applier
from lipadvisor.fail_open import FailOpen
from lipadvisor.line import Line
from lipadvisor.probe.hook import Hook, transformed
from lipadvisor.stage import AdvisedStage

__all__ = ["TrainingHooks"]


class TrainingHooks:
    """The hooks of one training under an advisor; they are in until :meth:`remove`.

    Args:
        model: its first forward pass in training mode starts the line.
        line: of the training.
        applier: holds the knobs.
        errors: catch what goes wrong.
        stage: says who acts while the training's future is tried.

    Attributes:
        updated: the optimizer took a step that is not closed yet.
        unclosed_steps: optimizer steps that nobody closed before the next one came.
        released: the knobs are the user's again: steps are no longer this advisor's.
    """

    def __init__(
        self, model: torch.nn.Module, line: Line, applier: Applier, errors: FailOpen, stage: AdvisedStage
    ) -> None:
        self._line, self._applier, self._errors, self._stage = line, applier, errors, stage
        self.updated = self.released = False
        self.unclosed_steps = 0
        # Before others': fully_shard's gathers the weights, and the first pass may rescale them.
        first = Hook(self._before_forward)
        self._first_forward = model.register_forward_pre_hook(first, prepend=True, with_kwargs=True)
        self._handles = [
            self._first_forward,
            applier.optimizer.register_step_pre_hook(self._before_update),
            applier.optimizer.register_step_post_hook(self._after_update),
        ]

    def remove(self) -> None:
        """Take every hook out."""
        for handle in self._handles:
            handle.remove()

    def _before_forward(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if transformed():  # a compiler is tracing, or torch.func: the advisor starts outside
            return
        if not self._line.started and module.training and torch.is_grad_enabled():
            self._errors.guard(self._line.start, args, kwargs)
        if self._line.started:
            self._first_forward.remove()  # a hook costs every forward pass some microseconds

    def _before_update(self, *_: Any) -> None:
        if self._stage.understudy is not None:
            self._stage.understudy()
            return
        begun = time.perf_counter()
        if self.updated:
            self.unclosed_steps += 1
            log_unclosed(self.unclosed_steps)
        if self._line.calm:  # the path of nearly every step: no guard, which asks for autocast
            try:
                shrinking = self._applier.standing()
            except Exception:
                self._errors.caught()
                shrinking = None
            if shrinking is not None:
                self._line.acting_s = time.perf_counter() - begun
                with torch.no_grad():
                    for matrices, factor in shrinking:  # the weight decay is the optimizer's work, by other hands
                        torch._foreach_mul_(matrices, factor)
                return
        self._line.calm = False
        if not self.released:
            self._errors.guard(self._line.prepare_update)

    def _after_update(self, *_: Any) -> None:
        if self._stage.understudy is not None:
            return
        self.updated = True
        if not self._line.calm and not self.released:
            self._errors.guard(self._line.finish_update)
