"""``jsonckpt export-reader``: write the files that read a checkpoint without jsonckpt."""

from __future__ import annotations

import argparse

from ..errors import printable
from ..terminal.console import EXIT_OK, dump_json, say
from ..terminal.options import Commands, local_path


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    words = "write a reader that needs torch only, not jsonckpt"
    parser = commands.add_parser(
        "export-reader",
        help=words,
        description=words[0].upper() + words[1:] + ".",
        examples=("jsonckpt export-reader run/step-0001",),
    )
    where = "the directory; usually that of a checkpoint"
    parser.add_argument("path", metavar="DIR", type=local_path, help=where)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Write the files and print their paths."""
    from ..standalone.export import export_reader

    paths = [str(path) for path in export_reader(args.path)]
    say(
        dump_json({"ok": True, "path": args.path, "files": paths})
        if args.json
        else "\n".join(map(printable, paths))
    )
    return EXIT_OK
