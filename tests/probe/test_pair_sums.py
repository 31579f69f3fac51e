"""Samples of a matrix reduced to sums, against their gradients formed one by one; and trainings that use it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.pair_sums import PairSums, pair_sums
from lipadvisor.probe.strides import Strides
from lipadvisor.terms import Terms


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(pair: tuple[Tensor, Tensor], scale: Tensor | None) -> Tensor:
    whole = torch.einsum("btm,btn->bmn", pair[1], pair[0])
    return whole if scale is None else whole * scale


@pytest.mark.parametrize("places", [1, 5])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("signed", [False, True])
def test_calls_and_rounds_add_up_to_the_samples_gradients(places: int, scaled: bool, signed: bool) -> None:
    u, v, scale = drawn(0, 7), drawn(1, 4), drawn(2, 7, 4).abs() if scaled else None
    rounds, all_BMN, signs = [], [], []
    for turn, samples in enumerate((6, 3)):
        signs_KB = drawn(3 + turn, 4, samples).sign() if signed else None
        pairs = [(drawn(10 + turn, samples, t, 4), drawn(20 + turn, samples, t, 7)) for t in (places, places + 1)]
        calls = [pair_sums(u, v, pair, scale, True, signs_KB) for pair in pairs]
        one = PairSums.of_calls(calls)
        assert one is not None
        rounds.append(one)
        signs.append(signs_KB)
        all_BMN.append(sum((gradients(pair, scale) for pair in pairs), torch.zeros(())))
    found, g_BMN = PairSums.of_rounds(rounds), torch.cat(all_BMN)
    assert found.count == 9
    torch.testing.assert_close(found.scalars_B, torch.einsum("m,bmn,n->b", u, g_BMN, v))
    centred_BMN = g_BMN - g_BMN.mean(0)
    if signed:
        centred_BMN = torch.einsum("kb,bmn->kmn", torch.cat([x for x in signs if x is not None], 1), centred_BMN)
    image, coimage = found.centred()
    torch.testing.assert_close(image, centred_BMN @ v)
    torch.testing.assert_close(coimage, u @ centred_BMN)
    plain = pair_sums(u, v, pairs[0], scale, False, None)
    torch.testing.assert_close(plain.scalars_B, torch.einsum("m,bmn,n->b", u, gradients(pairs[0], scale), v))
    assert plain.image_KM is None


def test_calls_of_other_numbers_of_samples_do_not_add_up() -> None:
    u, v = drawn(0, 7), drawn(1, 4)
    calls = [pair_sums(u, v, (drawn(2, b, 1, 4), drawn(3, b, 1, 7)), None, False, None) for b in (3, 4)]
    assert PairSums.of_calls(calls) is None


def train(
    optimizer: str, level: str, clip: float | None = None, rounds: int = 1, steps: int = 4, written: int = -1
) -> tuple[list[Terms], Probe]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 160), nn.GELU(), nn.Linear(160, 10))
    options = {"lr": 0.05, "momentum": 0.9} if optimizer == "SGD" else {"lr": 1e-3}
    own = getattr(torch.optim, optimizer)(model.parameters(), **options)
    probe, found = Probe(model, own, level=level, interval=1), []
    generator = torch.Generator().manual_seed(0)
    for step in range(steps):
        x, y = torch.randn(256, 512, generator=generator), torch.randint(0, 10, (256,), generator=generator)
        probe.arm(step)
        own.zero_grad()
        for xs, ys in zip(x.chunk(rounds), y.chunk(rounds), strict=True):
            (nn.functional.cross_entropy(model(xs), ys) / rounds).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        probe.before_update()
        own.step()
        if step == written:
            with torch.no_grad():
                model[0].weight.mul_(1.01)  # type: ignore[operator]
        probe.after_update({0: options["lr"]}, {0: 0.0})
        terms = probe.collect(step)
        assert terms is not None
        found.append(terms)
    return found, probe


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW"])
@pytest.mark.parametrize(("clip", "rounds"), [(None, 1), (0.05, 1), (None, 2)])
def test_noise_is_the_same_whether_matrices_are_reduced_early_or_kept(
    optimizer: str, clip: float | None, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    early, probe = train(optimizer, "noise", clip, rounds)
    alone = clip is None and rounds == 1
    assert (0 in probe._capture.reduce_by) == (optimizer == "SGD" or alone)
    monkeypatch.setattr("lipadvisor.probe.meter.NoiseMeter.prepare", lambda self: None)
    late, _ = train(optimizer, "noise", clip, rounds)
    for one, other in zip(early, late, strict=True):
        assert one.status_L == other.status_L
        assert np.isfinite(one.noise_LL).all()
        np.testing.assert_allclose(one.noise_LL, other.noise_LL, rtol=1e-4, atol=1e-5 * np.diag(other.noise_LL).max())


@pytest.mark.parametrize("level", ["drift", "full"])
def test_a_step_read_from_momentum_is_that_of_the_weights(level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known, probe = train("SGD", level)
    assert any(pack.known for pack in probe._packs)
    tells: Callable[..., bool] = lambda self, pack: False  # noqa: E731
    monkeypatch.setattr(Strides, "tells", tells)
    copied, other = train("SGD", level)
    assert not any(pack.known for pack in other._packs)
    for one, two in zip(known, copied, strict=True):
        assert one.status_L == two.status_L
        np.testing.assert_allclose(one.log_norm_L, two.log_norm_L, atol=1e-6)
        size_L = np.abs(two.update_ratio_L)
        np.testing.assert_allclose(one.first_L, two.first_L, atol=2e-3 * float(size_L.max()))
        np.testing.assert_allclose(one.curvature_L, two.curvature_L, rtol=2e-3)
        np.testing.assert_allclose(one.update_ratio_L, two.update_ratio_L, rtol=2e-4)
        np.testing.assert_allclose(one.noise_curvature_L, two.noise_curvature_L, rtol=1e-4, equal_nan=True)


def test_a_step_that_is_not_what_momentum_says_is_told_and_copies_are_made_from_there_on() -> None:
    found, probe = train("SGD", "drift", written=1)
    assert probe._strides.doubted
    assert not any(pack.known for pack in probe._packs)
    assert np.isfinite(found[0].first_L).all()
    assert not np.isfinite(found[1].first_L[0])
    assert np.isfinite(found[2].first_L).all()
    assert np.isfinite(found[3].first_L).all()
