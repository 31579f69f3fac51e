"""The bound through complex numbers, einsum and bags of embeddings: never below the local constant."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import audit, compose, local_lipschitz
from lipadvisor.modules.contractions import einsum_norms

torch.set_num_threads(1)


class Between(nn.Module):
    """An operation between two linear layers."""

    def __init__(self, operation: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.operation = nn.Linear(8, 8), operation
        self.mix = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.operation(self.first(x), self.mix))


def turned(h: Tensor, W: Tensor) -> Tensor:
    angles = torch.outer(torch.arange(float(h.shape[1])), torch.tensor([1.0, 0.1, 0.01, 0.001])).to(h.dtype)
    pairs = torch.view_as_complex(h.reshape(*h.shape[:-1], 4, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "fourier": lambda h, W: torch.fft.fftn(h, dim=(1, 2)).real,
    "modulus": lambda h, W: torch.fft.rfft(h, dim=1).abs(),
    "and back": lambda h, W: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 3j, n=h.shape[1], dim=1),
    "turned": turned,
    "complex tanh": lambda h, W: torch.tanh(torch.complex(h, 0.1 * h)).imag,
    "complex matrix": lambda h, W: (torch.fft.fft(h, norm="ortho") @ torch.complex(W, W.T)).abs(),
    "weight": lambda h, W: torch.einsum("bij,jk->bik", h, W),
    "scores": lambda h, W: torch.einsum("bid,bjd->bij", h, h),
    "ellipsis": lambda h, W: torch.einsum("...j,jk", h, W),
    "three": lambda h, W: torch.einsum("bij,jk,bik->bi", h, W, h),
    "trace": lambda h, W: torch.einsum("bij->b", h),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_between_modules_are_in_the_bound(name: str) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = Between(OPERATIONS[name]).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    composition = compose(model, x)
    assert composition.method == "export", composition.note
    local = math.log(local_lipschitz(model, x).value)
    assert local - 1e-6 <= composition.log_bound() < local + 5


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", ((3, 4), (4, 5))),
        ("bij,bkj->bik", ((2, 3, 4), (2, 5, 4))),
        ("bij,k->bk", ((2, 3, 4), (3,))),
        ("bii,bi->b", ((2, 3, 3), (2, 3))),
        ("...i,ij,...j", ((2, 3, 4), (4, 5), (2, 3, 5))),
        ("ab,ab", ((3, 4), (3, 4))),
        ("ij->ji", ((3, 4),)),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_norms_of_a_contraction_are_those_of_its_jacobian(
    equation: str, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    operands = [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]
    for i, found in enumerate(einsum_norms(equation, operands)):
        basis = torch.eye(operands[i].numel(), dtype=dtype).reshape(-1, *operands[i].shape)
        images = [torch.einsum(equation, *operands[:i], unit, *operands[i + 1 :]).flatten() for unit in basis]
        assert found == pytest.approx(float(torch.linalg.matrix_norm(torch.stack(images), 2)), rel=1e-9)


def test_a_contraction_that_broadcasts_is_not_understood() -> None:
    with pytest.raises(NotImplementedError, match="broadcasts"):
        einsum_norms("ij,ij->ij", [torch.ones(3, 4), torch.ones(1, 4)])


def test_a_bag_of_embeddings_is_a_source() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.EmbeddingBag(50, 16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        result = audit(model, torch.randint(50, (4, 6)))
    assert result.network["sources"] == ["0"]
    assert math.isfinite(result.network["log_local"])
    assert result.network["log_local"] - 1e-6 <= result.network["log_bound"] < 5


def shifted(h: Tensor, W: Tensor) -> Tensor:
    y = torch.zeros_like(h)
    y[:, 1:] = h[:, :-1]
    return y


def doubled(h: Tensor, W: Tensor) -> Tensor:
    kept, part = 1.0 * h, h[:, 1]
    h[:, 0] = 3 * part
    h += kept
    part.mul_(2)
    return h


def filled(h: Tensor, W: Tensor) -> Tensor:
    y = torch.zeros(2, 3, 5, 8, dtype=h.dtype)
    y[:] = h[:, None]
    return y.flatten(1).clone().clamp_(-2, 2)


def picked(h: Tensor, W: Tensor) -> Tensor:
    y = torch.ones_like(h)
    y[:, torch.tensor([0, 2])] = 2 * h[:, :2]
    return y


@pytest.mark.parametrize("operation", [shifted, doubled, filled, picked])
def test_writing_in_place_is_in_the_bound(operation: Callable[[Tensor, Tensor], Tensor]) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model, x = Between(operation).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    composition = compose(model, x)
    assert composition.method == "export", composition.note
    local = math.log(local_lipschitz(model, x).value)
    assert local - 1e-6 <= composition.log_bound() < local + 3


class Waves(nn.Module):
    """Complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(4, dtype=torch.complex64))
        self.mix, self.out = nn.Linear(4, 4, dtype=torch.complex64), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.out(self.mix(x * self.filter).abs())
        return y


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_complex_weights_and_inputs_are_audited(dtype: torch.dtype) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, x = Waves(), torch.randn(1, 4, dtype=dtype)
        result = audit(model, x)
    frame = result.modules.set_index("module")
    exact = float(torch.linalg.matrix_norm(model.mix.weight.detach(), 2))
    assert frame.loc["mix", "constant"] == pytest.approx(exact, rel=1e-6)
    assert result.network["bound_kind"] == "upper"
    assert frame.loc["mix", "forward_gain"] > 0

    def pairs(v: Tensor) -> Tensor:
        return model(torch.view_as_complex(v.reshape(4, 2)) if x.is_complex() else v)

    at = torch.view_as_real(x).flatten() if x.is_complex() else x.flatten()
    J = torch.autograd.functional.jacobian(pairs, at)
    true = math.log(float(torch.linalg.matrix_norm(J, 2)))
    assert result.network["log_local"] == pytest.approx(true, abs=1e-3)
