"""The six reproductions about modules: each runs small, leaves its files, and its verdict follows from the data."""

import json
import math
from pathlib import Path

import pytest
import torch

from lipadvisor.experiments.reproduce import REPRODUCTIONS, Settings, reproduction
from lipadvisor.experiments.reproduce.adam_vs_sgd import network
from lipadvisor.experiments.reproduce.contraction import expansion, sgd_factor
from lipadvisor.experiments.reproduce.images import load_images
from lipadvisor.experiments.reproduce.kept import slope
from lipadvisor.experiments.reproduce.module_constants import simulated

torch.set_num_threads(1)
NAMES = ("module-constants", "depth", "attention", "init-sensitivity", "adam-vs-sgd", "contraction")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_runs_small_and_leaves_its_files(name: str, tmp_path: Path) -> None:
    lines: list[str] = []
    state = torch.random.get_rng_state()
    verdict = reproduction(name)(Settings(tmp_path, quick=True, progress=lines.append))
    assert torch.equal(state, torch.random.get_rng_state())
    assert verdict.name == name
    assert verdict.claim.startswith("[J]")
    assert verdict.finding
    assert lines
    assert {path.name for path in tmp_path.iterdir()} == {"data.json", "figure.svg", "figure.png", "runs"}
    rows = json.loads((tmp_path / "data.json").read_text())["rows"]
    assert len(rows) > 3
    json.dumps(verdict.figures, allow_nan=False)


def test_registered() -> None:
    assert set(NAMES) <= set(REPRODUCTIONS)


def test_slope() -> None:
    assert slope([0.0, 1.0, 2.0], [1.0, 3.0, 5.0]) == pytest.approx(2.0)


def test_simulation_sees_a_formula_that_is_wrong() -> None:
    """ELU(2) has the slope 2 left of 0; a table that said 1 would be found out."""
    found = simulated(torch.nn.ELU(2.0).double(), (4,), torch.Generator().manual_seed(0), 20)
    assert 1.9 < found <= 2.0


def test_rescaled_networks_compute_the_same() -> None:
    images = load_images("digits")
    x = images.train_inputs[:8]
    even, odd = network(images, 0.0, 3), network(images, 1.5, 3)
    torch.testing.assert_close(even(x), odd(x), rtol=1e-3, atol=1e-4)
    norms = [[float(layer.weight.detach().norm()) for layer in m if hasattr(layer, "weight")] for m in (even, odd)]
    ratios = [math.log10(b / a) for a, b in zip(*norms, strict=True)]
    assert max(ratios) - min(ratios) == pytest.approx(1.5, abs=1e-4)


def test_decay_alone_contracts_by_itself() -> None:
    """With a vanishing learning rate the map is W -> (1 - lr wd) W."""
    from lipadvisor.experiments.reproduce import contraction

    rates = dict(contraction.RATES)
    try:
        contraction.RATES["SGD"] = 1e-9
        found = expansion(load_images("digits"), "SGD", 0.05, 6, 0)
    finally:
        contraction.RATES.update(rates)
    assert found.log_factor == pytest.approx(math.log(0.95), abs=1e-5)
    assert found.weights == pytest.approx((0.95**3 + 0.95**4 + 0.95**5) / 3, abs=1e-6)
    assert found.relative_step < 1e-6


@pytest.mark.slow
def test_sgds_factor_is_its_jacobians() -> None:
    predicted, measured = sgd_factor(load_images("digits"), 0.0, 10, 1)
    assert measured == pytest.approx(predicted, abs=0.02)


def test_curvatures_are_the_ends_of_the_scaled_hessians_spectrum() -> None:
    from torch import Tensor, nn

    from lipadvisor.experiments.reproduce.contraction import _curvatures

    g = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    x, y = torch.randn(40, 9, generator=g, dtype=torch.float64), torch.randint(0, 5, (40,), generator=g)
    weights = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    scale = torch.rand(weights.shape, generator=g, dtype=torch.float64) + 0.5
    names, shapes = zip(*((name, p.shape) for name, p in model.named_parameters()), strict=True)

    def loss(w: Tensor) -> Tensor:
        parts = w.split([shape.numel() for shape in shapes])
        state = {name: part.reshape(shape) for name, part, shape in zip(names, parts, shapes, strict=True)}
        return nn.functional.cross_entropy(torch.func.functional_call(model, state, (x,)), y)

    H = torch.autograd.functional.hessian(loss, weights)
    expected = torch.linalg.eigvalsh(scale.sqrt()[:, None] * H * scale.sqrt())
    lowest, highest = _curvatures(model, x, y, g, scale)
    assert expected[0] < 0
    assert lowest == pytest.approx(float(expected[0]), rel=1e-6)
    assert highest == pytest.approx(float(expected[-1]), rel=1e-6)
