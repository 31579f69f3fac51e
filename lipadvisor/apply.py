"""The only place that acts: writes a decision's knobs into an optimizer and its weights, in place.

Three modes. ``takeover``: the advisor owns learning rate and weight decay. What it proposes is written into the
parameter groups and asserted again before each step, so that a scheduler or a person who writes in between is noticed
and has no effect; weight decay is decoupled and acts on the matrices of the group, ``W *= 1 - lr * weight_decay``,
whatever the optimizer, whose own weight decay is set to zero. ``cap``: the user's schedule stays, and the advisor's
learning rate is an upper limit that holds during the step only. ``shadow``: nothing is touched.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from weakref import WeakSet

import torch

from lipadvisor.policies.contract import Decision, Knobs

__all__ = ["MODES", "Applied", "Applier", "Mode", "shrink"]

Mode = Literal["takeover", "cap", "shadow"]
MODES: tuple[Mode, ...] = ("takeover", "cap", "shadow")

# Number of a parameter group, its learning rate, the factor of its decay, and the matrices that it shrinks.
_Standing = tuple[int, float, float, list[torch.Tensor]]
_DECOUPLED = ("AdamW", "Muon")
_log = logging.getLogger("lipadvisor")
_steered: WeakSet[torch.optim.Optimizer] = WeakSet()  # by an advisor that is open


@dataclass(frozen=True, slots=True)
class Applied:
    """What became of a decision: the knobs before it, those proposed, those now in force, and what was refused."""

    before: tuple[Knobs, ...]
    proposed: tuple[Knobs, ...]
    after: tuple[Knobs, ...]
    refused: tuple[str, ...] = ()


class Applier:
    """Holds the knobs of ``optimizer`` and applies decisions to it and to the weights of the measured layers.

    Args:
        optimizer: any ``torch.optim.Optimizer``; learning rates may be tensors, which are then filled in place.
        weights: the weight of each measured layer, by the layer's name.
        mode: ``"takeover"``, ``"cap"`` or ``"shadow"``.
        spared: parameters that decay would spoil; an owned weight decay leaves them alone.

    Raises:
        ValueError: the mode is unknown, or another one that began and is not closed steers the optimizer.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Mapping[str, torch.Tensor],
        mode: Mode = "takeover",
        spared: Iterable[torch.Tensor] = (),
    ) -> None:
        if mode not in MODES:
            raise ValueError(f"Applier(mode=...) must be one of {', '.join(MODES)}, got {mode!r}.")
        if mode != "shadow" and optimizer in _steered:
            rule = "an optimizer that no other advisor steers; close() that one first, or use mode='shadow'"
            raise ValueError(f"Advisor(optimizer=...) must be {rule}, got a {type(optimizer).__name__} under two.")
        self.optimizer, self.mode = optimizer, mode
        self.foreign_writes = 0
        self.spared = frozenset(id(p) for p in spared)
        self._weights = weights  # asked each time: the tensors may be other ones by then
        self._user = [_knobs_of(group) for group in optimizer.param_groups]
        self._lr: dict[int, float] = {}  # owned learning rate, or cap, by group
        self._weight_decay: dict[int, float] = {}  # owned decoupled weight decay, by group
        self._restore: dict[int, float] = {}  # the user's learning rate during a capped step
        self._standing: list[_Standing] = []  # what standing() asserts; empty: the long way
        self._own_decay = any(kind.__name__ in _DECOUPLED for kind in type(optimizer).__mro__)

    def begin(self) -> None:
        """Be the only one that steers the optimizer, until :meth:`close`."""
        if self.mode != "shadow":
            _steered.add(self.optimizer)

    # -- decisions ---------------------------------------------------------------------------------------------------

    def apply(self, decision: Decision) -> Applied:
        """Take over the knobs of ``decision``. Values out of range are refused, by name, and the old ones stay."""
        before, refused = self.knobs(), []
        self._user += [_knobs_of(group) for group in self.optimizer.param_groups[len(self._user) :]]  # added later
        for knobs in decision.knobs:
            refused += self._take(knobs)
        if decision.init_scale:
            refused += self._scale(decision.init_scale, "init_scale", before_training=decision.step == 0)
        if decision.weight_scale:
            refused += self._scale(decision.weight_scale, "weight_scale", before_training=True)
        if self.mode == "takeover":
            self._write()
            self._note_standing()
        return Applied(before, decision.knobs, self.knobs(), tuple(refused))

    def _take(self, knobs: Knobs) -> list[str]:
        if not 0 <= knobs.group < len(self.optimizer.param_groups):
            return [f"group {knobs.group}: no such parameter group"]
        if self.mode == "shadow":
            return []
        refused, before = [], self._lr.get(knobs.group, self._user_lr(knobs.group))
        if knobs.lr is not None:
            if math.isfinite(knobs.lr) and knobs.lr > 0:
                self._lr[knobs.group] = knobs.lr
            else:
                refused.append(f"group {knobs.group}: lr {knobs.lr} is not a positive number")
        lr = self._lr.get(knobs.group, before)
        if knobs.weight_decay is not None and self.mode == "takeover":
            if math.isfinite(knobs.weight_decay) and 0 <= knobs.weight_decay * lr < 1:
                self._weight_decay[knobs.group] = knobs.weight_decay
            else:
                refused.append(f"group {knobs.group}: weight_decay {knobs.weight_decay} with lr {lr} is not in [0, 1)")
        standing = self._weight_decay.get(knobs.group, 0.0)
        if standing * lr >= 1:  # was right for the rate before: a step would turn the weights around
            lowered = standing * before / lr
            self._weight_decay[knobs.group] = lowered
            refused.append(f"group {knobs.group}: weight_decay {standing:.6g} with lr {lr:.6g}: {lowered:.6g} is kept")
        return refused

    def _scale(self, scales: Sequence[tuple[str, float]], what: str, *, before_training: bool) -> list[str]:
        if self.mode != "takeover":
            return [f"{what}: not in {self.mode} mode"]
        if not before_training:
            return [f"{what}: only before step 0"]
        refused = []
        with torch.no_grad():
            for name, factor in scales:
                if name not in self._weights:
                    refused.append(f"{what}: no layer {name!r}")
                elif not (math.isfinite(factor) and factor > 0):
                    refused.append(f"{what}: factor {factor} of {name!r} is not a positive number")
                else:
                    self._weights[name].mul_(factor)
        return refused

    # -- around the optimizer's step ---------------------------------------------------------------------------------

    def standing(self) -> list[tuple[list[torch.Tensor], float]] | None:
        """Return the matrices to shrink and their factors, if nobody wrote an owned knob since it was applied.

        This is on the path of every step that is not measured, where each call of a function counts. ``None`` is for
        :meth:`before_update` to sort out.
        """
        shrinking = []
        groups = self.optimizer.param_groups  # other ones after a load_state_dict
        for index, lr, factor, matrices in self._standing:
            group = groups[index]
            if group["lr"] != lr or group.get("weight_decay"):
                return None
            if live := [p for p in matrices if p.grad is not None]:
                shrinking.append((live, factor))
        return shrinking if self._standing else None

    def _note_standing(self) -> None:
        self._standing = []
        if self._lr.keys() != self._weight_decay.keys():
            return
        standing: list[_Standing] = []
        for index, lr in self._lr.items():
            group = self.optimizer.param_groups[index]
            if isinstance(group["lr"], torch.Tensor) or isinstance(group.get("weight_decay"), torch.Tensor):
                return
            factor = 1.0 - lr * self._weight_decay[index]
            matrices = [p for p in group["params"] if p.ndim >= 2 and factor != 1.0 and id(p) not in self.spared]
            standing.append((index, lr, factor, matrices))
        self._standing = standing

    def before_update(self) -> None:
        """Assert the knobs; shrink the matrices by the decoupled decay. Called with the gradients in place."""
        if self.mode == "takeover":
            if self._foreign_written():
                self._write()
            self._decay()
        elif self.mode == "cap":
            for index, cap in self._lr.items():
                group = self.optimizer.param_groups[index]
                lr = _number(group["lr"])
                if lr > cap:
                    self._restore[index] = lr
                    _set(group, "lr", cap)

    def after_update(self) -> None:
        """Give a capped learning rate back to the user's schedule."""
        for index, lr in self._restore.items():
            _set(self.optimizer.param_groups[index], "lr", lr)
        self._restore.clear()

    def in_force(self) -> tuple[dict[int, float], dict[int, float]]:
        """Return learning rate and decoupled weight decay, by group, of the step in progress (or the next one)."""
        lr, weight_decay = {}, {}
        for index, group in enumerate(self.optimizer.param_groups):
            lr[index] = _number(group["lr"])
            if index in self._lr:  # in takeover whatever stands in the group is overwritten before it is used
                lr[index] = self._lr[index] if self.mode == "takeover" else min(lr[index], self._lr[index])
            theirs = (
                _number(group.get("weight_decay", 0.0))
                if self._own_decay or group.get("decoupled_weight_decay")
                else 0.0
            )
            weight_decay[index] = self._weight_decay.get(index, theirs)
        return lr, weight_decay

    def owned_decays(self) -> frozenset[int]:
        """Return the parameter groups whose weight decay is a policy's: it is coupled to the policy's own rate."""
        return frozenset(self._weight_decay)

    def knobs(self) -> tuple[Knobs, ...]:
        """Return the knobs in force, one for each parameter group; a weight decay that is not decoupled as it is."""
        lr, weight_decay = self.in_force()
        return tuple(
            Knobs(
                index,
                lr[index],
                weight_decay[index]
                if self.mode == "takeover" and index in self._weight_decay
                else _number(group.get("weight_decay", 0.0)),
            )
            for index, group in enumerate(self.optimizer.param_groups)
        )

    def close(self) -> None:
        """Hand the knobs back: the last learning rate stays, the user's own weight decay is put back."""
        self.after_update()
        if self.mode != "shadow":
            _steered.discard(self.optimizer)
        for index in self._weight_decay:
            _set(self.optimizer.param_groups[index], "weight_decay", self._user[index][1])
        self._lr.clear()
        self._weight_decay.clear()
        self._standing = []

    def release(self) -> None:
        """Give everything back as the user had it, the learning rate included: the advisor can no longer steer."""
        self.after_update()
        for index, (lr, weight_decay) in enumerate(self._user if self.mode == "takeover" else ()):
            _set(self.optimizer.param_groups[index], "lr", lr)
            _set(self.optimizer.param_groups[index], "weight_decay", weight_decay)
        self._lr.clear()
        self._weight_decay.clear()
        self._standing = []

    # -- checkpoint --------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return the owned knobs and the user's own, as plain numbers."""
        return {
            "lr": dict(self._lr),
            "weight_decay": dict(self._weight_decay),
            "user": [list(pair) for pair in self._user],
            "foreign_writes": self.foreign_writes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict` and assert its knobs at once."""
        self._lr = {int(k): float(v) for k, v in state["lr"].items()}
        self._weight_decay = {int(k): float(v) for k, v in state["weight_decay"].items()}
        self._user = [(float(lr), float(weight_decay)) for lr, weight_decay in state["user"]]
        self.foreign_writes = int(state["foreign_writes"])
        if self.mode == "takeover":
            self._write()
            self._note_standing()

    # -- details -----------------------------------------------------------------------------------------------------

    def _foreign_written(self) -> bool:
        """Return whether somebody else wrote an owned knob since the last step; say so."""
        before = self.foreign_writes
        for index, lr in self._lr.items():
            seen = _number(self.optimizer.param_groups[index]["lr"])
            if seen != lr and not math.isclose(seen, lr, rel_tol=1e-6):  # a float32 tensor rounds
                self._foreign(f"lr of group {index}: {seen:.6g} was written from outside, {lr:.6g} is kept")
        for index in self._weight_decay:
            seen = _number(self.optimizer.param_groups[index].get("weight_decay", 0.0))
            if seen != 0.0:
                self._foreign(f"weight_decay of group {index}: {seen:.6g} was written from outside")
        return self.foreign_writes != before

    def _write(self) -> None:
        for index, lr in self._lr.items():
            _set(self.optimizer.param_groups[index], "lr", lr)
        for index in self._weight_decay:
            if "weight_decay" in self.optimizer.param_groups[index]:
                _set(self.optimizer.param_groups[index], "weight_decay", 0.0)

    def _decay(self) -> None:
        for index, weight_decay in self._weight_decay.items():
            group = self.optimizer.param_groups[index]
            shrink(group["params"], 1.0 - _number(group["lr"]) * weight_decay, self.spared)

    def _foreign(self, message: str) -> None:
        self.foreign_writes += 1
        if self.foreign_writes == 1:
            _log.warning("%s (said once; counted in the record)", message)

    def _user_lr(self, index: int) -> float:
        return _number(self.optimizer.param_groups[index]["lr"])


def shrink(parameters: Iterable[torch.Tensor], factor: float, spared: Collection[int] = ()) -> None:
    """Multiply the matrices among ``parameters`` by ``factor``, as a step's decoupled weight decay does.

    A parameter without a gradient takes no part in the step, as with the optimizers' own weight decay; nor do those
    whose ``id`` is in ``spared``.
    """
    matrices = [p for p in parameters if p.ndim >= 2 and p.grad is not None and id(p) not in spared]
    if matrices and factor != 1.0:
        with torch.no_grad():
            torch._foreach_mul_(matrices, factor)


def _knobs_of(group: Mapping[str, Any]) -> tuple[float, float]:
    """Return learning rate and weight decay of a parameter group."""
    return _number(group["lr"]), _number(group.get("weight_decay", 0.0))


def _number(value: Any) -> float:
    return float(value.item()) if isinstance(value, torch.Tensor) else float(value)


def _set(group: dict[str, Any], key: str, value: float) -> None:
    if isinstance(group.get(key), torch.Tensor):
        with torch.no_grad():
            group[key].fill_(value)
    else:
        group[key] = value
