import math

import numpy as np
import pandas as pd
import pytest

from lipadvisor.report.prediction import bound_error, horizon_scores, track
from lipadvisor.report.timeline import timeline


def _frames(seed: int, steps: int = 40) -> tuple[pd.DataFrame, pd.DataFrame]:
    generator = np.random.default_rng(seed)
    kept = np.unique(np.concatenate([[0, steps], generator.integers(0, steps, 25)]))
    observations = pd.DataFrame(
        {
            "step": kept,
            "layer": "*",
            "log_norm": generator.normal(0, 1, len(kept)),
            "predicted": generator.normal(0, 1, len(kept)),
            "predicted_paper": np.nan,
        }
    )
    rows = [
        {"step": int(step), "layer": layer, "horizon": horizon, "plan": plan, "mean": float(mean),
         "lower": float(mean - width), "upper": float(mean + width)}
        for step in kept for horizon in (1, 10) for layer, plan in (("*", "present"), ("a", "present"), ("*", "half"))
        for mean, width in [(generator.normal(), generator.exponential())]
    ]  # fmt: skip
    return observations, pd.DataFrame(rows)


@pytest.mark.parametrize("seed", range(5))
def test_scores_equal_their_slow_twin(seed: int) -> None:
    observations, forecasts = _frames(seed)
    steps, norms = observations["step"].tolist(), observations["log_norm"].tolist()

    def observed(at: float) -> float:
        for (a, x), (b, y) in zip(
            zip(steps, norms, strict=True), list(zip(steps, norms, strict=True))[1:], strict=False
        ):
            if a <= at <= b:
                return x + (y - x) * (at - a) / (b - a)
        raise AssertionError(at)

    for score in horizon_scores(observations, forecasts):
        errors, stays, inside, widths = [], [], [], []
        for row in forecasts.to_dict("records"):
            if (row["layer"], row["plan"], row["horizon"]) != ("*", "present", score.horizon):
                continue
            target = row["step"] + row["horizon"]
            if target > steps[-1]:
                continue
            came = observed(target)
            errors.append(abs(row["mean"] - came))
            stays.append(abs(observed(row["step"]) - came))
            inside.append(row["lower"] <= came <= row["upper"])
            widths.append(row["upper"] - row["lower"])
        assert score.count == len(errors)
        assert score.mae == pytest.approx(sum(errors) / len(errors))
        assert score.persistence_mae == pytest.approx(sum(stays) / len(stays))
        assert score.coverage == pytest.approx(sum(inside) / len(inside))
        assert score.width == pytest.approx(sorted(widths)[len(widths) // 2], rel=0.5)


def test_the_bound_error_is_relative_to_the_observed_norm() -> None:
    observations, forecasts = _frames(1)
    seen = track(observations, forecasts, "*", 10)
    pairs = zip(observations["predicted"], observations["log_norm"], strict=True)
    errors = [abs(math.exp(predicted) / math.exp(norm) - 1) for predicted, norm in pairs]
    got = bound_error(seen)
    assert got.finite_step == pytest.approx(max(errors))
    assert got.finite_step_mean == pytest.approx(sum(errors) / len(errors))
    assert math.isnan(got.paper)
    assert list(seen.target_F) == [step + 10 for step in observations["step"]]


def test_a_timeline_names_each_change_of_reason() -> None:
    reasons = ["warmup", "warmup", "ratio", "budget", "budget", "ratio"]
    decisions = pd.DataFrame(
        {
            "step": range(6), "group": 0, "policy": "p", "reason": reasons, "source": "local", "refused": "",
            "mode": "takeover",
            "lr_applied": np.linspace(1, 2, 6), "weight_decay_applied": 0.0, "read": '{"x": 1.5, "y": null}',
            "warmup_ended": [False, False, True, True, True, True], "cooldown_started": False,
            "init_scale": ['{"0": 2.0}'] + ["{}"] * 5,
        }
    )  # fmt: skip
    seen = timeline(decisions)
    assert [(change.step, change.reason) for change in seen.changes] == [
        (0, "warmup"), (2, "ratio"), (3, "budget"), (5, "ratio"),
    ]  # fmt: skip
    assert (seen.warmup_end, seen.cooldown_start, seen.init_scale) == (2, None, (("0", 2.0),))
    assert seen.changes[0].read == (("x", 1.5),)


@pytest.mark.parametrize(
    ("mode", "refused", "done", "wished"),
    [
        ("takeover", "", ["0", "2"], []),
        ("shadow", "init_scale: not in shadow mode; rollback: not in shadow mode", [], ["0", "2"]),
        ("cap", "init_scale: not in cap mode", [], ["0", "2"]),
        ("takeover", "group 0: lr 0 is not a positive number; init_scale: no layer '2'", ["0"], ["2"]),
        ("takeover", "init_scale: factor nan of '0' is not a positive number", ["2"], ["0"]),
    ],
)
def test_a_layer_was_rescaled_only_where_nothing_refused_it(
    mode: str, refused: str, done: list[str], wished: list[str]
) -> None:
    decisions = pd.DataFrame(
        {
            "step": [0], "group": 0, "policy": "p", "reason": "init", "source": "local", "refused": refused,
            "mode": mode, "lr_applied": 0.1, "weight_decay_applied": 0.0, "read": "{}", "warmup_ended": False,
            "cooldown_started": False, "init_scale": '{"0": 2.0, "2": 0.5}',
        }
    )  # fmt: skip
    seen = timeline(decisions)
    assert [name for name, _ in seen.init_scale] == done
    assert [name for name, _ in seen.init_wished] == wished
