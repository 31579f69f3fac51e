"""Modules without an entry, modules that the batch does not reach, and rules that fail: all have a row and a reason."""

import json
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from lipadvisor.modules import Constant, Entry, Kind, audit, register, registry
from lipadvisor.modules.reading import read_modules

torch.set_num_threads(1)


class Swirl(nn.Module):
    """Nobody registered it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.cos(x)


class Scaled(nn.Module):
    """A weight of its own, and a part."""

    def __init__(self) -> None:
        super().__init__()
        self.gain, self.inner = nn.Parameter(torch.full((6,), 0.5)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.gain


class Faulty(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.begin, self.swirl, self.scaled, self.faulty = nn.Linear(4, 6), Swirl(), Scaled(), Faulty()
        self.never, self.strange, self.loss = nn.Linear(6, 6), Swirl(), nn.MSELoss()

    def forward(self, x: Tensor) -> Tensor:
        y = self.faulty(self.scaled(self.swirl(self.begin(x))))
        return y + self.loss(y, torch.zeros_like(y))


@pytest.fixture
def model() -> Iterator[Model]:
    def fails(module: nn.Module, inputs: tuple[Tensor, ...]) -> Constant:
        raise ArithmeticError("no such thing")

    register(Faulty, Entry("faulty", fails))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield Model()
    del registry._ENTRIES[Faulty]


def test_they_have_rows_in_the_order_of_execution(model: Model) -> None:
    result = audit(model, torch.randn(3, 4, generator=torch.Generator().manual_seed(0)))
    frame = result.modules.set_index("module")
    called = ["begin", "swirl", "scaled", "scaled.inner", "faulty", "loss"]
    assert list(frame.index) == [*called, "never", "strange"]
    assert list(frame["constant_kind"] == "none") == [False, True, True, False, True, True, True, True]
    assert "no entry" in frame.loc["swirl", "note"]
    assert "one by one" in frame.loc["swirl", "note"]
    assert "a loss" in frame.loc["loss", "note"]
    assert "ArithmeticError: no such thing" in frame.loc["faulty", "note"]
    assert frame.loc["never", "note"] == "not called on this batch"
    assert frame.loc["never", "kind"] == "linear"
    assert frame.loc["strange", "kind"] == "none"
    assert frame.loc["begin", "note"] == ""
    assert math.isnan(frame.loc["swirl", "constant"])
    assert frame.loc["swirl", "forward_gain"] > 0
    assert frame.loc["scaled", "parameters"] == 6 + 42
    assert result.network["log_bound"] >= result.network["log_local"] - 1e-6
    records = {row["module"]: row for row in json.loads(result.to_json())["modules"]}
    assert records["swirl"]["constant"] is None
    assert records["swirl"]["constant_kind"] == "none"
    for shown in (result.table(), result.to_html()):
        assert "no entry; register() gives it one" in shown
        assert "not called on this batch" in shown
        assert "without a constant" in shown


def test_a_model_that_has_no_entry_at_all_is_still_audited() -> None:
    result = audit(Swirl(), torch.linspace(-1, 1, 12).reshape(3, 4))
    assert list(result.modules["module"]) == [""]
    assert result.network["log_bound"] >= result.network["log_local"] - 1e-6
    assert "(model)" in result.table()


def test_a_model_whose_modules_all_have_one_has_no_notes() -> None:
    layers = nn.Sequential(nn.Linear(3, 5), nn.GRU(5, 4, batch_first=True))
    readings = read_modules(layers, torch.ones(2, 6, 3))
    assert [reading.note for reading in readings.values()] == ["", ""]
    assert all(reading.constant is not None and reading.constant.kind in Kind for reading in readings.values())
    assert "without a constant" not in audit(layers, torch.ones(2, 6, 3)).table()


def test_states_given_to_a_recurrent_layer_are_read() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.cell, self.head = nn.LSTM(3, 4), nn.LSTMCell(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            state = (torch.zeros(1, x.shape[1], 4), torch.zeros(1, x.shape[1], 4))
            y, (h, c) = self.lstm(x, state)
            h, c = self.cell(y[-1], (h[0], c[0]))
            return self.head(h)

    result = audit(Tagger(), torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0)))
    assert list(result.modules["constant_kind"]) == ["local", "local", "exact"]
    assert result.network["log_bound"] >= result.network["log_local"] - 1e-4
