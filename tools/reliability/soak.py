"""A training loop that saves again and again, with kills, overwrites and rotation, and readers.

    python -m tools.reliability.soak [--full] [--seed N] [--seconds N]

The trainer (a small model with AdamW) saves ``latest`` again and again, and a rotated directory
every few saves. It is killed with SIGKILL at random moments and resumes. Four readers load the
checkpoints. These are failures: a checkpoint that does not load, a state that is a mix of two, a
finished save that is lost after a kill, and growing memory or open files of a process.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt import training
from jsonckpt._src.save.api import save
from tests.readers import indexed, streaming
from tools.reliability.common import BAD, command_line

_KEPT = 3
_EVERY = 4
#: Growth between the second and the last fifth of a run that is allowed.
_MOST_GROWTH = 6 << 20
_FEWEST_SAMPLES = 25


def _fingerprint(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> str:
    text = hashlib.sha256()
    tensors = [*model.state_dict().values()]
    for state in optimizer.state_dict()["state"].values():
        tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
    for tensor in tensors:
        text.update(tensor.detach().numpy().tobytes())
    return text.hexdigest()


def _make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 256), torch.nn.GELU(), torch.nn.Linear(256, 64), torch.nn.LayerNorm(64)
    )
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3)


def _check(state: dict[str, Any]) -> int:
    """The step of a loaded state. Its fingerprint must match its tensors."""
    model, optimizer = _make()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    found = _fingerprint(model, optimizer)
    assert found == state["fingerprint"], f"a mix of two saves at step {state['step']}"
    return int(state["step"])


class _Shared:
    """Numbers that survive a killed process: the last finished save, and whether to stop."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, 16)

    def __getitem__(self, place: int) -> int:
        number: int = struct.unpack_from("<q", self._memory, 8 * place)[0]
        return number

    def __setitem__(self, place: int, number: int) -> None:
        struct.pack_into("<q", self._memory, 8 * place, number)


_SAVED, _STOP = 0, 1


def _usage() -> tuple[int, int]:
    """Resident bytes and open files of this process."""
    with open("/proc/self/statm") as statm:
        pages = int(statm.read().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd"))


class _Log:
    """The output of a process, line by line, in a file that survives it."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "a", buffering=1)  # noqa: SIM115

    def close(self) -> None:
        self._file.close()

    def count(self, what: str) -> None:
        self._file.write(json.dumps(["count", what]) + "\n")

    def sample(self) -> None:
        self._file.write(json.dumps(["sample", *_usage()]) + "\n")


def _train(folder: Path, shared: _Shared, log: _Log, pause: float) -> None:
    model, optimizer = _make()
    step = 0
    latest = folder / "latest"
    if (latest / "manifest.json").exists():
        state = jsonckpt.load(latest, threads=1)
        step = _check(state)
        if step < shared[_SAVED]:
            log.count(f"{BAD}step {shared[_SAVED]} had been saved, {step} is there")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        training.set_rng_state(state["rng"])
        log.count("resumed")
    while not shared[_STOP]:
        for _ in range(3):
            batch = torch.randn(16, 64)
            loss = (model(batch) - batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        step += 1
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "step": step,
            "rng": training.rng_state(),
            "fingerprint": _fingerprint(model, optimizer),
        }
        save(state, latest, threads=1, max_shard_size=80_000, chunk_size=20_000)
        shared[_SAVED] = step
        log.count("saved")
        if step % _EVERY == 0:
            save(state, folder / f"checkpoint_epoch{step}", threads=1, compression="zstd")
            log.count("rotated")
            for old in training.checkpoints(folder)[:-_KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        log.sample()
        time.sleep(pause)


def _open(path: Path) -> Any:
    with jsonckpt.open(path, threads=1) as checkpoint:
        return checkpoint.load()


def _read(
    folder: Path, reader: Callable[[Path], Any], rotated: bool, shared: _Shared, log: _Log
) -> None:
    while not shared[_STOP]:
        path = training.latest(folder) if rotated else folder / "latest"
        if path is None or not (path / "manifest.json").exists():
            time.sleep(0.05)
            continue
        try:
            _check(reader(path))
        except jsonckpt.JsonckptError as error:
            if "overwritten" in (error.hint or ""):
                log.count("overwritten while it was read")
            elif rotated and _gone(path):
                log.count("rotated away while it was read")
            else:
                log.count(f"{BAD}{error}")
        else:
            log.count("loaded")
        log.sample()
        time.sleep(0.05)


def _gone(path: Path) -> bool:
    for _ in range(50):
        if not path.exists():
            return True
        time.sleep(0.1)
    # A kill may have interrupted its removal.
    return not (path / "manifest.json").exists() or not list(path.glob("shard-*"))


def _fork(work: Callable[[], None], log: _Log) -> int:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            # A checkpoint that is being written, or removed, while a reader looks for the latest.
            warnings.filterwarnings("ignore", ".*is skipped", RuntimeWarning)
            work()
            code = 0
        except BaseException as error:
            traceback.print_exc()
            log.count(f"{BAD}{type(error).__name__}: {error}"[:400])
        finally:
            os._exit(code)
    log.close()
    return pid


def _flat(samples: list[tuple[int, int]]) -> str | None:
    """The growth in a series of samples, from its second fifth to its last."""
    if len(samples) < _FEWEST_SAMPLES:
        return None
    fifth = len(samples) // 5
    early, late = samples[fifth : 2 * fifth], samples[-fifth:]
    memory = statistics.median(m for m, _ in late) - statistics.median(m for m, _ in early)
    if memory > _MOST_GROWTH:
        return f"{memory / (1 << 20):.1f} MiB more"
    files = max(f for _, f in late) - max(f for _, f in early)
    return f"{files} more open files" if files > 2 else None


def _warm_up() -> None:
    """Import what torch imports lazily, once for all children."""
    model, optimizer = _make()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    training.rng_state()


def soak(seed: int, seconds: float, folder: Path, *, pause: float) -> dict[str, Any]:
    """Run trainer and readers for some time.

    Args:
        pause: seconds between two saves.

    Returns:
        ``counts`` of the outcomes; ``kills``; ``growth``: for each process the growth of its memory
        and open files, in words, empty if there is none; ``orphans``: shards that killed saves
        left.
    """
    chance = random.Random(seed)
    shared = _Shared()
    _warm_up()
    logs = folder / "logs"
    logs.mkdir()
    readers: list[tuple[Callable[[Path], Any], bool]] = [
        (indexed, False),
        (streaming, False),
        (_open, False),
        (indexed, True),
    ]
    children = []
    for number, (reader, rotated) in enumerate(readers):
        log = _Log(logs / f"reader-{number}")

        def read(
            reader: Callable[[Path], Any] = reader, rotated: bool = rotated, log: _Log = log
        ) -> None:
            _read(folder, reader, rotated, shared, log)

        children.append(_fork(read, log))
    stop = time.monotonic() + seconds
    kills = lives = 0
    while time.monotonic() < stop:
        log = _Log(logs / f"trainer-{lives:05d}")
        lives += 1
        trainer = _fork(lambda log=log: _train(folder, shared, log, pause), log)  # type: ignore[misc]
        until = min(stop, time.monotonic() + chance.uniform(0.5, 20 * pause + 2))
        while time.monotonic() < until:
            time.sleep(min(0.05, max(0.0, until - time.monotonic())))
            if os.waitpid(trainer, os.WNOHANG)[0]:
                trainer = 0
                break
        if trainer:
            if time.monotonic() < stop:
                kills += 1
                os.kill(trainer, signal.SIGKILL)
            else:
                shared[_STOP] = 1
            os.waitpid(trainer, 0)
    shared[_STOP] = 1
    for child in children:
        os.waitpid(child, 0)
    counts: collections.Counter[str] = collections.Counter()
    growth = {}
    for file in sorted(logs.iterdir()):
        samples = []
        for line in file.read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill cut off
                kind, *values = json.loads(line)
                if kind == "count":
                    counts[values[0]] += 1
                else:
                    samples.append((values[0], values[1]))
        grown = _flat(samples)
        if len(samples) >= _FEWEST_SAMPLES:
            growth[file.name] = grown or ""
    latest = folder / "latest"
    _check(jsonckpt.load(latest))
    named = {shard.file for shard in jsonckpt.open(latest).manifest.shards}
    orphans = sum(file.name not in named for file in latest.glob("shard-*"))
    return {"counts": counts, "kills": kills, "growth": growth, "orphans": orphans}


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 1 if anything failed."""
    parser = command_line("soak", "600 seconds, a save every second")
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds or (600.0 if arguments.full else 20.0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        pause = 1.0 if arguments.full else 0.05
        found = soak(arguments.seed, seconds, Path(folder), pause=pause)
    counts = found["counts"]
    for what, count in counts.most_common():
        print(f"  {count} {what}")
    grown = {name: what for name, what in found["growth"].items() if what}
    for name, what in grown.items():
        print(f"  {BAD}{name}: {what}")
    failures = len(grown) + sum(n for what, n in counts.items() if what.startswith(BAD))
    print(
        f"soak: seed {arguments.seed}, {seconds:.0f} s: {counts['saved']} saves, "
        f"{counts['rotated']} rotated, {found['kills']} kills, {counts['resumed']} resumed, "
        f"{counts['loaded']} loads, memory and open files flat in "
        f"{len(found['growth']) - len(grown)} of {len(found['growth'])} processes, "
        f"{found['orphans']} orphaned shards, {failures} failures"
    )
    return int(failures > 0 or not counts["loaded"] or not found["kills"])


if __name__ == "__main__":
    sys.exit(main())
