"""Schemes: what each makes of a network, and that it can be taken back."""

import math

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import (
    FeedForward,
    InitPlan,
    Residual,
    TransformerBlock,
    dead_zone_rescue,
    depth_scaled,
    lsuv,
    spectral,
)
from lipadvisor.modules.initialization import layer_sizes
from lipadvisor.policies import Initialization

torch.set_num_threads(1)


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 16), nn.Tanh(), nn.Linear(16, 4)
        )


def images() -> Tensor:
    return torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("scheme", ["spectral", "lsuv", "dead_zone"])
def test_preview_apply_undo(scheme: str) -> None:
    model = network()
    with torch.no_grad():
        model[3].weight.mul_(9)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plan: InitPlan = {"spectral": spectral, "dead_zone": dead_zone_rescue}.get(scheme, lambda m: lsuv(m, images()))(
        model
    )
    assert plan.factors
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    preview = plan.preview(model).set_index("module")
    undo = plan.apply(model)
    sizes = layer_sizes(model)
    for name, factor in plan.factors:
        assert preview.loc[name, "after"] == pytest.approx(sizes[name], rel=1e-5)
        torch.testing.assert_close(model.get_submodule(name).weight, before[f"{name}.weight"] * factor)
    undo()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_lsuv_gives_every_output_the_size() -> None:
    model = network()
    lsuv(model, images(), target=1.0, passes=4, tolerance=0.02).apply(model)
    x = images()
    for layer in model:
        x = layer(x)
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bias = layer.bias.reshape(1, -1, *(1,) * (x.ndim - 2))
            assert float((x - bias).detach().square().mean().sqrt()) == pytest.approx(1.0, abs=0.05)


def test_spectral_condition_holds() -> None:
    model = network()
    spectral(model, target=0.8).apply(model)
    for layer in (model[3], model[5]):
        norm = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
        assert norm == pytest.approx(0.8 * math.sqrt(layer.out_features / layer.in_features), rel=1e-5)


def test_dead_zone_is_the_policys() -> None:
    model = network()
    rule = Initialization(low=0.3, high=1.6, head_low=0.3, head_target=0.7)
    assert dead_zone_rescue(model, rule).factors == ()  # torch's default lies inside this zone
    body, usual = list(layer_sizes(model).items())[:-1], Initialization()
    rescued = [name for name, _ in dead_zone_rescue(model).factors if name != "5"]
    assert rescued == [name for name, q in body if not usual.low <= q <= usual.high]
    with torch.no_grad():
        model[0].weight.mul_(20)
        model[5].weight.mul_(0.05)
    plan = dead_zone_rescue(model, rule)
    assert [name for name, _ in plan.factors] == ["0", "5"]
    plan.apply(model)
    sizes = layer_sizes(model)
    assert sizes["0"] == pytest.approx(0.3)
    assert sizes["5"] == pytest.approx(0.7)  # the head
    table = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10))
    (name, factor), *rest = dead_zone_rescue(table, rule).factors
    assert name == "0"
    assert not rest
    assert layer_sizes(table)["0"] * factor == pytest.approx(0.25)


def test_depth_scaled_finds_the_branches_ends() -> None:
    model = nn.Sequential(*(TransformerBlock(8) for _ in range(3)))
    plan = depth_scaled(model)
    assert len(plan.factors) == 6
    assert all(factor == pytest.approx(6**-0.5) for _, factor in plan.factors)
    assert plan.factors[0][0].endswith("out")
    assert plan.factors[1][0].endswith("branch.1.2")
    given = depth_scaled(nn.Sequential(Residual(FeedForward(4, 4))), {"0.branch.2": 4})
    assert given.factors == (("0.branch.2", 0.5),)


def test_a_plan_for_another_model_changes_nothing() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(KeyError):
        InitPlan("mine", (("0", 2.0), ("nowhere", 2.0)), ("", "")).apply(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_bad_arguments() -> None:
    model = network()
    for call, message in (
        (lambda: spectral(model, 0.0), r"spectral\(target=...\)"),
        (lambda: lsuv(model, images(), -1.0), r"lsuv\(target=..., passes=...\)"),
        (lambda: dead_zone_rescue(model, table=0.0), r"table=...\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Conv1d(10, 6, 3), (4, 10, 8)), (nn.Linear(5, 7), (4, 3, 2, 5)), (nn.Conv3d(2, 3, 1), (2, 2, 3, 3, 3))],
)
def test_lsuv_scales_the_weight_beside_any_bias(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """As many places as channels, or channels last: the bias still stands where the layer adds it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.bias.normal_(std=50.0, generator=generator)
    x = torch.randn(shape, generator=generator)
    lsuv(layer, x).apply(layer)
    with torch.no_grad():
        layer.bias.zero_()
        assert float(layer(x).square().mean().sqrt()) == pytest.approx(1.0, abs=0.06)


@pytest.mark.parametrize("branches", [None, {"7": 3}])
def test_depth_scaled_says_where_it_finds_no_branch(branches: dict[str, int] | None) -> None:
    with pytest.raises(ValueError, match="branches"):
        depth_scaled(nn.Sequential(nn.Linear(4, 4)), branches)
