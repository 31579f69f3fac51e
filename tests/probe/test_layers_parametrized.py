"""Weights that are computed: what acts is measured, with the samples' gradients as the optimizer answers them."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, cross_entropy, dense, take_step, top_pair
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import parametrizations

from lipadvisor.probe import Probe


def data(count: int = 3, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(10)
    return [
        (
            torch.randn(samples, 5, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


def model(wrap: Callable[[nn.Module], nn.Module]) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older hooks are deprecated
            first = wrap(nn.Linear(5, 6))
            kernel = wrap(nn.Conv1d(1, 2, 3, padding=1))
        return nn.Sequential(first, nn.Tanh(), nn.Unflatten(1, (1, 6)), kernel, nn.Flatten(), nn.Linear(12, 3))

    return make


def orthogonal(module: nn.Module) -> nn.Module:
    # Householder products, the default, take the weight to zero under weight decay.
    return parametrizations.orthogonal(module, orthogonal_map="cayley") if isinstance(module, nn.Linear) else module


WRAPS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "spectral_norm": parametrizations.spectral_norm,
    "weight_norm": parametrizations.weight_norm,
    "orthogonal": orthogonal,
    "older_spectral_norm": nn.utils.spectral_norm,
    "older_weight_norm": nn.utils.weight_norm,
}
OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.02),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, weight_decay=0.1),
}


def scales(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> list[Tensor]:
    found = []
    for p in parameters:
        if isinstance(optimizer, torch.optim.SGD):
            found.append(torch.ones_like(p))
            continue
        state = optimizer.state[p]
        found.append(1 / ((state["exp_avg_sq"] / (1 - 0.999 ** int(state["step"]))).sqrt() + 1e-8))
    return found


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_weight_that_acts_is_measured_with_the_noise_of_single_samples(wrap: str, optimizer: str) -> None:
    network = build(model(WRAPS[wrap]))
    optimize = OPTIMIZERS[optimizer](network)
    probe = Probe(network, optimize, interval=1)
    batches = data()
    assert [layer.name for layer in probe.layers] == ["0", "3", "5"]
    assert [skip.name for skip in probe.skipped] == ["*.bias"]
    for step, batch in enumerate(batches[:-1]):
        take_step(network, optimize, probe, batch, step, cross_entropy)

    # The forward pass moves the vectors of a spectral norm first; then the samples see fixed ones.
    x, y = batches[-1]
    probe.arm(len(batches) - 1)
    cross_entropy(network(x), y).backward()
    probe.before_update()
    layer = probe.layers[0]
    old = layer.value().clone()
    network.eval()
    named = {name: p for name, p in network.named_parameters() if name.startswith("0.") and "bias" not in name}
    values = {name: p.detach().clone() for name, p in named.items()}
    per_sample = [
        torch.autograd.grad(cross_entropy(network(a[None]), b[None]), list(named.values()))
        for a, b in zip(x, y, strict=True)
    ]

    def effective(*theta: Tensor) -> Tensor:
        probing = torch.eye(5, dtype=torch.float64)
        out: Tensor = functional_call(
            network[0], {n.removeprefix("0."): t for n, t in zip(named, theta, strict=True)}, probing
        )
        return (out - network[0].bias).mT

    network.train()
    lr = optimize.param_groups[0]["lr"]
    optimize.step()
    probe.after_update({0: lr}, {0: 0.1 if optimizer == "adamw" else 0.0})
    optimize.zero_grad()
    terms = probe.collect(len(batches) - 1)
    assert terms is not None

    new = layer.value()
    u, s_1, v = top_pair(probe, 0)
    assert terms.log_norm_L[0] == pytest.approx(float(torch.linalg.svdvals(old)[0].log()), abs=1e-6)
    assert terms.log_norm_after_L[0] == pytest.approx(float(torch.linalg.svdvals(new)[0].log()), abs=1e-6)
    assert terms.weight_decay_L[0] == 0.0  # decay of the parameters is part of the update
    E = dense(probe, 0, (new - old) / lr)
    np.testing.assert_allclose(terms.first_L[0], float(u @ E @ v / s_1), rtol=1e-8, atol=1e-10)

    network.eval()
    P = scales(optimize, list(named.values()))
    theta = tuple(values.values())
    noise = []
    for grads in per_sample:
        h = 1e-5
        tangents = [p * g for p, g in zip(P, grads, strict=True)]
        size = max(float(t.abs().max()) for t in tangents) or 1.0
        ahead = [t + h / size * d for t, d in zip(theta, tangents, strict=True)]
        behind = [t - h / size * d for t, d in zip(theta, tangents, strict=True)]
        with torch.no_grad():
            noise.append((effective(*ahead) - effective(*behind)) * size / (2 * h))
    network.train()
    scalars = torch.stack([u @ g @ v / s_1 for g in noise])
    expected = float(scalars.var() / len(scalars))
    # The twin is a difference quotient; an orthogonal matrix has no noise but rounding.
    np.testing.assert_allclose(terms.noise_LL[0, 0], expected, rtol=1e-5, atol=1e-13 * float(1 / lr))
    assert set(terms.status_L) <= {"ok", "gap_limited"}
    assert np.isfinite(terms.noise_curvature_L).all()


@pytest.mark.parametrize("wrap", ["spectral_norm", "older_spectral_norm"])
def test_looking_moves_no_power_iteration(wrap: str) -> None:
    network = build(model(WRAPS[wrap]))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    versions = {name: b._version for name, b in network.named_buffers()}
    probe = Probe(network, torch.optim.SGD(network.parameters(), lr=0.1))
    probe.spectrum()
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name: b._version for name, b in network.named_buffers()} == versions
    assert all(module.training for module in network.modules())


def test_results_are_bitwise_the_same_with_the_probe() -> None:
    outcomes = []
    for probed in (False, True):
        network = build(model(parametrizations.spectral_norm)).float()
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
        probe = Probe(network, optimizer, interval=1) if probed else None
        for step, (x, y) in enumerate(data(5)):
            if probe is not None:
                probe.arm(step)
            nn.functional.cross_entropy(network(x.float()), y).backward()
            if probe is not None:
                probe.before_update()
            optimizer.step()
            if probe is not None:
                probe.after_update({0: 1e-2}, {0: 1e-2})
                probe.collect(step)
            optimizer.zero_grad()
        outcomes.append(network.state_dict())
    for name, value in outcomes[0].items():
        assert torch.equal(value, outcomes[1][name]), name


def test_a_computed_weight_is_not_scaled_in_place() -> None:
    network = build(model(parametrizations.weight_norm))
    probe = Probe(network, torch.optim.SGD(network.parameters(), lr=0.1))
    assert [layer.target is None for layer in probe.layers] == [True, True, False]
