"""Loss scales, accumulation, clipping: what stands between the backward pass and the optimizer, and what may not."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from per_sample import adam_scale, noise, sample_gradients
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.terms import Terms

BATCH = 12
Make = Callable[[nn.Module], torch.optim.Optimizer]
OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda m: torch.optim.SGD(m.parameters(), lr=0.05),
    "nesterov": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "nesterov-foreach": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "sgd-fused": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, fused=True),
    "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3),
    "adamw-fused": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, fused=True),
    "adamw-maximize": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3, maximize=True, foreach=True),
}


def perceptron() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 11), nn.Tanh(), nn.Linear(11, 4)).double()


def data(k: int, samples: int = BATCH) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(samples, 9, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 4, (samples,), generator=generator)


def mean_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target)


def sum_loss(output: Tensor, target: Tensor) -> Tensor:
    return nn.functional.cross_entropy(output, target, reduction="sum")


Backward = Callable[[nn.Module, Tensor, Tensor], None]


def plain(model: nn.Module, x: Tensor, y: Tensor) -> None:
    mean_loss(model(x), y).backward()


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Probe,
    k: int,
    backward: Backward = plain,
    before: Callable[[], object] = lambda: None,
    act: Callable[[], object] | None = None,
) -> Terms:
    """One measured step; the probe's calls stand where an advisor's hooks put them."""
    lr = optimizer.param_groups[0]["lr"]
    handles = [
        optimizer.register_step_pre_hook(lambda *_: probe.before_update()),
        optimizer.register_step_post_hook(lambda *_: probe.after_update({0: lr}, {0: 0.0})),
    ]
    probe.arm(k)
    backward(model, *data(k))
    before()
    (act or optimizer.step)()
    for handle in handles:
        handle.remove()
    terms = probe.collect(k)
    optimizer.zero_grad()
    assert terms is not None
    return terms


def check(
    name: str,
    backward: Backward = plain,
    factor: float = 1.0,
    before: Callable[[nn.Module], object] = lambda model: None,
    scaler: torch.amp.GradScaler | None = None,
    steps: int = 4,
    rel: float = 1e-9,
) -> Probe:
    """Train a few steps and compare the last one's noise with that of the samples' shares, ``factor`` times."""
    model = perceptron()
    optimizer = OPTIMIZERS[name](model)
    probe = Probe(model, optimizer, interval=1)

    def act() -> None:
        if scaler is None:
            optimizer.step()
        else:
            scaler.step(optimizer)
            scaler.update()

    for k in range(steps):
        old = [layer.weight.detach().clone() for layer in probe.layers]
        x, y = data(k)
        shares = sample_gradients(model, mean_loss, x, y)
        terms = step(model, optimizer, probe, k, backward, lambda: before(model), act)
    own = [shares[f"{layer.name}.weight"] * (factor / BATCH) for layer in probe.layers]
    scales = [adam_scale(optimizer, layer.weight) if "adam" in name else None for layer in probe.layers]
    truth = noise(probe, old, own, scales)
    assert set(terms.status_L) <= {"ok", "gap_limited"}
    np.testing.assert_allclose(
        terms.noise_LL, truth.noise_LL, rtol=rel, atol=rel * float(truth.noise_LL.diagonal().max())
    )
    np.testing.assert_allclose(terms.noise_curvature_L, truth.curvature_L, rtol=1e-7)
    assert terms.batch_size == BATCH
    assert not probe.noise.unmatched
    return probe


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_leaves_the_gradient_to_be_read(name: str) -> None:
    assert check(name).noise.factor == 1.0


@pytest.mark.parametrize("name", ["sgd", "nesterov-foreach", "sgd-fused", "adamw", "adamw-fused"])
def test_a_gradient_scaler_leaves_no_trace(name: str) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, growth_interval=2)
    probe = check(name, lambda m, x, y: scaler.scale(mean_loss(m(x), y)).backward(), scaler=scaler)
    assert probe.noise.factor == pytest.approx(2.0**-13)  # it has grown once


def test_a_scaler_whose_user_unscales_and_clips() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    holder: dict[str, float] = {}
    model = perceptron()
    optimizer = OPTIMIZERS["adamw"](model)
    probe = Probe(model, optimizer, interval=1)
    for k in range(3):
        old = [layer.weight.detach().clone() for layer in probe.layers]
        shares = sample_gradients(model, mean_loss, *data(k))

        def clip() -> None:
            scaler.unscale_(optimizer)
            norm = float(nn.utils.clip_grad_norm_(model.parameters(), 0.05))
            holder["factor"] = 0.05 / (norm + 1e-6)

        terms = step(
            model,
            optimizer,
            probe,
            k,
            lambda m, x, y: scaler.scale(mean_loss(m(x), y)).backward(),
            clip,
            lambda: (scaler.step(optimizer), scaler.update()),
        )
    own = [shares[f"{layer.name}.weight"] * (holder["factor"] / BATCH) for layer in probe.layers]
    truth = noise(probe, old, own, [adam_scale(optimizer, layer.weight) for layer in probe.layers])
    np.testing.assert_allclose(terms.noise_LL, truth.noise_LL, rtol=1e-8, atol=1e-9 * float(truth.noise_LL.max()))
    assert probe.noise.factor == pytest.approx(holder["factor"] / 2.0**10)


@pytest.mark.parametrize("scale", [7.0, 1e-3])
def test_a_loss_scaled_by_hand_is_part_of_the_gradient(scale: float) -> None:
    assert check("sgd", lambda m, x, y: (scale * mean_loss(m(x), y)).backward(), scale).noise.factor == 1.0


@pytest.mark.parametrize("parts", [(4, 4, 4), (6, 6), (3, 9)])
def test_accumulated_batches_are_one_batch(parts: tuple[int, ...]) -> None:
    def accumulate(loss: Callable[[Tensor, Tensor], Tensor], weight: float) -> Backward:
        def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
            for xs, ys in zip(x.split(parts), y.split(parts), strict=True):
                (loss(model(xs), ys) * weight).backward()

        return backward

    check("adamw", accumulate(sum_loss, 1 / BATCH))
    check("sgd", accumulate(sum_loss, 1.0), factor=float(BATCH))
    if len(set(parts)) == 1:
        check("sgd", accumulate(mean_loss, 1 / len(parts)))
        check("sgd", accumulate(mean_loss, 1.0), factor=float(len(parts)))


def test_gradients_averaged_after_accumulation() -> None:
    def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
        for xs, ys in zip(x.split(4), y.split(4), strict=True):
            mean_loss(model(xs), ys).backward()

    def average(model: nn.Module) -> None:
        for p in model.parameters():
            assert p.grad is not None
            p.grad /= 3

    assert check("adamw", backward, before=average).noise.factor == pytest.approx(1 / 3)


def test_clipping_scales_the_noise_of_the_step() -> None:
    model = perceptron()
    plain(model, *data(0))
    norm = float(nn.utils.clip_grad_norm_(model.parameters(), float("inf")))
    limit = 0.3 * norm
    factor = limit / (norm + 1e-6)
    probe = check(
        "sgd", before=lambda m: nn.utils.clip_grad_norm_(m.parameters(), limit), factor=factor, steps=1, rel=1e-8
    )
    assert probe.noise.factor == pytest.approx(factor)


def spoiled(change: Callable[[nn.Module], object], backward: Backward = plain, steps: int = 8) -> tuple[Probe, Terms]:
    model = perceptron()
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1)
    for k in range(steps):
        terms = step(model, optimizer, probe, k, backward, lambda: change(model))
    return probe, terms


def test_a_penalty_in_the_loss_is_noticed_and_noise_comes_from_successive_steps() -> None:
    def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
        penalty = sum(p.square().sum() for p in model.parameters() if p.dim() == 2)
        (mean_loss(model(x), y) + 0.5 * penalty).backward()

    probe, terms = spoiled(lambda model: None, backward)
    assert len(probe.noise.unmatched) >= 2
    assert probe.noise.method == "differences"
    assert (np.diag(terms.noise_LL) > 0).all()


def test_a_gradient_that_was_written_to_is_noticed() -> None:
    def write(model: nn.Module) -> None:
        model[2].weight.grad.mul_(1.7)

    probe, _ = spoiled(write)
    assert dict(probe.noise.unmatched) == {"2": 5}  # then there are pairs enough, and no sample is looked at
    probe, terms = spoiled(write, steps=2)
    assert probe.noise.method == "samples"
    assert terms.status_L[1] == "too_few_points"


def test_a_weight_used_outside_its_layer_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
        hidden = torch.tanh(model[0](x))
        twice = nn.functional.linear(torch.tanh(nn.functional.linear(hidden, model[2].weight)), model[4].weight)
        (mean_loss(model(x), y) + mean_loss(3 * twice, y)).backward()

    with caplog.at_level("WARNING", logger="lipadvisor"):
        probe, _ = spoiled(lambda model: None, backward)
    assert {name for name, _ in probe.noise.unmatched} >= {"2", "4"}
    assert sum("add up" in record.message for record in caplog.records) == 1


def test_a_loss_that_couples_the_samples_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    """The square of a mean over the batch: each sample's share follows the mean, which is noise of its own."""

    def backward(model: nn.Module, x: Tensor, y: Tensor) -> None:
        (model(x + 3.0)[:, 0].mean() - model(torch.full_like(x[:1], 3.0))[0, 0].detach()).square().backward()

    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(9, 4), nn.Identity(), nn.Linear(4, 4))
    model = model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    probe = Probe(model, optimizer, interval=1)
    ratios = []
    with caplog.at_level("WARNING", logger="lipadvisor"):
        for k in range(200):
            step(model, optimizer, probe, k, backward)
            ratios.append(probe.noise.ratio)
    assert probe.noise.method == "samples"
    assert probe.noise.disagreements > 0
    assert probe.noise.ratio > 3
    assert any("couple the samples" in record.message for record in caplog.records)


def test_samples_and_differences_agree_where_nothing_couples() -> None:
    model = perceptron()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    for k in range(200):
        step(model, optimizer, probe, k)
    assert probe.noise.compared >= 60
    assert probe.noise.disagreements == 0
    assert 0.5 < probe.noise.ratio < 2


def test_samples_that_add_up_again_are_used_again() -> None:
    model = perceptron()
    optimizer = OPTIMIZERS["sgd"](model)
    probe = Probe(model, optimizer, interval=1)
    methods = []
    for k in range(140):
        step(model, optimizer, probe, k, before=lambda: model[2].weight.grad.mul_(1.7) if k < 10 else None)  # noqa: B023
        methods.append(probe.noise.method)
    assert methods[9] == "differences"
    assert methods[-1] == "samples"
    assert dict(probe.noise.unmatched)["2"] < 10
