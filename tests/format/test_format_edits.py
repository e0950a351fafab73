"""Texts that were edited, reformatted or cut off."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

import jsonckpt
from tests import independent_reader
from tests.texts import refused_by_all, single_text, state


def edited(path: Path, old: str, new: str) -> None:
    """Replace a part of the manifest, as an editor would."""
    manifest = path / "manifest.json"
    text = manifest.read_text()
    assert text.count(old) == 1
    manifest.write_text(text.replace(old, new))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    jsonckpt.save(state(), tmp_path / "c")
    return tmp_path / "c"


def unseal(path: Path) -> None:
    """Set ``"seal":null``."""
    seal = json.loads((path / "manifest.json").read_text())["seal"]
    edited(path, f'\n"seal":"{seal}"}}', '\n"seal":null}')


def test_an_edit_with_the_seal_taken_off_is_believed(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"lr": 0.1', '"lr": 0.025')
    assert jsonckpt.load(checkpoint)["opt"]["lr"] == 0.025
    assert jsonckpt.verify(checkpoint).ok
    assert independent_reader.load(checkpoint)["opt"]["lr"] == 0.025


def test_an_edit_under_the_seal_is_damage(checkpoint: Path) -> None:
    edited(checkpoint, '"lr": 0.1', '"lr": 0.2')
    with pytest.raises(jsonckpt.IntegrityError, match='"seal":null'):
        jsonckpt.load(checkpoint)
    assert not jsonckpt.verify(checkpoint).ok


@pytest.mark.parametrize("end", ["}", "}\n", "} \r\n\t\n"])
def test_white_space_may_end_a_manifest(checkpoint: Path, end: str) -> None:
    manifest = checkpoint / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().rstrip()[:-1] + end.encode())
    assert jsonckpt.load(checkpoint)["epoch"] == 3
    assert independent_reader.load(checkpoint)["epoch"] == 3


def test_a_manifest_without_its_seal_is_refused(checkpoint: Path) -> None:
    seal = json.loads((checkpoint / "manifest.json").read_text())["seal"]
    edited(checkpoint, f',\n"seal":"{seal}"}}', "}")
    with pytest.raises(jsonckpt.FormatError, match="seal is missing"):
        jsonckpt.load(checkpoint)


def test_members_that_nobody_knows_are_ignored(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(
        checkpoint,
        '"epoch": 3',
        '"epoch": 3, "tied again": {"$tied": {"name":"/x","of":"/w","hue":1}}',
    )
    edited(checkpoint, '"created_by"', '"later":{"a":[1,{}]},\n"created_by"')
    edited(checkpoint, '"text_bytes"', '"colour":"red","text_bytes"')
    edited(checkpoint, ',"chunk_bytes":1048576}', ',"chunk_bytes":1048576,"speed":null}')
    edited(checkpoint, '{"name":"/n",', '{"weight":[7],"name":"/n",')
    found = jsonckpt.load(checkpoint)
    assert found["tied again"].data_ptr() == found["w"].data_ptr()


def test_features_that_nobody_knows_are_refused_by_name(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"created_by"', '"requires":["deltas"],\n"created_by"')
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="deltas"):
        jsonckpt.load(checkpoint)


@pytest.mark.parametrize("version", ["2", "0", "1.0", "true", '"1"', "null"])
def test_another_version_is_refused(checkpoint: Path, version: str) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"version":1', f'"version":{version}')
    with pytest.raises(jsonckpt.FormatError, match="version"):
        jsonckpt.load(checkpoint)
    with pytest.raises(ValueError, match="version"):
        independent_reader.load(checkpoint)


def test_objects_and_tags(checkpoint: Path) -> None:
    unseal(checkpoint)
    edited(checkpoint, '"lr": 0.1', '"lr": {"$x": 1, "b": {}}')
    expected = {"$x": 1, "b": {}}
    assert jsonckpt.load(checkpoint)["opt"]["lr"] == expected
    assert independent_reader.load(checkpoint)["opt"]["lr"] == expected
    edited(checkpoint, '{"$x": 1, "b": {}}', '{"$x": 1}')
    with pytest.raises(jsonckpt.FormatError, match=r"\$x"):
        jsonckpt.load(checkpoint)
    edited(checkpoint, '{"$x": 1}', "1e400")
    with pytest.raises(jsonckpt.FormatError, match="1e400"):
        jsonckpt.load(checkpoint)
    with pytest.raises(ValueError, match="1e400"):
        independent_reader.load(checkpoint)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: json.dumps(json.loads(text)).encode(),
        lambda text: json.dumps(json.loads(text), indent=1).encode(),
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: text.rstrip(),
        lambda text: text + b"\n",
        lambda text: text + b"{}",
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: text.replace(b'],"index"', b'], "index"'),
        lambda text: text.replace(b'","index_offset"', b'","more":1,"index_offset"'),
        lambda text: text.replace(b'"index_offset": ', b'"index_offset":'),
        lambda text: text.replace(b'"epoch": 3', b'"epoch": 4'),
        lambda text: text.replace(b'"dtype":"int16"', b'"dtype":"uint16"'),
        lambda text: text[: len(text) // 2],
        lambda text: text[:0],
    ],
)
def test_a_text_that_was_touched_is_refused(
    change: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    text = single_text(state(), checksum="sha256")
    assert change(text) != text
    refused_by_all(change(text), tmp_path)


def test_frames_of_a_compressed_file(tmp_path: Path) -> None:
    text = single_text(state())
    compress = zstandard.ZstdCompressor().compress
    path = tmp_path / "c.json.zst"
    path.write_bytes(b"".join(compress(text[i : i + 333]) for i in range(0, len(text), 333)))
    assert jsonckpt.load(path)["epoch"] == 3
    assert independent_reader.load(path)["epoch"] == 3
    path.write_bytes(b"\x50\x2a\x4d\x18\x04\x00\x00\x00skip" + compress(text))
    with pytest.raises(jsonckpt.FormatError, match="zstd frame"):
        jsonckpt.load(path)


@pytest.mark.parametrize(
    "size",
    [
        300,
        1 << 20,
    ],
)
def test_a_compressed_file_that_was_cut_off(size: int, tmp_path: Path) -> None:
    text = single_text(state())
    compress = zstandard.ZstdCompressor().compress
    frames = b"".join(compress(text[i : i + size]) for i in range(0, len(text), size))
    path = tmp_path / "c.json.zst"
    path.write_bytes(frames[:-3])
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.load(path)
