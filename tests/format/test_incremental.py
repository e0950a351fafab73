"""JSON in pieces: the same texts as :func:`json_text.parse`, whatever the pieces are."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, JsonckptError, LimitError
from jsonckpt._src.format.json_text import dump, dump_pretty, marks_of, parse
from jsonckpt._src.format.limits import DEFAULT_LIMITS, Limits
from jsonckpt._src.shards.incremental import IncrementalReader

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner),
)


def read(text: bytes, limits: Limits = DEFAULT_LIMITS) -> tuple[Any, IncrementalReader]:
    reader = IncrementalReader(limits)
    for line in text.splitlines(keepends=True):
        reader.push(line)
    return reader.open[0][0], reader


@given(value=st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES))
def test_reads_what_is_written(value: dict[str, Any]) -> None:
    for text in (dump(value), dump_pretty(value)):
        found, reader = read(text)
        assert dump(found) == dump(value)
        assert reader.marks == marks_of(text)


REFUSED = {
    "twice": (b'{"a":[1,{"b":2,"b":3}]}', FormatError, "at '/a/1/b': member 'b' occurs twice"),
    "twice by escape": (b'{"a":1,"\\u0061":2}', FormatError, "member 'a' occurs twice"),
    "broken": (b'{"a":{"x/y":nope}}', FormatError, "at '/a/x~1y': broken JSON"),
    "in a list": (b'{"a":[1,2,nope]}', FormatError, "at '/a/2': broken JSON"),
    "overflow": (b'{"a":1e400}', FormatError, "at '/a': the number '1E.400' is too large"),
    "exponent": (b'{"a":1e-9999999999999999999}', FormatError, "exponent of over 18 digits"),
    "surrogate": (b'{"a":1,\n"b":"\\ud800"}', FormatError, "behind '/a': a lone surrogate"),
    "long integer": (b'{"a":%b}' % (b"7" * 1001), LimitError, "a number of more than 1000"),
    "longest integer": (b'{"a":%b}' % (b"7" * 100_000), LimitError, "a number of more than 1000"),
    "depth": (b'{"a":' + b"[" * 200 + b"]" * 200 + b"}", LimitError, "deeper than 200 levels"),
    "utf-8": (b'{"a":"\xff"}', FormatError, "invalid UTF-8"),
    "form feed": (b'{"a":\x0c1}', FormatError, "a control character"),
    "plus": (b'{"a":+1}', FormatError, "a plus sign"),
    "more": (b"{} {}", FormatError, "broken JSON"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses_what_the_strict_parser_refuses(name: str) -> None:
    text, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        read(text)
    with pytest.raises(JsonckptError):
        parse(text, what="x")


def test_long_digits_in_a_string_are_no_number() -> None:
    assert read(b'{"a":"%b"}' % (b"7" * 5000))[0] == {"a": "7" * 5000}


def test_integers_that_ijson_cannot_read() -> None:
    limits = Limits(number_chars=None)
    with pytest.raises(LimitError, match="too many digits"):
        read(b"[%b]" % (b"7" * 5000), limits)
    assert read(b"[0.%b]" % (b"7" * 5000), limits)[0] == [float("0." + "7" * 20)]


def test_marks_are_limited() -> None:
    text = b'{"a":[[],[],"x"]}'
    limits = Limits(marks=marks_of(text))
    assert read(text, limits)[0] == {"a": [[], [], "x"]}
    with pytest.raises(LimitError, match="brackets and strings"):
        read(text, Limits(marks=marks_of(text) - 1))
