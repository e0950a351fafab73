"""How cost grows beyond what fits the ten minutes: gigabytes on a disk, and very many tensors.

``python -m benchmarks.large DIRECTORY`` takes some minutes and 22 GB of disk, and prints the tables
that ``docs/performance.md`` reasons from. Each measurement is a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arena import ROOT, child_environment, remove
from benchmarks.tables import Table, bytes_text

SIZES = (1_000_000, 16_000_000, 250_000_000, 1_000_000_000, 4_000_000_000, 16_000_000_000)
COUNTS = (1, 100, 1_000, 10_000, 50_000, 100_000, 200_000)


def state_of(size: int, count: int) -> dict[str, torch.Tensor]:
    """``count`` tensors of together ``size`` bytes. Zeros: pages that were never written to cost no
    memory, and without compression one value takes as long as another."""
    return {
        f"model.layers.{number}.weight": torch.zeros(max(1, size // count // 4))
        for number in range(count)
    }


def measure(path: Path, size: int, count: int) -> dict[str, Any]:
    """Save, open and load once, in this process."""
    import jsonckpt

    state = state_of(size, count)
    os.sync()
    began = time.perf_counter()
    result = jsonckpt.save(state, path, sync=False)
    saved = time.perf_counter()
    os.sync()
    synced = time.perf_counter()
    with jsonckpt.open(path) as checkpoint:
        next(iter(checkpoint.values())).load()
    opened = time.perf_counter()
    del state
    loaded = jsonckpt.load(path)
    done = time.perf_counter()
    nbytes = sum(tensor.nbytes for tensor in loaded.values())
    return {
        "bytes": nbytes,
        "save": saved - began,
        "sync": synced - saved,
        "open": opened - synced,
        "load": done - opened,
        "files": len(result.files),
        "manifest": (path / "manifest.json").stat().st_size,
        "text": result.stored_bytes,
    }


def main() -> int:
    """Measure all, each in a process of its own."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("directory", type=Path, help="on a disk with 22 GB free")
    parser.add_argument("--one", nargs=2, type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.directory / "jsonckpt-large"
    if arguments.one:
        print(json.dumps(measure(path, *arguments.one)))
        return 0
    for title, cases in (
        ("Size, in 64 tensors", [(size, 64) for size in SIZES]),
        ("Number of tensors, 1 KB each", [(1_000 * count, count) for count in COUNTS]),
    ):
        rows = []
        for size, count in cases:
            try:
                found = json.loads(_child(arguments.directory, size, count))
            finally:
                remove(path)
            rows.append(_row(found, count))
        columns = ["", "tensors", "save s", "sync s", "open s", "load s", "files", "manifest"]
        print(Table(title, columns, rows).markdown(), flush=True)
    return 0


def _child(directory: Path, size: int, count: int) -> str:
    command = [sys.executable, "-m", "benchmarks.large", str(directory), "--one"]
    return subprocess.run(
        [*command, str(size), str(count)],
        cwd=ROOT,
        env=child_environment(),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def _row(found: dict[str, Any], count: int) -> list[str]:
    seconds = [f"{found[key]:.3f}" for key in ("save", "sync", "open", "load")]
    manifest = bytes_text(found["manifest"])
    return [bytes_text(found["bytes"]), f"{count:,}", *seconds, str(found["files"]), manifest]


if __name__ == "__main__":
    sys.exit(main())
