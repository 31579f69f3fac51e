"""FSDP2 under an advisor: every rank takes the same decisions, and they reach the shares of the weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from gloo_ranks import on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lipadvisor import Advisor
from lipadvisor.policies import Decision, Observation, named_policy

RANKS, STEPS = 2, 50
pytestmark = pytest.mark.slow


def network(kind: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        if kind == "mlp":
            return nn.Sequential(nn.Linear(8, 33), nn.Tanh(), nn.Linear(33, 33), nn.Tanh(), nn.Linear(33, 1))
        return nn.Sequential(
            nn.Conv2d(1, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 7, 3), nn.ReLU(), nn.Flatten(), nn.Linear(7 * 16, 1)
        )


def data(kind: str, k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    x = torch.randn(32, *((8,) if kind == "mlp" else (1, 6, 6)), generator=generator)
    return x, x.flatten(1)[:, :3].sum(1, keepdim=True)


def sharded(model: nn.Sequential, mesh: Any) -> nn.Sequential:
    for part in model:
        if next(part.parameters(), None) is not None:
            fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh, reshard_after_forward=True)


def run(
    model: nn.Module, kind: str, advisor: Advisor, optimizer: torch.optim.Optimizer, rank: int, steps: range
) -> list[float]:
    losses = []
    for k in steps:
        x, y = (part.chunk(RANKS)[rank] for part in data(kind, k))
        loss = nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        advisor.step(loss)
        losses.append(float(loss.detach()))
        if rank == 1 and k % 7 == 0:
            sum(range(200_000))  # the ranks' clocks differ, their choices must not
    return losses


def whole(model: nn.Module) -> Tensor:
    return torch.cat([p.full_tensor().detach().flatten() for p in model.parameters()])  # type: ignore[attr-defined]


def advised(mesh: Any, rank: int, kind: str, name: str) -> dict[str, Any]:
    model = sharded(network(kind), mesh)
    made = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    optimizer = made if name == "momentum" else torch.optim.AdamW(model.parameters(), 1e-3)
    advisor = Advisor(model, optimizer, STEPS, max_overhead=0.5, on_error="raise")
    losses = run(model, kind, advisor, optimizer, rank, range(STEPS))
    frames = advisor.trajectory
    advisor.close()
    decisions = frames.decisions
    return {
        "losses": losses,
        "knobs": [[float(x) for x in decisions[key]] for key in ("lr_applied", "weight_decay_applied")],
        "steps": sorted(set(map(int, frames.observations.step))),
        "norms": [float(x) for x in frames.observations.log_norm],
        "noise": advisor.noise.method,
        "weights": whole(model),
        "errors": advisor.errors,
    }


@dataclasses.dataclass(frozen=True)
class Acts:
    """Scales the initial weights, later one weight, and goes back once."""

    name: str = "acts"

    def init(self) -> tuple[()]:
        return ()

    def decide(self, seen: Observation, state: tuple[()]) -> tuple[Decision, tuple[()]]:
        base, _ = named_policy("constant").decide(seen, named_policy("constant").init())
        scale = (("0", 2.0), ("2", 0.5)) if seen.step == 0 else ()
        later = (("2", 3.0),) if seen.step == 4 else ()
        reason = f"validation {seen.validation_loss}"
        return dataclasses.replace(
            base, init_scale=scale, weight_scale=later, rollback=seen.step == 9, reason=reason
        ), state


def acted(mesh: Any, rank: int) -> dict[str, Any]:
    """Return the weights behind each kind of action, and what they ought to be."""
    model = sharded(network("mlp"), mesh)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    first = [p.full_tensor().detach() for p in model.parameters()]
    advisor = Advisor(model, optimizer, 20, policy=Acts(), interval=1, on_error="raise", snapshot_every=2)
    found: dict[str, Any] = {}
    kept: list[Tensor] = []
    for k in range(12):
        x, y = (part.chunk(RANKS)[rank] for part in data("mlp", k))
        loss = nn.functional.mse_loss(model(x), y)
        if k == 0:
            now = [p.full_tensor().detach() for p in model.parameters()]
            found["init"] = [float((a / b).mean()) for a, b in zip(now[::2], first[::2], strict=True)]
            want = network("mlp")
            with torch.no_grad():
                want[0].weight.mul_(2.0)
                want[2].weight.mul_(0.5)
            found["loss"] = [float(loss.detach()), float(nn.functional.mse_loss(want(x), y).detach())]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        before = whole(model)
        advisor.step(loss)
        kept.append(whole(model))
        if k == 5:
            advisor.report_validation(1.0 + rank)
        if k == 3:
            found["scaled"] = float((kept[-1] / before).max())
        if k == 8:
            found["back"] = [bool(torch.equal(kept[-1], one)) for one in kept[:-1]]
    found["reason"] = str(advisor.trajectory.decisions.reason.iloc[-1])
    found["refused"] = [str(x) for x in advisor.trajectory.decisions.refused if x and str(x) != "nan"]
    advisor.close()
    return found


def resumed(mesh: Any, rank: int, folder: str) -> dict[str, Any]:
    """Return weights of a run, and of the same run that was stopped in its last quarter and taken up again."""
    ends = []
    for stops in (False, True):
        model = sharded(network("mlp"), mesh)
        optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
        advisor = Advisor(model, optimizer, 40, interval=2, on_error="raise")
        run(model, "mlp", advisor, optimizer, rank, range(33))
        if stops:
            torch.save(advisor.state_dict(), f"{folder}/advisor{rank}.pt")
            states = model.state_dict(), optimizer.state_dict()
            advisor.close()
            model = sharded(network("mlp"), mesh)
            optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
            advisor = Advisor(model, optimizer, 40, interval=2, on_error="raise")
            model.load_state_dict(states[0])
            optimizer.load_state_dict(states[1])
            advisor.load_state_dict(torch.load(f"{folder}/advisor{rank}.pt", weights_only=True))
        run(model, "mlp", advisor, optimizer, rank, range(33, 40))
        ends.append((whole(model), [float(x) for x in advisor.trajectory.observations.log_norm][-4:]))
        advisor.close()
    return {"weights": [end[0] for end in ends], "norms": [end[1] for end in ends]}


def advised_on(rank: int, folder: str) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (RANKS,))
    cases = [("mlp", "adamw"), ("convnet", "momentum")]
    found: dict[str, Any] = {f"{kind} {name}": advised(mesh, rank, kind, name) for kind, name in cases}
    return found | {"acted": acted(mesh, rank), "resumed": resumed(mesh, rank, folder)}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return on_ranks(RANKS, tmp_path_factory.mktemp("advised"), advised_on)


@pytest.mark.parametrize("case", ["mlp adamw", "convnet momentum"])
def test_every_rank_decides_the_same_and_the_loss_falls(found: Any, case: str) -> None:
    one, other = (each[case] for each in found)
    assert one["knobs"] == other["knobs"]
    assert one["steps"] == other["steps"]
    assert one["norms"] == other["norms"]
    assert torch.equal(one["weights"], other["weights"])
    assert len(one["steps"]) > 10
    assert all(math.isfinite(x) for x in (*one["norms"], *one["losses"]))
    assert sum(one["losses"][-5:]) < 0.8 * sum(one["losses"][:5])
    assert (one["noise"], one["errors"], other["errors"]) == ("samples", 0, 0)


def test_actions_reach_the_shares(found: Any) -> None:
    one, other = (each["acted"] for each in found)
    assert {**one, "loss": 0} == {**other, "loss": 0}
    assert one["init"] == pytest.approx([2.0, 0.5, 1.0])
    assert one["loss"][0] == pytest.approx(one["loss"][1], rel=1e-5)
    assert one["scaled"] == pytest.approx(3.0)
    assert sum(one["back"]) == 1
    assert one["refused"] == []
    assert one["reason"] == "validation 1.5"


def test_a_run_goes_on_as_if_it_had_not_been_stopped(found: Any) -> None:
    for each in found:
        assert torch.equal(*each["resumed"]["weights"])
        assert each["resumed"]["norms"][0] == each["resumed"]["norms"][1]
