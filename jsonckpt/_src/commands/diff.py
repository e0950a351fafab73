"""``jsonckpt diff`` and ``jsonckpt textconv``: what differs between two checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from ..errors import FormatError, printable
from ..terminal.console import EXIT_MISMATCH, EXIT_OK, can_show, dump_json, say, say_bytes
from ..terminal.options import (
    Commands,
    add_limit_option,
    add_selection,
    any_path,
    finite,
    limits_of,
    local_path,
)
from ..terminal.tables import say_wrapped

_STYLES = {"+": "green", "-": "red", "~": "yellow"}


def add_parser(commands: Commands) -> None:
    """Add both commands and their arguments."""
    parser = commands.add_parser(
        "diff",
        help="what differs between two checkpoints",
        description="What differs between two checkpoints: values, tensors, structure. Stored "
        "checksums decide where both have them. Then no tensor is read.",
        examples=("jsonckpt diff run/step-0001 run/step-0002 --stats --include /model",),
        epilog="Exit codes: 0 the same state, 3 it differs, 1 it could not be compared, 2 wrong "
        "usage, 4 the report could not be printed.",
    )
    parser.add_argument("a", metavar="A", type=any_path, help="directory, .json or .json.zst")
    parser.add_argument("b", metavar="B", type=any_path, help="the other one")
    parser.add_argument(
        "--stats", action="store_true", help="how far tensors are apart; reads those that differ"
    )
    add_selection(parser, "places")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing: the exit code")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_limit_option(parser)
    parser.set_defaults(run=run)
    text = commands.add_parser(
        "textconv",
        help="a file of a checkpoint as lines of text, for git diff",
        description="Print a checkpoint, a manifest.json or a shard as lines that Git can compare: "
        "each value, and for each tensor its dtype, shape and checksum. Another file is printed as "
        "it is. Set it up with: git config diff.jsonckpt.textconv 'jsonckpt textconv'",
    )
    text.add_argument("path", metavar="FILE", type=local_path)
    text.set_defaults(run=run_textconv)


def run(args: argparse.Namespace) -> int:
    """Compare, and print the differences."""
    from ..diff.api import diff

    found = diff(
        args.a,
        args.b,
        stats=args.stats,
        include=args.include,
        exclude=args.exclude,
        limits=limits_of(args),
    )
    code = EXIT_MISMATCH if found else EXIT_OK
    if args.json:
        summary: dict[str, Any] = {
            "ok": not found,
            "a": found.a,
            "b": found.b,
            "same_tensors": found.same,
            "read_tensors": found.read,
            "changes": [dataclasses.asdict(change) for change in found.changes],
        }
        say(dump_json(finite(summary)))
    elif not args.quiet:
        text = str(found) if can_show("→") else str(found).replace("→", "->")
        first, *lines = text.split("\n")
        say_wrapped(first, rest="  ", style="bold")
        for line in lines:
            say_wrapped(line, rest="    ", style=_STYLES[line[0]])
    return code


def run_textconv(args: argparse.Namespace) -> int:
    """Print the lines of a file."""
    from ..diff.lines import lines_of

    try:
        for line in lines_of(args.path):
            say(printable(line))
    except FormatError:  # it is no file of ours, as far as one can tell
        with open(args.path, "rb") as file:
            while data := file.read(1 << 20):
                say_bytes(data)
    return EXIT_OK
