"""Hostile files: the reader in JavaScript refuses them with its own error, in little memory."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.errors import JsonckptError
from tests.support import slow
from tests.viewer.node import packed, run_json


def answers(files: list[bytes], heap: int = 256) -> list[str]:
    # A hostile file must not cost much memory: a small heap is enough.
    found: list[str] = run_json("hostile.mjs", "file", data=packed(files), heap=heap)
    assert len(found) == len(files)
    return found


def small_files(tmp_path: Path) -> dict[str, bytes]:
    shared = torch.arange(6.0)
    state = {"w": shared, "v": shared[1:3], "t": shared, "b": torch.tensor([True]), "step": 3}
    contents = {}
    forms: list[tuple[str, dict[str, Any]]] = [
        ("plain.json", {}),
        ("list.json", {"encoding": "list"}),
        ("zstd.json", {"compression": "zstd"}),
        ("whole.json.zst", {}),
    ]
    for name, options in forms:
        jsonckpt.save(state, tmp_path / name, chunk_size=16, **options)
        contents[name] = (tmp_path / name).read_bytes()
    return contents


#: Each fifth place in a file, or each one. Five has no factor in common with base64 and its lines.
EVERY = pytest.mark.parametrize("every", [5, slow(1)])


@EVERY
def test_truncations_are_refused(tmp_path: Path, every: int) -> None:
    for name, text in small_files(tmp_path).items():
        whole, *cut = answers([text, *(text[:size] for size in range(0, len(text), every))])
        assert whole == "ok", name
        assert "ok" not in cut, (name, cut.index("ok"))


@EVERY
def test_changed_bytes_are_refused_or_harmless(tmp_path: Path, every: int) -> None:
    draw = random.Random(3)
    for name, text in small_files(tmp_path).items():
        changed = []
        places = range(0, len(text), every)
        for place in places:
            one = bytearray(text)
            one[place] ^= 1 << draw.randrange(8)
            changed.append(bytes(one))
        found = answers(changed)
        accepted = [number for number, answer in enumerate(found) if answer == "ok"]
        # What our own reader takes may pass here, too: nothing else.
        for number in accepted:
            target = tmp_path / f"changed-{name}"
            target.write_bytes(changed[number])
            try:
                jsonckpt.load(target)
            except JsonckptError as error:
                pytest.fail(f"{name}, byte {places[number]}: {error}")


def edited(change: Callable[[Any], None], text: bytes) -> bytes:
    document = json.loads(text)
    document["seal"] = None
    change(document)
    return json.dumps(document).encode()


HUGE = 2**62
CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "shape": (lambda d: d["tensors"][0].update(shape=[HUGE]), "too large"),
    "shape of zeros": (lambda d: d["tensors"][0].update(shape=[0, HUGE, HUGE]), "shape"),
    "negative": (lambda d: d["tensors"][0].update(shape=[-1]), "shape"),
    "float shape": (lambda d: d["tensors"][0].update(shape=[1.0]), "shape"),
    "rank": (lambda d: d["tensors"][0].update(shape=[1] * 65), "shape"),
    "large chunk": (lambda d: d["tensors"][0].update(shape=[2**26], chunk_bytes=2**28), "chunk"),
    "chunk_bytes": (lambda d: d["tensors"][0].update(chunk_bytes=0), "chunk_bytes"),
    "dtype": (lambda d: d["tensors"][0].update(dtype="constructor"), "dtype"),
    "codec": (lambda d: d["tensors"][0].update(encoding="hex"), "codec"),
    "name": (lambda d: d["tensors"][0].update(name="w"), "name"),
    "twice": (
        lambda d: d["tensors"][0].update(name=d["tensors"][1]["name"]),
        "digest|twice|record",
    ),
    "requires": (lambda d: d["tensors"][0].update(requires=["magic"]), "magic"),
    "version": (lambda d: d.update(version=2, readable_by="jsonckpt 9"), "jsonckpt 9"),
    "format": (lambda d: d.update(format="other"), "no checkpoint"),
    "save_id": (lambda d: d.update(save_id=7), "save_id"),
    "checksum": (lambda d: d.update(checksum="md5"), "md5"),
    "totals": (lambda d: d["totals"].update(bytes=1), "totals"),
    "device": (lambda d: d["tensors"][0].update(device="<b>"), "device"),
    "stride": (lambda d: d["tensors"][0].update(stride=[2]), "stride"),
    "storage": (lambda d: d["tensors"][0].update(storage=[0, 0, 1]), "storage"),
    "no record": (lambda d: d["state"].update(w={"$tensor": "/nothing"}), "no record"),
    "view outside": (lambda d: d["state"]["v"]["$view"].update(offset=10**9), "leaves the memory"),
    "view huge": (lambda d: d["state"]["v"]["$view"].update(shape=[2**40], stride=[0]), "1 GiB"),
    "tied wrong": (lambda d: d["state"].update(t={"$tied": 3}), "refers to no record"),
    "digest": (lambda d: d["tensors"][0].update(digest="0" * 32), "digest"),
    "chunks": (lambda d: d["tensors"][0].update(chunks=[]), "number of chunks"),
    "chunks of numbers": (lambda d: d["tensors"][0].update(chunks=[1]), "chunk"),
    "tensors": (lambda d: d.update(tensors={}), "tensors"),
    "seal": (lambda d: d.update(seal="xxh3_128:00"), "seal"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_hostile_member(name: str, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    [answer] = answers([edited(change, small_files(tmp_path)["plain.json"])])
    assert re.search(message, answer), answer


TEXTS = {
    "deep": (b'{"format":' + b"[" * 5000, "nested deeper"),
    "many brackets": (b'{"a":[' + b"[]," * 11_000_000 + b"[]]}", "brackets and strings"),
    "many objects": (b'{"a":[' + b"{}," * 3_000_000 + b"{}]}", "brackets and strings"),
    "duplicate": (b'{"seal":null,"seal":null}', "stands twice"),
    "nan": (b'{"a":NaN}', "no JSON value"),
    "surrogate": (b'{"a":"\\ud800"}', "surrogate"),
    "latin": (b'{"a":"\xff"}', "UTF-8"),
    "long number": (b'{"a":1' + b"0" * 2000 + b"}", "1000 characters"),
    "overflow": (b'{"a":1e999}', "overflows"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
    "zip": (b"PK\x03\x04abcdefgh", "torch.save"),
    "empty": (b"", "no JSON object"),
    "array": (b"[1,2,3]", "no JSON object"),
    "plain": (b'{"weight":[[1,2],[3,4]]}', "no checkpoint"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_a_hostile_text(name: str) -> None:
    text, message = TEXTS[name]
    [answer] = answers([text], heap=1024 if name.startswith("many") else 256)
    assert message in answer


def test_crlf_is_named(tmp_path: Path) -> None:
    text = small_files(tmp_path)["plain.json"].replace(b"\n", b"\r\n")
    [answer] = answers([text])
    assert "CRLF" in answer


def test_an_index_that_lies(tmp_path: Path) -> None:
    text = small_files(tmp_path)["plain.json"]
    tail = text[text.rindex(b'"index":') :]
    lies = [
        tail.replace(b"[[", b"[[9", 1),
        tail.replace(b'"index":[[', b'"index":[[0,0,[]],[', 1),
        tail.replace(b'"index":[', b'"index":{', 1),
        tail.replace(b"]]]", b"]]", 1),
    ]
    assert "ok" not in answers([text[: -len(tail)] + lie for lie in lies])


def test_directories(tmp_path: Path) -> None:
    state = {f"w{i}": torch.full((40,), float(i)) for i in range(3)}
    jsonckpt.save(state, tmp_path / "c", max_shard_size=400)
    files = {file.name: file.read_bytes() for file in sorted((tmp_path / "c").iterdir())}
    shards = [name for name in files if name != "manifest.json"]
    assert len(shards) > 1
    manifest = files["manifest.json"]
    shuffled = {**files, shards[0]: files[shards[1]], shards[1]: files[shards[0]]}
    cases = {
        "whole": (files, "ok"),
        "no shard": ({"manifest.json": manifest}, "was not given"),
        "no manifest": ({shards[0]: files[shards[0]]}, "no manifest.json"),
        "cut shard": ({**files, shards[0]: files[shards[0]][:-1]}, "bytes, the manifest says"),
        "exchanged": (shuffled, "differs from what the manifest says"),
        "cut manifest": ({**files, "manifest.json": manifest[:-2]}, ""),
        "edited": ({**files, "manifest.json": manifest.replace(b'"totals"', b'"tOtals"')}, "seal"),
        "path": (
            {**files, "manifest.json": _with_file(manifest, "../shard-1.json")},
            "shard is not",
        ),
    }
    parts: list[bytes] = []
    for members, _ in cases.values():
        parts.append(bytes([len(members)]))
        for name, content in members.items():
            parts += [name.encode(), content]
    found = run_json("hostile.mjs", "directory", data=packed(parts))
    for answer, (name, (_, message)) in zip(found, cases.items(), strict=True):
        assert message in answer, (name, answer)
        assert (answer == "ok") == (name == "whole")


def _with_file(manifest: bytes, name: str) -> bytes:
    document = json.loads(manifest)
    document["seal"] = None
    document["shards"][0]["file"] = name
    return json.dumps(document).encode()
