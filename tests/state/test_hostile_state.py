"""JSON that nobody wrote for us: a value or an error of ours, and never a hang."""

from __future__ import annotations

import copy
import datetime
import decimal
import random
import sys
import time
from collections import deque
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, JsonckptError, LimitError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.references import TENSOR_TAGS
from jsonckpt._src.state.tree import OMIT, decode_state, encode_state
from tests.states import (
    LITERAL,
    RULES,
    decoded,
    states,
)
from tests.support import FakeTensors, difference, examples

HOSTILE: dict[str, tuple[Any, str]] = {
    "unknown tag": ({"$thing": 1}, r"': unknown tag '\$thing'. .*jsonckpt.register"),
    "empty tag": ({"$": 1}, "unknown tag"),
    "tuple of no array": ({"$tuple": 5}, r"\$tuple': expected an array, found '5'"),
    "inside a tuple": ({"$tuple": [0, {"$int": 1}]}, r"\$tuple/1/\$int': expected"),
    "set of a list": ({"$set": [[1]]}, "type 'list' can be neither a key nor an element"),
    "set of an array": (
        {"$set": [{"$ndarray": {"dtype": "<U1", "shape": [0], "data": []}}]},
        "nei",
    ),
    "set of a signalling decimal": ({"$set": [{"$decimal": "sNaN"}]}, "neither a key"),
    "set with duplicates": ({"$set": [1, 1]}, "duplicate elements"),
    "set with equals": ({"$frozenset": [1, 1.0]}, "duplicate elements"),
    "set with equal tuples": ({"$set": [{"$tuple": [1]}, {"$tuple": [True]}]}, "duplicate"),
    "set of an object": ({"$set": {}}, "an array"),
    "dict of an object": ({"$dict": {}}, "an array"),
    "dict of no pairs": ({"$dict": [[1, 2], [1]]}, r"\$dict/1': expected a \[key, value\] pair"),
    "dict with duplicates": ({"$dict": [[1, 0], [True, 0]]}, "duplicate keys"),
    "dict with a list for a key": ({"$dict": [[[], 0]]}, "neither a key"),
    "int in decimal": ({"$int": "12"}, "hexadecimal"),
    "int as a number": ({"$int": 12}, "hexadecimal"),
    "int with capitals": ({"$int": "0xAB"}, "lower-case"),
    "int with underscores": ({"$int": "0x1_0"}, "hexadecimal"),
    "int with spaces": ({"$int": " 0x10"}, "hexadecimal"),
    "int with a plus": ({"$int": "+0x10"}, "hexadecimal"),
    "int of no digits": ({"$int": "0x"}, "hexadecimal"),
    "float as a number": ({"$float": 1.5}, "NaN"),
    "float in words": ({"$float": "nan"}, "NaN"),
    "float bits of no NaN": ({"$float": "0x3ff0000000000000"}, "bits of a NaN"),
    "float bits of infinity": ({"$float": "0x7ff0000000000000"}, "bits of a NaN"),
    "float bits too few": ({"$float": "0x7ff8"}, "NaN"),
    "complex of one": ({"$complex": [1.0]}, "2 elements"),
    "complex of bools": ({"$complex": [True, 1.0]}, r"\$complex/0"),
    "complex of a huge integer": ({"$complex": [1.0, 10**400]}, "range of a float"),
    "str of no base64": ({"$str": "?"}, "base64"),
    "str of no UTF-8": ({"$str": "/w=="}, "UTF-8"),
    "bytes with a line feed": ({"$bytes": "YQ==\n"}, "base64"),
    "bytes without padding": ({"$bytes": "YQ"}, "base64"),
    "bytes with trailing bits": ({"$bytes": "YR=="}, "base64"),
    "bytes of the other alphabet": ({"$bytes": "-_-_"}, "base64"),
    "bytes beyond ASCII": ({"$bytes": "é==="}, "base64"),
    "bytes as an array": ({"$bytearray": [1]}, "base64"),
    "range of two": ({"$range": [1, 2]}, "3 elements"),
    "range with a bool": ({"$range": [0, True, 1]}, "an integer, found 'True'"),
    "range with a float": ({"$range": [0, 1.0, 1]}, "an integer"),
    "range without a step": ({"$range": [0, 1, 0]}, "other than 0"),
    "slice of two": ({"$slice": [1, 2]}, "3 elements"),
    "ellipsis of something": ({"$ellipsis": 0}, "null"),
    "path of a number": ({"$path": 1}, "a string"),
    "path of a tuple": ({"$path": {"$tuple": []}}, "a string"),
    "pure path of no flavour": (
        {"$pure_path": {"flavour": "mac", "path": ""}},
        "one of posix, windows",
    ),
    "pure path without a path": ({"$pure_path": {"flavour": "posix"}}, "flavour, path"),
    "datetime of garbage": ({"$datetime": "yesterday"}, "ISO 8601"),
    "datetime of a date": ({"$datetime": "2026-01-01"}, "ISO 8601"),
    "datetime that is not": ({"$datetime": "2026-02-30T00:00:00"}, "that exists"),
    "datetime of year 0": ({"$datetime": "0000-01-01T00:00:00"}, "that exists"),
    "datetime with other digits": ({"$datetime": "٢٠٢٦-01-01T00:00:00"}, "ISO 8601"),
    "datetime with a far offset": ({"$datetime": "2026-01-01T00:00:00+24:00"}, "that exists"),
    "datetime with two zones": (
        {"$datetime": {"iso": "2026-01-01T00:00:00Z", "zone": "Europe/Paris"}},
        "without offset",
    ),
    "datetime with a wrong fold": (
        {"$datetime": {"iso": "2026-01-01T00:00:00", "fold": 2}},
        "0 or",
    ),
    "datetime with a bool for fold": (
        {"$datetime": {"iso": "2026-01-01T00:00:00", "fold": True}},
        "an integer",
    ),
    "datetime without iso": ({"$datetime": {"zone": "UTC"}}, "members iso"),
    "datetime as a number": ({"$datetime": 5}, "ISO 8601"),
    "time that is not": ({"$time": "25:00:00"}, "that exists"),
    "date of garbage": ({"$date": "2026-1-1"}, "YYYY-MM-DD"),
    "date that is not": ({"$date": "2026-13-01"}, "that exists"),
    "timedelta of two": ({"$timedelta": [1, 2]}, "3 elements"),
    "timedelta out of range": ({"$timedelta": [10**9, 0, 0]}, "days"),
    "timedelta with many seconds": ({"$timedelta": [0, 86_400, 0]}, "days"),
    "timedelta with huge days": ({"$timedelta": [10**900, 0, 0]}, "days"),
    "timezone of a day": ({"$timezone": [1, 0, 0]}, "24 hours"),
    "zone with a path": ({"$zone": "../../etc/passwd"}, "key of a time zone"),
    "zone with an absolute path": ({"$zone": "/etc/passwd"}, "key of a time zone"),
    "zone with a dot": ({"$zone": "tzdata.zi"}, "key of a time zone"),
    "zone that is a directory": ({"$zone": "Europe"}, "that this system knows"),
    "zone that nobody knows": ({"$zone": "Mars/Olympus"}, "that this system knows"),
    "zone that is no zone": ({"$zone": "leapseconds"}, "that this system knows"),
    "decimal of garbage": ({"$decimal": "one"}, "a decimal number"),
    "decimal with underscores": ({"$decimal": "1_0"}, "a decimal number"),
    "decimal out of range": ({"$decimal": "1E+9999999999999999999"}, "range of decimal"),
    "decimal as a number": ({"$decimal": 1.5}, "a decimal number"),
    "fraction by zero": ({"$fraction": [1, 0]}, "denominator above 0"),
    "fraction by a negative": ({"$fraction": [1, -2]}, "denominator above 0"),
    "fraction of floats": ({"$fraction": [1.0, 2]}, "an integer"),
    "uuid of garbage": ({"$uuid": "x"}, "a UUID"),
    "uuid in braces": ({"$uuid": "{12345678-1234-5678-1234-567812345678}"}, "a UUID"),
    "items with a tag": ({"$counter": {"$tuple": []}}, "pairs where a key begins"),
    "items as a string": ({"$counter": "a"}, "an array"),
    "namespace with a number for a name": ({"$namespace": [[1, 2]]}, "names of attributes"),
    "ordered_dict without items": ({"$ordered_dict": {}}, "members items"),
    "defaultdict of code": ({"$defaultdict": {"factory": "os.system", "items": {}}}, "one of int"),
    "defaultdict of a list": ({"$defaultdict": {"factory": [], "items": {}}}, "one of int"),
    "deque beyond its length": ({"$deque": {"items": [1, 2], "maxlen": 1}}, "at least 2"),
    "deque of negative length": ({"$deque": {"items": [], "maxlen": -1}}, "at least 0"),
    "deque of huge length": ({"$deque": {"items": [], "maxlen": 2**80}}, "at least 0"),
    "deque with a bool": ({"$deque": {"items": [], "maxlen": True}}, "an integer"),
    "dtype of objects": ({"$numpy_dtype": "|O"}, "name of a NumPy dtype"),
    "dtype of fields": ({"$numpy_dtype": "f4,f4"}, "name of a NumPy dtype"),
    "dtype in words": ({"$numpy_dtype": "float32"}, "name of a NumPy dtype"),
    "dtype of huge text": ({"$numpy_dtype": "<U999999999"}, "that exists|own spelling"),
    "dtype with an odd unit": ({"$numpy_dtype": "<M8[007s]"}, "own spelling"),
    "dtype with a huge unit": ({"$numpy_dtype": "<M8[9999999999s]"}, "that exists"),
    "ndarray without data": ({"$ndarray": {"dtype": "<f4", "shape": []}}, "dtype, shape, data"),
    "ndarray of numbers": ({"$ndarray": {"dtype": "<f4", "shape": [1], "data": [1]}}, r"\$tensor"),
    "ndarray with a negative size": (
        {"$ndarray": {"dtype": "<U1", "shape": [-1, -1], "data": [""]}},
        "64 sizes",
    ),
    "ndarray with too many sizes": (
        {"$ndarray": {"dtype": "<U1", "shape": [1] * 65, "data": [""]}},
        "64 sizes",
    ),
    "ndarray with another order": (
        {"$ndarray": {"dtype": "<U1", "shape": [], "data": ["a"], "order": "C"}},
        "'F'",
    ),
    "text with too few elements": (
        {"$ndarray": {"dtype": "<U1", "shape": [2], "data": ["a"]}},
        "2 elements",
    ),
    "text that is too long": (
        {"$ndarray": {"dtype": "<U1", "shape": [1], "data": ["ab"]}},
        "data/0': expected str of at most 1",
    ),
    "text that is no text": ({"$ndarray": {"dtype": "<U1", "shape": [1], "data": [1]}}, "str"),
    "bytes that are text": ({"$ndarray": {"dtype": "|S1", "shape": [1], "data": ["a"]}}, "bytes"),
    "text of an impossible shape": (
        {"$ndarray": {"dtype": "<U1", "shape": [0, 2**62, 2**62], "data": []}},
        "that NumPy can hold",
    ),
    "scalar without value": ({"$scalar": {"dtype": "<f4"}}, "dtype, value"),
    "scalar of objects": ({"$scalar": {"dtype": "|O", "value": 1}}, "name of a NumPy dtype"),
    "scalar with a byte order": ({"$scalar": {"dtype": ">f4", "value": 1.0}}, "little-endian"),
    "scalar out of range": ({"$scalar": {"dtype": "|i1", "value": 128}}, "range of int8"),
    "scalar of a float for an int": ({"$scalar": {"dtype": "|i1", "value": 1.0}}, "an integer"),
    "scalar of an int for a bool": ({"$scalar": {"dtype": "|b1", "value": 1}}, "true or false"),
    "scalar of a bool for an int": ({"$scalar": {"dtype": "|i1", "value": True}}, "an integer"),
    "scalar float out of range": ({"$scalar": {"dtype": "<f2", "value": 1e6}}, "range of float16"),
    "scalar with bits of no NaN": ({"$scalar": {"dtype": "<f2", "value": "0x0000"}}, "of a NaN"),
    "scalar with too many bits": (
        {"$scalar": {"dtype": "<f4", "value": "0x7ff8000000000000"}},
        "NaN's 32 bits",
    ),
    "scalar complex of one": ({"$scalar": {"dtype": "<c8", "value": 1.0}}, "2 elements"),
    "scalar time out of range": ({"$scalar": {"dtype": "<M8[s]", "value": 2**63}}, "64 bits"),
    "scalar text of another length": ({"$scalar": {"dtype": "<U2", "value": "abc"}}, "fill <U2"),
    "scalar text of bytes": ({"$scalar": {"dtype": "|S1", "value": "a"}}, "fill"),
    "no JSON": ((1, 2), "tuple is not a JSON value"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(case: str) -> None:
    value, message = HOSTILE[case]
    with pytest.raises(FormatError, match=f"state '/a.*{message}"):
        decoded({"a": value})


def test_members_without_a_meaning_are_ignored() -> None:
    value: Json = {"$deque": {"items": [1], "maxlen": None, "comment": "by hand"}}
    assert decoded(value) == deque([1])


def test_an_object_with_a_second_member_is_no_tag() -> None:
    assert decoded({"$tuple": [1], "b": 2}) == {"$tuple": [1], "b": 2}


def test_other_spellings_of_times() -> None:
    assert decoded({"$datetime": "2026-01-01T00:00:00Z"}).tzinfo is datetime.timezone.utc
    assert decoded({"$time": "00:00:00.125"}) == datetime.time(0, 0, 0, 125_000)


def test_the_wrong_tensor_for_an_array_is_refused() -> None:
    tensors = FakeTensors()
    tensors.records["/x"] = np.zeros(4, "<f4")
    for dtype, shape in (("<f8", [4]), ("<f4", [2, 2]), ("<i4", [4]), ("<M8[s]", [4])):
        body = {"dtype": dtype, "shape": shape, "data": {"$tensor": "/x"}}
        with pytest.raises(FormatError, match="expected a tensor of"):
            decode_state({"$ndarray": body}, tensors, rules=RULES)  # type: ignore[dict-item]


def test_little_text_cannot_ask_for_much_memory() -> None:
    body: Json = {"dtype": "<U500000000", "shape": [2], "data": ["a", "b"]}
    with pytest.raises(LimitError, match="would take 4000000000 bytes"):
        decoded({"$ndarray": body})


def test_hostile_numbers_do_not_hang() -> None:
    start = time.perf_counter()
    huge: Any = {"$int": "0x" + "f" * 4_000_000}
    assert decoded(huge).bit_length() == 16_000_000
    bad: list[Json] = [
        {"$fraction": [huge, huge]},
        {"$range": [0, huge, huge]},
        {"$timedelta": [huge, 0, 0]},
    ]
    for value in bad:
        with pytest.raises(LimitError):
            decoded(value)
    for text in ("1E+999999999999999999", "1E-999999999999999999", "9" * 1_000_000):
        decoded({"$set": [{"$decimal": text}, 1]})
    collisions: list[Json] = [number * sys.hash_info.modulus for number in range(1, 100_000)]
    pairs: list[Json] = [[number, 0] for number in collisions]
    attacks: list[Json] = [{"$set": collisions}, {"$dict": pairs}]
    for value in attacks:
        with pytest.raises(FormatError, match="same hash"):
            decoded(value)
    assert time.perf_counter() - start < 5


def test_reading_never_depends_on_the_context_of_the_program() -> None:
    with decimal.localcontext() as context:
        context.prec = 3
        context.traps[decimal.InvalidOperation] = False
        assert str(decoded({"$decimal": "1.23456789"})) == "1.23456789"
        with pytest.raises(FormatError):
            decoded({"$decimal": "1E+9999999999999999999"})


json_values: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=6)
    | st.sampled_from(
        ["<f4", "|S3", "<U2", "<M8[s]", "NaN", "0x1", "Infinity", "AAAA", "UTC", "posix", "1E+9"]
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.dictionaries(
            st.sampled_from(sorted([*RULES.by_tag, *TENSOR_TAGS, "$dict", "$tuple", "$x"])),
            inner,
            min_size=1,
            max_size=1,
        ),
        st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                [
                    "items",
                    "maxlen",
                    "factory",
                    "dtype",
                    "shape",
                    "data",
                    "value",
                    "iso",
                    "metadata",
                ],
                inner,
            ),
        ),
    ),
    max_leaves=15,
)


@settings(max_examples=examples(400))
@given(json_values)
def test_any_json_gives_a_value_or_our_error(value: Json) -> None:
    check_reading(value, FakeTensors())


def check_reading(value: Json, tensors: FakeTensors) -> None:
    try:
        state = decode_state(value, tensors, rules=RULES)
    except JsonckptError:
        return
    # What is read can be written, and then it reads as the same.
    if state is not OMIT:
        again = decode_state(
            encode_state(state, door2 := FakeTensors(), rules=RULES), door2, rules=RULES
        )
        assert difference(state, again) is None


@settings(max_examples=examples(300))
@given(states, st.integers(), st.sampled_from(LITERAL))
def test_damaged_trees_give_a_value_or_our_error(
    state: object, seed: int, literal: tuple[object, Json]
) -> None:
    tensors = FakeTensors()
    value = encode_state([state, literal[0]], tensors, rules=RULES)
    check_reading(_damaged(copy.deepcopy(value), random.Random(seed)), tensors)


def _damaged(value: Any, chance: random.Random) -> Any:
    nodes: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            nodes.append((node, key))
            if isinstance(node[key], list | dict):
                walk(node[key])

    walk(value)
    for _ in range(chance.randint(1, 3)):
        node, key = chance.choice(nodes)
        other, other_key = chance.choice(nodes)
        if key not in (node if isinstance(node, dict) else range(len(node))):
            continue
        action = chance.randrange(4)
        if action == 0:
            node[key] = chance.choice([None, True, -1, 2**70, 1.5, "", "x", [], {}, [1, [2]]])
        elif action == 1 and isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        elif action == 2 and isinstance(node, dict):
            node[chance.choice([*RULES.by_tag, *TENSOR_TAGS])] = node.pop(key)
        elif other_key in (other if isinstance(other, dict) else range(len(other))):
            node[key] = copy.deepcopy(other[other_key])
    return value
