"""Gains of normalisation layers: a diagonal operator behind the normalisation.

``s_1`` is the largest gain; for BatchNorm in eval mode the largest of ``gain / sqrt(running_var + eps)``, which is what
the layer does to its input then. What the normalisation itself does to a perturbation is another matter, so that gains
stand beside the network's sum. They are measured where they are asked for.

Shapes: ``B`` samples, ``N`` gains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lipadvisor.probe.kinds.kind import Candidate, Options, Plain, marks, wide
from lipadvisor.spectra import DiagonalOperator

__all__ = ["GainForm", "GainUse", "find_normalization"]

KINDS: dict[type[nn.Module], str] = {
    _BatchNorm: "batch_norm",
    _InstanceNorm: "instance_norm",
    nn.LayerNorm: "layer_norm",
    nn.GroupNorm: "group_norm",
    nn.RMSNorm: "rms_norm",
}


def find_normalization(module: nn.Module, options: Options) -> tuple[Candidate, ...] | str | None:
    """Return the gains of a normalisation layer where they are asked for, the reason where not; None for others."""
    kind = next((kind for known, kind in KINDS.items() if isinstance(module, known)), None)
    if kind is None:
        return None
    if module._parameters.get("weight") is None:
        return ()
    if not options.gains:
        return "a gain: measured with gains=True"
    form = GainForm(int(math.prod(module.weight.shape)), _running(module))  # type: ignore[arg-type]
    use = GainUse(module)
    return (
        Candidate(
            "weight",
            kind,
            (form.size, form.size),
            form,
            use,
            composition=0.0,
            decays=False,
            source=partial(_source, module),
        ),
    )


def _source(module: nn.Module, weight: nn.Parameter) -> Plain:
    return GainSource(weight, module)


def _running(module: nn.Module) -> Callable[[], Tensor | None] | None:
    """Return what gives ``1 / sqrt(running_var + eps)`` while the layer normalises by it, and None while not."""
    if not isinstance(module, _NormBase):
        return None

    def factor() -> Tensor | None:
        if _by_its_batch(module):
            return None
        assert module.running_var is not None
        return (module.running_var + module.eps).rsqrt()

    return factor


def _by_its_batch(module: _NormBase) -> bool:
    """Whether the layer normalises by what it is given: in training, or without running statistics."""
    return module.training or module.running_var is None


@dataclass(frozen=True, slots=True)
class GainForm:
    """Gains as a diagonal operator."""

    size: int
    factor: Callable[[], Tensor | None] | None

    @property
    def kernel_shape(self) -> tuple[int, ...]:
        """(N,)."""
        return (self.size,)

    @property
    def matrix(self) -> bool:
        """Whether the kernel is the operator's matrix: it is its diagonal."""
        return False

    def view(self, tensor: Tensor) -> Tensor:
        """Return a tensor of the gain's shape as a row."""
        return tensor.flatten()

    def operator(self, input_shape: tuple[int, ...] | None) -> DiagonalOperator:
        """Return the diagonal operator."""
        return DiagonalOperator(self.size, self.factor)


@dataclass(frozen=True, slots=True)
class GainUse:
    """A call ``y = gain * normalised(x) + bias``: samples along the first dimension."""

    module: nn.Module

    @property
    def flat(self) -> bool:
        """Whether a sample's gradient is a sum of few outer products: no."""
        return False

    @property
    def leading(self) -> bool:
        """Whether it acts on the last dimensions, whatever those before them are."""
        return isinstance(self.module, nn.LayerNorm | nn.RMSNorm)

    def read(self, arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
        """Return the input."""
        x = arguments[0] if arguments else keywords.get("input")
        return x.detach() if isinstance(x, Tensor) else None

    def count(self, kept: Tensor, grad: Tensor) -> int:
        """Return the number of samples."""
        shape = getattr(self.module, "normalized_shape", (0,))
        return grad.shape[0] if grad.dim() > len(shape) else 1

    def pair(self, kept: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Not for gains.

        Raises:
            TypeError: always.
        """
        raise TypeError("a gain's gradient is not given as outer products")

    def scalars(self, jacobian: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``<g_i, J>`` (B,)."""
        return self._gradients(kept, grad) @ jacobian

    def weighted(self, weight_B: Tensor, kept: Tensor, grad: Tensor) -> Tensor:
        """Return ``sum_i w_i g_i`` (N,)."""
        return weight_B @ self._gradients(kept, grad)

    def _gradients(self, kept: Tensor, grad: Tensor) -> Tensor:
        """Return every sample's gradient (B, N): ``sum_t d_it * normalised(x)_it``."""
        product = self._normalised(wide(kept)) * wide(grad)
        if isinstance(self.module, nn.LayerNorm | nn.RMSNorm):
            size = math.prod(self.module.normalized_shape)
            return product.reshape(self.count(kept, grad), -1, size).sum(1)
        return product.flatten(2).sum(2) if product.dim() > 2 else product

    def _normalised(self, x: Tensor) -> Tensor:
        module = self.module
        if isinstance(module, nn.LayerNorm):
            return functional.layer_norm(x, module.normalized_shape, None, None, module.eps)
        if isinstance(module, nn.RMSNorm):
            return functional.rms_norm(x, module.normalized_shape, None, module.eps)
        if isinstance(module, nn.GroupNorm):
            return functional.group_norm(x, module.num_groups, None, None, module.eps)
        assert isinstance(module, _NormBase)
        own = _by_its_batch(module)
        if isinstance(module, _InstanceNorm):
            mean, var = (None, None) if own else (module.running_mean, module.running_var)
            return functional.instance_norm(x, mean, var, None, None, own, 0.0, module.eps)
        if own:
            return functional.batch_norm(x, None, None, None, None, True, 0.0, module.eps)
        assert module.running_mean is not None
        assert module.running_var is not None
        mean, var = module.running_mean.to(x), module.running_var.to(x)
        return functional.batch_norm(x, mean, var, None, None, False, 0.0, module.eps)


@dataclass(frozen=True, slots=True)
class GainSource(Plain):
    """Gains, and the running variance that they act with."""

    module: nn.Module

    def versions(self) -> tuple[float | Tensor, ...]:
        """Return the marks of the gains, and of the running variance while the layer normalises by it."""
        if isinstance(self.module, _NormBase) and not _by_its_batch(self.module):
            assert self.module.running_var is not None
            return (*marks(self.weight), self.module.running_var._version)
        return (*marks(self.weight), -1)
