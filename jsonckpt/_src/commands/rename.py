"""``jsonckpt rename``: other keys, and with them other names of tensors."""

from __future__ import annotations

import argparse
from typing import Any

from ..terminal.console import EXIT_OK, UsageError
from ..terminal.options import (
    Commands,
    add_common,
    add_overwrite,
    interleave,
    limits_of,
    local_path,
    say_report,
)


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "rename",
        help="rename keys: remove module. or _orig_mod., for example",
        usage="jsonckpt rename PATH [OUT] --strip-prefix TEXT [OPTIONS]\n"
        "       jsonckpt rename PATH [OUT] --add-prefix TEXT [OPTIONS]\n"
        "       jsonckpt rename PATH [OUT] PATTERN REPLACEMENT [--regex] [OPTIONS]",
        examples=(
            "jsonckpt rename run.json plain.json --strip-prefix module.",
            "jsonckpt rename run.json _orig_mod. ''",
        ),
        epilog="Without OUT the checkpoint is replaced. Each key that holds tensors is changed by "
        "itself. Text that begins with a minus goes after --.",
    )
    add_common(parser)
    parser.add_argument("arguments", metavar="[OUT] [PATTERN REPLACEMENT]", nargs="*")
    parser.add_argument("--strip-prefix", metavar="TEXT", help="remove this beginning of keys")
    parser.add_argument("--add-prefix", metavar="TEXT", help="add this beginning to keys")
    parser.add_argument("--regex", action="store_true", help="PATTERN is a regular expression")
    parser.add_argument("--at", metavar="NAME", default="", help="only below this place: /model")
    parser.add_argument("--dry-run", action="store_true", help="only print old -> new")
    add_overwrite(parser)
    parser.set_defaults(run=run)
    interleave(parser, "arguments")


def run(args: argparse.Namespace) -> int:
    """Rename and print what was renamed."""
    from ..edit.rename import rename

    out, replace = _split(args)
    result = rename(
        args.path,
        out,
        strip_prefix=args.strip_prefix,
        add_prefix=args.add_prefix,
        replace=replace,
        regex=args.regex,
        at=args.at,
        dry_run=args.dry_run,
        overwrite=args.overwrite,
        limits=limits_of(args),
    )
    say_report(args, result, ok=True)
    return EXIT_OK


def _split(args: argparse.Namespace) -> tuple[str | None, Any]:
    """OUT, and PATTERN with REPLACEMENT."""
    if args.strip_prefix is not None and args.add_prefix is not None:
        raise UsageError("give --strip-prefix or --add-prefix, not both")
    rest, prefix = args.arguments, args.strip_prefix is not None or args.add_prefix is not None
    pattern = None if prefix else tuple(rest[-2:])
    paths = rest if prefix else rest[:-2]
    if len(paths) > 1 or (pattern is not None and len(pattern) != 2):
        raise UsageError("give --strip-prefix, --add-prefix, or PATTERN and REPLACEMENT")
    return (local_path(paths[0]) if paths else None), pattern
