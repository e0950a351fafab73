"""``jsonckpt verify``: read everything and report every problem."""

from __future__ import annotations

import argparse

from ..errors import FormatError, JsonckptError, is_refusal
from ..terminal.console import EXIT_FAILURE, EXIT_MISMATCH, EXIT_OK, dump_json, on_terminal, say
from ..terminal.options import (
    Commands,
    add_common,
    add_expected_digest,
    error_json,
    limits_of,
)


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "verify",
        help="read everything and report every problem",
        epilog="Exit codes: 0 in order, 3 the checkpoint is not as it was saved, 1 it could not be "
        "checked (nothing there, no checkpoint, over a limit, of a newer release), 2 wrong usage, "
        "4 the report could not be printed.",
    )
    add_common(parser)
    add_expected_digest(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read it in two ways, and rebuild the state",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify and print the report."""
    from ..rescue.verify import verify

    report = verify(
        args.path,
        deep=args.deep,
        limits=limits_of(args),
        progress=not args.quiet and not args.json and on_terminal(),
        expected_digest=args.expected_digest,
    )
    if args.json:
        summary = {
            "path": report.path,
            "ok": report.ok,
            "tensors": report.tensors,
            "bytes": report.nbytes,
            "files": report.files,
            "problems": [error_json(problem) for problem in report.problems],
            "notes": list(report.notes),
        }
        say(dump_json(summary))
    elif not report.ok or not args.quiet:
        say(report)
    if report.ok:
        return EXIT_OK
    return EXIT_FAILURE if all(map(_says_nothing, report.problems)) else EXIT_MISMATCH


def _says_nothing(problem: JsonckptError) -> bool:
    """Whether a problem is no finding about a checkpoint: it was not read, or is none."""
    return is_refusal(problem) or (isinstance(problem, FormatError) and problem.is_foreign)
