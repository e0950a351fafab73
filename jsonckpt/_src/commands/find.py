"""``jsonckpt find``: list the checkpoints below a directory, the newest whole one first."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import counted, printable
from ..progress import human
from ..terminal.console import EXIT_FAILURE, EXIT_OK, complain, dump_json, say
from ..terminal.options import Commands, add_limit_option, any_path, limits_of
from ..terminal.tables import table

if TYPE_CHECKING:
    from ..find.look import FoundCheckpoint


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "find",
        help="list the checkpoints below a directory, the newest whole one first",
        description="List all checkpoints below directories, at any depth, the newest whole one "
        "first. Torn ones are named. Files that convert reads come last. No payload is read.",
        examples=(
            "jsonckpt find /kaggle/input",
            'jsonckpt inspect "$(jsonckpt find runs --newest)"',
        ),
        epilog="Exit codes: 0 at least one whole checkpoint was found, 1 none was found or a "
        "directory is not there, 2 wrong usage, 4 the report could not be printed.",
    )
    parser.add_argument("paths", metavar="PATH", nargs="*", type=any_path, default=["."])
    parser.add_argument("--newest", action="store_true", help="print only the path of the newest")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_limit_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Search and print what was found."""
    from ..find.api import FoundCheckpoints, find, ordered

    searched = [find(path, limits=limits_of(args)) for path in args.paths]
    found = FoundCheckpoints(
        ", ".join(args.paths),
        ordered(one for each in searched for one in each),
        tuple(sentence for each in searched for sentence in each.unread),
    )
    newest = found.newest
    if args.json:
        report: dict[str, Any] = {
            "ok": newest is not None,
            "paths": args.paths,
            "newest": None if newest is None else str(newest.path),
            "checkpoints": [_facts(one) for one in found.valid],
            "torn": [_facts(one) for one in found.torn],
            "convertible": [_facts(one) for one in found.convertible],
            "unread": list(found.unread),
        }
        say(dump_json(report))
    elif args.newest:
        if newest is None:
            complain(f"error: no whole checkpoint below {found.root}")
        else:
            say(newest.path)
    else:
        _print(found)
    return EXIT_FAILURE if newest is None else EXIT_OK


def _facts(one: FoundCheckpoint) -> dict[str, Any]:
    return {
        "path": str(one.path),
        "kind": one.kind,
        "valid": one.valid,
        "problem": one.problem,
        "step": one.step,
        "epoch": one.epoch,
        "saved_at": None if one.saved_at is None else f"{one.saved_at:%Y-%m-%dT%H:%M:%SZ}",
        "bytes": one.bytes,
    }


def _print(found: Any) -> None:
    if found.valid:
        _print_table(found.valid)
    else:
        say(f"no checkpoint below {printable(found.root)}")
    if found.torn:
        say(f"\n{counted(len(found.torn), 'checkpoint')} passed over:")
        for one in found.torn:
            say(f"  {printable(one.path)}: {printable(one.problem)}")
    if found.convertible:
        say("\nconvertible (jsonckpt convert PATH -o NEW.json):")
        for one in found.convertible:
            say(f"  {printable(one.path)}  {one.kind}, {human(one.bytes)}")
    for sentence in found.unread:
        complain(f"not searched: {printable(sentence)}")


def _print_table(found: Iterable[FoundCheckpoint]) -> None:
    rows: list[Sequence[str]] = [("step", "epoch", "saved (UTC)", "size", "path")]
    for one in found:
        step, epoch = ("-" if number is None else str(number) for number in (one.step, one.epoch))
        saved = "-" if one.saved_at is None else f"{one.saved_at:%Y-%m-%d %H:%M:%S}"
        rows.append((step, epoch, saved, human(one.bytes), printable(one.path)))
    table(rows, ">>>><", cut=4, optional=(2, 1))
