"""What a training does to its model's parts while it is measured, and a probe cannot follow: said once, by name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from lipadvisor.probe.kinds import Plain, TrackedLayer

__all__ = ["Changes"]

_log = logging.getLogger("lipadvisor")


@dataclass(slots=True)
class Changes:
    """Looks at each measured step whether the layers are still those that were found.

    Attributes:
        layers: measured ones.
        optimizer: of their weights.
        frozen: names and matrices that needed no gradient when the layers were found.
        held: parameters that the optimizer held then.
    """

    layers: Sequence[TrackedLayer]
    optimizer: torch.optim.Optimizer
    frozen: tuple[tuple[str, nn.Parameter], ...]
    held: int
    _said: set[str] = field(default_factory=set)

    @classmethod
    def since(cls, model: nn.Module, optimizer: torch.optim.Optimizer, layers: Sequence[TrackedLayer]) -> Changes:
        """Begin with a model as it is now."""
        frozen = tuple((name, p) for name, p in model.named_parameters() if not p.requires_grad and p.dim() >= 2)
        return cls(layers, optimizer, frozen, _held(optimizer))

    def look(self) -> tuple[bool, ...]:
        """Say what is new, and return which layers' weights their modules do not have any more."""
        gone = tuple(_is_gone(layer) for layer in self.layers)
        names = [layer.name for layer, lost in zip(self.layers, gone, strict=True) if lost]
        self._say(names, "the module has another weight by now than the one that is measured")
        self._say([name for name, p in self.frozen if p.requires_grad], "frozen when measuring began, and not measured")
        if _held(self.optimizer) > self.held:
            self._say(["the optimizer"], "it has parameters that it did not have when measuring began: not measured")
        return gone

    def _say(self, names: Sequence[str], what: str) -> None:
        new = [name for name in names if name + what not in self._said]
        self._said.update(name + what for name in new)
        if new:
            _log.warning("%s: %s (a new Advisor or Probe would find it)", ", ".join(new), what)


def _held(optimizer: torch.optim.Optimizer) -> int:
    return sum(len(group["params"]) for group in optimizer.param_groups)


def _is_gone(layer: TrackedLayer) -> bool:
    """Return whether a plain weight is no parameter of its module any more (replaced, pruned, removed)."""
    if not isinstance(layer.source, Plain) or layer.shares:
        return False
    return all(p is not layer.weight for p in layer.module._parameters.values())
