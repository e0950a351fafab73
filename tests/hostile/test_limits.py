"""Each limit: what is just within it loads, what is just over it is refused by its name."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import LimitError, Limits
from jsonckpt._src.format.json_text import marks_of
from tests.hostile.cases import FORMS, doors_of, refused, write
from tests.hostile.forge import Forgery, Raw, good
from tests.hostile.runner import Child
from tests.readers import indexed, piped, streaming
from tests.support import same, slow

CHECKPOINT = ("directory", "single", "zst")


def _nothing(forgery: Forgery) -> None:
    """The checkpoint as it is."""


def _state(value: Any) -> Callable[[Forgery], None]:
    def edit(forgery: Forgery) -> None:
        forgery.state["x"] = value

    return edit


@dataclasses.dataclass(frozen=True)
class Bound:
    """What the forged checkpoint needs of a limit: ``needs`` loads, one less does not."""

    field: str
    needs: int
    edit: Callable[[Forgery], None] = _nothing
    forms: tuple[str, ...] = CHECKPOINT
    others: dict[str, int | None] = dataclasses.field(default_factory=dict)


BOUNDS = {
    "tensors": Bound("tensors", 6),
    "chunks": Bound("chunks", 3 + 2 + 2 + 3 + 1),
    "shards": Bound("shards", 2, forms=("directory",)),
    "name_bytes": Bound("name_bytes", 5),
    "rank": Bound("rank", 2),
    "chunk_bytes": Bound("chunk_bytes", 1 << 20),
    "depth": Bound("depth", 20, _state(Raw(b"[" * 18 + b"]" * 18))),
    "number_chars": Bound("number_chars", 100, _state(Raw(b"7" * 100))),
    "number_chars_of_a_float": Bound("number_chars", 100, _state(Raw(b"0." + b"7" * 98))),
    "total_floor": Bound("total_floor", 146, others={"expansion": 0}),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [
        pytest.param(n, form, id=f"{n}-{form}")
        for n, bound in BOUNDS.items()
        for form in bound.forms
    ],
)
def test_limit(name: str, form: str, child: Child, tmp_path: Path) -> None:
    bound = BOUNDS[name]
    forgery = good()
    bound.edit(forgery)
    path = write(forgery, form, tmp_path)
    for door in doors_of(path):
        outcome = child.ask(path, door, {**bound.others, bound.field: bound.needs})
        assert not outcome.error, f"{door}: {outcome.message}"
        lifted = child.ask(path, door, {**bound.others, bound.field: None})
        assert not lifted.error, f"{door}: {lifted.message}"
    limits = {**bound.others, bound.field: bound.needs - 1}
    refused(child, path, LimitError, "limit|over|longer|deeper|more than|most", limits=limits)


@pytest.mark.parametrize("form", CHECKPOINT)
def test_manifest_bytes(form: str, child: Child, tmp_path: Path) -> None:
    """The manifest, or the head of a single file."""
    forgery = good()
    forgery.single["metadata"] = {"padding": "x" * 10_000}
    path = write(forgery, form, tmp_path)
    needs = len((path / "manifest.json").read_bytes()) if form == "directory" else 12_000
    for door in doors_of(path):
        assert not child.ask(path, door, {"manifest_bytes": needs}).error
    refused(child, path, LimitError, "manifest_bytes|over", limits={"manifest_bytes": 9_000})


@pytest.mark.parametrize("form", CHECKPOINT)
def test_marks(form: str, child: Child, tmp_path: Path) -> None:
    """Brackets and strings, those in strings not counted, of the manifest or of the head."""
    forgery = good()
    forgery.state["x"] = Raw(b"[" + b",".join([b'["\\"["]'] * 1_000) + b"]")
    path = write(forgery, form, tmp_path)
    if form == "directory":
        text = (path / "manifest.json").read_bytes()
    else:
        whole = forgery.text(forgery.records, single=True).text
        text = whole[: whole.index(b'"tensors":[\n')] + b'"tensors":null}'
    needs = marks_of(text)
    assert 3_000 < needs < 3_400
    for door in doors_of(path):
        outcome = child.ask(path, door, {"marks": needs})
        assert not outcome.error, f"{door}: {outcome.message}"
        assert not child.ask(path, door, {"marks": None}).error
    refused(child, path, LimitError, "marks", limits={"marks": needs - 1})


@pytest.mark.parametrize("form", ["zst", "directory_zst"])
def test_zstd_window_of_a_file(form: str, child: Child, tmp_path: Path) -> None:
    path = write(good(), form, tmp_path)
    for door in doors_of(path):
        assert not child.ask(path, door, {"zstd_window": 1 << 20}).error
    refused(child, path, LimitError, "window.*zstd_window", limits={"zstd_window": 1_024})


def test_zstd_window_of_a_chunk(child: Child, tmp_path: Path) -> None:
    forgery = good()
    forgery["/h"].members["chunk_bytes"] = 1 << 20
    forgery["/h"].members["shape"] = [4096]
    forgery["/h"].fill(bytes(8192))
    for form in ("directory", "single"):
        path = write(forgery, form, tmp_path)
        assert not child.ask(path, "indexed", {"zstd_window": 8_192}).error
        refused(child, path, LimitError, "window", limits={"zstd_window": 8_191},
                blind=("load_into",))  # fmt: skip


def test_expansion_counts_bytes_on_disk(child: Child, tmp_path: Path) -> None:
    """146 bytes of tensors in some 2,000 bytes of files."""
    for form in FORMS:
        directory = tmp_path / form
        directory.mkdir()
        path = write(good(), form, directory)
        assert not child.ask(path, "indexed", {"total_floor": 0, "expansion": 1}).error
        refused(child, path, LimitError, "limit|over|bytes of tensors",
                limits={"total_floor": 1, "expansion": 0})  # fmt: skip


def test_a_file_may_begin_with_what_compresses_best(tmp_path: Path) -> None:
    """Where the size of the file is known, all readers hold the total against it."""
    state = {"zeros": torch.zeros(1 << 18), "noise": torch.rand(1 << 18)}
    limits = Limits(total_floor=1, expansion=3)
    for name in ("c.json", "c.json.zst", "c"):
        path = tmp_path / name
        jsonckpt.save(state, path, compression="zstd", max_shard_size=1 << 20)
        for reader in (indexed, streaming):
            assert same(reader(path, limits=limits), state)
        assert [found for found, _ in jsonckpt.stream(path, limits=limits)] == ["/zeros", "/noise"]
    # Nobody knows what is still to come through a pipe: what has come counts.
    with pytest.raises(LimitError, match="in the first"):
        piped(tmp_path / "c.json", limits=limits)


def test_brackets_cost_memory_only_up_to_a_limit(child: Child, tmp_path: Path) -> None:
    """Some kilobytes of a compressed file, which would come to gigabytes."""
    forgery = good()
    forgery.state["x"] = Raw(b"[" + b",".join([b"[" * 90 + b"]" * 90] * 70_000) + b"]")
    for form in ("zst", "directory"):
        directory = tmp_path / form
        directory.mkdir()
        path = write(forgery, form, directory)
        refused(
            child,
            path,
            LimitError,
            "brackets and strings or more|manifest_bytes=None",
            growth=128 << 20,
        )


@pytest.mark.parametrize(
    "unit",
    [b'""', b"1000",
     *map(slow, (b"{}", b"[]", b'{"a":1}', b"0.5", b'{"$tuple":[]}', b'{"$set":[]}'))],
)  # fmt: skip
def test_a_small_compressed_file_stays_small(unit: bytes, child: Child, tmp_path: Path) -> None:
    """8 MB of one value, in a file of a kilobyte or two."""
    forgery = good()
    forgery.state["x"] = Raw(b"[" + b",".join([unit] * ((8 << 20) // (len(unit) + 1))) + b"]")
    path = write(forgery, "zst", tmp_path)
    assert path.stat().st_size < 4_000
    refused(child, path, LimitError, "marks=None|manifest_bytes=None", growth=64 << 20)
    outcome = child.ask(path, "indexed", {"marks": None, "manifest_bytes": None})
    assert not outcome.error, outcome.message


@pytest.mark.parametrize(
    "unit",
    [b"1000", *(slow(unit)
                for unit in (b"{}", b'{"a":1}', b"0.5", b'{"":{}}'))],
)  # fmt: skip
def test_what_a_small_compressed_file_takes_at_most(
    unit: bytes, child: Child, tmp_path: Path
) -> None:
    """As much text, and as many brackets and strings, as the limits let by."""
    count = min((4 << 20) // (len(unit) + 1), 1_000_000 // max(1, marks_of(unit))) - 1_000
    forgery = good()
    forgery.state["x"] = Raw(b"[" + b",".join([unit] * count) + b"]")
    path = write(forgery, "zst", tmp_path)
    for door in (*doors_of(path), "deep", "recover"):
        outcome = child.ask(path, door)
        assert not outcome.error, f"{door}: {outcome.message}"
        assert outcome.growth < 200 << 20, f"{door} took {outcome.growth >> 20} MiB"


def test_every_limit_has_a_test() -> None:
    tested = {bound.field for bound in BOUNDS.values()}
    tested |= {"manifest_bytes", "zstd_window", "expansion", "marks"}
    tested |= {"links"}  # tests/storage/test_links.py
    assert tested == {field.name for field in dataclasses.fields(Limits)}


def test_defaults_are_those_of_the_specification() -> None:
    assert dataclasses.asdict(Limits()) == {
        "manifest_bytes": 64 << 20,
        "tensors": 500_000,
        "chunks": 4_000_000,
        "shards": 100_000,
        "name_bytes": 1_024,
        "rank": 64,
        "chunk_bytes": 64 << 20,
        "depth": 200,
        "number_chars": 1_000,
        "marks": 10_000_000,
        "total_floor": 1 << 30,
        "expansion": 1_000,
        "zstd_window": 64 << 20,
        "links": None,
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limits().rank = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        Limits(5)  # type: ignore[call-arg]


def test_limits_off_still_refuse_what_python_cannot_follow(child: Child, tmp_path: Path) -> None:
    everything = {field.name: None for field in dataclasses.fields(Limits)}
    forgery = good()
    forgery.state["x"] = Raw(b"[" * 50_000 + b"]" * 50_000)
    for form in ("directory", "single"):
        path = write(forgery, form, tmp_path)
        refused(child, path, jsonckpt.JsonckptError, "nested", limits=everything)
    digits = good()
    digits.state["x"] = Raw(b"7" * 5_000)
    path = digits.write_single(tmp_path / "digits.json")
    refused(child, path, jsonckpt.JsonckptError, "digits|characters", limits=everything)
    assert json.loads(json.dumps(everything))["rank"] is None
