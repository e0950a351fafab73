"""Simulates power failures and kills in a run whose steps share shards.

Saves, overwrites, removals and ``gc`` of a run are recorded one after the other. After each system
call, each state that a disk may have then (as in ``power``) is laid out. In each of them every step
that was saved and is not being removed must load whole, with its own values. The step that is being
saved, replaced or removed may be there as it was before or after, or not at all where one of these
is that there is none. Of some states the call is repeated, one step is replaced and one removed,
and everything is checked again.
"""

from __future__ import annotations

import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.sharing.remove_step import remove_step
from tests.support import difference
from tools.reliability.calls import Operation, recorded
from tools.reliability.common import command_line, memory_directory
from tools.reliability.power import Disk, states
from tools.reliability.scenes import Files, clear, lay_out, snapshot

_OPTIONS: dict[str, Any] = {"threads": 1, "chunk_size": 64, "max_shard_size": 1_500}


def state(step: int, body: int) -> dict[str, Any]:
    """A body that changes seldom, and what changes in each step."""
    frozen = torch.Generator().manual_seed(body)
    moving = torch.Generator().manual_seed(100 + step)
    return {
        "body": {f"w{i}": torch.randn(20 + i, generator=frozen) for i in range(3)},
        "lora": torch.randn(9, generator=moving),
        "step": step,
    }


@dataclass(frozen=True)
class Move:
    """One call.

    Attributes:
        kind: ``"save"``, ``"remove"`` or ``"gc"``.
        step: the directory.
        body: of the state that is saved.
        earlier: the step that unchanged tensors are taken from; 0 for none.
        version: of the state, if a step is saved again.
    """

    kind: str
    step: int
    body: int = 1
    earlier: int = 0
    version: int = 0

    def __str__(self) -> str:
        return f"{self.kind} {self.step}" + (f" from {self.earlier}" if self.earlier else "")

    @property
    def key(self) -> tuple[int, int]:
        """What the state depends on."""
        return self.step + 10 * self.version, self.body

    def run(self, room: Path) -> None:
        """Make the call."""
        path = room / f"s{self.step}"
        if self.kind == "save":
            earlier = {"unchanged_from": room / f"s{self.earlier}"} if self.earlier else {}
            jsonckpt.save(state(*self.key), path, **_OPTIONS, **earlier)
        elif self.kind == "remove":
            if path.exists():
                remove_step(path)
        elif path.exists():
            # What a save left that did not finish is not removed.
            with suppress(jsonckpt.IncompleteCheckpointError, jsonckpt.CheckpointNotFoundError):
                jsonckpt.gc(path, older_than=0)


#: A run: its steps share a body, some are replaced, and the oldest are removed.
RUN = (
    Move("save", 1),
    Move("save", 2, earlier=1),
    Move("save", 3, earlier=2),
    Move("remove", 1),
    Move("gc", 2),
    Move("save", 2, earlier=3, version=1),  # step 2 again: step 3 uses its files
    Move("gc", 2),
    Move("save", 4, earlier=3),
    Move("remove", 2),
    Move("gc", 2),
    Move("save", 5, body=2, earlier=4),  # the body has changed
    Move("remove", 3),
    Move("save", 6, body=2, earlier=5),
    Move("save", 5, body=3, version=1),  # replaced as a whole: step 6 uses its files
    Move("remove", 4),
    Move("save", 7, body=2, earlier=6),
    Move("remove", 6),
    Move("gc", 5),
    Move("remove", 5),
    Move("remove", 7),
)

#: What may be there of a step: a key of :attr:`Move.key`, or ``None`` for no checkpoint.
Allowed = dict[int, set[tuple[int, int] | None]]


@dataclass
class Report:
    """Counts, and descriptions of the first bad states."""

    states: int = 0
    distinct: int = 0
    bad: int = 0
    repeated: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)


def found(path: Path, allowed: set[tuple[int, int] | None]) -> tuple[int, int] | None:
    """Which of the allowed checkpoints is there.

    Raises:
        Exception: none of them.
    """
    try:
        value = jsonckpt.load(path)
    except (jsonckpt.CheckpointNotFoundError, jsonckpt.IncompleteCheckpointError):
        if None in allowed and not (path / "manifest.json").exists():
            return None
        raise
    for key in allowed - {None}:
        assert key is not None
        if difference(value, state(*key)) is None:
            return key
    raise AssertionError(f"another state: step {value['step']}")


def check(room: Path, allowed: Allowed) -> str:
    """What is wrong in a directory; empty if nothing is."""
    for step, keys in allowed.items():
        try:
            found(room / f"s{step}", keys)
        except Exception as error:
            return f"step {step}: {type(error).__name__}: {error}"[:300]
    return ""


def walk(
    run: Sequence[Move], recording: Path
) -> Iterator[tuple[Move, Files, list[Operation], Allowed, Allowed]]:
    """Each call: the files before it, its operations, what may be there during and after it."""
    now: dict[int, tuple[int, int] | None] = {}
    for move in run:
        before = snapshot(recording)
        with recorded(recording) as log:
            move.run(recording)
        allowed: Allowed = {step: {key} for step, key in now.items()}
        if move.kind != "gc":
            now[move.step] = move.key if move.kind == "save" else None
            allowed.setdefault(move.step, {None}).add(now[move.step])
        yield move, before, list(log), allowed, {step: {key} for step, key in now.items()}


def _go_on(move: Move, room: Path, after: Allowed, dice: random.Random) -> str:
    """Make the call again, then replace one step and remove another. What is wrong then."""
    move.run(room)
    if wrong := check(room, after):
        return f"when it is repeated: {wrong}"
    now = dict(after)
    there = [step for step, keys in now.items() if None not in keys]
    dice.shuffle(there)
    for step, kind in zip(there, ("save", "remove", "gc")):
        later = Move(kind, step, body=7, version=9)
        later.run(room)
        if kind != "gc":
            now[step] = {later.key if kind == "save" else None}
        if wrong := check(room, now):
            return f"after a later {later}: {wrong}"
    return ""


def simulate(
    room: Path,
    recording: Path,
    *,
    most: int,
    dice: random.Random,
    repeat: float = 0.05,
    run: Sequence[Move] = RUN,
    change: Callable[[Move, list[Operation]], list[Operation]] = lambda _, log: log,
) -> Report:
    """Load every step in every state that a power failure or a kill may leave.

    Args:
        most: see ``power.states``.
        repeat: for this fraction of distinct states the call is made again, and others follow.
        change: changes the operations of a call, to see that faults are found.
    """
    report = Report()
    for move, before, log, during, after in walk(run, recording):
        disk = Disk.of(before)
        seen: dict[tuple[tuple[str, bytes | None], ...], str] = {}
        steps = change(move, log)
        for at in range(len(steps) + 1):
            allowed = after if at == len(steps) else during
            for files in states(disk, most=most, dice=dice):
                key = (*sorted(files.items()), ("", bytes(at == len(steps))))
                if key not in seen:
                    lay_out(room, files)
                    seen[key] = check(room, allowed)
                    report.distinct += 1
                    if not seen[key] and dice.random() < repeat:
                        report.repeated += 1
                        seen[key] = _go_on(move, room, after, dice)
                report.states += 1
                report.outcomes[move.kind] += 1
                if seen[key]:
                    report.bad += 1
                    report.words.append(f"{move}: at {at} of {len(steps)}: {seen[key]}")
            if at < len(steps):
                disk.apply(steps[at])
    clear(room)
    return report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if any state is bad."""
    options = command_line("sharing", "100,000 states and more").parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jsonckpt-sharing-", dir=memory_directory()) as scratch:
        room, recording = Path(scratch) / "room", Path(scratch) / "recording"
        room.mkdir()
        recording.mkdir()
        report = simulate(
            room, recording, most=64 if options.full else 3, dice=random.Random(options.seed)
        )
    for line in report.words[:20]:
        print(line, file=sys.stderr)
    print(
        f"shared shards: {report.states} states ({report.distinct} distinct), {report.bad} bad; "
        f"{dict(report.outcomes)}; {report.repeated} calls repeated; seed {options.seed}"
    )
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
