"""Checkpoints that a JSON tool wrote again, with a seal of null."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.load import any_layout
from tests import independent_reader
from tests.layout_tools import FAITHFUL, TOOLS

GOLDEN = Path(__file__).parents[1] / "golden" / "v1"
CODECS: list[dict[str, Any]] = [
    {},
    {"encoding": "list"},
    {"compression": "zstd"},
    {"compression": "zstd", "filter": "shuffle"},
]


def state() -> dict[str, Any]:
    torch.manual_seed(0)
    return {
        "w": torch.randn(70, 30),
        "half": torch.randn(9).to(torch.bfloat16),
        "odd": torch.tensor([float("nan"), float("inf"), 1e-30, -7.0]),
        "flags": torch.tensor([True, False, True]),
        "none": torch.empty(0, 3),
        "steps": torch.arange(40),
        "lr": 0.1,
        "name": 'é "/" \\',
    }


def check(path: Path, expected: dict[str, Any]) -> None:
    """All readers give the same."""
    loaded = jsonckpt.load(path)
    assert loaded.keys() == expected.keys()
    tensors = {key: value for key, value in expected.items() if torch.is_tensor(value)}
    into = {key: torch.empty_like(value) for key, value in tensors.items()}
    jsonckpt.load_into(into, path, strict=False)
    with jsonckpt.open(path) as checkpoint:
        for key, value in tensors.items():
            found = [loaded[key], into[key], checkpoint[f"/{key}"].load()]
            for one in found:
                assert one.dtype == value.dtype
                torch.testing.assert_close(one, value, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(checkpoint["/w"][10:20], expected["w"][10:20])
    assert {name for name, _ in jsonckpt.stream(path)} == {f"/{name}" for name in tensors}
    for deep in (False, True):
        report = jsonckpt.verify(path, deep=deep)
        assert report.ok
        assert "its seal is null" in str(report)


def tool_writes(path: Path, tool: str, seal: str | None = None) -> None:
    """Let a tool write a file again."""
    data = path.read_bytes()
    compressed = path.suffix == ".zst"
    text = independent_reader.file_text(path) if compressed else data
    made = TOOLS[tool](text)
    if seal is not None:
        made = made.replace(b'"seal":null', b'"seal":"%s"' % seal.encode())
        made = made.replace(b'"seal": null', b'"seal": "%s"' % seal.encode())
    path.write_bytes(zstandard.compress(made) if compressed else made)


@pytest.mark.parametrize("name", ["c.json", "c.json.zst"])
@pytest.mark.parametrize("codec", CODECS, ids=str)
@pytest.mark.parametrize("tool", TOOLS)
def test_any_tool_may_write_a_single_file(
    tmp_path: Path, tool: str, codec: dict[str, Any], name: str
) -> None:
    path = tmp_path / name
    jsonckpt.save(state(), path, **codec)
    tool_writes(path, tool)
    check(path, state())
    independent_reader.load(path)


@pytest.mark.parametrize("tool", TOOLS)
def test_any_tool_may_write_a_manifest(tmp_path: Path, tool: str) -> None:
    jsonckpt.save(state(), tmp_path / "c")
    tool_writes(tmp_path / "c" / "manifest.json", tool)
    check(tmp_path / "c", state())
    independent_reader.load(tmp_path / "c")
    jsonckpt.gc(tmp_path / "c", older_than=0)
    assert jsonckpt.verify(tmp_path / "c").ok


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json*")), ids=lambda path: path.name)
@pytest.mark.parametrize("tool", FAITHFUL)
def test_golden_files_in_another_layout(tmp_path: Path, tool: str, path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    tool_writes(copy, tool)
    with jsonckpt.open(path) as one, jsonckpt.open(copy) as other:
        assert one.manifest.state == other.manifest.state
        sums = [[e.chunks[i][2] for e in c.manifest.entries for i in range(len(e.chunks))]
                for c in (one, other)]  # fmt: skip
        assert sorted(sums[0]) == sorted(sums[1])
    assert jsonckpt.verify(copy, deep=True).ok


def edit(path: Path, old: bytes, new: bytes) -> None:
    text = path.read_bytes()
    assert old in text
    path.write_bytes(text.replace(old, new, 1))


@pytest.mark.parametrize("new", [b'"lr": 0.2', b'"lr": 0.0005'])
def test_an_edit_that_keeps_the_lines(tmp_path: Path, new: bytes) -> None:
    """The index may be wrong then. A pipe reads it, too."""
    path = tmp_path / "c.json"
    seal = jsonckpt.save(state(), path).digest
    edit(path, b'"lr": 0.1', new)
    with pytest.raises(jsonckpt.IntegrityError, match=r'set "seal":null in it: jq'):
        jsonckpt.load(path)
    edit(path, f'"{json.loads(path.read_bytes())["seal"]}"'.encode(), b"null")
    assert seal
    check(path, state())
    assert jsonckpt.load(path)["lr"] == jsonckpt.load(io.BytesIO(path.read_bytes()))["lr"] != 0.1


@pytest.mark.parametrize("index", ["missing", "wrong", "of another type"])
def test_the_index_counts_for_nothing(tmp_path: Path, index: str) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(state(), path)
    document = json.loads(path.read_bytes()) | {"seal": None}
    if index == "missing":
        del document["index"], document["index_offset"]
    elif index == "wrong":
        document["index"] = [[5, 5, [[5, 5]]]] * len(document["index"])
    else:
        document["index"], document["index_offset"] = {"a": None}, "x"
    path.write_text(json.dumps(document))
    check(path, state())


@pytest.mark.parametrize("name", ["c.json", "c.json.zst", "manifest.json"])
@pytest.mark.parametrize("tool", TOOLS)
def test_a_seal_that_cannot_fit_is_named(tmp_path: Path, tool: str, name: str) -> None:
    path = tmp_path / name
    target = tmp_path if name == "manifest.json" else path
    jsonckpt.save(state(), target)
    text = independent_reader.file_text(path)
    tool_writes(path, tool, json.loads(text)["seal"])
    for read in (jsonckpt.load, jsonckpt.open, lambda where: list(jsonckpt.stream(where))):
        with pytest.raises(jsonckpt.IntegrityError, match=r"written again by a JSON tool.*jq"):
            read(target)
    assert "written again by a JSON tool" in str(jsonckpt.verify(target))


@pytest.mark.parametrize("name", ["c.json", "manifest.json"])
def test_a_seal_must_be_there(tmp_path: Path, name: str) -> None:
    target = tmp_path if name == "manifest.json" else tmp_path / name
    jsonckpt.save(state(), target)
    document = json.loads((tmp_path / name).read_bytes())
    del document["seal"]
    (tmp_path / name).write_text(json.dumps(document))
    with pytest.raises(jsonckpt.FormatError, match="the member seal is missing"):
        jsonckpt.load(target)


@pytest.mark.parametrize("tool", ["compact", "indented", "backwards"])
def test_a_pipe_is_refused_with_the_way_out(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(state(), path)
    tool_writes(path, tool)
    with pytest.raises(jsonckpt.IntegrityError, match="A pipe cannot be read in this layout"):
        jsonckpt.load(io.BytesIO(path.read_bytes()))


def test_a_digest_pins_no_edited_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    digest = jsonckpt.save(state(), path, checksum="sha256").digest
    tool_writes(path, "compact")
    with pytest.raises(jsonckpt.IntegrityError, match="its seal is null"):
        jsonckpt.load(path, expected_digest=digest)
    jsonckpt.save(state(), path, checksum="sha256", overwrite=True)
    edit(path, f'"{json.loads(path.read_bytes())["seal"]}"'.encode(), b"null")
    with pytest.raises(jsonckpt.IntegrityError, match="its seal is null"):
        jsonckpt.load(io.BytesIO(path.read_bytes()), expected_digest=digest)


@pytest.mark.parametrize("codec", CODECS[:2], ids=str)
def test_a_changed_number_is_found(tmp_path: Path, codec: dict[str, Any]) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"zero": torch.tensor([-0.0, 1.0])}, path, **codec)
    text = TOOLS["indented"](path.read_bytes())
    path.write_bytes(text.replace(b"-0.0", b"0").replace(b"AAAAgA", b"AAAAAA"))
    with pytest.raises(jsonckpt.IntegrityError) as caught:
        jsonckpt.load(path)
    assert caught.value.tensor == "/zero"
    assert ("a JSON tool changed a number" in str(caught.value)) is bool(codec)
    assert [problem.tensor for problem in jsonckpt.verify(path).problems] == ["/zero"]


@pytest.mark.parametrize("tool", ["compact", "indented", "sorted"])
def test_every_cut_is_an_error(tmp_path: Path, tool: str) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.arange(3), "e": torch.ones(2), "lr": 0.1}, path, encoding="list")
    tool_writes(path, tool)
    text = path.read_bytes()
    for size in range(1, len(text.rstrip()), 3):
        path.write_bytes(text[:size])
        with pytest.raises(jsonckpt.JsonckptError) as caught:
            jsonckpt.load(path)
        if b"jsonckpt.shard" in text[:size]:
            assert isinstance(caught.value, jsonckpt.IncompleteCheckpointError)


def test_the_usual_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(state(), path)
    monkeypatch.setattr(any_layout, "AnyLayoutScanner", None)
    jsonckpt.load(path)
    os.truncate(path, path.stat().st_size - 300)
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="cut off"):
        jsonckpt.load(path)


def crlf(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))


@pytest.mark.parametrize("codec", CODECS[:2], ids=str)
@pytest.mark.parametrize("what", ["single", "manifest", "shards", "directory", "pipe"])
def test_line_endings_are_named(tmp_path: Path, what: str, codec: dict[str, Any]) -> None:
    path = tmp_path / ("c.json" if what in ("single", "pipe") else "c")
    jsonckpt.save(state(), path, **codec)
    files = [path] if path.is_file() else list(path.iterdir())
    for file in files:
        if (
            what == "directory"
            or path.is_file()
            or (file.name == "manifest.json") == (what == "manifest")
        ):
            crlf(file)
    says = "line endings were changed from LF to CRLF, as Git does with core.autocrlf"
    for read in (jsonckpt.load, lambda where: list(jsonckpt.stream(where))):
        with pytest.raises(jsonckpt.FormatError, match=says):
            read(io.BytesIO(path.read_bytes()) if what == "pipe" else path)
    if what != "pipe":
        report = jsonckpt.verify(path)
        assert len(report.problems) == 1
        assert says in str(report)


def test_a_shard_that_a_formatter_wrote(tmp_path: Path) -> None:
    jsonckpt.save(state(), tmp_path)
    [shard] = tmp_path.glob("shard-*")
    tool_writes(shard, "indented")
    with pytest.raises(
        jsonckpt.IntegrityError, match=r"JSON tool\. Read it with: jsonckpt recover"
    ):
        jsonckpt.load(tmp_path)
    assert len(jsonckpt.verify(tmp_path).problems) == 1
