"""The process of one peer: does what it is told over its standard input, one JSON line at a time.

``python -m benchmarks.worker PEER``. It is kept for all rounds, so that each peer is measured in
the steady state of its own allocator and of nobody else's.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import torch

from benchmarks.peers import PEERS, Peer
from benchmarks.states import State, map_state


class Worker:
    """What one peer has in hand between two commands."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._state: State = {}
        self._target: State = {}
        self._loaded: State | None = None

    def state(self, path: str) -> None:
        """Take the state of a file for all that follows."""
        self._state = map_state(Path(path))

    def target(self) -> None:
        """Make tensors to load into, every page of them touched."""
        self._target = {name: torch.ones_like(tensor) for name, tensor in self._state.items()}

    def save(self, path: str) -> None:
        """Save without waiting for the disk."""
        self._peer.save(self._state, Path(path))

    def save_synced(self, path: str) -> None:
        """Save and wait until it is on the disk."""
        assert self._peer.save_synced is not None
        self._peer.save_synced(self._state, Path(path))

    def load(self, path: str) -> None:
        """Load everything."""
        self._loaded = self._peer.load(Path(path))

    def load_into(self, path: str) -> None:
        """Load into the tensors of :meth:`target`."""
        assert self._peer.load_into is not None
        self._peer.load_into(self._target, Path(path))

    def stream(self, path: str) -> None:
        """Read forward from a file object."""
        assert self._peer.stream is not None
        with open(path, "rb") as file:
            self._loaded = self._peer.stream(file)

    def stream_pipe(self, path: str) -> None:
        """Read forward from ``cat FILE |``."""
        assert self._peer.stream is not None
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            self._loaded = self._peer.stream(cat.stdout)

    def drain_cat(self, path: str) -> None:
        """What the pipe itself carries: ``cat FILE | cat >/dev/null``."""
        subprocess.run(["sh", "-c", 'cat "$1" | cat >/dev/null', "sh", path], check=True)

    def drain_python(self, path: str) -> None:
        """What a Python process can take from ``cat FILE |`` when it drops the bytes."""
        buffer = bytearray(1 << 20)
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            assert cat.stdout is not None
            while os.readv(cat.stdout.fileno(), [buffer]):
                pass

    def check(self, path: str) -> None:
        """Whether loading gives the very bytes that were saved, once, outside all timings."""
        loaded = self._peer.load(Path(path))
        for name, tensor in self._state.items():
            found = loaded[name]
            if found.dtype != tensor.dtype or not torch.equal(found, tensor):
                raise AssertionError(f"{name} came back changed")
        if len(loaded) != len(self._state):
            raise AssertionError(f"{len(loaded)} tensors came back, not {len(self._state)}")

    def clear(self) -> None:
        """Let go of what was loaded."""
        self._loaded = None
        gc.collect()


def answer(worker: Worker, command: dict[str, Any]) -> dict[str, Any]:
    """Run one command; its seconds, or what went wrong."""
    run: Callable[..., None] = getattr(worker, command.pop("do"))
    try:
        began = time.perf_counter()
        run(**command)
        return {"seconds": time.perf_counter() - began}
    except Exception:
        # Told to the process that compares, which stops the run with it.
        return {"error": traceback.format_exc()}


def private_output() -> TextIO:
    """The standard output for answers only; what anybody prints goes to the standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Serve until the standard input ends."""
    answers = private_output()
    worker = Worker(PEERS[sys.argv[1]])
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
