"""Simulates the ranks of distributed saves: they die, go on late, and hear wrong messages.

The ranks run in threads, one at a time, from one file call to the next; dice decide who goes on. A
rank is killed before a call of its own: nothing of it happens any more, also no cleaning up. Those
that wait for it learn that it is lost. Messages to and from the coordinator are lost, repeated,
exchanged, or come from an earlier save. A job is started again while ranks of the first one are
still running. Of some runs all file operations are recorded, and each state that a power failure
may leave is tried, too (as in ``power``).

In each of them the old checkpoint or a new one must load whole, and nothing else.
"""

from __future__ import annotations

import logging
import pickle
import random
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from tests.support import difference
from tools.reliability.calls import Call, Operation, recorded
from tools.reliability.common import command_line, memory_directory
from tools.reliability.jobs import Dead, Failed, Letter, Lost, Rank, save_on_ranks
from tools.reliability.power import Disk, states
from tools.reliability.scenes import Files, clear, lay_out, prepared, snapshot

_OPTIONS: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 4_000}
#: Seconds after which a step of a rank is a hang.
_PATIENCE = 60.0


def state(version: int) -> dict[str, Any]:
    """Some tensors that are split, one that all ranks have, and values."""
    generator = torch.Generator().manual_seed(version)
    return {
        "model": {"w": torch.randn(7, 3, generator=generator), "v": torch.full((12,), version)},
        "norm": torch.randn(3, generator=generator),
        "step": version,
        "loss": [version / 3, "x"],
    }


#: What the sender of a message makes of it: the messages that arrive, pickled; ``None``: none.
Tamper = Callable[[Letter, Any], Any]


@dataclass(eq=False)
class Actor:
    """One rank of one job, in a thread.

    Attributes:
        job: a number.
        rank: it.
        dies_at: the number of the file call that it does not make any more.
        stops_at: the number of the file call before which it waits until all others are through.
        end: ``"saved"``, ``"failed"``, ``"lost"``, ``"dead"`` or, for any other error, its text.
    """

    job: int
    rank: Rank
    dies_at: int = 0
    stops_at: int = 0
    calls: int = 0
    end: str = ""
    ready: Callable[[], bool] = lambda: True
    lost: bool = False
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


class Stage:
    """Lets one actor run at a time.

    Args:
        dice: decide who goes on.
        tamper: of the messages of the first job.
    """

    def __init__(self, dice: random.Random, tamper: Tamper = lambda _, message: message) -> None:
        self._dice = dice
        self._tamper = tamper
        self._back = threading.Semaphore(0)
        self._actors: dict[int, Actor] = {}
        self.mail: dict[tuple[int, Letter], bytes] = {}

    def play(self, actors: Sequence[Actor]) -> None:
        """Run all to their ends."""
        threads = [threading.Thread(target=self._live, args=(actor,)) for actor in actors]
        weights = {actor: self._dice.choice((1.0, 1.0, 0.05)) for actor in actors}
        for thread in threads:
            thread.start()
        while running := [actor for actor in actors if not actor.end]:
            ready = [actor for actor in running if actor.ready()]
            if not ready:
                for actor in running:  # whom they wait for is dead
                    actor.lost = True
                ready = running
            first = [one for one in ready if one.calls + 1 != one.stops_at] or ready
            chosen = self._dice.choices(first, [weights[actor] for actor in first])[0]
            chosen.go.release()
            if not self._back.acquire(timeout=_PATIENCE):
                raise TimeoutError(f"rank {chosen.rank.number} hangs at call {chosen.calls}")
        for thread in threads:
            thread.join()

    def turn(self, call: Call) -> None:
        """Wait before a file call."""
        actor = self._actors[threading.get_ident()]
        actor.calls += 1
        if actor.dies_at and actor.calls >= actor.dies_at:
            if call.name != "close":  # the system closes the files of a dead process
                raise Dead
            return
        self._pause(actor, lambda: True)

    def _live(self, actor: Actor) -> None:
        self._actors[threading.get_ident()] = actor
        actor.go.acquire()
        try:
            self._save(actor)
            actor.end = "saved"
        except Failed:
            actor.end = "failed"
        except Lost:
            actor.end = "lost"
        except Dead:
            actor.end = "dead"
        except BaseException as error:
            actor.end = repr(error)
        self._back.release()

    def _save(self, actor: Actor) -> None:
        def send(letter: Letter, message: Any) -> None:
            if actor.job == 0:
                message = self._tamper(letter, message)
            if message is not None:
                self.mail[actor.job, letter] = pickle.dumps(message)

        life = actor.rank.save(send)
        letter = next(life)
        while True:
            where = (actor.job, letter)
            self._pause(actor, lambda where=where: where in self.mail)  # type: ignore[misc]
            try:
                if where in self.mail:
                    letter = life.send(pickle.loads(self.mail[where]))
                else:
                    letter = life.throw(Lost())
            except StopIteration:
                return

    def _pause(self, actor: Actor, ready: Callable[[], bool]) -> None:
        actor.ready = ready
        self._back.release()
        if not actor.go.acquire(timeout=2 * _PATIENCE):
            raise TimeoutError("the stage has gone")
        actor.ready = lambda: True


# --- one run ----------------------------------------------------------------------------------


@dataclass
class Run:
    """One or two saves at once, and how it went.

    Attributes:
        kills: (job, rank) -> the file call at which it dies.
        stops: (job, rank) -> the file call at which it waits until all others are through.
        tamper: see :data:`Tamper`.
        jobs: how many.
        count: of the ranks of each.
        first: the version that job 0 saves; the next one saves the next.
    """

    kills: Mapping[tuple[int, int], int] = field(default_factory=dict)
    stops: Mapping[tuple[int, int], int] = field(default_factory=dict)
    tamper: Tamper = lambda _, message: message
    jobs: int = 1
    count: int = 3
    first: int = 2
    actors: list[Actor] = field(default_factory=list)
    log: list[Operation] = field(default_factory=list)
    mail: dict[tuple[int, Letter], bytes] = field(default_factory=dict)

    def play(self, room: Path, dice: random.Random) -> Run:
        """Run it."""
        for job in range(self.jobs):
            for number in range(self.count):
                rank = Rank(number, self.count, room / "c", state(self.first + job), **_OPTIONS)
                at = (job, number)
                dies, stops = self.kills.get(at, 0), self.stops.get(at, 0)
                self.actors.append(Actor(job, rank, dies, stops))
        stage = Stage(dice, self.tamper)
        with recorded(room, turn=stage.turn) as log:
            stage.play(self.actors)
        self.log, self.mail = list(log), stage.mail
        return self

    @property
    def allowed(self) -> set[int]:
        """The versions that may be there afterwards; 1 is the old one."""
        saved = {2 + actor.job for actor in self.actors if actor.end == "saved"}
        others = {2 + actor.job for actor in self.actors if actor.dies_at or actor.lost}
        return saved | others if saved else {1, *others}

    def wrong_ends(self) -> str:
        """What is wrong with the ends of its ranks; empty if nothing is."""
        strange = [one.end for one in self.actors if one.end not in _ENDS]
        if strange:
            return f"a rank raised {strange[0]}"
        for actor in self.actors:
            for error in [actor.rank.error] if actor.rank.error else []:
                if not isinstance(error, jsonckpt.JsonckptError):
                    return f"rank {actor.rank.number} failed with {error!r}"
        return ""


_ENDS = {"saved", "failed", "lost", "dead"}


def version_at(path: Path) -> int:
    """The version of the whole checkpoint that is there; 0 for none.

    Raises:
        Exception: it is not whole, or a mix.
    """
    try:
        found = jsonckpt.load(path)
    except (jsonckpt.CheckpointNotFoundError, jsonckpt.IncompleteCheckpointError):
        if (path / "manifest.json").exists():
            raise
        return 0
    version = int(found["step"])
    wrong = difference(found, state(version))
    assert wrong is None, f"a mix: {wrong}"
    return version


def _judge(room: Path, allowed: set[int], *, go_on: bool) -> tuple[int, str]:
    """Which version is there, and what is wrong.

    Args:
        go_on: remove what a dead rank left, and save again.
    """
    path = room / "c"
    version = -1
    try:
        version = version_at(path)
        if version not in allowed:
            return version, f"version {version} is there, allowed are {sorted(allowed)}"
        if go_on:
            if version:
                jsonckpt.gc(path, older_than=0, dry_run=False)
                assert version_at(path) == version, "gc has removed something"
            save_on_ranks(state(9), path, count=2, **_OPTIONS)
            assert version_at(path) == 9, "the next save is not there"
    except Exception as error:
        return version, f"{type(error).__name__}: {error}"[:300]
    return version, ""


@dataclass
class Report:
    """Counts, and descriptions of the first bad runs."""

    runs: Counter[str] = field(default_factory=Counter)
    found: Counter[int] = field(default_factory=Counter)
    states: int = 0
    bad: int = 0
    words: list[str] = field(default_factory=list)

    def add(self, kind: str, what: str, version: int, wrong: str) -> None:
        """Count one run."""
        self.runs[kind] += 1
        self.found[version] += 1
        if wrong:
            self.bad += 1
            self.words.append(f"{kind}: {what}: {wrong}")


class Simulation:
    """All kinds of runs in one directory.

    Args:
        room: an empty directory.
        dice: decide everything that is drawn.
    """

    def __init__(self, room: Path, dice: random.Random) -> None:
        self.report = Report()
        self._room = room
        self._dice = dice
        self._before = {
            True: prepared(lambda path: save_on_ranks(state(1), path / "c", **_OPTIONS), room),
            False: Files(),
        }

    def _run(self, kind: str, what: str, run: Run, *, first: bool = False) -> Run:
        lay_out(self._room, self._before[not first])
        run.play(self._room, self._dice)
        allowed = {0 if first and version == 1 else version for version in run.allowed}
        version, wrong = _judge(self._room, allowed, go_on=True)
        self.report.add(kind, what, version, wrong or run.wrong_ends())
        return run

    def kills(self, *, two: int, sample: int | None = None) -> None:
        """Kill each rank at each of its file calls; and two ranks.

        Args:
            two: how many runs in which two ranks die.
            sample: of the calls, instead of all.
        """
        for first in (False, True):
            whole = self._run("nobody dies", "", Run(), first=first)
            calls = {actor.rank.number: actor.calls for actor in whole.actors}
            places = [(rank, at) for rank, count in calls.items() for at in range(1, count + 1)]
            for rank, at in places if sample is None else self._dice.sample(places, sample):
                kind = "the coordinator dies" if rank == 0 else "a rank dies"
                self._run(kind, f"rank {rank} at call {at}", Run({(0, rank): at}), first=first)
            for _ in range(two):
                kills = {(0, rank): self._dice.randint(1, calls[rank])
                         for rank in self._dice.sample(sorted(calls), 2)}  # fmt: skip
                self._run("two ranks die", str(kills), Run(kills), first=first)

    def messages(self, *, repeat: int = 1) -> None:
        """Lose, repeat, exchange, delay messages, and mix in those of another save."""
        clear(self._room)
        saved = Run(first=1).play(self._room, self._dice)
        # The shards that those messages tell of are there.
        self._before[True] = snapshot(self._room)
        earlier = {letter: pickle.loads(text) for (_, letter), text in saved.mail.items()}
        for _ in range(repeat):
            for name, letter, tamper in _tampered(earlier):
                what = f"{letter.step} from {letter.sender} to {letter.receiver}"
                run = Run(tamper=tamper)
                self._run(f"message {name}", what, run)

    def two_jobs(self, count: int) -> None:
        """Start a job again while ranks of the first one still run, or stop for a while."""
        for _ in range(count):
            rank = self._dice.randrange(2)
            stops = {(0, rank): self._dice.randint(1, 45)}
            kills = {}
            if self._dice.random() < 0.5:
                kills = {
                    (self._dice.randrange(2), self._dice.randrange(2)): self._dice.randint(1, 45)
                }
            run = Run(kills, stops, jobs=2, count=2)
            self._run("two jobs at once", f"stops {stops}, kills {kills}", run)

    def power(self, runs: int, *, most: int) -> None:
        """Cut the power after each file operation of a run.

        Args:
            most: see ``power.states``.
        """
        for number in range(runs):
            kills = {} if number % 2 == 0 else {(0, number % 3): self._dice.randint(8, 45)}
            jobs = 1 + (number % 4 == 3)
            run = Run(kills, jobs=jobs, count=3 if jobs == 1 else 2)
            before = self._before[number % 3 < 2]
            lay_out(self._room, before)
            run.play(self._room, self._dice)
            old = 1 if before else 0
            returned = {old if version == 1 else version for version in run.allowed}
            self._cut(before, run, {old, *range(2, 2 + jobs)}, returned, most)

    def _cut(self, before: Files, run: Run, during: set[int], after: set[int], most: int) -> None:
        disk = Disk.of(before)
        seen: dict[tuple[tuple[str, bytes | None], ...], tuple[int, str]] = {}
        for at in range(len(run.log) + 1):
            allowed = after if at == len(run.log) else during
            for files in states(disk, most=most, dice=self._dice):
                key = tuple(sorted(files.items()))
                if key not in seen:
                    lay_out(self._room, files)
                    go_on = self._dice.random() < 0.02
                    seen[key] = _judge(self._room, during, go_on=go_on)
                self.report.states += 1
                version, wrong = seen[key]
                if not wrong and version not in allowed:
                    wrong = f"version {version} is there, allowed are {sorted(allowed)}"
                what = f"{dict(run.kills)} at {at} of {len(run.log)}"
                self.report.add("power failure", what, version, wrong)
            if at < len(run.log):
                disk.apply(run.log[at])


def _tampered(earlier: Mapping[Letter, Any]) -> Iterator[tuple[str, Letter, Tamper]]:
    """Every message of a save with each fault that fits it.

    Args:
        earlier: the messages of another save.
    """

    for letter, old in earlier.items():
        twin = Letter(letter.step, *(1 if n == 2 else 2 if n == 1 else 0
                                     for n in (letter.sender, letter.receiver)))  # fmt: skip
        yield "lost", letter, _instead(letter, None)
        if letter.step == "answer to results":
            continue
        yield "of another save", letter, _instead(letter, old)
        if twin != letter:
            yield "of another rank of another save", letter, _instead(letter, earlier[twin])
        if letter.step == "results":
            yield "empty", letter, _instead(letter, [])
            yield "twice", letter, _among(letter, lambda new: [*new, *new])
            yield "with another save's", letter, _among(letter, _after(old))
            yield "with another save's before", letter, _among(letter, _before(old))
            if twin != letter:
                yield "exchanged", letter, _Exchanged(letter, twin)


def _instead(letter: Letter, other: Any) -> Tamper:
    return lambda at, message: other if at == letter else message


def _among(letter: Letter, change: Callable[[list[Any]], list[Any]]) -> Tamper:
    return lambda at, message: (
        change(message) if at == letter and isinstance(message, list) else message
    )


def _after(old: list[Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda new: [*new, *old]


def _before(old: list[Any]) -> Callable[[list[Any]], list[Any]]:
    return lambda new: [*old, *new]


class _Exchanged:
    """A message comes in place of another one, too: it comes twice, and the other never."""

    def __init__(self, one: Letter, other: Letter) -> None:
        self._one, self._other = one, other
        self._seen: Any = None

    def __call__(self, at: Letter, message: Any) -> Any:
        if at == self._one:
            self._seen = message
        return self._seen if at == self._other and self._seen is not None else message


def simulate(room: Path, dice: random.Random, *, full: bool) -> Report:
    """All kinds of runs: a sample, or all."""
    simulation = Simulation(room, dice)
    simulation.kills(two=600 if full else 10, sample=None if full else 30)
    simulation.messages(repeat=10 if full else 1)
    simulation.two_jobs(2_000 if full else 20)
    simulation.power(24 if full else 3, most=8 if full else 2)
    clear(room)
    return simulation.report


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if any run is bad."""
    options = command_line("ranks", "every file call, thousands of runs").parse_args(arguments)
    logging.getLogger("torch").setLevel(logging.ERROR)  # it tells of plans that are no whole
    with tempfile.TemporaryDirectory(prefix="jsonckpt-ranks-", dir=memory_directory()) as scratch:
        report = simulate(Path(scratch), random.Random(options.seed), full=options.full)
    for line in report.words[:20]:
        print(line, file=sys.stderr)
    print(
        f"ranks: {sum(report.runs.values())} runs and states, {report.bad} bad; "
        f"{dict(report.runs)}; versions found {dict(report.found)}; seed {options.seed}"
    )
    return 1 if report.bad else 0


if __name__ == "__main__":
    sys.exit(main())
