"""The contract between what is measured and what is decided.

How the parts combine::

    observation ----> policy.decide(observation, state) ----> (decision, state)
        ^                                                          |
    lipadvisor.observe                                       lipadvisor.apply

A :class:`Policy` is a frozen object of parameters. Its memory is a frozen *state* that is handed in and handed back,
so that one policy serves any number of runs, a checkpoint is ``as_json(state)``, and a recorded run can be replayed.
Everything here is a frozen dataclass of plain Python values: immutable, comparable, JSON-serialisable. Nothing but
the standard library is imported.

Units: ``log_norm`` in nats; ``step`` counts optimizer steps; ``tau`` is the sum of the learning rates so far; rates
(``drift``, ``noise_curvature``, ``finite_step``, ``decay``) are nats per unit of ``tau``; ``diffusion`` is nats per
square root of a unit of ``tau``.
"""

from __future__ import annotations

import dataclasses
import enum
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from lipadvisor.policies.quick_record import quick_record

__all__ = [
    "Band",
    "Decision",
    "Knobs",
    "Layer",
    "Observation",
    "Policy",
    "Status",
    "as_json",
    "from_json",
    "hold",
    "restore_state",
]


class Status(enum.StrEnum):
    """Whether a number may be trusted. Data that may not is kept, marked, and never raised in a training loop."""

    OK = "ok"
    NON_FINITE = "non_finite"
    TOO_FEW_POINTS = "too_few_points"
    NOT_CONVERGED = "not_converged"
    GAP_LIMITED = "gap_limited"
    UNCALIBRATED = "uncalibrated"
    UNSTABLE = "unstable"
    NOT_MEASURED = "not_measured"


@quick_record
@dataclass(frozen=True, slots=True)
class Band:
    """The forecast of one log-norm at one horizon, 90 % band, under the present knobs."""

    horizon: int  # steps ahead, >= 1
    mean: float  # nats
    std: float  # nats, >= 0
    lower: float  # nats
    upper: float  # nats
    status: Status = Status.OK


@quick_record
@dataclass(frozen=True, slots=True)
class Layer:
    """What is known of one weight (or of the network, under the name ``"*"``) at one step."""

    name: str
    kind: str  # "linear", "conv2d", ...; of "*": "network", or before step 0 "chain" where no two paths ever meet
    shape: tuple[int, ...]  # (fan_out, fan_in) of the matrix view; () for the network
    group: int  # index of the optimizer's parameter group; -1 for the network
    composition_weight: float  # dZ / d log_norm, dimensionless
    log_norm: float  # ln of the operator norm, nats
    gap: float  # 1 - s_2 / s_1, in [0, 1]
    log_gain: float  # ln( rms(W) * sqrt(fan_in) ), nats: 0 keeps the variance of independent inputs
    drift: float = 0.0  # nats per tau
    diffusion: float = 0.0  # nats per sqrt(tau)
    noise_curvature: float = 0.0  # nats per tau
    finite_step: float = 0.0  # nats per tau
    decay: float = 0.0  # nats per tau, ln(1 - lr * weight_decay) / lr, <= 0
    update_ratio: float = 0.0  # s_1(U) / s_1(W) of the optimizer's direction U, per unit of learning rate, >= 0
    status: Status = Status.OK
    frobenius_ratio: float = 0.0  # |U|_F / |W|_F, per unit of learning rate, >= 0; 0 where it was not measured
    row_ratio: float = 0.0  # the same of the largest norm of a row: largest |U_i| over largest |W_i|


@quick_record
@dataclass(frozen=True, slots=True)
class Knobs:
    """Learning rate and weight decay of one parameter group. ``None`` means: not mine, leave it as it is.

    ``weight_decay`` is decoupled and acts on weight matrices: ``W *= 1 - lr * weight_decay`` before each step.
    """

    group: int
    lr: float | None = None  # per step, > 0
    weight_decay: float | None = None  # per unit of tau, >= 0


@quick_record
@dataclass(frozen=True, slots=True)
class Observation:
    """All that a policy may look at. ``step`` steps have been taken; the decision is for step number ``step``.

    With ``step == 0`` nothing has been trained and no gradient seen: rates and ``update_ratio`` are zero, ``status``
    is ``NOT_MEASURED``, and a policy may answer with ``init_scale``.
    """

    step: int
    total_steps: int | None  # the horizon, where it is known
    tau: float
    optimizer: str  # "sgd", "adamw", ...
    momentum: float  # first moment's coefficient, in [0, 1)
    knobs: tuple[Knobs, ...]  # in force during the last step, one for each group; the user's own before step 0
    network: Layer
    layers: tuple[Layer, ...]
    bands: tuple[Band, ...] = ()  # the network's forecast at a few horizons, ascending
    loss: float | None = None  # last training loss
    validation_loss: float | None = None  # last one reported, if any
    validation_step: int | None = None  # when it was measured
    measured_step: int = 0  # step at which the measurement below was made; < step where the probe is sparing
    overhead: float = 0.0  # share of the run's time spent on measuring so far
    status: Status = Status.OK

    def layer(self, name: str) -> Layer:
        """Return the layer called ``name`` (``"*"``: the network).

        Raises:
            KeyError: there is none of that name.
        """
        if name == "*":
            return self.network
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r} in this observation; it has {[layer.name for layer in self.layers]}")


@quick_record
@dataclass(frozen=True, slots=True)
class Decision:
    """An answer with its reason. ``knobs`` hold for step ``step`` and until the next decision."""

    step: int
    policy: str
    reason: str  # short and machine-readable, e.g. "spectral_size", "budget", "hold:non_finite"
    knobs: tuple[Knobs, ...] = ()
    init_scale: tuple[tuple[str, float], ...] = ()  # (layer, factor > 0), obeyed at step 0 only
    weight_scale: tuple[tuple[str, float], ...] = ()  # (layer, factor in (0, 1]): shrink now, once
    warmup_ended: bool = False  # True in the decision that ends the warmup, and from then on
    cooldown_started: bool = False  # True in the decision that starts the cooldown, and from then on
    rollback: bool = False  # restore the last good snapshot of weights and optimizer
    read: tuple[tuple[str, float], ...] = ()  # the quantities that led here
    source: str = "local"  # where it was made: "local", "hub", "local:late" (the hub's answer did not come), "pinned"
    rewind: bool = False  # restore weights and optimizer as they were at the lowest validation loss reported
    averaging: float | None = None  # memory, steps > 0, of the mean of the weights that a run of known length ends with

    def knobs_for(self, group: int) -> Knobs:
        """Return the knobs of parameter group ``group``; empty ones if the decision leaves it alone."""
        for knobs in self.knobs:
            if knobs.group == group:
                return knobs
        return Knobs(group)


State = TypeVar("State")


class Policy(Protocol[State]):
    """Decides. Implementations are frozen dataclasses whose constructor raises for impossible parameters."""

    @property
    def name(self) -> str:
        """Short name, as used by the command line and in records."""
        ...

    def init(self) -> State:
        """Return the state before the first observation: a frozen dataclass of plain values and tuples."""
        ...

    def decide(self, observation: Observation, state: State) -> tuple[Decision, State]:
        """Return the decision and the next state. Pure, and never raises for data: it holds and says why."""
        ...


def hold(observation: Observation, policy: str, reason: str) -> Decision:
    """Return the decision that leaves every knob as it is, with its reason."""
    return Decision(step=observation.step, policy=policy, reason=f"hold:{reason}")


def as_json(value: Any) -> Any:
    """Turn a (nested) contract dataclass or policy state into what ``json.dumps`` takes. Tuples become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: as_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [as_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, enum.Enum):
        return value.value
    return value


T = TypeVar("T")


def from_json(kind: type[T], data: Any) -> T:
    """Rebuild a contract dataclass or a policy state of type ``kind`` from what :func:`as_json` gave.

    Raises:
        ValueError: a field is missing or unknown, or a value has the wrong type; names the class and the field.
    """
    return typing.cast(T, _build(kind, data, kind.__name__))


def _build(kind: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return data
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in arguments:
            return None
        return _build(next(a for a in arguments if a is not type(None)), data, where)
    if origin is tuple:
        if not isinstance(data, (list, tuple)):
            raise ValueError(f"{where} must be a list, got {data!r}.")
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            return tuple(_build(arguments[0], item, where) for item in data)
        if len(arguments) != len(data):
            raise ValueError(f"{where} must have {len(arguments)} items, got {len(data)}.")
        return tuple(_build(a, item, where) for a, item in zip(arguments, data, strict=True))
    if dataclasses.is_dataclass(kind):
        return _build_dataclass(kind, data, where)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return kind(data)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if isinstance(kind, type) and not isinstance(data, kind):
        raise ValueError(f"{where} must be {kind.__name__}, got {data!r}.")
    return data


def _build_dataclass(kind: Any, data: Any, where: str, built: Mapping[str, Any] | None = None) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} must be an object, got {data!r}.")
    fields = {field.name: field for field in dataclasses.fields(kind)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ValueError(f"{where} has no field {unknown[0]!r}; it has {sorted(fields)}.")
    hints = typing.get_type_hints(kind)
    values = dict(built or {})
    for name, field in fields.items():
        if name in values:
            continue
        if name in data:
            values[name] = _build(hints[name], data[name], f"{where}.{name}")
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where} lacks the field {name!r}.")
    return kind(**values)


def restore_state(policy: Policy[State], data: Any) -> State:
    """Rebuild the state of ``policy`` from what :func:`as_json` gave for it.

    Works for wrapped and chained policies too, whose states hold those of others: ``policy.init()`` tells the types,
    and a policy keeps the types of its states' parts for good.

    Raises:
        ValueError: a field is missing or unknown, or a value has the wrong type; names the class and the field.
    """
    template = policy.init()
    return typing.cast(State, _build_like(template, data, type(template).__name__))


def _build_like(template: Any, data: Any, where: str) -> Any:
    """Build the value of which ``template`` is an example, where the type hints alone do not tell the type."""
    if dataclasses.is_dataclass(template) and not isinstance(template, type):
        if not isinstance(data, Mapping):
            raise ValueError(f"{where} must be an object, got {data!r}.")
        hints = typing.get_type_hints(type(template))
        opaque = {name for name, hint in hints.items() if hint is Any or hint == tuple[Any, ...]}
        built = {
            name: _build_like(getattr(template, name), data[name], f"{where}.{name}") for name in opaque & set(data)
        }
        plain = {name: item for name, item in data.items() if name not in built}
        return _build_dataclass(type(template), plain, where, built)
    if isinstance(template, tuple):
        if not isinstance(data, (list, tuple)) or len(data) != len(template):
            raise ValueError(f"{where} must be a list of {len(template)} items, got {data!r}.")
        return tuple(_build_like(t, item, where) for t, item in zip(template, data, strict=True))
    return data
