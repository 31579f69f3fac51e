"""The audit of whole models: no alarm where all is well, and what its result holds."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
import zoo

import lipadvisor
from lipadvisor.modules import DotProductAttention, TransformerBlock, apply_cures, audit

torch.set_num_threads(1)


def built(build: Callable[[], tuple[nn.Module, Any]], seed: int = 0) -> tuple[nn.Module, Any]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(zoo.HUGGING_FACE | zoo.TORCH))
@pytest.mark.parametrize("seed", [0, 1])
def test_healthy_models_raise_no_alarm(name: str, seed: int) -> None:
    if name in zoo.HUGGING_FACE:
        pytest.importorskip("transformers")
    model, batch = built((zoo.HUGGING_FACE | zoo.TORCH)[name], seed)
    result = audit(model, batch)
    assert result.findings == ()
    assert result.network["method"] == "export"
    assert result.network["log_bound"] >= result.network["log_local"] - 1e-4
    assert result.advice
    assert result.modules["forward_gain"].notna().mean() > 0.5
    assert result.modules["backward_gain"].notna().mean() > 0.5


def language(tokens: float, tied: bool) -> Callable[[], tuple[nn.Module, Any]]:
    """Pre-norm blocks between a table of the given rms and a head, which may be that table."""

    def build() -> tuple[nn.Module, Any]:
        table, head = nn.Embedding(zoo.VOCABULARY, 32), nn.Linear(32, zoo.VOCABULARY, bias=False)
        nn.init.normal_(table.weight, std=tokens)
        if tied:
            head.weight = table.weight
        return nn.Sequential(table, TransformerBlock(32), TransformerBlock(32), nn.LayerNorm(32), head), zoo._tokens()

    return build


def sigmoids(depth: int, width: int) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        layers: list[nn.Module] = [nn.Linear(20, width), nn.Sigmoid()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width), nn.Sigmoid()]
        return nn.Sequential(*layers, nn.Linear(width, zoo.CLASSES)), zoo._vectors(16, 20)

    return build


def post(depth: int, attention_heads: int = 4) -> Callable[[], tuple[nn.Module, Any]]:
    def build() -> tuple[nn.Module, Any]:
        blocks = [TransformerBlock(32, DotProductAttention(32, attention_heads), order="post") for _ in range(depth)]
        return nn.Sequential(*blocks), zoo._vectors(4, 8, 32)

    return build


NO_WARMUP = {"warmup_steps": 0, "total_steps": 300}


def test_an_undone_cure_leaves_no_trace() -> None:
    model, batch = built(sigmoids(8, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    findings = audit(model, batch, local=False).findings
    with pytest.raises(ValueError, match="batch"):
        apply_cures(model, findings)
    undo = apply_cures(model, findings, batch)
    assert any(isinstance(module, nn.Tanh) for module in model.modules())
    undo()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_post_norm_is_no_alarm_without_a_plan_and_with_warmup() -> None:
    model, batch = built(post(3))
    assert audit(model, batch, local=False).findings == ()
    assert audit(model, batch, local=False, warmup_steps=40, total_steps=300).findings == ()
    assert audit(model, batch, local=False, **NO_WARMUP).findings[0].problem == "post_norm"
    advice = {finding.problem: finding for finding in audit(model, batch, local=False, total_steps=300).advice}
    assert advice["warmup"].value == 30
    assert advice["normalisation"].cure == "pre-norm"


def test_result_has_frame_json_html_and_text(tmp_path: Path) -> None:
    model, batch = built(sigmoids(8, 32))
    lines: list[str] = []
    result = lipadvisor.audit(model, batch, progress=lines.append, total_steps=100)
    assert lines[-1] == "done"
    assert list(result.modules["module"]) == [str(i) for i in range(17)]
    chain = result.modules
    assert chain["weight"].tolist() == pytest.approx([1.0] * 17)
    assert chain["share"].sum() == pytest.approx(result.network["log_bound"])
    assert (chain["gradient"] == "vanishes").any()
    assert result.network["backward_principle"] == "broken"
    data = json.loads(result.to_json())
    assert len(data["modules"]) == 17
    assert data["findings"][0]["problem"] == "vanishing"
    weights = [finding["weight"] for finding in data["findings"]]
    assert weights == sorted(weights, reverse=True)
    page = result.to_html("a <title>")
    assert "<svg" in page
    assert "a &lt;title&gt;" in page
    assert "http" not in page.split("<style>")[0]
    assert result.to_fragment() in page
    assert "<html" not in result.to_fragment()
    assert "vanishing" in result.table()


def test_gains_equal_the_jacobians() -> None:
    """A linear layer's gain on the tangent and cotangent that arrive, by hand."""
    layer = nn.Linear(6, 4, bias=False).double()
    model, x = nn.Sequential(layer), zoo._vectors(1, 6).double()
    row = audit(model, x).modules.iloc[0]
    norm = float(torch.linalg.matrix_norm(layer.weight.detach(), 2))
    least = float(torch.linalg.svdvals(layer.weight.detach())[-1])
    assert row["constant"] == pytest.approx(norm)
    assert 0 < row["forward_gain"] <= norm * (1 + 1e-6)
    assert least * (1 - 1e-6) <= row["backward_gain"] <= norm * (1 + 1e-6)
    expected = float((layer(x).detach() ** 2).mean().sqrt())
    assert row["rms_out"] == pytest.approx(expected)


def test_in_place_activations_have_gains_too() -> None:
    def build(inplace: bool) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            conv = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace), nn.Conv2d(8, 4, 3))
            return conv.append(nn.LeakyReLU(0.1, inplace=inplace))

    x = zoo._vectors(4, 3, 8, 8)
    plain, inplace = (audit(build(flag), x, local=False).modules for flag in (False, True))
    for column in ("forward_gain", "backward_gain", "rms_in", "rms_out", "gradient_out"):
        assert inplace[column].tolist() == pytest.approx(plain[column].tolist(), rel=1e-4, nan_ok=True)


@pytest.mark.parametrize(("gain", "problem"), [(0.3, "vanishing"), (math.sqrt(2), None), (5.0, "explosion")])
def test_deep_plain_networks_by_their_gain(gain: float, problem: str | None) -> None:
    g = torch.Generator().manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(20):
        layer = nn.Linear(32, 32)
        layer.weight.data = torch.randn(32, 32, generator=g) * gain / math.sqrt(32)
        layers += [layer, nn.ReLU()]
    model, x = nn.Sequential(*layers), zoo._vectors(8, 32)
    findings = audit(model, x, local=False).findings
    assert [finding.problem for finding in findings] == ([] if problem is None else [problem])
    if problem is not None:
        assert findings[0].cure == "lsuv"
        apply_cures(model, findings, x)
        assert audit(model, x, local=False).findings == ()


def test_audit_keeps_gradients_and_random_state() -> None:
    model, batch = built(zoo.mlp)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 2.0)
    state = torch.random.get_rng_state()
    audit(model, batch, loss=lambda output: output.square().mean())
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(bool((parameter.grad == 2).all()) for parameter in model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_a_loss_gives_sgd_a_learning_rate() -> None:
    model, batch = built(zoo.mlp)
    result = audit(model, batch, local=False, loss=lambda output: output.square().mean(), total_steps=1000)
    advice = {finding.problem: finding for finding in result.advice}
    assert advice["optimizer"].cure.startswith("SGD")
    assert advice["learning_rate"].cure.startswith("SGD")
    lr, worst = advice["learning_rate"].value, advice["learning_rate"].module
    assert lr is not None
    model.get_submodule(worst).zero_grad()
    (model(batch).square().mean()).backward()
    layer = model.get_submodule(worst)
    step = lr * float(torch.linalg.matrix_norm(layer.weight.grad, 2))
    assert step == pytest.approx(0.08 * float(torch.linalg.matrix_norm(layer.weight.detach(), 2)), rel=1e-4)
    decay = advice["weight_decay"].value
    assert decay is not None
    assert lr * decay * 1000 / 2 == pytest.approx(0.6)


@pytest.mark.parametrize("tied", [False, True])
def test_usual_tables_are_no_alarm(tied: bool) -> None:
    for size in (0.02, 0.3) if tied else (0.02, 1.0):
        model, batch = built(language(size, tied))
        assert audit(model, batch, local=False).findings == ()


def test_pooling_is_not_taken_for_vanishing() -> None:
    """A mean over the image shrinks the gradient of each place, but a filter's gradient sums over the places."""

    def build() -> tuple[nn.Module, Any]:
        layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()]
        for _ in range(4):
            layers += [nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, zoo.CLASSES)), zoo._images()

    model, batch = built(build)
    result = audit(model, batch, local=False)
    assert result.network["backward_spread"] > math.log(1000)
    assert result.findings == ()


def test_scores_that_cannot_be_scaled_are_refused() -> None:
    class Strange(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.beta = nn.Linear(32, 32), nn.Linear(32, 32)

        def forward(self, x: Tensor) -> Tensor:
            return x + (60 * self.alpha(x) @ self.beta(x).mT).softmax(-1) @ x

    model, batch = built(lambda: (nn.Sequential(Strange(), nn.Linear(32, 4)), zoo._vectors(4, 8, 32)))
    findings = audit(model, batch, local=False).findings
    assert findings[0].problem == "attention_logits"
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(ValueError, match="queries and keys of '0'"):
        apply_cures(model, findings, batch)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_bad_arguments() -> None:
    with pytest.raises(TypeError, match=r"audit\(model=...\)"):
        audit(3, torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="known module"):
        audit(nn.Sequential(), torch.ones(1, 2))
    with pytest.raises(ValueError, match=r"'0.weight' is lazy and has no value yet: call the model once first"):
        audit(nn.Sequential(nn.LazyLinear(2)), torch.ones(1, 2))
    with pytest.raises(ValueError, match="at least one sample"):
        audit(nn.Linear(2, 2), torch.ones(0, 2))
    model, batch = built(zoo.mlp)
    for arguments, message in (
        ({"beta2": 1.0}, r"audit\(beta2=...\)"),
        ({"warmup_steps": -1}, r"audit\(warmup_steps=...\)"),
        ({"total_steps": 0}, r"audit\(total_steps=...\)"),
    ):
        with pytest.raises(ValueError, match=message):
            audit(model, batch, **arguments)
