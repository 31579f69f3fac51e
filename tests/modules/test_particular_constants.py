"""Constants with a formula or a promise of their own, those without one, and entries that users add."""

import math

import pytest
import torch
from entries import generator, randomized
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipadvisor.modules import (
    CenterNorm,
    DotProductAttention,
    DropPath,
    Entry,
    Kind,
    L2Attention,
    ScaledCosineAttention,
    TransformerBlock,
    constant_of,
    jacobian_of,
    register,
)
from lipadvisor.modules.attention import dot_product_bound, inverse_x_exp

torch.set_num_threads(1)


def test_batch_norm_in_training_is_local_to_the_batch() -> None:
    module = randomized(nn.BatchNorm1d(3), 1).train()
    x = torch.randn(6, 3, generator=generator(2), dtype=torch.float64)
    J = torch.autograd.functional.jacobian(module, x).reshape(18, 18)
    constant = constant_of(module, x)
    assert constant.kind is Kind.LOCAL
    assert float(torch.linalg.matrix_norm(J, 2)) == pytest.approx(constant.value, rel=1e-6)


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_in_training_is_attained_by_a_mask(p: float) -> None:
    x = torch.ones(1, 4000)
    for module in (nn.Dropout(p), nn.AlphaDropout(p), DropPath(p, rescale=True)):
        torch.manual_seed(0)
        slopes = torch.autograd.grad(module.train()(x.requires_grad_(True)).sum(), x)[0] if p else x
        constant = constant_of(module)
        assert float(slopes.max()) <= constant.value * (1 + 1e-5)
        if not isinstance(module, DropPath):
            assert float(slopes.max()) == pytest.approx(constant.value, rel=1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_attention_bounds_over_sizes(tokens: int) -> None:
    g = generator(tokens)
    for module in (L2Attention(4, 2), ScaledCosineAttention(4, 2, tau=2.0, eps=0.05), DotProductAttention(4, 2)):
        randomized(module, tokens)
        for scale in (0.1, 1.0, 5.0):
            x = scale * torch.randn(tokens, 4, generator=g, dtype=torch.float64)
            here = float(torch.linalg.matrix_norm(jacobian_of(module, x), 2))
            if isinstance(module, DotProductAttention):
                bound = dot_product_bound(module, tokens, float(x.norm(dim=-1).max()))
            else:
                bound = constant_of(module, x.unsqueeze(0))
            assert bound.kind is Kind.UPPER
            assert here <= bound.value


def test_dot_product_attention_has_no_constant() -> None:
    assert math.isinf(constant_of(DotProductAttention(4)).value)


@pytest.mark.parametrize("y", [1e-6, 0.3, 1.0, 15.0, 4095.0])
def test_inverse_x_exp(y: float) -> None:
    c = inverse_x_exp(y)
    assert c * math.exp(c + 1) == pytest.approx(y, rel=1e-9)


def test_known_values() -> None:
    assert constant_of(nn.GELU()).value == pytest.approx(1.1289, abs=1e-4)
    assert constant_of(nn.SiLU()).value == pytest.approx(1.0998, abs=1e-4)
    assert constant_of(nn.SELU()).value == pytest.approx(1.7581, abs=1e-4)
    assert constant_of(nn.Sigmoid()).value == 0.25
    assert constant_of(nn.Softmax(-1)).value == 0.5
    assert constant_of(nn.AvgPool2d(3), torch.zeros(1, 2, 9, 9)).value == pytest.approx(1 / 3)
    assert constant_of(nn.AdaptiveAvgPool2d(1), torch.zeros(1, 2, 4, 5)).value == pytest.approx(20**-0.5)
    assert constant_of(nn.Dropout(0.2).train()).value == pytest.approx(1.25)
    assert math.isinf(constant_of(nn.Hardshrink(0.5)).value)
    assert math.isinf(constant_of(nn.Threshold(0.1, 7.0)).value)


def test_true_convolution_is_not_the_reshaped_matrix() -> None:
    conv = nn.Conv2d(6, 8, 3, padding=1, bias=False)
    conv.weight.data = torch.randn(conv.weight.shape, generator=generator(0))
    exact = constant_of(conv, torch.zeros(1, 6, 8, 8)).value
    reshaped = float(torch.linalg.matrix_norm(conv.weight.detach().flatten(1), 2))
    assert reshaped * 1.2 < exact < 3 * reshaped


def test_embedding() -> None:
    table = nn.Embedding(9, 4)
    W = table.weight.detach().double()
    constant = constant_of(table)
    assert constant.kind is Kind.UPPER
    assert constant.value == pytest.approx(float(torch.linalg.matrix_norm(W, 2)))
    pairs = max(float((W[i] - W[j]).norm()) / math.sqrt(2) for i in range(9) for j in range(i))
    assert f"{pairs:.6g}" in constant.condition
    assert pairs <= constant.value


@pytest.mark.parametrize("seed", range(4))
def test_weight_normalisation_keeps_what_it_guarantees(seed: int) -> None:
    """Whatever the direction, the constant is at most |g|; it is met where all rows point the same way."""
    module = randomized(parametrizations.weight_norm(nn.Linear(6, 5)), seed)
    g = module.parametrizations.weight.original0.detach()
    promised = float(g.norm())
    constant = constant_of(module)
    assert constant.kind is Kind.EXACT
    assert f"at most |g| = {promised:.6g}" in constant.condition
    assert constant.value <= promised * (1 + 1e-9)
    assert constant.value == pytest.approx(float(torch.linalg.matrix_norm(module.weight.detach(), 2)), rel=1e-9)
    with torch.no_grad():
        module.parametrizations.weight.original1.copy_(torch.ones(5, 6))
    assert constant_of(module).value == pytest.approx(promised, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_spectral_normalisation_approaches_one(seed: int) -> None:
    """In training each forward pass is a step of power iteration; a matrix ends at 1, whatever its size was."""
    module = randomized(parametrizations.spectral_norm(nn.Linear(6, 5)), seed, size=10.0).train()
    for _ in range(300):
        module(torch.ones(1, 6, dtype=torch.float64))
    module.eval()
    assert constant_of(module).value == pytest.approx(1.0, rel=1e-3)
    assert "1 once its power iteration has converged" in constant_of(module).condition
    conv = randomized(parametrizations.spectral_norm(nn.Conv2d(2, 3, 3, padding=1), n_power_iterations=200), seed)
    conv(torch.ones(1, 2, 6, 6, dtype=torch.float64))
    conv.eval()
    true = constant_of(conv, torch.zeros(1, 2, 6, 6)).value  # torch normalises the reshaped matrix, not the operator
    assert 1 / 3 <= true <= 3 * (1 + 1e-6)
    assert abs(true - 1) > 1e-2
    assert "which is not this operator" in constant_of(conv, torch.zeros(1, 2, 6, 6)).condition


@pytest.mark.parametrize("dim", [2, 3, 7])
def test_center_norm_formula(dim: int) -> None:
    """``d/(d-1)`` for gamma = 1, never above ``d/(d-1) max|gamma|``, met by a centred direction."""
    module = CenterNorm(dim).double()
    assert constant_of(module).value == pytest.approx(dim / (dim - 1), rel=1e-9)
    for seed in range(5):
        randomized(module, seed)
        bound = dim / (dim - 1) * float(module.weight.detach().abs().max())
        constant = constant_of(module)
        assert constant.kind is Kind.EXACT
        assert constant.value <= bound * (1 + 1e-9)
        _, _, V = torch.linalg.svd(jacobian_of(module, torch.zeros(dim, dtype=torch.float64)))
        moved = module(V[0]) - module(torch.zeros(dim, dtype=torch.float64))
        assert float(moved.detach().norm()) == pytest.approx(constant.value, rel=1e-9)


def test_rules_without_formula_are_local() -> None:
    g = generator(3)
    for module, shape in (
        (nn.LocalResponseNorm(2), (2, 3, 4, 4)),
        (nn.GRU(3, 4, batch_first=True), (2, 5, 3)),
        (nn.MultiheadAttention(4, 2, batch_first=True), (2, 3, 4)),
        (nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True), (2, 3, 4)),
        (nn.GLU(), (3, 6)),
    ):
        x = torch.randn(shape, generator=g, dtype=torch.float64)
        module.double().eval()
        copies = 3 if isinstance(module, nn.MultiheadAttention) else 1

        def first(z: Tensor, module: nn.Module = module, copies: int = copies) -> Tensor:
            y = module(*(z,) * copies)
            return y[0] if isinstance(y, tuple) else y

        J = torch.autograd.functional.jacobian(first, x).reshape(-1, x.numel())
        constant = constant_of(module, *(x,) * copies)
        assert constant.kind is Kind.LOCAL
        assert constant.value == pytest.approx(float(torch.linalg.matrix_norm(J, 2)), rel=1e-2)


def test_bilinear_is_local_in_both_inputs() -> None:
    g = generator(4)
    module = nn.Bilinear(3, 2, 4).double()
    x, y = (torch.randn(5, n, generator=g, dtype=torch.float64) for n in (3, 2))
    J = torch.autograd.functional.jacobian(lambda z: module(z[:, :3], z[:, 3:]), torch.cat([x, y], 1))
    expected = max(float(torch.linalg.matrix_norm(J[i, :, i], 2)) for i in range(5))
    assert constant_of(module, x, y).value == pytest.approx(expected, rel=1e-9)
    assert math.isinf(constant_of(module).value)


def test_users_register_their_own() -> None:
    class Doubled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    with pytest.raises(KeyError, match="register"):
        constant_of(Doubled())
    from lipadvisor.modules import Constant

    register(Doubled, Entry("doubled", lambda m, inputs: Constant(2.0, Kind.EXACT), lambda m, x: 2 * torch.eye(len(x))))
    assert constant_of(nn.Sequential(Doubled(), Doubled())).value == 4.0
    with pytest.raises(TypeError, match="register"):
        register(3, Entry("x", lambda m, inputs: Constant(2.0, Kind.EXACT)))  # type: ignore[arg-type]


def test_every_torch_activation_has_an_entry() -> None:
    from torch.nn.modules import activation

    from lipadvisor.modules import find

    build = {
        "Threshold": (0.0, 0.0),
        "MultiheadAttention": (4, 2),
        "Softmax": (-1,),
        "Softmin": (-1,),
        "LogSoftmax": (-1,),
    }
    for name in activation.__all__:
        assert find(getattr(activation, name)(*build.get(name, ()))) is not None, name


def test_bad_arguments_name_argument_rule_and_value() -> None:
    for call, message in (
        (lambda: DropPath(1.0), r"DropPath\(p=...\) must be in \[0, 1\), got 1.0"),
        (lambda: CenterNorm(1), r"CenterNorm\(dim=...\)"),
        (lambda: ScaledCosineAttention(4, tau=0.0), r"tau=...\) must be positive"),
        (lambda: DotProductAttention(5, 2), r"heads=...\) must divide"),
        (lambda: TransformerBlock(4, order="mid"), "order"),
        (lambda: constant_of(nn.Conv2d(1, 1, 3)), "needs an input"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
