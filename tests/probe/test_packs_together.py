"""Packs that are worked together give what each gives alone, padded and rank-deficient layers included."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from lipadvisor.experiments.reproduce.convnet import conv_net
from lipadvisor.probe import Probe, together
from lipadvisor.spectra import LinearOperator, TrackedBlock, refresh
from lipadvisor.spectra.joined import JoinedOperator, filled
from lipadvisor.spectra.rows import adjoint, apply, rows, whitening
from lipadvisor.terms import Terms

NETWORKS = {
    "matrices": lambda: nn.Sequential(
        nn.Linear(60, 150), nn.Tanh(), nn.Linear(150, 140), nn.Tanh(), nn.Linear(140, 30)
    ),
    "exact matrices": lambda: nn.Sequential(nn.Linear(130, 40), nn.Tanh(), nn.Linear(40, 50), nn.Linear(50, 30)),
    "convolutions": lambda: conv_net((1, 8, 8), 10, width=8),
}
FIELDS = ("log_norm_L", "gap_L", "first_L", "curvature_L", "change_L", "update_ratio_L", "noise_L", "row_ratio_L")


def trained(name: str, dtype: torch.dtype, steps: int = 6) -> list[Terms]:
    """Return the terms of the first steps of a training, all measured."""
    torch.manual_seed(0)
    model = NETWORKS[name]().to(dtype)
    shape = (1, 8, 8) if name == "convolutions" else (model[0].in_features,)
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3, momentum=0.9)
    probe, found = (
        Probe(model, optimizer, level="noise", interval=1, example_input=torch.randn(2, *shape).to(dtype)),
        [],
    )
    for step in range(steps):
        x, y = torch.randn(24, *shape).to(dtype), torch.randint(0, 10, (24,))
        probe.arm(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 2e-3}, {0: 0.0})
        terms = probe.collect(step)
        assert terms is not None
        found.append(terms)
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_packs_together_are_packs_alone(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    joins: list[int] = []
    passage = together._joined_passage
    monkeypatch.setattr(
        together, "_joined_passage", lambda packs, *more: joins.append(len(packs)) or passage(packs, *more)
    )
    ours = trained(name, dtype)
    assert joins
    monkeypatch.setattr(together, "_kind", lambda number, *_: number)
    del joins[:]
    alone = trained(name, dtype)
    assert not joins
    tolerance, rounding = (1e-9, 1e-12) if dtype == torch.float64 else (2e-3, 1e-6)
    for mine, theirs in zip(ours, alone, strict=True):
        for field in FIELDS:
            if field == "noise_L":
                a, b = np.diag(mine.noise_LL), np.diag(theirs.noise_LL)
            else:
                a, b = getattr(mine, field), getattr(theirs, field)
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max() + rounding, err_msg=field)


def test_joined_operators_are_their_parts() -> None:
    parts, counts = (LinearOperator(20, 30), LinearOperator(40, 10)), (2, 3)
    joined = JoinedOperator(parts, counts)
    generator = torch.Generator().manual_seed(0)
    kernels = tuple(
        torch.randn(n, part.outputs, part.inputs, generator=generator) for part, n in zip(parts, counts, strict=True)
    )
    x = [rows(torch.randn(n, 4, part.inputs, generator=generator)) for part, n in zip(parts, counts, strict=True)]
    y = [rows(torch.randn(n, 4, part.outputs, generator=generator)) for part, n in zip(parts, counts, strict=True)]
    image, coimage = apply(joined, kernels, filled(x, 30)), adjoint(joined, kernels, filled(y, 40))
    for part, kernel, one, found in zip(parts, kernels, x, joined.outward(image), strict=True):
        np.testing.assert_allclose(found, apply(part, kernel, one), rtol=1e-6)
    for part, kernel, one, found in zip(parts, kernels, y, joined.inward(coimage), strict=True):
        np.testing.assert_allclose(found, adjoint(part, kernel, one), rtol=1e-6)
    assert not image[:2, :, 20:].any()
    assert not coimage[2:, :, 10:].any()


def test_a_layer_of_low_rank_beside_others_keeps_orthonormal_vectors() -> None:
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(3, 40, 50, generator=generator, dtype=torch.float64)
    kernel[1] = 0.0
    kernel[2, 5:] = 0.0
    kernel[2, :, 5:] = 0.0
    operator = LinearOperator(40, 50)
    start = torch.linalg.qr(torch.randn(3, 50, 8, generator=generator, dtype=torch.float64))[0].mT.contiguous()
    block: TrackedBlock = refresh(operator, kernel, rows(start), 2, rows(operator.apply(kernel, start)))
    eye = np.broadcast_to(np.eye(8), (3, 8, 8))
    np.testing.assert_allclose(block.u_RM @ block.u_RM.mT, eye, atol=1e-10)
    np.testing.assert_allclose(block.v_RN @ block.v_RN.mT, eye, atol=1e-10)
    np.testing.assert_allclose(block.s_R[2, :5], torch.linalg.svdvals(kernel[2])[:5], rtol=1e-6)
    assert whitening(rows(operator.apply(kernel, start)), 0.5) is None


def test_gains_that_overtake_each_other_are_read_off_and_not_followed() -> None:
    """Nothing ties the entries of a diagonal together: one from outside of a joined block would never be found."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(20, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 70), nn.RMSNorm(70), nn.Linear(70, 5)
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    probe = Probe(model, optimizer, interval=1, gains=True, level="drift")
    data = torch.Generator().manual_seed(1)
    for step in range(20):
        x = torch.randn(32, 20, generator=data)
        probe.arm(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), x[:, :5].argmax(1)).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 3e-3}, {})
        terms = probe.collect(step)
        assert terms is not None
        for index, layer in enumerate(probe.layers):
            if layer.weight.dim() == 1:
                largest = float(layer.weight.detach().abs().max())
                assert np.exp(terms.log_norm_after_L[index]) == pytest.approx(largest, rel=1e-6)
