"""The process of one program. It takes commands as lines of JSON on its standard input.

Started with ``python -m benchmarks.worker``. The process lives for all rounds, so that each program
is measured in the steady state of its own allocator.
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
from typing import Any, BinaryIO, TextIO

import torch

from benchmarks.peers import PEERS
from benchmarks.states import State, map_state


class Worker:
    """The data of a program between two commands. ``peer`` is the program at one setting."""

    def __init__(self) -> None:
        self._state: State = {}
        self._target: State = {}
        self._loaded: State | None = None

    def state(self, path: str) -> None:
        """Use the state of a file from now on."""
        self._state = map_state(Path(path))

    def target(self) -> None:
        """Make tensors to load into, and touch every page."""
        self._target = {name: torch.ones_like(tensor) for name, tensor in self._state.items()}

    def save(self, peer: str, path: str) -> None:
        """Save without waiting for the disk."""
        PEERS[peer].save(self._state, Path(path))

    def save_synced(self, peer: str, path: str) -> None:
        """Save and wait until it is on the disk."""
        save = PEERS[peer].save_synced
        assert save is not None
        save(self._state, Path(path))

    def load(self, peer: str, path: str) -> None:
        """Load everything."""
        self._loaded = PEERS[peer].load(Path(path))

    def load_cold(self, peer: str, path: str) -> None:
        """Load everything after :meth:`forget`."""
        self.load(peer, path)

    def forget(self, path: str) -> None:
        """Drop a checkpoint from the page cache of the system."""
        place = Path(path)
        for file in [place] if place.is_file() else [f for f in place.rglob("*") if f.is_file()]:
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # data that is not on the disk yet cannot be dropped
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def load_into(self, peer: str, path: str) -> None:
        """Load into the tensors of :meth:`target`."""
        load = PEERS[peer].load_into
        assert load is not None
        load(self._target, Path(path))

    def stream(self, peer: str, path: str) -> None:
        """Read forward from a file object."""
        stream = PEERS[peer].stream
        assert stream is not None
        with open(path, "rb") as file:
            self._loaded = stream(file)

    def stream_pipe(self, peer: str, path: str) -> None:
        """Read forward from ``cat FILE |``."""
        stream = PEERS[peer].stream
        assert stream is not None
        with subprocess.Popen(["cat", path], stdout=subprocess.PIPE) as cat:
            self._loaded = stream(cat.stdout)

    def drain_cat(self, peer: str, path: str) -> None:
        """The speed of a pipe itself, as a shell makes it: ``cat FILE | cat >/dev/null``."""
        del peer
        self._drain(path, lambda _: None)

    def drain_wide(self, peer: str, path: str) -> None:
        """The same, the pipe as wide as jsonckpt makes its own."""
        from jsonckpt._src.linux import widen_pipe

        del peer
        self._drain(path, widen_pipe)

    def _drain(self, path: str, widen: Callable[[BinaryIO], None]) -> None:
        ends = os.pipe()
        with (
            open(ends[0], "rb", buffering=0) as reading,
            open(ends[1], "wb", buffering=0) as writing,
        ):
            widen(reading)
            writer = subprocess.Popen(["cat", path], stdout=writing)
            reader = subprocess.Popen(["cat"], stdin=reading, stdout=subprocess.DEVNULL)
        with writer, reader:
            pass

    def check(self, peer: str, path: str, how: str = "load") -> None:
        """Check once, outside all timings, that exactly the saved bytes come back.

        Args:
            how: ``load``, ``load_into``, ``stream`` or ``stream_pipe``.
        """
        getattr(self, how)(peer, path)
        loaded = self._target if how == "load_into" else self._loaded
        assert loaded is not None
        # A stream names tensors by their place in the state.
        found = {name.removeprefix("/"): tensor for name, tensor in loaded.items()}
        for name, tensor in self._state.items():
            if not _same_bits(found[name], tensor):
                raise AssertionError(f"{name} came back changed")
        if len(found) != len(self._state):
            raise AssertionError(f"{len(found)} tensors came back, not {len(self._state)}")
        self._loaded = None

    def clear(self) -> None:
        """Free what was loaded."""
        if (
            self._loaded is not None
        ):  # a collection visits everything that torch has imported: 50 ms
            self._loaded = None
            gc.collect()


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compares bytes, because random bits can be NaNs, which do not equal themselves."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    bytes_of = (tensor.detach().flatten().view(torch.uint8) for tensor in (one, other))
    return torch.equal(*bytes_of)


def answer(worker: Worker, command: dict[str, Any]) -> dict[str, Any]:
    """Run one command. Returns its seconds, or the error."""
    run: Callable[..., None] = getattr(worker, command.pop("do"))
    try:
        began = time.perf_counter()
        run(**command)
        return {"seconds": time.perf_counter() - began}
    except Exception:
        # Reported to the comparing process, which stops the run.
        return {"error": traceback.format_exc()}


def private_output() -> TextIO:
    """Reserve the standard output for answers. Other output goes to standard error."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


def main() -> None:
    """Serve until the standard input ends."""
    answers = private_output()
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
