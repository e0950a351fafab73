"""Kills saves: at every system call of a save, and at random moments.

Each save runs in a process that is forked after all imports. For every system call of a save,
``strace`` is attached to such a process and kills it at that call. Then the old checkpoint or the
new one must be whole, and the next save must work.
"""

from __future__ import annotations

import ctypes
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from jsonckpt._src.save import api
from tools.reliability.common import command_line, memory_directory
from tools.reliability.scenes import (
    SCENES,
    Files,
    Scene,
    lay_out,
    outcome,
    prepared,
    unexpected,
)

#: The calls that touch files, or might.
CALLS = (
    "openat,open,creat,read,pread64,preadv,preadv2,write,pwrite64,writev,pwritev,pwritev2,fsync,"
    "fdatasync,sync_file_range,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,close,"
    "ftruncate,fallocate,mmap,munmap,lseek,newfstatat,stat,lstat,fstat,statx,getdents64,link,linkat"
)
#: Seconds after which a save that should have ended is an error.
_PATIENCE = 60.0
_DONE, _FAILED, _INTERRUPTED = 0, 7, 130


@dataclass
class Report:
    """Counts, and descriptions of the failures."""

    kills: int = 0
    wrong: int = 0
    ended: int = 0
    calls: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)
    words: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{self.kills} kills, {self.wrong} wrong; {dict(self.outcomes)}"
        if self.calls:
            text += f"; by call {dict(self.calls.most_common())}"
        return text


class _Inline(threading.Thread):
    """A thread that runs in the calling thread.

    ``strace`` counts the calls of each thread separately, so there must be only one.
    """

    def start(self) -> None:
        self.run()

    def is_alive(self) -> bool:
        return False

    def join(self, timeout: float | None = None) -> None:
        del timeout


class Child:
    """A forked process that saves once, when told to.

    Args:
        after: seconds after which the kernel sends it SIGKILL, or SIGINT where it is
            ``interruptible``. On a busy machine a sleeping parent would wake up too late.
    """

    def __init__(
        self,
        scene: Scene,
        room: Path,
        *,
        interruptible: bool = False,
        inline: bool = False,
        after: float | None = None,
    ) -> None:
        self._heard, tell = os.pipe()
        wait, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._heard)
            os.close(self._go)
            if inline:
                threading.Thread = _Inline  # type: ignore[misc]
            _save_and_exit(scene, room, wait, tell, interruptible=interruptible, after=after)
        os.close(tell)
        os.close(wait)

    def go(self) -> None:
        """Let it save. Returns when the save has begun."""
        os.write(self._go, b"g")
        self.hear()

    def hear(self) -> None:
        """Wait for its next report: that the save begins, or that it has ended."""
        if select.select([self._heard], [], [], _PATIENCE)[0]:
            os.read(self._heard, 1)

    def end(self) -> int:
        """Wait for its end. Returns the exit status, negative for a signal."""
        deadline = time.monotonic() + _PATIENCE
        try:
            while time.monotonic() < deadline:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.0005)
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            raise TimeoutError("the save did not end")
        finally:
            os.close(self._heard)
            os.close(self._go)


def _save_and_exit(
    scene: Scene, room: Path, wait: int, tell: int, *, interruptible: bool, after: float | None
) -> None:
    """What the child runs. It never returns into the parent's code."""
    status = _FAILED
    try:
        # A shell makes background processes ignore SIGINT.
        handler = signal.default_int_handler if interruptible else signal.SIG_IGN
        signal.signal(signal.SIGINT, handler)
        torch.set_num_threads(1)
        os.read(wait, 1)
        os.write(tell, b"b")
        if after is not None:
            _signal_after(after, signal.SIGINT if interruptible else signal.SIGKILL)
        scene.run(room)
        status = _DONE
        os.write(tell, b"e")
    except KeyboardInterrupt:
        status = _INTERRUPTED
        # A background save continues, and the interpreter would wait for it.
        last = api._background._last
        if last is not None:
            last._wait(None)
    finally:
        os._exit(status)


class _Event(ctypes.Structure):
    """``struct sigevent``, with ``SIGEV_SIGNAL`` (0)."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("number", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


def _signal_after(seconds: float, number: int) -> None:
    """Let the kernel send this process a signal. Python's own timers only send SIGALRM."""
    libc = ctypes.CDLL(None, use_errno=True)
    timer = ctypes.c_void_p()
    event = _Event(None, number, 0, b"")
    assert libc.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0
    whole = int(seconds)
    # ``struct itimerspec``: the interval, then the first time.
    moment = (ctypes.c_long * 4)(0, 0, whole, max(1, int((seconds - whole) * 1e9)))
    assert libc.timer_settime(timer, 0, moment, None) == 0


def strace_works() -> str:
    """Why this tool cannot run here; empty if it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = subprocess.run(
        ["strace", "-f", "-o", os.devnull, "-e", "inject=getppid:retval=1", "true"],
        capture_output=True,
        text=True,
        check=False,
    )
    return "" if probe.returncode == 0 else f"strace does not work here: {probe.stderr.strip()}"


def _traced(scene: Scene, room: Path, trace: Path, inject: str = "") -> int:
    """One save under ``strace``. Returns its exit status. The trace goes to a file."""
    child = Child(scene, room, inline=True)
    options = ["-e", inject] if inject else []
    command = [
        "strace",
        "-fqqo",
        str(trace),
        "-e",
        f"trace={CALLS}",
        *options,
        "-p",
        str(child.pid),
    ]
    said = b""
    for _ in range(3):  # on a busy machine it sometimes fails to attach
        with subprocess.Popen(command, stderr=subprocess.PIPE) as tracer:
            if _is_traced(child.pid):
                child.go()
                status = child.end()
                tracer.wait()
                return status
            tracer.kill()
            said = tracer.stderr.read() if tracer.stderr else b""
    raise TimeoutError(f"strace did not attach: {said!r}")


def _calls(scene: Scene, room: Path, trace: Path) -> Counter[str]:
    """The number of each system call in a save."""
    status = _traced(scene, room, trace)
    assert status == _DONE, f"{scene.name}: a save that nobody killed ended with {status}"
    words = (line.split(maxsplit=1) for line in trace.read_text(errors="replace").splitlines())
    return Counter(rest[0].partition("(")[0] for _, *rest in words if rest and rest[0][0].isalpha())


def _is_traced(pid: int) -> bool:
    """Wait some time for a process to be traced. Returns whether it is."""
    deadline = time.monotonic() + _PATIENCE / 3
    while time.monotonic() < deadline:
        text = Path(f"/proc/{pid}/status").read_text()
        if "TracerPid:\t0\n" not in text:
            return True
        time.sleep(0.0005)
    return False


def _judge(report: Report, scene: Scene, room: Path, where: str, *, recover: bool) -> None:
    """Check what a killed save left, then save over it."""
    try:
        found: str = outcome(scene, room)
        wrong = "" if found in scene.allowed else f"there is {found}"
        if strange := unexpected(scene, room, killed=True):
            wrong = f"strange files {strange}"
        report.outcomes[found] += 1
        if recover:
            scene.run_again(room)
            if outcome(scene, room) != "new":
                wrong = "the next save did not work"
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    if wrong:
        report.wrong += 1
        report.words.append(f"{scene.name}: {where}: {wrong}")


def at_every_call(
    scenes: Sequence[Scene], room: Path, *, dice: random.Random, sample: int | None = None
) -> Report:
    """Kill a save at each of its system calls, in turn.

    Args:
        sample: only this many calls of each kind of save.
    """
    report = Report()
    trace = room.with_name(room.name + "-trace")
    for scene in scenes:
        before = prepared(scene.prepare, room)
        places = [
            (call, number)
            for call, count in sorted(_calls(scene, room, trace).items())
            for number in range(1, count + 1)
        ]
        if sample is not None:
            places = dice.sample(places, min(sample, len(places)))
        for call, number in places:
            lay_out(room, before)
            kill = f"inject={call}:signal=KILL:when={number}"
            status = _traced(scene, room, trace, kill)
            where = f"{call} {number}"
            if status == _DONE:
                # The allocator asks for memory now and then, but not always at the same places.
                report.ended += 1
            elif status == -signal.SIGKILL:
                report.kills += 1
                report.calls[call] += 1
            else:
                report.wrong += 1
                report.words.append(f"{scene.name}: {where}: exit status {status}")
            _judge(report, scene, room, where, recover=True)
    return report


def at_random(
    scenes: Sequence[Scene],
    room: Path,
    *,
    count: int,
    dice: random.Random,
    interrupt: bool = False,
) -> Report:
    """Kill saves at random moments, evenly over their duration; or press Ctrl-C.

    Args:
        count: the number of kills, distributed over the kinds of save.
        interrupt: SIGINT instead of SIGKILL. Then no file may be left behind. Jobs of several ranks
            are left out: it hits the messages between them, and what is left is for ``gc``.
    """
    report = Report()
    scenes = [scene for scene in scenes if not (interrupt and scene.how == "ranks")]
    for number, scene in enumerate(scenes):
        before = prepared(scene.prepare, room)
        duration = _duration(scene, room, before, interrupt=interrupt)
        wanted = len(range(number, count, len(scenes)))
        hit = tries = 0
        while hit < wanted and tries < 10 * wanted:
            tries += 1
            lay_out(room, before)
            moment = dice.random() * duration
            child = Child(scene, room, interruptible=interrupt, after=moment)
            child.go()
            status = child.end()
            where = f"after {moment * 1000:.2f} ms"
            if status == _DONE:
                report.ended += 1
            elif status in ((_INTERRUPTED, -signal.SIGINT) if interrupt else (-signal.SIGKILL,)):
                report.kills += 1
                hit += 1
            else:
                report.wrong += 1
                report.words.append(f"{scene.name}: {where}: exit status {status}")
            if interrupt:
                _judge_interrupted(report, scene, room, before, where)
            _judge(report, scene, room, where, recover=True)
        if hit < wanted:
            report.wrong += 1
            report.words.append(f"{scene.name}: only {hit} of {tries} came before its end")
    return report


def _judge_interrupted(report: Report, scene: Scene, room: Path, before: Files, where: str) -> None:
    left = [name for name in unexpected(scene, room, killed=False) if name not in before]
    if left:
        report.wrong += 1
        report.words.append(f"{scene.name}: {where}: left behind {left}")


def _duration(scene: Scene, room: Path, before: Files, *, interrupt: bool) -> float:
    """Seconds that a save takes, the shortest of five."""
    shortest = _PATIENCE
    for _ in range(5):
        lay_out(room, before)
        child = Child(scene, room, interruptible=interrupt)
        child.go()
        began = time.perf_counter()
        child.hear()
        # Not until its exit: the exit of a large process takes longer than a save.
        shortest = min(shortest, time.perf_counter() - began)
        status = child.end()
        assert status == _DONE, f"{scene.name}: a save that nobody killed ended with {status}"
    return shortest


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Returns 1 if anything is wrong."""
    options = command_line("kills", "every call, 1,000 random moments").parse_args(arguments)
    dice = random.Random(options.seed)
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory(prefix="jsonckpt-kills-", dir=memory_directory()) as scratch:
        room = Path(scratch) / "room"
        reason = strace_works()
        if reason:
            print(f"kills at calls: skipped, {reason}")
        else:
            report = at_every_call(SCENES, room, dice=dice, sample=None if options.full else 3)
            wrong += _print("kills at calls", report, options.seed)
        count = 1000 if options.full else 66
        report = at_random(SCENES, room, count=count, dice=dice)
        wrong += _print("kills at random moments", report, options.seed)
        count = 110 if options.full else 22
        report = at_random(SCENES, room, count=count, dice=dice, interrupt=True)
        wrong += _print("Ctrl-C at random moments", report, options.seed)
    return 1 if wrong else 0


def _print(what: str, report: Report, seed: int) -> int:
    for line in report.words[:20]:
        print(line, file=sys.stderr)
    print(
        f"{what}: {len(SCENES)} kinds of save, {report}, {report.ended} ended before; seed {seed}"
    )
    return report.wrong


if __name__ == "__main__":
    sys.exit(main())
