"""What all commands share: how they parse, print and report errors.

What commands print goes through :func:`say` and :func:`complain`. So no text from a file does
anything to a terminal, and an output that takes nothing more is reported.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO, Any

from ..errors import JsonckptError, printable

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
#: The exit code of a command whose report standard output did not take.
EXIT_OUTPUT = 4


class _OutputError(Exception):
    """Standard output takes nothing more."""


def show_anything() -> None:
    """Make commands print what the terminal's encoding lacks in escaped form.

    Otherwise a report would end in the middle, after the work is done. The number of a closed
    standard file is taken, so that no checkpoint gets it: whatever writes to number 2 without
    asking would write into the checkpoint.
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
        _OutputError: standard output failed; :func:`run_command` handles that.
    """
    _write(sys.stdout, printable(text, keep="\n") + end)


def complain(text: object, end: str = "\n") -> None:
    """Print to standard error. If that fails, there is nowhere left to say so."""
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


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    failed: Callable[[argparse.Namespace, BaseException], None],
    interrupted: str = "interrupted",
) -> int:
    """Run a command, and make sure that its report gets out.

    Args:
        parser: reads ``arguments``; ``None`` stands for the process's own.
        run: does the work and returns the exit code.
        failed: reports an error of it.
        interrupted: what to say after a Ctrl-C.

    Returns:
        The exit code. It is :data:`EXIT_OUTPUT` where standard output failed. That is said in one
        line, unless a pipe's reader has seen enough (``| head``).
    """
    show_anything()
    try:
        code = _run(parser, arguments, run, failed, interrupted)
        if sys.stdout is not None:
            _write(sys.stdout, "", flush=True)
        return code
    except _OutputError as error:
        _discard(sys.stdout)
        if not isinstance(error.__cause__, BrokenPipeError):
            complain(f"error: standard output did not take the report ({error}); all else is done")
        return EXIT_OUTPUT


def _run(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    run: Callable[[argparse.Namespace], int],
    failed: Callable[[argparse.Namespace, BaseException], None],
    interrupted: str,
) -> int:
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        return run(options)
    except UsageError as error:
        parser.print_usage(sys.stderr)
        complain(f"error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        complain(interrupted)
        return EXIT_INTERRUPTED
    except (JsonckptError, OSError, MemoryError, RecursionError) as error:
        failed(options, error)
        return EXIT_FAILURE


def message_of(error: BaseException) -> str:
    """What is wrong."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "the state is nested too deeply"
    return str(error)


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
    """Send what a stream still holds to nowhere. The interpreter would try again at its end."""
    if stream is None:
        return
    with suppress(OSError, ValueError):
        number = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)


class UsageError(Exception):
    """Arguments that do not fit together."""


class Parser(argparse.ArgumentParser):
    """A parser that prints as commands do."""

    def _print_message(self, message: str, file: Any = None) -> None:
        show = complain if file is not None and file is sys.stderr else say
        if message:
            show(message, end="")
