"""Noise where BatchNorm couples the samples: successive differences, against many replicas of the batch."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.coupling import batch_layers, coupled
from lipadvisor.terms import Terms

BATCH = 32
Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "momentum": lambda m: torch.optim.SGD(m.parameters(), lr=0.02, momentum=0.9, nesterov=True, foreach=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, eps=1e-2, weight_decay=0.0),
}


def network(normalised: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if normalised else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8) if normalised else nn.Identity(),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


def batches(seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16.0
    labels = torch.tensor(digits.target)
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(0, len(labels), (BATCH,), generator=generator)
        yield images[index], labels[index]


def advance(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Probe,
    stream: Iterator[tuple[Tensor, Tensor]],
    steps: range,
) -> list[Terms]:
    seen = []
    lr = optimizer.param_groups[0]["lr"]
    for k in steps:
        x, y = next(stream)
        probe.arm(k)
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: lr}, {0: 0.0})
        optimizer.zero_grad()
        terms = probe.collect(k)
        if terms is not None:
            seen.append(terms)
    return seen


def form(W: Tensor, E: Tensor) -> Tensor:
    """q(E) by its definition, from a full SVD."""
    U, s, Vh = torch.linalg.svd(W, full_matrices=False)
    a, b = U.mT @ (E @ Vh[0]), Vh @ (E.mT @ U[:, 0])
    inside = ((s[0] * (a**2 + b**2) + 2 * s * a * b)[1:] / (s[0] ** 2 - s[1:] ** 2)).sum()
    rest = (E @ Vh[0]).square().sum() - a.square().sum() + (E.mT @ U[:, 0]).square().sum() - b.square().sum()
    return inside + rest / s[0]


def replicas(model: nn.Module, optimizer: torch.optim.Optimizer, probe: Probe, count: int) -> tuple[Tensor, Tensor]:
    """Covariance (L, L) of u'(PG)v/s, and mean q/s, over independent batches at one checkpoint, in float64."""
    twin = copy.deepcopy(model).double()
    weights = [dict(twin.named_modules())[layer.name].weight for layer in probe.layers]
    gradients = []
    stream = batches(99)
    for _ in range(count):
        x, y = next(stream)
        gradients.append(torch.autograd.grad(nn.functional.cross_entropy(twin(x.double()), y), weights))
    scalars, curvatures = [], []
    for index, (layer, weight) in enumerate(zip(probe.layers, weights, strict=True)):
        operator = layer.operator(probe._capture.input_shapes.get(index))
        assert operator is not None
        eye = torch.eye(operator.inputs, dtype=torch.float64)
        W = operator.apply(weight.detach(), eye).mT
        P = torch.ones_like(weight)
        if isinstance(optimizer, torch.optim.AdamW):
            state = optimizer.state[layer.weight]
            P = 1 / ((state["exp_avg_sq"].double() / (1 - 0.999 ** float(state["step"]))).sqrt() + 1e-2)
        noise = torch.stack([P * g[index] for g in gradients])
        U, s, Vh = torch.linalg.svd(W, full_matrices=False)
        scalars.append(torch.stack([operator.apply(g, Vh[:1])[0] @ U[:, 0] / s[0] for g in noise]))
        some = noise[: count // 8] - noise.mean(0)
        curvatures.append(torch.stack([form(W, operator.apply(g, eye).mT) / s[0] for g in some]).mean())
    return torch.cov(torch.stack(scalars)), torch.stack(curvatures)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "interval"), [("sgd", 1), ("sgd", 2), ("momentum", 1), ("adamw", 2)])
def test_noise_under_batch_norm_is_that_of_independent_batches(name: str, interval: int) -> None:
    model = network()
    optimizer = OPTIMIZERS[name](model)
    stream = batches(1)
    probe = Probe(model, optimizer, interval=interval, example_input=torch.zeros(2, 1, 8, 8))
    advance(model, optimizer, probe, stream, range(60))
    optimizer.param_groups[0]["lr"] = 0.0  # one checkpoint: what is averaged is measured at the same weights
    begun = probe.noise.pairs
    seen = advance(model, optimizer, probe, stream, range(60, 60 + 1100 * interval))
    truth_LL, curvature_L = replicas(model, optimizer, probe, 1600)  # Adam's preconditioner as it is now
    assert probe.noise.method == "differences"
    assert probe.noise.coupled_by == ("1", "4")
    assert probe.noise.pairs - begun >= 1099
    measured_LL = np.mean([terms.noise_LL for terms in seen[100:]], axis=0)
    assert set(seen[-1].status_L) <= {"ok", "gap_limited"}
    assert seen[-1].batch_size == BATCH
    np.testing.assert_allclose(np.diag(measured_LL), torch.diag(truth_LL), rtol=0.15)
    assert measured_LL.sum() == pytest.approx(float(truth_LL.sum()), rel=0.15)
    np.testing.assert_allclose(
        np.mean([terms.noise_curvature_L for terms in seen[100:]], axis=0), curvature_L, rtol=0.15
    )
    # the samples' own spread is something else
    forced = Probe(model, optimizer, interval=1, independent_samples=True, example_input=torch.zeros(2, 1, 8, 8))
    wrong = np.mean([np.diag(t.noise_LL) for t in advance(model, optimizer, forced, stream, range(100))], axis=0)
    assert forced.noise.method == "samples"
    assert np.abs(np.log(wrong / torch.diag(truth_LL).numpy())).max() > np.log(1.5)


def test_the_first_steps_say_that_there_are_too_few_pairs() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1)
    seen = advance(model, optimizer, probe, batches(0), range(7))
    assert ["too_few_points" in terms.status_L for terms in seen] == [True] * 4 + [False] * 3
    assert probe.noise.pairs == 6


def test_eval_mode_and_instance_norm_do_not_couple() -> None:
    assert coupled(batch_layers(network(False))) == ()
    frozen = network()
    for module in frozen.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    assert coupled(batch_layers(frozen)) == ()
    assert coupled(batch_layers(nn.Sequential(nn.InstanceNorm2d(3), nn.LayerNorm(3), nn.GroupNorm(1, 3)))) == ()
    without = nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)).eval()
    assert coupled(batch_layers(without)) == ("0",)
    assert coupled(batch_layers(nn.Sequential(nn.SyncBatchNorm(3), nn.LazyBatchNorm1d()))) == ("0", "1")

    optimizer = torch.optim.SGD(frozen.parameters(), lr=0.05)
    probe = Probe(frozen, optimizer, interval=1)
    advance(frozen, optimizer, probe, batches(0), range(6))
    assert probe.noise.method == "samples"


def test_what_the_user_says_of_the_samples_counts() -> None:
    model = network(False)
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1, independent_samples=False)
    terms = advance(model, optimizer, probe, batches(0), range(7))[-1]
    assert probe.noise.method == "differences"
    assert np.isfinite(terms.noise_LL).all()
    assert (np.diag(terms.noise_LL) > 0).all()
    with pytest.raises(ValueError, match=r"independent_samples"):
        Probe(model, optimizer, independent_samples="yes")  # type: ignore[arg-type]


def test_weights_that_are_written_between_two_steps_make_no_pair() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1)
    stream = batches(0)
    advance(model, optimizer, probe, stream, range(5))
    with torch.no_grad():
        next(model.parameters()).mul_(2.0)
    advance(model, optimizer, probe, stream, range(5, 6))
    assert probe.noise.pairs == 4
    advance(model, optimizer, probe, stream, range(6, 7))
    assert probe.noise.pairs == 5


@pytest.mark.parametrize("interval", [1, 2])
def test_a_resumed_run_takes_up_its_open_pair(interval: int) -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Probe]:
        model = network()
        optimizer = OPTIMIZERS["adamw"](model)
        return model, optimizer, Probe(model, optimizer, interval=interval, seed=3)

    def run(parts: tuple[nn.Module, torch.optim.Optimizer, Probe], steps: range) -> list[Terms]:
        seen = []
        for k in steps:
            seen += advance(*parts, batches(k), range(k, k + 1))
        return seen

    whole_parts = fresh()
    whole = run(whole_parts, range(16))
    parts = fresh()
    run(parts, range(9))
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts], file)
    parts = fresh()
    file.seek(0)
    for target, state in zip(parts, torch.load(file, weights_only=True), strict=True):
        target.load_state_dict(state)
    resumed = run(parts, range(9, 16))
    assert str(parts[2].noise) == str(whole_parts[2].noise)
    for before, after in zip(whole[-len(resumed) :], resumed, strict=True):
        assert before.step == after.step
        np.testing.assert_array_equal(before.noise_LL, after.noise_LL)
        np.testing.assert_array_equal(before.noise_curvature_L, after.noise_curvature_L)


def test_samples_are_used_again_once_batch_norm_is_frozen() -> None:
    model = network()
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1)
    stream = batches(0)
    advance(model, optimizer, probe, stream, range(7))
    assert probe.noise.method == "differences"
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    seen = advance(model, optimizer, probe, stream, range(7, 10))
    assert probe.noise.method == "samples"
    assert all(np.isfinite(terms.noise_LL).all() for terms in seen)
    assert set(seen[-1].status_L) <= {"ok", "gap_limited"}


@pytest.mark.parametrize("interval", [1, 2])
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.spectral_norm, nn.utils.spectral_norm])
def test_a_weight_that_moves_in_each_pass_does_not_keep_the_pairs_from_closing(
    norm: Callable[..., nn.Module], interval: int
) -> None:
    """A spectral norm's power iteration changes its weight between two steps; no pair was closed at any layer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Tanh(), norm(nn.Linear(8, 6)), nn.Linear(6, 3))
    optimizer, data = torch.optim.SGD(model.parameters(), lr=1e-4), torch.Generator().manual_seed(0)
    probe, last = Probe(model, optimizer, interval=interval), None
    for step in range(12):
        x, y = torch.randn(16, 12, generator=data), torch.randint(0, 3, (16,), generator=data)
        probe.arm(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 1e-4}, {})
        last = probe.collect(step) or last
    assert last is not None
    assert probe.noise.method == "differences"
    assert probe.noise.pairs >= 12 // interval - 1
    assert set(last.status_L) <= {"ok", "gap_limited"}
    assert (np.diag(last.noise_LL)[[0, 2]] > 1e-6).all()
