"""Runs one operation in a fresh process, and watches its memory from outside.

:func:`watch` starts ``python -m benchmarks.probe`` and names the operation on its standard input.
The process imports what it needs, builds its first state, reports that, and then does the
operation. Memory that it had before does not count, and neither do the requested tensors.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.arena import ROOT, child_environment

__all__ = ["Crew", "Sampler", "Watched", "shapes", "status", "watch"]

INTERVAL = 0.005  # seconds


@dataclass(frozen=True)
class Watched:
    """The memory and the time of a process.

    Attributes:
        extra: the maximum of anonymous resident bytes, without the memory from before and the
            requested tensors.
        high_water: the same for the whole resident set, as the kernel counts it (``VmHWM``, which
            is what ``ru_maxrss`` reports); pages of mapped files are in it.
        seconds: of the operation.
        facts: other results of the operation.
    """

    extra: int
    high_water: int
    seconds: float
    facts: dict[str, Any]


def status(pid: int | str, field: str) -> int:
    """A size from ``/proc/PID/status`` in bytes; 0 when the process is gone."""
    with suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        for line in file:
            if line.startswith(field.encode()):
                return int(line.split()[1]) * 1024
    return 0


class Sampler:
    """The maximum of a process's anonymous memory. A thread samples it every 5 ms."""

    def __init__(self, pid: int) -> None:
        self.most = 0
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(INTERVAL):
            self.most = max(self.most, status(self._pid, "RssAnon:"))


class Crew:
    """Fresh processes. The next one imports torch while the last one works.

    Imports take longer than most operations. For memory only: they would disturb what is timed.
    """

    def __init__(self) -> None:
        self._next: subprocess.Popen[str] | None = None

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        if self._next is not None:
            self._next.communicate()  # the process ends when its input ends

    def watch(self, operation: str, **arguments: Any) -> Watched:
        """Like :func:`watch`."""
        child, self._next = self._next or _started(), None

        def start_next() -> None:
            self._next = _started()

        return _watch(child, operation, arguments, start_next)


def watch(operation: str, **arguments: Any) -> Watched:
    """Run one operation of this module in a fresh process.

    Raises:
        RuntimeError: it failed; what it printed is on the standard error.
    """
    return _watch(_started(), operation, arguments, lambda: None)


def _started() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.probe"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=child_environment(),
    )  # fmt: skip


def _watch(
    process: subprocess.Popen[str],
    operation: str,
    arguments: dict[str, Any],
    meanwhile: Callable[[], None],
) -> Watched:
    with process as child:
        assert child.stdin is not None
        assert child.stdout is not None
        print(json.dumps([operation, arguments], default=str), file=child.stdin, flush=True)
        if child.stdout.readline().strip() != "ready":
            raise RuntimeError(f"{operation} {arguments}: died before it began")
        meanwhile()
        base = status(child.pid, "RssAnon:")
        with Sampler(child.pid) as sampler:
            print("go", file=child.stdin, flush=True)
            line = child.stdout.readline()
        if not line:
            raise RuntimeError(f"{operation} {arguments}: failed")
        child.stdin.close()
        found = json.loads(line)
    asked = found["facts"].pop("asked", 0)
    return Watched(
        max(sampler.most, found["anonymous"]) - base - asked,
        found["high_water"] - asked,
        found["seconds"],
        found["facts"],
    )


# --- in the fresh process -----------------------------------------------------------------------


def shapes(size: int, *, single: bool) -> Iterator[tuple[int, ...]]:
    """Shapes of fp32 tensors of ``size`` bytes in all: layers of a transformer, or one tensor."""
    if single:
        yield size // 4096, 1024
        return
    left = size // 4
    while True:
        for shape in ((8192, 1024), *[(1024, 1024)] * 4, (1024,), (1024,), (4096, 1024), (4096,)):
            count = shape[0] * (shape[1] if len(shape) == 2 else 1)
            if count >= left:
                yield (left,)
                return
            yield shape
            left -= count


def filled(size: int, single: bool) -> dict[str, Any]:
    """A state made in place, so that the allocator keeps nothing but its tensors."""
    import torch

    block = torch.empty(1 << 18).normal_(std=0.02)
    state = {}
    for number, shape in enumerate(shapes(size, single=single)):
        tensor = torch.empty(shape)
        flat = tensor.view(-1)
        for start in range(0, len(flat), len(block)):
            piece = flat[start : start + len(block)]
            piece.copy_(block[: len(piece)])
        state[f"layer.{number}"] = tensor
    return state


#: Each prepares, yields, does its work, and yields its results while it keeps them alive.
Operation = Iterator[dict[str, Any]]


def save(peer: str, path: str, size: int, single: bool) -> Operation:
    """Saves an existing state."""
    from benchmarks.peers import PEERS

    _import_of(peer)
    state = filled(size, single)
    yield {}
    PEERS[peer].save(state, Path(path))
    yield {}


def save_async(path: str, size: int, single: bool) -> Operation:
    """Needs one copy of the state: later changes must not get into the file."""
    import jsonckpt

    state = filled(size, single)
    yield {}
    jsonckpt.save_async(state, path, sync=False).result()
    yield {"asked": sum(tensor.nbytes for tensor in state.values())}


def verify(path: str) -> Operation:
    """Reads every byte, and returns no tensor."""
    import jsonckpt

    yield {}
    if not jsonckpt.verify(path, deep=True):
        raise RuntimeError(f"{path} is damaged")
    yield {}


def recover(path: str, output: str) -> Operation:
    """For a file whose last 64 KiB are missing. Returns no tensor."""
    import jsonckpt

    os.truncate(path, os.path.getsize(path) - (64 << 10))
    yield {}
    report = jsonckpt.recover(path, output, sync=False)
    yield {"recovered": len(report.recovered), "lost": len(report.lost)}


def load(peer: str, path: str) -> Operation:
    """The tensors of the state do not count."""
    from benchmarks.peers import PEERS

    _import_of(peer)
    yield {}
    state = PEERS[peer].load(Path(path))
    yield {"asked": sum(tensor.nbytes for tensor in state.values())}


def load_into(peer: str, path: str, size: int, single: bool) -> Operation:
    """The tensors exist already."""
    from benchmarks.peers import PEERS

    load_into_existing = PEERS[peer].load_into
    assert load_into_existing is not None
    _import_of(peer)
    state = filled(size, single)
    yield {}
    load_into_existing(state, Path(path))
    yield {}


def stream(path: str) -> Operation:
    """One tensor at a time does not count."""
    import jsonckpt

    yield {}
    largest = 0
    for _, tensor in jsonckpt.stream(path):
        largest = max(largest, tensor.nbytes)
        del tensor
    yield {"asked": largest}


def convert(path: str, output: str) -> Operation:
    """Returns no tensor."""
    importlib.import_module("jsonckpt.convert")
    yield {}
    sys.argv = ["convert", path, "--output", output, "--test-load", "--overwrite", "--quiet"]
    try:
        runpy.run_module("jsonckpt.convert", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"jsonckpt.convert ended with {end.code}") from end
    yield {"bytes": Path(output).stat().st_size}


def first_tensor(peer: str, path: str) -> Operation:
    """Open a checkpoint and read its first tensor."""
    _import_of(peer)
    yield {}
    if peer == "safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            tensor = file.get_tensor(next(iter(file.keys()))).clone()
    elif peer == "torch":
        import torch

        tensor = next(iter(torch.load(path, mmap=True, weights_only=True).values())).clone()
    else:
        import jsonckpt

        with jsonckpt.open(path) as checkpoint:
            tensor = checkpoint[next(iter(checkpoint))].load()
    yield {"shape": list(tensor.shape)}


def rows(peer: str, path: str, start: int, stop: int) -> Operation:
    """Read some rows of the first tensor of a checkpoint."""
    _import_of(peer)
    yield {}
    before = _bytes_read()
    if peer == "safetensors":
        from safetensors import safe_open

        with safe_open(path, framework="pt") as file:
            part = file.get_slice(next(iter(file.keys())))[start:stop].clone()
    elif peer == "torch":
        import torch

        tensor = next(iter(torch.load(path, mmap=True, weights_only=True).values()))
        part = tensor[start:stop].clone()
    else:
        import jsonckpt

        with jsonckpt.open(path) as checkpoint:
            part = checkpoint[next(iter(checkpoint))][start:stop]
    yield {"asked": part.nbytes, "shape": list(part.shape), "read": _bytes_read() - before}


def _bytes_read() -> int:
    """The bytes that this process has read by system calls so far, without mapped pages."""
    with open("/proc/self/io", encoding="ascii") as file:
        return int(file.readline().split()[1])


def _import_of(peer: str) -> None:
    """Imports are not what is measured."""
    import torch  # noqa: F401

    names = {
        "own": ["jsonckpt"],
        "safetensors": ["safetensors.torch"],
        "dcp": ["torch.distributed.checkpoint", "torch.distributed.checkpoint._extension"],
    }
    for name in names.get(peer.partition("-")[0], []):
        importlib.import_module(name)


OPERATIONS: dict[str, Callable[..., Operation]] = {
    function.__name__: function
    for function in (
        save, save_async, load, load_into, stream, verify, recover, convert, first_tensor, rows
    )
}  # fmt: skip


def main() -> None:
    """Read the operation from standard input, and do it when told to."""
    import torch  # noqa: F401  # every operation needs it; it may be imported long before

    from benchmarks.worker import private_output

    answers = private_output()
    asked = sys.stdin.readline()
    if not asked:
        return  # nothing is left to do
    operation, arguments = json.loads(asked)
    running = OPERATIONS[operation](**arguments)
    next(running)
    with suppress(OSError):
        # Reset the kernel's high-water mark of resident memory.
        Path("/proc/self/clear_refs").write_text("5")
    resident = status("self", "VmRSS:")
    print("ready", file=answers, flush=True)
    sys.stdin.readline()
    began = time.perf_counter()
    facts = next(running)
    seconds = time.perf_counter() - began
    found = {
        "anonymous": status("self", "RssAnon:"),
        "high_water": status("self", "VmHWM:") - resident,
        "seconds": seconds,
        "facts": facts,
    }
    print(json.dumps(found), file=answers, flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    main()
