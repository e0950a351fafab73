"""``jsonckpt verify``: read everything and report every problem."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from ..errors import FormatError, JsonckptError, is_refusal
from ..terminal.console import (
    EXIT_FAILURE,
    EXIT_MISMATCH,
    EXIT_OK,
    dump_json,
    in_commands,
    on_terminal,
    say,
)
from ..terminal.options import (
    Commands,
    add_expected_digest,
    add_paths,
    error_json,
    for_each_path,
    limits_of,
    path_or_stdin,
)
from ..terminal.tables import say_wrapped

if TYPE_CHECKING:
    from ..rescue.verify import VerifyReport


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "verify",
        help="read everything and report every problem",
        examples=("jsonckpt verify runs/*", "jsonckpt verify - < best.json"),
        epilog="Exit codes: 0 in order, 1 it could not be checked (nothing there, no checkpoint, "
        "over a limit, of a newer release), 2 wrong usage, 3 the checkpoint is not as it was "
        "saved, 4 the report could not be printed. With several paths, the largest.",
    )
    add_paths(parser, path_or_stdin, "directory, .json or .json.zst; - reads standard input")
    add_expected_digest(parser)
    parser.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    parser.add_argument(
        "--deep",
        action="store_true",
        help="read it in two ways, and rebuild the state",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Verify each path and print the report."""
    from ..rescue.verify import verify

    def one(path: str) -> int:
        report = verify(
            sys.stdin.buffer if path == "-" else path,
            deep=args.deep,
            limits=limits_of(args),
            progress=not args.quiet and not args.json and on_terminal(),
            expected_digest=args.expected_digest,
        )
        if args.json:
            say(dump_json(_summary(report)))
        elif not report.ok or not args.quiet:
            first, *rest = str(report).split("\n")
            say_wrapped(first, rest="  ", style="green" if report.ok else "red")
            for line in rest:
                indent = " " * (len(line) - len(line.lstrip()))
                say_wrapped(in_commands(line.lstrip()), indent, indent + "  ")
        if report.ok:
            return EXIT_OK
        return EXIT_FAILURE if all(map(_says_nothing, report.problems)) else EXIT_MISMATCH

    return for_each_path(args, one)


def _summary(report: VerifyReport) -> dict[str, object]:
    return {
        "ok": report.ok,
        "path": report.path,
        "tensors": report.tensors,
        "bytes": report.nbytes,
        "files": report.files,
        "digest": report.digest,
        "pin": report.pin,
        "problems": [error_json(problem) for problem in report.problems],
        "notes": list(report.notes),
    }


def _says_nothing(problem: JsonckptError) -> bool:
    """Whether a problem is no finding about a checkpoint: it was not read, or is none."""
    return is_refusal(problem) or (isinstance(problem, FormatError) and problem.is_foreign)
