"""Simulates power failures: what may be on the disk after each step of a recorded save.

A disk keeps what was fsynced. Everything else is uncertain: the data of a file may be lost, halved,
zeroed, torn or whole, and any subset of the changes to a directory since its last fsync may have
happened. The tool writes each such state to a directory and loads it.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tools.reliability.calls import Operation, recorded
from tools.reliability.common import command_line, memory_directory
from tools.reliability.scenes import (
    OLD,
    SCENES,
    Files,
    Scene,
    clear,
    lay_out,
    outcome,
    snapshot,
    unexpected,
)

#: Up to this many pending changes all subsets are tried; for more, a sample.
_ALL_SUBSETS = 10
_DIRECTORY = -1


# --- what a disk may hold ---------------------------------------------------------------------


@dataclass
class Disk:
    """What is certainly on the disk, and what is pending."""

    durable: dict[str, int] = field(default_factory=dict)
    pending: list[Operation] = field(default_factory=list)
    made: dict[str, int] = field(default_factory=dict)
    data: list[bytearray] = field(default_factory=list)
    unsynced: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, files: Mapping[str, bytes | None]) -> Disk:
        """A disk on which these files (``None``: directories) are durable."""
        disk = cls()
        for path, content in files.items():
            if content is None:
                disk.durable[path] = _DIRECTORY
            else:
                disk.durable[path] = len(disk.data)
                disk.data.append(bytearray(content))
        disk.made.update(disk.durable)
        return disk

    def apply(self, step: Operation) -> None:
        """Apply one operation."""
        if step.kind == "fsync directory":
            here = [change for change in self.pending if _parent(change.path) == step.path]
            for change in here:
                _change(self.durable, change, self.made)
            self.pending = [change for change in self.pending if change not in here]
        elif step.kind == "fsync":
            self.unsynced.discard(self.made[step.path])
        elif step.kind == "write":
            number = self.made[step.path]
            content = self.data[number]
            end = step.offset + len(step.data)
            content.extend(bytes(max(0, end - len(content))))
            content[step.offset : end] = step.data
            self.unsynced.add(number)
        else:
            if step.kind == "create":
                self.made[step.path] = len(self.data)
                self.unsynced.add(len(self.data))
                self.data.append(bytearray())
            elif step.kind == "mkdir":
                self.made[step.path] = _DIRECTORY
            elif step.kind in ("rename", "link"):
                self.made[step.target] = self.made[step.path]
            self.pending.append(step)


def _parent(path: str) -> str:
    return os.path.dirname(path) or "."


def _change(entries: dict[str, int], step: Operation, made: Mapping[str, int]) -> None:
    """One change of names, whether or not those before it have happened."""
    if step.kind in ("unlink", "rmdir"):
        entries.pop(step.path, None)
    elif step.kind == "rename":
        entries.pop(step.path, None)
        entries[step.target] = made[step.path]
    elif step.kind == "link":
        entries[step.target] = made[step.path]
    else:
        entries[step.path] = made[step.path]


def _subsets(count: int, most: int, dice: random.Random) -> Iterator[Sequence[int]]:
    """Subsets of the pending changes: all of them, or the ordered ones and a sample."""
    everything = range(count)
    if count <= _ALL_SUBSETS and 2**count <= most:
        for size in range(count + 1):
            yield from itertools.combinations(everything, size)
        return
    for size in range(count + 1):
        yield everything[:size]
    for _ in range(max(0, most - count - 1)):
        yield [number for number in everything if dice.random() < 0.5]


def _fates(content: bytes) -> dict[str, bytes]:
    """What may be left of data that was not fsynced."""
    half = len(content) // 2
    return {
        "whole": content,
        "lost": b"",
        "halved": content[:half],
        "zeroed": bytes(len(content)),
        "torn": content[:half] + bytes(len(content) - half),
    }


def states(disk: Disk, *, most: int, dice: random.Random) -> Iterator[Files]:
    """What the disk may hold after a power failure now.

    Args:
        most: the number of subsets of directory changes, and of outcomes for the data of each.
    """
    for chosen in _subsets(len(disk.pending), most, dice):
        entries = dict(disk.durable)
        for number in chosen:
            _change(entries, disk.pending[number], disk.made)
        visible = {path: number for path, number in entries.items() if _reachable(path, entries)}
        loose = sorted({n for n in visible.values() if n in disk.unsynced})
        fates = [list(_fates(bytes(disk.data[number])).values()) for number in loose]
        combinations: Iterable[tuple[bytes, ...]] = itertools.product(*fates)
        if 5 ** len(loose) > most:
            combinations = (tuple(map(dice.choice, fates)) for _ in range(most))
        for contents in combinations:
            fate = dict(zip(loose, contents))
            yield {
                path: None if number == _DIRECTORY else fate.get(number, bytes(disk.data[number]))
                for path, number in visible.items()
            }


def _reachable(path: str, entries: Mapping[str, int]) -> bool:
    parent = _parent(path)
    return parent == "." or (entries.get(parent) == _DIRECTORY and _reachable(parent, entries))


# --- what is tried ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Trial:
    """A recorded save.

    Attributes:
        name: for messages.
        scene: the kind of save.
        before: the files before it, durable.
        log: the recorded system calls.
        allowed: what may be loaded before it returns. After that, only ``"new"``.
        only_after: whether nothing is promised before it returns.
    """

    name: str
    scene: Scene
    before: Files
    log: tuple[Operation, ...]
    allowed: frozenset[str]
    only_after: bool = False


def trial(scene: Scene, room: Path) -> Trial:
    """Record one save."""
    scene.prepare(room)
    before = snapshot(room)
    with recorded(room) as log:
        scene.run(room)
    clear(room)
    return Trial(scene.name, scene, before, tuple(log), scene.allowed)


def _after_a_killed_one(scene: Scene, room: Path, dice: random.Random) -> Trial:
    """A save that is killed at some operation, and the next save."""
    scene.prepare(room)
    before = snapshot(room)
    with recorded(room) as log:
        scene.run(room, OLD)
    cut = log[: dice.randrange(1, len(log))]
    disk = Disk.of(before)
    for step in cut:
        disk.apply(step)
    present = dict(disk.durable)
    for change in disk.pending:
        _change(present, change, disk.made)
    lay_out(
        room,
        {p: None if n == _DIRECTORY else bytes(disk.data[n]) for p, n in present.items()},
    )
    with recorded(room) as second:
        scene.run_again(room)
    clear(room)
    allowed = scene.allowed | {"old"}
    name = f"{scene.name}, after one killed at operation {len(cut)}"
    return Trial(name, scene, before, (*cut, *second), allowed)


def _after_one_without_sync(scene: Scene, room: Path) -> Trial:
    scene.prepare(room)
    before = snapshot(room)
    lazy = Scene(scene.target, scene.how, scene.overwrite, {**scene.options, "sync": False})
    with recorded(room) as log:
        lazy.run(room, OLD)
        scene.run_again(room)
    clear(room)
    name = f"{scene.name}, after one without sync"
    return Trial(name, scene, before, tuple(log), frozenset({"new"}), only_after=True)


def trials(room: Path, dice: random.Random) -> Iterator[Trial]:
    """Every kind of save, recorded; and saves after one that was killed or not synced."""
    for scene in SCENES:
        yield trial(scene, room)
        if scene.how == "save":
            yield _after_a_killed_one(scene, room, dice)
            if scene.target == "c":
                yield _after_one_without_sync(scene, room)


def without(
    log: Sequence[Operation], kind: str, path: str, *, last: bool = False
) -> list[Operation]:
    """The log of a save that leaves out one step: the first (or last) of ``kind`` on ``path``.

    Args:
        path: the end of the path.
    """
    found = [i for i, step in enumerate(log) if step.kind == kind and step.path.endswith(path)]
    left_out = found[-1 if last else 0]
    return [step for i, step in enumerate(log) if i != left_out]


# --- checking ---------------------------------------------------------------------------------


@dataclass
class Report:
    """Counts, and descriptions of the first bad states."""

    states: int = 0
    distinct: int = 0
    bad: int = 0
    recovered: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    after: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Sum up."""
        self.states += other.states
        self.distinct += other.distinct
        self.bad += other.bad
        self.recovered += other.recovered
        self.outcomes += other.outcomes
        self.after += other.after
        self.words += other.words[:3]


def check(
    tried: Trial,
    room: Path,
    *,
    most: int,
    dice: random.Random,
    recover: float = 0.02,
    since: int = 0,
) -> Report:
    """Load every state that a power failure may leave.

    Args:
        room: an empty directory for the states.
        most: see :func:`states`.
        recover: for this fraction of distinct states, also save over the result.
        since: only failures after this many operations.
    """
    report = Report()
    seen: dict[tuple[tuple[str, bytes | None], ...], str] = {}
    disk = Disk.of(tried.before)
    for at in range(len(tried.log) + 1):
        returned = at == len(tried.log)
        if at >= since and (returned or not tried.only_after):
            for files in states(disk, most=most, dice=dice):
                key = _key(files)
                if key not in seen:
                    seen[key] = _verdict(tried.scene, room, files)
                    report.distinct += 1
                    if seen[key] in tried.allowed and dice.random() < recover:
                        report.recovered += 1
                        seen[key] = _recover(tried.scene, room) or seen[key]
                found = seen[key]
                report.states += 1
                report.outcomes[found] += 1
                if returned:
                    report.after[found] += 1
                if found not in ({"new"} if returned else tried.allowed):
                    report.bad += 1
                    report.words.append(f"{tried.name}: at {at} of {len(tried.log)}: {found}")
        if not returned:
            disk.apply(tried.log[at])
    clear(room)
    return report


def _key(files: Files) -> tuple[tuple[str, bytes | None], ...]:
    return tuple(
        (name, None if content is None else hashlib.blake2b(content, digest_size=16).digest())
        for name, content in sorted(files.items())
    )


def _verdict(scene: Scene, room: Path, files: Files) -> str:
    lay_out(room, files)
    try:
        found = outcome(scene, room)
    except Exception as error:
        return f"bad: {type(error).__name__}: {error}"[:300]
    strange = unexpected(scene, room, killed=True)
    return f"bad: strange files {strange}" if strange else found


def _recover(scene: Scene, room: Path) -> str:
    """Save over the result. Returns what is wrong with that, if anything."""
    try:
        scene.run_again(room)
        found = outcome(scene, room)
    except Exception as error:
        return f"bad: the next save: {type(error).__name__}: {error}"[:300]
    return "" if found == "new" else f"bad: after the next save there is {found}"


def run(*, full: bool, seed: int, scratch: Path) -> Report:
    """All trials."""
    dice = random.Random(seed)
    total = Report()
    recording, laid_out = scratch / "recording", scratch / "room"
    recording.mkdir()
    laid_out.mkdir()
    if any(scene.how == "convert" for scene in SCENES):
        # The next save converts again, from a source outside of the directory.
        shutil.copytree(_sources(recording), laid_out.with_name("room-source"))
    for tried in trials(recording, dice):
        total.add(check(tried, laid_out, most=128 if full else 3, dice=dice))
    return total


def _sources(room: Path) -> Path:
    scene = next(scene for scene in SCENES if scene.how == "convert" and not scene.overwrite)
    scene.prepare(room)
    return room.with_name(room.name + "-source")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if any state is bad."""
    options = command_line("power", "100,000 states and more").parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jsonckpt-power-", dir=memory_directory()) as scratch:
        report = run(full=options.full, seed=options.seed, scratch=Path(scratch))
    for line in report.words[:20]:
        print(line, file=sys.stderr)
    print(
        f"power loss: {report.states} states ({report.distinct} distinct), {report.bad} bad; "
        f"{dict(report.outcomes)}; after the save returned: {dict(report.after)}; "
        f"{report.recovered} saved over; seed {options.seed}"
    )
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
