"""Models as users write them: one activation in many places, functional calls, few weights, weights of zero or NaN."""

import math

import pytest
import torch
import zoo
from torch import Tensor, nn

from lipadvisor.modules import Finding, apply_cures, audit, dead_zone_rescue, lsuv, spectral
from lipadvisor.modules.initialization import draw_anew, layer_sizes

torch.set_num_threads(1)


def seeded(build: type[nn.Module] | nn.Module, *arguments: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*arguments)


def stack(depth: int, width: int, activations: list[nn.Module]) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i in range(depth):
            layers += [nn.Linear(width if i else 20, width), activations[i]]
        return nn.Sequential(*layers, nn.Linear(width, zoo.CLASSES))


def test_an_activation_in_many_places_is_swapped_in_all_of_them() -> None:
    shared = stack(10, 32, [nn.Sigmoid()] * 10)
    x = zoo._vectors(16, 20)
    findings = audit(shared, x, local=False).findings
    assert [finding.module for finding in findings] == ["1"]
    assert "10 places" in findings[0].reason
    cured = apply_cures(shared, findings, x)
    assert not any(isinstance(module, nn.Sigmoid) for module in shared)
    assert sum(isinstance(module, nn.Tanh) for module in shared) == 10
    assert cured.applied == findings
    assert cured.remaining == ()
    cured()
    assert sum(isinstance(module, nn.Sigmoid) for module in shared) == 10


class Functional(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(20 if i == 0 else 32, 32) for i in range(depth)])
        self.head = nn.Linear(32, zoo.CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sigmoid(layer(x))
        y: Tensor = self.head(x)
        return y


def test_a_saturating_call_in_the_code_is_named_and_left_to_its_author() -> None:
    model, x = seeded(Functional, 10), zoo._vectors(16, 20)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    findings = audit(model, x, local=False).findings
    assert {finding.module for finding in findings} == {f"layers.{i}" for i in range(10)}
    assert all("sigmoid" in finding.reason and "in the code" in finding.cure for finding in findings)
    cured = apply_cures(model, findings, x)
    assert cured.applied == ()
    assert cured.remaining == cured.by_hand == findings
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("where", [0, 2])
def test_one_weight_of_two_is_held_to_an_absolute_size(where: int) -> None:
    model, x = stack(1, 64, [nn.ReLU()]), zoo._vectors(16, 20)
    assert audit(model, x, local=False).findings == ()
    with torch.no_grad():
        model[where].weight.mul_(30)
    (finding,) = audit(model, x, local=False).findings
    assert (finding.module, finding.problem) == (str(where), "init_scale")
    assert apply_cures(model, [finding], x).remaining == ()


def test_a_convolution_and_a_head() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    assert audit(model, zoo._images(), local=False).findings == ()
    with torch.no_grad():
        model[0].weight.mul_(30)
    assert [(f.module, f.problem) for f in audit(model, zoo._images(), local=False).findings] == [("0", "init_scale")]


def test_a_zero_weight_on_the_trunk_is_named_and_drawn_anew() -> None:
    model, x = stack(3, 32, [nn.ReLU()] * 3), zoo._vectors(16, 20)
    with torch.no_grad():
        model[2].weight.zero_()
    findings = audit(model, x, local=False).findings
    assert [(f.module, f.problem, f.cure) for f in findings] == [("2", "zero_weight", "draw_anew")]
    cured = apply_cures(model, findings)
    assert layer_sizes(model)["2"] == pytest.approx(1.0, rel=0.1)
    assert audit(model, x, local=False).findings == ()
    cured()
    assert not model[2].weight.any()
    with pytest.raises(ValueError, match=r"draw_anew\(gain=...\)"):
        draw_anew(model, "2", gain=0.0)


def test_zero_on_purpose_is_no_finding() -> None:
    model, x = zoo.own_transformer()
    with torch.no_grad():
        for name, module in model.named_modules():
            if name.endswith(("branch.1.2", ".out")):  # the ends of branches
                module.weight.zero_()
    assert audit(model, x, local=False).findings == ()
    head = stack(3, 32, [nn.ReLU()] * 3)
    with torch.no_grad():
        head[6].weight.zero_()
    assert audit(head, zoo._vectors(16, 20), local=False).findings == ()


def test_a_parameter_that_is_not_finite_is_named() -> None:
    model, x = stack(3, 32, [nn.ReLU()] * 3), zoo._vectors(16, 20)
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    result = audit(model, x)
    assert [(f.module, f.problem) for f in result.findings] == [("2", "non_finite")]
    assert "not finite" in result.findings[0].reason
    assert math.isnan(result.network["log_bound"])
    assert "not finite" in result.table()
    assert "not finite" in result.to_html()


@pytest.mark.parametrize(("depth", "activation"), [(8, nn.ReLU), (10, nn.ReLU), (12, nn.ReLU), (12, nn.Tanh)])
def test_plain_networks_as_torch_starts_them_are_no_alarm(depth: int, activation: type[nn.Module]) -> None:
    for seed in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = [nn.Linear(20, 64), activation()]
            for _ in range(depth - 2):
                layers += [nn.Linear(64, 64), activation()]
            model = nn.Sequential(*layers, nn.Linear(64, zoo.CLASSES))
        result = audit(model, zoo._vectors(16, 20), local=False)
        assert result.findings == ()
        if (depth, activation) == (12, nn.ReLU):
            assert [one.cure for one in result.advice if one.problem == "vanishing"] == ["lsuv"]


def test_a_short_warmup_is_advice_and_none_is_an_alarm() -> None:
    model, x = zoo.encoder()
    result = audit(model, x, local=False, warmup_steps=50, total_steps=1000)
    assert result.findings == ()
    assert [one.cure for one in result.advice if one.problem == "post_norm"] == ["warmup 100"]
    assert audit(model, x, local=False, warmup_steps=0, total_steps=1000).findings[0].problem == "post_norm"


def test_a_table_that_is_the_head_is_left_alone() -> None:
    pytest.importorskip("transformers")
    model, tokens = zoo.gpt2()
    advice = audit(model, tokens, local=False).advice
    assert "transformer.wte" not in {one.module for one in advice if one.problem == "init_scale"}
    plan = dead_zone_rescue(model)
    assert "transformer.wte" not in dict(plan.factors)
    plan.apply(model)
    assert audit(model, tokens, local=False).findings == ()
    assert dead_zone_rescue(model).factors == ()  # once is enough


def test_what_is_normalised_at_once_needs_no_rescue() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    advice = audit(model, torch.randn(4, 8), local=False).advice
    assert "0" in dict(dead_zone_rescue(model).factors)
    assert {one.module for one in advice if one.problem == "init_scale"} >= {"3"}
    assert "0" not in {one.module for one in advice if one.problem == "init_scale"}


def test_all_layers_are_advised_on_and_the_text_says_how_many_it_leaves_out() -> None:
    result = audit(stack(8, 32, [nn.ReLU()] * 8), zoo._vectors(16, 20), local=False)
    layers = [one for one in result.advice if one.problem == "init_scale"]
    assert len(layers) == 8
    assert result.table().count(": init_scale ->") == 3
    assert "and 5 more layers" in result.table()
    assert "give a loss to advise a rate for SGD" in result.table()


def test_advice_that_nothing_acts_on_is_not_reported_as_applied() -> None:
    model, x = stack(4, 32, [nn.ReLU()] * 4), zoo._vectors(16, 20)
    result = audit(model, x, local=False, total_steps=100)
    cured = apply_cures(model, result.advice, x)
    assert {finding.problem for finding in cured.applied} == {"init_scale"}
    assert {finding.problem for finding in cured.plan} == {"optimizer", "learning_rate", "weight_decay", "warmup"}
    cured()
    taken = apply_cures(model, result, x)
    assert (taken.applied, taken.rounds) == ((), 0)
    with pytest.raises(TypeError, match="must be findings or an audit, got str"):
        apply_cures(model, ["scale_weight 3"], x)  # type: ignore[list-item]
    with pytest.raises(ValueError, match="has no 'nowhere'"):
        apply_cures(model, [Finding("nowhere", "init_scale", "scale_weight 0.1", "", "", 1.0, 0.1)], x)


def test_schemes_say_what_they_cannot_reach() -> None:
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    model, x = nn.Sequential(normed, nn.ReLU(), nn.Linear(8, 8)), torch.randn(4, 8)
    for plan in (lsuv(model, x), spectral(model), dead_zone_rescue(model)):
        assert [name for name, _ in plan.skipped] == ["0"]
        assert "computed" in plan.skipped[0][1]
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    assert {name for name, _ in lsuv(layer, torch.randn(2, 4, 8)).skipped} == {
        "self_attn.in_proj",
        "self_attn.out_proj",
    }
