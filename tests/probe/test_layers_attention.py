"""``nn.MultiheadAttention``, fused function included: terms of each projection against single samples."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from layer_twins import Batch, build, check_step, take_step
from torch import Tensor, nn

from lipadvisor.apply import Applier
from lipadvisor.policies import Decision
from lipadvisor.probe import Probe
from lipadvisor.probe.kinds.attention import ProjectionUse
from lipadvisor.probe.layers import Targets


def data(length: int = 5, width: int = 8, count: int = 4, samples: int = 6) -> list[Batch]:
    generator = torch.Generator().manual_seed(6)
    return [
        (
            torch.randn(samples, length, width, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (samples,), generator=generator),
        )
        for _ in range(count)
    ]


class Attending(nn.Module):
    """Attention over a sequence, mean over places, head; how it is called is for the case to say."""

    def __init__(self, call: Callable[[nn.MultiheadAttention, Tensor], Tensor], **options: Any) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)
        self.head, self.call = nn.Linear(8, 3), call

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.call(self.attention, x)).mean(1))
        return y


def plain(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    y: Tensor = attention(x, x, x)[0]
    return y


def fused(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
    y: Tensor = attention(x, x, x, need_weights=False, attn_mask=mask, is_causal=True)[0]
    return y


def masked(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    padding = torch.zeros(x.shape[:2], dtype=torch.bool)
    padding[:, -1] = True
    y: Tensor = attention(x, key=x.flip(1), value=x * 2, key_padding_mask=padding)[0]
    return y


def crossed(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    y: Tensor = attention(x[:, :3], x[..., :6], x[..., :4], need_weights=False)[0]
    return y


def sequence_first(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
    x = x.transpose(0, 1)
    y: Tensor = attention(x, x, x, need_weights=False)[0]
    return y.transpose(0, 1)


CASES: dict[str, Callable[[], nn.Module]] = {
    "plain": lambda: Attending(plain, batch_first=True),
    "fused_causal": lambda: Attending(fused, batch_first=True, bias=False),
    "masked": lambda: Attending(masked, batch_first=True, add_zero_attn=True, add_bias_kv=True),
    "crossed": lambda: Attending(crossed, batch_first=True, kdim=6, vdim=4),
    "sequence_first": lambda: Attending(sequence_first),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("adam", [False, True])
def test_terms_of_each_projection_are_those_of_single_samples(case: str, adam: bool) -> None:
    model = build(CASES[case])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3) if adam else torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    terms = check_step(model, optimizer, probe, data())
    projections = [f"attention.{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    assert terms.names == (*projections, "head")
    assert set(terms.kinds) == {"linear"}
    assert np.isfinite(terms.noise_curvature_L).all()
    assert {skip.name for skip in probe.skipped} <= {"*.bias"}


def test_parts_of_the_packed_weight_are_scaled_one_by_one() -> None:
    attention = build(lambda: nn.MultiheadAttention(8, 2))
    assert isinstance(attention, nn.MultiheadAttention)
    probe = Probe(attention, torch.optim.SGD(attention.parameters(), lr=0.1))
    before = attention.in_proj_weight.detach().clone()
    probe.spectrum()
    part = probe.layers[1].target
    assert part is not None
    part.mul_(2.0)
    after = attention.in_proj_weight.detach()
    torch.testing.assert_close(after[8:16], 2 * before[8:16])
    torch.testing.assert_close(after[:8], before[:8])
    doubled = probe.spectrum().log_norm_L[1]
    assert doubled == pytest.approx(float(torch.linalg.svdvals(2 * before[8:16])[0].log()), abs=1e-6)


def test_a_part_of_a_packed_weight_is_scaled_after_a_change_of_type_too() -> None:
    attention = build(lambda: nn.MultiheadAttention(8, 2))
    optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
    applier = Applier(optimizer, Targets(Probe(attention, optimizer).layers))
    attention.double()  # the parameter stays, its tensor is another one
    before = attention.in_proj_weight.detach().clone()
    applied = applier.apply(Decision(0, "p", "r", (), init_scale=(("k_proj", 0.5),)))
    assert applied.refused == ()
    before[8:16] *= 0.5
    torch.testing.assert_close(attention.in_proj_weight.detach(), before, rtol=0, atol=0)


@pytest.mark.parametrize("need_weights", [False, True])
def test_dropout_is_the_same_when_the_attention_is_worked_out_again(need_weights: bool) -> None:
    def call(attention: nn.MultiheadAttention, x: Tensor) -> Tensor:
        y: Tensor = attention(x, x, x, need_weights=need_weights)[0]
        return y

    model = build(lambda: Attending(call, batch_first=True, dropout=0.4))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    probe = Probe(model, optimizer, interval=1)
    x, y = data()[0]
    with torch.random.fork_rng():
        torch.manual_seed(3)
        probe.arm(0)
        nn.functional.cross_entropy(model(x), y).backward()
        state = torch.get_rng_state()
        for index, layer in enumerate(probe.layers):
            batch = probe._capture.batch(index)
            assert isinstance(batch, tuple)
            inputs, grads = (t.flatten(0, 1) for t in batch)
            assert layer.weight.grad is not None
            torch.testing.assert_close(grads.mT @ inputs, layer.view(layer.weight.grad), rtol=1e-10, atol=1e-13)
        assert torch.equal(state, torch.get_rng_state())
    probe.close()


def test_an_encoder_layer_is_measured_whole() -> None:
    def make() -> nn.Module:
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        return nn.Sequential(layer, nn.Flatten(), nn.Linear(40, 3))

    model = build(make)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1)
    terms = check_step(model, optimizer, probe, data())
    assert len(terms.names) == 7


def test_nothing_of_a_call_is_held_once_it_is_measured() -> None:
    model = build(CASES["plain"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, interval=1)
    x, y = data()[0]
    x.requires_grad_()
    seen = weakref.ref(x)
    take_step(model, optimizer, probe, (x, y), 0, nn.functional.cross_entropy)
    use = probe.layers[0].uses[0]
    assert isinstance(use, ProjectionUse)
    assert use.reader._last is None
    del x, y
    gc.collect()
    assert seen() is None


def test_globs_pick_projections() -> None:
    model = build(CASES["plain"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, include=("attention.*",), exclude=("*.k_proj", "*.out_proj"))
    assert [layer.name for layer in probe.layers] == ["attention.q_proj", "attention.v_proj"]
    reasons = {skip.name: skip.reason for skip in probe.skipped}
    assert set(reasons) == {"attention.k_proj", "attention.out_proj", "head", "*.bias"}
    assert reasons["attention.k_proj"] == "excluded by name"
