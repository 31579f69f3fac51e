"""Every entry: its Jacobian equals autograd's, its constant bounds what a search finds, and is found where exact."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from lipadvisor.modules import (
    CenterNorm,
    DotProductAttention,
    DropPath,
    Entry,
    FeedForward,
    Kind,
    L2Attention,
    Residual,
    ResNetBlock,
    ScaledCosineAttention,
    TransformerBlock,
    constant_of,
    jacobian_of,
    register,
)
from lipadvisor.modules.attention import dot_product_bound, inverse_x_exp

torch.set_num_threads(1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randomized(module: nn.Module, seed: int = 0, size: float = 1.0) -> nn.Module:
    """In float64, with every parameter and running variance redrawn."""
    g = generator(seed)
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
        parameter.data = torch.randn(parameter.shape, generator=g, dtype=torch.float64) * size / math.sqrt(fan_in)
    for name, buffer in module.named_buffers():
        if name.endswith("running_var"):
            buffer.data = torch.rand(buffer.shape, generator=g) + 0.5
    return module.double()


def seeded(build: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    return randomized(build(), seed).eval()


ACTIVATIONS = {
    "identity": nn.Identity,
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hardtanh": lambda: nn.Hardtanh(-0.5, 2.0),
    "leaky": lambda: nn.LeakyReLU(0.2),
    "leaky_steep": lambda: nn.LeakyReLU(2.5),
    "rrelu": nn.RReLU,
    "sigmoid": nn.Sigmoid,
    "hardsigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "tanhshrink": nn.Tanhshrink,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "elu": lambda: nn.ELU(1.7),
    "celu": lambda: nn.CELU(0.5),
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "softplus": lambda: nn.Softplus(beta=2.0),
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "softshrink": lambda: nn.Softshrink(0.3),
}
OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "prelu": (lambda: nn.PReLU(3), (3, 4)),
    "threshold": (lambda: nn.Threshold(0.1, 0.1), (6,)),
    "hardshrink": (lambda: nn.Hardshrink(0.3), (6,)),
    "softmax": (lambda: nn.Softmax(-1), (3, 5)),
    "softmin": (lambda: nn.Softmin(-1), (5,)),
    "softmax2d": (nn.Softmax2d, (3, 2, 2)),
    "log_softmax": (lambda: nn.LogSoftmax(-1), (4,)),
    "linear": (lambda: nn.Linear(4, 3), (5, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3, padding=1), (2, 7)),
    "conv2d_strided": (lambda: nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (4, 6, 5)),
    "conv2d_dilated": (lambda: nn.Conv2d(2, 3, 3, dilation=2, padding=2), (2, 6, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 2, 2), (1, 3, 3, 3)),
    "conv_transpose1d": (lambda: nn.ConvTranspose1d(2, 2, 3, 2), (2, 5)),
    "conv_transpose2d": (lambda: nn.ConvTranspose2d(2, 3, 3, 2, 1), (2, 4, 4)),
    "conv_transpose3d": (lambda: nn.ConvTranspose3d(1, 2, 2), (1, 2, 2, 2)),
    "avg_pool": (lambda: nn.AvgPool2d(2), (2, 4, 4)),
    "avg_pool_overlapping": (lambda: nn.AvgPool2d(3, 1, 1), (2, 4, 4)),
    "global_average": (lambda: nn.AdaptiveAvgPool2d(1), (2, 4, 4)),
    "max_pool": (lambda: nn.MaxPool2d(2), (2, 4, 4)),
    "max_pool_overlapping": (lambda: nn.MaxPool2d(3, 2, 1), (2, 6, 6)),
    "max_pool_ceil": (lambda: nn.MaxPool2d(3, 2, ceil_mode=True), (1, 6, 6)),
    "max_pool_dilated": (lambda: nn.MaxPool1d(3, 1, dilation=2), (2, 9)),
    "pixel_shuffle": (lambda: nn.PixelShuffle(2), (4, 2, 2)),
    "upsample": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), (2, 3, 3)),
    "reflection_pad": (lambda: nn.ReflectionPad2d(1), (2, 3, 3)),
    "unfold": (lambda: nn.Unfold(2), (2, 3, 3)),
    "batch_norm": (lambda: nn.BatchNorm2d(3), (3, 2, 2)),
    "instance_norm_running": (lambda: nn.InstanceNorm1d(3, affine=True, track_running_stats=True), (3, 4)),
    "dropout": (lambda: nn.Dropout(0.4), (6,)),
    "center_norm": (lambda: CenterNorm(5), (3, 5)),
    "drop_path": (lambda: DropPath(0.3), (5,)),
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 3)), (4,)),
    "weight_norm_whole": (lambda: parametrizations.weight_norm(nn.Linear(4, 3), dim=None), (4,)),
    "weight_norm_conv": (lambda: parametrizations.weight_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Linear(4, 3)), (4,)),
    "spectral_norm_conv": (lambda: parametrizations.spectral_norm(nn.Conv2d(2, 3, 3, padding=1)), (2, 4, 4)),
    "center_norm_wide": (lambda: CenterNorm(9), (9,)),
}
NORMALIZATIONS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "layer_norm": (lambda: nn.LayerNorm(5), (3, 5)),
    "layer_norm_2": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4)),
    "rms_norm": (lambda: nn.RMSNorm(5), (3, 5)),
    "group_norm": (lambda: nn.GroupNorm(2, 4), (4, 3, 2)),
    "instance_norm": (lambda: nn.InstanceNorm1d(3, affine=True), (3, 6)),
}
COMPOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "dot_product": (lambda: DotProductAttention(6, 2), (4, 6)),
    "dot_product_causal": (lambda: DotProductAttention(4, 1, causal=True), (5, 4)),
    "l2": (lambda: L2Attention(6, 2), (4, 6)),
    "cosine": (lambda: ScaledCosineAttention(6, 2, tau=3.0, eps=0.1), (4, 6)),
    "residual": (lambda: Residual(nn.Linear(5, 5)), (5,)),
    "residual_weighted": (lambda: Residual(nn.Sequential(nn.Linear(5, 5), nn.Tanh()), alpha=0.3), (5,)),
    "residual_drop_path": (lambda: Residual(nn.Sequential(nn.Linear(5, 5), DropPath(0.4))), (5,)),
    "feed_forward": (lambda: FeedForward(4, 7), (3, 4)),
    "resnet_block": (lambda: ResNetBlock(2, 3, 2), (2, 6, 6)),
    "transformer_pre": (lambda: TransformerBlock(4, DotProductAttention(4, 2), 6), (3, 4)),
    "transformer_post": (lambda: TransformerBlock(4, L2Attention(4, 2), 6, order="post"), (3, 4)),
}
EXACT = {name: (build, (6,)) for name, build in ACTIVATIONS.items()} | OTHERS
EVERY = EXACT | NORMALIZATIONS | COMPOSED
NOT_LIPSCHITZ = {"hardshrink"}


def autograd_jacobian(module: nn.Module, x: Tensor) -> Tensor:
    J = torch.autograd.functional.jacobian(lambda z: module(z.unsqueeze(0)).squeeze(0), x)
    return J.reshape(-1, x.numel())


@pytest.mark.parametrize("name", sorted(EVERY))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_analytic_jacobian_is_autograds(name: str, seed: int) -> None:
    build, shape = EVERY[name]
    module = seeded(build, seed)
    x = torch.randn(shape, generator=generator(seed + 10), dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        expected = autograd_jacobian(module, x)
    torch.testing.assert_close(jacobian_of(module, x), expected, atol=1e-8, rtol=1e-8)


def searched(module: nn.Module, shape: tuple[int, ...], seed: int, steps: int = 100) -> float:
    """Gradient ascent on the Jacobian's top singular value from several starts: the largest norm that it met."""
    best = 0.0
    g = generator(seed)
    for start in range(6):
        x = torch.randn(shape, generator=g, dtype=torch.float64) * 10.0 ** (start - 3)
        if start % 2:  # one entry stands out: it wins every window that holds it
            x = torch.zeros(shape, dtype=torch.float64)
            x[tuple(max(length // 2 - start // 2, 0) for length in shape)] = 10.0 ** (start - 3)
        x.requires_grad_(True)
        optimizer = torch.optim.Adam([x], lr=0.1)
        for _ in range(steps):
            with torch.enable_grad(), torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
                J = torch.autograd.functional.jacobian(
                    lambda z: module(z.unsqueeze(0)).squeeze(0), x, create_graph=True
                ).reshape(-1, x.numel())
                norm = torch.linalg.matrix_norm(J, 2)
            best = max(best, float(norm.detach()))
            if not norm.requires_grad:  # the Jacobian does not depend on x
                break
            optimizer.zero_grad()
            try:
                (-norm.log()).backward()
            except RuntimeError:
                break  # torch has no second derivative of this one
            if x.grad is None or not torch.isfinite(x.grad).all() or not x.grad.any():
                break  # piecewise linear: no slope to follow, the next start looks elsewhere
            optimizer.step()
    return best


@pytest.mark.parametrize("name", sorted(set(EXACT) - NOT_LIPSCHITZ))
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_constant_bounds_and_is_attained(name: str, seed: int) -> None:
    build, shape = EXACT[name]
    module = seeded(build, seed)
    x = torch.randn(2, *shape, generator=generator(seed), dtype=torch.float64)
    constant = constant_of(module, x)
    assert constant.kind is Kind.EXACT
    found = searched(module, shape, seed)
    assert found <= constant.value * (1 + 1e-6)
    assert found >= constant.value * 0.99


@pytest.mark.parametrize("name", sorted(NORMALIZATIONS))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_normalisation_local_and_worst(name: str, seed: int) -> None:
    build, shape = NORMALIZATIONS[name]
    module = seeded(build, seed)
    x = torch.randn(4, *shape, generator=generator(seed), dtype=torch.float64)
    here = max(float(torch.linalg.matrix_norm(autograd_jacobian(module, sample), 2)) for sample in x)
    local, worst = constant_of(module, x), constant_of(module)
    assert local.kind is Kind.LOCAL
    assert here <= local.value * (1 + 1e-9) <= worst.value * (1 + 2e-9)
    assert worst.kind is Kind.UPPER  # gamma is random
    with torch.no_grad():
        module.weight.fill_(1.3)
    here = max(float(torch.linalg.matrix_norm(autograd_jacobian(module, sample), 2)) for sample in x)
    assert here == pytest.approx(constant_of(module, x).value, rel=1e-2)
    assert constant_of(module).kind is Kind.EXACT
    flat = torch.zeros(shape, dtype=torch.float64)
    at_rest = float(torch.linalg.matrix_norm(autograd_jacobian(module, flat), 2))
    assert at_rest == pytest.approx(constant_of(module).value, rel=1e-9)


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


@pytest.mark.parametrize("name", sorted(COMPOSED))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_composed_constant_is_never_below_the_jacobian(name: str, seed: int) -> None:
    build, shape = COMPOSED[name]
    module = seeded(build, seed)
    x = torch.randn(3, *shape, generator=generator(seed), dtype=torch.float64)
    here = max(float(torch.linalg.matrix_norm(jacobian_of(module, sample), 2)) for sample in x)
    constant = constant_of(module, x)
    assert here <= constant.value * (1 + 1e-6)
    if constant.kind is Kind.UPPER:
        assert searched(module, shape, seed, steps=6) <= constant.value * (1 + 1e-6)
    if isinstance(module, DotProductAttention):
        assert constant.value == pytest.approx(here, rel=1e-2)


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
