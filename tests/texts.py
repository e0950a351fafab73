"""What the tests of the format share: a small state, its texts, and texts of no writer here."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash

import jsonckpt
from tests import independent_reader

HASHES: dict[str, Callable[[bytes], str]] = {
    "xxh3_128": lambda data: xxhash.xxh3_128_hexdigest(data),
    "sha256": lambda data: hashlib.sha256(data).hexdigest(),
}


def state() -> dict[str, Any]:
    """A small state with a bit of everything."""
    weight = torch.tensor([[1.0, -2.5], [0.5, float("nan")]])
    return {
        "w": weight,
        "epoch": 3,
        "opt": {"lr": 0.1, "betas": (0.9, 0.95)},
        "n": torch.tensor([], dtype=torch.int16),
        "tied": weight,
    }


def single_text(value: object, **options: Any) -> bytes:
    """The text of a single file."""
    stream = io.BytesIO()
    jsonckpt.save(value, stream, **options)
    return stream.getvalue()


def refused_by_all(text: bytes, tmp_path: Path) -> None:
    """Fail unless every reader refuses the text of a single file."""
    (tmp_path / "r.json").write_bytes(text)
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.load(tmp_path / "r.json")
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.load(io.BytesIO(text))
    with pytest.raises((ValueError, KeyError)):
        independent_reader.load(tmp_path / "r.json")


def crafted(
    chunks: list[str],
    dtype: str,
    shape: list[int],
    raw: list[bytes],
    head: str = "",
    tail: str = "",
) -> bytes:
    """A single file with one tensor of number lists, as another program may write it.

    Args:
        chunks: what stands between the brackets of each chunk.
        raw: the raw bytes of each chunk.
        head, tail: further members of the record, before its chunks and after them.
    """
    digest = HASHES["sha256"]
    sums = [digest(data) for data in raw]
    device = json.loads("{" + head.strip(",") + "}").get("device", "cpu")
    step = max(map(len, raw))
    lines = ["", dtype, ",".join(map(str, shape)), device, "list", "none", "none", str(step), *sums]
    identity = digest("".join(f"{line}\n" for line in lines).encode())
    text = (
        '{"save_id":"00112233445566778899aabbccddeeff",\n "future":{"tensors":[1]},\n'
        '"format":"jsonckpt.shard", "version":1,"checksum":"sha256",\n'
        f'"created_at":"2026-01-02T03:04:05Z","created_by":"a test","totals":'
        f'{{"bytes":{sum(map(len, raw))},"tensors":1}},"metadata":{{}},"state":{{"$tensor":""}},\n'
        '"tensors":[\n'
    ).encode()
    bare = text
    start = len(text)
    opening = (
        f'{{"chunk_bytes":{step},"filter":"none","compression":"none", "encoding":"list",'
        f'"shape":{json.dumps(shape)},"dtype":"{dtype}","name":"",{head}"chunks":[\n'
    ).encode()
    text += opening
    bare += opening
    ranges = []
    for number, chunk in enumerate(chunks):
        ranges.append([len(text) + 1, len(chunk.encode())])
        comma = "," if number + 1 < len(chunks) else ""
        text += f"[{chunk}]{comma}\n".encode()
        bare += f"[]{comma}\n".encode()
    closing = f'],{tail}"digest":"{identity}","sha256":{json.dumps(sums)}}}'.encode()
    text += closing
    bare += closing
    index = json.dumps([[start, len(text) - start, ranges]], separators=(",", ":"))
    text += b'\n],"index":'
    bare += b'\n],"index":' + index.encode()
    seal = digest(bare)
    return text + f'{index},"seal":"sha256:{seal}","index_offset":{len(text):20d}}}\n'.encode()


def both_load(text: bytes, tmp_path: Path) -> torch.Tensor:
    """What a crafted text holds, when all readers agree about it."""
    (tmp_path / "c.json").write_bytes(text)
    found: torch.Tensor = jsonckpt.load(tmp_path / "c.json")
    for other in (jsonckpt.load(io.BytesIO(text)), independent_reader.load(tmp_path / "c.json")):
        assert other.dtype == found.dtype
        assert torch.equal(found.view(torch.uint8), other.view(torch.uint8))
    return found
