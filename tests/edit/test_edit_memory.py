"""Memory of edits is a constant, however large the tensors are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.support import slow

MIB = 60
MOST_EXTRA = 48 << 20


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("c.json", {}),
        slow("c", {}),
        slow("c.json.zst", {}),
        slow("c", {"compression": "zstd"}),
        slow("c", {"encoding": "list"}),
    ],
)
def test_extra_memory(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    rows = (MIB << 20) // 4 // 1024 // 2
    for prefix, count in (("", rows), ("small-", 10)):
        for number in range(2):
            state = {"w0": torch.randn(count, 1024), "w1": torch.randn(count, 1024), "lr": 1.0}
            second = "second-" if number else ""
            jsonckpt.save(state, tmp_path / f"{second}{prefix}{name}", sync=False, **options)
    del state
    child = subprocess.run(
        [sys.executable, "-m", "tests.edit.memory_child", str(tmp_path), name],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    extra = json.loads(child.stdout)
    assert len(extra) == 6
    over = {key: f"{size >> 20} MiB" for key, size in extra.items() if size > MOST_EXTRA}
    assert not over, f"over {MOST_EXTRA >> 20} MiB: {over}"
