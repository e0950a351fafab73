"""CPython's own tests of JSON: what is JSON is read, what is none is refused, by both parsers."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from jsonckpt import JsonckptError, load
from jsonckpt._src.format import json_text
from tests.foreign.dialects import read
from tests.outside.support import module_of, through
from tests.support import difference

FAIL = module_of("test.test_json.test_fail", "test_json")
PASS = [module_of(f"test.test_json.test_pass{number}", "test_json").JSON for number in (1, 2, 3)]

#: What CPython's list has beside documents that are no JSON.
VALID = [FAIL.JSONDOCS[number - 1] for number in FAIL.SKIPS]
INVALID = [text for text in FAIL.JSONDOCS if text not in VALID]
#: The documents that are written out in the methods of the suite.
INVALID += [
    "",
    "[,",
    "[",
    '["',
    '["spam"',
    '["spam",',
    "{",
    '{"',
    '{"spam"',
    '{"spam":',
    '{"spam":42',
    '{"spam":42,',
    "[42x",
    "[4 2]",
    "42 x",
    "01",
    "-",
    "1.",
    ".5",
    "+1",
    "NaN",
    "-Infinity",
    "[Infinity]",
    "0x10",
    "\ufeff[1]",
    '"\\u12"',
    '"\\ud800"',
    '"\\x61"',
    '{"a":1,"a":2}',
    "１",
    '{"a":٣}',
]


#: Python writes the first, Windows programs the second. Both are read from other programs.
FORGIVEN = {"[Infinity]", "\ufeff[1]"}


@pytest.mark.parametrize("text", INVALID)
def test_what_is_no_json_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(JsonckptError):
        json_text.parse(text.encode("utf-8", "surrogatepass"), what="the text")
    if text not in FORGIVEN:
        with pytest.raises(JsonckptError):
            read(text, tmp_path, plain_lists=True)
    path = tmp_path / "checkpoint.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(JsonckptError):
        load(path)


def _strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs), "a name twice"
    return dict(pairs)


@pytest.mark.parametrize("text", [*PASS, *VALID], ids=lambda text: text.strip()[:20])
def test_what_is_json_is_read_as_python_reads_it(text: str) -> None:
    expected = json.loads(text, object_pairs_hook=_strict)
    found = json_text.parse(text.encode(), what="the text", max_depth=500)
    assert difference(expected, found) is None
    assert difference(expected, through({"document": found})["document"]) is None


@pytest.mark.parametrize("text", [*PASS, *VALID], ids=lambda text: text.strip()[:20])
def test_other_programs_json_is_read_as_python_reads_it(text: str, tmp_path: Path) -> None:
    tensor = '{"dtype":"float32","shape":[1],"data":[2.5]}'
    found = read(f'{{"tensor":{tensor},"document":{text}}}', tmp_path)
    assert difference(json.loads(text), found["document"]) is None
    assert found["tensor"].tolist() == [2.5]


@pytest.mark.parametrize(
    "number",
    [1617161771.7650001, math.pi, math.pi**100, math.pi**-100, 3.1, 1e-323, sys.float_info.max],
)
def test_floats_read_back_bit_for_bit(number: float) -> None:
    assert difference(number, json_text.parse(repr(number).encode(), what="the number")) is None
    assert difference(number, through({"x": number})["x"]) is None


@pytest.mark.parametrize("number", [1, 2**31, 2**32, 2**53 + 1, 2**64, -(2**64), 10**639, 10**4000])
def test_integers_of_any_size(number: int) -> None:
    assert difference(number, through({"x": number})["x"]) is None


#: ``test_encode_basestring_ascii``'s strings.
STRINGS = module_of("test.test_json.test_encode_basestring_ascii", "test_json").CASES


@pytest.mark.parametrize(("text", "escaped"), STRINGS)
def test_strings_however_they_are_escaped(text: str, escaped: str, tmp_path: Path) -> None:
    assert json_text.parse(escaped.encode(), what="the string") == text
    tensor = '{"dtype":"float32","shape":[1],"data":[2.5]}'
    assert read(f'{{"tensor":{tensor},"s":{escaped}}}', tmp_path)["s"] == text
    assert through({text: text}) == {text: text}
