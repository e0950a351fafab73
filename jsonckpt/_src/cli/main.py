"""The command ``jsonckpt``: reads the arguments and runs one command.

Exit codes, of every command: 0 done, and all is in order. 1 it could not be done: nothing is there,
it is no checkpoint, or damaged (unless finding that out is the task), or something is refused. 2
wrong usage: an option or a name that cannot be. 3 done, but the data is not what was saved
(``verify``, ``convert --test-load``), or some of it is lost (``recover``). 4 done, but the report
could not be printed. 130 interrupted. With several paths, the largest of their codes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..._version import __version__
from ..commands import (
    combine,
    completion,
    convert,
    diff,
    export_reader,
    find,
    gc,
    inspect,
    kaggle_init,
    recover,
    rename,
    values,
    verify,
)
from ..terminal.console import run_command
from ..terminal.options import report_error
from ..terminal.parser import Parser

#: In the order of the help text.
COMMANDS = (
    inspect,
    find,
    diff,
    values,
    rename,
    combine,
    verify,
    convert,
    recover,
    gc,
    kaggle_init,
    export_reader,
    completion,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code.

    >>> main(["inspect", "/no/such/checkpoint"])
    1
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [completion.HIDDEN]:
        from .completion import complete

        return complete(make_parser(), arguments[1:])
    return run_command(make_parser(), arguments, report_error)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="jsonckpt",
        description="Checkpoints for PyTorch that are plain JSON. "
        "jsonckpt COMMAND --help describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
