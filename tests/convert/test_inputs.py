"""Conversion: every kind of input, and what is no checkpoint."""

from __future__ import annotations

import base64
import fractions
import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.commands.convert import main
from jsonckpt._src.errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    UnsupportedTypeError,
)
from jsonckpt.convert import convert
from tests.convert.guide import DATA, files, guide_state, same, unpacked


def as_legacy(path: Path) -> Path:
    target = path.with_name("legacy.bin")
    torch.save(guide_state(), target, _use_new_zipfile_serialization=False)
    return target


def as_unpacked(path: Path) -> Path:
    return unpacked(path, path.with_name("best"))


def as_nested(path: Path) -> Path:
    directory = path.with_name("outer")
    directory.mkdir()
    as_unpacked(path).rename(directory / "best")
    return directory


def as_bare(path: Path) -> Path:
    """What a site leaves that drops hidden files."""
    directory = as_unpacked(path)
    for hidden in directory.glob(".*"):
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    return directory


def as_deflated(path: Path) -> Path:
    target = path.with_name("deflated.ckpt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    return target


def as_single(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("single.json"))
    return path.with_name("single.json")


def as_compressed(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("single.json.zst"))
    return path.with_name("single.json.zst")


def as_directory(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("directory"))
    return path.with_name("directory")


def as_manifest(path: Path) -> Path:
    return as_directory(path) / "manifest.json"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        as_legacy,
        as_unpacked,
        as_nested,
        as_bare,
        as_deflated,
        as_single,
        as_compressed,
        as_directory,
        as_manifest,
    ],
    ids=lambda make: make.__name__,
)
def test_every_input_of_our_own(make: Callable[[Path], Path], checkpoint: Path) -> None:
    source = make(checkpoint)
    before = files(checkpoint.parent)
    output = checkpoint.with_name("out.pt")
    result = convert(source, output, test_load=True)
    same(guide_state(), torch.load(output, weights_only=True))
    assert result.comparison is not None
    assert result.comparison.tensors == 112
    assert files(checkpoint.parent) == before | {"out.pt"}


@pytest.mark.parametrize("name", ["guide_checkpoint.json", "packed.json.zst", "packed.json.gz"])
def test_json_of_another_program(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    text = (DATA / "guide_checkpoint.json").read_bytes()
    if name.endswith(".zst"):
        text = zstandard.ZstdCompressor().compress(text[:99999]) + (
            zstandard.ZstdCompressor().compress(text[99999:])
        )
    if name.endswith(".gz"):
        text = gzip.compress(text)
    source.write_bytes(text)
    result = convert(source, tmp_path / "out.json", test_load=True)
    same(guide_state(), jsonckpt.load(tmp_path / "out.json"), exact=False)
    assert "tied again: lm_head.weight is transformer.wte.weight" in result.notes
    assert files(tmp_path) == {name, "out.json"}


def test_safetensors_and_shards(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        "b.weight": torch.randn(3, 5).to(torch.bfloat16),
        "a.weight": torch.arange(7, dtype=torch.uint8),
        "c": torch.tensor(True),
        "empty": torch.empty(0, 3),
    }
    safetensors.save_file(tensors, tmp_path / "one.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "one.safetensors", tmp_path / "one.pt", test_load=True)
    found = torch.load(tmp_path / "one.pt", weights_only=True)
    same(tensors, {name: found[name] for name in tensors}, exact=False)

    directory = tmp_path / "model"
    directory.mkdir()
    weight_map = {}
    for number, name in enumerate(tensors):
        shard = f"model-{number}.safetensors"
        safetensors.save_file({name: tensors[name]}, directory / shard)
        weight_map[name] = shard
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for source in (index, directory):
        result = convert(source, tmp_path / "two.pt", test_load=True, overwrite=True)
        assert result.kind == "sharded checkpoint"
        same(tensors, torch.load(tmp_path / "two.pt", weights_only=True), exact=False)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"model-1\.safetensors"):
        convert(index, tmp_path / "three.pt")
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(FormatError, match="does not lie beside"):
        convert(index, tmp_path / "three.pt")


class Computed:
    """A value that only code gives."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (fractions.Fraction.from_float, (0.25,))


def test_a_file_that_needs_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"w": torch.ones(2), "ratio": Computed()}
    for name, new in (("new.pt", True), ("old.pt", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=new)
        output = tmp_path / f"{name}.json"
        assert main([str(tmp_path / name), "-o", str(output)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        assert "fractions.Fraction" in message
        assert "--unsafe-pickle" in message
        assert not output.exists()
        assert main([str(tmp_path / name), "-o", str(output), "--unsafe-pickle", "-q"]) == 0
        assert jsonckpt.load(output)["ratio"] == fractions.Fraction(1, 4)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_never_runs_unasked(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    torch.save({"w": torch.ones(2), "x": Malicious(trap)}, tmp_path / "bad.pt")
    with pytest.raises(UnsupportedTypeError):
        convert(tmp_path / "bad.pt", tmp_path / "out.json")
    assert not trap.exists()


CUT = b'{"w": {"data": [1.0], "shape": [1], "dtype": "float32"}}' + b" " * 9999


@pytest.mark.parametrize("pack", [zstandard.compress, gzip.compress], ids=["zstd", "gzip"])
@pytest.mark.parametrize("missing", [1, 8])
def test_compressed_json_that_was_cut_off(
    pack: Callable[[bytes], bytes], missing: int, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.write_bytes(pack(CUT[:9000]) + pack(CUT[9000:])[:-missing])
    with pytest.raises(IncompleteCheckpointError, match="the compressed data ends too early"):
        convert(source, tmp_path / "out.pt")
    assert files(tmp_path) == {"source"}


def test_a_skippable_frame_in_compressed_json_is_skipped(tmp_path: Path) -> None:
    skippable = b"\x5e\x2a\x4d\x18\x04\x00\x00\x00seek"
    (tmp_path / "source").write_bytes(zstandard.compress(CUT) + skippable)
    convert(tmp_path / "source", tmp_path / "out.pt")
    assert torch.load(tmp_path / "out.pt", weights_only=True)["w"].tolist() == [1.0]


NOT_CHECKPOINTS: dict[str, bytes] = {
    "empty.pt": b"",
    "text.pt": b"hello",
    "short.pt": b"PK\x03\x04",
    "pickle.pt": b"\x80\x04K\x01",
    "legacy.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "header.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b" " * 30,
    "offsets.safetensors": b"\x40\0\0\0\0\0\0\0"
    + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9]}}'.ljust(90),
    "own.json": b'{"format":"jsonckpt.shard","version":1}',
    "zst.json.zst": b"\x28\xb5\x2f\xfd\x00\x00",
    "gz.json.gz": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(NOT_CHECKPOINTS[name])
    assert main([str(tmp_path / name), "-o", str(tmp_path / "out.pt")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / name}")
    assert captured.err.count("\n") == 1
    assert files(tmp_path) == {name}


def test_truncated_inputs(checkpoint: Path) -> None:
    sources = [checkpoint, as_single(checkpoint), as_compressed(checkpoint)]
    convert(checkpoint, checkpoint.with_name("x.safetensors"))
    for source in [*sources, checkpoint.with_name("x.safetensors")]:
        content = source.read_bytes()
        cut = source.with_name(f"cut-{source.name}")
        for length in (len(content) - 1, len(content) // 2, 100):
            cut.write_bytes(content[:length])
            with pytest.raises((FormatError, IncompleteCheckpointError)):
                convert(cut, checkpoint.with_name("out.pt"))
            assert not checkpoint.with_name("out.pt").exists()


def test_a_path_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        convert(tmp_path / "missing.pt")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"data\.pkl"):
        convert(tmp_path / "hollow", tmp_path / "out.pt")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="neither a file nor"):
        convert(tmp_path / "fifo", tmp_path / "out.pt")


def test_a_torch_file_that_json_embeds(tmp_path: Path) -> None:
    """As base64, it is read as data, like any other file of torch.save."""
    buffer = io.BytesIO()
    torch.save({"a": torch.arange(500), "seed": np.int64(3)}, buffer)
    text = {"epoch": 3, "model": base64.b64encode(buffer.getvalue()).decode()}
    (tmp_path / "in.json").write_text(json.dumps(text))
    convert(tmp_path / "in.json", tmp_path / "out.json", test_load=True)
    found = jsonckpt.load(tmp_path / "out.json")
    assert torch.equal(found["model"]["a"], torch.arange(500))
    assert found["model"]["seed"] == 3
