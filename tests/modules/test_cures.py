"""Cures: in rounds until nothing is left, one undo for all of them, and queries and keys found in every layout."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import zoo
from torch import Tensor, nn

from lipadvisor.modules import Finding, apply_cures, audit
from lipadvisor.modules.cures import query_key_views

torch.set_num_threads(1)


class SelfAttention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(dim, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, x, x, need_weights=False)[0]


def hidden_behind_sigmoids() -> tuple[nn.Module, Tensor]:
    """Sigmoids make all tokens alike, so that scores that are far too large differ by nothing, until they are cured."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(32, 32), nn.Sigmoid()]
        for _ in range(9):
            layers += [nn.Linear(32, 32), nn.Sigmoid()]
        model = nn.Sequential(*layers, SelfAttention(32), nn.Linear(32, 4))
        with torch.no_grad():
            model[20].attend.in_proj_weight[:64].mul_(6)
    return model, zoo._vectors(4, 8, 32)


def test_what_a_cure_uncovers_is_cured_too_and_one_undo_takes_all_back() -> None:
    model, x = hidden_behind_sigmoids()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    findings = audit(model, x, local=False).findings
    assert {finding.problem for finding in findings} == {"vanishing"}
    once = apply_cures(model, findings, x, rounds=1)
    assert [finding.problem for finding in once.remaining] == ["attention_logits"]
    once()
    cured = apply_cures(model, findings, x)
    assert cured.rounds == 2
    assert cured.remaining == ()
    assert cured.applied[: len(findings)] == findings
    assert [finding.problem for finding in cured.applied[len(findings) :]] == ["attention_logits"]
    assert audit(model, x, local=False).findings == ()
    cured()
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_plan_is_left_to_the_caller_and_bad_arguments_change_nothing() -> None:
    model, x = hidden_behind_sigmoids()
    before = copy.deepcopy(model.state_dict())
    warmup = Finding("0", "post_norm", "warmup 30", "a reason", "a source", 1.0, 30.0)
    cured = apply_cures(model, [warmup])
    assert (cured.plan, cured.applied, cured.remaining, cured.rounds) == ((warmup,), (), (), 0)
    findings = audit(model, x, local=False).findings
    with pytest.raises(ValueError, match=r"apply_cures\(rounds=...\) must be at least 1, got 0"):
        apply_cures(model, findings, x, rounds=0)
    with pytest.raises(ValueError, match=r"apply_cures\(batch=...\)"):
        apply_cures(model, findings)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_cure_that_fails_half_way_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipadvisor.modules import cures

    def fails(*_: Any) -> None:
        raise RuntimeError("half way")

    model, x = hidden_behind_sigmoids()
    before = copy.deepcopy(model.state_dict())
    findings = audit(model, x, local=False).findings
    monkeypatch.setattr(cures, "lsuv", fails)
    with pytest.raises(RuntimeError, match="half way"):
        apply_cures(model, findings, x)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(isinstance(module, nn.Tanh) for module in model.modules())


def test_what_no_cure_makes_better_ends_the_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    from lipadvisor.modules import cures

    model, x = hidden_behind_sigmoids()
    found = audit(model, x, local=False)
    monkeypatch.setattr(cures, "audit", lambda *_, **__: found)  # as if nothing had changed
    cured = apply_cures(model, found.findings[:1], x)
    assert cured.rounds == 2  # the first one is as bad as before; the others were new, once
    assert cured.remaining == found.findings


def neox() -> nn.Module:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    return GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=zoo.VOCABULARY, **zoo.SMALL))


def bloom() -> nn.Module:
    from transformers import BloomConfig, BloomForCausalLM

    return BloomForCausalLM(BloomConfig(vocab_size=zoo.VOCABULARY, hidden_size=32, n_layer=2, n_head=4))


def falcon(**options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from transformers import FalconConfig, FalconForCausalLM

        sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
        return FalconForCausalLM(FalconConfig(vocab_size=zoo.VOCABULARY, bias=True, **sizes, **options))

    return build


def shared_heads() -> nn.Module:
    from transformers import GPTBigCodeConfig, GPTBigCodeForCausalLM

    special = {"bos_token_id": 0, "eos_token_id": 0}
    return GPTBigCodeForCausalLM(
        GPTBigCodeConfig(vocab_size=zoo.VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=16, **special)
    )


PACKED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "neox": (neox, "gpt_neox.layers.{}.attention"),
    "bloom": (bloom, "transformer.h.{}.self_attention"),
    "falcon": (falcon(), "transformer.h.{}.self_attention"),
    "falcon_heads": (falcon(multi_query=False), "transformer.h.{}.self_attention"),
    "falcon_groups": (falcon(new_decoder_architecture=True, num_kv_heads=2), "transformer.h.{}.self_attention"),
    "bigcode": (shared_heads, "transformer.h.{}.attn"),
    "gpt2": (lambda: zoo.gpt2()[0], "transformer.h.{}.attn"),
}


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


@pytest.mark.parametrize("name", sorted(PACKED))
def test_views_are_the_queries_and_keys_and_nothing_else(name: str) -> None:
    """With the keys at zero the queries decide nothing; the rows that are in neither view (values) do."""
    pytest.importorskip("transformers")
    build, where = PACKED[name]
    model, tokens = built(build), zoo._tokens()
    g = torch.Generator().manual_seed(3)
    attention = model.get_submodule(where.format(1))
    views = query_key_views(attention)
    assert len(views) == 2
    with torch.no_grad():
        usual = model(tokens).logits
        views[1].zero_()
        keyless = model(tokens).logits
        views[0].copy_(torch.randn(views[0].shape, generator=g))
        torch.testing.assert_close(model(tokens).logits, keyless)
        packed = next(m for n, m in attention.named_modules() if n in ("query_key_value", "c_attn"))
        views[0].fill_(torch.nan)
        views[1].fill_(torch.nan)
        rest = ~packed.weight.isnan()
        packed.weight[~rest] = 0.0
        valueless = model(tokens).logits
        packed.weight[rest] = torch.randn(int(rest.sum()), generator=g)
        assert not torch.allclose(model(tokens).logits, valueless, atol=1e-3)
    assert not torch.equal(usual, keyless)


@pytest.mark.parametrize("name", ["neox", "bloom", "falcon", "falcon_heads", "falcon_groups"])
def test_interleaved_attention_is_read_and_cured(name: str) -> None:
    pytest.importorskip("transformers")
    build, where = PACKED[name]
    model, tokens = built(build), zoo._tokens()
    healthy = audit(model, tokens, local=False)
    assert healthy.findings == ()
    assert healthy.network["method"] == "export"
    with torch.no_grad():
        for view in query_key_views(model.get_submodule(where.format(1))):
            view.mul_(30**0.5 / view.square().mean().sqrt() / view.shape[-1] ** 0.5)
    (finding,) = audit(model, tokens, local=False).findings
    assert (finding.module, finding.problem) == (where.format(1), "attention_logits")
    broken = copy.deepcopy(model.state_dict())
    undo = apply_cures(model, [finding], tokens)
    assert undo.remaining == ()
    undo()
    assert all(torch.equal(broken[key], value) for key, value in model.state_dict().items())


def test_separate_projections_of_torchs_attention() -> None:
    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6)
    views = query_key_views(attention)
    assert [view.shape for view in views] == [(8, 8), (8, 6)]
    assert views[0].data_ptr() == attention.q_proj_weight.data_ptr()


def test_layouts_that_do_not_fit_are_refused() -> None:
    class Odd(nn.Module):
        def __init__(self, rows: int) -> None:
            super().__init__()
            self.num_heads, self.head_dim, self.query_key_value = 4, 8, nn.Linear(32, rows)

    assert query_key_views(Odd(96))
    assert query_key_views(Odd(90)) == []
    assert query_key_views(Odd(32 + 2 * 24)) == []  # three keys do not divide four heads
