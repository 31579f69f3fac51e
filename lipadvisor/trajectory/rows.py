"""From the contract's objects to rows of the tables in :mod:`lipadvisor.trajectory.schema`. Pure and cheap."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat

from lipadvisor.policies.contract import Band, Decision, Knobs, Layer, Observation, as_json
from lipadvisor.trajectory.schema import EXTRAS, Row

__all__ = ["decision_rows", "forecast_rows", "observation_rows"]

_NAN = float("nan")
_NO_KNOBS = (_NAN, _NAN)


def observation_rows(
    observation: Observation,
    extras: Mapping[str, Sequence[float]] | None = None,
    measure_s: float = _NAN,
    step_s: float = _NAN,
    alarm: str = "",
    input_sizes: Sequence[tuple[int, ...]] = (),
) -> list[Row]:
    """Return the rows of one observation: its layers in order, then the network.

    Args:
        observation: What was seen.
        extras: Further columns by name (see ``EXTRAS``), each with ``L + 1`` numbers: the layers', then the network's.
            A column that is left out is nan.
        measure_s: Seconds spent on measuring this step.
        step_s: Seconds of the whole step.
        alarm: Signs of a divergence to come, where two of them were there.
        input_sizes: Of the layers' maps, see ``Terms.input_sizes``; () where there are none.

    Raises:
        ValueError: an extra has an unknown name or the wrong length, or sizes are not as many as layers.
    """
    columns = _extra_columns(extras or {}, len(observation.layers) + 1)
    lr_and_decay = {knobs.group: (_number(knobs.lr), _number(knobs.weight_decay)) for knobs in observation.knobs}
    groups = [lr_and_decay.get(layer.group, _NO_KNOBS) for layer in observation.layers]
    network_group = lr_and_decay.get(0, _NO_KNOBS)
    when, measured = (observation.step, observation.tau), observation.measured_step
    sizes = map(_by_size, input_sizes or [()] * len(observation.layers))
    rows: list[Row] = [
        (*when, *_layer_values(layer), *knobs, *extra, measured, *_NO_STEP_VALUES, size)
        for layer, knobs, extra, size in zip(observation.layers, groups, columns[:-1], sizes, strict=True)
    ]
    step_values = _step_values(observation, measure_s, step_s, alarm)
    rows.append((*when, *_layer_values(observation.network), *network_group, *columns[-1], measured, *step_values))
    return rows


def forecast_rows(
    step: int,
    bands_by_layer: Mapping[str, Iterable[Band]],
    plan: str = "present",
    lr: float | None = None,
    weight_decay: float | None = None,
) -> list[Row]:
    """Return the rows of the forecasts made at ``step``; ``lr`` and ``weight_decay`` are those of the plan."""
    return [
        (
            step,
            layer,
            band.horizon,
            *(band.mean, band.std, band.lower, band.upper),
            str(band.status),
            plan,
            _number(lr),
            _number(weight_decay),
        )
        for layer, bands in bands_by_layer.items()
        for band in bands
    ]


def decision_rows(
    decision: Decision,
    mode: str = "",
    before: Sequence[Knobs] = (),
    after: Sequence[Knobs] = (),
    refused: str | Sequence[str] = (),
) -> list[Row]:
    """Return the rows of one decision, one for each parameter group that it or the optimizer names (-1 if none).

    Args:
        decision: What was proposed, and why.
        mode: How it is applied: ``"takeover"``, ``"cap"`` or ``"shadow"``.
        before: Knobs in force before it, one for each group.
        after: Knobs in force after it.
        refused: What was not done, and why.
    """
    groups = sorted({knobs.group for knobs in (*before, *after, *decision.knobs)}) or [-1]
    was, now = ({knobs.group: knobs for knobs in side} for side in (before, after))
    told = refused if isinstance(refused, str) else "; ".join(refused)
    texts = tuple(json.dumps(dict(pairs)) for pairs in (decision.read, decision.init_scale, decision.weight_scale))
    rows: list[Row] = []
    for group in groups:
        sides = (was.get(group, Knobs(group)), decision.knobs_for(group), now.get(group, Knobs(group)))
        rows.append(
            (
                decision.step,
                *(decision.policy, decision.reason, decision.source, mode),
                group,
                *(_number(side.lr) for side in sides),
                *(_number(side.weight_decay) for side in sides),
                *(decision.warmup_ended, decision.cooldown_started, decision.rollback, decision.rewind),
                told,
                *texts,
            )
        )
    return rows


def _layer_values(layer: Layer) -> Row:
    return (
        layer.name,
        layer.kind,
        _by_size(layer.shape),
        layer.group,
        layer.composition_weight,
        layer.log_norm,
        layer.gap,
        layer.log_gain,
        layer.drift,
        layer.diffusion,
        layer.noise_curvature,
        layer.finite_step,
        layer.decay,
        layer.update_ratio,
        layer.frobenius_ratio,
        layer.row_ratio,
        str(layer.status),
    )


@lru_cache(maxsize=4096)
def _by_size(shape: tuple[int, ...]) -> str:
    return "x".join(str(size) for size in shape)


_NO_STEP_VALUES: Row = (None, "", _NAN, _NAN, _NAN, None, _NAN, _NAN, _NAN, "", "", "", "")


def _step_values(observation: Observation, measure_s: float, step_s: float, alarm: str) -> Row:
    losses = {"loss": observation.loss, "validation_loss": observation.validation_loss}
    return (
        observation.total_steps,
        observation.optimizer,
        observation.momentum,
        *(_number(value) for value in losses.values()),
        observation.validation_step,
        *(observation.overhead, measure_s, step_s),
        str(observation.status),
        " ".join(name for name, value in losses.items() if value is not None),
        json.dumps(as_json(observation.knobs)),
        alarm,
        "",
    )


def _extra_columns(extras: Mapping[str, Sequence[float]], length: int) -> list[Row]:
    for name, values in extras.items():
        if name not in EXTRAS:
            raise ValueError(f"extras must be among {list(EXTRAS)}, got {name!r}.")
        if len(values) != length:
            raise ValueError(f"extras[{name!r}] must have {length} numbers (layers, then network), got {len(values)}.")
    columns = (map(float, extras[name]) if name in extras else repeat(_NAN, length) for name in EXTRAS)
    return list(zip(*columns, strict=True))


def _number(value: float | None) -> float:
    return _NAN if value is None else float(value)
