"""Damaged and forged files: ``jsonckpt_reader.py`` refuses them with an error of its own."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.standalone.jsonckpt_reader import CheckpointError, load
from tests.support import same

STATE = {"w": torch.arange(3.0), "n": torch.tensor([7]), "epoch": 3}


def _saved(path: Path, **options: Any) -> bytes:
    jsonckpt.save(STATE, path, sync=False, **options)
    return path.read_bytes()


@pytest.mark.parametrize("missing", [False, True])
def test_a_file_cut_at_any_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: bool
) -> None:
    path = tmp_path / "c.json"
    text = _saved(path)
    if missing:
        monkeypatch.setitem(__import__("sys").modules, "xxhash", None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for end in range(len(text) - 1):  # without its last line feed it is whole
            path.write_bytes(text[:end])
            with pytest.raises(CheckpointError, match=r"c\.json: "):
                load(path)
        path.write_bytes(text)
        assert same(load(path), STATE)


@pytest.mark.parametrize("options", [{}, {"encoding": "list"}])
def test_a_flipped_bit_anywhere(tmp_path: Path, options: Any) -> None:
    path = tmp_path / "c.json"
    text = _saved(path, checksum="sha256", **options)
    for position in range(len(text) - 1):
        changed = bytearray(text)
        changed[position] ^= 1 << position % 8
        path.write_bytes(changed)
        try:
            found = load(path)
        except CheckpointError:
            continue
        # Behind the seal there is the offset of the index, which is not used here.
        assert position > text.index(b'"index_offset"'), changed[position - 9 : position + 9]
        assert same(found, STATE)


@pytest.mark.parametrize("name", ["manifest.json", "shard"])
def test_a_directory_with_a_file_cut(tmp_path: Path, name: str) -> None:
    jsonckpt.save(STATE, tmp_path / "d", sync=False)
    [file] = (tmp_path / "d").glob(f"{name}*")
    text = file.read_bytes()
    for end in range(0, len(text) - 2, 3):
        file.write_bytes(text[:end])
        with pytest.raises(CheckpointError):
            load(tmp_path / "d")
    file.unlink()
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "d")


def test_shards_of_two_saves(tmp_path: Path) -> None:
    for name in ("a", "b"):
        jsonckpt.save(STATE, tmp_path / name, sync=False)
    [ours], [theirs] = ([*(tmp_path / name).glob("shard*")] for name in ("a", "b"))
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(CheckpointError, match="of another save"):
        load(tmp_path / "a")
    with pytest.raises(CheckpointError, match="read its directory"):
        load(theirs)


def _forged(path: Path, **changes: Any) -> None:
    """An edited file, whose records say something else."""
    document = json.loads(_saved(path))
    document["seal"] = None
    document["tensors"][0].update(changes)
    path.write_text(json.dumps(document, indent=1))


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [2**62]},
        {"shape": [-1, -3]},
        {"shape": [2**31, 2**31, 0, "3"]},
        {"shape": "3"},
        {"dtype": "load"},
        {"dtype": "qint8"},
        {"dtype": 3},
        {"chunk_bytes": 0},
        {"chunk_bytes": -4},
        {"stride": [0]},
        {"stride": [-1]},
        {"stride": [2**40]},
        {"storage": [0, 8, 16]},
        {"storage": [0, -8, 16]},
        {"storage": [0, 0, 2**60]},
        {"encoding": "hex"},
        {"compression": "gzip"},
        {"filter": "delta"},
        {"chunks": []},
        {"chunks": ["AAAA", "AAAA"]},
        {"chunks": [None]},
        {"chunks": [[1, 2, 3]]},
        {"chunks": ["AAAAAAAAgD8AAABB"]},
        {"xxh3_128": []},
        {"digest": "0" * 32},
        {"name": "/n"},
        {"requires": ["magic"]},
    ],
    ids=str,
)
def test_records_that_lie(tmp_path: Path, changes: Any) -> None:
    path = tmp_path / "c.json"
    _forged(path, **changes)
    with pytest.raises(CheckpointError, match=r"c\.json: "):
        load(path)


def _view(dtype: str, size: int, offset: int) -> Any:
    place = {"name": "/a", "of": "/w", "dtype": dtype}
    return {"$view": {**place, "shape": [size], "stride": [1], "offset": offset}}


@pytest.mark.parametrize(
    "state",
    [
        {"$tensor": "/none"},
        {"$tied": {"of": "/none", "name": "/a"}},
        _view("float32", 9, 0),
        _view("float32", 1, -1),
        _view("float64", 2, 0),
        {"$dtype": "load"},
        {"$layout": "nn"},
        {"$pure_path": {"flavour": "dos", "path": "x"}},
        {"$defaultdict": {"factory": ["int"], "items": []}},
        {"$set": [[]]},
        {"$datetime": "yesterday"},
        {"$bytes": "A"},
        {"$ndarray": {"dtype": "|O", "shape": [1], "data": [1]}},
        {"$parameter": 3},
    ],
    ids=str,
)
def test_states_that_lie(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "c.json"
    document = json.loads(_saved(path))
    document["seal"], document["state"] = None, state
    path.write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match=r"c\.json: "):
        load(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"PK\x03\x04",
        b"[" * 100_000,
        b'{"format":"jsonckpt.shard"}',
        b'{"format":"jsonckpt.shard","version":2,"readable_by":"jsonckpt 9"}',
        b'{"format":"jsonckpt.shard","format":"jsonckpt.shard","version":1}',
        b'{"model_state_dict":{}}',
        b'{"format":"jsonckpt.shard","version":1,"seal":null,"state":1e999,"tensors":[]}',
        b'{"format":"jsonckpt.shard","version":1,"seal":null,"state":NaN,"tensors":[]}',
    ],
    ids=lambda text: repr(text[:40]),
)
def test_other_files(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(text)
    with pytest.raises(CheckpointError, match=r"c\.json: "):
        load(path)


def test_a_manifest_that_leaves_its_directory(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "d", sync=False)
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_bytes())
    manifest["seal"], manifest["shards"][0]["file"] = None, "../shard-a.json"
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="a shard has a wrong name"):
        load(tmp_path / "d")
