"""Maps of two inputs to a distance or an angle.

``cos(x, y)`` has the gradients ``(y^ - cos x^) / |x|`` and ``(x^ - cos y^) / |y|`` with unit vectors ``x^, y^``, both
of length ``sin / norm``. Below ``eps`` torch divides by ``eps`` instead, so that the largest joint gradient is
``sqrt(2) / eps``, approached as both norms fall to ``eps`` at a right angle.

``|x - y|_p`` has a gradient of dual norm 1, hence at most ``n^(1/p - 1/2)`` long for p < 2 and 1 for p >= 2, and
``sqrt(2)`` times that in both inputs jointly.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lipadvisor.modules.constant import Constant, Kind
from lipadvisor.modules.normalization import local_constant
from lipadvisor.modules.registry import Entry, register

__all__: tuple[str, ...] = ()

SOURCE = "gradient in closed form"


def _cosine(module: nn.CosineSimilarity, inputs: tuple[Tensor, ...]) -> Constant:
    if len(inputs) < 2:
        return Constant(math.sqrt(2) / module.eps, Kind.EXACT, "worst case, at inputs of norm eps", SOURCE)
    x, y = (value.detach().double().movedim(module.dim, -1) for value in inputs[:2])
    if x.shape != y.shape:  # one row then serves several outputs
        return local_constant(module, inputs)
    a, b = x.norm(dim=-1), y.norm(dim=-1)
    if bool((a <= module.eps).any()) or bool((b <= module.eps).any()):
        return local_constant(module, inputs)
    sine = (1 - ((x * y).sum(-1) / (a * b)) ** 2).clamp_min(0).sqrt()
    value = float((sine * (a**-2 + b**-2).sqrt()).max())
    return Constant(value, Kind.LOCAL, "on the given batch, both inputs jointly", SOURCE)


def _pairwise(module: nn.PairwiseDistance, inputs: tuple[Tensor, ...]) -> Constant:
    p = float(module.norm)
    if p < 1:
        return Constant(math.inf, Kind.EXACT, "no norm for p < 1: slopes without bound", SOURCE)
    if p < 2 and not inputs:
        raise ValueError("the constant of PairwiseDistance with p < 2 needs an input: its width enters.")
    longest = inputs[0].shape[-1] ** (1 / p - 0.5) if p < 2 else 1.0
    same = len(inputs) < 2 or inputs[0].shape == inputs[1].shape
    if not same:
        return local_constant(module, inputs)
    return Constant(math.sqrt(2) * longest, Kind.EXACT, "both inputs jointly", SOURCE)


def _window_powers(module: nn.CrossMapLRN2d, x: Tensor) -> Tensor:
    """The module's map as torch computes it forward: its own backward has no second derivative.

    Each window is what lies within ``(n + 1) // 2`` channels, and channel 0 stays in all windows after its own.
    """
    channel = torch.arange(x.shape[1], device=x.device)
    near = (channel[:, None] - channel[None, :]).abs() < (module.size + 1) // 2
    near[:, 0] |= channel >= (module.size + 1) // 2
    sums = torch.einsum("cj,bjhw->bchw", near.to(x.dtype), x.square())
    result: Tensor = x * (module.k + module.alpha / module.size * sums) ** -module.beta
    return result


def _across_channels(module: nn.CrossMapLRN2d, inputs: tuple[Tensor, ...]) -> Constant:
    return local_constant(lambda x: _window_powers(module, x), inputs)


def _adaptive(module: nn.AdaptiveLogSoftmaxWithLoss, inputs: tuple[Tensor, ...]) -> Constant:
    if len(inputs) < 2:
        raise ValueError("the constant of AdaptiveLogSoftmaxWithLoss needs its input and target: it is local.")

    def output(x: Tensor, target: Tensor) -> Tensor:
        # Its own output is written in place into a buffer; the full table gathered at the target is the same map.
        return module.log_prob(x.reshape(-1, x.shape[-1])).gather(1, target.reshape(-1, 1))

    return local_constant(output, (inputs[0], inputs[1].to(torch.int64)))


register(nn.CosineSimilarity, Entry("cosine_similarity", _cosine))
register(nn.PairwiseDistance, Entry("pairwise_distance", _pairwise))
register(nn.CrossMapLRN2d, Entry("local_response_norm", _across_channels))
register(nn.AdaptiveLogSoftmaxWithLoss, Entry("adaptive_log_softmax", _adaptive))
