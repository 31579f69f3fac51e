"""Where operations between the modules were not seen, the figure is called an estimate everywhere."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import audit, compose
from lipadvisor.modules.initialization import spectral

torch.set_num_threads(1)


class Loud(nn.Module):
    """Does not trace, and multiplies behind its only child's back."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return 50 * self.inner(x) if float(x.sum()) > 0 else self.inner(x)


class Refused(nn.Sequential):
    """A chain that does not trace."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4), nn.Tanh(), _Asks())


class _Asks(nn.Identity):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > -math.inf else -x


def test_an_estimate_says_so_in_table_json_and_page() -> None:
    result = audit(Loud(), torch.ones(2, 4))
    assert result.network["method"] == "containers"
    assert result.network["log_bound"] < result.network["log_local"]
    assert result.network["bound_kind"] == "estimate"
    assert not result.composition.is_bound
    assert json.loads(result.to_json())["network"]["bound_kind"] == "estimate"
    for shown in (result.table(), result.to_html()):
        assert "log estimate Z" in shown
        assert "not a bound" in shown
        assert "log bound Z" not in shown


def test_a_chain_of_known_modules_is_a_bound_without_tracing_too() -> None:
    result = audit(Refused(), torch.ones(2, 4))
    assert result.network["method"] == "containers"
    assert result.network["bound_kind"] == "upper"
    assert "log bound Z" in result.table()


def test_nothing_to_perturb_is_said() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(5, 2)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(nn.functional.one_hot(ids, 5).float())

    composition = compose(Counts(), torch.tensor([1, 4]))
    assert composition.log_bound() == -math.inf
    assert not composition.is_bound
    assert "nothing to perturb" in composition.note


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_weights_that_are_not_finite_stop_nothing(where: str) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    getattr(model[2], where).data[0] = math.nan
    result = audit(model, torch.ones(2, 4))
    assert not result.network["finite"]
    spectral(model)
