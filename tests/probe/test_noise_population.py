"""Batches drawn without replacement: the factor 1 - M/N, from the user or from the loader, checked by drawing."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lipadvisor import Advisor
from lipadvisor.dynamics import batches_of
from lipadvisor.probe import Probe
from lipadvisor.probe.population import population_of
from lipadvisor.terms import Terms

ROWS = 40


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, 6, generator=generator, dtype=torch.float64)
    return TensorDataset(x, torch.randn(ROWS, 3, generator=generator, dtype=torch.float64))


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def measure(probe: Probe, model: nn.Module, optimizer: torch.optim.Optimizer, k: int, batch: list[Tensor]) -> Terms:
    probe.arm(k)
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    probe.before_update()
    optimizer.step()
    probe.after_update({0: 0.0}, {0: 0.0})
    optimizer.zero_grad()
    terms = probe.collect(k)
    assert terms is not None
    return terms


@pytest.mark.parametrize("size", [8, 32, 40])
def test_noise_of_an_epoch_is_that_of_batches_drawn_without_replacement(size: int) -> None:
    data, model = dataset(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(data, size, shuffle=True, generator=torch.Generator().manual_seed(1), drop_last=True)
    probe = Probe(model, optimizer, interval=1, population=loader)
    seen = [measure(probe, model, optimizer, k, batch) for k in range(40) for batch in loader]
    probe.close()
    # truth: the first batches of many epochs
    weights = [layer.weight for layer in probe.layers]
    tops = [torch.linalg.svd(w.detach(), full_matrices=False) for w in weights]
    generator, draws = torch.Generator().manual_seed(2), []
    for _ in range(1500):
        index = torch.randperm(ROWS, generator=generator)[:size]
        x, y = data[index]
        gradients = torch.autograd.grad(nn.functional.mse_loss(model(x), y), weights)
        draws.append([float(U[:, 0] @ g @ V[0] / s[0]) for g, (U, s, V) in zip(gradients, tops, strict=True)])
    truth_LL = np.cov(np.array(draws).T)
    measured_LL = np.mean([terms.noise_LL for terms in seen], axis=0)
    if size == ROWS:
        assert not measured_LL.any()
        assert not seen[0].noise_curvature_L.any()
        assert np.abs(truth_LL).max() < 1e-25
    else:
        np.testing.assert_allclose(measured_LL, truth_LL, rtol=0.12, atol=0.05 * np.abs(truth_LL).max())
    assert {terms.population for terms in seen} == {ROWS}


@pytest.mark.slow
def test_successive_batches_of_an_epoch_differ_as_independent_ones_do() -> None:
    data, model = dataset(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    loader = DataLoader(data, 10, shuffle=True, generator=torch.Generator().manual_seed(1))
    probes = [Probe(model, optimizer, interval=1, independent_samples=way) for way in (True, False)]
    means = []
    for probe in probes:
        seen = [measure(probe, model, optimizer, 4 * k + i, b) for k in range(300) for i, b in enumerate(loader)]
        probe.close()
        means.append(np.mean([np.diag(terms.noise_LL) for terms in seen[5:]], axis=0))
    # pairs inside an epoch give the variance of independent draws; those across two epochs are 1 in 4 and give less
    expected = means[0] * (0.75 + 0.25 * (1 - 10 / ROWS))
    np.testing.assert_allclose(means[1], expected, rtol=0.12)


class Stream(IterableDataset):  # type: ignore[type-arg]
    def __iter__(self):  # type: ignore[no-untyped-def]
        yield torch.zeros(2)


class Unknown(Sampler[int]):
    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter([0, 0])


def test_the_loader_says_how_it_draws() -> None:
    data = dataset()
    assert population_of(DataLoader(data, 8, shuffle=True, drop_last=True)) == ROWS
    assert population_of(DataLoader(data, 8)) == ROWS
    assert population_of(DataLoader(data, None, sampler=BatchSampler(RandomSampler(data), 8, False))) is None
    assert population_of(DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 8, False))) == ROWS
    assert population_of(DataLoader(data, 8, sampler=DistributedSampler(data, 2, 0))) == ROWS
    assert population_of(DataLoader(data, 8, sampler=RandomSampler(data, replacement=True))) is None
    assert population_of(DataLoader(data, 8, sampler=WeightedRandomSampler([1.0] * ROWS, ROWS))) is None
    assert population_of(DataLoader(data, 8, sampler=Unknown())) is None
    assert population_of(DataLoader(Stream(), 8)) is None


def test_a_user_reaches_it_through_the_advisor() -> None:
    noise = []
    for population in (None, ROWS, DataLoader(dataset(), 10)):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        with Advisor(model, optimizer, 4, interval=1, on_error="raise", population=population) as advisor:
            x, y = dataset()[:10]
            for _ in range(2):
                loss = nn.functional.mse_loss(model(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                advisor.step(loss)
            assert advisor.noise.method == "samples"
            frame = advisor.trajectory.observations
            noise.append(frame[frame.step == 1].noise_curvature.to_numpy())
    np.testing.assert_allclose(noise[1], noise[0] * 0.75, rtol=1e-6)
    np.testing.assert_allclose(noise[2], noise[1], rtol=1e-12)


@pytest.mark.parametrize("population", [0, -3, True, 1.5])
def test_an_impossible_population_is_refused(population: object) -> None:
    model = network()
    with pytest.raises(ValueError, match=r"population"):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), population=population)  # type: ignore[arg-type]


def test_other_batch_sizes_start_from_the_independent_noise() -> None:
    data, model = dataset(), network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    batch = list(data[:10])
    plain = measure(Probe(model, optimizer, interval=1), model, optimizer, 0, batch)
    finite = measure(Probe(model, optimizer, interval=1, population=ROWS), model, optimizer, 0, batch)
    np.testing.assert_allclose(batches_of(finite, 20).noise_LL, batches_of(plain, 20).noise_LL)
    np.testing.assert_allclose(batches_of(finite, 20, 80).noise_LL, batches_of(plain, 20, 80).noise_LL)
    assert batches_of(finite, 20, 80).population == 80
    with pytest.raises(ValueError, match="population"):
        batches_of(dataclasses.replace(finite, batch_size=ROWS), 20)
