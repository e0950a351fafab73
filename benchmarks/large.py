"""Cost of states that are too large for a normal run: gigabytes on a disk, and very many tensors.

``python -m benchmarks.large DIRECTORY`` takes some minutes, 22 GB of disk and 18 GB of memory, and
prints the tables behind ``docs/performance.md``. Each measurement is a separate process. For states
below 1 GB the figures are medians of three.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.arena import ROOT, child_environment, remove
from benchmarks.probe import Sampler, status
from benchmarks.tables import Table, bytes_text, mib

SIZES = (1_000_000, 16_000_000, 250_000_000, 1_000_000_000, 4_000_000_000, 16_000_000_000)
COUNTS = (1, 100, 1_000, 10_000, 50_000, 100_000, 200_000)


def state_of(size: int, count: int) -> dict[str, torch.Tensor]:
    """``count`` tensors of zeros, of together ``size`` bytes.

    Without compression the values do not matter.
    """
    return {
        f"model.layers.{number}.weight": torch.zeros(max(1, size // count // 4))
        for number in range(count)
    }


def measure(path: Path, size: int, count: int) -> dict[str, Any]:
    """Save, open and load once, in this process, and report when its memory must be watched."""
    import jsonckpt

    state = state_of(size, count)
    os.sync()
    before_save = _say("save")
    began = time.perf_counter()
    result = jsonckpt.save(state, path, sync=False)
    saved = time.perf_counter()
    after_save = _say("sync")
    unsynced = time.perf_counter()
    os.sync()
    synced = time.perf_counter()
    with jsonckpt.open(path) as checkpoint:
        next(iter(checkpoint.values())).load()
    opened = time.perf_counter()
    del state, checkpoint
    _trim()
    before_load = _say("load")
    closed = time.perf_counter()
    loaded = jsonckpt.load(path)
    done = time.perf_counter()
    return {
        "bytes": sum(tensor.nbytes for tensor in loaded.values()),
        "save": saved - began,
        "sync": synced - unsynced,
        "open": opened - synced,
        "load": done - closed,
        "anonymous": [before_save, after_save, before_load, status("self", "RssAnon:")],
        "files": len(result.files),
        "manifest": (path / "manifest.json").stat().st_size,
        "text": result.stored_bytes,
    }


def _trim() -> None:
    """Return freed memory to the system. Else the next load would seem to need none."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _say(phase: str) -> int:
    """Tell the watching process the next step. Returns the anonymous memory so far."""
    print(phase, flush=True)
    return status("self", "RssAnon:")


def main() -> int:
    """Measure everything, each in a separate process."""
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
            runs = []
            for _ in range(3 if size < 1_000_000_000 else 1):
                try:
                    runs.append(_child(arguments.directory, size, count))
                finally:
                    remove(path)
            rows.append(_row(runs, count))
        columns = [
            "", "tensors", "save s", "sync s", "open s", "load s", "files", "manifest",
            "save, extra MiB", "load, extra MiB",
        ]  # fmt: skip
        print(Table(title, columns, rows).markdown(), flush=True)
    return 0


def _child(directory: Path, size: int, count: int) -> dict[str, Any]:
    """The measurements of a fresh process, and its memory, which this process watches."""
    command = [sys.executable, "-m", "benchmarks.large", str(directory), "--one"]
    most = {}
    with subprocess.Popen(
        [*command, str(size), str(count)],
        cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True,
    ) as child:  # fmt: skip
        assert child.stdout is not None
        line = child.stdout.readline()
        while line and not line.startswith("{"):
            with Sampler(child.pid) as sampler:
                following = child.stdout.readline()
            most[line.strip()] = sampler.most
            line = following
    if child.returncode != 0:
        raise RuntimeError(f"{size} bytes in {count} tensors: failed")
    found: dict[str, Any] = json.loads(line)
    before_save, after_save, before_load, after_load = found["anonymous"]
    found["save memory"] = max(most["save"], after_save) - before_save
    found["load memory"] = max(most["load"], after_load) - before_load - found["bytes"]
    return found


def _row(runs: list[dict[str, Any]], count: int) -> list[str]:
    def median(key: str) -> float:
        return float(statistics.median(run[key] for run in runs))

    last = runs[-1]
    seconds = [f"{median(key):.3f}" for key in ("save", "sync", "open", "load")]
    memory = [mib(median(key)) for key in ("save memory", "load memory")]
    manifest = bytes_text(last["manifest"])
    files = str(last["files"])
    return [bytes_text(last["bytes"]), f"{count:,}", *seconds, files, manifest, *memory]


if __name__ == "__main__":
    sys.exit(main())
