"""Files of other programs are read in little memory beside mapped files."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import slow

MIB = 96
MOST = 40 << 20


def npy(path: Path, arrays: list[Any]) -> Path:
    np.save(path / "x.npy", np.asfortranarray(np.concatenate(arrays)).astype(">f4"))
    return path / "x.npy"


def npz(path: Path, arrays: list[Any]) -> Path:
    np.savez_compressed(path / "x.npz", *arrays)
    return path / "x.npz"


def specs(arrays: list[Any]) -> list[Any]:
    return [
        {"name": f"w{number}", "shape": list(array.shape), "dtype": "float32"}
        for number, array in enumerate(arrays)
    ]


def shards(path: Path, arrays: list[Any]) -> Path:
    data = b"".join(array.tobytes() for array in arrays)
    names = []
    for start in range(0, len(data), 5 << 20):
        names.append(f"shard{start}.bin")
        (path / names[-1]).write_bytes(data[start : start + (5 << 20)])
    manifest = [{"paths": names, "weights": specs(arrays)}]
    (path / "model.json").write_text(json.dumps({"weightsManifest": manifest}))
    return path / "model.json"


def artifacts(path: Path, arrays: list[Any]) -> Path:
    data = base64.b64encode(b"".join(array.tobytes() for array in arrays)).decode()
    text = {"modelTopology": {}, "weightSpecs": specs(arrays), "weightData": data}
    (path / "artifacts.json").write_text(json.dumps(text))
    return path / "artifacts.json"


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize("write", [shards, slow(npy), slow(npz), slow(artifacts)])
def test_anonymous_memory(write: Callable[[Path, list[Any]], Path], tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.random((1 << 10, 3 << 8), np.float32) for _ in range(MIB // 3)]
    source = write(tmp_path, arrays)
    child = subprocess.run(
        [sys.executable, "-m", "tests.convert.memory_child", source, tmp_path / "out.json"],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < MOST
