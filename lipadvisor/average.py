"""The running mean of a model's weights that a run ends with, kept beside them."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from typing import Any

import torch

from lipadvisor.policies.contract import Decision

__all__ = ["WeightAverage"]

_log = logging.getLogger("lipadvisor")
_STATISTICS = ("running_mean", "running_var")


class WeightAverage:
    """Exponential average of the optimizer's parameters over the last steps; the plain mean while there are few.

    One more copy of the weights, on their own device, once a decision asks for it; half-precision ones are averaged in
    float32, since they would round the increments off. Running statistics of normalisation layers are averaged like
    weights, which is not quite what the averaged network sees: ``torch.optim.swa_utils.update_bn`` measures that. All
    other buffers are left as they are.

    Args:
        model: what is averaged; changed by :meth:`end` alone.
        optimizer: moves the parameters that count; others are somebody else's.
        kept: whether an average may be kept at all.
    """

    def __init__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, kept: bool = True) -> None:
        self.kept = kept
        self._model, self._optimizer = model, optimizer
        self._memory: float | None = None  # steps
        self._mean: dict[str, torch.Tensor] = {}
        self._taken = 0  # weights that went into the mean
        self._step = 0  # of the last ones

    def follow(self, step: int, decision: Decision) -> None:
        """Take up the weights as they are after ``step`` steps, in the memory that ``decision`` or an earlier one asks.

        Each call counts by the steps since the last one. Where weights were just put back, the average begins anew.
        """
        memory = decision.averaging
        if memory is not None and math.isfinite(memory) and memory > 0.0:
            self._memory = memory
        if decision.rollback or decision.rewind:
            self._taken = 0
        if not self.kept or self._memory is None or step <= self._step:
            return
        self._taken += 1
        fresh = max(1.0 / self._taken, -math.expm1((self._step - step) / self._memory))
        self._step = step
        with torch.no_grad():
            for name, tensor in self._tensors().items():
                mean = self._mean.get(name)
                if self._taken == 1 or mean is None or mean.shape != tensor.shape or mean.device != tensor.device:
                    self._mean[name] = tensor.detach().to(_precision(tensor.dtype), copy=True)
                else:
                    mean.lerp_(tensor.to(mean.dtype), fresh)  # what stands still stays, bit by bit

    def end(self, decision: Decision, mode: str) -> list[str]:
        """Put the average in the place of the weights, once; return what was refused of it, and why.

        Args:
            decision: after the last step.
            mode: of the applier; the weights are touched in takeover alone.
        """
        asked = decision.averaging is not None
        if mode != "takeover":
            return [f"averaging: not in {mode} mode"] if asked else []
        if not self.kept:
            return ["averaging: no copies of the weights are kept"] if asked else []
        if self._memory is None or not self._taken:
            return []
        tensors, mean = self._tensors(), self._mean
        self._taken, self._mean = 0, {}
        if not all(bool(mean[name].isfinite().all()) for name in tensors):
            return ["averaging: the average is not finite"]
        with torch.no_grad():
            for name, tensor in tensors.items():
                tensor.copy_(mean[name])
        _log.info("the run ends with the average of its weights, of a memory of %.0f steps", self._memory)
        return []

    def close(self) -> None:
        """Say so where an average was begun and never put in place."""
        if self._taken:
            _log.warning(
                "closed after %d steps, before total_steps: the weights are those of the last step, not their average "
                "(steps that a gradient scaler skips do not count)",
                self._step,
            )

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: plain numbers and tensors, of sharded ones this process's share."""
        mean = {name: _share(one) for name, one in self._mean.items()}
        places = {name: _place(one) for name, one in self._mean.items()}
        return {"memory": self._memory, "taken": self._taken, "step": self._step, "mean": mean, "places": places}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; the tensors are copied. Earlier versions had none: {} changes nothing.

        Where it holds the share of another process the average begins anew, and a warning says so.
        """
        if not state or not self.kept:
            return
        self._memory, self._taken, self._step = state["memory"], int(state["taken"]), int(state["step"])
        mean, places = state["mean"], state["places"]
        known = {name: one for name, one in self._tensors().items() if name in mean}
        self._mean = {}
        if any(places[name] != _place(one) or mean[name].shape != _share(one).shape for name, one in known.items()):
            self._taken = 0
            _log.warning("the average of the weights begins anew: the checkpoint holds another process's share of it")
            return
        for name, one in known.items():
            self._mean[name] = torch.empty_like(one, dtype=mean[name].dtype, requires_grad=False)
            _share(self._mean[name]).copy_(mean[name])

    def _tensors(self) -> dict[str, torch.Tensor]:
        """Return what is averaged, by name; what is shared stands once."""
        moved = {id(one) for group in self._optimizer.param_groups for one in group["params"]}
        named = self._model.named_parameters()
        trained = {name: one for name, one in named if one.requires_grad and id(one) in moved}
        return trained | {name: one for name, one in self._model.named_buffers() if name.endswith(_STATISTICS)}


def _precision(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def _share(tensor: Any) -> torch.Tensor:
    """Return what this process holds of a tensor, as a view of it."""
    share: torch.Tensor = tensor.detach().to_local() if _is_sharded(tensor) else tensor.detach()
    return share


def _place(tensor: Any) -> list[int]:
    """Return where in the mesh that a tensor is spread over this process is, after the mesh's shape; [] for none."""
    if not _is_sharded(tensor):
        return []
    return [*tensor.device_mesh.shape, *(tensor.device_mesh.get_coordinate() or ())]


def _is_sharded(tensor: Any) -> bool:
    return hasattr(tensor, "placements")  # a DTensor; its module is not imported for those who have none
