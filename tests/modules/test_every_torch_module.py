"""Every class of torch.nn that takes an input has an entry, or a reason why not; recurrent layers and distances."""

import importlib
import inspect
import math
import pkgutil

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import Kind, constant_of, jacobian_of, no_entry
from lipadvisor.modules.recurrent import elman_bound
from lipadvisor.modules.registry import find_class

torch.set_num_threads(1)


def every_class() -> dict[str, type[nn.Module]]:
    """Public module classes below torch.nn.modules, by name."""
    found: dict[str, type[nn.Module]] = {}
    for info in pkgutil.iter_modules(nn.modules.__path__):
        for name, kind in vars(importlib.import_module(f"torch.nn.modules.{info.name}")).items():
            own = inspect.isclass(kind) and kind.__module__.startswith("torch.nn.modules.")
            if own and issubclass(kind, nn.Module) and not name.startswith("_"):
                found[kind.__name__] = kind
    return found


def has_input(kind: type[nn.Module]) -> bool:
    return kind.forward is not nn.Module.forward


@pytest.mark.parametrize("name", sorted(every_class()))
def test_every_class_has_an_entry_or_a_reason(name: str) -> None:
    kind = every_class()[name]
    entry, reason = find_class(kind), no_entry(kind)
    assert (entry is None) != (reason == ""), f"{name}: exactly one of entry and reason"
    if entry is None and has_input(kind):
        assert reason.startswith("a loss") or kind in (nn.Module, nn.Container)


def test_the_enumeration_sees_what_is_new() -> None:
    class Novel(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    assert len(every_class()) > 150
    assert find_class(Novel) is None
    assert no_entry(Novel) == ""
    Novel.__module__ = "torch.nn.modules.novel"
    assert no_entry(Novel) == ""


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def jacobian(function: object, *inputs: Tensor) -> Tensor:
    """Of all inputs jointly, by autograd."""
    parts = torch.autograd.functional.jacobian(function, inputs)
    return torch.cat(
        [part.reshape(part.shape[: part.ndim - x.ndim].numel(), -1) for part, x in zip(parts, inputs, strict=True)], 1
    )


def norm(J: Tensor) -> float:
    return float(torch.linalg.matrix_norm(J, 2))


def redrawn(module: nn.Module, scale: float, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    module = module.double().eval()
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 4
        parameter.data = scale * torch.randn(parameter.shape, generator=g, dtype=torch.float64) / math.sqrt(fan_in)
    return module


@pytest.mark.parametrize("nonlinearity", ["tanh", "relu"])
@pytest.mark.parametrize("seed", range(3))
def test_elman_cell(nonlinearity: str, seed: int) -> None:
    cell = redrawn(nn.RNNCell(3, 4, nonlinearity=nonlinearity), 1.0, seed)
    constant = constant_of(cell)
    assert constant.kind is Kind.UPPER
    x, h = random(1, 3, seed=seed), random(1, 4, seed=seed + 10)
    assert norm(jacobian(cell, x, h)) <= constant.value * (1 + 1e-9)
    by_input = torch.autograd.functional.jacobian(cell, x[0])
    torch.testing.assert_close(jacobian_of(cell, x[0]), by_input, atol=1e-8, rtol=1e-8)
    if nonlinearity == "tanh":  # met where the pre-activation is zero, which a bias-free cell reaches at the origin
        cell.bias_ih.data.zero_()
        cell.bias_hh.data.zero_()
        at_rest = norm(jacobian(cell, 0 * x, 0 * h))
        assert at_rest == pytest.approx(constant_of(cell).value, rel=1e-9)


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell])
def test_gated_cells_are_local(kind: type[nn.Module]) -> None:
    cell = redrawn(kind(3, 4), 1.0)
    states = [random(2, 4, seed=1), random(2, 4, seed=2)][: 2 if kind is nn.LSTMCell else 1]
    x = random(2, 3)

    def joint(x: Tensor, *states: Tensor) -> Tensor:
        return torch.cat(cell(x, states), -1) if kind is nn.LSTMCell else cell(x, *states)

    constant = constant_of(cell, x, *states)
    assert constant.kind is Kind.LOCAL
    assert "not Lipschitz" in constant.source
    assert constant.value == pytest.approx(norm(jacobian(joint, x, *states)), rel=1e-2)
    with pytest.raises(ValueError, match="needs an input"):
        constant_of(cell)


@pytest.mark.parametrize(
    ("layers", "bidirectional", "batch_first"), [(1, False, True), (2, False, False), (2, True, True)]
)
@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_recurrent_layers(kind: type[nn.Module], layers: int, bidirectional: bool, batch_first: bool) -> None:
    module = redrawn(kind(3, 4, layers, bidirectional=bidirectional, batch_first=batch_first), 0.7)
    x = random(2, 5, 3) if batch_first else random(5, 2, 3)
    last = 2 if bidirectional else 1

    def joint(x: Tensor) -> Tensor:
        output, final = module(x)
        hidden, cells = final if kind is nn.LSTM else (final, final[:0])
        return torch.cat([output.flatten(), hidden[:-last].flatten(), cells.flatten()])

    constant = constant_of(module, x)
    assert constant.kind is Kind.LOCAL
    assert constant.value == pytest.approx(norm(jacobian(joint, x)), rel=1e-2)
    if kind is nn.RNN:
        bound = elman_bound(module, 5)
        assert norm(jacobian(lambda x: module(x)[0], x)) <= bound
        assert bound <= elman_bound(module)
        assert f"at most {bound:.4g}" in constant.condition
        assert constant_of(module).kind is Kind.UPPER


def test_elman_bound_is_met_by_a_linear_chain() -> None:
    """One unit, weights 1 and 0.5, relu on positive inputs: |W| (1 + u + ...) is approached by constant sequences."""
    module = nn.RNN(1, 1, nonlinearity="relu", bias=False).double()
    module.weight_ih_l0.data.fill_(1.0)
    module.weight_hh_l0.data.fill_(0.5)
    x = torch.ones(60, 1, 1, dtype=torch.float64)
    J = jacobian(lambda x: module(x)[0], x)
    assert elman_bound(module) == pytest.approx(2.0)
    assert norm(J) == pytest.approx(2.0, rel=1e-2)
    assert norm(J) <= elman_bound(module, 60)
    module.weight_hh_l0.data.fill_(1.5)
    assert math.isinf(elman_bound(module))
    assert math.isfinite(elman_bound(module, 60))


@pytest.mark.parametrize("seed", range(5))
def test_cosine_similarity(seed: int) -> None:
    module = nn.CosineSimilarity(-1, eps=1e-3)
    x, y = random(4, 5, seed=seed), random(4, 5, seed=seed + 50)
    constant = constant_of(module, x, y)
    assert constant.kind is Kind.LOCAL
    assert constant.value == pytest.approx(norm(jacobian(module, x, y)), rel=1e-9)
    worst = constant_of(module)
    assert worst.kind is Kind.EXACT
    a, b = torch.zeros(1, 5, dtype=torch.float64), torch.zeros(1, 5, dtype=torch.float64)
    a[0, 0] = b[0, 1] = 1e-3 * (1 + 1e-9)
    assert norm(jacobian(module, a, b)) == pytest.approx(worst.value, rel=1e-6)
    for size in (1e-4, 5e-4, 1e-3, 2e-3, 1.0):  # nowhere above it
        assert norm(jacobian(module, size * x[:1], size * y[:1])) <= worst.value * (1 + 1e-9)
    shared = constant_of(module, x[:1], y)  # one row serves four outputs
    assert shared.value == pytest.approx(norm(jacobian(module, x[:1], y)), rel=1e-2)


@pytest.mark.parametrize("p", [1.0, 1.5, 2.0, 3.0, math.inf])
def test_pairwise_distance(p: float) -> None:
    module = nn.PairwiseDistance(p)
    x, y = random(3, 5), random(3, 5, seed=1)
    constant = constant_of(module, x, y)
    assert constant.kind is Kind.EXACT
    assert norm(jacobian(module, x, y)) <= constant.value * (1 + 1e-9)
    away = torch.ones(1, 5, dtype=torch.float64) if p < 2 else torch.eye(1, 5, dtype=torch.float64)
    assert norm(jacobian(module, away, 0 * away)) == pytest.approx(constant.value, rel=1e-2)
    assert math.isinf(constant_of(nn.PairwiseDistance(0.5), x, y).value)


@pytest.mark.parametrize("size", [2, 3, 4, 5])
def test_response_norm_across_channels_is_read_on_the_map_that_torch_computes(size: int) -> None:
    from lipadvisor.modules.distance import _window_powers

    module = nn.CrossMapLRN2d(size, alpha=0.5, beta=0.75, k=1.0)
    x = random(1, 6, 2, 2)
    torch.testing.assert_close(_window_powers(module, x), module(x))
    expected = norm(jacobian(lambda z: _window_powers(module, z), x))
    assert constant_of(module, x).value == pytest.approx(expected, rel=1e-2)


def test_adaptive_log_softmax() -> None:
    module = redrawn(nn.AdaptiveLogSoftmaxWithLoss(6, 12, [4, 8], div_value=2.0), 1.0)
    x, target = random(3, 6), torch.tensor([0, 5, 11])
    expected = norm(torch.autograd.functional.jacobian(lambda z: module(z, target).output, x).reshape(3, 18))
    constant = constant_of(module, x, target)
    assert constant.kind is Kind.LOCAL
    assert constant.value == pytest.approx(expected, rel=1e-2)


def test_lazy_modules_have_the_entries_of_what_they_become() -> None:
    for lazy, kind in ((nn.LazyLinear, nn.Linear), (nn.LazyBatchNorm2d, nn.BatchNorm2d), (nn.LazyConv1d, nn.Conv1d)):
        assert find_class(lazy).name == find_class(kind).name  # type: ignore[union-attr]
