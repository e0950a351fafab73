"""Strategies for the parts of a state without tensors: every tag of section 6.2.

Each strategy gives valid JSON, in all spellings that the format allows.
"""

from __future__ import annotations

import base64
import string
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import Raw

Json = Any


def _tag(name: str, body: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return body.map(lambda value: {f"${name}": value})


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


#: Any text of JSON: no surrogates, which only ``$str`` can say.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_WORDS = st.text(string.ascii_letters + "0 .-ä", max_size=5)
_INTEGERS = st.integers(-5, 5) | st.integers() | st.integers(-(10**630), 10**630)
_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_SPECIAL = st.sampled_from(
    [
        "NaN",
        "Infinity",
        "-Infinity",
        "0x7ff8000000000001",
        "0xfff8000000000000",
        "0x7ff0000000000001",
    ]
)
_PART = _FLOATS | _SPECIAL | st.integers(-9, 9)
_HEX = (st.integers() | st.integers(-(10**700), 10**700)).map(hex)
_SPELLED = st.sampled_from(
    [
        Raw(text)
        for text in (
            b"1e2", b"1E+2", b"-0", b"-0.0", b"1.50", b"5e-324", b"1e-400", b"0.1e1", b'"\\u0041"',
            b'"\\ud83d\\ude00"', b'"\\/\\b\\f\\n\\r\\t\\"\\\\"', b'"\\u0000"', b"[ 1,\t2 ]",
            b'{ "a" :1}',
            b"123456789012345678901234567890", b"[]", b"{}", b'"\xf0\x9f\x98\x80"',
        )
    ]
)  # fmt: skip
_ZONES = ["UTC", "Europe/Berlin"]
_FACTORIES = [
    None, "int", "float", "complex", "bool", "str", "bytes", "list", "dict", "set", "tuple",
    "frozenset", "OrderedDict", "deque",
]  # fmt: skip


def _scalar(dtype: str, value: st.SearchStrategy[Any]) -> st.SearchStrategy[Json]:
    return value.map(lambda v: {"$scalar": {"dtype": dtype, "value": v}})


def _texts(width: int) -> st.SearchStrategy[Json]:
    """An array of text or bytes."""
    text = st.text(string.ascii_letters + "ä", max_size=width)
    return st.one_of(
        st.lists(text, max_size=4).map(
            lambda words: {"dtype": f"<U{width}", "shape": [len(words)], "data": words}
        ),
        st.lists(st.binary(max_size=width), max_size=3).map(
            lambda items: {
                "dtype": f"|S{width}",
                "shape": [len(items), 1],
                "data": [{"$bytes": _base64(item)} for item in items],
                "order": "F",
            }
        ),
    )


_VALUES = st.one_of(
    st.none(), st.booleans(), _INTEGERS, _FLOATS, TEXT, _SPELLED,
)  # fmt: skip
_TAGGED = st.one_of(
    _tag("int", _HEX),
    _tag("float", _SPECIAL),
    _tag("complex", st.lists(_PART, min_size=2, max_size=2)),
    _tag("str", st.sampled_from(["\ud800", "a\udfff", ""]).map(
        lambda text: _base64(text.encode("utf-8", "surrogatepass")))),
    _tag("bytes", st.binary(max_size=4).map(_base64)),
    _tag("bytearray", st.binary(max_size=4).map(_base64)),
    _tag("range", st.tuples(
        _INTEGERS, st.integers() | _tag("int", _HEX), st.integers(1, 9)).map(list)),
    _tag("slice", st.lists(st.none() | st.integers() | TEXT, min_size=3, max_size=3)),
    st.just({"$ellipsis": None}),
    _tag("path", _WORDS | _tag("str", st.just(_base64(b"\xed\xa0\x80")))),
    _tag("pure_path", st.fixed_dictionaries(
        {"flavour": st.sampled_from(["posix", "windows"]), "path": _WORDS})),
    _tag("datetime", st.datetimes().map(lambda when: when.isoformat())),
    _tag("datetime", st.fixed_dictionaries(
        {"iso": st.datetimes().map(lambda when: when.isoformat())},
        optional={"zone": st.sampled_from(_ZONES), "fold": st.integers(0, 1)})),
    _tag("datetime", st.sampled_from(["2020-02-29T23:59:59.123Z", "0001-01-01T00:00:00+01:30:15"])),
    _tag("date", st.dates().map(lambda day: day.isoformat())),
    _tag("time", st.times().map(lambda time: time.isoformat())),
    _tag("time", st.fixed_dictionaries({"iso": st.just("12:00:00"), "fold": st.integers(0, 1)})),
    _tag("timedelta", st.timedeltas().map(lambda t: [t.days, t.seconds, t.microseconds])),
    _tag("timezone", st.sampled_from([[0, 0, 0], [-1, 82800, 0], [0, 86399, 999999]])),
    _tag("zone", st.sampled_from(_ZONES)),
    _tag("decimal", st.decimals(allow_nan=True, allow_infinity=True).map(str)),
    _tag("fraction", st.tuples(st.integers(), st.integers(1, 99)).map(list)),
    _tag("uuid", st.uuids().map(str)),
    _tag("ndarray", st.integers(1, 3).flatmap(_texts)),
    _scalar("|b1", st.booleans()),
    _scalar("<i2", st.integers(-(2**15), 2**15 - 1)),
    _scalar("|u1", st.integers(0, 255)),
    _scalar("longlong", st.integers(-(2**63), 2**63 - 1)),
    _scalar("<f8", _PART),
    _scalar("<f4", st.sampled_from([0.5, -0.0, "NaN", "Infinity", "0x7fc00001", 3])),
    _scalar("<f2", st.sampled_from([0.5, -0.0, "NaN", "-Infinity", "0x7e01", 65504])),
    _scalar("<c8", st.sampled_from([[0.5, "NaN"], [-0.0, 1]])),
    _scalar("<M8[ns]", st.integers(-(2**63), 2**63 - 1)),
    _scalar("<U2", st.sampled_from(["ab", "äö"])),
    _scalar("|S2", st.just({"$bytes": "QUI="})),
    _tag("numpy_dtype", st.sampled_from(["<f4", "|b1", ">i8", "<M8[25s]", "|S7", "<U0"])),
    _tag("dtype", st.sampled_from(["float32", "bool", "quint8"])),
    _tag("device", st.sampled_from(["cpu", "cuda:0", "meta"])),
    _tag("size", st.lists(st.integers(0, 9), max_size=3)),
    _tag("layout", st.sampled_from(["strided", "sparse_coo"])),
    _tag("memory_format", st.sampled_from(["contiguous_format", "channels_last"])),
    _tag("torch_version", st.sampled_from(["2.5.1+cpu", "3"])),
)  # fmt: skip
LEAVES = _VALUES | _TAGGED

# --- containers ---------------------------------------------------------------------------------

CONTAINERS = [
    "list", "object", "tuple", "dict", "set", "frozenset", "ordered_dict", "defaultdict", "counter",
    "deque", "namespace", "simple_namespace", "slice",
]  # fmt: skip
_KEYS = st.text("abc~/ä$", max_size=3)
#: Keys of ``$dict`` and elements of sets, no two of them equal in Python.
_HASHABLE = st.lists(
    st.integers(2, 9)
    | st.text("abc", max_size=2)
    | st.just({"$tuple": [1, "x"]})
    | st.sampled_from([None, True, 0.5, {"$bytes": "QQ=="}, {"$float": "NaN"}]),
    unique_by=repr,
    max_size=3,
)


def container(draw: st.DrawFn, kind: str, nodes: list[Json]) -> Json:
    """A container of the kind, with those nodes that it can hold."""
    if kind == "list":
        return nodes
    if kind == "tuple":
        return {"$tuple": nodes}
    if kind in ("set", "frozenset"):
        return {f"${kind}": draw(_HASHABLE)}
    if kind == "slice":
        return {"$slice": [*nodes, None, 1, "x"][:3]}
    if kind == "deque":
        more = draw(st.none() | st.integers(0, 3))
        return {"$deque": {"items": nodes, "maxlen": None if more is None else len(nodes) + more}}
    if kind == "object":
        return _object(draw, nodes)
    if kind == "dict":
        return {"$dict": _pairs(draw, nodes)}
    if kind.endswith("namespace"):
        # Attributes have names that are strings, in an object or in pairs.
        members = _object(draw, nodes, dollar=False)
        pairs = [[name, value] for name, value in members.items()]
        return {f"${kind}": pairs if draw(st.booleans()) else members}
    items = _pairs(draw, nodes) if draw(st.booleans()) else _object(draw, nodes, dollar=False)
    if kind == "counter":
        return {"$counter": items}
    body: Json = {"items": items}
    if kind == "ordered_dict":
        if draw(st.booleans()):
            body["metadata"] = draw(_VALUES)
        return {"$ordered_dict": body}
    return {"$defaultdict": body | {"factory": draw(st.sampled_from(_FACTORIES))}}


def _object(draw: st.DrawFn, nodes: list[Json], *, dollar: bool = True) -> Json:
    keys = draw(st.lists(_KEYS, min_size=len(nodes), max_size=len(nodes), unique=True))
    if not dollar or len(keys) == 1:
        keys = [f"k{key}" for key in keys]
    return dict(zip(keys, nodes, strict=True))


def _pairs(draw: st.DrawFn, nodes: list[Json]) -> Json:
    keys = draw(_HASHABLE)
    return [[key, node] for key, node in zip(keys, nodes)] + [
        [key, 1] for key in keys[len(nodes) :]
    ]
