"""Short vectors as arrays give what tensors give, share their memory, and say as much when there is nothing to say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from lipadvisor.spectra import CgResolvent, GramResolvent, LinearOperator, curvature_form, refresh
from lipadvisor.spectra.change import moved_norm, turned_pair
from lipadvisor.spectra.conv2d import Conv2dOperator
from lipadvisor.spectra.rows import adjoint, apply, decomposed, orthonormal, quiet, rows, tensor, unit


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


OPERATORS = [LinearOperator(40, 50), LinearOperator(150, 90), Conv2dOperator((4, 6, 6), (5, 4, 3, 3), padding=(1, 1))]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("degree", [0, 2])
def test_a_refreshed_block_is_the_same_in_arrays(operator: LinearOperator | Conv2dOperator, degree: int) -> None:
    shape = getattr(operator, "kernel_shape", (operator.outputs, operator.inputs))
    kernel, start = random(2, *shape), unit(random(2, 5, operator.inputs, seed=1))
    image = operator.apply(kernel, start)
    block = refresh(operator, kernel, start, degree, image)
    with quiet():
        other = refresh(operator, kernel, rows(start), degree, rows(image))
    assert isinstance(other.u_RM, np.ndarray)
    torch.testing.assert_close(tensor(other.s_R), block.s_R, rtol=1e-12, atol=0)
    for ours, theirs in ((other.u_RM, block.u_RM), (other.v_RN, block.v_RN)):
        sign = (tensor(ours) * theirs).sum(-1, keepdim=True).sign()
        torch.testing.assert_close(tensor(ours) * sign, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
def test_curvature_and_prediction_are_the_same_in_arrays(operator: LinearOperator | Conv2dOperator) -> None:
    shape = getattr(operator, "kernel_shape", (operator.outputs, operator.inputs))
    kernel, change = random(2, *shape), random(2, *shape, seed=3) * 1e-2
    block = refresh(operator, kernel, unit(random(2, 6, operator.inputs, seed=1)), 8)
    found = []
    for one in (block, block.rows()):
        with quiet():
            resolvents = [CgResolvent(operator, kernel, one, 3)]
            if isinstance(operator, LinearOperator):
                resolvents.append(GramResolvent.build(kernel, one))  # type: ignore[arg-type]
            images = apply(operator, change, one.v_RN[:, :1]), adjoint(operator, change, one.u_RM[:, :1])
            forms = [curvature_form(one, resolvent, *images) for resolvent in resolvents]
            corner = one.u_RM @ apply(operator, kernel + change, one.v_RN).mT
            pair = turned_pair(one, corner)
            z = resolvents[0].both(None, *images)[0]
            top = moved_norm(one, corner, pair.turn_1R, *images, 1.0, z, apply(operator, kernel + change, z))
        found.append([tensor(x) for x in (*forms, top)])
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


def test_arrays_share_memory_and_swallow_what_is_not_finite() -> None:
    x = random(2, 3, 7)
    assert tensor(rows(x)).data_ptr() == x.data_ptr()
    bad = rows(x).copy()
    bad[0, 0, 0] = np.nan
    with quiet():
        for part in (*decomposed(bad @ bad.mT), unit(np.zeros((2, 3)))):
            assert np.isfinite(part).all()
    q, upper = orthonormal(rows(x))
    np.testing.assert_allclose(q @ q.mT, np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(upper.mT @ q, rows(x), atol=1e-12)
