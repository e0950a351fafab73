"""Random damage: ``recover`` raises one of our errors, or what it restored is what was saved.

``JSONCKPT_LONG=1`` takes 5,000 cases instead of 150; a failure names its case.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

CASES = 5_000 if os.environ.get("JSONCKPT_LONG") else 150
_PIECES = (b"\n", b'{"name":', b'"chunks":[\n', b"]", b'"', b"\x28\xb5\x2f\xfd")


def _damaged(rng: random.Random, data: bytes) -> bytes:
    text = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        kind, start = rng.randrange(7), rng.randrange(len(text) + 1)
        stop = min(len(text), start + rng.randrange(200))
        if kind == 0 and start < len(text):
            text[start] = rng.randrange(256)
        elif kind == 1:
            del text[start:stop]
        elif kind == 2:
            text[start:start] = text[start:stop]
        elif kind == 3:
            text[start:stop] = bytes(stop - start)
        elif kind == 4:
            text[start:start] = rng.choice(_PIECES)
        elif kind == 5:
            del text[start:]
        else:
            place = rng.randrange(len(text) + 1)
            text[place:place] = text[start:stop]
    return bytes(text)


@pytest.mark.parametrize(
    ("container", "options"),
    [("c", {}), ("c.json", {"compression": "zstd"}), ("l.json", {"encoding": "list"}),
     ("z.json.zst", {})],
)  # fmt: skip
def test_random_damage(tmp_path: Path, container: str, options: dict[str, Any]) -> None:
    w = torch.arange(60.0)
    state = {"m": {"w": w, "b": torch.ones(3)}, "t": (torch.zeros(5), 1), "tied": w, "v": w[3:9]}
    path = tmp_path / container
    jsonckpt.save(state, path, chunk_size=64, **options)
    with jsonckpt.open(path) as checkpoint:
        original = {name: checkpoint[name].load() for name in checkpoint}
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    whole = {file: file.read_bytes() for file in files}
    restored = 0
    for case in range(CASES):
        rng = random.Random(f"{container} {case}")
        for file, data in whole.items():
            file.write_bytes(_damaged(rng, data) if rng.random() < 0.7 else data)
        out = tmp_path / f"out{case}.json"
        try:
            report = jsonckpt.recover(path, out, sync=False, trust_state=rng.random() < 0.3)
        except jsonckpt.JsonckptError:
            assert not out.exists()
        else:
            restored += 1
            assert jsonckpt.verify(out), case
            found = dict(jsonckpt.stream(out))
            for name in set(report.recovered) & set(found):
                assert torch.equal(found[name], original[name]), case
            out.unlink()
        jsonckpt.verify(path, deep=True)
    assert restored > CASES // 10
