"""How all commands parse arguments, print, and report errors.

Commands print with :func:`say` and :func:`complain`. These escape control characters, so text from
a file cannot control a terminal. They also report when the output fails. Colours, cut columns and
progress are for a terminal only: a file gets plain, whole lines.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import IO

from ..errors import ArgumentError, JsonckptError, printable

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
#: The exit code of a command whose report standard output did not take.
EXIT_OUTPUT = 4
#: Errors that a command reports in a line. Others are faults of this package.
REPORTED = (JsonckptError, OSError, MemoryError, RecursionError)
#: How messages name what Python and the command line call by different names.
_IN_COMMANDS = (
    (re.compile(r"\b[a-z_]+=[^\s()]+ \((--[a-z-]+)\)"), r"\1"),
    (re.compile(r"(--[a-z-]+(?: /\w+)?) \((?:in Python: )?[a-z_]+=[^()]+\)"), r"\1"),
    (re.compile(r"limits=jsonckpt\.Limits\((\w+)=None\)"), r"--limit \1=none"),
    (re.compile(r"limits=jsonckpt\.Limits\((\w+)=\.\.\.\)"), r"--limit \1=NUMBER"),
    (re.compile(r"\boverwrite=True\b"), "--overwrite"),
    (re.compile(r"(?<![-\w])(include|exclude)(?= '.*selects no)"), r"--\1"),
    (re.compile(r"\bjsonckpt\.find\(directory\)"), "jsonckpt find DIRECTORY"),
)
_STYLES = {"bold": "1", "faint": "2", "red": "31", "green": "32", "yellow": "33"}


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


def say(text: object, end: str = "\n", style: str = "") -> None:
    """Print to standard output. Line feeds are kept: escape them in text from files beforehand.

    Args:
        style: a colour for a terminal, such as ``"green"`` or ``"bold"``.

    Raises:
        _OutputError: standard output failed; :func:`run_command` handles that.
    """
    _write(sys.stdout, _styled(printable(text, keep="\n"), style, sys.stdout) + end)


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


def complain(text: object, end: str = "\n", style: str = "") -> None:
    """Print to standard error. If that fails, nothing else can report it."""
    try:
        _write(sys.stderr, _styled(printable(text, keep="\n"), style, sys.stderr) + end, flush=True)
    except _OutputError:
        _discard(sys.stderr)


def complain_of(error: BaseException) -> None:
    """Print an error to standard error."""
    complain_with("error: ", "red", message_of(error))


def complain_with(label: str, style: str, message: str) -> None:
    """Print a message with a coloured label. On a terminal its lines end between words."""
    complain(label, end="", style=style)
    width = shutil.get_terminal_size().columns if is_terminal(sys.stderr) else None
    first, *rest = wrapped(printable(message, keep="\n"), width, " " * len(label), "  ")
    complain("\n".join([first[len(label) :], *rest]))


def wrapped(text: str, width: int | None, first: str = "", rest: str = "") -> list[str]:
    """Lines that end between words. A longer word is not cut, so that it can be copied.

    Args:
        width: columns; ``None`` for no limit.
        first, rest: what the first line and the others begin with.

    >>> wrapped("the digest is new", 12, "a: ", "   ")
    ['a: the', '   digest is', '   new']
    """
    if width is None:
        return (first + text).split("\n")
    wrapper = textwrap.TextWrapper(
        max(width, len(rest) + 8),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        drop_whitespace=True,
    )
    one, *others = text.split("\n")
    lines = wrapper.wrap(one) or [first]
    wrapper.initial_indent = ""
    return lines + [line for other in others for line in wrapper.wrap(other) or [""]]


def _styled(text: str, style: str, stream: IO[str] | None) -> str:
    if not style or not text or not has_colours(stream):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def has_colours(stream: IO[str] | None) -> bool:
    """Whether a stream gets colours: a terminal that has some, unless the environment decides.

    ``NO_COLOR`` turns them off, ``CLICOLOR_FORCE`` on; ``TERM=dumb`` is a terminal without them.
    """
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("CLICOLOR_FORCE", "0") not in {"", "0"}:
        return True
    return is_terminal(stream) and os.environ.get("TERM") != "dumb"


def is_terminal(stream: IO[str] | None) -> bool:
    """Whether a stream is a terminal."""
    try:
        return stream is not None and stream.isatty()
    except ValueError:  # it was closed
        return False


def columns() -> int | None:
    """The columns of the terminal that standard output is; ``None`` if it is a file or a pipe."""
    return shutil.get_terminal_size().columns if is_terminal(sys.stdout) else None


def can_show(text: str) -> bool:
    """Whether the encoding of standard output has these characters."""
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def on_terminal() -> bool:
    """True if standard error is a terminal, which can show progress."""
    return is_terminal(sys.stderr)


def dump_json(value: object) -> str:
    """JSON in ASCII, without control characters."""
    return json.dumps(value).replace("\x7f", "\\u007f")


def run_command(
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
    failed: Callable[[argparse.Namespace, BaseException], None],
) -> int:
    """Run a command and flush its report.

    Args:
        parser: parses the arguments. They hold ``run``, which does the work and returns the exit
            code; perhaps ``failed``, which reports an error in place of the argument; perhaps
            ``interrupted``, the message after a Ctrl-C.
        arguments: of the command. ``None`` means those of the process.
        failed: reports an error.

    Returns:
        The exit code. It is :data:`EXIT_OUTPUT` if standard output failed. A message says so,
        unless the reader of a pipe closed it (``| head``).
    """
    show_anything()
    try:
        code = _run(parser, arguments, failed)
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
    failed: Callable[[argparse.Namespace, BaseException], None],
) -> int:
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    failed = getattr(options, "failed", failed)
    try:
        code: int = options.run(options)
        return code
    except UsageError as error:
        chosen = getattr(options, "parser", parser)
        chosen.print_usage(sys.stderr)
        complain(f"{chosen.prog}: error: {error}")
        return EXIT_USAGE
    except KeyboardInterrupt:
        complain(getattr(options, "interrupted", "interrupted"))
        return EXIT_INTERRUPTED
    except REPORTED as error:
        failed(options, error)
        return code_of(error)


def code_of(error: BaseException) -> int:
    """The exit code of an error."""
    return EXIT_USAGE if isinstance(error, ArgumentError) else EXIT_FAILURE


def message_of(error: BaseException) -> str:
    """The message for an error."""
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "the state is nested too deeply"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{os.fsdecode(error.filename)}: {error.strerror[:1].lower()}{error.strerror[1:]}"
    return in_commands(str(error))


def in_commands(message: str) -> str:
    """A message that names the options of commands in place of the arguments in Python.

    >>> in_commands("Pass overwrite=True (--overwrite), or limits=jsonckpt.Limits(links=None).")
    'Pass --overwrite, or --limit links=none.'
    >>> in_commands("To add it, pass --create (create=True).")
    'To add it, pass --create.'
    """
    for pattern, words in _IN_COMMANDS:
        message = pattern.sub(words, message)
    return message


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
