"""Measures in a process of its own what the memory bound of ``docs/design.md`` speaks of.

``python -m tests.bound_child DIRECTORY CONTAINER CHUNK_MIB ENCODING COMPRESSION`` prints one JSON
object: for each operation the anonymous memory at its peak, less what was there before and less the
tensors that were asked for; and ``payload``, ``manifest``: bytes of the longest payload and of the
text beside the payloads.
"""

from __future__ import annotations

import json
import os
import sys

import torch

import jsonckpt
from tests.memory_child import _measure

THREADS = 2
CHUNKS = 24


def main(directory: str, container: str, mib: str, encoding: str, compression: str) -> None:
    """One tensor of 24 chunks, in and out in every way."""
    chunk = int(mib) << 20
    path, out = f"{directory}/{container}", f"{directory}/recovered-{container}"
    zstd = None if compression == "none" else compression
    for name in ("small", "small.json"):
        jsonckpt.save({"w": torch.randn(1000, 100)}, f"{directory}/{name}", encoding=encoding)
        jsonckpt.load(f"{directory}/{name}")
    jsonckpt.recover(f"{directory}/small", f"{directory}/small-recovered")
    state = {"w": torch.randn(CHUNKS * chunk // 4) * 0.02}
    nbytes = state["w"].nbytes
    extra = {
        "save": _measure(
            lambda: jsonckpt.save(
                state,
                path,
                encoding=encoding,
                compression=zstd,
                chunk_size=chunk,
                threads=THREADS,
                sync=False,
            ),
            given=0,
        )
    }
    into = {"w": torch.zeros_like(state["w"])}
    state.clear()
    extra["load_into"] = _measure(lambda: jsonckpt.load_into(into, path, threads=THREADS), given=0)
    into.clear()
    extra["load"] = _measure(lambda: jsonckpt.load(path, threads=THREADS), given=nbytes)
    extra["verify"] = _measure(lambda: jsonckpt.verify(path, deep=True, threads=THREADS), given=0)

    def stream() -> None:
        for _, tensor in jsonckpt.stream(path):
            del tensor

    extra["stream"] = _measure(stream, given=nbytes)
    extra["recover"] = _measure(
        lambda: jsonckpt.recover(path, out, threads=THREADS, sync=False), given=0
    )
    with jsonckpt.open(path) as checkpoint:
        rows = [size for e in checkpoint.manifest.entries for _, size, _ in e.chunks]
    extra["payload"] = max(rows)
    folder = f"{path}/manifest.json"
    extra["manifest"] = os.path.getsize(folder) if os.path.exists(folder) else 100_000
    print(json.dumps(extra))


if __name__ == "__main__":
    main(*sys.argv[1:])
