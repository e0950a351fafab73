"""Measures in a process of its own how much memory saving and loading take beside the tensors.

``python -m tests.memory_child DIRECTORY CONTAINER MIB COUNT ENCODING COMPRESSION`` prints one JSON
object: for each operation the bytes of anonymous memory at its peak, less what it was before and
less the tensors that were asked for.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import jsonckpt

_INTERVAL = 0.005


def _anonymous() -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


class Peak:
    """Watches the process's anonymous memory from a thread."""

    def __init__(self) -> None:
        self.bytes = 0
        self._running = True
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while self._running:
            self.bytes = max(self.bytes, _anonymous())
            time.sleep(_INTERVAL)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within, the peak is noted."""
        self._thread.start()
        try:
            yield
        finally:
            self.bytes = max(self.bytes, _anonymous())
            self._running = False
            self._thread.join()


def _measure(action: Any, *, given: int) -> int:
    """Bytes beside what was there and the ``given`` ones."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _anonymous()
    peak = Peak()
    with peak.watching():
        result = action()
        del result
    return peak.bytes - before - given


def _state(nbytes: int, count: int) -> dict[str, Any]:
    rows = nbytes // count // 4 // 256
    generator = torch.Generator().manual_seed(0)
    return {
        f"layer.{number}": torch.randn(rows, 256, generator=generator) * 0.02
        for number in range(count)
    }


def main(directory: str, container: str, mib: str, count: str, encoding: str, zstd: str) -> None:
    """Save, then load in every way."""
    nbytes, path = int(mib) << 20, f"{directory}/{container}"
    # The first use imports what is imported late and starts what runs on.
    small = {"w": torch.randn(1000, 100)}
    compression = None if zstd == "none" else zstd
    for name in ("small", "small.json"):
        jsonckpt.save(small, f"{directory}/{name}", encoding=encoding, sync=False)
        jsonckpt.save(small, f"{directory}/{name}", compression=compression, sync=False)
        jsonckpt.load(f"{directory}/{name}")
    state = _state(nbytes, int(count))
    nbytes = sum(tensor.nbytes for tensor in state.values())
    largest = max(tensor.nbytes for tensor in state.values())
    extra = {
        "save": _measure(
            lambda: jsonckpt.save(
                state, path, encoding=encoding, compression=compression, sync=False
            ),
            given=0,
        )
    }
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    extra["load_into"] = _measure(lambda: jsonckpt.load_into(into, path), given=0)
    assert all(torch.equal(state[name], into[name]) for name in state)
    state.clear()
    into.clear()
    extra["load"] = _measure(lambda: jsonckpt.load(path), given=nbytes)
    extra["verify"] = _measure(lambda: jsonckpt.verify(path), given=0)

    def stream() -> None:
        for _, tensor in jsonckpt.stream(path):
            del tensor

    extra["stream"] = _measure(stream, given=largest)
    with jsonckpt.open(path) as checkpoint:
        name = next(iter(checkpoint))
        extra["slice"] = _measure(lambda: checkpoint[name][5:9], given=0)
    print(json.dumps(extra))


if __name__ == "__main__":
    main(*sys.argv[1:])
