"""``jsonckpt gc``: remove what killed saves left behind."""

from __future__ import annotations

import argparse

from ..terminal.console import EXIT_OK
from ..terminal.options import (
    Commands,
    add_paths,
    any_path,
    argument,
    for_each_path,
    limits_of,
    say_report,
)


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "gc",
        help="remove what killed saves left behind",
        examples=("jsonckpt gc run/* --dry-run",),
    )
    add_paths(parser, any_path)
    parser.add_argument(
        "--older-than",
        metavar="AGE",
        default="24h",
        type=argument(_age),
        help="for example 30m, 24h or 7d; longer than any save takes (default: 24h)",
    )
    parser.add_argument(
        "--abandoned",
        action="store_true",
        help="also the files of a first save that never finished; recover may restore them",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be removed")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Remove the leftovers and print the report."""
    from ..rescue.gc import gc

    def one(path: str) -> int:
        report = gc(
            path,
            older_than=args.older_than,
            dry_run=args.dry_run,
            abandoned=args.abandoned,
            limits=limits_of(args),
        )
        say_report(args, report, ok=True)
        return EXIT_OK

    return for_each_path(args, one)


def _age(text: str) -> float:
    from ..rescue.gc import parse_age

    return parse_age(text)
