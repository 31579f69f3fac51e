"""Which networks are taken for a plain chain, and that looking leaves no trace."""

from __future__ import annotations

import functools
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lipadvisor import Advisor
from lipadvisor.plain_chain import is_plain_chain

WIDTH = 12


class Written(nn.Module):
    """A chain whose forward pass is Python: sizes, functional layers, a buffer, an attribute, a list, noise."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Linear(16, WIDTH)
        self.norm, self.head = nn.BatchNorm1d(WIDTH), nn.Parameter(torch.ones(3, WIDTH))
        self.register_buffer("calls", torch.zeros(()))
        self.seen: list[Tensor] = []
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        x = functional.max_pool2d(torch.relu(self.first(x)), 2)
        x = functional.dropout(self.norm(self.second(x.reshape(x.shape[0], -1))), 0.1, self.training)
        x = x + 0.01 * torch.randn(WIDTH) + random.random() + float(np.random.rand())
        self.last = x
        self.seen.append(x)
        return functional.linear(x, self.head)


class Residual(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.inner(x)
        return y


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.a(x) * torch.sigmoid(self.b(x))
        return y


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(torch.relu(self.layer(x)))
        return y


class Looking(Twice):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) if x.sum() > 0 else x
        return y


class TwoInputs(nn.Bilinear):
    def __init__(self) -> None:
        super().__init__(WIDTH, WIDTH, WIDTH)


class TwoHeads(Gated):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return self.a(x), self.b(x)


def plain(*sides: int) -> nn.Sequential:
    layers = [part for a, b in itertools.pairwise(sides) for part in (nn.Linear(a, b), nn.LeakyReLU())]
    return nn.Sequential(*layers[:-1])


CHAINS: dict[str, Callable[[], nn.Module]] = {
    "perceptron": lambda: plain(8, *[WIDTH] * 8, 3),
    "nested": lambda: nn.Sequential(plain(8, 16), nn.Sequential(nn.ReLU(), nn.LayerNorm(16), plain(16, 3))),
    "convnet": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)),
    "table": lambda: nn.Sequential(nn.Embedding(9, 4), nn.Flatten(), nn.Linear(12, 3)),
    "written": Written,
    "spectral norm": lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 8)), nn.Linear(8, 3)),
}
OTHERS: dict[str, Callable[[], nn.Module]] = {
    "residual": lambda: nn.Sequential(nn.Linear(8, WIDTH), *(Residual(plain(WIDTH, WIDTH)) for _ in range(6))),
    "gated": Gated,
    "used twice": Twice,
    "looks at values": Looking,
    "two inputs": TwoInputs,
    "two heads": TwoHeads,
    "attention": lambda: nn.Sequential(nn.Linear(8, WIDTH), nn.TransformerEncoderLayer(WIDTH, 2)),
    "recurrent": lambda: nn.Sequential(nn.GRU(8, WIDTH)),
}


@pytest.mark.parametrize("name", CHAINS)
def test_a_chain_is_taken_for_one(name: str) -> None:
    assert is_plain_chain(CHAINS[name]())


@pytest.mark.parametrize("name", OTHERS)
def test_what_joins_or_cannot_be_traced_is_taken_for_none(name: str) -> None:
    assert not is_plain_chain(OTHERS[name]())


def test_looking_leaves_no_trace() -> None:
    model = Written()
    fired: list[str] = []
    model.first.register_forward_hook(lambda *_: fired.append("forward"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    keys = {name: set(vars(module)) for name, module in model.named_modules()}
    torch_state, python, legacy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    assert is_plain_chain(model)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python
    assert np.array_equal(np.random.get_state()[1], legacy[1])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert {name: set(vars(module)) for name, module in model.named_modules()} == keys
    assert (model.seen, model.last, fired) == ([], None, [])


class Meter:
    def __init__(self) -> None:
        self.sum: float | Tensor = 0.0


class Holding(nn.Module):
    """A chain whose forward pass draws from generators of its own, and writes to all that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, WIDTH), nn.Linear(WIDTH, 3)
        self.torch, self.legacy = torch.Generator().manual_seed(0), np.random.default_rng(0)
        self.python, self.meter = random.Random(0), Meter()
        self.average, self.recent = torch.ones(WIDTH), deque([0.0], maxlen=3)
        self.seen: dict[str, list[Tensor]] = {"first": []}
        self.act = functools.partial(functional.leaky_relu, negative_slope=0.1)
        self.ends = (self.head, self.seen)

    def head(self, x: Tensor) -> Tensor:
        self.seen["head"] = [x]
        y: Tensor = self.second(x)
        return y

    def forward(self, x: Tensor) -> Tensor:
        print("forward", x.shape)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.clamp_(-0.01, 0.01)
        self.average.mul_(0.9)
        x = self.act(self.first(x) + torch.randn(WIDTH, generator=self.torch))
        x = x + self.legacy.normal() + self.python.random()
        self.meter.sum += x.mean()
        self.recent.append(x)
        self.seen["first"].append(x)
        y: Tensor = self.ends[0](x)  # type: ignore[operator]
        return y


def test_looking_leaves_no_trace_in_what_a_model_holds(capsys: pytest.CaptureFixture[str]) -> None:
    model, other = Holding(), Holding()
    other.load_state_dict(model.state_dict())
    assert is_plain_chain(model)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
    assert torch.equal(model.torch.get_state(), other.torch.get_state())
    assert model.legacy.bit_generator.state == other.legacy.bit_generator.state
    assert model.python.getstate() == other.python.getstate()
    assert (model.seen, model.meter.sum, list(model.recent)) == ({"first": []}, 0.0, [0.0])
    assert torch.equal(model.average, torch.ones(WIDTH))
    assert not capsys.readouterr().out


def test_a_model_that_holds_what_cannot_be_copied_is_taken_for_none() -> None:
    model = plain(8, WIDTH, 3)
    assert is_plain_chain(model)
    model.lock = threading.Lock()  # type: ignore[assignment]
    assert not is_plain_chain(model)


def gains(model: nn.Module) -> list[float]:
    return [float(p.detach().square().mean().sqrt() * p.shape[1] ** 0.5) for p in model.parameters() if p.dim() == 2]


def test_the_default_lifts_a_deep_chain_further_than_a_residual_network() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        deep = plain(WIDTH, *[WIDTH] * 8, 3)
        branched = nn.Sequential(*(Residual(plain(WIDTH, WIDTH)) for _ in range(8)), nn.Linear(WIDTH, 3))
    for model, expected in ((deep, 2**0.5 * (0.9 / 2**0.5) ** 0.25), (branched, 0.9)):
        advisor = Advisor(model, torch.optim.AdamW(model.parameters()), total_steps=50)
        x = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
        functional.cross_entropy(model(x), torch.zeros(8, dtype=torch.long)).backward()
        assert gains(model)[:-1] == pytest.approx([expected] * 8, rel=1e-4)
        kinds = advisor.trajectory.observations.query("layer == '*'")["kind"]
        assert kinds.iloc[0] == ("chain" if model is deep else "network")
        advisor.close()
