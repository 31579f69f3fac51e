"""The variance of the bound several steps ahead, with what the loss's curvature does to noise on the way.

A gradient's noise of one step is answered by the steps after it: along a stiff direction it dies out, along a
direction of negative curvature it grows. Linearise the update map along a path of weights ``W_0 .. W_h`` (full-batch
steps from a checkpoint), with Hessians ``H_t``, preconditioners ``P_t``, momentum ``b`` and the gradient's ``share``
in the first moment (1; ``1 - b_1`` for Adam). The answer of ``Z(W_h)`` to the noise of step ``t`` is a covector
``d_t``, by the recursion of the adjoint map, backwards::

    d_t = r_t - lr P_t p_t      p_(t-1) = p_t + share H_t d_t      r_(t-1) = b d_t      p_(h-1) = dZ/dW(W_h), r = 0

and the variance is ``share^2 sum_t d_t' Sigma_t d_t``. One Hessian-vector product a step; no Hessian is formed.

Adam's second moment ``v' = b_2 v + (1 - b_2) g^2`` takes in a batch's noise too, to first order ``2 (1 - b_2) G`` times
it, and holds it for a thousand steps. A larger ``v`` shortens the steps that follow, by ``B_t = -d(P_t m'_t) / dv'``::

    e_t = q_t + lr B_t p_t      q_(t-1) = b_2 e_t      c_t = share d_t + 2 (1 - b_2) G_t e_t

with ``c_t`` in the place of ``share d_t`` above.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp
from torch.nn import functional

__all__ = ["SecondMoment", "Update", "response_variance"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class SecondMoment:
    """How Adam's second moment answers to a gradient, and the step to it; by parameter name."""

    keep: float  # b_2
    gain: Weights  # 2 (1 - b_2) G
    bend: Weights  # B: what one unit of it takes off the step, per unit of lr


@dataclass(frozen=True, slots=True)
class Update:
    """One step on the path: ``m' = momentum m + share g(weights)``, ``W' = W - lr * scale * m'``."""

    weights: Weights  # before the step
    lr: float
    momentum: float
    share: float
    scales: Weights | None  # P over the bias correction, by parameter name; None stands for ones
    second: SecondMoment | None = None


def response_variance(
    model: nn.Module, covector: Weights, path: Sequence[Update], inputs: Tensor, target: Tensor
) -> float:
    """Return the variance of ``Z`` at the end of ``path``, for batches of one sample drawn independently.

    That of batches of M is ``1 / M`` of it, times the sampler's factor.

    Args:
        model: computes the same for each sample, whatever the others; float64.
        covector: ``dZ/dW`` at the path's end, nats per unit of weight, by parameter name; others count as zero.
        path: the steps, in order.
        inputs: all samples (N, ...).
        target: probabilities (N, classes).
    """

    def losses(at: dict[str, Tensor]) -> Tensor:
        output = functional_call(model, at, (inputs,))
        return -(target * functional.log_softmax(output, dim=1)).sum(1)

    def loss(at: dict[str, Tensor]) -> Tensor:
        return losses(at).mean()

    slope = grad(loss)
    now = {name: covector.get(name, torch.zeros_like(value)) for name, value in path[0].weights.items()}
    memory = {name: torch.zeros_like(value) for name, value in now.items()}
    longer = {name: torch.zeros_like(value) for name, value in now.items()}
    variance = 0.0
    for step in reversed(path):
        at = dict(step.weights)
        scaled = now if step.scales is None else {name: now[name] * step.scales[name] for name in now}
        answer = {name: memory[name] - step.lr * scaled[name] for name in now}
        turned = {name: step.share * value for name, value in answer.items()}
        if step.second is not None:
            second = step.second
            longer = {name: longer[name] + step.lr * second.bend[name] * now[name] for name in now}
            turned = {name: turned[name] + second.gain[name] * longer[name] for name in now}
            longer = {name: second.keep * value for name, value in longer.items()}
        variance += float(jvp(losses, (at,), (turned,))[1].var())
        curved = jvp(slope, (at,), (turned,))[1]
        now = {name: now[name] + curved[name] for name in now}
        memory = {name: step.momentum * answer[name] for name in now}
    return variance
