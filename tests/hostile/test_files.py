"""Files that are missing, cut off, of another kind, or no checkpoint at all."""

from __future__ import annotations

import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    UnsafePathError,
)
from tests.hostile.cases import Case, Cases, check, doors_of, refused
from tests.hostile.forge import Forgery, good
from tests.hostile.runner import Child
from tests.readers import READERS

CASES = Cases()
DIRECTORY = ("directory",)


def _shard(path: Path, number: int = 0) -> Path:
    return sorted(path.glob("shard-*"))[number]


def _after(
    name: str,
    change: Callable[[Path], Any],
    says: str,
    expects: Any,
    forms: tuple[str, ...] = DIRECTORY,
    blind: tuple[str, ...] = (),
) -> None:
    """Something that happens to a finished checkpoint."""

    @CASES.add(expects, says, forms=forms, name=name, blind=blind)
    def _(forgery: Forgery) -> None:
        forgery.afterwards = change


# --- parts that are missing ---------------------------------------------------------------------


def _cut(file: Path, size: int) -> None:
    os.truncate(file, size if size >= 0 else file.stat().st_size + size)


INCOMPLETE = IncompleteCheckpointError
_after("shard_missing", lambda path: _shard(path).unlink(), "missing", INCOMPLETE)
_after("last_shard_missing", lambda path: _shard(path, -1).unlink(), "missing", INCOMPLETE)
_after("shard_empty", lambda path: _cut(_shard(path), 0), "0 bytes", INCOMPLETE)
_after("shard_cut_in_half", lambda path: _cut(_shard(path), 700), "700 bytes", INCOMPLETE)
_after("shard_without_last_byte", lambda path: _cut(_shard(path), -1), "bytes", INCOMPLETE)
_after("manifest_missing", lambda path: (path / "manifest.json").unlink(),
       "no manifest.json.*Save again", INCOMPLETE)  # fmt: skip
_after("manifest_empty", lambda path: _cut(path / "manifest.json", 0), "", FormatError)
_after("manifest_cut_in_half", lambda path: _cut(path / "manifest.json", 500), "", FormatError)
_after("manifest_without_seal", lambda path: _cut(path / "manifest.json", -56), "", FormatError)


def _empty(path: Path) -> None:
    for file in path.iterdir():
        file.unlink()


_after("everything_missing", _empty,
       "there is no manifest.json", CheckpointNotFoundError)  # fmt: skip
_after("file_cut_in_half", lambda path: _cut(path, 1000), "cut off", INCOMPLETE, ("single",))
_after("file_without_last_byte", lambda path: _cut(path, -1), "", INCOMPLETE, ("single",))


def _append(file: Path, data: bytes) -> None:
    with open(file, "ab") as stream:
        stream.write(data)


_after("shard_longer", lambda path: _append(_shard(path), b"\n"), "bytes", FormatError)
_after("manifest_longer", lambda path: _append(path / "manifest.json", b"x"), "", FormatError)
_after("file_longer", lambda path: _append(path, b"x"), "", (FormatError, INCOMPLETE), ("single",))


def _swap_shards(path: Path) -> None:
    one, two = _shard(path), _shard(path, 1)
    one.rename(path / "x")
    two.rename(one)
    (path / "x").rename(two)


def _shard_of_another_save(path: Path) -> None:
    other = good()
    other.head["save_id"] = "ab" * 16
    written = other.write_directory(path.parent / "other")
    shutil.copy(_shard(written), _shard(path))


def _manifest_of_another_save(path: Path) -> None:
    other = good()
    other.head["save_id"] = "ab" * 16
    written = other.write_directory(path.parent / "other")
    shutil.copy(written / "manifest.json", path / "manifest.json")


def _shard_with_another_value(path: Path) -> None:
    """The same save, sizes and layout, but another number: a mixture of two states."""
    other = good()
    other["/w"].fill(bytes(48))
    shutil.copy(_shard(other.write_directory(path.parent / "other")), _shard(path))


MIXED = (FormatError, IntegrityError, IncompleteCheckpointError)
_after("shards_swapped", _swap_shards, "bytes|manifest", MIXED)
_after("shard_of_another_save", _shard_of_another_save, "save", FormatError)
_after("manifest_of_another_save", _manifest_of_another_save, "save", FormatError)
_after("shard_with_another_value", _shard_with_another_value, "checksum|manifest", MIXED)

# --- names of shards ----------------------------------------------------------------------------


def _name(
    test: str, name: Any, expects: Any = UnsafePathError, says: str = "unsafe|regular"
) -> None:
    """Another file name in the manifest."""

    @CASES.add(expects, says, forms=DIRECTORY, name=f"shard_called_{test}")
    def _(forgery: Forgery) -> None:
        def edit(manifest: Any) -> None:
            manifest["shards"][0]["file"] = name

        forgery.edit_manifest = edit


_name("parent", "../shard-x.json")
_name("grandparent", "../../etc/passwd")
_name("absolute", "/etc/passwd")
_name("backslash", "..\\shard-x.json")
_name("subdirectory", "a/shard-x.json")
_name("drive", "C:shard-x.json")
_name("dot", ".")
_name("nothing", "")
_name("device", "/dev/zero")
_name("nul", "shard-\0.json")
_name("nul_behind", "shard-a.json\0.txt")
_name("line_feed_behind", "shard-a.json\n")
_name("capitals", "shard-A.json")
_name("another_ending", "shard-a.pt")
_name("manifest", "manifest.json")
_name("percent", "shard-%2e%2e.json")
_name("unicode_slash", "shard-\u2215.json")
_name("full_width_digit", "shard-１.json")
_name("url", "http://localhost/shard-a.json")
_name("very_long", "shard-" + "a" * 101 + ".json")
_name("a_number", 5, FormatError, "string")
_name("null", None, FormatError, "string")
_name("an_array", ["shard-a.json"], FormatError, "string")
_name("missing_file", "shard-missing.json", IncompleteCheckpointError, "missing")

# --- kinds of files -----------------------------------------------------------------------------


def _instead(test: str, make: Callable[[Path], Any], says: str = "regular file") -> None:
    """Something else in the place of a shard, and of a single file."""

    def replace(path: Path) -> None:
        file = _shard(path) if path.is_dir() else path
        file.unlink()
        make(file)

    _after(f"{test}_for_a_shard", replace, says, JsonckptError)
    if test != "directory":
        _after(f"{test}_for_a_file", replace, says, JsonckptError, ("single",), ("piped",))


_instead("fifo", os.mkfifo)
_instead("directory", os.mkdir)
_instead("link_to_a_device", lambda file: file.symlink_to("/dev/zero"))
_instead("link_to_a_terminal", lambda file: file.symlink_to("/dev/ptmx"), "regular|open")
_instead("link_to_itself", lambda file: file.symlink_to(file.name), "open|levels")
_instead("link_to_nothing", lambda file: file.symlink_to("nothing"), "missing|no such")
_instead("link_to_a_directory", lambda file: file.symlink_to("/etc"), "regular|no manifest")


def _fifo_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    os.mkfifo(path / "manifest.json")


def _device_manifest(path: Path) -> None:
    (path / "manifest.json").unlink()
    (path / "manifest.json").symlink_to("/dev/zero")


_after("fifo_for_a_manifest", _fifo_manifest, "regular file", UnsafePathError)
_after("device_for_a_manifest", _device_manifest, "regular file", UnsafePathError)


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)


def test_link_to_a_regular_file_is_fine(child: Child, tmp_path: Path) -> None:
    """As caches of downloaded models have them."""
    path = good().write_directory(tmp_path / "run")
    for file in list(path.iterdir()):
        file.rename(tmp_path / file.name)
        file.symlink_to(tmp_path / file.name)
    single = good().write_single(tmp_path / "blob.json")
    link = tmp_path / "link.json"
    link.symlink_to(single)
    for target in (path, link):
        for door in doors_of(target):
            outcome = child.ask(target, door)
            assert not outcome.error, f"{door}: {outcome.message}"


def test_sparse_files_of_terabytes(child: Child, tmp_path: Path) -> None:
    """Sizes cost nothing to claim, and holes nothing to make."""
    path = good().write_directory(tmp_path / "run")
    os.truncate(_shard(path), 1 << 42)
    # Whoever looks for what is left of it reads it, which takes its time.
    refused(child, path, FormatError, str(1 << 42), rescue=False)
    single = good().write_single(tmp_path / "run.json")
    os.truncate(single, 1 << 42)
    refused(child, single, JsonckptError, "", blind=("piped", "stream"), rescue=False)


# --- no checkpoint at all -----------------------------------------------------------------------


def _pt(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path)


def _old_pt(path: Path) -> None:
    torch.save({"w": torch.ones(3)}, path, _use_new_zipfile_serialization=False)


def _safetensors(path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))


def _zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", b"b")


def _bytes(data: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(data)


FOREIGN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "empty": (_bytes(b""), "empty.*convert"),
    "one_brace": (_bytes(b"{"), "not a jsonckpt checkpoint.*convert"),
    "empty_object": (_bytes(b"{}\n"), "not a jsonckpt checkpoint.*convert"),
    "null": (_bytes(b"null"), "not a jsonckpt checkpoint.*convert"),
    "torch": (_pt, "not a jsonckpt checkpoint.*convert"),
    "torch_before_1_6": (_old_pt, "not a jsonckpt checkpoint.*convert"),
    "safetensors": (_safetensors, "not a jsonckpt checkpoint.*convert"),
    "zip": (_zip, "not a jsonckpt checkpoint.*convert"),
    "html": (_bytes(b"<!DOCTYPE html>\n<html>404</html>\n"), "not a jsonckpt checkpoint.*convert"),
    "other_json": (_bytes(b'{"model":{"w":[1,2]}}'), "not a jsonckpt checkpoint.*convert"),
    "json_lines": (_bytes(b'{"a":1}\n{"a":2}\n'), "not a jsonckpt checkpoint.*convert"),
    "large_other_json": (_bytes(b'{"a":[' + b"1," * (1 << 20) + b"1]}"), "convert"),
    "random": (_bytes(bytes(range(256)) * 64), "not a jsonckpt checkpoint.*convert"),
    "git_lfs_pointer": (
        _bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n"),
        "Git LFS pointer.*git lfs pull",
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file(name: str, child: Child, tmp_path: Path) -> None:
    make, says = FOREIGN[name]
    path = tmp_path / "other.json"
    make(path)
    refused(child, path, FormatError, says)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_file_of_another_ending(name: str, child: Child, tmp_path: Path) -> None:
    make, says = FOREIGN[name]
    path = tmp_path / "other.pt"
    make(path)
    refused(child, path, FormatError, says)


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_manifest(name: str, child: Child, tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    FOREIGN[name][0](path / "manifest.json")
    refused(child, path, FormatError, "")


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_compressed_file(name: str, child: Child, tmp_path: Path) -> None:
    path = tmp_path / "other.json.zst"
    FOREIGN[name][0](path)
    refused(child, path, (FormatError, IncompleteCheckpointError), "zstd")


def test_missing_path(child: Child, tmp_path: Path) -> None:
    for name in ("nowhere", "nowhere.json", "nowhere.json.zst", "a/b/c", "nowhere/manifest.json"):
        refused(child, tmp_path / name, CheckpointNotFoundError, "no such file", blind=("piped",))


def test_missing_path_names_its_neighbours(tmp_path: Path) -> None:
    good().write_single(tmp_path / "epoch-10.json")
    with pytest.raises(CheckpointNotFoundError, match=r"epoch-10\.json"):
        jsonckpt.load(tmp_path / "epoch-1.json")


def test_directory_of_other_files(child: Child, tmp_path: Path) -> None:
    _pt(tmp_path / "model.pt")
    refused(child, tmp_path, CheckpointNotFoundError, "there is no manifest.json")


def test_file_where_a_directory_is_expected(child: Child, tmp_path: Path) -> None:
    _pt(tmp_path / "run")
    refused(child, tmp_path / "run", FormatError, "convert")
    inside = tmp_path / "run" / "manifest.json"
    refused(child, inside, CheckpointNotFoundError, "directory", blind=("piped",))


def test_one_shard_is_no_checkpoint(child: Child, tmp_path: Path) -> None:
    path = good().write_directory(tmp_path / "run")
    shard = _shard(path)
    for door in ("indexed", "streaming", "piped"):
        outcome = child.ask(shard, door)
        assert "FormatError" in outcome.error, outcome
        assert "Open the directory" in outcome.message
    assert not child.ask(shard, "stream").error


def test_manifest_opened_as_a_file(child: Child, tmp_path: Path) -> None:
    path = good().write_directory(tmp_path / "run")
    assert not child.ask(path / "manifest.json", "indexed").error
    (path / "manifest.json").rename(tmp_path / "copy.json")
    for door in ("indexed", "streaming"):
        outcome = child.ask(tmp_path / "copy.json", door)
        assert "FormatError" in outcome.error, outcome
        assert "manifest" in outcome.message


@pytest.mark.parametrize("path", ["a\0b", "a\0b.json", "x" * 5_000, "x" * 300 + ".json", ""])
def test_paths_that_no_file_has(path: str, tmp_path: Path) -> None:
    target = f"{tmp_path}/{path}" if path else path
    error = jsonckpt.ArgumentError if "\0" in path or not path else CheckpointNotFoundError
    for read in (READERS["indexed"], READERS["streaming"], jsonckpt.open, jsonckpt.verify):
        with pytest.raises(error):
            read(target)
    with pytest.raises(error):
        list(jsonckpt.stream(target))


def test_text_file_object_is_told_to_be_binary(tmp_path: Path) -> None:
    path = good().write_single(tmp_path / "run.json")
    with open(path, encoding="utf-8") as text, pytest.raises(TypeError, match="rb"):
        jsonckpt.load(text)
    with pytest.raises(TypeError, match="rb"):
        jsonckpt.load(io.StringIO("{}"))


@pytest.mark.parametrize("indent", [None, 2])
def test_reformatted_file_is_called_so(indent: int | None, child: Child, tmp_path: Path) -> None:
    """What an editor or ``python -m json.tool`` makes of a checkpoint."""
    path = good().write_single(tmp_path / "run.json")
    text = json.loads(path.read_text())
    path.write_text(json.dumps(text, indent=indent))
    refused(child, path, IntegrityError, "written again by a JSON tool")


def test_reformatted_manifest_says_what_to_do(child: Child, tmp_path: Path) -> None:
    path = good().write_directory(tmp_path / "run")
    manifest = path / "manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text())))
    refused(child, path, IntegrityError, '"seal":null')


def test_manifest_edited_without_its_seal(child: Child, tmp_path: Path) -> None:
    path = good().write_directory(tmp_path / "run")
    manifest = path / "manifest.json"
    text = manifest.read_text()
    manifest.write_text(text.replace('"epoch":3', '"epoch":4'))
    refused(child, path, IntegrityError, '"seal":null')
    edited = text.replace('"epoch":3', '"epoch":4')
    manifest.write_text(edited[: edited.rindex('"seal"')] + '"seal":null}\n')
    assert not child.ask(path, "indexed").error
    assert jsonckpt.load(path)["epoch"] == 4
