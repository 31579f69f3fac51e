"""The advisor on models of many kinds of layers, and what it says of those that it leaves out."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch import Tensor, nn

from lipadvisor import Advisor
from lipadvisor.policies.schedules import Constant


class Everything(nn.Module):
    """Tied tables, shared positions, attention, a convolution, gains and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position, self.norm = nn.Embedding(20, 16), nn.Embedding(6, 16), nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mixing = nn.utils.parametrizations.weight_norm(nn.Linear(16, 16))
        self.conv = nn.Conv1d(16, 16, 3, padding=1, padding_mode="circular")
        self.start, self.norm_2 = nn.Parameter(torch.zeros(1, 1, 16)), nn.LayerNorm(16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.token.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.token(x) + self.position(torch.arange(x.shape[1])) + self.start)
        h = h + self.attention(h, h, h, need_weights=False)[0]
        h = self.mixing(h + self.conv(h.mT).mT)
        y: Tensor = self.head(self.norm_2(h).mean(1))
        return y


def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Everything()


@pytest.mark.parametrize("view", ["operator", "matrix"])
@pytest.mark.parametrize("everything", [False, True])
def test_a_training_with_every_kind_of_layer(view: str, everything: bool) -> None:
    network = model()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    choices = {"gains": everything, "parameters": everything}
    advisor = Advisor(network, optimizer, 12, interval=1, on_error="raise", conv_view=view, **choices)  # type: ignore[arg-type]
    with advisor:
        for _ in range(12):
            x, y = torch.randint(0, 20, (8, 6), generator=generator), torch.randint(0, 20, (8,), generator=generator)
            loss = nn.functional.cross_entropy(network(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        frame = advisor.trajectory.observations
    last = frame[frame["step"] == 12].set_index("layer")
    assert last.loc["conv", "kind"] == ("conv1d" if view == "operator" else "conv1d_matrix")
    assert ("norm" in last.index) == everything
    assert ("start" in last.index) == everything
    assert set(last["status"]) <= {"ok", "gap_limited"}
    counted = last[(last["composition_weight"] == 1.0) & (last.index != "*")]
    assert last.loc["*", "log_norm"] == pytest.approx(counted["log_norm"].sum(), abs=1e-6)
    assert math.isfinite(last.loc["*", "diffusion"])
    assert set(last.index) >= {"token", "position", "attention.q_proj", "attention.out_proj", "mixing", "conv", "*"}
    assert "head" not in last.index  # it is the table


class Noisy(Everything):
    """The same with dropout inside the attention, batch normalisation and spectral norm."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True, dropout=0.3)
        self.mixing = nn.utils.parametrizations.spectral_norm(nn.Linear(16, 16))
        self.batch = nn.BatchNorm1d(16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.token(x) + self.position(torch.arange(x.shape[1])) + self.start)
        h = h + self.attention(h, h, h)[0]
        h = self.batch(self.mixing(h + self.conv(h.mT).mT).mT).mT
        y: Tensor = self.head(self.norm_2(h).mean(1))
        return y


def test_results_and_generators_are_bitwise_the_same_with_an_advisor_in_the_shadow() -> None:
    outcomes = []
    for advised in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(1)
            network = Noisy()
            optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
            advisor = None
            if advised:
                advisor = Advisor(
                    network, optimizer, 8, mode="shadow", interval=1, on_error="raise", gains=True, parameters=True
                )
            generator = torch.Generator().manual_seed(2)
            for _ in range(8):
                x, y = (
                    torch.randint(0, 20, (8, 6), generator=generator),
                    torch.randint(0, 20, (8,), generator=generator),
                )
                loss = nn.functional.cross_entropy(network(x), y)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                if advisor is not None:
                    advisor.step(loss)
            outcomes.append((network.state_dict(), torch.get_rng_state()))
            if advisor is not None:
                advisor.close()
    for name, value in outcomes[0][0].items():
        assert torch.equal(value, outcomes[1][0][name]), name
    assert torch.equal(outcomes[0][1], outcomes[1][1])


def test_what_is_left_out_is_said_once_by_reason(caplog: pytest.LogCaptureFixture) -> None:
    network = model()
    with caplog.at_level(logging.INFO, logger="lipadvisor"):
        advisor = Advisor(network, torch.optim.SGD(network.parameters(), lr=0.1), 10)
    said = [record.getMessage() for record in caplog.records if "not measured" in record.getMessage()]
    assert len(said) == 1
    assert "'norm', 'norm_2': a gain: measured with gains=True" in said[0]
    assert "the model itself: Everything is no known kind of layer" in said[0]
    assert {name for name, _ in advisor.skipped_layers} == {"", "norm", "norm_2", "*.bias"}
    advisor.close()


def test_a_choice_of_the_wrong_kind_is_refused_before_any_work() -> None:
    network = model()
    with pytest.raises(ValueError, match=r"conv_view"):
        Advisor(network, torch.optim.SGD(network.parameters(), lr=0.1), 10, conv_view="image")  # type: ignore[arg-type]


@pytest.mark.parametrize("sides", [(7, 5), (6, 6)])
def test_no_decay_of_a_policy_touches_what_makes_an_orthogonal_weight(sides: tuple[int, int]) -> None:
    """Torch's Householder map reads whole numbers off a diagonal: decay by 1e-5 and the weight is zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.utils.parametrizations.orthogonal(nn.Linear(*sides))
        network = nn.Sequential(nn.Linear(6, sides[0]), layer, nn.Linear(sides[1], 3))
    optimizer, free = torch.optim.SGD(network.parameters(), lr=0.1), network[0].weight
    generator, twin = torch.Generator().manual_seed(0), free.detach().clone()
    policy = Constant(lr=1e-6, weight_decay=1e3)
    with Advisor(network, optimizer, 12, policy=policy, interval=1, on_error="raise") as advisor:
        for _ in range(6):
            loss = network(torch.randn(8, 6, generator=generator)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            advisor.step(loss)
        frame = advisor.trajectory.observations
    torch.testing.assert_close(torch.linalg.svdvals(layer.weight.detach()), torch.ones(min(sides)))
    assert "non_finite" not in set(frame["status"])
    assert float(free.detach().norm() / twin.norm()) < 0.997, "the others are shrunk"
