"""Mean and covariance, over the sampling of batches, of the change of each log-norm over the next steps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lipadvisor.dynamics.coefficients import log_decay
from lipadvisor.dynamics.response import response
from lipadvisor.terms import Array, Terms

__all__ = ["EnsembleChange", "ensemble_change"]


@dataclass(frozen=True, slots=True)
class EnsembleChange:
    """Prediction of a branching test: many continuations of one checkpoint with independent batches."""

    steps: int
    mean_L: Array  # nats
    covariance_LL: Array  # nats^2
    mean: float  # of the network's log-norm, nats
    variance: float  # of the network's log-norm, exact (all of the covariance), nats^2
    independent_variance: float  # the same from the diagonal alone, as in [D]


def ensemble_change(terms: Terms, steps: int = 1, single_batch: bool = True) -> EnsembleChange:
    """Predict the change of the log-norms over ``steps`` steps with frozen direction and preconditioner.

    With ``D = lr h U`` and ``n = <H_op, Sigma_P>/s - C_ll`` (``docs/science.md``, section 5)::

        mean_l = a(D) + 1/2 ( q(D)/s - a(D)^2 ) + 1/2 lr^2 (S_2 - c) n + h ln(1 - lr wd)        cov = lr^2 S_2 C

    where ``c`` takes out what the batch of the measurement itself has put into ``q(D)``: ``E q(D) = q(E D) + noise``.
    The direction is carried on unchanged (for SGD this *is* the frozen gradient; a momentum buffer is taken to be near
    its steady state). Frozen coefficients hold for a few steps only: up to 5 with SGD, 5 to 20 with momentum.

    Args:
        terms: a full measurement.
        steps: number of steps ``h``, at least 1.
        single_batch: whether the direction is that of one batch; ``False`` for a full gradient.

    Raises:
        ValueError: ``steps`` is below 1.
    """
    if steps < 1:
        raise ValueError(f"ensemble_change(steps=...) must be at least 1, got {steps!r}.")
    before = max(terms.optimizer_step - 1, 0)
    answer = response(terms.optimizer, terms.momentum, steps, before)
    lr_L = terms.lr_L
    noise_L = terms.noise_curvature_L - np.diagonal(terms.noise_LL)
    first_L = lr_L * steps * terms.first_L
    second_L = 0.5 * (lr_L * steps) ** 2 * (terms.curvature_L - terms.first_L**2)
    # The measured direction holds its own batch with weight n_1, and is repeated h times.
    own = (steps * response(terms.optimizer, terms.momentum, 1, before).s_1) ** 2 if single_batch else 0.0
    mean_L = first_L + second_L + 0.5 * lr_L**2 * (answer.s_2 - own) * noise_L
    mean_L = mean_L + steps * log_decay(lr_L, terms.weight_decay_L)
    covariance_LL = answer.s_2 * np.outer(lr_L, lr_L) * terms.noise_LL
    counted_L = terms.composition_L != 0.0  # what stands beside the sum may be nan
    weight_L, own_LL = terms.composition_L[counted_L], covariance_LL[np.ix_(counted_L, counted_L)]
    return EnsembleChange(
        steps=steps,
        mean_L=mean_L,
        covariance_LL=covariance_LL,
        mean=float(weight_L @ mean_L[counted_L]),
        variance=float(weight_L @ own_LL @ weight_L),
        independent_variance=float(weight_L**2 @ np.diagonal(own_LL)),
    )
