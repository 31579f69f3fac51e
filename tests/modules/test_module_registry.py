"""What may be registered, what a rule may return, and what the reading makes of a rule that returns something else."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import Constant, Entry, Kind, audit, constant_of, jacobian_of, register, registry

torch.set_num_threads(1)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


@pytest.fixture
def careless() -> Iterator[None]:
    register(Half, Entry("half", lambda module, inputs: 0.5))  # type: ignore[arg-type, return-value]
    yield
    del registry._ENTRIES[Half]


@pytest.mark.usefixtures("careless")
def test_a_rule_that_returns_no_constant_is_named_in_the_note() -> None:
    result = audit(nn.Sequential(nn.Linear(3, 3), Half()), torch.eye(3))
    note = result.modules.set_index("module").loc["1", "note"]
    assert "the rule of 'half' must return a Constant, got float" in note
    assert result.network["log_bound"] >= result.network["log_local"] - 1e-6
    with pytest.raises(TypeError, match="must return a Constant, got float"):
        constant_of(Half())


@pytest.mark.parametrize("value", [-1, -1e-9, math.nan, -math.inf])
def test_a_constant_is_not_negative(value: float) -> None:
    with pytest.raises(ValueError, match=r"Constant\(value=...\) must be at least 0"):
        Constant(value, Kind.UPPER)


@pytest.mark.parametrize("value", ["1", None, True, 1j])
def test_a_constant_is_a_number(value: Any) -> None:
    with pytest.raises(TypeError, match=r"Constant\(value=...\) must be a number"):
        Constant(value, Kind.UPPER)


def test_only_an_entry_is_registered() -> None:
    def rule(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
        return Constant(0.5, Kind.EXACT)

    wrong: Any = rule
    with pytest.raises(TypeError, match=r"register\(entry=...\) must be an Entry"):
        register(Half, wrong)
    with pytest.raises(TypeError, match=r"Entry\(constant=...\) must be callable"):
        Entry("half", 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Entry\(jacobian=...\) must be callable"):
        Entry("half", rule, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"Entry\(name=...\)"):
        Entry(wrong, rule)
    assert registry.find(Half()) is None


@pytest.mark.parametrize(("beta", "threshold"), [(1.0, 20.0), (3.0, 14.0), (3.0, 0.5), (1.0, 5.0), (2.0, -1.0)])
def test_softplus_steps_at_a_low_threshold(beta: float, threshold: float) -> None:
    layer = nn.Softplus(beta, threshold)
    at = threshold / beta
    ends = torch.tensor([at * (1 - 1e-7), at * (1 + 1e-7)]).double().sort().values
    low, high = layer(ends)
    steep = float((high - low).abs() / (ends[1] - ends[0]))
    constant = constant_of(layer)
    if threshold >= 14:
        assert constant.value == 1.0
    else:
        assert constant.value == math.inf > steep > 1e3
        assert constant.condition == "discontinuous"
    x = torch.linspace(at - 1, at + 1, 8, dtype=torch.float64)
    expected = torch.autograd.functional.jacobian(layer, x)
    assert torch.allclose(jacobian_of(layer, x), expected, atol=1e-12)
    functional = audit(_Functional(beta, threshold), torch.full((2, 3), 0.01))
    assert (functional.network["log_bound"] == math.inf) == (threshold < 14)


class _Functional(nn.Module):
    def __init__(self, beta: float, threshold: float) -> None:
        super().__init__()
        self.layer, self.beta, self.threshold = nn.Linear(3, 3), beta, threshold

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(self.layer(x), self.beta, self.threshold)
