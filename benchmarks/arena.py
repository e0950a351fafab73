"""Interleaved timings: each program in a process of its own, all of them taking turns."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.peers import PEERS, available

__all__ = [
    "Arena",
    "Spread",
    "Turn",
    "child_environment",
    "installed",
    "ratios",
    "remove",
    "speeds",
    "spread",
]

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Spread:
    """Median, least and most of some figures."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}–{self.high:{spec}})"


def spread(figures: Sequence[float]) -> Spread:
    """Of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Of the two figures of each round, which stood side by side in time."""
    return spread([above / below for above, below in zip(numerators, denominators)])


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def child_environment() -> dict[str, str]:
    """The environment of a measured process, which finds this package in it."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}


class _Process:
    """The worker process of one program."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._unanswered: list[str] = []
        self._child = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=child_environment(),
        )

    def send(self, do: str, **arguments: Any) -> None:
        """Give a command without waiting for it."""
        assert self._child.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._child.stdin, flush=True)
        self._unanswered.append(do)

    def ask(self, do: str, **arguments: Any) -> float:
        """Seconds that a command took in the worker, once all before it are done."""
        while self._unanswered:
            self._answer()
        self.send(do, **arguments)
        return self._answer()

    def _answer(self) -> float:
        do = self._unanswered.pop(0)
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of {self._program} died during {do!r}")
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"{self._program}: {do} failed\n{reply['error']}")
        return float(reply["seconds"])

    def close(self) -> None:
        """Let it end; :meth:`wait` until it has."""
        assert self._child.stdin is not None
        self._child.stdin.close()

    def wait(self) -> None:
        """Until it has ended."""
        with self._child:
            pass


@dataclass(frozen=True)
class Turn:
    """What one peer does in each round.

    Attributes:
        key: names its seconds in the result; unique in a comparison.
        peer: who.
        do: a method of :class:`benchmarks.worker.Worker`.
    """

    key: str
    peer: str
    do: str

    @property
    def saves(self) -> bool:
        """Whether it writes a file."""
        return self.do.startswith("save")


class Arena:
    """The processes of several programs that save the same state in the same directory.

    Args:
        state: a file of :func:`benchmarks.states.write_state`.
        directory: where the checkpoints lie.
        on_disk: its files are written back in the background, which must not reach into the
            next turn.
    """

    def __init__(self, state: Path, directory: Path, *, on_disk: bool) -> None:
        self._state = state
        self._directory = directory
        self._on_disk = on_disk
        self._processes: dict[str, _Process] = {}
        self._saved: set[str] = set()
        self._targets: set[str] = set()
        self._left: Path | None = None

    def __enter__(self) -> Arena:
        self._directory.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.close()
        for process in self._processes.values():
            process.wait()
        remove(self._directory)

    def prepare(self, turns: Sequence[Turn]) -> None:
        """Warm up: everything once, untimed, and every peer's file checked bit for bit."""
        for peer in dict.fromkeys(turn.peer for turn in turns):
            self._start(_program(peer))  # all at once: their imports take seconds
        for turn in turns:
            fresh = self._save_once(turn.peer)
            if turn.do == "load_into" and _program(turn.peer) not in self._targets:
                self._process(turn.peer).ask("target")
                self._targets.add(_program(turn.peer))
            if turn.do in ("load_into", "stream", "stream_pipe"):
                path = str(self.path_of(turn.peer))
                self._process(turn.peer).ask("check", peer=turn.peer, path=path, how=turn.do)
                self._process(turn.peer).ask("clear")
            elif turn.do != "load" and not (fresh and turn.do == "save"):
                self.take(turn)  # the others have been taken by what checks them

    def take(self, turn: Turn) -> float:
        """One turn; its seconds. What it loaded is let go before this returns."""
        self.begin(turn)
        seconds = self.run(turn)
        self.end(turn)
        return seconds

    def begin(self, turn: Turn) -> None:
        """Make ready: nothing in the way, nothing still on its way to the disk."""
        if turn.do == "load_cold":
            self._process(turn.peer).ask("forget", path=str(self.path_of(turn.peer)))
        if not (turn.saves or self._on_disk):
            return
        if self._left is not None:
            remove(self._left)
            self._left = None
        if turn.saves and self._on_disk:
            os.sync()

    def run(self, turn: Turn) -> float:
        """The part of a turn that counts; its seconds."""
        path = self._fresh(turn) if turn.saves else self.path_of(turn.peer)
        return self._process(turn.peer).ask(turn.do, peer=turn.peer, path=str(path))

    def end(self, turn: Turn) -> None:
        """Let go of what the turn has loaded; of what it has written before the next one."""
        if turn.saves:
            self._left = self._fresh(turn)
        self._process(turn.peer).ask("clear")

    def compare(self, turns: Sequence[Turn], rounds: int) -> dict[str, list[float]]:
        """Seconds of each turn in each round, the first of a round another each time."""
        self.prepare(turns)
        seconds: dict[str, list[float]] = {turn.key: [] for turn in turns}
        for number in range(rounds):
            first = number % len(turns)
            for turn in [*turns[first:], *turns[:first]]:
                seconds[turn.key].append(self.take(turn))
        return seconds

    def path_of(self, peer: str) -> Path:
        """The file that a peer's loads read."""
        return self._directory / f"{peer}{PEERS[peer].suffix}"

    def _fresh(self, turn: Turn) -> Path:
        return self._directory / f"turn{PEERS[turn.peer].suffix}"

    def use(self, state: Path) -> None:
        """Go on with another state."""
        self._state = state
        for process in self._processes.values():
            process.ask("state", path=str(state))
        for peer in self._saved:
            remove(self.path_of(peer))
        self._saved.clear()
        self._targets.clear()

    def _start(self, program: str) -> None:
        if program not in self._processes:
            self._processes[program] = _Process(program)
            self._processes[program].send("state", path=str(self._state))

    def _process(self, peer: str) -> _Process:
        return self._processes[_program(peer)]

    def _save_once(self, peer: str) -> bool:
        """The file that a peer's loads read, checked bit for bit; whether it was missing."""
        if peer in self._saved:
            return False
        process = self._process(peer)
        process.ask("save", peer=peer, path=str(self.path_of(peer)))
        process.ask("check", peer=peer, path=str(self.path_of(peer)))
        process.ask("clear")
        self._saved.add(peer)
        return True


def _program(peer: str) -> str:
    """Peers of one name before the dash are one program at several settings.

    >>> _program("torch-fast"), _program("dcp")
    ('torch', 'dcp')
    """
    return peer.partition("-")[0]


def installed(turns: Sequence[Turn]) -> tuple[list[Turn], list[str]]:
    """The turns that can be taken here, and a note for each peer that is not installed."""
    absent = sorted({turn.peer for turn in turns if not available(turn.peer)})
    notes = [f"{PEERS[peer].label}: not installed, left out." for peer in absent]
    return [turn for turn in turns if turn.peer not in absent], notes


def speeds(seconds: Mapping[str, Sequence[float]], size: int) -> dict[str, Spread]:
    """MB/s (10^6 bytes of tensors) of each turn."""
    return {
        key: spread([size / 1e6 / each for each in figures]) for key, figures in seconds.items()
    }
