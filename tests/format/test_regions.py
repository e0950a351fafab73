"""Tensors in regions: names, tilings, and what is refused before any memory is taken."""

from __future__ import annotations

import itertools
import json
import math
import random
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt._src.boxes import Box, chunks_of_box, overlap, row_boxes
from jsonckpt._src.format.regions import (
    Regions,
    parse_region_name,
    plain_state,
    region_name,
    regions_json,
    state_in_regions,
    tiles,
)
from tests import independent_reader
from tests.regions import grid, guillotine, save_in_regions
from tests.support import examples

sizes = st.lists(st.integers(0, 9), max_size=4)


@given(st.lists(st.integers(0, 2**63 - 1), max_size=5), st.sampled_from(["", "/w", "/a/0,1", "/"]))
def test_a_name_says_offsets_and_tensor(offset: list[int], name: str) -> None:
    assert parse_region_name(region_name(offset, name)) == (tuple(offset), name)


@pytest.mark.parametrize(
    "name",
    [
        "$region/",
        "$region/w",
        "$region/0,/w",
        "$region/,0/w",
        "$region/01/w",
        "$region/-1/w",
        "$region/0.5/w",
        "$region/0 /w",
        "$region/0w",
        "$region/٣/w",
        f"$region/{2**63}/w",
        f"$region/{10**30}/w",
        f"$region/{','.join('0' * 65)}/w",
        "$region",
        "/w",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    if name == "$region/":  # a number without dimensions that is the whole state
        assert parse_region_name(name) == ((), "")
        return
    with pytest.raises(jsonckpt.FormatError, match=r"expected \$region/|an offset that no tensor"):
        parse_region_name(name)


@given(sizes, st.randoms(use_true_random=False), st.integers(0, 12))
def test_random_tilings_tile(shape: list[int], source: random.Random, cuts: int) -> None:
    boxes = guillotine(shape, source.randrange, cuts)
    source.shuffle(boxes)
    assert tiles(shape, boxes)
    tagged = regions_json("/w", "int8", shape, boxes)
    regions = Regions.from_json(tagged["$regions"])
    assert regions.to_json() == tagged
    full = [offset for offset, size in boxes if math.prod(size)] if math.prod(shape) else []
    assert sorted(regions.offsets) == sorted(full or [offset for offset, _ in boxes])


@given(
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
    st.integers(1, 8),
    st.integers(0, 3),
)
def test_a_change_of_a_tiling_does_not_tile(
    shape: list[int], source: random.Random, cuts: int, kind: int
) -> None:
    boxes = guillotine(shape, source.randrange, cuts)
    at = source.randrange(len(boxes))
    offset, size = boxes[at]
    dimension = source.randrange(len(shape))
    step = source.choice([-1, 1])
    if kind == 0:
        boxes.pop(at)
    elif kind == 1:
        boxes.append(boxes[at])
    elif kind == 2:
        moved = tuple(o + step * (n == dimension) for n, o in enumerate(offset))
        boxes[at] = (moved, size)
    else:
        boxes[at] = (offset, tuple(s + step * (n == dimension) for n, s in enumerate(size)))
    seen: dict[tuple[int, ...], int] = {}
    for start, lengths in boxes:
        for cell in itertools.product(*(range(a, a + n) for a, n in zip(start, lengths))):
            seen[cell] = seen.get(cell, 0) + 1
    exact = dict.fromkeys(itertools.product(*map(range, shape)), 1) == seen
    assert tiles(shape, boxes) == exact


def test_a_pinwheel_tiles() -> None:
    boxes: list[Box] = [((0, 0), (2, 3)), ((0, 3), (3, 2)), ((3, 2), (2, 3)), ((2, 0), (3, 2))]
    assert not tiles((5, 5), boxes)
    assert tiles((5, 5), [*boxes, ((2, 2), (1, 1))])


@pytest.mark.parametrize("dimensions", [1, 2, 40, 64])
def test_many_parts_are_checked_in_linear_time(dimensions: int) -> None:
    """One cut in each of many dimensions has 2^64 corners."""
    shape = (2,) * dimensions
    boxes: list[Box] = []
    for cut in range(dimensions):
        offset = tuple(int(n < cut) for n in range(dimensions))
        boxes.append((offset, tuple(1 if n <= cut else 2 for n in range(dimensions))))
    boxes.append(((1,) * dimensions, (1,) * dimensions))
    began = time.perf_counter()
    assert tiles(shape, boxes)
    assert not tiles(shape, boxes[:-1])
    assert time.perf_counter() - began < 2
    rows: list[Box] = [((n,), (1,)) for n in range(20_000)]
    assert tiles((20_000,), rows)
    assert not tiles((20_000,), [*rows[:-1], rows[0]])


@given(sizes, st.data())
def test_boxes_of_a_row_major_range(shape: list[int], data: st.DataObject) -> None:
    count = math.prod(shape)
    if not shape or not count:
        return
    first = data.draw(st.integers(0, count))
    last = data.draw(st.integers(first, count))
    cells = list(itertools.product(*map(range, shape)))
    found: list[tuple[int, ...]] = []
    for ranges, done in row_boxes(shape, first, last):
        assert done == len(found)
        found += itertools.product(*(range(*one) for one in ranges))
    assert found == cells[first:last]


@given(sizes, st.integers(1, 7), st.data())
def test_chunks_of_a_box(shape: list[int], elements: int, data: st.DataObject) -> None:
    offset = [data.draw(st.integers(0, size)) for size in shape]
    size = [data.draw(st.integers(0, most - at)) for at, most in zip(offset, shape)]
    cells = itertools.product(*map(range, shape))
    inside = [all(a <= i < a + n for i, a, n in zip(cell, offset, size)) for cell in cells]
    expected = sorted({number // elements for number, hit in enumerate(inside) if hit})
    assert chunks_of_box(shape, elements, offset, size) == expected


def test_what_two_boxes_share() -> None:
    assert overlap((), (), (), ()) == ((), ())
    assert overlap((0, 0), (2, 2), (1, 1), (5, 5)) == ((1, 1), (1, 1))
    assert overlap((0,), (0,), (0,), (3,)) is None


def test_the_json_of_regions_is_checked() -> None:
    whole: list[Box] = [((0, 0), (2, 3))]
    cases: list[tuple[str, tuple[int, ...], list[Box], str]] = [
        ("w", (2, 3), whole, "JSON Pointer"),
        ("/w", (2, 4), whole, "leave a gap: 6 of 8"),
        ("/w", (2, 3), whole * 2, "same offset"),
        ("/w", (2, 3), [*whole, ((1, 1), (1, 1))], "overlap: 7 of 6"),
        ("/w", (2, 3), [((0, 0), (2, 2)), ((1, 1), (1, 2))], "leave a gap and overlap"),
        ("/w", (2, 3), [((0, 1), (2, 3))], "leaves the tensor"),
        ("/w", (2, 3), [((0,), (2,))], "expected 2 integers"),
        ("/w", (2, 3), [], "one or more"),
    ]
    for name, shape, boxes, match in cases:
        with pytest.raises(jsonckpt.FormatError, match=match):
            regions_json(name, "int8", shape, boxes)
    assert (
        len(regions_json("/w", "int8", (2,), [((0,), (2,)), ((2,), (0,))])["$regions"]["parts"])
        == 1
    )


def test_a_state_without_and_with_regions(tmp_path: Path) -> None:
    save_in_regions({"w": torch.ones(4, 4), "b": [torch.ones(3)]}, tmp_path / "c.json", grid(2, 2))
    manifest = jsonckpt.open(tmp_path / "c.json").manifest
    plain = plain_state(manifest.state)
    assert plain == {"w": {"$tensor": "/w"}, "b": [{"$tensor": "/b/0"}]}
    assert state_in_regions(plain, manifest.wholes) == manifest.state
    assert manifest.tensor_count == 2
    assert len(manifest.entries) == 6


# --- what is refused -------------------------------------------------------------------------


Change = Callable[[dict[str, Any], dict[str, Any]], None]
HOSTILE: dict[str, tuple[Change, str]] = {}


def refused(match: str) -> Callable[[Change], Change]:
    """Note a change of a manifest and of its body of ``$regions``, and what the error says."""

    def note(change: Change) -> Change:
        HOSTILE[change.__name__] = (change, match)
        return change

    return note


def _member(member: str, value: Any, match: str, name: str) -> None:
    def change(_: dict[str, Any], body: dict[str, Any]) -> None:
        body[member] = value

    HOSTILE[name] = (change, match)


def _without(member: str, match: str) -> None:
    def change(_: dict[str, Any], body: dict[str, Any]) -> None:
        del body[member]

    HOSTILE[f"without_{member}"] = (change, match)


def _part(member: str, value: Any, match: str, name: str) -> None:
    def change(_: dict[str, Any], body: dict[str, Any]) -> None:
        body["parts"][1][member] = value

    HOSTILE[name] = (change, match)


for _name in ("name", "dtype", "shape", "parts"):
    _without(_name, _name)
_member("name", 5, "name", "name_is_a_number")
_member("name", "w", "JSON Pointer", "name_without_slash")
_member("name", "$storage/0", "JSON Pointer", "name_of_a_storage")
_member("name", "/other", "of is", "name_of_another_tensor")
_member("dtype", "float99", "dtype", "unknown_dtype")
_member("dtype", "float64", "has dtype float32", "dtype_of_another_size")
_member("dtype", "int32", "has dtype float32", "dtype_of_the_same_size")
_member("dtype", ["float32"], "dtype", "dtype_is_an_array")
_member("shape", [4, 7], "gap", "shape_too_wide")
_member("shape", [4, 5], "leaves", "shape_too_narrow")
_member("shape", [24], "offset", "shape_with_fewer_dimensions")
_member("shape", [4, 6, 1], "offset", "shape_with_more_dimensions")
_member("shape", [4, -6], "shape", "negative_size")
_member("shape", [4.0, 6], "shape", "size_is_a_float")
_member("shape", [True, 6], "shape", "size_is_a_bool")
_member("shape", [2**62, 2**62], "elements", "huge_shape")
_member("shape", [2**63, 1], "shape", "size_beyond_63_bits")
_member("shape", [4, 2**60], "gap", "shape_of_exabytes")
_member("shape", [0, 6], "leaves", "shape_without_elements")
_member("shape", [0, 2**62, 2**62], "elements", "a_zero_hides_a_huge_shape")
_member("shape", [1] * 65, "shape", "too_many_dimensions")
_member("shape", "4,6", "shape", "shape_is_a_string")
_member("device", "cuda:0; rm", "device", "bad_device")
_member("device", None, "device", "device_is_null")
_member("parts", [], "one or more", "no_parts")
_member("parts", {}, "one or more", "parts_are_an_object")
_member("parts", [5], "offset", "part_is_a_number")
_part("offset", [0, 0], "of is|same offset", "offset_of_another_part")
_part("offset", [0, -3], "offset", "negative_offset")
_part("offset", [0, 3.0], "offset", "offset_is_a_float")
_part("offset", [0], "offset", "offset_with_fewer_dimensions")
_part("offset", [0, 2**63], "offset", "offset_beyond_63_bits")
_part("offset", [[]] * 2, "offset", "offset_of_arrays")
_part("of", "$region/0,0/w", "of is", "of_another_part")
_part("of", "/b", "of is", "of_a_whole_record")
_part("of", None, "of is", "of_is_null")
_part("of", ["$region/0,3/w"], "of is", "of_is_an_array")


@refused("gap")
def a_part_is_missing(_: dict[str, Any], body: dict[str, Any]) -> None:
    body["parts"].pop()


@refused("same offset")
def a_part_is_there_twice(_: dict[str, Any], body: dict[str, Any]) -> None:
    body["parts"].append(body["parts"][0])


@refused("there is no record")
def a_record_is_missing(_: dict[str, Any], body: dict[str, Any]) -> None:
    body["parts"][1] = {"of": "$region/0,4/w", "offset": [0, 4]}


@refused("requires|'regions'")
def requires_says_nothing(document: dict[str, Any], _: dict[str, Any]) -> None:
    del document["requires"]


@refused("array of strings")
def requires_is_a_string(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["requires"] = "regions"


@refused("'deltas'")
def requires_more(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["requires"].append("deltas")


@refused("a record has this name|contradicts")
def the_name_of_a_record(document: dict[str, Any], _: dict[str, Any]) -> None:
    body = document["state"]["v"]["$regions"]
    body["name"] = "/b"
    for part in body["parts"]:
        part["of"] = part["of"].replace("/v", "/b")


@refused("contradicts")
def two_tensors_of_one_name(document: dict[str, Any], body: dict[str, Any]) -> None:
    document["state"]["more"] = {"$regions": {**body, "device": "cuda:0"}}


@refused("contradicts")
def a_tie_has_its_name(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["state"]["tied"]["$tied"]["name"] = "/w"


@refused("not that of a region")
def a_region_alone(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["state"]["more"] = {"$tensor": "$region/0,0/w"}


@refused("not that of a region")
def a_tie_to_a_region(document: dict[str, Any], _: dict[str, Any]) -> None:
    document["state"]["tied"]["$tied"]["of"] = "$region/0,0/w"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("regions")
    w = torch.arange(24.0).reshape(4, 6)
    state = {"w": w, "tied": w, "view": w[1:3, 2], "v": torch.arange(4), "b": torch.ones(2)}
    cut = grid(2, 2)
    for name in ("dir", "file.json"):
        save_in_regions(state, folder / name, lambda n, s: None if n == "/b" else cut(n, s))
    return folder


@pytest.mark.parametrize("name", ["dir", "file.json"])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tensor_in_regions_is_refused(
    case: str, name: str, folder: Path, tmp_path: Path
) -> None:
    change, match = HOSTILE[case]
    source = folder / name / "manifest.json" if name == "dir" else folder / name
    document = json.loads(source.read_text())
    change(document, document["state"]["w"]["$regions"])
    document["seal"] = None
    path = tmp_path / name
    if name == "dir":
        path.mkdir()
        for file in (folder / name).iterdir():
            (path / file.name).write_bytes(file.read_bytes())
        (path / "manifest.json").write_text(json.dumps(document))
    else:
        path.write_text(json.dumps(document))
    tracemalloc.start()
    for read in (
        jsonckpt.load,
        jsonckpt.open,
        jsonckpt.inspect,
        lambda one: list(jsonckpt.stream(one)),
        lambda one: jsonckpt.load_into({"w": torch.zeros(4, 6)}, one),
    ):
        with pytest.raises(jsonckpt.JsonckptError, match=match) as caught:
            read(path)
        assert isinstance(caught.value, jsonckpt.FormatError | jsonckpt.UnsupportedVersionError)
    report = jsonckpt.verify(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not report.ok
    assert peak < 30 << 20
    if case != "a_tie_has_its_name":  # the other reader does not compare the names of ties
        with pytest.raises((ValueError, LookupError, TypeError, AttributeError, RuntimeError)):
            independent_reader.load(path)


def test_a_view_that_leaves_a_tensor_in_regions_is_refused(folder: Path, tmp_path: Path) -> None:
    document = json.loads((folder / "file.json").read_text())
    document["state"]["view"]["$view"]["offset"] = 23
    document["seal"] = None
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(jsonckpt.FormatError, match="ends at byte 120 of a record of 96 bytes"):
        jsonckpt.load(tmp_path / "x.json")


def test_a_shard_says_that_it_has_regions(folder: Path, tmp_path: Path) -> None:
    [shard] = (folder / "dir").glob("shard-*.json")
    text = shard.read_bytes()
    assert text.count(b'"requires":["regions"]') == 6
    (tmp_path / "x.json").write_bytes(text.replace(b'"requires":["regions"],', b"", 1))
    with pytest.raises(jsonckpt.FormatError, match="requires must name 'regions'"):
        list(jsonckpt.stream(tmp_path / "x.json"))


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        (b'"shape":[2,3]', b'"shape":[6,1]', "shape|chunk|digest|leave"),
        (b'"shape":[2,3]', b'"shape":[6]', "2 offsets, the shape 1 sizes"),
        (b'"shape":[2,3]', b'"shape":[2,3],"stride":[1,2]', "neither stride nor storage"),
        (b'"shape":[2,3]', b'"shape":[2,3],"storage":[0,0,24]', "neither stride nor storage"),
        (b'"$region/0,0/w","dtype"', b'"$region/0,00/w","dtype"', "expected"),
    ],
)
def test_a_hostile_record_of_a_region_is_refused(
    old: bytes, new: bytes, match: str, folder: Path, tmp_path: Path
) -> None:
    text = (folder / "file.json").read_bytes().replace(old, new, 1)
    (tmp_path / "x.json").write_bytes(text)
    for read in (jsonckpt.load, jsonckpt.open, lambda one: list(jsonckpt.stream(one))):
        with pytest.raises(jsonckpt.JsonckptError):
            read(tmp_path / "x.json")
    document = json.loads(text)
    document["seal"] = None
    (tmp_path / "x.json").write_text(json.dumps(document))
    with pytest.raises(jsonckpt.JsonckptError, match=match):
        jsonckpt.load(tmp_path / "x.json")


@settings(max_examples=examples(100))
@given(st.data())
def test_any_value_as_a_body_is_our_error(data: st.DataObject) -> None:
    leaf = (
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3)
    )
    value = st.recursive(leaf, lambda v: st.lists(v, max_size=3), max_leaves=6)
    names = st.sampled_from(["name", "dtype", "shape", "device", "parts"])
    good = {
        "name": "/w",
        "dtype": "int8",
        "shape": [1],
        "parts": [{"of": "$region/0/w", "offset": [0]}],
    }
    body = data.draw(st.one_of(value, st.dictionaries(names, value).map(lambda d: {**good, **d})))
    try:
        Regions.from_json(body)
    except jsonckpt.FormatError:
        return
    assert isinstance(body, dict)
