"""The quick constructor makes what the one of dataclasses makes, and refuses what it could not."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import time
from dataclasses import dataclass, field

import pytest

from lipadvisor.policies import Decision, Knobs, Layer, Observation
from lipadvisor.policies.contract import Band
from lipadvisor.policies.quick_record import quick_record

KNOBS = Knobs(3)


@dataclass(frozen=True, slots=True)
class Slow:
    """As dataclasses make it."""

    step: int
    name: str
    pairs: tuple[tuple[str, float], ...] = ()
    size: float | None = None
    inner: Knobs = KNOBS


@quick_record
@dataclass(frozen=True, slots=True)
class Quick:
    """The same, quickly."""

    step: int
    name: str
    pairs: tuple[tuple[str, float], ...] = ()
    size: float | None = None
    inner: Knobs = KNOBS


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((1, "a"), {}), ((1, "a", (("b", 2.0),), 3.0, Knobs(1)), {}), ((1,), {"name": "a", "inner": Knobs(0, 0.1)})],
)
def test_makes_what_the_slow_one_makes(arguments: tuple[object, ...], named: dict[str, object]) -> None:
    slow, quick = Slow(*arguments, **named), Quick(*arguments, **named)  # type: ignore[arg-type]
    assert dataclasses.asdict(slow) == dataclasses.asdict(quick)
    assert repr(slow).removeprefix("Slow") == repr(quick).removeprefix("Quick")
    assert quick == Quick(*arguments, **named)
    assert hash(quick) == hash(slow)


def test_is_a_frozen_dataclass_as_before() -> None:
    quick = Quick(1, "a")
    assert inspect.signature(Quick) == inspect.signature(Slow)
    assert Quick.__init__.__qualname__ == "Quick.__init__"
    assert Quick.__init__.__module__ == __name__
    assert dataclasses.replace(quick, size=2.0) == Quick(1, "a", (), 2.0)
    assert copy.deepcopy(quick) == quick
    assert pickle.loads(pickle.dumps(quick)) == quick
    with pytest.raises(dataclasses.FrozenInstanceError):
        quick.step = 2  # type: ignore[misc]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'name'"):
        Quick(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        Quick(1, "a", nonsense=2)  # type: ignore[call-arg]


@pytest.mark.parametrize("kind", [Band, Decision, Knobs, Layer, Observation])
def test_the_contract_is_made_of_them(kind: type) -> None:
    setters = [name for name in kind.__init__.__code__.co_names if name.startswith("_set_")]  # type: ignore[misc]
    assert setters == [f"_set_{f.name}" for f in dataclasses.fields(kind)]


def test_refuses_what_it_would_change() -> None:
    @dataclass(slots=True)
    class Loose:
        size: float = 0.0

    @dataclass(frozen=True)
    class Slotless:
        size: float = 0.0

    @dataclass(frozen=True, slots=True)
    class Made:
        sizes: list[float] = field(default_factory=list)

    @dataclass(frozen=True, slots=True)
    class Hidden:
        size: float = field(init=False, default=0.0)

    for kind in (Loose, Slotless, Made, Hidden, int):
        with pytest.raises(TypeError, match=r"quick_record\(\.\.\.\) takes a frozen dataclass with slots"):
            quick_record(kind)

    @dataclass(frozen=True, slots=True)
    class Checked:
        size: float = 0.0

        def __post_init__(self) -> None:
            raise ValueError("checked")

    with pytest.raises(TypeError, match="without __post_init__"):
        quick_record(Checked)


def test_is_quicker() -> None:
    best = {Slow: 1e9, Quick: 1e9}
    for _ in range(20):  # in turns, so that whatever else runs slows both
        for kind in best:
            begun = time.process_time()
            for _ in range(1000):
                kind(1, "a", (), 2.0, None)
            best[kind] = min(best[kind], time.process_time() - begun)
    assert best[Quick] < 0.9 * best[Slow]
