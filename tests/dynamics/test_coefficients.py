from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lipadvisor.dynamics import coefficients, network_lr
from lipadvisor.dynamics.response import own_response, response
from lipadvisor.terms import Terms

RandomTerms = Callable[..., Terms]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("noise", ["exact", "independent"])
def test_coefficients_equal_a_plain_loop(random_terms: RandomTerms, seed: int, noise: str) -> None:
    lr_L = np.random.default_rng(seed).uniform(0.01, 0.1, 4)  # groups with rates of their own
    terms = random_terms(seed, count=4, lr_L=lr_L)
    got = coefficients(terms, noise=noise)  # type: ignore[arg-type]
    lr = sum(lr_L) / 4
    drift = curvature = decay = variance = finite = ito = 0.0
    for i in range(4):
        share = terms.composition_L[i] * lr_L[i] / lr
        drift += share * terms.first_L[i]
        curvature += share * 0.5 * lr_L[i] * terms.noise_curvature_L[i]
        finite += share * 0.5 * lr_L[i] * (terms.curvature_L[i] - terms.first_L[i] ** 2)
        decay += share * np.log(1 - lr_L[i] * terms.weight_decay_L[i]) / lr_L[i]
        ito += share * 0.5 * lr_L[i] * terms.noise_LL[i, i]
        for j in range(4):
            if i == j or noise == "exact":
                variance += share * terms.composition_L[j] * lr_L[j] / lr * lr * terms.noise_LL[i, j]
        assert got.diffusion_L[i] == pytest.approx(np.sqrt(lr_L[i] * terms.noise_LL[i, i]))
    assert got.lr == pytest.approx(lr)
    assert got.drift == pytest.approx(drift)
    assert got.noise_curvature == pytest.approx(curvature)
    assert got.finite_step == pytest.approx(finite)
    assert got.decay == pytest.approx(decay)
    assert got.diffusion**2 == pytest.approx(variance)
    assert got.path_rate() == pytest.approx(drift + finite + decay)
    assert got.ensemble_rate() == pytest.approx(drift + finite + curvature - ito + decay)


def test_the_rate_is_the_change_of_one_step_whatever_the_groups_do(random_terms: RandomTerms) -> None:
    terms = random_terms(1, lr_L=np.array([0.1, 0.0, 0.02]))
    for form in ("finite_step", "paper"):
        got = coefficients(terms, form)  # type: ignore[arg-type]
        assert got.lr * got.path_rate() == pytest.approx(float(terms.composition_L @ (terms.lr_L * got.path_rate_L())))


def test_the_paper_s_form_is_its_formula(random_terms: RandomTerms) -> None:
    terms = random_terms(2, weight_decay_L=np.zeros(3))
    got = coefficients(terms, "paper")
    want_L = terms.first_L + 0.5 * 0.05 * terms.noise_curvature_L - 0.5 * 0.05 * np.diagonal(terms.noise_LL)
    np.testing.assert_allclose(got.path_rate_L(), want_L)
    assert not got.finite_step_L.any()
    assert got.finite_step == 0.0


def test_independent_layers_in_a_chain_give_the_paper_s_network_correction(random_terms: RandomTerms) -> None:
    terms = random_terms(3, composition_L=np.ones(3))
    got = coefficients(terms, "paper", "independent")
    assert got.ito == pytest.approx(got.diffusion**2 / 2)


def test_a_rate_of_zero_is_a_limit_not_an_error(random_terms: RandomTerms) -> None:
    got = coefficients(random_terms(4, lr_L=np.zeros(3)))
    assert got.lr == 0.0
    assert got.diffusion == 0.0
    np.testing.assert_allclose(got.decay_L, -0.01)
    near = coefficients(random_terms(4, lr_L=np.full(3, 1e-9)))
    np.testing.assert_allclose(got.decay_L, near.decay_L, rtol=1e-6)


def test_what_was_not_measured_stays_nan(random_terms: RandomTerms) -> None:
    got = coefficients(random_terms(5, noise_LL=np.full((3, 3), np.nan), noise_curvature_L=np.full(3, np.nan)))
    assert np.isnan(got.diffusion)
    assert np.isfinite(got.path_rate())
    paper = coefficients(random_terms(5, curvature_L=np.full(3, np.nan)), "paper")
    assert np.isfinite(paper.path_rate())


def test_adam_lets_in_a_share_of_its_own_batch_and_has_no_noise_at_its_first_step(random_terms: RandomTerms) -> None:
    late = coefficients(random_terms(6, optimizer="adamw", momentum=0.9, optimizer_step=400))
    plain = coefficients(random_terms(6))
    np.testing.assert_allclose(late.diffusion_L, 0.1 * plain.diffusion_L)
    np.testing.assert_allclose(late.noise_curvature_L, 0.01 * plain.noise_curvature_L)
    assert late.diffusion == pytest.approx(0.1 * plain.diffusion)
    assert late.drift == plain.drift
    first = coefficients(random_terms(6, optimizer="adamw", momentum=0.9, optimizer_step=1))
    assert np.isnan(first.noise_curvature)
    assert np.isfinite(first.path_rate())


def test_equal_rates_are_the_network_s_rate_to_the_bit() -> None:
    assert network_lr(np.full(7, 0.1)) == 0.1


@pytest.mark.parametrize(("argument", "value"), [("form", "exact"), ("noise", "paper")])
def test_unknown_names_are_refused(random_terms: RandomTerms, argument: str, value: str) -> None:
    with pytest.raises(ValueError, match=rf"coefficients\({argument}=.*got '{value}'"):
        coefficients(random_terms(), **{argument: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(("optimizer", "momentum"), [("sgd", 0.0), ("sgd", 0.9), ("adamw", 0.9), ("lion", 0.9)])
@pytest.mark.parametrize("optimizer_step", [1, 2, 7, 1000])
def test_the_share_of_a_step_s_own_batch_is_the_response_after_one_step(
    optimizer: str, momentum: float, optimizer_step: int
) -> None:
    whole = response(optimizer, momentum, 1, optimizer_step - 1)
    assert own_response(optimizer, momentum, optimizer_step) == pytest.approx(whole.s_1, rel=1e-12)
