from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from lipadvisor import Advisor
from lipadvisor.policies import Decision, Knobs, Observation
from lipadvisor.snapshot import Snapshot


def trained(seed: int, kind: type[torch.optim.Optimizer], steps: int) -> tuple[nn.Sequential, torch.optim.Optimizer]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = kind(model.parameters(), lr=0.05)
    for step in range(steps):
        take(model, optimizer, step)
    return model, optimizer


def take(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> torch.Tensor:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
    loss = nn.functional.cross_entropy(model(x), (x.sum(1) > 0).long())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.Adam])
def test_the_copy_with_the_lowest_validation_loss_comes_back_with_its_moments(
    kind: type[torch.optim.Optimizer],
) -> None:
    model, optimizer = trained(0, kind, 3)
    snapshot = Snapshot(model, optimizer, 10)
    assert not snapshot.restore_validated()
    kept: dict[float, list[torch.Tensor]] = {}
    for step, loss in enumerate((0.9, 0.5, 0.7, math.nan, 0.5), start=3):
        kept.setdefault(loss, weights(model))
        snapshot.keep_validated(loss)
        take(model, optimizer, step)
    assert snapshot.restore_validated()
    assert all(torch.equal(a, b) for a, b in zip(weights(model), kept[0.5], strict=True))
    take(model, optimizer, 50)
    again, its = trained(0, kind, 4)  # the same network, stopped where the lowest loss was reported
    take(again, its, 50)
    assert all(torch.equal(a, b) for a, b in zip(weights(model), weights(again), strict=True))
    assert snapshot.restore_validated()  # going back twice ends in the same place
    assert all(torch.equal(a, b) for a, b in zip(weights(model), kept[0.5], strict=True))


def test_nothing_is_kept_where_no_snapshots_are_wanted() -> None:
    model, optimizer = trained(0, torch.optim.Adam, 2)
    snapshot = Snapshot(model, optimizer, None)
    snapshot.keep_validated(0.1)
    assert not snapshot.restore_validated()


@dataclass(frozen=True)
class Turns:
    """Holds the rate, and goes back at one step."""

    step: int
    name: str = "turns"

    def init(self) -> None:
        return None

    def decide(self, observation: Observation, state: None) -> tuple[Decision, None]:
        back = observation.step == self.step
        reason = "back" if back else "go"
        return Decision(observation.step, self.name, reason, (Knobs(0, 0.05),), rewind=back), None


@pytest.mark.parametrize("reported", [True, False])
def test_a_rewind_puts_the_validated_weights_back_or_says_that_there_are_none(reported: bool) -> None:
    model, optimizer = trained(0, torch.optim.Adam, 0)
    best = weights(model)
    with Advisor(model, optimizer, 20, policy=Turns(12), interval=1, on_error="raise") as advisor:
        for step in range(12):
            advisor.step(take(model, optimizer, step))
            if reported and step in (4, 7):
                advisor.report_validation(0.3 if step == 4 else 0.8)
                best = weights(model) if step == 4 else best
        assert all(torch.equal(a, b) for a, b in zip(weights(model), best, strict=True)) == reported
        refused = [str(row) for row in advisor.trajectory.decisions["refused"] if row]
        assert any("rewind: no snapshot" in row for row in refused) != reported
        for step in range(12, 20):
            advisor.step(take(model, optimizer, step))
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(("last", "goes_back"), [(0.9, True), (0.31, False), (math.nan, False)])
def test_a_run_whose_last_weights_validate_clearly_worse_ends_with_the_best_ones(last: float, goes_back: bool) -> None:
    model, data = torch.nn.Linear(4, 2), torch.randn(32, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    kept = None
    advisor = Advisor(model, optimizer, 20, snapshot_every=5, on_error="raise")
    for step in range(1, 21):
        loss = model(data).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        advisor.step(loss)
        if step == 10:
            kept = model.weight.detach().clone()
        if step in (5, 10, 20):
            before = model.weight.detach().clone()
            advisor.report_validation({5: 0.4, 10: 0.3, 20: last}[step])
    assert torch.equal(model.weight, kept if goes_back else before)
    rows = advisor.trajectory.decisions
    assert any("overfitting:rewind" in reason for reason in rows.reason) == goes_back
    advisor.close()
    advisor.report_validation(50.0)  # nothing is done any more
    assert torch.equal(model.weight, kept if goes_back else before)
