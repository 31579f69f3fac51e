"""Reads plain data out of a pickle file by interpreting its opcodes; nothing named in the file is imported or called.

Enough for dicts, lists, tuples, strings, numbers and numpy arrays of a plain type, as in the CIFAR files of Python 2
and in re-pickled copies of them. Anything else is refused.
"""

from __future__ import annotations

import math
import pickletools
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["PickleError", "load_plain_pickle"]


class PickleError(ValueError):
    """The file is not a pickle, or holds something else than plain data."""


@dataclass(frozen=True, slots=True)
class _Name:
    """A global that the file names: a word, never the thing."""

    name: str


@dataclass(slots=True)
class _Array:
    """An array in the making: what ``_reconstruct`` would have returned."""

    value: np.ndarray[Any, Any] | None = None


@dataclass(slots=True)
class _Type:
    """A dtype in the making; the byte order comes with BUILD."""

    code: str
    order: str = "|"


_MARK = object()
_RECONSTRUCT = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
_KNOWN = (*_RECONSTRUCT, "numpy ndarray", "numpy dtype", "_codecs encode")
_IGNORED = ("PROTO", "FRAME", "STOP")
_LITERALS = ("NONE", "NEWTRUE", "NEWFALSE", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE")
_PUSHED = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_TEXT = ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING")  # Python 2's str: bytes
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def load_plain_pickle(content: bytes) -> Any:
    """Return what the pickle ``content`` holds; Python 2's strings come as bytes, arrays as numpy arrays.

    Raises:
        PickleError: it is not a pickle, is cut short, or needs more than plain data.
    """
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            machine.run(opcode.name, argument)
    except PickleError:
        raise
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as error:
        raise PickleError(f"not a whole pickle of plain data: {error}") from error
    if len(machine.stack) != 1:
        raise PickleError(f"not a whole pickle: {len(machine.stack)} values are left at its end.")
    try:
        return _finished(machine.stack[0], {})
    except RecursionError as error:
        raise PickleError("what holds itself, or is nested too deeply, is no plain data.") from error


class _Machine:
    """The pickle machine, without its power to import and call."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, name: str, argument: Any) -> None:
        """Do one opcode."""
        if name in _IGNORED:
            return
        if name in _LITERALS:
            fresh = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
            self.stack.append({} if name == "EMPTY_DICT" else [] if name == "EMPTY_LIST" else fresh[name])
        elif name in _PUSHED or name in _TEXT or name in _BYTES:
            self.stack.append(argument)
        elif name in _STRINGS:
            self.stack.append(argument.encode("latin-1"))
        elif name == "MARK":
            self.stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[int(argument)] = self.stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[int(argument)])
        else:
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name == "TUPLE":
            stack.append(tuple(self._to_mark()))
        elif name == "LIST":
            stack.append(self._to_mark())
        elif name == "DICT":
            stack.append(_pairs(self._to_mark()))
        elif name in _TUPLES:
            items = [stack.pop() for _ in range(_TUPLES[name])]
            stack.append(tuple(reversed(items)))
        elif name == "APPEND":
            item = stack.pop()
            self._top(list).append(item)
        elif name == "APPENDS":
            items = self._to_mark()
            self._top(list).extend(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            self._top(dict).update(_pairs([key, value]))
        elif name == "SETITEMS":
            items = self._to_mark()
            self._top(dict).update(_pairs(items))
        elif name == "POP":
            stack.pop()
        elif name == "GLOBAL":
            stack.append(_named(str(argument)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_named(f"{module} {attribute}"))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_reduced(function, arguments))
        elif name == "BUILD":
            state = stack.pop()
            _set_state(stack[-1], state)
        else:
            raise PickleError(f"opcode {name} is not plain data, and is refused.")

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self.stack[-1] is not _MARK:
            items.append(self.stack.pop())
        self.stack.pop()
        return items[::-1]

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise PickleError(f"items are added to a {type(self.stack[-1]).__name__}, not to a {kind.__name__}.")
        return self.stack[-1]


def _pairs(items: list[Any]) -> dict[Any, Any]:
    for key in items[::2]:  # the hash of a tuple of tuples may take for ever
        if not (key is None or isinstance(key, (str, bytes, int, float))):
            raise PickleError(f"a {type(key).__name__} as a key is refused.")
    return dict(zip(items[::2], items[1::2], strict=True))


def _named(name: str) -> _Name:
    if name not in _KNOWN:
        raise PickleError(f"the file asks for {name.replace(' ', '.')!r}, which is not plain data, and is refused.")
    return _Name(name)


def _reduced(function: Any, arguments: Any) -> Any:
    """Give what the call would have returned, for the few calls that numpy's arrays need."""
    if not isinstance(function, _Name) or not isinstance(arguments, tuple):
        raise PickleError("a call of something that is no known name is refused.")
    if function.name in _RECONSTRUCT:
        if arguments[0] != _Name("numpy ndarray"):
            raise PickleError("an array of another class than numpy.ndarray is refused.")
        return _Array()
    if function.name == "numpy dtype":
        code = arguments[0].decode("ascii") if isinstance(arguments[0], bytes) else arguments[0]
        return _Type(code)
    if function.name == "_codecs encode" and arguments[1] == "latin1":
        return arguments[0].encode("latin-1")
    raise PickleError(f"a call of {function.name.replace(' ', '.')} is refused.")


def _set_state(target: Any, state: Any) -> None:
    if isinstance(target, _Type):
        order = state[1]
        target.order = order.decode("ascii") if isinstance(order, bytes) else order
        return
    if not isinstance(target, _Array):
        raise PickleError(f"a state for a {type(target).__name__} is refused.")
    _, shape, kind, fortran, raw = state
    if not isinstance(kind, _Type) or kind.code[:1] not in "iufb" or not isinstance(raw, bytes):
        raise PickleError("an array of anything but plain numbers is refused.")
    dtype = np.dtype(kind.order + kind.code if kind.order in "<>" else kind.code)
    if len(raw) != math.prod(shape) * dtype.itemsize:
        raise PickleError(f"an array of shape {shape} has {len(raw)} bytes.")
    target.value = np.frombuffer(raw, dtype=dtype).reshape(shape, order="F" if fortran else "C")


def _finished(value: Any, seen: dict[int, Any]) -> Any:
    """Replace arrays in the making by arrays, all the way down.

    Args:
        value: of the pickle.
        seen: what has been finished, by the identity of what it was made from: shared parts are visited once, or a
            file of a hundred bytes could stand for 2**30 of them.
    """
    if id(value) not in seen:
        seen[id(value)] = _finish(value, seen)
    return seen[id(value)]


def _finish(value: Any, seen: dict[int, Any]) -> Any:
    if isinstance(value, _Array):
        if value.value is None:
            raise PickleError("an array has no content.")
        return value.value
    if isinstance(value, dict):
        return {key: _finished(item, seen) for key, item in value.items()}
    if isinstance(value, list):
        plain = all(isinstance(item, (int, bytes, str)) for item in value)
        return value if plain else [_finished(item, seen) for item in value]
    if isinstance(value, tuple):
        return tuple([_finished(item, seen) for item in value])
    if isinstance(value, (_Name, _Type)):
        raise PickleError("a name or a type alone is not plain data.")
    return value
