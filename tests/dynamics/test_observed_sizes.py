"""The three sizes of an update reach the policy, and terms that lack two of them give zeros."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lipadvisor.dynamics import coefficients
from lipadvisor.observe import observation
from lipadvisor.policies import Knobs, Observation
from lipadvisor.terms import Terms


def observed(terms: Terms) -> Observation:
    return observation(
        terms, coefficients(terms), (), total_steps=9, tau=0.1, knobs=(Knobs(0, 0.1),), loss=1.0, overhead=0.0
    )


def test_sizes_are_those_of_the_terms_and_the_network_has_the_largest(random_terms: Callable[..., Terms]) -> None:
    whole_L, row_L = np.array([0.3, 0.9, 4.0]), np.array([0.5, 0.2, 8.0])
    composition_L = np.array([1.0, 1.0, 0.0])  # the last one stands beside the network
    terms = random_terms(frobenius_ratio_L=whole_L, row_ratio_L=row_L, composition_L=composition_L)
    seen = observed(terms)
    assert [layer.frobenius_ratio for layer in seen.layers] == whole_L.tolist()
    assert [layer.row_ratio for layer in seen.layers] == row_L.tolist()
    assert (seen.network.frobenius_ratio, seen.network.row_ratio) == (0.9, 0.5)


def test_terms_without_them_give_zeros(random_terms: Callable[..., Terms]) -> None:
    seen = observed(random_terms())
    assert {(layer.frobenius_ratio, layer.row_ratio) for layer in (*seen.layers, seen.network)} == {(0.0, 0.0)}
    assert all(layer.update_ratio > 0.0 for layer in seen.layers)
