"""Trackers whose maps change their size, or whose weights change their type, while a training runs."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pytest
import torch
from layer_twins import dense, take_step
from torch import nn

from lipadvisor.probe import Probe
from lipadvisor.probe.following import AGAIN, SEEN
from lipadvisor.terms import Terms


def network(norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        middle: nn.Module = nn.BatchNorm2d(4) if norm else nn.Tanh()
        first, second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        return nn.Sequential(first, middle, second, nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def batch(side: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(12, 2, side, side, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, 3, (12,), generator=generator)


def train(
    model: nn.Module, probe: Probe, optimizer: torch.optim.Optimizer, sides: list[int], start: int = 0
) -> list[Terms]:
    loss = nn.functional.cross_entropy
    return [
        take_step(model, optimizer, probe, batch(side, step, next(model.parameters()).dtype), step, loss)
        for step, side in enumerate(sides, start=start)
    ]


def exact_log_norms(probe: Probe) -> list[float]:
    unsized = [dense(probe, index, layer.value().double()) for index, layer in enumerate(probe.layers)]
    return [float(torch.linalg.matrix_norm(matrix, 2).log()) for matrix in unsized]


@pytest.mark.parametrize("level", ["norms", "drift", "full"])
@pytest.mark.parametrize("norm", [False, True])
def test_a_new_size_that_stays_is_taken_up_once_and_marked(
    level: str, norm: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = network(norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    probe = Probe(model, optimizer, level=level, interval=1)
    sides = [8] * 3 + [14] * (SEEN + 3)
    with caplog.at_level(logging.WARNING, logger="lipadvisor"):
        records = train(model, probe, optimizer, sides)
    small, large = ((2, 8, 8), (4, 8, 8), ()), ((2, 14, 14), (4, 14, 14), ())
    taken = 3 + SEEN
    assert [record.input_sizes for record in records] == [small] * taken + [large] * (len(sides) - taken)
    assert probe.following.restarts == 2
    assert probe.following.sizes() == {"0": (2, 14, 14), "2": (4, 14, 14)}
    assert sum("its norm is that on 14x14 from here on" in message for message in caplog.messages) == 2
    assert records[taken].status_L[:2] == ("not_converged", "not_converged")
    assert records[taken].status_L[2] != "not_converged"
    assert "not_converged" not in records[taken + 1].status_L
    assert "not_converged" not in records[taken - 1].status_L
    np.testing.assert_allclose(records[-1].log_norm_after_L, exact_log_norms(probe), atol=1e-4)


def test_images_of_many_sizes_are_measured_on_one(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    with caplog.at_level(logging.INFO, logger="lipadvisor"):
        records = train(model, probe, optimizer, [8, 12, 9, 8, 12, 10, 11, 9, 9, 8, 12, 12])
    assert probe.following.restarts == 0
    assert all(record.input_sizes[0] == (2, 8, 8) for record in records)
    assert all(status in ("ok", "gap_limited") for record in records for status in record.status_L)
    assert sum("several sizes" in message for message in caplog.messages) == 1
    np.testing.assert_allclose(records[-1].log_norm_after_L, exact_log_norms(probe), atol=1e-4)


def test_a_size_that_was_left_is_taken_up_again_after_four_times_as_many_steps() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="drift", interval=1)
    back = SEEN * AGAIN
    records = train(model, probe, optimizer, [8] * 2 + [12] * (SEEN + 2) + [8] * (back + 2))
    sides = [record.input_sizes[0][1] for record in records]
    assert sides == [8] * (2 + SEEN) + [12] * (2 + back) + [8] * 2
    assert probe.following.restarts == 4
    np.testing.assert_allclose(records[-1].log_norm_after_L, exact_log_norms(probe), atol=1e-4)


def test_sizes_that_come_and_go_start_nothing_anew() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="norms", interval=1)
    train(model, probe, optimizer, [8] * 2 + [12] * (SEEN + 1) + ([8] * (SEEN * AGAIN - 1) + [12]) * 3)
    assert probe.following.restarts == 2


def test_a_checkpoint_of_former_versions_knows_the_sizes_that_were_left() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="norms", interval=1)
    probe.following.load_state_dict({"past": {0: [[2, 8, 8]]}, "other": {}, "restarts": 1, "varied": False})
    assert probe.following.state_dict()["left"] == {0: [[[2, 8, 8], 1]]}


def test_noise_of_larger_images_is_that_of_their_gradients_on_the_pair_of_the_size_that_is_named() -> None:
    model = network().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    train(model, probe, optimizer, [8, 8])
    x, y = batch(13, 2, torch.float64)
    shares: list[list[float]] = [[] for _ in probe.layers]
    for one, target in zip(x, y, strict=True):
        loss = nn.functional.cross_entropy(model(one[None]), target[None])
        grads = torch.autograd.grad(loss, [layer.weight for layer in probe.layers])
        for index, (layer, grad) in enumerate(zip(probe.layers, grads, strict=True)):
            U, s, Vh = torch.linalg.svd(dense(probe, index, layer.value()))
            shares[index].append(float(U[:, 0] @ dense(probe, index, grad) @ Vh[0] / s[0]))
    record = take_step(model, optimizer, probe, (x, y), 2, nn.functional.cross_entropy)
    assert record.input_sizes[0] == (2, 8, 8)
    np.testing.assert_allclose(np.diag(record.noise_LL), np.var(shares, axis=1, ddof=1) / 12, rtol=1e-3)


def test_an_evaluation_at_another_size_changes_nothing() -> None:
    plain, looked = network(), network()
    records = []
    for model in (plain, looked):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        probe = Probe(model, optimizer, interval=1)
        found = []
        for step in range(6):
            probe.arm(step)
            if model is looked:
                with torch.no_grad():
                    model(batch(20, 99)[0])
            x, y = batch(8, step)
            nn.functional.cross_entropy(model(x), y).backward()
            probe.before_update()
            optimizer.step()
            probe.after_update({0: 0.01}, {0: 0.0})
            optimizer.zero_grad()
            found.append(probe.collect(step))
        records.append(found)
        assert probe.following.restarts == 0
        assert probe.following.sizes()["0"] == (2, 8, 8)
    for one, other in zip(*records, strict=True):
        assert one is not None
        assert other is not None
        np.testing.assert_array_equal(one.noise_LL, other.noise_LL)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ["sgd", "momentum", "adamw-new"])
def test_weights_of_another_type_start_their_trackers_anew(
    dtype: torch.dtype, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = network()
    optimizer: torch.optim.Optimizer
    if name == "adamw-new":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.001)
    else:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9 if name == "momentum" else 0.0)
    probe = Probe(model, optimizer, interval=1)
    train(model, probe, optimizer, [16] * 3)
    model.to(dtype)
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # as torch has it: the state in the weights' type
    with caplog.at_level(logging.WARNING, logger="lipadvisor"):
        records = train(model, probe, optimizer, [16] * 3, start=3)
    assert probe.following.restarts == len(probe.layers) == 3
    assert set(records[0].status_L) == {"not_converged"}
    for record in records[1:]:
        assert set(record.status_L) <= {"ok", "gap_limited"}, record.status_L
        assert np.isfinite(record.noise_LL).all()
    assert sum("the tracker starts anew" in message for message in caplog.messages) == 1
    np.testing.assert_allclose(records[-1].log_norm_after_L, exact_log_norms(probe), atol=1e-4)


def test_part_of_a_model_may_change_its_type() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="norms", interval=1)
    train(model, probe, optimizer, [8] * 2)
    model[2].double()
    terms = probe.spectrum()
    np.testing.assert_allclose(terms.log_norm_L, exact_log_norms(probe), atol=1e-4)


def test_a_resumed_run_goes_on_with_the_size_that_it_had() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, interval=1)
    train(model, probe, optimizer, [8, 8, 12])
    saved = copy.deepcopy((model.state_dict(), probe.state_dict()))
    expected = train(model, probe, optimizer, [8, 8], start=3)
    again = network()
    again.load_state_dict(saved[0])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
    probe = Probe(again, optimizer, interval=1)
    probe.load_state_dict(saved[1])
    found = train(again, probe, optimizer, [8, 8], start=3)
    assert probe.following.sizes()["0"] == (2, 8, 8)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.noise_LL, other.noise_LL)


@pytest.mark.parametrize(
    "sides", [[8] * 2 + [12] * 4, [8] * 3 + [12] * 2], ids=["a size that was left", "a size counted"]
)
def test_a_resumed_run_knows_the_sizes_of_before(sides: list[int]) -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    probe = Probe(model, optimizer, level="drift", interval=1)
    train(model, probe, optimizer, sides)
    saved = copy.deepcopy((model.state_dict(), probe.state_dict()))
    later = [8] * 5 if len(set(sides[-3:])) == 1 else [12] * 3
    expected = train(model, probe, optimizer, later, start=len(sides))
    again = network()
    again.load_state_dict(saved[0])
    optimizer = torch.optim.SGD(again.parameters(), lr=0.01)
    resumed = Probe(again, optimizer, level="drift", interval=1)
    resumed.load_state_dict(saved[1])
    found = train(again, resumed, optimizer, later, start=len(sides))
    assert [one.input_sizes for one in found] == [one.input_sizes for one in expected]
    assert resumed.following.restarts == probe.following.restarts
