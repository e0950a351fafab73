"""States for tests: one literal for every tag, and Hypothesis strategies for any state."""

from __future__ import annotations

import argparse
import datetime
import decimal
import fractions
import math
import pathlib
import struct
import types
import uuid
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from jsonckpt._src.format import json_text
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.numpy_types import NUMPY
from jsonckpt._src.state.python_types import PLAIN
from jsonckpt._src.state.tree import decode_state, encode_state
from tests.support import FakeTensor, FakeTensors, difference

RULES = NUMPY + PLAIN


def back(state: object, tensors: FakeTensors | None = None) -> Any:
    """The state after a way through text."""
    tensors = tensors or FakeTensors()
    text = json_text.dump(encode_state(state, tensors, rules=RULES))
    return decode_state(json_text.parse(text, what="state"), tensors, rules=RULES)


def check(state: object) -> None:
    assert difference(state, back(state)) is None


def encoded(state: object) -> Json:
    return encode_state(state, FakeTensors(), rules=RULES)


def decoded(value: Any) -> Any:
    return decode_state(value, FakeTensors(), rules=RULES)


def nan(bits: int) -> float:
    value: float = struct.unpack("<d", struct.pack("<Q", bits))[0]
    return value


# What the JSON looks like --------------------------------------------------------------------

PARIS = zoneinfo.ZoneInfo("Europe/Paris")
HOUR = datetime.timezone(datetime.timedelta(hours=1))
MOMENT = datetime.datetime(2026, 1, 2, 3, 4, 5)
with_metadata: OrderedDict[str, int] = OrderedDict(w=1)
with_metadata._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]


def shown_id(value: object) -> str:
    """A name for a test: a set is not shown, for its order differs from process to process."""
    return type(value).__name__ if isinstance(value, set | frozenset) else ascii(value)[:40]


#: A state and its JSON, for every tag of section 6.2 that needs no torch.
LITERAL: list[tuple[object, Json]] = [
    ({"a": [1, 2.5, None, True, "x"]}, {"a": [1, 2.5, None, True, "x"]}),
    ({}, {}),
    ({"$a": 1}, {"$dict": [["$a", 1]]}),
    ({"$a": 1, "b": 2}, {"$dict": [["$a", 1], ["b", 2]]}),
    ({"a$": 1}, {"a$": 1}),
    ({"": 1}, {"": 1}),
    ({1: "a", "1": "b", None: 2}, {"$dict": [[1, "a"], ["1", "b"], [None, 2]]}),
    ({True: 0, 2.5: 1, (1, "x"): 2}, {"$dict": [[True, 0], [2.5, 1], [{"$tuple": [1, "x"]}, 2]]}),
    ({math.nan: 0}, {"$dict": [[{"$float": "NaN"}, 0]]}),
    ((), {"$tuple": []}),
    ((1, [2]), {"$tuple": [1, [2]]}),
    ({3, 1, "a"}, {"$set": ["a", 1, 3]}),
    (frozenset({(2,), (1,)}), {"$frozenset": [{"$tuple": [1]}, {"$tuple": [2]}]}),
    (10**640 - 1, 10**640 - 1),
    (10**640, {"$int": hex(10**640)}),
    (-(10**640), {"$int": hex(-(10**640))}),
    (-0.0, -0.0),
    (math.inf, {"$float": "Infinity"}),
    (-math.inf, {"$float": "-Infinity"}),
    (math.nan, {"$float": "NaN"}),
    (nan(0xFFF8000000000000), {"$float": "0xfff8000000000000"}),
    (nan(0x7FF0000000000001), {"$float": "0x7ff0000000000001"}),
    (complex(1.5, -0.0), {"$complex": [1.5, -0.0]}),
    (complex(math.nan, math.inf), {"$complex": ["NaN", "Infinity"]}),
    ("a\ud800", {"$str": "Ye2ggA=="}),
    ({"\udfff": 1}, {"$dict": [[{"$str": "7b+/"}, 1]]}),
    (b"\x00\xff", {"$bytes": "AP8="}),
    (bytearray(b"a"), {"$bytearray": "YQ=="}),
    (range(1, 10, 2), {"$range": [1, 10, 2]}),
    (slice(1, None, "x"), {"$slice": [1, None, "x"]}),
    (..., {"$ellipsis": None}),
    (pathlib.Path("a/b"), {"$path": "a/b"}),
    (pathlib.PurePosixPath("/a"), {"$pure_path": {"flavour": "posix", "path": "/a"}}),
    (
        pathlib.PureWindowsPath("c:\\a"),
        {"$pure_path": {"flavour": "windows", "path": "c:\\a"}},
    ),
    (MOMENT, {"$datetime": "2026-01-02T03:04:05"}),
    (MOMENT.replace(microsecond=6, tzinfo=HOUR), {"$datetime": "2026-01-02T03:04:05.000006+01:00"}),
    (MOMENT.replace(fold=1), {"$datetime": {"iso": "2026-01-02T03:04:05", "fold": 1}}),
    (
        MOMENT.replace(tzinfo=PARIS),
        {"$datetime": {"iso": "2026-01-02T03:04:05", "zone": "Europe/Paris"}},
    ),
    (
        datetime.datetime(2025, 10, 26, 2, 30, tzinfo=PARIS, fold=1),
        {"$datetime": {"iso": "2025-10-26T02:30:00", "zone": "Europe/Paris", "fold": 1}},
    ),
    (datetime.date(1, 1, 1), {"$date": "0001-01-01"}),
    (datetime.time(1, 2), {"$time": "01:02:00"}),
    (datetime.time(1, 2, tzinfo=datetime.timezone.utc), {"$time": "01:02:00+00:00"}),
    (
        datetime.time(1, tzinfo=PARIS, fold=1),
        {"$time": {"iso": "01:00:00", "zone": "Europe/Paris", "fold": 1}},
    ),
    (datetime.timedelta(-1, 5, 7), {"$timedelta": [-1, 5, 7]}),
    (datetime.timezone.utc, {"$timezone": [0, 0, 0]}),
    (HOUR, {"$timezone": [0, 3600, 0]}),
    (PARIS, {"$zone": "Europe/Paris"}),
    (decimal.Decimal("1.50"), {"$decimal": "1.50"}),
    (decimal.Decimal("1E+999999"), {"$decimal": "1E+999999"}),
    (decimal.Decimal("-sNaN123"), {"$decimal": "-sNaN123"}),
    (decimal.Decimal("-0E-7"), {"$decimal": "-0E-7"}),
    (fractions.Fraction(-1, 3), {"$fraction": [-1, 3]}),
    (fractions.Fraction(1, 10**700), {"$fraction": [1, {"$int": hex(10**700)}]}),
    (
        uuid.UUID("12345678-1234-5678-1234-567812345678"),
        {"$uuid": "12345678-1234-5678-1234-567812345678"},
    ),
    (argparse.Namespace(lr=0.1, seed=1), {"$namespace": {"lr": 0.1, "seed": 1}}),
    (types.SimpleNamespace(**{"$x": ()}), {"$simple_namespace": [["$x", {"$tuple": []}]]}),
    (OrderedDict([("b", 1), ("a", 2)]), {"$ordered_dict": {"items": {"b": 1, "a": 2}}}),
    (OrderedDict([(1, 2)]), {"$ordered_dict": {"items": [[1, 2]]}}),
    (
        with_metadata,
        {"$ordered_dict": {"items": {"w": 1}, "metadata": {"": {"version": 2}}}},
    ),
    (defaultdict(None, a=1), {"$defaultdict": {"factory": None, "items": {"a": 1}}}),
    (defaultdict(list, {1: []}), {"$defaultdict": {"factory": "list", "items": [[1, []]]}}),
    (defaultdict(OrderedDict), {"$defaultdict": {"factory": "OrderedDict", "items": {}}}),
    (Counter("aab"), {"$counter": {"a": 2, "b": 1}}),
    (deque([1, (2,)]), {"$deque": {"items": [1, {"$tuple": [2]}], "maxlen": None}}),
    (deque([1], 3), {"$deque": {"items": [1], "maxlen": 3}}),
    (np.dtype("float32"), {"$numpy_dtype": "<f4"}),
    (np.dtype(">i8"), {"$numpy_dtype": ">i8"}),
    (np.float32(0.1), {"$scalar": {"dtype": "<f4", "value": 0.1}}),
    (np.float64(0.1), {"$scalar": {"dtype": "<f8", "value": 0.1}}),
    (np.bool_(True), {"$scalar": {"dtype": "|b1", "value": True}}),
    (np.int8(-3), {"$scalar": {"dtype": "|i1", "value": -3}}),
    (np.uint64(2**64 - 1), {"$scalar": {"dtype": "<u8", "value": 2**64 - 1}}),
    (np.longlong(5), {"$scalar": {"dtype": "longlong", "value": 5}}),
    (np.float16(np.inf), {"$scalar": {"dtype": "<f2", "value": "Infinity"}}),
    (np.float32(np.nan), {"$scalar": {"dtype": "<f4", "value": "NaN"}}),
    (
        np.array([0x7FA00001], "<u4").view("<f4")[0],
        {"$scalar": {"dtype": "<f4", "value": "0x7fa00001"}},
    ),
    (np.complex64(complex(1, -0.0)), {"$scalar": {"dtype": "<c8", "value": [1.0, -0.0]}}),
    (np.datetime64("2026-01-02", "D"), {"$scalar": {"dtype": "<M8[D]", "value": 20455}}),
    (np.timedelta64("NaT", "ns"), {"$scalar": {"dtype": "<m8[ns]", "value": -(2**63)}}),
    (np.str_("ab\0"), {"$scalar": {"dtype": "<U3", "value": "ab\0"}}),
    (np.str_("\ud800"), {"$scalar": {"dtype": "<U1", "value": {"$str": "7aCA"}}}),
    (np.bytes_(b"a\0"), {"$scalar": {"dtype": "|S2", "value": {"$bytes": "YQA="}}}),
    (
        {"x": np.zeros((2, 3), "f4")},
        {"x": {"$ndarray": {"dtype": "<f4", "shape": [2, 3], "data": {"$tensor": "/x"}}}},
    ),
    (
        np.zeros((2, 3), ">f4", "F"),
        {"$ndarray": {"dtype": ">f4", "shape": [2, 3], "data": {"$tensor": ""}, "order": "F"}},
    ),
    (
        np.array(["a", "bc"]),
        {"$ndarray": {"dtype": "<U2", "shape": [2], "data": ["a", "bc"]}},
    ),
    (
        np.array([b"a"]),
        {"$ndarray": {"dtype": "|S1", "shape": [1], "data": [{"$bytes": "YQ=="}]}},
    ),
]


def scalars_of(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    return st.binary(min_size=dtype.itemsize, max_size=dtype.itemsize).map(
        lambda raw: np.frombuffer(raw, dtype)[0]
    )


numpy_scalars = st.sampled_from(
    [np.dtype(c) for c in "bhilqBHILQefdFD"] + [np.dtype("M8[ms]"), np.dtype("m8[W]")]
).flatmap(scalars_of)
numpy_arrays = hnp.arrays(
    st.sampled_from(["<f4", ">f8", "<i2", ">u4", "?", "<c8", "<M8[s]", "<U3", "|S2"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3),
)
any_text = st.text(st.characters(exclude_categories=[]), max_size=8)
any_float = st.binary(min_size=8, max_size=8).map(lambda raw: struct.unpack("<d", raw)[0])
zones = st.none() | st.sampled_from([datetime.timezone.utc, HOUR, PARIS])
leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**700), 10**700),
    any_float,
    st.floats(),
    any_text,
    st.builds(complex, any_float, any_float),
    st.binary(max_size=9),
    st.binary(max_size=9).map(bytearray),
    st.builds(range, st.integers(), st.integers(), st.integers().filter(bool)),
    st.datetimes(timezones=zones, allow_imaginary=False),
    st.dates(),
    st.times(timezones=zones),
    st.timedeltas(),
    st.decimals(),
    st.fractions(),
    st.uuids(),
    st.builds(FakeTensor),
    numpy_scalars,
    numpy_arrays,
    st.sampled_from([..., np.dtype("f4"), pathlib.Path("a"), pathlib.PurePosixPath("/b")]),
)
keys = st.one_of(
    any_text,
    st.sampled_from(["$x", "0", "0#2", "", "a/b", "\x01", "\\u0001"]),
    st.integers(-3, 3),
    st.booleans(),
    st.none(),
    any_float,
    st.tuples(st.integers(0, 2), any_text),
    st.frozensets(st.integers()),
    st.binary(max_size=3),
    numpy_scalars.filter(lambda value: value.dtype.kind not in "mM"),
)


def containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    dictionaries = st.dictionaries(keys, inner, max_size=5)
    hashable = st.sets(keys, max_size=5)
    return st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        dictionaries,
        dictionaries.map(OrderedDict),
        dictionaries.map(lambda items: defaultdict(dict, items)),
        dictionaries.map(_counter),
        st.dictionaries(any_text, inner, max_size=3).map(_namespace),
        st.builds(deque, st.lists(inner, max_size=3), st.none() | st.integers(3, 9)),
        st.builds(slice, inner, inner, inner),
        hashable,
        hashable.map(frozenset),
    )


def _counter(items: dict[Any, Any]) -> Counter[Any]:
    result: Counter[Any] = Counter()
    dict.update(result, items)
    return result


def _namespace(items: dict[str, Any]) -> argparse.Namespace:
    result = argparse.Namespace()
    vars(result).update(items)
    return result


states = st.recursive(leaves, containers, max_leaves=20)
