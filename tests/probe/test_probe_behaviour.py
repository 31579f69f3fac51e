"""The probe as a guest: it changes nothing, survives bad data, resumes, and refuses bad arguments."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lipadvisor.probe import Probe
from lipadvisor.probe.schedule import EARLY_STEPS, GRACE_S, Budget
from lipadvisor.terms import Terms


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Unflatten(1, (1, 4, 5)),
            nn.Conv2d(1, 6, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.Flatten(),
            nn.Linear(120, 16),
            nn.ReLU(inplace=True),
            nn.Linear(16, 5),
        )


def batch(k: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(k)
    return torch.randn(12, 20, generator=generator), torch.randint(0, 5, (12,), generator=generator)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    probe: Probe | None,
    steps: range,
    spoil: Callable[[Tensor], Tensor] = lambda loss: loss,
) -> list[Terms | None]:
    seen: list[Terms | None] = []
    lr = optimizer.param_groups[0]["lr"]
    for k in steps:
        x, y = batch(k)
        if probe is not None:
            probe.arm(k)
        spoil(nn.functional.cross_entropy(model(x), y)).backward()
        if probe is not None:
            probe.before_update()
        optimizer.step()
        if probe is not None:
            probe.after_update({0: lr}, {0: 0.0})
            seen.append(probe.collect(k))
        optimizer.zero_grad()
    return seen


@pytest.mark.parametrize("level", ["norms", "drift", "noise", "full"])
def test_results_and_generators_are_bitwise_the_same_with_the_probe(level: str) -> None:
    outcomes = []
    for probed in (False, True):
        model = network()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        with torch.random.fork_rng():
            torch.manual_seed(5)
            np.random.seed(5)
            probe = Probe(model, optimizer, level=level, interval=2, example_input=batch(0)[0]) if probed else None
            if probe is not None:
                probe.spectrum()
            train(model, optimizer, probe, range(7))
            outcomes.append((model.state_dict(), torch.get_rng_state(), np.random.get_state()[1], model.training))
        assert not any(module._forward_hooks for module in model.modules())
    for name, value in outcomes[0][0].items():
        assert torch.equal(value, outcomes[1][0][name]), name
    assert torch.equal(outcomes[0][1], outcomes[1][1])
    assert np.array_equal(outcomes[0][2], outcomes[1][2])
    assert outcomes[0][3] == outcomes[1][3]


def test_a_resumed_run_measures_bitwise_the_same() -> None:
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer, Probe]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(network()[0:2], nn.ReLU(), nn.Flatten(), nn.Linear(120, 5))  # no dropout
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        return model, optimizer, Probe(model, optimizer, interval=2, seed=3)

    model, optimizer, probe = fresh()
    whole = train(model, optimizer, probe, range(8))
    model, optimizer, probe = fresh()
    train(model, optimizer, probe, range(4))
    file = io.BytesIO()
    torch.save([model.state_dict(), optimizer.state_dict(), probe.state_dict()], file)
    model, optimizer, probe = fresh()
    file.seek(0)
    states = torch.load(file, weights_only=True)
    for target, state in zip((model, optimizer, probe), states, strict=True):
        target.load_state_dict(state)
    resumed = train(model, optimizer, probe, range(4, 8))
    for before, after in zip(whole[4:], resumed, strict=True):
        assert (before is None) == (after is None)
        if before is None or after is None:
            continue
        for field in ("log_norm_L", "first_L", "change_L", "noise_LL", "noise_curvature_L", "update_ratio_L"):
            assert np.array_equal(getattr(before, field), getattr(after, field)), field


def test_a_bad_step_is_marked_and_the_next_good_one_is_sound() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    probe = Probe(model, optimizer, interval=1)
    train(model, optimizer, probe, range(2))
    state = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer.param_groups[0]["lr"] = 0.1
    (bad,) = train(model, optimizer, probe, range(2, 3), lambda loss: loss * float("nan"))
    assert bad is not None
    assert set(bad.status_L) == {"non_finite"}
    (worse,) = train(model, optimizer, probe, range(3, 4))  # the weights themselves are gone now
    assert worse is not None
    assert set(worse.status_L) == {"non_finite"}
    model.load_state_dict(state)
    (good,) = train(model, optimizer, probe, range(4, 5))
    assert good is not None
    assert set(good.status_L) <= {"ok", "gap_limited"}
    assert np.isfinite(good.noise_LL).all()


class Uneven(nn.Module):
    """A convolution that is called twice, and one of each kind that a step does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.twice, self.idle = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 2, 3)
        self.spare, self.head = nn.Linear(20, 7), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.twice(torch.tanh(self.twice(x.unflatten(1, (1, 4, 5)))))
        if not self.training:
            self.idle(maps), self.spare(x)
        return self.head(maps.flatten(1))


def test_layers_that_a_step_uses_twice_or_not_at_all_leave_the_others_sound() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Uneven()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    probe = Probe(model, optimizer, interval=1, example_input=batch(0)[0])
    terms = train(model, optimizer, probe, range(2))[-1]
    assert terms is not None
    names = dict(zip(terms.names, range(4), strict=True))
    assert terms.noise_LL[names["head"], names["head"]] > 0
    for name in ("idle", "spare"):
        assert terms.noise_LL[names[name], names[name]] == 0
        assert terms.change_L[names[name]] == pytest.approx(0, abs=1e-6)
    assert terms.noise_LL[names["twice"], names["twice"]] > 0  # what a sample did in both calls is added up
    assert np.isfinite(terms.change_L).all()


def test_spectrum_of_a_convolution_needs_its_input_size() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = Probe(model, optimizer).spectrum()
    known = Probe(model, optimizer, example_input=batch(0)[0]).spectrum()
    assert before.status_L[0] == "not_converged"
    assert known.status_L[0] in ("ok", "gap_limited")
    assert before.log_norm_L[0] >= known.log_norm_L[0]
    assert known.level == "norms"
    assert np.isnan(known.first_L).all()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"level": "all"}, "level"),
        ({"max_overhead": 0.0}, "max_overhead"),
        ({"max_overhead": 3.0}, r"Probe\(max_overhead=...\) must be in \(0, 1\], got 3.0"),
        ({"interval": 0}, "interval"),
        ({"interval": True}, "interval"),
        ({"include": ("nothing",)}, "supported layer"),
        ({"exclude": "*"}, "excluded by name"),
        ({"include": (1,)}, "globs"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, Any], text: str) -> None:
    model = network()
    with pytest.raises(ValueError, match=text):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1), **arguments)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.weight"):
        Probe(network(), torch.optim.SGD(network().parameters(), lr=0.1))


def test_a_string_is_one_glob() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert Probe(model, optimizer, include="5*").layers == Probe(model, optimizer, include=("5*",)).layers
    assert len(Probe(model, optimizer, include="5*").layers) == 1


def test_a_lazy_model_is_refused_until_it_has_been_run() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LazyLinear(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"'1\.weight' has none yet"):
        Probe(model, optimizer)
    model(torch.zeros(1, 3))
    assert len(Probe(model, optimizer).layers) == 2


def test_complex_weights_are_left_out() -> None:
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.complex64), nn.Linear(4, 2))
    probe = Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))
    assert [layer.name for layer in probe.layers] == ["1"]
    assert ("0", "its weight is complex") in {(skip.name, skip.reason) for skip in probe.skipped}


def test_a_model_without_values_is_refused_until_it_has_some() -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"'0\.weight' is on the meta device"):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.SGD])
def test_a_layer_that_is_frozen_meanwhile_has_no_step(kind: Callable[..., torch.optim.Optimizer]) -> None:
    """Where it had none before either, its direction was read from the optimizer's old state."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = kind(model.parameters(), lr=0.01, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    probe, generator = Probe(model, optimizer, interval=1), torch.Generator().manual_seed(0)
    for step in range(7):
        model[0].requires_grad_(step < 2)
        x, y = torch.randn(8, 6, generator=generator), torch.randint(0, 3, (8,), generator=generator)
        probe.arm(step)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        probe.before_update()
        optimizer.step()
        probe.after_update({0: 0.01}, {})
        terms = probe.collect(step)
        assert terms is not None
        moved = [terms.first_L[0], terms.update_ratio_L[0], terms.change_L[0]]
        assert (np.abs(moved) > 1e-9).all() if step < 2 else np.allclose(moved, 0.0, atol=1e-9)
        assert abs(terms.first_L[1]) > 1e-6


def test_a_model_without_layers_is_refused() -> None:
    model = nn.LayerNorm(4)
    with pytest.raises(ValueError, match="supported layer"):
        Probe(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_what_is_left_out_is_listed_with_its_reason() -> None:
    model = network()
    model.append(nn.Linear(5, 5))
    model.append(nn.Bilinear(5, 5, 5))
    model[7].weight.requires_grad_(False)
    held = [p for name, p in model.named_parameters() if not name.startswith("8.")]
    probe = Probe(model, torch.optim.SGD(held, lr=0.1), exclude=("1",))
    assert [layer.name for layer in probe.layers] == ["5"]
    reasons = {skip.name: skip.reason for skip in probe.skipped}
    assert set(reasons) == {"1", "7", "8", "9", "*.bias"}
    assert "gradient" in reasons["7"]
    assert "optimizer" in reasons["8"]


@pytest.mark.parametrize("max_overhead", [0.01, 0.03, 0.2])
def test_the_budget_is_kept_in_the_long_run(max_overhead: float) -> None:
    budget = Budget(max_overhead, None)
    measured = 0
    for step in range(40_000):
        due = budget.due(step)
        measured += due
        budget.spend(step, 0.003 + 0.009 * due, 0.009 * due, due)
        assert due or step not in EARLY_STEPS
    assert budget.overhead <= max_overhead
    assert budget.overhead >= 0.6 * max_overhead
    assert measured > 10


def test_a_short_run_of_a_tiny_model_is_still_measured_and_takes_half_a_second_at_most() -> None:
    budget = Budget(0.03, None)
    steps = []
    for step in range(300):
        due = budget.due(step)
        steps += [step] if due else []
        budget.spend(step, 0.001 + 0.01 * due, 0.01 * due, due)
    assert 14 <= len(steps) <= 50
    assert budget.measured_s <= GRACE_S
    late = [step for step in steps if step >= 10]
    assert all(after - before <= 20 + 1.5 * before for before, after in itertools.pairwise(late)), (
        "never a long blind stretch"
    )
    assert steps[-1] >= 200


def test_a_run_that_outlasts_its_half_second_is_within_its_share_at_every_moment_from_then_on() -> None:
    budget = Budget(0.03, None)
    for step in range(60_000):
        due = budget.due(step)
        budget.spend(step, 0.001 + 0.005 * due, 0.005 * due, due)
        if budget.total_s > GRACE_S / 0.03:
            assert budget.overhead <= 0.0301
    assert budget.overhead >= 0.02


def test_what_a_measured_step_takes_beside_its_measurement_is_counted_and_a_pause_is_not() -> None:
    budget = Budget(0.03, None)
    for step in range(100):
        due = step % 5 == 0
        beside_s = 0.010 + 0.002 * due + (30.0 if step in (40, 41) else 0.0)  # two validations
        unseen_s = budget.unseen_s(beside_s) if due else 0.0
        if due and step > 30:
            assert unseen_s == pytest.approx(0.002, rel=1e-6)
        budget.spend(step, beside_s + 0.005 * due, 0.005 * due + unseen_s, due)
    faster = Budget(0.03, None)
    for step in range(20):
        faster.spend(step, 0.010, 0.0, False)
    assert faster.unseen_s(0.001) == faster.unseen_s(0.001) == faster.unseen_s(0.001) == 0.0, "never negative"


def test_what_is_urged_is_measured_until_twice_the_allowance_is_spent() -> None:
    budget = Budget(0.03, None, measured_s=0.9, total_s=10.0, plain_s=0.001, cost_s=0.005, next_step=5000)
    budget.urge(1000)
    assert budget.due(1000)
    spent = Budget(0.03, None, measured_s=1.1, total_s=10.0, plain_s=0.001, cost_s=0.005, next_step=5000)
    spent.urge(1000)
    assert not spent.due(1000)
    spent.urge(1000, always=True)
    assert spent.due(1000)
