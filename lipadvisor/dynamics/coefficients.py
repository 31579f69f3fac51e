"""The coefficients of the SDE of each log-norm and of the network's bound, per unit of ``tau``.

Layer, [D] main theorem, with the finite-step term that the published form drops::

    d log_norm = (drift + finite_step + noise_curvature - diffusion^2 / 2 + decay) dtau + diffusion dW

[D]: Luo et al., arXiv 2506.18588. Shapes: ``L`` layers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lipadvisor.dynamics.response import own_response
from lipadvisor.terms import Array, Terms

__all__ = ["Coefficients", "Form", "Noise", "coefficients", "log_decay", "network_lr"]

Form = Literal["finite_step", "paper"]
Noise = Literal["exact", "independent"]
# Numpy takes an array of no dimension in half the time of a number.
_ZERO, _HALF, _ONE = np.array(0.0), np.array(0.5), np.array(1.0)


@dataclass(frozen=True, slots=True)
class Coefficients:
    """Rates of one measured step. Nats per ``tau``; diffusions are nats per square root of ``tau``.

    The network's numbers are sums over the layers with the composition weights, per unit of the network's clock, whose
    learning rate is ``lr`` (:func:`network_lr`): where groups differ, each layer's rate counts ``lr_l / lr`` times, so
    that ``lr * rate`` is the change over one step whatever the groups do.
    """

    step: int
    form: Form
    noise: Noise
    lr: float  # learning rate of the network's clock
    own_response: float  # n_1: how far a step follows its own batch; 1, or Adam's (1 - b1) / (1 - b1^t)
    lr_L: Array
    drift_L: Array
    diffusion_L: Array
    noise_curvature_L: Array
    finite_step_L: Array  # zero in the form "paper"
    decay_L: Array
    drift: float
    diffusion: float
    noise_curvature: float
    finite_step: float
    decay: float
    ito: float  # sum of w_l diffusion_l^2 / 2: the logarithm is taken layer by layer, so correlations do not enter

    def path_rate_L(self) -> Array:
        """Return each layer's rate along the realised path, nats per ``tau``, shape ``(L,)``.

        Form ``finite_step``: ``drift + finite_step + decay``. The direction that was applied contains its own noise,
        and with it one draw of the noise-curvature; adding the expected one would count it twice. For plain SGD it is
        also an unbiased estimate of the ensemble's rate. Form ``paper``: the published
        ``drift + noise_curvature - diffusion^2 / 2``, with the decay.
        """
        if self.form == "finite_step":
            return self.drift_L + self.finite_step_L + self.decay_L
        return self.paper_rate_L()

    def paper_rate_L(self) -> Array:
        """Return each layer's rate along the path as published, nats per ``tau``, shape ``(L,)``, whatever the form."""
        rate_L = self.diffusion_L * self.diffusion_L
        rate_L *= -0.5
        rate_L += self.drift_L
        rate_L += self.noise_curvature_L
        rate_L += self.decay_L
        return rate_L

    def path_rate(self) -> float:
        """Return the network's rate along the realised path, nats per ``tau`` (see :meth:`path_rate_L`)."""
        if self.form == "finite_step":
            return self.drift + self.finite_step + self.decay
        return self.drift + self.noise_curvature - self.ito + self.decay

    def ensemble_rate_L(self) -> Array:
        """Return the mean rate over the sampling of batches, nats per ``tau``, shape ``(L,)``.

        ``drift + finite_step + noise_curvature - diffusion^2 / 2 + decay``: right where ``drift`` and ``finite_step``
        belong to the *mean* direction (a full gradient, an average over batches). For the direction of a single batch
        use :meth:`path_rate_L`, or :func:`lipadvisor.dynamics.ensemble_change`, which takes its noise out first.
        """
        noise = self.noise_curvature_L - 0.5 * self.diffusion_L**2
        return self.drift_L + self.finite_step_L + noise + self.decay_L

    def ensemble_rate(self) -> float:
        """Return the network's mean rate over the sampling of batches, nats per ``tau`` (:meth:`ensemble_rate_L`)."""
        return self.drift + self.finite_step + self.noise_curvature - self.ito + self.decay


def log_decay(lr: Array, weight_decay: Array) -> Array:
    """Return ``ln(1 - lr weight_decay)``, nats per step; ``-inf`` where the product reaches 1."""
    with np.errstate(divide="ignore"):
        return np.log1p(-np.minimum(lr * weight_decay, 1.0))


def network_lr(lr_L: Array) -> float:
    """Return the learning rate of the network's clock: the mean over the layers (exactly theirs, if all are equal)."""
    first = float(lr_L[0])
    if np.count_nonzero(lr_L == first) == len(lr_L):
        return first
    return first + float(np.add.reduce(lr_L - first)) / len(lr_L)


def coefficients(terms: Terms, form: Form = "finite_step", noise: Noise = "exact") -> Coefficients:
    """Turn a measurement into the coefficients of the SDE.

    The noise is that of one applied step: Adam's first moment lets in ``n_1 = (1 - b1) / (1 - b1^t)`` of its own batch
    at once, and the rest over the next steps (:func:`lipadvisor.dynamics.ensemble_change` follows it there).

    Adam's very first step has no linear response (its update is a sign), and its noise is ``nan``.

    What was not measured stays ``nan``. A learning rate of zero gives no diffusion and ``decay = -weight_decay``.

    Args:
        terms: the measurement of one step.
        form: ``"finite_step"`` keeps the curvature along the step itself; ``"paper"`` is [D] as published, without it.
        noise: the network's diffusion from the whole covariance of the layers (``"exact"``), or from its diagonal
            (``"independent"``, as in [D], whose layers are independent).

    Raises:
        ValueError: ``form`` or ``noise`` is unknown.
    """
    if form not in ("finite_step", "paper"):
        raise ValueError(f"coefficients(form=...) must be 'finite_step' or 'paper', got {form!r}.")
    if noise not in ("exact", "independent"):
        raise ValueError(f"coefficients(noise=...) must be 'exact' or 'independent', got {noise!r}.")
    # The covariance is that of the gradient; the update that is applied follows a gradient with n_1 at first.
    own = own_response(terms.optimizer, terms.momentum, terms.optimizer_step)
    if terms.optimizer_step <= 1 and terms.optimizer in ("adam", "adamw"):
        own = math.nan  # the first second moment is the square of the gradient it divides: no linear response
    with np.errstate(invalid="ignore", divide="ignore"):  # a weight of zeros has no rates; a step may take all of it
        return _rates(terms, _knobs(terms), own, form, noise)


class _Knobs(NamedTuple):
    """What follows from learning rates, weight decays and composition weights: they often stay for many steps."""

    lr: float
    half_L: Array  # half the learning rates
    decay_L: Array
    decay: float
    weight_L: Array  # of the layers' rates in the network's
    counted_L: NDArray[np.bool_] | None  # whose weight is not zero; None: all


_kept: list[tuple[tuple[bytes, bytes, bytes], _Knobs]] = []  # of the last measurement: bytes compare in no time


def _knobs(terms: Terms) -> _Knobs:
    key = (terms.lr_L.tobytes(), terms.weight_decay_L.tobytes(), terms.composition_L.tobytes())
    if _kept and (kept := _kept[0])[0] == key:
        return kept[1]
    knobs = _knobs_of(terms.lr_L, terms.weight_decay_L, terms.composition_L)
    _kept[:] = [(key, knobs)]
    return knobs


def _knobs_of(lr_L: Array, weight_decay_L: Array, weight_L: Array) -> _Knobs:
    lr = network_lr(lr_L)
    decay_L = _decay(lr_L, weight_decay_L)
    counted_L = None if np.count_nonzero(weight_L) == len(weight_L) else weight_L != 0.0
    weight_L = weight_L * (lr_L / lr if lr > 0.0 else _ONE)
    # What stands beside the sum may be nan.
    part_L = weight_L if counted_L is None else weight_L[counted_L]
    decay = float(part_L.dot(decay_L if counted_L is None else decay_L[counted_L]))
    decay_L.flags.writeable = False  # many measurements share it
    return _Knobs(lr, lr_L * _HALF, decay_L, decay, part_L, counted_L)


def _rates(terms: Terms, knobs: _Knobs, own: float, form: Form, noise: Noise) -> Coefficients:
    lr, half_L, weight_L, square = knobs.lr, knobs.half_L, knobs.weight_L, own * own
    drift_L = terms.first_L.copy()  # [D] mu = J . dW, on the applied direction
    noise_curvature_L = half_L * terms.noise_curvature_L  # [D] kappa
    if form == "finite_step":
        finite_step_L = drift_L * drift_L
        np.subtract(terms.curvature_L, finite_step_L, finite_step_L)
        finite_step_L *= half_L
    else:
        finite_step_L = np.zeros(len(half_L))
    variance_L = np.maximum(terms.noise_LL.diagonal(), _ZERO)
    variance_L *= terms.lr_L
    if square != 1.0:
        noise_curvature_L *= square
        variance_L *= square
    noise_LL = terms.noise_LL
    rates: tuple[Array, ...] = (drift_L, noise_curvature_L, finite_step_L, variance_L)
    if knobs.counted_L is not None:
        rates = tuple(rate_L[knobs.counted_L] for rate_L in rates)
        noise_LL = noise_LL[np.ix_(knobs.counted_L, knobs.counted_L)]
    drift, noise_curvature, finite_step, twice_ito = [float(weight_L.dot(rate_L)) for rate_L in rates]
    if noise == "exact":
        variance = lr * square * float(weight_L.dot(noise_LL.dot(weight_L)))
    else:
        variance = lr * square * float((weight_L * weight_L).dot(noise_LL.diagonal()))
    return Coefficients(
        step=terms.step,
        form=form,
        noise=noise,
        lr=lr,
        own_response=own,
        lr_L=terms.lr_L,
        drift_L=drift_L,
        diffusion_L=np.sqrt(variance_L),  # [D] lambda
        noise_curvature_L=noise_curvature_L,
        finite_step_L=finite_step_L,
        decay_L=knobs.decay_L,
        drift=drift,
        diffusion=math.sqrt(max(variance, 0.0)) if math.isfinite(variance) else math.nan,
        noise_curvature=noise_curvature,
        finite_step=finite_step,
        decay=knobs.decay,
        ito=0.5 * twice_ito,
    )


def _decay(lr_L: Array, weight_decay_L: Array) -> Array:
    """Return ``ln(1 - lr wd) / lr``, and its limit ``-wd`` where the rate is 0."""
    out_L = lr_L * weight_decay_L
    np.minimum(out_L, _ONE, out=out_L)
    np.negative(out_L, out_L)
    np.log1p(out_L, out_L)
    out_L /= lr_L
    if np.count_nonzero(lr_L) < len(lr_L):
        still_L = lr_L == 0.0
        out_L[still_L] = -weight_decay_L[still_L]
    return out_L
