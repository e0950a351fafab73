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
from ..terminal.parser import CommandGroups, Parser

#: Modules that add commands.
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


class _Groups(CommandGroups):
    """The groups of the help text."""

    groups = {  # noqa: RUF012
        "look": ("inspect", "find", "diff", "get"),
        "change": ("set", "rename", "merge", "split", "average"),
        "check and repair": ("verify", "recover", "gc"),
        "convert and share": ("convert", "kaggle-init", "export-reader"),
        "for the shell and Git": ("completion", "textconv"),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code.

    >>> main(["inspect", "/no/such/checkpoint"])
    1
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == [completion.HIDDEN]:
        from .completion import complete

        return complete(make_parser(), arguments[1:])
    if arguments[:1] == ["help"]:  # git help COMMAND
        arguments = [*arguments[1:2], "--help"]
    return run_command(make_parser(), arguments, report_error)


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = Parser(
        prog="jsonckpt",
        description="Checkpoints for PyTorch that are plain JSON. "
        "jsonckpt COMMAND --help describes a command.",
        formatter_class=_Groups,
    )
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(
        required=True, metavar="COMMAND", title="commands", parser_class=Parser
    )
    for command in COMMANDS:
        command.add_parser(commands)
    return parser
