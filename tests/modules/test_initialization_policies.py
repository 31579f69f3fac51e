"""The same rule in a scheme and in a policy, on real models; a plan under an advisor does what the plan itself does."""

from __future__ import annotations

import copy
import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from lipadvisor import Advisor, load_run
from lipadvisor.cli import main
from lipadvisor.modules import InitPlan, Residual, dead_zone_rescue, depth_scaled, lsuv, spectral
from lipadvisor.observe import initial_observation
from lipadvisor.plain_chain import is_plain_chain
from lipadvisor.policies import (
    Cosine,
    Decision,
    DepthScaledInitialization,
    Initialization,
    Knobs,
    Lipschitz,
    Observation,
    Policy,
    SpectralInitialization,
    chain,
)
from lipadvisor.probe import Probe

torch.set_num_threads(1)


def mlp() -> nn.Module:
    widths = [int(n) for n in torch.randint(3, 24, (4,))]
    stack: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        stack += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, widths[0]), *stack, nn.Linear(widths[-1], 3))


def convnet() -> nn.Module:
    a, b = (int(n) for n in torch.randint(2, 9, (2,)))
    return nn.Sequential(
        nn.Conv2d(3, a, 3, padding=1), nn.ReLU(), nn.Conv2d(a, b, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3)
    )


def residual() -> nn.Module:
    width = int(torch.randint(4, 12, ()))
    blocks = [Residual(nn.Sequential(nn.Linear(width, 9), nn.ReLU(), nn.Linear(9, width))) for _ in range(3)]
    return nn.Sequential(nn.Flatten(), nn.Linear(48, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 3))


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return nn.Sequential(
        nn.Unflatten(3, (4,)), nn.Flatten(1, 2), nn.Linear(4, 8), layer, nn.Flatten(), nn.LazyLinear(3)
    )


MODELS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "convnet": convnet, "residual": residual}


def drawn(kind: str, seed: int) -> nn.Module:
    """A model of random widths whose weights are each off by a factor of their own."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = MODELS[kind]() if kind != "attention" else attention()
        model(images())
        with torch.no_grad():
            for weight in model.parameters():
                if weight.ndim >= 2:
                    weight.mul_(10.0 ** float(torch.empty(()).uniform_(-1.0, 1.0)))
    return model


def images(seed: int = 0) -> Tensor:
    return torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def seen(model: nn.Module, conv_view: str = "operator") -> Observation:
    """What a policy is shown of the model before step 0."""
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), conv_view=conv_view)
    probe.trace(images())
    found = initial_observation(probe.spectrum(), 100, (Knobs(0, 0.1, 0.0),), is_plain_chain(model))
    probe.close()
    return found


def asked(policy: Policy[object], model: nn.Module, conv_view: str = "operator") -> dict[str, float]:
    return dict(policy.decide(seen(model, conv_view), policy.init())[0].init_scale)


def captured(model: nn.Module) -> dict[str, Tensor]:
    """The input of each convolution."""
    found: dict[str, Tensor] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: found.update({name: args[0].detach()}))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d)
    ]
    model(images())
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", list(MODELS))
def test_scheme_and_policy_give_the_same_factors(kind: str, seed: int) -> None:
    model = drawn(kind, seed)
    wide = [name for name, module in model.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]
    close = {"rel": 2e-3}  # the probe's norms are those of a power iteration in float32

    for rule in (Initialization(), Initialization(low=1.3)):
        rescued = asked(rule, model)
        assert rescued == pytest.approx(dict(dead_zone_rescue(model, rule).factors), rel=1e-5)
    assert rescued, "these weights are off"

    as_matrix = asked(SpectralInitialization(2.0), model, "matrix")
    assert as_matrix == pytest.approx(dict(spectral(model, 2.0).factors), **close)
    assert set(as_matrix) == set(wide)
    as_operator = asked(SpectralInitialization(), model)
    assert as_operator == pytest.approx(dict(spectral(model, inputs=captured(model)).factors), **close)

    branches = [n for n in wide if n.endswith(".branch.2")] or wide[-1:]
    plan = depth_scaled(model) if kind == "residual" else depth_scaled(model, dict.fromkeys(branches, 3))
    given = DepthScaledInitialization(tuple((name, 3) for name in branches))
    assert asked(given, model) == dict(plan.factors) == dict.fromkeys(branches, 3**-0.5)


SCHEMES: dict[str, Callable[[nn.Module], InitPlan]] = {
    "dead_zone": dead_zone_rescue,
    "spectral": spectral,
    "depth_scaled": depth_scaled,
    "lsuv": lambda model: lsuv(model, images()),
}
CASES = [(s, k) for s in SCHEMES for k in (*MODELS, "attention") if s != "depth_scaled" or k == "residual"]


def first_decision(advisor: Advisor) -> pd.Series:
    frame = advisor.trajectory.decisions
    return frame[frame.step == 0].iloc[0]


@pytest.mark.parametrize(("scheme", "kind"), CASES)
def test_a_plan_under_an_advisor_makes_the_weights_that_the_plan_makes(scheme: str, kind: str) -> None:
    model = drawn(kind, 7)
    plan = SCHEMES[scheme](model)
    assert plan.factors
    expected = copy.deepcopy(model)
    plan.apply(expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    policy = chain(Lipschitz(), plan.policy())
    with Advisor(model, optimizer, 40, policy=policy, interval=1, on_error="raise") as advisor:
        model(images())
        for (name, weight), other in zip(model.named_parameters(), expected.parameters(), strict=True):
            assert torch.equal(weight, other), name
        row = first_decision(advisor)
        issued = json.loads(row.init_scale)
        assert "init:planned" in row.reason
        assert "init:absent" not in row.reason
        assert not row.refused
        for name, factor in plan.factors:
            parts = [name] if not name.endswith("in_proj") else [name[:-7] + p for p in ("q_proj", "k_proj", "v_proj")]
            assert all(issued[part] == factor for part in parts)
        norms = advisor.trajectory.observations.query("step == 0").set_index("layer").log_norm
        head = list(expected.named_modules())[-1][0]
        norm = torch.linalg.matrix_norm(expected.get_submodule(head).weight.detach(), 2)
        assert norms[head] == pytest.approx(math.log(norm), abs=1e-3), "the run starts from the weights as rescaled"


def test_the_spectral_part_needs_no_plan_and_leaves_the_users_schedule_alone() -> None:
    model = drawn("mlp", 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    with Advisor(model, optimizer, 10, policy="spectral_initialization", interval=1, on_error="raise") as advisor:
        model(images())
        for layer in model:
            if isinstance(layer, nn.Linear):
                norm = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
                assert norm == pytest.approx(math.sqrt(layer.out_features / layer.in_features), rel=2e-3)
        rates = []
        for _ in range(4):
            model(images()).square().mean().backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            optimizer.zero_grad()
            assert isinstance(advisor.step(1.0), Decision)
            schedule.step()
        assert optimizer.param_groups[0]["weight_decay"] == 1e-3
    assert rates == pytest.approx([0.05, 0.05, 0.025, 0.025])


def test_a_layer_that_is_not_there_is_told_and_the_others_are_scaled() -> None:
    model = drawn("mlp", 1)
    before = model[1].weight.detach().clone()
    plan = InitPlan("mine", (("1", 2.0), ("of.another.model", 5.0)), ("", ""))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Advisor(model, optimizer, 10, policy=chain(Cosine(), plan.policy()), on_error="raise") as advisor:
        model(images())
        row = first_decision(advisor)
    assert torch.equal(model[1].weight, before * 2.0)
    assert "init:absent" in row.reason
    assert json.loads(row.read)["absent[of.another.model]"] == 5.0
    assert "of.another.model" not in row.init_scale


@pytest.mark.parametrize("mode", ["cap", "shadow"])
def test_who_does_not_own_the_weights_does_not_scale_them(mode: str) -> None:
    model = drawn("mlp", 1)
    before = model[1].weight.detach().clone()
    policy = chain(Lipschitz(), lsuv(model, images()).policy())
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with Advisor(model, optimizer, 10, policy=policy, mode=mode, on_error="raise") as advisor:
        model(images())
        row = first_decision(advisor)
    assert torch.equal(model[1].weight, before)
    assert f"init_scale: not in {mode} mode" in row.refused


def test_a_rollback_goes_back_to_the_rescaled_weights_and_does_not_scale_again() -> None:
    model = drawn("mlp", 2)
    plan = lsuv(model, images())
    expected = copy.deepcopy(model)
    plan.apply(expected)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    policy = chain(Lipschitz(), plan.policy())
    with Advisor(model, optimizer, 50, policy=policy, interval=1, snapshot_every=1000, on_error="raise") as advisor:
        for step in range(5):
            loss = model(images()).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if step == 0:
                kept = copy.deepcopy(model.state_dict())
            decision = advisor.step(math.nan if step == 4 else float(loss.detach()))
        assert decision is not None
        assert decision.rollback
        assert decision.init_scale == ()
        assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())
    start = torch.cat([w.detach().flatten() for w in expected.parameters()])
    back = torch.cat([w.detach().flatten() for w in model.parameters()])
    assert float((back - start).norm() / start.norm()) < 0.05, "one step from the plan's weights"


def test_the_command_line_knows_them(tmp_path: Path) -> None:
    model = drawn("mlp", 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with Advisor(model, optimizer, 5, policy="initialization", interval=1, out=tmp_path, on_error="raise") as advisor:
        for _ in range(5):
            model(images()).square().mean().backward()
            optimizer.step()
            advisor.step(1.0)
    assert len(load_run(tmp_path).decisions)
    listed = CliRunner().invoke(main, ["policies"]).output
    assert "\ninitialization" in listed
    assert "\nspectral_initialization" in listed
    options = ["--policy", "spectral_initialization", "--param", "target=2"]
    shown = CliRunner().invoke(main, ["replay", str(tmp_path), *options])
    assert shown.exit_code == 0, shown.output
    assert "init:spectral" in shown.output
    wrong = CliRunner().invoke(main, ["replay", str(tmp_path), "--policy", "spectral_initialization", "--param", "a=2"])
    assert "has no parameter 'a'" in wrong.output
