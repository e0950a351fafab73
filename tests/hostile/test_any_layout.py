"""Hostile texts for the scanner that reads files in any layout."""

from __future__ import annotations

import json
import random
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.errors import JsonckptError
from jsonckpt._src.format.limits import Limits
from jsonckpt._src.shards.any_layout import AnyLayoutScanner
from tests.hostile import test_payloads, test_shapes, test_state
from tests.hostile.cases import write
from tests.hostile.forge import good

LIMITS = Limits()


def unsealed(path: Path, **options: Any) -> dict[str, Any]:
    state = {"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor([1, 2]), "lr": 0.1}
    jsonckpt.save(state, path, **options)
    document: dict[str, Any] = json.loads(path.read_bytes())
    return document | {"seal": None}


def scanned(text: bytes, size: int = 1 << 20, limits: Limits = LIMITS) -> AnyLayoutScanner:
    scanner = AnyLayoutScanner(limits, limits.chunks)
    for start in range(0, len(text), size):
        scanner.push(text[start : start + size])
    return scanner


@pytest.mark.parametrize("how", [{}, {"indent": 1}, {"separators": (",", ":")}])
@pytest.mark.parametrize("encoding", ["base64", "list"])
def test_pieces_of_any_size(tmp_path: Path, encoding: str, how: dict[str, Any]) -> None:
    """Each place where a piece can end, in strings, escapes and payloads, too."""
    document = unsealed(tmp_path / "c.json", encoding=encoding)
    document["metadata"] = {'"tensors"\\': ["\\", '\\"', "[{"], "chunks": [["tensors"], "é"]}
    text = json.dumps(document, **how).encode()
    whole = scanned(text)
    ranges, members = whole.found, whole.finish()
    assert [text[a : a + n] for one in ranges for a, n in one.chunks] == [
        chunk.encode() if encoding == "base64" else json.dumps(chunk, **how)[1:-1].encode()
        for record in document["tensors"]
        for chunk in record["chunks"]
    ] or how == {"indent": 1}
    assert [text[one.start] + text[one.stop - 1] for one in ranges] == [ord("{") + ord("}")] * 2
    for size in range(1, 40):
        other = scanned(text, size)
        assert other.found == ranges
        assert other.finish() == members


def _set(*path: Any) -> Callable[[dict[str, Any], Any], None]:
    def change(document: dict[str, Any], value: Any) -> None:
        node: Any = document
        for key in path[:-1]:
            node = node[key]
        node[path[-1]] = value

    return change


VALUES: list[Any] = [
    None,
    True,
    1,
    1.5,
    "",
    "x",
    [],
    [[]],
    {},
    {"chunks": [""]},
    [None],
    [[1], [2]],
]
PLACES = [
    ("tensors",),
    ("tensors", 0),
    ("tensors", 0, "chunks"),
    ("tensors", 0, "chunks", 0),
    ("tensors", 0, "name"),
    ("tensors", 0, "shape"),
    ("tensors", 0, "encoding"),
    ("tensors", 0, "chunk_bytes"),
    ("tensors", 0, "digest"),
    ("tensors", 0, "xxh3_128"),
    ("format",),
    ("checksum",),
    ("save_id",),
    ("state",),
    ("totals",),
    ("metadata",),
]


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("encoding", ["base64", "list"])
def test_wrong_types(tmp_path: Path, place: tuple[Any, ...], encoding: str) -> None:
    path = tmp_path / "c.json"
    for value in VALUES:
        document = unsealed(path, encoding=encoding)
        _set(*place)(document, value)
        path.write_text(json.dumps(document))
        if place[0] in ("state", "metadata"):
            report = jsonckpt.verify(path)
            assert all(isinstance(problem, JsonckptError) for problem in report.problems)
        else:
            with pytest.raises(JsonckptError):
                jsonckpt.load(path)
        path.unlink()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"tensors":[', '"tensors":[],"tensors":['),
        ('"chunks":', '"chunks":[],"chunks":'),
        ('"chunks":', '"chun\\u006bs":'),
        ('"tensors":[', '"tensor\\u0073":['),
        ('"seal":null', '"seal":null,"seal":null'),
        ('"state":', '"state":1,"state":'),
        ('"lr":0.1', '"lr":' + "[" * 1_000 + "]" * 1_000),
        ('"lr":0.1', '"lr":' + "9" * 5_000),
        ('"lr":0.1', '"lr":NaN'),
        ('"lr":0.1', '"lr":0.1}'),
        ('"lr":0.1', '"lr":0.1]'),
        ('"lr":0.1', '"lr":"\\ud800"'),
        ('"lr":0.1', '"lr":"\x01"'),
        ('"lr":0.1', '"lr":0.1,'),
        ('"name":"/n"', '"name":"/w"'),
        ('"seal":null}', '"seal":null}{}'),
        ('"seal":null}', '"seal":null}]'),
        ('"seal":null}', '"seal":null'),
        ('"seal":null}', '"seal":null,}'),
        ('"chunks":["', '"chunks":["\\n'),
        ('"chunks":["', '"chunks":["\\"'),
        ('"chunks":["', '"chunks":["\\ud800'),
        ('"chunks":["', '"chunks":["\\'),
        ('"chunks":["', '"chunks":[ "é'),
        ('"chunks":["', '"chunks":["","'),
    ],
)
def test_refused(tmp_path: Path, old: str, new: str) -> None:
    path = tmp_path / "c.json"
    text = json.dumps(unsealed(path) | {"seal": None}, separators=(",", ":"))
    if old.startswith('"seal"'):
        document = json.loads(text)
        del document["seal"]
        text = json.dumps(document | {"seal": None}, separators=(",", ":"))
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(JsonckptError):
        jsonckpt.load(path)


@pytest.mark.parametrize(
    "payload",
    ["0.0,1.0 2.0,3.0", "[0.0]", '"]"', "0.0,,1.0", "0.0,1.0,", "{}", '"', "\x00", "0.0\x0b,1.0"],
)
def test_lists_that_are_none(tmp_path: Path, payload: str) -> None:
    path = tmp_path / "c.json"
    text = json.dumps(unsealed(path, encoding="list"), indent=1)
    start = text.index("[", text.index('"chunks"') + 12) + 1
    path.write_text(text[:start] + payload + text[text.index("]", start) :])
    with pytest.raises(JsonckptError):
        jsonckpt.load(path)


def test_random_bytes(tmp_path: Path) -> None:
    """Whatever is changed: an error of ours, or the same tensors."""
    path = tmp_path / "c.json"
    rng = random.Random(0)
    for encoding in ("base64", "list"):
        document = unsealed(path, encoding=encoding)
        text = bytearray(json.dumps(document, indent=1).encode())
        good = jsonckpt.load(path)
        for _ in range(400):
            changed = bytearray(text)
            for _ in range(rng.randint(1, 3)):
                changed[rng.randrange(len(changed))] = rng.choice(b'"\\[]{},:x0 \n\xff')
            path.write_bytes(changed)
            try:
                loaded = jsonckpt.load(path)
            except JsonckptError:
                continue
            for key in ("w", "n"):
                if isinstance(loaded, dict) and torch.is_tensor(loaded.get(key)):
                    assert torch.equal(loaded[key], good[key])
        path.unlink()


HEAD = b'{"format":"jsonckpt.shard","version":1,"seal":null,"tensors":['


@pytest.mark.parametrize(
    "text",
    [
        HEAD + b'{"chunks":["' + b"A" * 30_000_000 + b'"]}]}',
        HEAD + b'{"chunks":["' + b"\\\\" * 15_000_000 + b'"]}]}',
        HEAD + b'{"chunks":[[' + b" " * 30_000_000 + b"]]}]}",
        HEAD + b'{"chunks":[[' + b'"NaN",' * 200_000 + b"1]]}]}",
        HEAD + b'{"chunks":[' + b'"",' * 200_000 + b'""]}]}',
        HEAD + b'{"chunks":["' + b"A" * 30_000_000,
        b"[" * 1_000_000,
        b"]",
        b'"' * 300_001,
        b"\\" * 30_000_001,
        b'{"a":"' + b"\\" * 30_000_000 + b'"}',
    ],
    ids=["base64", "escapes", "spaces", "strings", "chunks", "cut", "open", "close", "quotes",
         "backslashes", "a string of backslashes"],
)  # fmt: skip
def test_large_texts(text: bytes) -> None:
    """Beside the text that is kept, memory for a few pieces."""
    limits = Limits(manifest_bytes=1 << 20)
    tracemalloc.start()
    try:
        scanned(text, limits=limits).finish()
    except JsonckptError:
        pass
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    payloads = text.count(b'"",')
    assert peak < (24 << 20) + 200 * payloads


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(tensors=1), "tensors"),
        (Limits(chunks=1), "chunks"),
        (Limits(manifest_bytes=500), "bytes"),
        (Limits(marks=20), "brackets and strings"),
        (Limits(depth=2), "nested"),
        (Limits(rank=1), "dimensions"),
        (Limits(name_bytes=1), "name"),
        (Limits(chunk_bytes=1), "chunk_bytes"),
        (Limits(total_floor=1, expansion=0), "bytes of tensors"),
    ],
    ids=str,
)
def test_limits_hold(tmp_path: Path, limits: Limits, says: str) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps(unsealed(path), indent=1))
    with pytest.raises(jsonckpt.LimitError, match=says):
        jsonckpt.load(path, limits=limits)


def test_a_bomb_in_a_payload(tmp_path: Path) -> None:
    """A few kilobytes of zstd are gigabytes of text."""
    path = tmp_path / "c.json.zst"
    compressor = zstandard.ZstdCompressor()
    block = compressor.compress(b" " * (8 << 20)) * 100
    path.write_bytes(
        compressor.compress(HEAD + b'{"chunks":[[') + block + compressor.compress(b"1]]}]}")
    )
    with pytest.raises(JsonckptError):
        jsonckpt.load(path)


def test_a_million_payloads_in_one_record_are_too_many(tmp_path: Path) -> None:
    """A shape of ever so many chunks allocates nothing."""
    path = tmp_path / "c.json"
    document = unsealed(path)
    document["tensors"][0]["shape"] = [2**60]
    document["tensors"][0]["chunk_bytes"] = 4
    path.write_text(json.dumps(document))
    with pytest.raises(JsonckptError):
        jsonckpt.load(path)


#: What a reader of any layout does not need or see: the layout, the index, white space in lists.
_OF_THE_LAYOUT = {"list_with_a_line_break", "list_of_spaces"}


@pytest.mark.parametrize(
    "module", [test_payloads, test_shapes, test_state], ids=["payloads", "shapes", "state"]
)
def test_no_seal_is_no_way_past_a_check(module: Any, tmp_path: Path) -> None:
    """Each forged file that is refused with its seal is refused without one, too."""
    tried = 0
    for case in module.CASES:
        if "single" not in case.forms or case.name in _OF_THE_LAYOUT or "indexed" in case.blind:
            continue
        forgery = good()
        changed = case.edit(forgery)
        path = write(forgery if changed is None else changed, "single", tmp_path)
        text, seals = re.subn(rb'"seal":"[^"]*"', b'"seal":null', path.read_bytes())
        path.write_bytes(text)
        if seals != 1:
            continue
        limits = Limits(**case.limits) if case.limits else None
        with pytest.raises(JsonckptError):
            jsonckpt.load(path, limits=limits)
        if "verify" not in case.blind:
            assert not jsonckpt.verify(path, limits=limits), case.name
        tried += 1
    assert tried > 20
