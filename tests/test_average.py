"""The average of the weights that a run ends with: what it is, when it is put in place, and where it is not."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from lipadvisor import Advisor
from lipadvisor.average import WeightAverage
from lipadvisor.policies import Averaging, Constant, Decision, Knobs, chain

ASKS = Decision(0, "test", "asks", averaging=7.0)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def average_of(model: nn.Module, *trained: nn.Parameter) -> WeightAverage:
    return WeightAverage(model, torch.optim.SGD(trained or model.parameters(), 0.1))


def train(advisor: Advisor, model: nn.Module, steps: range) -> list[torch.Tensor]:
    """Take the steps; return the first weight as the optimizer left it after each."""
    seen = []
    for step in steps:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(step))
        loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
        optimizer = advisor._applier.optimizer
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(model[0].weight.detach().double().clone())  # type: ignore[index]
        advisor.step(loss)
    return seen


def averaged(weights: list[torch.Tensor], memory: float) -> torch.Tensor:
    """The slow twin, in float64: over the last five memories, the plain mean at first, then an exponential one."""
    mean, first = torch.zeros_like(weights[0]), round(len(weights) - 5.0 * memory)
    for count, weight in enumerate(weights[first - 1 :], start=1):
        fresh = max(1.0 / count, 1.0 - math.exp(-1.0 / memory))
        mean = mean + fresh * (weight - mean)
    return mean


def advised(model: nn.Module, total: int | None, **options: object) -> Advisor:
    optimizer = torch.optim.AdamW(model.parameters())
    policy = chain(Constant(lr=0.03), Averaging(0.1))
    return Advisor(model, optimizer, total, policy=policy, on_error="raise", **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("total", [60, 401])  # 401: decisions lie two steps apart, and the end between two of them
def test_a_run_ends_with_the_average_of_its_last_weights_and_not_before(total: int) -> None:
    model = network()
    with advised(model, total, max_overhead=0.001) as advisor:
        seen = train(advisor, model, range(total - 1))
        assert torch.equal(model[0].weight.double(), seen[-1])
        seen += train(advisor, model, range(total - 1, total))
        ends = model[0].weight.detach().double()
        rows = advisor.trajectory.decisions
    apart = (seen[-1] - averaged(seen, 0.1 * total)).abs().max()
    assert (ends - averaged(seen, 0.1 * total)).abs().max() < (1e-6 if total == 60 else 0.1 * apart)
    assert apart > 1e-3
    assert rows.reason.iloc[-1].endswith("averaging:end")
    assert rows.step.iloc[-1] == total


def test_what_is_not_trained_stays_bit_by_bit() -> None:
    model = network()
    model[3].bias.requires_grad_(False)
    model.register_buffer("mask", torch.tensor([0.1, -math.inf]))
    frozen = model[3].bias.detach().clone()
    with advised(model, 40) as advisor:
        train(advisor, model, range(40))
    assert torch.equal(model[3].bias, frozen)
    assert torch.equal(model.mask, torch.tensor([0.1, -math.inf]))
    assert int(model[1].num_batches_tracked) == 40


def test_what_another_optimizer_moves_is_left_to_it() -> None:
    model = network()
    average = average_of(model, *model[0].parameters())
    for step in (1, 2, 3):
        with torch.no_grad():
            for one in model.parameters():
                one.fill_(float(step))
        average.follow(step, ASKS)
    average.end(ASKS, "takeover")
    assert set(model[0].weight.flatten().tolist()) == {2.0}
    assert set(model[3].weight.flatten().tolist()) == {3.0}


def test_running_statistics_are_averaged_with_the_weights() -> None:
    model, average = nn.BatchNorm1d(2), None
    average = average_of(model)
    for step, value in enumerate((1.0, 3.0, 5.0), start=1):
        model.running_mean.fill_(value)
        average.follow(step, ASKS)
    assert average.end(ASKS, "takeover") == []
    assert model.running_mean.tolist() == pytest.approx([3.0, 3.0])


@pytest.mark.parametrize("mode", ["cap", "shadow"])
def test_other_modes_touch_nothing_and_say_so(mode: str) -> None:
    model = network()
    with advised(model, 30, mode=mode) as advisor:
        seen = train(advisor, model, range(30))
        assert torch.equal(model[0].weight.double(), seen[-1])
        assert f"averaging: not in {mode} mode" in advisor.trajectory.decisions.refused.iloc[-1]


def test_without_copies_nothing_is_kept_and_the_record_says_so() -> None:
    model = network()
    with advised(model, 30, snapshot_every=None) as advisor:
        seen = train(advisor, model, range(30))
        assert torch.equal(model[0].weight.double(), seen[-1])
        assert "averaging: no copies" in advisor.trajectory.decisions.refused.iloc[-1]
        assert advisor.state_dict()["average"]["mean"] == {}


def test_a_run_of_unknown_length_and_one_that_stops_early_keep_their_weights() -> None:
    for total in (None, 50):
        model = network()
        with advised(model, total) as advisor:
            seen = train(advisor, model, range(30))
        assert torch.equal(model[0].weight.double(), seen[-1])


def test_a_resumed_run_ends_with_the_same_weights() -> None:
    whole = network()
    with advised(whole, 40, interval=1) as advisor:
        train(advisor, whole, range(40))
    first = network()
    with advised(first, 40, interval=1) as advisor:
        train(advisor, first, range(25))
        kept = (first.state_dict(), advisor._applier.optimizer.state_dict(), advisor.state_dict())
        kept = torch.load(_written(kept), weights_only=True)
    second = network(1)
    with advised(second, 40, interval=1) as advisor:
        second.load_state_dict(kept[0])
        advisor._applier.optimizer.load_state_dict(kept[1])
        advisor.load_state_dict(kept[2])
        train(advisor, second, range(25, 40))
    for ours, theirs in zip(second.state_dict().values(), whole.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def _written(value: object) -> object:
    import io

    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return file


def test_a_checkpoint_of_an_earlier_version_is_read() -> None:
    model = network()
    with advised(model, 40) as advisor:
        train(advisor, model, range(5))
        state = {key: value for key, value in advisor.state_dict().items() if key != "average"}
        advisor.load_state_dict(state)
        train(advisor, model, range(5, 8))


def test_the_average_begins_anew_where_weights_were_put_back() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = average_of(model)
    for step, (value, back) in enumerate(((1.0, False), (2.0, False), (9.0, True), (11.0, False)), start=1):
        model.weight.data.fill_(value)
        average.follow(step, Decision(step, "test", "asks", averaging=50.0, rewind=back))
    average.end(ASKS, "takeover")
    assert model.weight.item() == pytest.approx(10.0)
    model.weight.data.fill_(3.0)
    assert average.end(ASKS, "takeover") == []
    assert model.weight.item() == 3.0  # once: what was made of the average later is not undone


def test_half_precision_is_averaged_in_single() -> None:
    model = nn.Linear(1, 1, bias=False).bfloat16()
    average = average_of(model)
    values = [1.0 + (step % 2) / 128 for step in range(1, 2001)]
    for step, value in enumerate(values, start=1):
        model.weight.data.fill_(value)
        average.follow(step, Decision(step, "test", "asks", averaging=500.0))
    assert average._mean["weight"].item() == pytest.approx(1.0 + 0.5 / 128, abs=1e-4)
    average.end(ASKS, "takeover")
    assert model.weight.dtype == torch.bfloat16


def test_what_is_not_finite_is_not_put_in_place() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = average_of(model)
    for step, value in enumerate((math.inf, 1.0), start=1):
        model.weight.data.fill_(value)
        average.follow(step, ASKS)
    assert average.end(ASKS, "takeover") == ["averaging: the average is not finite"]
    assert model.weight.item() == 1.0


def test_the_last_word_may_still_go_back_to_the_weights_that_validated_best() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    with Advisor(model, optimizer, 40, snapshot_every=5, on_error="raise") as advisor:
        train(advisor, model, range(20))
        best = model[0].weight.detach().clone()
        advisor.report_validation(0.9)
        advisor.report_validation(0.2)
        train(advisor, model, range(20, 40))
        assert not torch.equal(model[0].weight, best)
        advisor.report_validation(5.0)
        assert torch.equal(model[0].weight, best)


def test_a_run_that_goes_on_beyond_its_end_starts_from_the_average() -> None:
    model = network()
    with advised(model, 30) as advisor:
        train(advisor, model, range(30))
        ends = model[0].weight.detach().clone()
        train(advisor, model, range(30, 40))
        assert not torch.equal(model[0].weight, ends)
        assert advisor.errors == 0
        assert model[0].weight.isfinite().all()


def test_a_run_that_is_closed_before_its_end_is_told_that_it_has_no_average(caplog: pytest.LogCaptureFixture) -> None:
    for steps, told in ((40, False), (39, True), (45, False), (10, False)):
        caplog.clear()
        model = network()
        with advised(model, 40) as advisor:
            train(advisor, model, range(steps))
        assert any("not their average" in one.message for one in caplog.records) == told


def test_of_another_processs_share_nothing_is_taken_up(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    first, second = average_of(model), average_of(model)
    first.follow(1, ASKS)
    state = first.state_dict()
    second.load_state_dict(state)
    assert second.state_dict()["taken"] == 1
    assert not caplog.records
    second.load_state_dict(state | {"places": state["places"] | {"0.weight": [2, 1]}})
    assert second.state_dict()["taken"] == 0
    assert "begins anew" in caplog.text
    second.follow(2, ASKS)
    assert second.end(ASKS, "takeover") == []


def test_knobs_alone_ask_for_no_average() -> None:
    model = nn.Linear(1, 1, bias=False)
    average = average_of(model)
    for step in (1, 2):
        average.follow(step, Decision(step, "test", "go", (Knobs(0, 0.1),)))
    assert average.end(Decision(2, "test", "go"), "takeover") == []
    assert not average._mean
