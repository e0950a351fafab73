"""Makes every system call of a save fail in turn, with every kind of fault.

After each fault the old checkpoint must be whole and no temporary file left, or the new one must be
whole. The error must be a ``WriteError`` with the system's number and the name of a file.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonckpt
from jsonckpt._src.format.filenames import SHARED_MARK
from tools.reliability.calls import Call, watched
from tools.reliability.common import command_line, memory_directory, open_descriptors
from tools.reliability.scenes import (
    EARLIER,
    SCENES,
    Files,
    Scene,
    inside,
    lay_out,
    outcome,
    prepared,
    unexpected,
)

#: What says that others use the files of a directory. It may stay.
_MARK = f"{EARLIER}/{SHARED_MARK}"


@dataclass(frozen=True)
class Fault:
    """What happens instead of a call.

    Attributes:
        number: the system's error; 0 for none.
        happened: whether the call took effect all the same.
        interrupt: a Ctrl-C instead of an error.
        most: the most bytes that a write takes.
        dead: every later change fails, too.
        harmless: whether the save must succeed.
    """

    number: int = 0
    happened: bool = False
    interrupt: bool = False
    most: int = 0
    dead: bool = False
    harmless: bool = False

    def __str__(self) -> str:
        what = "interrupt" if self.interrupt else f"short {self.most}"
        if self.number:
            what = errno.errorcode[self.number]
        return what + " after" * self.happened + " for good" * self.dead


_INTERRUPTS = [Fault(interrupt=True), Fault(interrupt=True, happened=True)]
_READ = [Fault(errno.EIO), *_INTERRUPTS]
_CHANGES = {"pwritev", "fsync", "replace", "link", "unlink", "mkdir", "rmdir"}


def faults_of(call: Call) -> list[Fault]:
    """The faults of a call."""
    dead = [Fault(errno.EIO, dead=True)]
    if call.name == "open" and call.creates:
        numbers = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EMFILE, errno.EROFS, errno.EIO]
        return [*map(Fault, numbers), *dead, *_INTERRUPTS]
    if call.name == "pwritev":
        numbers = [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG]
        short = [Fault(most=most, harmless=True) for most in (1, 7, 50)]
        return [*map(Fault, numbers), *short, *dead, *_INTERRUPTS]
    if call.name == "fsync":
        tolerated = []
        if os.path.isdir(call.path):
            cannot = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)
            tolerated = [Fault(number, harmless=True) for number in cannot]
            return [Fault(errno.EIO), *tolerated, *dead, *_INTERRUPTS]
        numbers = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
        return [*map(Fault, numbers), *dead, *_INTERRUPTS]
    if call.name == "close":
        # The descriptor is closed in any case.
        numbers = [errno.EIO, errno.ENOSPC, errno.EDQUOT]
        return [*(Fault(number, happened=True) for number in numbers), *_INTERRUPTS[1:]]
    if call.name == "replace":
        happened = Fault(errno.EIO, happened=True, harmless=True)
        return [Fault(errno.EIO), Fault(errno.ENOSPC), happened, *dead, *_INTERRUPTS]
    if call.name == "link":
        # If the file system has no links, the save uses another call.
        other = [Fault(errno.EIO, happened=True, harmless=True), Fault(errno.EPERM, harmless=True)]
        return [Fault(errno.EIO), Fault(errno.ENOSPC), *other, *dead, *_INTERRUPTS]
    if call.name == "mkdir":
        numbers = [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EIO]
        return [*map(Fault, numbers), *_INTERRUPTS]
    if call.name == "unlink":
        orphan = [Fault(number, harmless=True) for number in (errno.EIO, errno.EACCES)]
        return [*orphan, *_INTERRUPTS]
    return _READ


@dataclass
class Injector:
    """Lets calls pass, except the one with the number ``at``, which gets the fault."""

    at: int
    choice: int
    calls: int = 0
    call: Call | None = None
    fault: Fault | None = None
    errors: list[BaseException] = field(default_factory=list)
    failed_fsyncs: set[str] = field(default_factory=set)
    repeated_fsyncs: list[str] = field(default_factory=list)

    def __call__(self, call: Call, do: Callable[[], Any]) -> Any:
        self.calls += 1
        if call.name == "fsync" and call.path in self.failed_fsyncs:
            self.repeated_fsyncs.append(call.path)
        if self.calls != self.at:
            later = self.fault is not None and self.fault.dead
            if later and (call.name in _CHANGES or call.creates):
                raise self._kept(OSError(errno.EIO, os.strerror(errno.EIO)))
            return do()
        choices = faults_of(call)
        if self.choice >= len(choices):
            return do()
        self.call, self.fault = call, choices[self.choice]
        return self._go_wrong(call, do, self.fault)

    def _go_wrong(self, call: Call, do: Callable[[], Any], fault: Fault) -> Any:
        if fault.most:
            buffers = [bytes(buffer)[: fault.most] for buffer in call.arguments[1]]
            first = next((buffer for buffer in buffers if buffer), b"")
            return os.pwrite(call.arguments[0], first, call.arguments[2])
        if fault.happened:
            with suppress(OSError):
                result = do()
                if call.name == "open":
                    os.close(result)
        if call.name == "fsync" and fault.number and not fault.harmless:
            self.failed_fsyncs.add(call.path)
        if fault.interrupt:
            raise self._kept(KeyboardInterrupt())
        raise self._kept(OSError(fault.number, os.strerror(fault.number)))

    def _kept(self, error: BaseException) -> BaseException:
        self.errors.append(error)
        return error


@dataclass
class Report:
    """Counts, and descriptions of the failures."""

    tried: int = 0
    wrong: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)


def try_fault(
    scene: Scene, room: Path, before: Files, at: int, choice: int
) -> tuple[Injector, str]:
    """One save with one fault.

    Returns:
        what happened, and what is wrong with the result, if anything.
    """
    lay_out(room, before)
    injector = Injector(at, choice)
    descriptors = open_descriptors()
    raised: BaseException | None = None
    with watched(room, injector):
        try:
            scene.run(room)
        except (Exception, KeyboardInterrupt) as error:
            raised = error
    marks = injector.call is not None and injector.call.path.endswith((f"/{EARLIER}", SHARED_MARK))
    if injector.fault is not None and marks and raised is None:
        # A directory that cannot be marked is not used: everything is written.
        return injector, "" if outcome(scene, room) == "new" else "not saved"
    if injector.fault is None:
        return injector, "" if raised is None else f"raised {raised!r}"
    wrong = _wrong(scene, room, before, injector, raised)
    if not wrong and open_descriptors() != descriptors:
        wrong = "a descriptor is left open"
    # What an error keeps alive must not affect the next save.
    del raised
    return injector, wrong


def _wrong(
    scene: Scene, room: Path, before: Files, injector: Injector, raised: BaseException | None
) -> str:
    fault, call = injector.fault, injector.call
    assert fault is not None
    assert call is not None
    if injector.repeated_fsyncs and scene.how != "ranks":  # each rank is a process
        return f"fsync again after it failed: {injector.repeated_fsyncs}"
    try:
        found = outcome(scene, room)
    except Exception as error:
        return f"unloadable: {error!r}"
    # After a commit by a link the temporary name may stay, if it cannot be removed.
    orphan = call.name == "unlink" and fault.harmless
    left = unexpected(scene, room, killed=fault.dead or orphan)
    if found == "new" or (found == "none" and scene.gives_up):
        # Old shards that could not be removed, or whose manifest could not be read.
        left = [name for name in left if name not in before]
        if left:
            return f"left behind: {left}"
    elif not fault.dead and set(inside(room)) - {_MARK} != set(before) - {_MARK}:
        return f"not what was there before: {inside(room)}, and before {sorted(before)}"
    uncertain = isinstance(raised, jsonckpt.DurabilityUncertainError)
    if uncertain and not scene.gives_up and not set(before) <= set(inside(room)):
        return "what a power failure may bring back has been removed"
    if fault.interrupt:
        return "" if isinstance(raised, KeyboardInterrupt) else f"raised {raised!r}"
    if raised is None:
        reading = call.name in ("stat", "fstat", "preadv", "listdir", "unlink", "close", "open")
        allowed = fault.harmless or (reading and not call.creates) or fault.dead
        return "" if found == "new" and allowed else f"no error, and there is {found}"
    # The save ends if the old checkpoint must be removed first and cannot be.
    gone_first = scene.gives_up and call.name == "unlink"
    if fault.harmless and not gone_first:
        return f"raised {raised!r}"
    return _wrong_error(raised, injector, found)


def _wrong_error(raised: BaseException, injector: Injector, found: str) -> str:
    if not isinstance(raised, jsonckpt.WriteError):
        return f"raised {raised!r}"
    if isinstance(raised, jsonckpt.DurabilityUncertainError) != (found == "new"):
        return f"{raised!r}, and there is {found}"
    # If nothing works any more, two threads fail, and either may be the first to report it.
    causes = [error for error in _causes(raised) if error in injector.errors]
    if not causes:
        return "the cause is missing"
    if raised.errno not in [getattr(cause, "errno", None) for cause in causes] or not raised.file:
        return f"errno {raised.errno}, file {raised.file}: {raised}"
    return ""


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause = error.__cause__
    while cause is not None:
        yield cause
        cause = cause.__cause__


def run(*, full: bool, seed: int, scratch: Path) -> Report:
    """Every fault at every call of every scene; without ``full`` a sample of them."""
    report = Report()
    dice = random.Random(seed)
    room = scratch / "room"
    # Descriptors are counted, so those that are still in reference cycles must be closed first.
    gc.collect()
    for scene in SCENES:
        before = prepared(scene.prepare, room)
        at = 0
        while True:
            at += 1 if full else dice.randrange(1, 9)
            calls = 0
            choice = 0 if full else dice.randrange(5)
            while True:
                injector, wrong = try_fault(scene, room, before, at, choice)
                calls = injector.calls
                if wrong:
                    report.wrong += 1
                    report.words.append(
                        f"{scene.name}: call {at} {_shown(injector)}: {injector.fault}: {wrong}"
                    )
                if injector.fault is None:
                    break
                assert injector.call is not None
                report.tried += 1
                report.calls[injector.call.name] += 1
                report.outcomes[outcome(scene, room)] += 1
                if not full:
                    break
                choice += 1
            if injector.fault is None and calls < at:
                break
    return report


def _shown(injector: Injector) -> str:
    call = injector.call
    return "-" if call is None else f"{call.name} {os.path.basename(call.path)}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if anything is wrong."""
    options = command_line("faults", "every fault at every call").parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="jsonckpt-faults-", dir=memory_directory()) as scratch:
        report = run(full=options.full, seed=options.seed, scratch=Path(scratch))
    for line in report.words[:20]:
        print(line, file=sys.stderr)
    print(
        f"faults: {report.tried} in {len(SCENES)} kinds of save, {report.wrong} wrong; "
        f"{dict(report.outcomes)}; by call {dict(report.calls)}; seed {options.seed}"
    )
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
