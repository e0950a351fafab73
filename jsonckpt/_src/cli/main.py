"""The command ``jsonckpt``: reads the arguments and runs one command.

Exit codes, of every command: 0 done, and all is in order. 1 it could not be done: nothing is there,
it is no checkpoint, or damaged (unless finding that out is the task), or something is refused. 2
wrong usage: an option or a name that cannot be. 3 done, but the data is not what was saved
(``verify``, ``convert --test-load``), or some of it is lost (``recover``). 4 done, but the report
could not be printed. 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..._version import __version__
from ..commands import combine, convert, gc, recover, rename, show, values, verify
from ..terminal.console import Parser, complain, dump_json, message_of, run_command, say
from ..terminal.options import error_json

#: In the order of the help text.
COMMANDS = (show, values, rename, combine, verify, recover, gc)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code.

    >>> main(["show", "/no/such/checkpoint"])
    1
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["convert"]:  # it has its own parser
        return convert.main(arguments[1:])
    return run_command(_parser(), arguments, lambda args: int(args.run(args)), _failed)


def _failed(args: argparse.Namespace, error: BaseException) -> None:
    if args.json:
        say(dump_json({"ok": False, **error_json(error)}))
    else:
        complain(f"error: {message_of(error)}")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jsonckpt", description="Checkpoints for PyTorch that are plain JSON.")
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    commands.add_parser(
        "convert", help="convert .pt, .safetensors and other files to JSON and back", add_help=False
    )
    return parser
