"""The rules of Python and NumPy: the JSON of every tag, and the exact way back."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import functools
import math
import random
import time
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from jsonckpt._src.errors import LimitError, UnsupportedTypeError
from jsonckpt._src.format import json_text
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.references import references_in
from jsonckpt._src.state.tree import decode_state, encode_state
from tests.states import (
    LITERAL,
    MOMENT,
    RULES,
    back,
    check,
    encoded,
    nan,
    shown_id,
    states,
)
from tests.support import FakeTensor, FakeTensors, difference, examples, same


@pytest.mark.parametrize(("state", "value"), LITERAL, ids=shown_id)
def test_literal(state: object, value: Json) -> None:
    tensors = FakeTensors()
    assert difference(encode_state(state, tensors, rules=RULES), value) is None
    assert difference(decode_state(value, tensors, rules=RULES), state) is None
    check(state)


def test_every_tag_of_the_table_is_tried() -> None:
    tried = {tag for _, value in LITERAL for tag in _tags(value)}
    assert tried >= set(RULES.by_tag) | {"$dict", "$tuple"}


def _tags(value: Json) -> set[str]:
    if isinstance(value, list):
        return set().union(*map(_tags, value))
    if isinstance(value, dict):
        own = {tag for tag in value if len(value) == 1 and tag[:1] == "$"}
        return own.union(*map(_tags, value.values()))
    return set()


# Round trips ---------------------------------------------------------------------------------

ARRAYS: list[np.ndarray[Any, Any]] = [
    *(np.array([[0, 1, 1], [1, 0, 1]]).astype(code) for code in "?bhilqBHILQefdFD"),
    *(np.arange(6).reshape(2, 3).astype(f">{code}") for code in ("i2", "u8", "f2", "f8", "c16")),
    np.array(1.5),
    np.array(5, ">i4"),
    np.array("text"),
    np.array(np.datetime64("NaT", "us")),
    np.empty((0, 3), "f4"),
    np.empty((3, 0), "<U7"),
    np.empty((0,), "|S1"),
    np.ndarray((2, 2), "<U0"),
    np.arange(24).reshape(2, 3, 4)[:, ::2, ::-1],
    np.broadcast_to(np.float32(1), (3, 2)),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.asfortranarray(np.array([["a", "b"], ["c", "\ud800"]])),
    np.arange(6.0).reshape(2, 3).T,
    np.array(["2026-01-01", "NaT"], "M8[s]"),
    np.array(["2026-01-01", "NaT"], ">M8[25s]"),
    np.array([1, -1]).view("m8"),
    np.array([[1, 2], [3, 4]], ">m8[D]", order="F"),
    np.array([0x7FA00001, 0xFFC12345], "<u4").view("<f4"),
    np.array([0x7FA00001, 0xFFC12345], ">u4").view(">f4"),
    np.array([0x7D01], "<u2").view("<f2"),
    np.array([b"\x00a\x00", b""]),
    np.array(["é", "\U0001f600\0x"], ">U3"),
]


@pytest.mark.parametrize("array", ARRAYS, ids=lambda each: f"{each.dtype.str}-{each.shape}")
def test_arrays(array: np.ndarray[Any, Any]) -> None:
    result = back(array)
    if not array.flags.c_contiguous and not array.flags.f_contiguous:
        array = array.copy()
    assert difference(array, result) is None


def test_an_array_that_can_be_shared_is_not_copied() -> None:
    array = np.arange(4.0)
    tensors = FakeTensors()
    value = encode_state([array], tensors, rules=RULES)
    assert np.shares_memory(tensors.records["/0"], array)
    assert np.shares_memory(decode_state(value, tensors, rules=RULES)[0], array)
    times = np.array(["2026-01-01"], "M8[s]")
    assert np.shares_memory(back([times])[0], times)


@settings(max_examples=examples(200))
@given(states)
def test_round_trip(state: object) -> None:
    tensors = FakeTensors()
    value = encode_state(state, tensors, rules=RULES)
    names = [name for name, _, _ in references_in(value)]
    assert set(names) == set(tensors.records)
    assert len(set(names)) == len(names)
    assert difference(state, back(state)) is None


def test_the_comparison_sees_small_differences() -> None:
    metadata: OrderedDict[str, int] = OrderedDict()
    metadata._metadata = {}  # type: ignore[attr-defined]
    for one, two in (
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (nan(0x7FF8000000000000), nan(0xFFF8000000000000)),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1: 0}, {True: 0}),
        ({1}, {1.0}),
        ((1,), [1]),
        (OrderedDict(), metadata),
        (defaultdict(list), defaultdict(dict)),
        (deque([1]), deque([1], 2)),
        (np.float32(1), np.float64(1)),
        (np.zeros((2, 2)), np.zeros((2, 2), order="F")),
        (np.zeros(2, ">f4"), np.zeros(2, "<f4")),
        (MOMENT, MOMENT.replace(fold=1)),
        (decimal.Decimal("1.0"), decimal.Decimal("1.00")),
        (argparse.Namespace(a=1), argparse.Namespace(a=1.0)),
    ):
        assert not same(one, two), (one, two)


def test_sets_are_written_in_one_order() -> None:
    elements: list[Any] = ["b", "a", 3, 10, (1, 2), None, 2.5, frozenset({"x", "y"})]
    texts = set()
    for seed in range(20):
        random.Random(seed).shuffle(elements)
        texts.add(json_text.dump(encoded(set(elements))))
    assert len(texts) == 1


# What cannot be written ----------------------------------------------------------------------


class Int(int):
    pass


class Str(str):
    pass


class Dict(dict[str, int]):
    pass


Point = collections.namedtuple("Point", "x y")


def unsupported() -> dict[str, tuple[object, str]]:
    ordered: OrderedDict[str, int] = OrderedDict()
    ordered.extra = 1  # type: ignore[attr-defined]
    counter: Counter[str] = Counter()
    counter.extra = 1  # type: ignore[attr-defined]
    shared = FakeTensor()
    tensors = FakeTensors()
    tensors.put(shared, "/shared")
    return {
        "object": (object(), "jsonckpt.register(object, to_json=..., from_json=...)"),
        "int subclass": (Int(1), "put int(...) of it in its place"),
        "str subclass": (Str("a"), "put str(...) of it"),
        "dict subclass": (Dict(), "put dict(...) of it"),
        "namedtuple": (Point(1, 2), "jsonckpt.register(Point) before saving"),
        "struct_time": (time.gmtime(0), "jsonckpt.register(struct_time"),
        "function": (len, "Code is never saved"),
        "lambda": (lambda: 1, "Code is never saved"),
        "partial": (functools.partial(len), "Code is never saved"),
        "class": (int, "Code is never saved"),
        "module": (math, "Code is never saved"),
        "iterator": (iter([]), "jsonckpt.register(list_iterator"),
        "memoryview": (memoryview(b""), "jsonckpt.register(memoryview"),
        "defaultdict with a lambda": (defaultdict(lambda: 1), "<lambda>' is code"),
        "defaultdict with a partial": (defaultdict(functools.partial(list)), "is code"),
        "OrderedDict with attributes": (ordered, "attribute 'extra', which would be lost"),
        "Counter with attributes": (counter, "attribute 'extra', which would be lost"),
        "named offset": (
            datetime.timezone(datetime.timedelta(hours=1), "CET"),
            "cannot keep a name of its own",
        ),
        "datetime with a named offset": (
            MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(0), "GMT")),
            "cannot keep a name of its own",
        ),
        "a class of time zones": (
            MOMENT.replace(tzinfo=type("Zone", (datetime.tzinfo,), {})()),
            "convert to UTC",
        ),
        "text beyond Unicode": (np.array([0x110000], "<u4").view("<U1"), "NumPy cannot read it"),
        "object array": (np.array([None]), "Its dtype is object"),
        "structured array": (np.zeros(1, [("a", "f4")]), "save its fields"),
        "longdouble array": (np.zeros(1, np.longdouble), "float (16 to 64 bits)"),
        "longdouble": (np.longdouble(1), "float (16 to 64 bits)"),
        "void": (np.zeros(1, "V3")[0], "can be saved"),
        "object dtype": (np.dtype("O"), "Save its name"),
        "structured dtype": (np.dtype([("a", "f4")]), "Save its name"),
        "dtype with metadata": (np.dtype("f4", metadata={"a": 1}), "Save its name"),
        "masked array": (np.ma.masked_array([1], [True]), "subclass of numpy.ndarray"),
        "record array": (np.zeros(1, [("a", "f4")]).view(np.recarray), "subclass of numpy.ndarray"),
        "generator": (np.random.default_rng(0), "Save its state"),
    }


@pytest.mark.parametrize("case", unsupported())
def test_unsupported(case: str) -> None:
    value, hint = unsupported()[case]
    with pytest.raises(UnsupportedTypeError) as caught:
        encoded({"a": [0, {"b/c": value}]})
    message = str(caught.value)
    assert message.startswith("state '/a/1/b~1c")
    assert hint in message
    assert isinstance(caught.value, TypeError)


def test_the_message_gives_the_whole_type_name() -> None:
    module = r"'tests\.state\.test_python_types\."
    with pytest.raises(UnsupportedTypeError, match=f"{module}Int'"):
        encoded(Int(1))
    with pytest.raises(UnsupportedTypeError, match=f"state '/s/0': .*{module}Int'"):
        encoded({"s": {Int(1)}})
    with pytest.raises(UnsupportedTypeError, match=f"{module}Str'"):
        encoded({Str("a"): 1})


def test_numbers_too_long_for_arithmetic_are_refused() -> None:
    check([fractions.Fraction(2**16383, 3), range(2**16383), 2**100_000])
    for value in (fractions.Fraction(2**20000, 3), range(2**20000)):
        with pytest.raises(LimitError, match="state '/x': an integer of 20001 bits"):
            encoded({"x": value})
