"""The optimizer's memory and the branching prediction, against loops and simulated ensembles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients, ensemble_change, response, squared_response_sums
from lipadvisor.terms import Terms

RandomTerms = Callable[..., Terms]


def _displacement(optimizer: str, b: float, gradients: np.ndarray, buffer: float, before: int | None) -> float:
    """Return how far the weight goes (in units of -lr) under the optimizer's own recursion."""
    weight, moment = 0.0, buffer
    for j, gradient in enumerate(gradients, start=1):
        if optimizer == "sgd":
            moment = b * moment + gradient
            weight += moment
        else:
            moment = b * moment + (1 - b) * gradient
            weight += moment / (1 - b ** (before + j)) if before is not None else moment
    return weight


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
@pytest.mark.parametrize(
    ("optimizer", "b", "before"),
    [("sgd", 0.0, None), ("sgd", 0.9, None), ("adamw", 0.9, None), ("adamw", 0.9, 0), ("adam", 0.8, 3)],
)
def test_response_equals_the_optimizer_s_recursion(optimizer: str, b: float, before: int | None, steps: int) -> None:
    got = response(optimizer, b, steps, before)
    unit = np.eye(steps)
    n_h = np.array([_displacement(optimizer, b, unit[steps - 1 - k], 0.0, before) for k in range(steps)])
    np.testing.assert_allclose(got.n_h, n_h, atol=1e-12)
    assert got.s_1 == pytest.approx(n_h.sum())
    assert got.c_g == pytest.approx(_displacement(optimizer, b, np.ones(steps), 0.0, before))
    assert got.c_b == pytest.approx(_displacement(optimizer, b, np.zeros(steps), 1.0, before))
    assert got.s_2 == pytest.approx((n_h**2).sum())
    if before is None:
        assert squared_response_sums(optimizer, b, np.array([float(steps)]))[0] == pytest.approx(got.s_2)


def test_response_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match=r"response\(momentum=\.\.\.\) must be in \[0, 1\), got 1\.0"):
        response("sgd", 1.0, 3)
    with pytest.raises(ValueError, match=r"response\(steps=\.\.\.\) must be at least 1, got 0"):
        response("sgd", 0.5, 0)


def test_one_sgd_step_is_the_path_rate_and_its_covariance(random_terms: RandomTerms) -> None:
    terms = random_terms(7)
    change, rate = ensemble_change(terms, 1), coefficients(terms)
    np.testing.assert_allclose(change.mean_L, terms.lr_L * rate.path_rate_L())
    np.testing.assert_allclose(np.diagonal(change.covariance_LL), terms.lr_L * rate.diffusion_L**2)
    assert change.variance == pytest.approx(rate.lr * rate.diffusion**2)
    full = ensemble_change(terms, 1, single_batch=False)
    assert full.mean == pytest.approx(rate.lr * rate.ensemble_rate())


@pytest.mark.parametrize("single_batch", [True, False])
def test_mean_over_replicas_of_a_matrix_whose_gradient_is_noisy(random_terms: RandomTerms, single_batch: bool) -> None:
    """Plain SGD on one matrix with frozen mean gradient: float64 SVDs of 4,000 replicas are the truth."""
    generator = np.random.default_rng(3)
    lr, steps, shape = 0.02, 3, (4, 3)
    weight = generator.standard_normal(shape) + 3.0 * np.eye(4, 3)
    mean_u, sigma = generator.standard_normal(shape), 1.5
    u_mm, s_m, vt_mm = np.linalg.svd(weight)
    s, u, v = s_m[0], u_mm[:, 0], vt_mm[0]

    def form(e: np.ndarray) -> float:
        p, y = e @ v - u * (u @ e @ v), e.T @ u - v * (u @ e @ v)
        rest = weight - s * np.outer(u, v)
        r = s * y + rest.T @ p
        return float((p @ p + r @ np.linalg.solve(s * s * np.eye(3) - rest.T @ rest, r)) / s)

    basis = [np.eye(12)[i].reshape(shape) for i in range(12)]
    trace = sum(form(sigma * e) for e in basis)
    variance = sum((u @ (sigma * e) @ v / s) ** 2 for e in basis)

    def predicted(direction: np.ndarray) -> float:
        terms = random_terms(
            count=1,
            lr_L=np.array([lr]),
            weight_decay_L=np.zeros(1),
            composition_L=np.ones(1),
            first_L=np.array([u @ direction @ v / s]),
            curvature_L=np.array([form(direction) / s]),
            noise_LL=np.array([[variance]]),
            noise_curvature_L=np.array([trace / s]),
        )
        return ensemble_change(terms, steps, single_batch).mean

    # Antithetic pairs: the first order cancels, and what is left is the second.
    noise = sigma * generator.standard_normal((2_000, steps, *shape))
    noise = np.concatenate((noise, -noise))
    truth = np.log(np.linalg.norm(weight + lr * (mean_u + noise).sum(axis=1), 2, axis=(1, 2)) / s)
    guess = float(np.mean([predicted(mean_u + one) for one in noise[:, 0]])) if single_batch else predicted(mean_u)
    second = lr**2 * steps * (trace / s - variance) / 2
    assert abs(second) > 5e-5
    assert abs(guess - truth.mean()) < 0.15 * abs(second)
