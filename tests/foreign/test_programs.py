"""What real programs wrote: ``programs.json`` has one text of each form, and who wrote it.

The arrays in it are made of the same numbers here.
"""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt._src.errors import FormatError, JsonckptError
from tests.foreign.dialects import EXPECTED, read

TEXTS = json.loads((Path(__file__).parent / "programs.json").read_text())
WIDE = torch.arange(40.0).reshape(5, 8)
COMPLEX = torch.tensor([1 + 2j, 3 - 1j])
HELD = {
    "A": EXPECTED,
    "W": WIDE,
    "W1": WIDE[1],
    "C": COMPLEX,
    "i64": torch.tensor([2**60, 1]),
    "u64": torch.tensor([2**63, 1], dtype=torch.uint64),
    "f64": torch.tensor([1.5, 2], dtype=torch.float64),
    "f16": torch.tensor([1.5, -2], dtype=torch.float16),
    "bf16": torch.tensor([1.5, -2], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False]),
    "i32": torch.tensor([1, -2], dtype=torch.int32),
}
#: The attributes of the object that jsonpickle wrote, besides those that the test looks at.
ATTRIBUTES = {
    "base": WIDE, "v": WIDE[1:, ::2], "r": WIDE.flip(0), "small": WIDE[:2, :3], "T": WIDE.T,
    "c": COMPLEX, "cb": torch.arange(20) + 1j, "big": WIDE, "F": WIDE, "z": torch.empty(0, 3),
    "b": HELD["bool"], "u": torch.tensor([2**64 - 1], dtype=torch.uint64),
    "d0": torch.tensor(1.5, dtype=torch.float64), "end": EXPECTED,
}  # fmt: skip


def equal(found: Any, expected: torch.Tensor) -> bool:
    alike = isinstance(found, torch.Tensor) and found.dtype == expected.dtype
    return alike and torch.equal(found, expected)


def of(program: str, holds: str) -> list[str]:
    return [t["text"] for t in TEXTS if t["program"].startswith(program) and t["holds"] == holds]


@pytest.mark.parametrize(
    "case",
    [pytest.param(t, id=f"{t['program']} {t['form']} {t['holds']}") for t in TEXTS
     if t["holds"] in HELD],
)  # fmt: skip
def test_every_form_of_every_program(case: dict[str, str], tmp_path: Path) -> None:
    found = read('{"w":%s,"epoch":3}' % case["text"], tmp_path)
    assert equal(found["w"], HELD[case["holds"]])


@pytest.mark.parametrize("text", of("jsonpickle", "net"), ids=["without handlers", "handlers"])
def test_jsonpickle_shares_arrays_and_views(text: str, tmp_path: Path) -> None:
    net = read(text, tmp_path)
    for name, expected in ATTRIBUTES.items():
        assert equal(net[name], expected), name
    assert equal(net["a"], EXPECTED)
    assert equal(net["s"], torch.ones(2))
    assert net["t"] == (net["a"], net["s"])
    assert type(net["t"]) is tuple
    assert net["l"][0] is net["end"] is net["a"]
    assert net["l"][1][0] is net["last"] is net["s"]
    assert net["m"] is net["l"]
    assert net["f"] == 1.5
    shared = net["v"].untyped_storage().data_ptr() == net["base"].untyped_storage().data_ptr()
    assert shared == ("py/reduce" not in text)


@pytest.mark.parametrize("text", of("jsonpickle", "shared"), ids=["without handlers", "handlers"])
def test_jsonpickle_shares_the_arrays_of_a_dict(text: str, tmp_path: Path) -> None:
    found = read(text, tmp_path)
    assert found["a"] is found["b"] is found["f"]
    assert found["e"] is found["g"]
    assert found["c"] == {"d": [1, [2]]}
    with pytest.raises(FormatError, match="make_refs=False"):
        read('{"epoch":3,"a":%s}' % text, tmp_path)  # its numbers count from elsewhere


@pytest.mark.parametrize("text", [*of("jsonpickle", "net"), *of("jsonpickle", "shared")])
def test_damaged_jsonpickle_gives_only_our_errors(text: str, tmp_path: Path) -> None:
    pieces = ('"py/tuple"', '"py/id"', '"py/b64"', '"values"', '"shape"', '"f4"', "true", "[", "2")
    for piece in pieces:
        for other in ('"x"', "7", "null", "-1", "[]", "{}", "99999999999"):
            damaged = text.replace(piece, other if piece[0] != '"' else '"x"')
            try:
                read(damaged, tmp_path)
            except JsonckptError:
                continue


ARRAY = '{"py/object":"numpy.ndarray","dtype":"float32","values":[1.5,2.5,3.5]}'
VIEW = '{"py/object":"numpy.ndarray","base":%s,"dtype":"float32",%s}'
UNCERTAIN = {
    "an unknown id": '{"a":%s,"b":{"py/id":99}}' % ARRAY,
    "a huge id": '{"a":%s,"b":{"py/id":99999999999999999999}}' % ARRAY,
    "an id of text": '{"a":%s,"b":{"py/id":"1"}}' % ARRAY,
    "an id of a list of values": '{"a":%s,"b":{"py/id":2}}' % ARRAY,
    "no values": '{"a":{"py/object":"numpy.ndarray","dtype":"float32"}}',
    "a view of nothing": VIEW % ("[1]", '"shape":[1]'),
    "a view past the end": VIEW % (ARRAY, '"shape":[3],"offset":4'),
    "a view before the start": VIEW % (ARRAY, '"shape":[2],"strides":[-4]'),
    "a view of many": VIEW % (ARRAY, '"shape":[1099511627776],"strides":[0]'),
    "a view with wide strides": VIEW % (ARRAY, '"shape":[2],"strides":[4611686018427387904]'),
    "strides of text": VIEW % (ARRAY, '"shape":[2],"strides":["4"]'),
    "two strides": VIEW % (ARRAY, '"shape":[2],"strides":[4,4]'),
    "a view in another byte order": VIEW % (ARRAY, '"shape":[3],"byteorder":"S"'),
    "an array of objects": of("jsonpickle", "shared")[0].replace('{"py/b64": "AADA', '["", "AADA')
    .replace('QEAAAA=="}', 'QEAAAA=="]'),
}  # fmt: skip


@pytest.mark.parametrize("text", UNCERTAIN.values(), ids=UNCERTAIN)
def test_uncertain_jsonpickle_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(JsonckptError):
        read(text, tmp_path)


def test_a_view_that_no_element_boundary_fits_is_copied(tmp_path: Path) -> None:
    found = read(VIEW % (ARRAY, '"shape":[2],"offset":8,"strides":[-4]'), tmp_path)
    assert torch.equal(found, torch.tensor([3.5, 2.5]))
    base = '{"py/object":"numpy.ndarray","dtype":"uint8","values":[9,0,0,192,63,0]}'
    assert equal(read(VIEW % (base, '"shape":[1],"offset":1'), tmp_path), torch.tensor([1.5]))


def test_an_object_that_contains_its_own_reference_keeps_it(tmp_path: Path) -> None:
    text = '{"py/object":"m.Layer","w":%s,"child":{"py/object":"m.Layer","parent":{"py/id":0}}}'
    found = read(text % ARRAY, tmp_path)
    assert found["child"]["parent"] == {"py/id": 0}
