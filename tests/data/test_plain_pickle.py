"""The plain reader gives what unpickling gives, and runs nothing."""

from __future__ import annotations

import os
import pickle
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lipadvisor.experiments.data import PickleError, load_plain_pickle

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner, inner),
    max_leaves=20,
)


@settings(deadline=None)  # a busy machine is no failure
@given(plain, st.integers(2, 5))
def test_equals_unpickling_on_plain_data(value: object, protocol: int) -> None:
    if protocol == 2 and b"__builtin__" in (dumped := pickle.dumps(value, 2)):
        with pytest.raises(PickleError, match="refused"):  # empty bytes are a call of bytes() there
            load_plain_pickle(dumped)
        return
    assert load_plain_pickle(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i4", ">i8", "<f8", "?"])
def test_arrays(protocol: int, dtype: str) -> None:
    array = np.arange(24).reshape(4, 6).astype(dtype)
    for one in (array, np.asfortranarray(array)):
        found = load_plain_pickle(pickle.dumps({"a": one}, protocol))["a"]
        assert found.dtype == one.dtype
        np.testing.assert_array_equal(found, one)


def test_runs_nothing(tmp_path: object) -> None:
    class Evil:
        def __reduce__(self) -> object:
            return (os.mkdir, (f"{tmp_path}/made",))

    for protocol in (0, 2, 4):
        with pytest.raises(PickleError, match="refused"):
            load_plain_pickle(pickle.dumps({"a": Evil()}, protocol))
    assert os.listdir(str(tmp_path)) == []


def test_object_arrays_and_subclasses_are_refused() -> None:
    with pytest.raises(PickleError):
        load_plain_pickle(pickle.dumps(np.array([{}, []], dtype=object), 2))
    with pytest.raises(PickleError):
        load_plain_pickle(pickle.dumps(np.ma.masked_array([1, 2]), 2))


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x02.", pickle.dumps([1, 2, 3], 2)[:-3]])
def test_what_is_no_pickle_is_named_so(content: bytes) -> None:
    with pytest.raises(PickleError):
        load_plain_pickle(content)


def test_an_array_with_a_wrong_length_is_refused() -> None:
    content = pickle.dumps(np.zeros(7, np.uint8), 2)
    with pytest.raises(PickleError, match="bytes"):
        load_plain_pickle(content.replace(struct.pack("BB", ord("K"), 7) + b"\x85", b"K\x09\x85", 1))


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]q\x00h\x00a.",  # a list in itself
        b"\x80\x02}q\x00(K\x01h\x00u.",  # a dict in itself
        b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b".",
        b"\x80\x04)" + b"\x85" * 100_000 + b".",
        b"\x80\x02})" + b"q\x00h\x00\x86" * 40 + b"K\x01s.",  # a key of 2**40 parts
    ],
)
def test_what_is_made_to_exhaust_the_reader_is_refused(content: bytes) -> None:
    with pytest.raises(PickleError):
        load_plain_pickle(content)


def test_shared_parts_are_read_once() -> None:
    doubled = b"\x80\x02]K\x01a"
    for index in range(60):  # each list holds the one before twice: 2**60 numbers
        doubled += bytes([ord("q"), index]) + b"0](" + bytes([ord("h"), index, ord("h"), index]) + b"e"
    found = load_plain_pickle(doubled + b".")
    for _ in range(60):
        assert len(found) == 2
        assert found[0] is found[1]
        found = found[0]
    assert found == [1]
