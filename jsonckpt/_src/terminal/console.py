"""How all commands parse arguments, print, and report errors.

Commands print with :func:`say` and :func:`complain`. These escape control characters, so text from
a file cannot control a terminal. They also report when the output fails.
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

from ..errors import ArgumentError, JsonckptError, printable

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
#: The exit code of a command whose report standard output did not take.
EXIT_OUTPUT = 4


class _OutputError(Exception):
    """Standard output failed."""


def show_anything() -> None:
    """Escape characters that the encoding of the terminal lacks, so that every report is whole.

    This also opens the null device in place of closed standard files. Otherwise a checkpoint could
    get descriptor 2, and messages to standard error would go into it.
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


def say_bytes(data: bytes | memoryview) -> None:
    """Write bytes to standard output, as they are.

    Raises:
        _OutputError: standard output failed; :func:`run_command` handles that.
    """
    try:
        if sys.stdout is None:
            raise _OutputError("the output is closed")
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise _OutputError(str(reason)) from error


def complain(text: object, end: str = "\n") -> None:
    """Print to standard error. If that fails, nothing else can report it."""
    try:
        _write(sys.stderr, printable(text, keep="\n") + end, flush=True)
    except _OutputError:
        _discard(sys.stderr)


def on_terminal() -> bool:
    """True if standard error is a terminal, which can show progress."""
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
    """Run a command and flush its report.

    Args:
        parser: parses the arguments.
        arguments: of the command. ``None`` means those of the process.
        run: does the work and returns the exit code.
        failed: reports an error.
        interrupted: the message after a Ctrl-C.

    Returns:
        The exit code. It is :data:`EXIT_OUTPUT` if standard output failed. A message says so,
        unless the reader of a pipe closed it (``| head``).
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
    except ArgumentError as error:
        failed(options, error)
        return EXIT_USAGE
    except (JsonckptError, OSError, MemoryError, RecursionError) as error:
        failed(options, error)
        return EXIT_FAILURE


def message_of(error: BaseException) -> str:
    """The message for an error."""
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
    """Send what a stream still holds to the null device. Python tries to flush it at exit."""
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
    """A parser that prints with :func:`say` and :func:`complain`."""

    def _print_message(self, message: str, file: Any = None) -> None:
        show = complain if file is not None and file is sys.stderr else say
        if message:
            show(message, end="")
