"""Arrays that begin like numbers of a tensor and are none: they stay lists, whatever their size."""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import io
import json
import random
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, JsonckptError, LimitError
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from jsonckpt._src.json_stream import lift_arrays
from tests.foreign.dialects import read
from tests.support import examples

TENSOR = '"w":{"data":[1.5],"dtype":"float32","shape":[1]}'
KEYS = ("data", "values", "history")


def rows(*shape: int) -> Any:
    if not shape:
        return 0.25 * random.Random(7).randint(1, 9)
    return [rows(*shape[1:]) for _ in range(shape[0])]


RAGGED: dict[str, Any] = {
    "rows": [[1, 2], [3]],
    "depth": [1, [2]],
    "null": [1.5, None] * 3000,
    "null at the end": [*rows(9000), None],
    "text": [[1.5]] * 3000 + [["x"]] + [[1]] * 3000,
    "objects": [[1, 2]] * 3000 + [{"a": [1]}] * 100,
    "true among numbers": [True, 1] * 3000,
    "rows of many lengths": [[0.5] * (n % 7) for n in range(5000)],
    "infinity": [[float("inf"), 1.0]] * 3000 + [[2.0]],
    "integers of many digits": [2**70] * 2000 + [[1]],
    "layers": [rows(40, 60), rows(60), rows(60, 50), rows(50)],
    "layers in layers": [[[rows(40, 60)]], [rows(3)]],
}


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("thing", RAGGED.values(), ids=RAGGED)
def test_a_ragged_list_stays_a_list(thing: Any, key: str, tmp_path: Path) -> None:
    text = '{%s,"o":{"%s":%s},"epoch":3}' % (TENSOR, key, json.dumps(thing))
    found = read(text, tmp_path)
    assert found["o"][key] == thing
    assert found["epoch"] == 3
    assert torch.equal(found["w"], torch.tensor([1.5]))


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize(
    "thing",
    [
        pytest.param([*rows(300, 1000), [1.0]], id="rows"),
        pytest.param([*rows(300, 1000), None], id="null"),
        pytest.param([*rows(300, 1000), {"x": None}], id="object"),
        pytest.param([rows(600, 400), rows(400), rows(400, 300)], id="layers"),
        pytest.param([[rows(600, 400)], [[[rows(400)]]]], id="layers in layers"),
    ],
)
def test_longer_than_the_window(thing: Any, key: str, tmp_path: Path) -> None:
    text = '{%s,"o":{"%s":%s}}' % (TENSOR, key, json.dumps(thing))
    assert read(text, tmp_path)["o"][key] == thing


@pytest.mark.parametrize("size", [3, 2000])
def test_a_marked_tensor_names_itself(size: int, tmp_path: Path) -> None:
    for values, words in (
        ([[1.5] * size, [2.5] * (size + 1)], "unequal length"),
        ([[1.5] * size, 2.5], "unequal length or depth"),
        ([[1.5] * size, [2.5] * (size - 1) + [None]], "null among the numbers"),
        ([[1.5] * size, ["x"] * size], "not a number"),
    ):
        for text in (
            '{"a":{"w":{"__tensor__":true,"data":%s,"dtype":"float32"}}}',
            '{"a":{"w":{"data":%s,"dtype":"float32","shape":[2,%d]}}}',
        ):
            full = text % ((json.dumps(values), size) if "%d" in text else json.dumps(values))
            with pytest.raises(FormatError, match=words) as caught:
                read(full, tmp_path)
            assert caught.value.tensor == "/a/w"
            assert caught.value.hint or words == "not a number"


def test_one_that_is_too_long_has_a_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lift_arrays, "MAX_CONSUMED", 2 << 20)
    text = '{%s,"o":%s}' % (TENSOR, json.dumps([[0.5, 0.5]] * 300_000 + [[1]]))
    with pytest.raises(LimitError, match=r"unequal length.* list of more than") as caught:
        read(text, tmp_path)
    assert "jq" in str(caught.value)


def test_layers_of_any_length_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is on what turns out late to be ragged, not on the tensors of a list."""
    monkeypatch.setattr(lift_arrays, "MAX_CONSUMED", 1 << 16)
    monkeypatch.setattr(lift_arrays, "WINDOW", 1 << 16)
    thing = [rows(3, 100, 300), rows(300), rows(2, 100, 200)]
    text = '{%s,"o":{"data":%s}}' % (TENSOR, json.dumps(thing))
    assert read(text, tmp_path)["o"]["data"] == thing


@pytest.mark.parametrize("shape", [(1, 90, 100), (2, 1, 90, 100), (3, 9000), (1, 1, 1, 9000)])
def test_a_long_first_item_changes_nothing(
    shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such an array is lifted item by item, and is one tensor in the end."""
    monkeypatch.setattr(lift_arrays, "WINDOW", 4096)
    values = torch.arange(torch.Size(shape).numel(), dtype=torch.float64).reshape(shape) / 8
    values[..., -1] = float("inf")
    nested = json.dumps(values.tolist())
    text = '{"w":{"data":%s,"shape":%s,"dtype":"float64"},"h":%s}' % (nested, list(shape), nested)
    found = read(text, tmp_path)
    assert torch.equal(found["w"], values)
    assert found["h"] == values.tolist()


leaves = st.one_of(
    st.integers(-5, 5), st.floats(-9, 9, width=16), st.none(), st.booleans(), st.text(max_size=3)
)
trees = st.recursive(leaves, lambda inner: st.lists(inner, max_size=5), max_leaves=60)


@settings(max_examples=examples(200))
@given(
    tree=st.lists(trees, max_size=8),
    repeat=st.sampled_from([1, 3, 40]),
    key=st.sampled_from(KEYS),
    window=st.sampled_from([64, 300, 1 << 20]),
    short=st.sampled_from([4, 40, 4096]),
    indent=st.sampled_from([None, 1]),
)
def test_any_list_is_read_as_it_is(
    tree: list[Any], repeat: int, key: str, window: int, short: int, indent: int | None
) -> None:
    thing = tree * repeat
    text = json.dumps({"w": {"data": [1.5], "dtype": "float32"}, key: thing}, indent=indent)
    patch = pytest.MonkeyPatch()
    patch.setattr(lift_arrays, "WINDOW", window)
    patch.setattr(lift_arrays, "SHORT_ARRAY", short)
    try:
        found = read(text, Path(tempfile.gettempdir()))
    finally:
        patch.undo()
    assert found[key] == thing


def test_every_cut_of_a_ragged_text_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lift_arrays, "WINDOW", 64)
    monkeypatch.setattr(lift_arrays, "SHORT_ARRAY", 16)
    text = '{%s,"o":{"data":%s}}' % (TENSOR, json.dumps([rows(5, 8), [1, [2]], rows(9), None]))
    for cut in range(len(text)):
        with pytest.raises(JsonckptError):
            read(text[:cut], tmp_path)


def test_retries_are_few_and_memory_stays_small(tmp_path: Path) -> None:
    """Each level of this fails only at its end. Its text is read a few times, not at each level."""
    inner: Any = rows(100, 1000)
    for _ in range(40):
        inner = [inner, 1]
    text = ('{%s,"o":{"data":%s}}' % (TENSOR, json.dumps(inner))).encode()
    read_bytes = 0

    def advance(count: int) -> None:
        nonlocal read_bytes
        read_bytes += count

    tracemalloc.start()
    try:
        found, _ = read_foreign(io.BytesIO(text), tmp_path, ForeignOptions(), advance)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found["o"]["data"] == inner
    assert read_bytes == len(text)
    assert peak < 60 << 20


def test_brackets_after_numbers(tmp_path: Path) -> None:
    """Only those before the first number begin arrays that are long throughout."""
    for brackets in ("[1[1[", "[" * 300, "[ 1 [" * 20):
        with pytest.raises(JsonckptError):
            read('{%s,"a":%s%s}' % (TENSOR, brackets, "1.5," * 300_000), tmp_path)


def test_a_note_names_the_lists_that_cannot_be_tensors(tmp_path: Path) -> None:
    text = {"state_dict": {"l.weight": [[0.5]], "l.bias": [1.5]}, "pairs": [[1, 2], [3]]}
    source = io.BytesIO(json.dumps(text).encode())
    found, notes = read_foreign(source, tmp_path, ForeignOptions())
    assert found["pairs"] == [[1, 2], [3]]
    assert notes[-1].startswith("1 list stays a list, with unequal rows")
    assert notes[-1].endswith("'/pairs'")
