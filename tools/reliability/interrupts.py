"""Ctrl-C and MemoryError at every place where Python runs signal handlers; threads that fail.

Python checks for signals at the beginning of a function, after a call, and when a loop jumps back.
At each such place in the library this raises a KeyboardInterrupt in the main thread (the first and
the last time that the place is reached), and a MemoryError in any thread. It also makes each start
of a thread fail, in several ways. Each time the error must reach the caller, the old checkpoint or
the new one must be whole, no temporary file may be left, and nothing may hang.
"""

from __future__ import annotations

import dis
import faulthandler
import gc
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, TextIO
from unittest import mock

import torch

import jsonckpt
from jsonckpt._src import parallel
from jsonckpt._src.save import api, background
from jsonckpt.convert import convert
from tests.support import difference
from tools.reliability.common import command_line, memory_directory, open_descriptors
from tools.reliability.scenes import (
    NEW,
    OLD,
    SHARDS,
    Files,
    files_of,
    inside,
    lay_out,
    prepared,
)

#: After these instructions the interpreter checks for signals.
_LOOKS = frozenset(
    {
        "RESUME",
        "JUMP_BACKWARD",
        "CALL",
        "CALL_KW",
        "CALL_FUNCTION",
        "CALL_FUNCTION_EX",
        "CALL_FUNCTION_KW",
        "CALL_METHOD",
        "JUMP_ABSOLUTE",
    }
)
_HOME = os.path.dirname(jsonckpt.__file__) + os.sep
_TRACED = (_HOME, threading.__file__, os.path.join(os.path.dirname(os.__file__), "contextlib.py"))
#: Python ignores what is raised in them.
_DEAF = frozenset({"__del__", "_remove", "excepthook", "_delete"})
#: Seconds after which a trial counts as hanging.
_PATIENCE = 60.0

Place = tuple[str, str, int, int]


@dataclass(frozen=True)
class Kind:
    """One operation on checkpoints.

    Attributes:
        target: the checkpoint that is written; ``""`` if none is.
        do: the operation, in a directory.
        before: prepares the directory.
        gives_up: whether the old checkpoint may be removed first.
        may_stay: whether the old checkpoint may stay without an error.
    """

    target: str
    do: Callable[[Path], object]
    before: Callable[[Path], object] = lambda _: None
    gives_up: bool = False
    may_stay: bool = False


def _save(target: str, *, overwrite: bool = True, **options: Any) -> Kind:
    def before(room: Path) -> None:
        if overwrite:
            jsonckpt.save(OLD, room / target, **options)

    return Kind(
        target,
        lambda room: jsonckpt.save(NEW, room / target, **options),
        before,
        bool(options.get("delete_first")),
    )


def _with_old(do: Callable[[Path], object], target: str = "", *, may_stay: bool = False) -> Kind:
    return Kind(
        target, do, lambda room: jsonckpt.save(OLD, room / "c", **SHARDS), may_stay=may_stay
    )


def _async(room: Path) -> None:
    jsonckpt.save_async(NEW, room / "c", **SHARDS).result()


def _cancelled(room: Path) -> None:
    jsonckpt.save_async(NEW, room / "c", **SHARDS).cancel()


def _into(room: Path) -> None:
    target = {"half": torch.zeros(33, dtype=torch.bfloat16), "steps": torch.zeros(20).long()}
    jsonckpt.load_into(target, room / "c", strict=False, threads=2)


def _to_recover(room: Path) -> None:
    jsonckpt.save(NEW, room / "d.json.zst", threads=1)


def _torch_file(room: Path) -> None:
    torch.save(NEW, room / "source.pt")
    jsonckpt.save(OLD, room / "c.json")


#: By their names.
KINDS: dict[str, Kind] = {
    "new directory": _save("c", overwrite=False, threads=1, **SHARDS),
    "directory": _save("c", threads=1, **SHARDS),
    "content": _save("c", threads=2, save_id="content", chunk_size=64, max_shard_size=8_000),
    "directory, 2 threads": _save("c", threads=2, **SHARDS),
    "file": _save("c.json", threads=2, chunk_size=64),
    "file, zstd": _save("c.json.zst", threads=2, chunk_size=64),
    "lists, zstd": _save("c", threads=2, encoding="list", compression="zstd", **SHARDS),
    "delete first": _save("c", threads=2, delete_first=True, **SHARDS),
    "save_async": _with_old(_async, "c"),
    "save_async, cancelled": _with_old(_cancelled, "c", may_stay=True),
    "load": _with_old(lambda room: jsonckpt.load(room / "c", threads=2)),
    "load_into": _with_old(_into),
    "stream": _with_old(lambda room: list(jsonckpt.stream(room / "c"))),
    "verify": _with_old(lambda room: jsonckpt.verify(room / "c", threads=2)),
    "recover": Kind(
        "r", lambda room: jsonckpt.recover(room / "d.json.zst", room / "r", threads=2), _to_recover
    ),
    "convert": Kind(
        "c.json",
        lambda room: convert(room / "source.pt", room / "c.json", overwrite=True),
        _torch_file,
    ),
}


class Tracer:
    """Counts the places that are reached, and raises at one of them.

    Args:
        error: what to raise; ``None`` only counts.
        place, time: the place, and which of its visits.
    """

    def __init__(
        self, error: type[BaseException] | None = None, place: Place | None = None, time: int = 0
    ) -> None:
        self.passed: Counter[Place] = Counter()
        self.raised = False
        self._error, self._place, self._time = error, place, time
        self._last: dict[int, int] = {}
        self._looks: dict[CodeType, frozenset[int]] = {}

    def __call__(self, frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if not code.co_filename.startswith(_TRACED) or code.co_name in _DEAF:
            return None
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        if event == "return":
            self._last.pop(id(frame), None)
        elif event == "opcode":
            at = frame.f_lasti
            if self._last.get(id(frame)) in self._looks_of(code):
                self._pass((code.co_filename, code.co_name, code.co_firstlineno, at))
            self._last[id(frame)] = at
        return self

    def _looks_of(self, code: CodeType) -> frozenset[int]:
        found = self._looks.get(code)
        if found is None:
            offsets = (i.offset for i in dis.get_instructions(code) if i.opname in _LOOKS)
            found = self._looks[code] = frozenset(offsets)
        return found

    def _pass(self, place: Place) -> None:
        self.passed[place] += 1
        if place == self._place and self.passed[place] == self._time and not self.raised:
            self.raised = True
            assert self._error is not None
            raise self._error("injected")


@dataclass
class Report:
    """Counts, and descriptions of the failures."""

    tried: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)


def _traced(
    kind: Kind, room: Path, tracer: Tracer | None, *, everywhere: bool = False
) -> BaseException | None:
    """Do it. Returns what it raised."""
    faulthandler.dump_traceback_later(_PATIENCE, exit=True)
    if everywhere:
        threading.settrace(tracer)
    try:
        sys.settrace(tracer)
        try:
            kind.do(room)
        finally:
            sys.settrace(None)
            threading.settrace(None)
    except BaseException as error:
        return error.with_traceback(None)
    finally:
        faulthandler.cancel_dump_traceback_later()
    return None


def _settle() -> str:
    """Wait for a background save. Returns the threads that are left after it."""
    last = api._background._last
    if last is not None:
        last._wait(None)
        last._untold()
    until = time.monotonic() + 5
    while left := [
        t.name for t in threading.enumerate() if t.name.startswith("jsonckpt") and t.is_alive()
    ]:
        if time.monotonic() > until:
            return f"threads are left: {left}"
        time.sleep(0.001)
    return ""


def _ended(kind: Kind, room: Path, before: Files) -> tuple[str, str]:
    """Which checkpoint exists, and what is wrong with it."""
    found = inside(room)
    if not kind.target:
        return "read", "" if found == sorted(before) else f"left behind: {found}"
    path = room / kind.target
    try:
        state = jsonckpt.load(path)
    except (jsonckpt.CheckpointNotFoundError, jsonckpt.IncompleteCheckpointError) as error:
        if path.name in before and not kind.gives_up:
            return "none", f"the old one is lost: {error}"
        new = sorted(set(found) - set(before))
        return "none", f"left behind: {new}" if new else ""
    except Exception as error:
        return "bad", f"unloadable: {error!r}"
    if kind.target in before and difference(state, OLD) is None:
        return "old", "" if found == sorted(before) else f"left behind: {found}, before {before}"
    if kind.target != "r" and difference(state, NEW) is not None:
        return "bad", "neither the old nor the new"
    named = {str(name.relative_to(room)) for name in files_of(path)}
    new = sorted(set(found) - set(before) - named)
    return "new", f"left behind: {new}" if new else ""


def _try(
    kind: Kind, room: Path, before: Files, tracer: Tracer, error: type[BaseException]
) -> tuple[str, str]:
    lay_out(room, before)
    opened = open_descriptors()
    raised = _traced(kind, room, tracer, everywhere=error is MemoryError)
    wrong = _settle()
    if raised is not None:
        raised.__context__ = raised.__cause__ = None  # they keep frames alive
        gc.collect()
    outcome, badly = _ended(kind, room, before)
    wrong = wrong or badly
    if tracer.raised and raised is None and error is KeyboardInterrupt:
        wrong = wrong or "swallowed"
    if tracer.raised and raised is None and outcome == "old" and not kind.may_stay:
        wrong = wrong or "no error, and nothing was saved"
    if raised is not None and not isinstance(raised, error):
        expected = (jsonckpt.JsonckptError,) if error is MemoryError else ()
        if not tracer.raised or not isinstance(raised, expected):
            wrong = wrong or f"raised {raised!r}"
    del raised
    if not gc.isenabled():
        gc.enable()
        wrong = wrong or "the collector is off"
    if api._background._preparing:
        api._background._preparing = False
        wrong = wrong or "no later save_async gets its turn"
    if not wrong and open_descriptors() != opened:
        wrong = "a descriptor is left open"
    return outcome, wrong


def run(
    *,
    full: bool,
    seed: int,
    scratch: Path,
    most: int = 12,
    log: TextIO | None = None,
    kinds: Iterable[str] = KINDS,
) -> Report:
    """Every place of every kind; without ``full`` only ``most`` of each, drawn by the seed."""
    report = Report()
    dice = random.Random(seed)
    room = scratch / "room"
    gc.collect()
    # Otherwise one thread handles such small tensors. Do not wait so long for threads that die at
    # their start, and do not report them.
    with (
        mock.patch.object(parallel, "_SMALL_RECORD", 1),
        mock.patch.object(parallel, "_PATIENCE", 0.05),
        mock.patch.object(background, "_PATIENCE", 0.05),
        mock.patch.object(threading, "excepthook", return_value=None),
        mock.patch.object(sys, "unraisablehook", return_value=None),
    ):
        _run_all(report, kinds, dice if not full else None, room, most, log)
    return report


def _run_all(
    report: Report,
    kinds: Iterable[str],
    dice: random.Random | None,
    room: Path,
    most: int,
    log: TextIO | None,
) -> None:
    for name in kinds:
        kind = KINDS[name]
        before = prepared(kind.before, room)
        for error in (KeyboardInterrupt, MemoryError):
            counter = Tracer()
            for _ in range(2):  # the first run builds caches that later runs find
                lay_out(room, before)
                counter = Tracer()
                problem = _traced(kind, room, counter, everywhere=error is MemoryError)
                assert problem is None, problem
                _settle()
            trials = [
                (place, time)
                for place, times in sorted(counter.passed.items())
                for time in sorted({1, times})
            ]
            if dice is not None:
                trials = dice.sample(trials, min(most, len(trials)))
            for place, time_ in trials:
                tracer = Tracer(error, place, time_)
                outcome, wrong = _try(kind, room, before, tracer, error)
                if tracer.raised:
                    report.tried[error.__name__] += 1
                    report.outcomes[outcome] += 1
                if wrong:
                    shown = f"{os.path.basename(place[0])}:{place[1]}:{place[2]}+{place[3]}"
                    report.words.append(f"{name}: {error.__name__} at {shown} ({time_}): {wrong}")
        _starts(name, kind, room, before, report)
        if log is not None:
            print(
                f"{name}: {sum(report.tried.values())} so far, wrong: {report.words}",
                file=log,
                flush=True,
            )


# --- threads that do not start ------------------------------------------------------------------

_start = threading.Thread.start


def _refused(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def _no_memory(_: threading.Thread) -> None:
    raise MemoryError


def _never_runs(thread: threading.Thread) -> None:
    """The thread dies before its first line, as if its first frame got no memory."""


def _interrupted_before(_: threading.Thread) -> None:
    raise KeyboardInterrupt


def _interrupted_after(thread: threading.Thread) -> None:
    _start(thread)
    raise KeyboardInterrupt


_FAILING = (_refused, _no_memory, _never_runs, _interrupted_before, _interrupted_after)


def _starts(name: str, kind: Kind, room: Path, before: Files, report: Report) -> None:
    """Each start of a thread fails, and all later ones."""
    for failing in _FAILING:
        for at in range(1, 4):
            starts = 0

            def start(thread: threading.Thread, at: int = at, failing: Any = failing) -> None:
                nonlocal starts
                starts += 1
                (failing if starts >= at else _start)(thread)

            lay_out(room, before)
            with mock.patch.object(threading.Thread, "start", start):
                raised = _traced(kind, room, None)
                wrong = _settle()
            if starts < at:
                break
            outcome, badly = _ended(kind, room, before)
            interrupts = failing in (_interrupted_before, _interrupted_after)
            if isinstance(raised, KeyboardInterrupt) != interrupts or (raised and not interrupts):
                wrong = wrong or f"raised {raised!r}"
            report.tried["thread"] += 1
            report.outcomes[outcome] += 1
            if wrong or badly:
                report.words.append(f"{name}: thread {at} {failing.__name__}: {wrong or badly}")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if anything is wrong."""
    parser = command_line("interrupts", "every place")
    parser.add_argument("--kind", action="append", choices=KINDS, help="only this kind")
    parser.add_argument("--most", type=int, default=12, help="of each kind, without --full")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="jsonckpt-signals-", dir=memory_directory()) as scratch:
        report = run(
            full=options.full,
            seed=options.seed,
            scratch=Path(scratch),
            most=options.most,
            kinds=options.kind or KINDS,
            log=sys.stderr,
        )
    for line in report.words[:60]:
        print(line, file=sys.stderr)
    print(
        f"interrupts: {dict(report.tried)} in {len(KINDS)} kinds, {len(report.words)} wrong; "
        f"{dict(report.outcomes)}; seed {options.seed}"
    )
    return 1 if report.words else 0


if __name__ == "__main__":
    sys.exit(main())
