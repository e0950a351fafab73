"""The command ``jsonckpt``: reads the arguments and runs one command.

Exit codes: 0 in order; 1 a failure; 2 wrong usage; 3 the data is not what was saved (``verify``),
or some of it is lost (``recover``); 4 done, but the report could not be printed; 130 interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ..._version import __version__
from ..errors import JsonckptError
from ..progress import Parser, complain, dump_json, reporting, say, show_anything
from . import gc, recover, show, verify
from .options import EXIT_FAILURE, EXIT_INTERRUPTED, error_json

#: In the order of the help text.
COMMANDS = (show, verify, recover, gc)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code.

    >>> main(["show", "/no/such/checkpoint"])
    1
    """
    show_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["convert"]:  # it has a parser of its own
        from ..convert.command import main as convert

        return convert(arguments[1:])
    return reporting(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    try:
        args = _parser().parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        code: int = args.run(args)
        return code
    except (JsonckptError, OSError) as error:
        if args.json:
            say(dump_json({"ok": False, **error_json(error)}))
        else:
            complain(f"error: {error}")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        complain("interrupted")
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jsonckpt", description="Checkpoints for PyTorch that are plain JSON.")
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    commands.add_parser("convert", help="see python -m jsonckpt.convert --help", add_help=False)
    return parser
