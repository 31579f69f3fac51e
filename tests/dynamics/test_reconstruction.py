from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lipadvisor.dynamics import Reconstruction, coefficients
from lipadvisor.terms import Terms

RandomTerms = Callable[..., Terms]


def _path(random_terms: RandomTerms, steps: int, smooth: bool = False) -> list[Terms]:
    """A path whose observed norms follow the second-order changes exactly, in a chain."""
    log_norm_L, out = np.zeros(3), []
    for step in range(steps):
        change_L = np.array([0.02, -0.01, 0.005]) / (1.0 + 0.01 * step)
        if not smooth:
            change_L = change_L + 0.01 * np.random.default_rng(step).standard_normal(3)
        out.append(random_terms(0, step=step, log_norm_L=log_norm_L, change_L=change_L, composition_L=np.ones(3)))
        log_norm_L = log_norm_L + change_L
    return out


def test_every_step_measured_adds_up_and_the_paper_s_increment_stands_beside(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 30)
    got = Reconstruction(path[0].names)
    paper_L = path[0].log_norm_L.copy()
    for terms in path:
        got.update(terms)
    for terms in path[:-1]:
        paper_L += terms.lr_L * coefficients(terms, "paper").path_rate_L()
    np.testing.assert_allclose(got.predicted_L, path[-1].log_norm_L, atol=1e-12)
    np.testing.assert_allclose(got.paper_L, paper_L, atol=1e-12)
    assert got.predicted == pytest.approx(path[-1].network_log_norm)
    assert got.paper == pytest.approx(float(paper_L.sum()))
    assert got.max_error < 1e-12
    assert got.paper_error == pytest.approx(np.exp(abs(paper_L.sum() - path[-1].network_log_norm)) - 1)
    assert (got.measured, got.bridged, got.replaced) == (29, 0, 0)


def test_gaps_are_bridged_and_counted(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 101, smooth=True)
    got = Reconstruction(path[0].names)
    for terms in path[::10]:
        got.update(terms)
    assert (got.measured, got.bridged) == (10, 90)
    np.testing.assert_allclose(got.predicted_L, path[-1].log_norm_L, rtol=2e-3)


def test_over_steps_that_were_not_measured_the_predictions_move_with_the_observed(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 101)
    wrong = 0.01  # of each prediction
    measured = [
        replace(t, change_L=t.change_L + wrong, log_norm_after_L=path[t.step + 1].log_norm_L) for t in path[:-1:10]
    ]
    got = Reconstruction(path[0].names)
    for terms in measured:
        got.update(terms)
    assert (got.measured, got.bridged) == (9, 81)
    np.testing.assert_allclose(got.predicted_L, measured[-1].log_norm_L + 9 * wrong, atol=1e-12)
    assert got.error == pytest.approx(np.expm1(3 * 9 * wrong))


def test_a_change_that_is_not_finite_is_replaced_and_counted(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 20, smooth=True)
    path[7] = replace(path[7], change_L=np.array([np.nan, -0.01, 0.005]))
    got = Reconstruction(path[0].names)
    for terms in path:
        got.update(terms)
    assert got.replaced == 1
    assert got.max_error < 1e-3


def test_relative_error_of_k_and_its_summaries(random_terms: RandomTerms) -> None:
    names = random_terms().names
    got = Reconstruction(names)
    ones = np.ones(3)
    got.update(random_terms(step=0, log_norm_L=np.zeros(3), change_L=0.1 * ones, composition_L=ones))
    got.update(random_terms(step=1, log_norm_L=0.2 * ones, change_L=0.1 * ones, composition_L=ones))
    assert got.error == pytest.approx(np.exp(0.3) - 1)
    np.testing.assert_allclose(got.error_L, np.exp(0.1) - 1)
    assert got.max_error == pytest.approx(got.error)
    assert got.mean_error == pytest.approx(got.error)


def test_composition_weights_of_both_ends_are_second_order(random_terms: RandomTerms) -> None:
    """A residual join, Z = ln(1 + exp(x)): its weight is the logistic of x."""

    def at(step: int, x: float) -> Terms:
        weight = 1 / (1 + np.exp(-x))
        return random_terms(
            count=1,
            step=step,
            log_norm_L=np.array([x]),
            change_L=np.array([0.1]),
            composition_L=np.array([weight]),
            network_log_norm=float(np.log1p(np.exp(x))),
        )

    got = Reconstruction(("layer0",))
    for step in range(31):
        got.update(at(step, -1.0 + 0.1 * step))
    assert got.max_error < 1e-3


def test_a_rescale_from_outside_moves_both(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 10)
    got = Reconstruction(path[0].names)
    factor_L = np.array([-0.5, 0.0, 0.25])
    for terms in path[:5]:
        got.update(terms)
    got.shift(factor_L)
    for terms in path[5:]:
        moved_L = terms.log_norm_L + factor_L
        got.update(replace(terms, log_norm_L=moved_L, network_log_norm=float(moved_L.sum())))
    assert got.max_error < 1e-12


def test_weights_put_back_start_afresh(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 10)
    got = Reconstruction(path[0].names)
    for terms in [*path[:8], *path[3:]]:
        got.update(terms)
    assert got.restarts == 1
    assert got.max_error < 1e-12


def test_round_trip_goes_on_to_the_bit(random_terms: RandomTerms) -> None:
    path = _path(random_terms, 20)
    one, two = Reconstruction(path[0].names), Reconstruction(path[0].names)
    for terms in path[:10]:
        one.update(terms)
    two.load_state_dict(one.state_dict())
    for terms in path[10:]:
        one.update(terms)
        two.update(terms)
    assert set(one.state_dict()) == set(two.state_dict())
    for name, value in one.state_dict().items():
        np.testing.assert_array_equal(value, two.state_dict()[name], err_msg=name)


def test_wrong_layers_and_states_are_refused(random_terms: RandomTerms) -> None:
    with pytest.raises(ValueError, match=r"Reconstruction\.update\(terms\) must have the layers"):
        Reconstruction(("other",)).update(random_terms())
    with pytest.raises(ValueError, match=r"must have the keys"):
        Reconstruction(("other",)).load_state_dict({})
