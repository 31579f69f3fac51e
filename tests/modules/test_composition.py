"""The composed bound: never below the local constant, the product on chains, residual-aware, its weights its slopes."""

import math

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import (
    CenterNorm,
    DotProductAttention,
    FeedForward,
    L2Attention,
    Residual,
    ResNetBlock,
    ScaledCosineAttention,
    TransformerBlock,
    compose,
    constants,
    local_lipschitz,
)

torch.set_num_threads(1)


class Gated(nn.Module):
    """Operations outside any module: products, means, matrix products, concatenation, slices."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.left, self.right, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.left(x), torch.tanh(self.right(x))
        mixed = torch.softmax(a @ b.transpose(-1, -2) / 3, -1) @ (a * b)
        pooled = x.mean(1, keepdim=True).expand_as(x) - 0.5 * x.pow(2)
        return self.out(torch.cat([mixed, pooled], -1)) / (1 + x[..., :1].abs())


def random_network(seed: int) -> tuple[nn.Module, Tensor]:
    g = torch.Generator().manual_seed(seed)

    def pick(n: int) -> int:
        return int(torch.randint(n, (1,), generator=g))

    family, dim, depth = seed % 4, 4 * (1 + pick(3)), 1 + pick(4)
    activations = (nn.ReLU, nn.GELU, nn.Tanh, nn.SiLU, nn.Softplus, nn.ELU, nn.Hardswish, nn.Sigmoid)
    if family == 0:
        parts: list[nn.Module] = []
        for _ in range(depth):
            block = nn.Sequential(nn.Linear(dim, 6), activations[pick(8)](), nn.Linear(6, dim))
            parts += [Residual(block, 0.5) if pick(2) else block, (nn.LayerNorm(dim), CenterNorm(dim))[pick(2)]]
        model, x = nn.Sequential(*parts), torch.randn(3, dim, generator=g)
    elif family == 1:
        norm = (nn.BatchNorm2d, lambda width: nn.GroupNorm(1, width), nn.InstanceNorm2d)[pick(3)]
        blocks = [ResNetBlock(2 if i == 0 else 4, 4, 1 + pick(2), norm) for i in range(depth)]
        tail = [(nn.MaxPool2d, nn.AvgPool2d)[pick(2)](3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
        model, x = nn.Sequential(*blocks, *tail), torch.randn(2, 2, 9, 9, generator=g)
    elif family == 2:
        layers = []
        for _ in range(depth):
            attention = (
                DotProductAttention(dim, 2),
                DotProductAttention(dim, 1, causal=True),
                L2Attention(dim, 2),
                ScaledCosineAttention(dim, 2, 2.0),
            )[pick(4)]
            norm = (nn.LayerNorm, nn.RMSNorm, CenterNorm)[pick(3)]
            layers.append(TransformerBlock(dim, attention, 8, ("pre", "post", "none")[pick(3)], norm, 0.7))
        model, x = nn.Sequential(*layers), torch.randn(2, 5, dim, generator=g)
    else:
        model, x = nn.Sequential(*(Gated(dim) for _ in range(depth))), torch.randn(2, 4, dim, generator=g)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            scale = 10 ** (0.6 * torch.rand((), generator=g) - 0.3) / math.sqrt(parameter[0].numel())
            parameter.data = torch.randn(parameter.shape, generator=g) * scale
    model.train(bool(pick(2)))
    return model.double(), x.double()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100))
def test_bound_is_never_below_the_local_constant(seed: int) -> None:
    model, x = random_network(seed)
    composition = compose(model, x)
    assert composition.method == "export", composition.note
    local = local_lipschitz(model, x)
    assert local.converged
    assert math.isfinite(composition.log_bound())
    assert composition.log_bound() >= math.log(local.value) - 1e-6


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_weights_are_slopes(seed: int) -> None:
    model, x = random_network(seed)
    composition = compose(model, x)
    weights, norms = composition.weights(), dict(composition.log_norms)
    for module, weight in weights.items():
        up, down = ({**norms, module: norms[module] + h} for h in (1e-5, -1e-5))
        slope = (composition.log_bound(up) - composition.log_bound(down)) / 2e-5
        assert weight == pytest.approx(slope, abs=1e-6)
        assert weight >= 0


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.Sigmoid(), nn.Linear(6, 2)).double()


@pytest.mark.parametrize("method", ["export", "containers"])
def test_chain_is_the_product(method: str) -> None:
    model, x = chain(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    composition = compose(model, x, method=method)
    norms = [
        float(torch.linalg.matrix_norm(layer.weight.detach(), 2)) for layer in model if isinstance(layer, nn.Linear)
    ]
    assert composition.log_bound() == pytest.approx(math.log(math.prod(norms) * 0.25), abs=1e-9)
    assert composition.weights() == pytest.approx(dict.fromkeys("01234", 1.0))
    assert composition.method == method


@pytest.mark.parametrize("method", ["export", "containers"])
def test_residual_network_is_tighter_than_the_plain_product(method: str) -> None:
    """A skip carried along layer by layer costs (1 + K_1)(1 + K_2); joined at the block's end, 1 + K_1 K_2."""
    model = nn.Sequential(*(Residual(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))) for _ in range(3)))
    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(1)).double()
    composition = compose(model.double(), x, method=method)
    plain = joined = 0.0
    for block in model:
        first, second = (
            float(torch.linalg.matrix_norm(block.branch[i].weight.detach(), 2))
            for i in (0, 2)  # type: ignore[union-attr]
        )
        plain += math.log((1 + first) * (1 + second))
        joined += math.log1p(first * second)
    assert composition.log_bound() == pytest.approx(joined, abs=1e-9)
    assert composition.log_bound() < plain
    factor = math.exp(plain - composition.log_bound())
    assert factor == pytest.approx(math.exp(plain - joined))
    assert factor > 1.5
    share = composition.weights()["0.branch.0"]
    assert 0 < share < 1


def test_shared_module_counts_each_call() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.relu(self.layer(x)))

    model = Twice().double()
    composition = compose(model, torch.ones(1, 3).double())
    norm = math.log(float(torch.linalg.matrix_norm(model.layer.weight.detach(), 2)))
    assert composition.log_bound() == pytest.approx(2 * norm)
    assert composition.weights() == {"layer": pytest.approx(2.0)}


def test_containers_where_it_does_not_trace() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) if float(x.sum()) > 0 else self.b(x)

    composition = compose(Branching(), torch.ones(1, 3))
    assert composition.method == "containers"
    assert "torch.export" in composition.note
    assert composition.modules == ("a",)
    with pytest.raises(RuntimeError, match="does not trace"):
        compose(Branching(), torch.ones(1, 3), method="export")
    with pytest.raises(ValueError, match="method"):
        compose(Branching(), torch.ones(1, 3), method="guess")


def test_looking_changes_nothing() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 2)
    ).train()
    model[0].weight.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    x = torch.randn(3, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    constants(model, x)
    compose(model, x)
    local_lipschitz(model, x)
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert model[2].training
    assert not model[0].weight.requires_grad
    assert model[4].weight.requires_grad
    assert not any(module._forward_hooks for module in model.modules())


def test_tokens_enter_at_the_embedding() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens, self.places = nn.Embedding(11, 6), nn.Embedding(8, 6)
            self.block, self.head = FeedForward(6, 9), nn.Linear(6, 11)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.block(self.tokens(ids) + self.places(torch.arange(ids.shape[1]))))

    model, ids = Language().double(), torch.arange(8).reshape(2, 4)
    composition = compose(model, ids)
    assert composition.sources == ("tokens",)
    assert "places" not in composition.modules
    local = local_lipschitz(model, ids, composition.sources)
    assert composition.log_bound() >= math.log(local.value)


def test_a_model_that_does_not_trace_says_so_in_the_note_and_not_in_the_terminal(
    capfd: pytest.CaptureFixture[str],
) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.a(x) if x.sum().item() > 0 else self.b(self.a(x))
            return y

    found = compose(nn.Sequential(Branches(), nn.Tanh()), torch.ones(2, 4))
    assert found.method == "containers"
    assert "torch.export" in found.note
    assert capfd.readouterr() == ("", "")
