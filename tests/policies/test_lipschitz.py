"""The Lipschitz-aware default and its parts, on observations whose right answer is known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace

import pytest

from lipadvisor.policies import (
    Constant,
    Decision,
    Initialization,
    Knobs,
    Layer,
    Lipschitz,
    LipschitzBudget,
    Observation,
    Overfitting,
    SpectralRate,
    WarmupEnd,
    as_json,
    chain,
    replay,
    restore_state,
)

TAU = 0.08
RATE = SpectralRate(TAU, horizon_power=0.0, rise=2.0)
PYTORCH_GAIN = math.log(1.0 / math.sqrt(3.0))


def layer(name="a", ratio=0.0, log_norm=0.0, log_gain=PYTORCH_GAIN, shape=(64, 64)):
    return Layer(name, "linear", shape, 0, 1.0, log_norm, 0.1, log_gain, update_ratio=ratio)


def observe(step, layers, total=100, lr=0.01, measured=None, **changes):
    network = Layer("*", "network", (), -1, 1.0, sum(x.log_norm for x in layers), 0.1, 0.0)
    if "network" in changes:
        network = replace(network, **changes.pop("network"))
    return Observation(
        step=step,
        total_steps=total,
        tau=0.0,
        optimizer="adamw",
        momentum=0.9,
        knobs=(Knobs(0, lr, 0.0), Knobs(1, lr, 0.0)),
        network=network,
        layers=tuple(layers),
        measured_step=max(step - 1, 0) if measured is None else measured,
        **changes,
    )


def test_the_first_step_listens():
    small, large = layer("small", log_norm=-2.0, shape=(10, 40)), layer("large", log_norm=1.0)
    (decision,) = replay(RATE, [observe(0, [small, large])])
    assert decision.reason == "spectral:listen"
    assert decision.knobs[0].lr == pytest.approx(0.01 * TAU * min(math.exp(-2.0) / 20.0, math.exp(1.0) / 64.0))


def test_the_rate_settles_where_the_root_sum_of_squares_over_layers_is_tau():
    run = [observe(step, [layer("a", 5.0), layer("b", 20.0)]) for step in range(30)]
    decisions = replay(RATE, run)
    lrs = [decision.knobs[0].lr for decision in decisions]
    assert all(b <= a * 2.0 * (1.0 + 1e-12) for a, b in itertools.pairwise(lrs))
    assert lrs[-1] == pytest.approx(TAU / math.hypot(5.0, 20.0))
    assert decisions[1].reason == "spectral:rise"
    assert decisions[-1].reason == "spectral:ratio"
    assert dict(decisions[-1].read)["ratio[b]"] == pytest.approx(20.0)


@pytest.mark.parametrize(("total", "share"), [(400, 1.0), (100, 2.0), (1600, 0.5)])
def test_longer_runs_take_smaller_steps(total, share):
    assert SpectralRate(TAU).size(observe(1, [layer()], total=total)) == pytest.approx(TAU * share)


def test_without_a_horizon_the_steps_so_far_stand_for_it():
    sizes = [SpectralRate(TAU).size(observe(step, [layer()], total=None)) for step in (1, 400, 1600)]
    assert sizes == pytest.approx([TAU, TAU, TAU / 2.0])


def test_ratios_that_overflow_or_vanish_do_not_break_the_sum():
    layers = [layer("a", 1e200), layer("b", 1e200), layer("c", 0.0), layer("d", math.inf)]
    (_, decision) = replay(RATE, [observe(0, layers), observe(1, layers)])
    assert decision.knobs[0].lr > 0.0


def test_the_rate_falls_at_once_and_comes_back_slowly():
    ratios = [10.0] * 30 + [1000.0] + [10.0] * 30
    run = [observe(step, [layer("a", 0.0 if step == 0 else ratios[step])]) for step in range(len(ratios))]
    lrs = [decision.knobs[0].lr for decision in replay(RATE, run)]
    assert lrs[30] == pytest.approx(TAU / 1000.0)
    assert lrs[31] < TAU / 100.0  # the mean remembers
    assert lrs[60] == pytest.approx(TAU / 10.0, rel=0.25)


def test_the_mean_counts_steps_not_calls():
    def last(steps):
        rate = SpectralRate(smoothing=0.5)
        state = rate.init()
        for step in steps:
            seen = observe(step, [layer("a", 10.0 if step < 20 else 1.0)])
            _, state = rate.decide(seen, state)
        return state.log_ratio

    assert last([0, *range(1, 20), 24]) == pytest.approx(last([0, 19, 24]))
    assert last([0, 19, 24, 24, 24]) == pytest.approx(last([0, 19, 24]))


def test_a_measurement_without_a_ratio_repeats_the_last_rate():
    state = SpectralRate().init()
    for step in range(20):
        decision, state = SpectralRate().decide(observe(step, [layer("a", 10.0)]), state)
    again, state = SpectralRate().decide(observe(20, [layer("a", math.nan)]), state)
    assert again.reason == "hold:no_ratio"
    assert again.knobs == decision.knobs


def test_between_rare_measurements_the_rate_rises_twofold_at_most_and_not_without_a_new_one():
    dense = [observe(step, [layer("a", 10.0)]) for step in range(40)]
    calm = replay(RATE, dense)[-1].knobs[0].lr
    # One batch late in a run has a gradient a hundred times smaller; the next look is 240 steps away.
    sparse = [observe(280, [layer("a", 0.1)]), *(observe(step, [layer("a", 0.1)], measured=279) for step in (290, 400))]
    seen = replay(RATE, [*dense, *sparse, observe(520, [layer("a", 10.0)])])
    after = [decision.knobs[0].lr for decision in seen[40:]]
    assert after[0] <= 2.0 * calm * (1.0 + 1e-12)
    assert after[1] <= after[0]
    assert after[2] <= after[0]
    assert after[3] == pytest.approx(calm, rel=0.01), "it falls at once"


def test_the_ratio_of_rare_measurements_is_remembered():
    run = [observe(240 * k, [layer("a", 10.0 if k < 40 else 0.1)]) for k in range(1, 42)]
    rate = SpectralRate(TAU, horizon_power=0.0)
    lrs = [decision.knobs[0].lr for decision in replay(rate, [observe(0, [layer("a")]), *run])]
    assert lrs[39] == pytest.approx(TAU / 10.0)
    assert lrs[-1] < 8.0 * lrs[39], "a hundred times as large it would be without a memory"


@pytest.mark.parametrize("gain", [1.0, math.sqrt(2.0)])
def test_xavier_and_he_are_left_alone_in_shallow_networks(gain):
    layers = [*(layer(name, log_gain=math.log(gain)) for name in "ab"), layer("head", log_gain=0.0)]
    (decision,) = replay(Initialization(), [observe(0, layers)])
    assert decision.init_scale == ()


def test_pytorchs_default_is_lifted_before_the_head_and_left_alone_in_it():
    (decision,) = replay(Initialization(), [observe(0, [layer("a"), layer("head")])])
    assert decision.init_scale == (("a", pytest.approx(0.9 * math.sqrt(3.0))),)


@pytest.mark.parametrize("gain", [1e-3, 0.1, 10.0, 1e3])
def test_a_layer_out_of_the_zone_is_brought_back(gain):
    bad, good = layer("bad", log_gain=math.log(gain)), layer("good", log_gain=0.0)
    (decision,) = replay(Initialization(), [observe(0, [bad, good])])
    assert decision.init_scale == (("bad", pytest.approx(0.9 / gain)),)
    (decision,) = replay(Initialization(), [observe(0, [good, bad])])
    assert decision.init_scale == (("bad", pytest.approx(0.6 / gain)),)
    (later,) = replay(Initialization(), [observe(1, [bad, good])])
    assert later.init_scale == ()


def stack(shapes, names="layer{}"):
    return [layer(names.format(k), log_gain=-3.0 + 0.01 * k, shape=shape) for k, shape in enumerate(shapes)]


def chain_of(*layers):
    shown = observe(0, layers)
    return replace(shown, network=replace(shown.network, kind="chain"))


@pytest.mark.parametrize("low", [0.3, 0.9, 1.3])
@pytest.mark.parametrize("depth", [2, 3, 8, 40])
def test_a_plain_chain_passes_on_what_two_layers_would_whatever_its_depth(depth, low):
    beside = replace(layer("table", log_gain=0.2, shape=(7, 300)), composition_weight=0.0)  # no link of it
    layers = stack([(32, 64), *[(32, 32)] * (depth - 1), (10, 32)])
    (decision,) = replay(Initialization(low=low), [chain_of(beside, *layers)])
    scales = dict(decision.init_scale)
    share = 1.0
    for x in layers[:-1]:
        share *= scales[x.name] * math.exp(x.log_gain) / math.sqrt(2.0)
    assert share == pytest.approx(low**2 / 2.0)
    assert scales[layers[-1].name] * math.exp(layers[-1].log_gain) == pytest.approx(0.6), "the head for itself"


def test_the_deeper_the_more_a_layer_is_lifted_and_never_above_hes_gain():
    gains = [Initialization().lowest(n) for n in range(200)]
    assert gains[:2] == [0.9, 0.9]
    assert gains[2] == pytest.approx(0.9)
    assert 1.0 < gains[3] < 1.1
    assert gains[2:] == sorted(gains[2:])
    assert 1.4 < gains[-1] < math.sqrt(2.0)
    assert Initialization(high=1.0).lowest(100) == 1.0
    assert {Initialization(low=1.5).lowest(n) for n in (1, 2, 9)} == {1.5}


@pytest.mark.parametrize("count", [2, 3, 9])
def test_where_no_chain_is_known_each_layer_gets_the_same(count):
    layers = stack([(32, 32)] * count)
    (free,) = replay(Initialization(), [observe(0, layers)])
    (chained,) = replay(Initialization(), [chain_of(*layers)])
    for decision, lowest in ((free, 0.9), (chained, Initialization().lowest(count - 1))):
        scales = dict(decision.init_scale)
        gains = [scales[x.name] * math.exp(x.log_gain) for x in layers[:-1]]
        assert gains == pytest.approx([lowest] * (count - 1))


def budgeted(observation, **parameters):
    policy = chain(Constant(lr=0.1), LipschitzBudget(**parameters))
    return replay(policy, [observation])[-1]


def test_the_budget_is_free_while_growth_fits():
    decision = budgeted(observe(10, [layer()], network={"drift": 0.01}))
    assert decision.knobs[0].lr == 0.1
    assert "budget" not in decision.reason


def test_the_budget_cuts_growth_to_the_head_room():
    growing = observe(90, [layer(log_gain=math.log(1.2))], lr=0.1, network={"drift": 10.0})
    decision = budgeted(growing, budget=0.3, deviations=0.0, lookahead=0.1)
    # head .3 nats, to come .1 * 10 * 10 steps = 10 nats
    assert decision.knobs[0].lr == pytest.approx(max(0.05, 0.3 / 10.0) * 0.1)
    assert decision.reason == "constant:stable+budget"
    assert dict(decision.read)["budget_head"] == pytest.approx(0.3)


def test_the_budget_counts_the_spread():
    policy = chain(Constant(lr=0.1), LipschitzBudget(budget=0.3, deviations=2.0, lookahead=0.1))
    drifts = [5.0 if step % 2 else -5.0 for step in range(91)]
    run = [
        observe(step, [layer(log_gain=math.log(1.2))], lr=0.1, network={"drift": drifts[step]}) for step in range(1, 91)
    ]
    need = 2.0 * 0.5 * math.sqrt(10.0)  # steps of half a nat, up and down
    assert replay(policy, run)[-1].knobs[0].lr == pytest.approx(0.3 / need * 0.1, rel=0.1)


def test_a_small_start_may_grow_to_a_healthy_level_first():
    start = layer(log_gain=math.log(0.3))
    policy = chain(Constant(lr=0.1), LipschitzBudget(budget=0.3, deviations=0.0))
    grown = replace(start, log_norm=start.log_norm + math.log(3.9), log_gain=math.log(1.17))
    first = observe(1, [start], lr=0.1)
    free, tied = (
        observe(90, [grown], lr=0.1, network={"drift": 0.2}),
        observe(90, [grown], lr=0.1, network={"drift": 5.0}),
    )
    assert replay(policy, [first, free])[-1].knobs[0].lr == 0.1
    assert replay(policy, [first, tied])[-1].knobs[0].lr < 0.1


def test_the_warmup_ends_where_the_rate_stops_rising():
    run = [observe(step, [layer("a", 0.0 if step == 0 else 10.0)]) for step in range(60)]
    decisions = replay(chain(RATE, WarmupEnd(patience=5)), run)
    risen = next(d.step for d in decisions if d.reason == "spectral:ratio")
    assert [d.warmup_ended for d in decisions].index(True) in (risen + 4, risen + 5)


def test_the_rate_is_annealed_to_a_twenty_fifth():
    run = [observe(step, [layer("a", 0.0 if step == 0 else 10.0)], total=200, loss=1.0) for step in range(200)]
    decisions = replay(Lipschitz(relative_step=TAU, horizon_power=0.0, budget=1e6), run)
    for step in (50, 100, 150):
        wave = 0.04 + 0.96 * 0.5 * (1.0 + math.cos(math.pi * step / 200))
        assert decisions[step].knobs[0].lr == pytest.approx(TAU / 10.0 * wave, rel=0.01)
    assert decisions[-1].knobs[0].lr == pytest.approx(0.04 * TAU / 10.0, rel=0.01)


def test_with_an_unknown_horizon_it_waits_for_the_loss_then_anneals():
    losses = [2.0 * 0.97 ** min(step, 150) for step in range(600)]
    run = [
        observe(step, [layer("a", 0.0 if step == 0 else 10.0)], total=None, loss=losses[step]) for step in range(600)
    ]
    decisions = replay(Lipschitz(relative_step=TAU, horizon_power=0.0), run)
    started = [d.cooldown_started for d in decisions].index(True)
    assert 200 <= started <= 400
    assert decisions[started - 1].knobs[0].lr == pytest.approx(TAU / 10.0)
    assert decisions[-1].knobs[0].lr == pytest.approx(0.04 * TAU / 10.0, rel=0.01)
    assert all(decision.averaging is None for decision in decisions)  # nobody knows which step is the last


def test_a_resumed_run_goes_on_as_the_uninterrupted_one():
    policy = Lipschitz()
    run = [observe(s, [layer("a", 0.0 if s == 0 else 10.0 + s % 7)], network={"drift": 1.0}) for s in range(100)]
    whole = replay(policy, run)
    state = policy.init()
    for observation in run[:40]:
        _, state = policy.decide(observation, state)
    state = restore_state(Lipschitz(), json.loads(json.dumps(as_json(state))))
    for observation, expected in zip(run[40:], whole[40:], strict=True):
        decision, state = policy.decide(observation, state)
        assert decision == expected


def test_restore_names_what_is_wrong():
    data = as_json(Lipschitz().init())
    with pytest.raises(ValueError, match=r"GuardState has no field 'colour'"):
        restore_state(Lipschitz(), {**data, "colour": 1})
    with pytest.raises(ValueError, match=r"GuardState.inner must be an object, got 3"):
        restore_state(Lipschitz(), {**data, "inner": 3})
    with pytest.raises(ValueError, match="must be a list of 9 items"):
        restore_state(Lipschitz(), {**data, "inner": {"members": []}})


def test_at_first_the_ratio_is_averaged_over_all_that_was_measured():
    state = SpectralRate().init()
    for step, ratio in enumerate([0.0, 4.0, 1.0]):
        _, state = SpectralRate().decide(observe(step, [layer("a", ratio)]), state)
    assert state.log_ratio == pytest.approx(0.5 * math.log(4.0))


def test_in_a_short_run_large_first_ratios_are_soon_forgotten():
    def rate(total):
        policy, state = SpectralRate(rise=1e3, horizon_power=0.0, later_power=1.0), SpectralRate().init()
        for step in range(41):
            ratio = 40.0 if step < 5 else 1.0
            decision, state = policy.decide(observe(step, [layer("a", ratio)], total=total), state)
        return decision.knobs[0].lr

    assert rate(100) == pytest.approx(0.12, rel=0.1)  # time constant of 9 steps
    assert rate(100) > 1.25 * rate(10_000)  # of 50


def test_a_convolution_may_align_its_taps_before_it_counts_as_growth():
    def head(kind):
        start = replace(layer(log_gain=math.log(1.2)), kind=kind)
        return dict(budgeted(observe(90, [start], lr=0.1, network={"drift": 1.0})).read)["budget_head"]

    assert head("conv2d") - head("linear") == pytest.approx(math.log(3.0))


def overfitted(validation, train, **parameters):
    run = [
        observe(step, [layer()], loss=train, validation_loss=validation[step // 10], validation_step=step // 10 * 10)
        for step in range(10 * len(validation))
    ]
    return replay(chain(Constant(lr=0.1, weight_decay=0.5), Overfitting(**parameters)), run)


def test_a_validation_loss_that_rises_far_above_the_training_loss_goes_back_and_makes_the_steps_smaller():
    decisions = overfitted([1.0, 0.8, 0.97, 0.99, 1.1, 1.2, 0.7, 0.75], 0.1, deviations=0.0)
    factors = [d.knobs[0].lr / 0.1 for d in decisions[9::10]]
    assert factors == pytest.approx([1.0, 1.0, 1.0, 0.1, 0.1, 0.01, 0.01, 0.01])
    back = [d for d in decisions if d.rewind]
    assert [d.step for d in back] == [30, 50]  # each time the second validation in a row above the lowest
    assert all(d.reason.endswith("overfitting:rewind") and d.cooldown_started for d in back)
    assert decisions[-1].knobs[0].weight_decay == 0.5  # per unit of tau: it falls with the rate


def test_a_steady_rise_is_told_from_the_same_rise_in_jumps():
    steady, jumping = [1.0, 0.8, 0.84, 0.88, 0.92, 0.96, 1.0], [1.0, 0.8, 1.1, 0.85, 1.05, 0.96, 1.0]
    assert any(d.rewind for d in overfitted(steady, 0.1))
    assert not any(d.rewind for d in overfitted(jumping, 0.1))
    assert any(d.rewind for d in overfitted(jumping, 0.1, deviations=0.0))


@pytest.mark.parametrize(("first", "told"), [(0.09, True), (2.5, False)])
def test_a_small_loss_is_noisier_than_it_is_small(first, told):
    # from 0.04 to 0.05: more than a tenth of sqrt(0.04 * first) above the lowest for a first loss of 0.09 alone
    losses = [first, 0.04, 0.043, 0.046, 0.049, 0.05, 0.05]
    assert any(d.rewind for d in overfitted(losses, 0.01, deviations=0.0)) is told


def last_word(loss, total=30):
    """Return the decision on the validation loss after the last step."""
    policy, state = Overfitting(deviations=0.0), Overfitting().init()
    for step, value in ((10, 1.0), (20, 0.5), (total, loss)):
        seen = observe(step, [layer()], total=30, loss=0.9, validation_loss=value, validation_step=step)
        part, state = policy.refine(seen, Decision(step, "x", "x", (Knobs(0, 0.1),)), state)
    return part


def test_the_run_ends_with_the_weights_that_validated_best_where_the_last_ones_are_clearly_worse():
    assert last_word(0.6).rewind  # whatever the training loss
    assert not last_word(0.55).rewind
    assert not last_word(0.4).rewind
    assert not last_word(0.6, total=29).rewind  # not the end: the training loss is not far below


def test_after_going_back_the_training_loss_is_that_of_the_weights_gone_back_to():
    train = [0.5] * 20 + [0.01] * 20 + [0.9] * 20  # learnt by heart after the second validation
    run = [
        observe(
            step,
            [layer()],
            loss=train[step],
            validation_loss=[1.0, 0.8, 1.0, 1.0, 0.9, 0.9][step // 10],
            validation_step=step // 10 * 10,
        )
        for step in range(60)
    ]
    policy = Overfitting(smoothing=1, deviations=0.0)
    state, told = policy.init(), []
    for observation in run:
        part, state = policy.refine(observation, Decision(observation.step, "x", "x", (Knobs(0, 0.1),)), state)
        told.append(part.rewind)
    assert [step for step, back in enumerate(told) if back] == [30]  # later on the training loss is not far below


@pytest.mark.parametrize(
    ("validation", "train"),
    [
        ([1.0, 0.8, 0.9, 1.0, 1.1], 0.9),
        ([1.0, 0.9, 0.8, 0.82, 0.83, 0.81], 0.1),  # no better, but no worse either
        ([1.0, 0.9, 0.95, 0.8, 0.85, 0.7, 0.75], 0.1),
    ],
)
def test_noise_and_a_small_gap_are_no_overfitting(validation, train):
    assert all(decision.knobs[0].lr == 0.1 for decision in overfitted(validation, train))


def test_without_a_validation_loss_nothing_is_cut():
    run = [observe(step, [layer()], loss=0.0) for step in range(50)]
    assert {d.knobs[0].lr for d in replay(chain(Constant(lr=0.1), Overfitting()), run)} == {0.1}


def room_after(losses):
    """Return the head room at the end of a run that does not grow, with these training losses."""
    policy, state = LipschitzBudget(healthy_gain=0.1), LipschitzBudget().init()
    for step, loss in enumerate(losses):
        observation = observe(step, [layer("a", 1.0)], total=40, loss=loss)
        part, state = policy.refine(observation, Decision(step, "x", "x", (Knobs(0, 0.1),)), state)
    return dict(part.read)["budget_head"]


def test_the_budget_has_more_room_while_growth_still_buys_loss():
    share = 0.2 + 0.8  # the look ahead reaches the end of the run
    assert room_after([2.0] * 40) == pytest.approx(0.3 * 4.0 * share)
    assert room_after([2.0] * 10 + [0.02] * 30) == pytest.approx(0.3 * (1.0 + 3.0 * 0.1), rel=0.01)
    assert room_after([-1.0] * 40) == pytest.approx(0.3)  # a loss that is not positive says nothing


@pytest.mark.parametrize("loss", [None, math.nan, math.inf, 0.0])
def test_a_loss_that_says_nothing_leaves_the_budget_usable(loss):
    assert room_after([loss] * 40) == pytest.approx(0.3)
