"""Memory beside the tensors is a constant, however large they are and however many.

``JSONCKPT_LONG=1`` takes 600 MiB instead of 120. Tensors here are far smaller or larger than 32
MiB: at sizes below it, glibc keeps some of what was freed, which is neither a copy nor this
library's.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt
from tests.support import slow

MIB = 600 if os.environ.get("JSONCKPT_LONG") else 120
MOST_EXTRA = 64 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("container", "count", "encoding", "compression"),
    [
        ("one-tensor", 1, "base64", "none"),
        ("many-tensors", 400, "base64", "none"),
        ("single.json", 3, "base64", "none"),
        slow("compressed", 3, "base64", "zstd"),
        slow("single.json.zst", 3, "base64", "none"),
        slow("list", 1, "list", "none"),
    ],
)
def test_extra_memory(
    container: str, count: int, encoding: str, compression: str, tmp_path: Path
) -> None:
    child = subprocess.run(
        [sys.executable, "-m", "tests.memory_child", str(tmp_path), container,
         str(MIB // 2 if encoding == "list" else MIB),
         str(count), encoding, compression],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    extra = json.loads(child.stdout)
    assert len(extra) == 6
    over = {name: f"{size >> 20} MiB" for name, size in extra.items() if size > MOST_EXTRA}
    assert not over, f"over {MOST_EXTRA >> 20} MiB: {over}"


def test_what_a_save_held_does_not_wait_for_the_collector(tmp_path: Path) -> None:
    from jsonckpt._src.format.model import Entry
    from jsonckpt._src.save.snapshot import Snapshot

    state = {f"w{number}": torch.ones(4) for number in range(50)}

    def held() -> int:
        return sum(type(found) in (Snapshot, Entry) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = held()
        jsonckpt.save(state, tmp_path / "ckpt", sync=False)
        assert held() == before
    finally:
        gc.enable()
