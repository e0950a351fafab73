"""What a person sees: tqdm where a bar is asked for, and text on any terminal.

What commands print goes through :func:`say` and :func:`complain`, so that no text from a file does
anything to a terminal, and an output that takes nothing more is told as such.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from .errors import printable

#: The exit code of a command whose report standard output did not take.
EXIT_OUTPUT = 4


class _OutputError(Exception):
    """Standard output takes nothing more."""


def show_anything() -> None:
    """Let commands print names that the terminal's encoding lacks, escaped: it is never an error.

    Else a report would end in the middle, after the work has been done. Where a standard file is
    closed, its number is taken, so that no checkpoint gets it: what writes to number 2 without
    asking would write into that.
    """
    with suppress(OSError):
        while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
            pass
        os.close(number)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: object, end: str = "\n") -> None:
    """Print to standard output. Line feeds are kept: escape them in text from files beforehand.

    Raises:
        _OutputError: it does not take it; :func:`reporting` handles that.
    """
    _write(sys.stdout, printable(text, keep="\n") + end)


def complain(text: object, end: str = "\n") -> None:
    """Print to standard error, if it takes it: there is nowhere else to say that it does not."""
    try:
        _write(sys.stderr, printable(text, keep="\n") + end, flush=True)
    except _OutputError:
        _discard(sys.stderr)


def on_terminal() -> bool:
    """Whether standard error is a terminal, where bars may be shown."""
    return sys.stderr is not None and sys.stderr.isatty()


def dump_json(value: object) -> str:
    """JSON in ASCII, without control characters."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def reporting(run: Callable[[], int]) -> int:
    """Run a command, and make sure that what it says gets out.

    Returns:
        its exit code; :data:`EXIT_OUTPUT` where standard output failed, which is said in one line,
        but not of a pipe whose reader has seen enough (``| head``).
    """
    try:
        code = run()
        if sys.stdout is not None:
            _write(sys.stdout, "", flush=True)
        return code
    except _OutputError as error:
        _discard(sys.stdout)
        if not isinstance(error.__cause__, BrokenPipeError):
            complain(f"error: standard output did not take the report ({error}); all else is done")
        return EXIT_OUTPUT


def _write(stream: IO[str] | None, text: str, *, flush: bool = False) -> None:
    if stream is None:
        raise _OutputError("the output is closed")
    try:
        stream.write(text)
        if flush:
            stream.flush()
    except (OSError, ValueError) as error:  # ValueError: it was closed
        reason = error.strerror if isinstance(error, OSError) else error
        raise _OutputError(str(reason)) from error


def _discard(stream: IO[str] | None) -> None:
    """Let what a stream still holds go nowhere: the interpreter would try again at its end."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class Parser(argparse.ArgumentParser):
    """One that prints as commands do."""

    def _print_message(self, message: str, file: Any = None) -> None:
        show = complain if file is not None and file is sys.stderr else say
        if message:
            show(message, end="")


@contextmanager
def progress_bar(
    label: str, total: int | None, *, show: bool
) -> Iterator[Callable[[int], None] | None]:
    """A function to call with the bytes just done, or ``None`` when nothing is to be shown.

    A terminal that goes away ends the bar, not the work.
    """
    if not show or sys.stderr is None:
        yield None
        return
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        # tqdm would start a thread that looks after bars which stand still, and wait for it
        # without end where it dies of a lack of memory. This one looks at the clock each time.
        monitor_interval = 0

    bar: Any = None
    with suppress(OSError, ValueError):
        bar = Bar(total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000, miniters=1)
    lock = threading.Lock()

    def advance(count: int) -> None:
        # Shards that are written side by side report from threads of their own.
        with lock, suppress(OSError, ValueError):
            if bar is not None:
                bar.update(count)

    try:
        yield advance
    finally:
        with suppress(OSError, ValueError):
            if bar is not None:
                bar.close()
