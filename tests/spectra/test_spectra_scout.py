"""Groups that rise from outside of a tracked block: found, whatever the block knew of them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.spectra import Conv2dOperator, TrackedBlock, cold_start, refresh, residual, start_vectors
from lipadvisor.spectra.scout import looked_around, scout_vector, wants_scout

SIDE = 6


def operator(groups: int, channels: int) -> Conv2dOperator:
    return Conv2dOperator((channels, SIDE, SIDE), (channels, channels // groups, 3, 3), padding=(1, 1), groups=groups)


def norms_of_groups(kernel: Tensor, groups: int) -> Tensor:
    """Largest singular value (G,) of each group's dense operator."""
    blocks = kernel.double().unflatten(0, (groups, -1))
    one = Conv2dOperator((blocks.shape[2], SIDE, SIDE), (blocks.shape[1], blocks.shape[2], 3, 3), padding=(1, 1))
    eye = torch.eye(one.inputs, dtype=torch.float64)
    return torch.stack([torch.linalg.matrix_norm(one.apply(block, eye), 2) for block in blocks])


@pytest.mark.parametrize(("groups", "channels"), [(12, 12), (8, 16)])
def test_a_group_that_was_forgotten_is_found_when_it_rises(groups: int, channels: int) -> None:
    conv = operator(groups, channels)
    generator = torch.Generator().manual_seed(0)
    kernel = torch.randn(channels, channels // groups, 3, 3, generator=generator)
    of_group_G = torch.linspace(1.0, 0.3, groups) / norms_of_groups(kernel, groups).float()
    start = start_vectors(conv, 6, kernel, generator)[None]
    rise = range(120, 180)
    block, scout, worst = None, torch.empty(0), 0.0
    for step in range(200):
        if step in rise:
            of_group_G[groups - 2] *= 1.03
        scaled = (kernel * of_group_G.repeat_interleave(channels // groups)[:, None, None, None])[None]
        if block is None:
            block = cold_start(conv, scaled, start)
            scout = scout_vector(conv, scaled, start[:, :1])
        else:
            block = refresh(conv, scaled, block.v_RN, 0, conv.apply(scaled, block.v_RN))
        block, off_l1, scout = looked_around(conv, scaled, block, residual(conv, scaled, block), scout)
        truth = float(norms_of_groups(scaled[0], groups).max())
        worst = max(worst, abs(float(block.s_R[0, 0]) / truth - 1.0))
        eye = torch.eye(6)
        assert float((block.v_RN[0] @ block.v_RN[0].mT - eye).abs().max()) < 0.2
        assert float(off_l1) < 0.2
    assert worst < 2e-3
    assert float(of_group_G[groups - 2] * norms_of_groups(kernel, groups)[groups - 2]) > 1.5


def test_a_pair_from_outside_of_the_block_satisfies_what_its_pairs_do() -> None:
    conv, groups = operator(9, 9), 9
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(1, 9, 1, 3, 3, generator=generator, dtype=torch.float64)
    block = cold_start(conv, kernel, start_vectors(conv, 6, kernel[0], generator)[None])
    scout = scout_vector(conv, kernel, start_vectors(conv, 1, kernel[0], generator)[None])
    kernel[0, int(norms_of_groups(kernel[0], groups).argmin())] *= 20.0
    block = refresh(conv, kernel, block.v_RN, 0)
    found, off_l1, _ = looked_around(conv, kernel, block, torch.zeros(1, 1, dtype=torch.float64), scout)
    assert isinstance(found, TrackedBlock)
    assert float(found.s_R[0, 0]) > 2.0 * float(block.s_R[0, 0])
    assert 0.0 < float(off_l1) < 0.5
    assert bool((found.s_R.diff() <= 0).all())
    back = conv.adjoint(kernel, found.u_RM)
    np.testing.assert_allclose(back[:, :1], found.s_R[:, :1, None] * found.v_RN[:, :1], atol=1e-12)


def test_groups_of_zeros_or_of_no_numbers_wait() -> None:
    conv = operator(9, 9)
    generator = torch.Generator().manual_seed(1)
    kernel = torch.randn(1, 9, 1, 3, 3, generator=generator)
    scout = scout_vector(conv, kernel, start_vectors(conv, 1, kernel[0], generator)[None])
    gone = kernel.clone()
    gone[0, 3], gone[0, 4] = 0.0, float("nan")
    block = cold_start(conv, kernel, start_vectors(conv, 6, kernel[0], generator)[None])
    _, _, kept = looked_around(conv, gone, block, torch.zeros(1, 1), scout)
    waiting, before = kept.reshape(9, -1)[3:5], scout.reshape(9, -1)[3:5]
    torch.testing.assert_close(waiting, before)
    assert wants_scout(conv, 6)
    assert not wants_scout(operator(1, 9), 6)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depth, self.head = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(torch.tanh(self.depth(x)).mean((2, 3)))
        return y


def steps(
    model: nn.Module, probe: Probe, optimizer: torch.optim.Optimizer, numbers: range
) -> list[tuple[float, float]]:
    """Log-norms before and after each step: a quiet channel grows to be the largest."""
    found = []
    for step in numbers:
        generator = torch.Generator().manual_seed(step)
        probe.arm(step)
        optimizer.zero_grad()
        model(torch.randn(4, 16, SIDE, SIDE, generator=generator)).square().mean().backward()
        probe.before_update()
        optimizer.step()
        with torch.no_grad():
            model.depth.weight[5].mul_(1.06)
        probe.after_update({0: 1e-3}, {})
        terms = probe.collect(step)
        assert terms is not None
        found.append((float(terms.log_norm_L[0]), float(terms.log_norm_after_L[0])))
    return found


def test_a_depthwise_layer_keeps_its_norm_and_goes_on_alike_after_a_resume() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Depthwise()
    with torch.no_grad():
        model.depth.weight[5] *= 0.05
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    probe = Probe(model, optimizer, interval=1, level="drift", example_input=torch.randn(2, 16, SIDE, SIDE))
    steps(model, probe, optimizer, range(70))
    saved = copy.deepcopy((model.state_dict(), probe.state_dict()))
    expected = steps(model, probe, optimizer, range(70, 80))
    exact = float(norms_of_groups(model.depth.weight.detach(), 16).max().log())
    assert expected[-1][1] == pytest.approx(exact, abs=1e-4)
    for scouts in (True, False):  # checkpoints of earlier versions have none
        again = Depthwise()
        again.load_state_dict(saved[0])
        optimizer = torch.optim.SGD(again.parameters(), lr=1e-3)
        resumed = Probe(again, optimizer, interval=1, level="drift")
        state = saved[1] if scouts else {key: value for key, value in saved[1].items() if key != "scouts"}
        resumed.load_state_dict(copy.deepcopy(state))
        found = steps(again, resumed, optimizer, range(70, 80))
        np.testing.assert_allclose(found, expected, rtol=0.0 if scouts else 1e-5)
