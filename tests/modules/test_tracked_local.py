"""The local Lipschitz constant at each sample, against the SVD of the dense Jacobian."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacrev, vmap

from lipadvisor.modules import local_lipschitz
from lipadvisor.modules.tracked_local import TrackedLipschitz
from lipadvisor.policies import Status


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 4))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)),
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(24, 4),
    )


def build(make: object, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().double()  # type: ignore[operator]


def data(samples: int = 10, seed: int = 0) -> Tensor:
    return torch.randn(samples, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(model: nn.Module, x: Tensor) -> Tensor:
    """Each sample's largest singular value of the Jacobian, in evaluation mode."""
    training = model.training
    model.eval()
    J_BMN = vmap(jacrev(lambda row: model(row[None])[0]))(x)
    model.train(training)
    return torch.linalg.svdvals(J_BMN)[:, 0].detach()


@pytest.mark.parametrize("make", [perceptron, convolutional])
@pytest.mark.parametrize("seed", range(3))
def test_a_cold_visit_finds_every_samples_norm(make: object, seed: int) -> None:
    model, x = build(make, seed), data(seed=seed)
    found = TrackedLipschitz().measure(model, x)
    torch.testing.assert_close(found.norm_B, dense(model, x), rtol=1e-6, atol=1e-9)
    assert found.status is Status.OK
    assert found.value == float(found.norm_B.max())


def test_it_is_the_norm_of_the_whole_batchs_jacobian() -> None:
    model, x = build(perceptron), data()
    assert TrackedLipschitz().measure(model, x).value == pytest.approx(local_lipschitz(model, x).value, rel=1e-6)


@pytest.mark.parametrize("make", [perceptron, convolutional])
def test_warm_visits_follow_it_along_a_training_from_sample_to_sample(make: object) -> None:
    model, x = build(make), data(samples=24)
    target = x[:, :4].argmax(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    tracked, errors, largest = TrackedLipschitz(), [], set()
    for step in range(60):
        if step % 2 == 0:
            found, exact_B = tracked.measure(model, x), dense(model, x)
            errors.append(1 - found.value / float(exact_B.max()))
            largest.add(int(exact_B.argmax()))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    assert min(errors) > -1e-9
    assert max(errors) < 1e-3
    assert len(largest) > 1


def test_tokens_enter_at_the_embedding() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(11, 5), nn.Linear(5, 7)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(torch.tanh(self.embed(ids))).mean(1)

    model = build(Language)
    ids = torch.randint(0, 11, (4, 3), generator=torch.Generator().manual_seed(0))
    found = TrackedLipschitz().measure(model, ids)
    assert torch.equal(TrackedLipschitz(sources=("embed",)).measure(model, ids).norm_B, found.norm_B)
    with torch.no_grad():
        tokens = model.embed(ids)
    J = vmap(jacrev(lambda t: model.head(torch.tanh(t)).mean(0)))(tokens).flatten(2)
    torch.testing.assert_close(found.norm_B, torch.linalg.svdvals(J)[:, 0].detach(), rtol=1e-6, atol=1e-9)


def test_integers_without_an_embedding_are_not_measured() -> None:
    class Counting(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return nn.functional.one_hot(ids, 5).double()

    found = TrackedLipschitz().measure(Counting(), torch.arange(4))
    assert found.status is Status.NOT_MEASURED
    assert math.isnan(found.value)


def test_networks_without_slope_and_bad_data() -> None:
    flat = nn.Sequential(nn.Linear(6, 3)).double()
    nn.init.zeros_(flat[0].weight)
    assert TrackedLipschitz().measure(flat, data()).value == 0.0
    model = build(perceptron)
    tracked = TrackedLipschitz()
    assert tracked.measure(model, data() * float("nan")).status is Status.NON_FINITE
    assert tracked.measure(model, data()).status is Status.OK


def test_looking_changes_nothing() -> None:
    model, x = build(convolutional), data()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    tracked = TrackedLipschitz()
    first = tracked.measure(model, x)
    again = TrackedLipschitz()
    again.load_state_dict(tracked.state_dict())
    assert torch.equal(again.measure(model, x).norm_B, tracked.measure(model, x).norm_B)
    assert first.value > 0
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
