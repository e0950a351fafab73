"""Strict JSON text: what is refused, where the message says it is, and the exact way back."""

from __future__ import annotations

import json
import math
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, LimitError, UnsupportedTypeError
from jsonckpt._src.format import json_text
from jsonckpt._src.format.json_text import Json, dump, dump_pretty, parse
from tests.support import same

text = st.text(st.characters(exclude_categories=["Cs"]))
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**600), 10**600)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
values: st.SearchStrategy[Json] = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=30
)


@given(values)
def test_round_trip(value: Json) -> None:
    assert same(parse(dump(value), what="x"), value)


@given(values, st.integers(0, 4), st.integers(0, 60))
def test_pretty_round_trip(value: Json, indent: int, width: int) -> None:
    written = dump_pretty(value, indent, width)
    assert same(parse(written, what="x"), value)


@given(values)
def test_dump_is_what_the_standard_library_reads(value: Json) -> None:
    assert same(json.loads(dump(value)), value)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_value_or_a_format_error(raw: bytes) -> None:
    with suppress(FormatError):
        parse(raw, what="x")


@given(
    values,
    st.lists(st.tuples(st.integers(0, 10**6), st.sampled_from(list(b'"\\[]{},:0eu9dDnN-. \xff')))),
)
def test_damaged_text_gives_a_value_or_a_proper_error(
    value: Json, damage: list[tuple[int, int]]
) -> None:
    raw = bytearray(dump(value))
    for place, byte in damage:
        raw[place % len(raw)] = byte
    try:
        parsed = parse(bytes(raw), what="x", max_depth=4, max_number=20)
    except (FormatError, LimitError):
        return
    # What passes is JSON to the standard library, too, and can be written again.
    assert same(json.loads(bytes(raw)), parsed)
    dump(parsed)


REFUSED = {
    "empty": (b"", "line 1 column 1: not JSON"),
    "byte order mark": (b"\xef\xbb\xbf{}", "line 1 column 1: a byte order mark"),
    "not utf-8": (b'{"a":\n "\xff"}', "line 2 column 3: not UTF-8"),
    "surrogate bytes": (b'"\xed\xa0\x80"', "line 1 column 2: not UTF-8"),
    "utf-16": ('{"a":1}'.encode("utf-16"), "not UTF-8"),
    "duplicate": (b'{"a":1,\n"b":{"a":1,"a":2}}', "line 2 column 17: member 'a' occurs twice"),
    "duplicate behind others": (
        b'[{},{"}":{}},{"\\"}":1,"x":"\\\\","x":2}]',
        "line 1 column 37: member 'x' occurs twice",
    ),
    "duplicate by escape": (b'{"a":1,"\\u0061":2}', "member 'a' occurs twice"),
    "NaN": (b'["NaN",\n  NaN]', "line 2 column 3: NaN is not a JSON number"),
    "Infinity": (b'{"x":Infinity}', "line 1 column 6: Infinity is not"),
    "-Infinity": (b'{"x":-Infinity}', "line 1 column 6: -Infinity is not"),
    "overflow": (b'["1e400", 1e400]', "line 1 column 11: the number '1e400' is too large"),
    "negative overflow": (b"[-1e400]", "line 1 column 2: the number '-1e400' is too large"),
    "long integer": (b"[" + b"7" * 1001 + b"]", "line 1 column 2: a number of more than 1000"),
    "long float": (b"[1, 0." + b"7" * 999 + b"]", "line 1 column 5: a number of more than 1000"),
    "high surrogate": (b'["a", "\\ud800"]', "line 1 column 8: a lone surrogate"),
    "low surrogate": (b'["\\udc00"]', "a lone surrogate"),
    "surrogates in the wrong order": (b'["\\udc00\\ud800"]', "column 3: a lone surrogate"),
    "three surrogates": (b'["\\ud83d\\ude00\\ude00"]', "column 15: a lone surrogate"),
    "surrogate in a key": (b'{"\\uDBFF":1}', "column 3: a lone surrogate"),
    "surrogate behind a backslash": (b'["\\\\\\ud800"]', "column 5: a lone surrogate"),
    "deep arrays": (b"[" * 201 + b"]" * 201, "line 1 column 201: nested deeper than 200"),
    "deep objects": (b'{"a":' * 201 + b"1" + b"}" * 201, "column 1001: nested deeper than 200"),
    "deep and endless": (b"[" * 100_000, "column 201: nested deeper than 200"),
    "deep behind a string": (b'["]]]\\"]",' + b"[" * 200, "column 210: nested deeper than 200"),
    "trailing garbage": (b"{} {}", "line 1 column 4: not JSON: Extra data"),
    "trailing NUL": (b"{}\x00", "not JSON"),
    "trailing comma": (b"[1,]", "not JSON"),
    "comment": (b"[1] // one", "not JSON"),
    "control character": (b'["a\nb"]', "not JSON"),
    "single quotes": (b"{'a':1}", "not JSON"),
    "leading zero": (b"[01]", "not JSON"),
    "plus": (b"[+1]", "not JSON"),
    "hexadecimal": (b"[0x10]", "not JSON"),
    "python": (b"[None]", "not JSON"),
    "other digits": ("[\u0661]".encode(), "not JSON"),
    "no-break space": ("\u00a0[1]".encode(), "not JSON"),
    "form feed": (b"\x0c[1]", "not JSON"),
    "bad escape": (b'["\\x41"]', "not JSON"),
    "short escape": (b'["\\u12"]', "not JSON"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_place(case: str) -> None:
    raw, message = REFUSED[case]
    over = "nested deeper" in message or "a number of more than" in message
    with pytest.raises(LimitError if over else FormatError) as caught:
        parse(raw, what="manifest.json")
    assert str(caught.value).startswith("manifest.json: ")
    assert message in str(caught.value)


ACCEPTED: dict[str, tuple[bytes, Json]] = {
    "white space": (b" \t\r\n[1]\n", [1]),
    "pair of surrogates": (b'["\\ud83d\\ude00"]', ["\U0001f600"]),
    "escaped backslash before u": (b'["\\\\ud800"]', ["\\ud800"]),
    "brackets in strings": (b'["' + b"[" * 1000 + b'\\"' + b"{" * 1000 + b'"]', None),
    "long digits in strings": (b'["' + b"7" * 5000 + b'"]', ["7" * 5000]),
    "long digits beside": (b'["' + b"7" * 5000 + b'",12,1.5]', ["7" * 5000, 12, 1.5]),
    "a number of 1000 digits": (b"7" * 1000, int("7" * 1000)),
    "exactly 200 levels": (b"[" * 200 + b"]" * 200, None),
    "minus zero": (b"[-0.0, -0]", [-0.0, 0]),
    "underflow": (b"1e-999", 0.0),
    "huge exponent of zero": (b"0e999", 0.0),
    "same key in two objects": (b'[{"a":1},{"a":2}]', [{"a": 1}, {"a": 2}]),
    "integer beyond 64 bits": (b"123456789012345678901234567890", 123456789012345678901234567890),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    raw, expected = ACCEPTED[case]
    value = parse(raw, what="x")
    if expected is not None:
        assert same(value, expected)


def test_the_limits_are_those_given() -> None:
    with pytest.raises(LimitError, match="deeper than 2"):
        parse(b"[[[]]]", what="x", max_depth=2)
    with pytest.raises(LimitError, match="more than 3 characters"):
        parse(b"[1.25]", what="x", max_number=3)
    with pytest.raises(LimitError, match="more than 3 characters"):
        parse(b"[1234]", what="x", max_number=3)
    assert parse(b"[[]]", what="x", max_depth=2, max_number=3) == [[]]


def test_depth_is_exact_across_the_blocks_that_it_is_counted_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = b'{"a]":[1,"\\"[[",[2,{"b":[]}]],"c":"}"}'
    for size in range(1, 12):
        monkeypatch.setattr(json_text, "_BLOCK", size)
        parse(raw, what="x", max_depth=5)
        with pytest.raises(LimitError, match="column 25: nested deeper than 4"):
            parse(raw, what="x", max_depth=4)
        twice = raw[:-1] + b',"a]":1}'
        with pytest.raises(FormatError, match=f"column {len(twice)}: member 'a]' occurs twice"):
            parse(twice, what="x")


def test_deeper_than_python_follows_is_a_limit_error() -> None:
    with pytest.raises(LimitError, match="deeper than this Python"):
        parse(b"[" * 200_000 + b"]" * 200_000, what="x", max_depth=10**6)


def test_python_s_own_limit_on_digits_is_a_limit_error() -> None:
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(640)
    try:
        with pytest.raises(LimitError, match="too many digits"):
            parse(b"7" * 900, what="x")
    finally:
        sys.set_int_max_str_digits(before)


def test_dump_is_compact_and_exact() -> None:
    value: Json = {"a": [1, 0.1, -0.0, 1e300, None, True], "é\n": "\U0001f600"}
    assert dump(value).decode() == ('{"a":[1,0.1,-0.0,1e+300,null,true],"é\\n":"\U0001f600"}')


@pytest.mark.parametrize("write", [dump, dump_pretty])
def test_what_json_cannot_hold_is_refused(write: object) -> None:
    assert callable(write)
    unwritable: list[object] = [
        math.nan,
        math.inf,
        [-math.inf],
        {"a": [math.nan, []]},
        "\ud800",
        {"\udfff": []},
    ]
    for bad in unwritable:
        with pytest.raises(FormatError):
            write(bad)
    for wrong in ({1, 2}, [b"x"], {"a": [object(), []]}):
        with pytest.raises(UnsupportedTypeError):
            write(wrong)
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(LimitError):
        write(deep)


def test_pretty_layout() -> None:
    value: Json = {
        "epoch": 3,
        "betas": [0.9, 0.95],
        "losses": [float(number) for number in range(40)],
        "empty": {},
        "none": [],
        "model": {
            "transformer.h.0.attn.c_attn.weight": {"$tensor": "/model/transformer.h.0.attn"},
            "transformer.h.0.attn.c_attn.bias": {"$tensor": "/model/transformer.h.0.bias"},
        },
        "pairs": [[1, {"a": 1}], [2, {"a": 2}]],
    }
    losses = ", ".join(f"{number}.0" for number in range(40))
    assert dump_pretty(value).decode() == (
        '{\n "epoch": 3,\n "betas": [0.9, 0.95],\n'
        f' "losses": [{losses}],\n'
        ' "empty": {},\n "none": [],\n "model": {\n'
        '  "transformer.h.0.attn.c_attn.weight": {"$tensor": "/model/transformer.h.0.attn"},\n'
        '  "transformer.h.0.attn.c_attn.bias": {"$tensor": "/model/transformer.h.0.bias"}\n },\n'
        ' "pairs": [[1, {"a": 1}], [2, {"a": 2}]]\n}'
    )


@given(values, st.integers(1, 4), st.integers(10, 80))
def test_pretty_lines_are_wide_only_where_they_must(value: Json, indent: int, width: int) -> None:
    for line in dump_pretty(value, indent, width).decode().split("\n"):
        body = line.strip().rstrip(",")
        if len(line) <= width + 1 or not body or body[-1] not in "]}" or body in "]}":
            continue  # what only closes stands as deep as what opened, however wide the lines
        # Too wide and a container: a list of scalars, perhaps behind its key.
        whole = json.loads("{" + body + "}" if body[0] == '"' else body)
        inner = next(iter(whole.values())) if body[0] == '"' else whole
        if inner == {}:
            continue
        assert isinstance(inner, list)
        assert not any(isinstance(element, list | dict) for element in inner)
