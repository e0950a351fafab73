"""``jsonckpt recover``: restore every intact tensor of a damaged checkpoint."""

from __future__ import annotations

import argparse

from ..terminal.console import EXIT_MISMATCH, EXIT_OK
from ..terminal.options import (
    Commands,
    add_common,
    any_path,
    limits_of,
    say_report,
)


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "recover",
        help="restore every intact tensor of a damaged checkpoint",
        examples=("jsonckpt recover run/step-0001 run/restored",),
        epilog="Exit codes: 0 all restored, 1 nothing restored, 2 wrong usage, 3 something is "
        "lost, or what is not a tensor could not be checked (OUT holds the rest), 4 the report "
        "could not be printed.",
    )
    add_common(parser, any_path)
    parser.add_argument(
        "out",
        metavar="OUT",
        type=any_path,
        help="the new checkpoint; nothing may be there yet",
    )
    parser.add_argument(
        "--save-id", metavar="ID", help="which save, if a directory has shards of several"
    )
    parser.add_argument(
        "--trust-state",
        action="store_true",
        help="take what is not a tensor even if the seal does not fit it",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Recover and print the report."""
    from ..rescue.recover import recover

    report = recover(
        args.path,
        args.out,
        save_id=args.save_id,
        trust_state=args.trust_state,
        limits=limits_of(args),
    )
    say_report(args, report, ok=report.complete)
    return EXIT_OK if report.complete else EXIT_MISMATCH
