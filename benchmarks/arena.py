"""Interleaved timings: each program has its own process, and the programs take turns."""

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
    """Median, minimum and maximum of some figures."""

    median: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}–{self.high:{spec}})"


def spread(figures: Sequence[float]) -> Spread:
    """Of at least one figure."""
    return Spread(statistics.median(figures), min(figures), max(figures))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """The ratios of two series, each from the two figures of one round."""
    return spread([above / below for above, below in zip(numerators, denominators)])


def remove(path: Path) -> None:
    """Remove a file or a directory, if it exists."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def child_environment() -> dict[str, str]:
    """The environment of a measured process. The process can import this package."""
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
        """Send a command without waiting for its end."""
        assert self._child.stdin is not None
        print(json.dumps({"do": do, **arguments}), file=self._child.stdin, flush=True)
        self._unanswered.append(do)

    def ask(self, do: str, **arguments: Any) -> float:
        """Run a command after all earlier ones. Returns its seconds, as measured in the worker."""
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
        """Tell it to end. :meth:`wait` waits for the end."""
        assert self._child.stdin is not None
        self._child.stdin.close()

    def wait(self) -> None:
        """Wait until it has ended."""
        with self._child:
            pass


@dataclass(frozen=True)
class Turn:
    """What one peer does in each round.

    Attributes:
        key: names its seconds in the result; unique in a comparison.
        peer: the program.
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
        directory: where the checkpoints are written.
        on_disk: the system writes the files back in the background. That must not disturb the next
            turn.
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
        """Warm up: do everything once, untimed, and check every peer's file bit for bit."""
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
                self.take(turn)  # the others have been run by their check

    def take(self, turn: Turn) -> float:
        """One turn. Returns its seconds. What it loaded is freed before this returns."""
        self.begin(turn)
        seconds = self.run(turn)
        self.end(turn)
        return seconds

    def begin(self, turn: Turn) -> None:
        """Prepare a turn: remove old files, and wait until nothing is being written to the disk."""
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
        """The timed part of a turn. Returns its seconds."""
        path = self._fresh(turn) if turn.saves else self.path_of(turn.peer)
        return self._process(turn.peer).ask(turn.do, peer=turn.peer, path=str(path))

    def end(self, turn: Turn) -> None:
        """Free what the turn has loaded. What it has written is removed before the next turn."""
        if turn.saves:
            self._left = self._fresh(turn)
        self._process(turn.peer).ask("clear")

    def compare(self, turns: Sequence[Turn], rounds: int) -> dict[str, list[float]]:
        """Seconds of each turn in each round. Each round begins with another turn."""
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
        """Continue with another state."""
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
        """Make and check the file that a peer's loads read. Returns whether it was missing."""
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
    """The turns whose peers are installed, and a note for each other peer."""
    absent = sorted({turn.peer for turn in turns if not available(turn.peer)})
    notes = [f"{PEERS[peer].label}: not installed, left out." for peer in absent]
    return [turn for turn in turns if turn.peer not in absent], notes


def speeds(seconds: Mapping[str, Sequence[float]], size: int) -> dict[str, Spread]:
    """MB/s (10^6 bytes of tensors) of each turn."""
    return {
        key: spread([size / 1e6 / each for each in figures]) for key, figures in seconds.items()
    }
