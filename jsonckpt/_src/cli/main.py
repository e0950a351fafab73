"""The command ``jsonckpt``: look at a checkpoint, verify it, rescue it, clean up, convert one.

Only arguments and printing are here; what is done is done elsewhere. Exit codes: 0 in order, 1 a
failure, 2 wrong usage, 3 the data is not what was saved (``verify``), or some of it is lost
(``recover``), 4 it is done, but standard output did not take the report.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ..._version import __version__
from ..errors import JsonckptError, UnsupportedVersionError, printable
from ..format.checksums import check_expected
from ..format.limits import Limits, parse_limits
from ..load.checkpoint import Checkpoint, open_checkpoint
from ..progress import Parser, complain, dump_json, on_terminal, reporting, say, show_anything
from ..rescue.gc import gc, parse_age
from ..rescue.recover import recover
from ..rescue.verify import verify
from ..storage.path_arguments import is_url

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code.

    >>> main(["show", "/no/such/checkpoint"])
    1
    """
    show_anything()
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["convert"]:
        from ..convert.command import main as convert

        return convert(arguments[1:])
    return reporting(lambda: _main(arguments))


def _main(arguments: Sequence[str]) -> int:
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except _UsageError as error:
        parser.print_usage(sys.stderr)
        complain(f"error: {error}")
        return EXIT_USAGE
    except (JsonckptError, OSError) as error:
        if getattr(options, "json", False):
            say(dump_json({"ok": False, **_problem(error)}))
        else:
            complain(f"error: {error}")
        return EXIT_FAILURE
    except KeyboardInterrupt:
        complain("interrupted")
        return 130


def _local(path: str) -> str:
    if is_url(path):
        raise _UsageError(f"{printable(path)} is no local path: copy the checkpoint here first")
    return path


class _UsageError(Exception):
    """Arguments that cannot be."""


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jsonckpt", description="Checkpoints for PyTorch that are plain JSON.")
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="list what is in a checkpoint, without reading tensors")
    show.set_defaults(run=_show)
    check = commands.add_parser(
        "verify",
        help="read everything and report every problem",
        epilog="Exit codes: 0 in order, 3 a problem, 1 nothing there or a newer release's file, "
        "2 wrong usage, 4 the report could not be printed.",
    )
    check.set_defaults(run=_verify)
    rescue = commands.add_parser(
        "recover",
        help="restore every intact tensor of a damaged checkpoint",
        epilog="Exit codes: 0 all restored, 3 something is lost (OUT holds the rest), "
        "1 nothing restored, 2 wrong usage, 4 the report could not be printed.",
    )
    rescue.set_defaults(run=_recover)
    clean = commands.add_parser("gc", help="remove what killed saves left behind")
    clean.set_defaults(run=_gc)
    for command in (show, check, rescue, clean):
        command.add_argument("path", metavar="PATH", help="directory, .json or .json.zst")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument(
            "--limit",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            type=_limit,
            help="change a limit, e.g. tensors=1000000 or chunk_bytes=none; may be repeated",
        )
    for command in (show, check):
        command.add_argument(
            "--expected-digest", metavar="DIGEST", help="refuse any other save: sha256:..."
        )
    check.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    check.add_argument(
        "--deep", action="store_true", help="with both readers, and the state without tensors"
    )
    rescue.add_argument("out", metavar="OUT", help="the new checkpoint; nothing may lie there yet")
    rescue.add_argument(
        "--save-id", metavar="ID", help="which save, where shards of several lie in one directory"
    )
    rescue.add_argument(
        "--trust-state",
        action="store_true",
        help="take what is not a tensor although the seal contradicts it",
    )
    clean.add_argument(
        "--older-than",
        metavar="AGE",
        required=True,
        type=_age,
        help="30m, 24h, 7d: longer than any save that may be in progress",
    )
    clean.add_argument(
        "--abandoned",
        action="store_true",
        help="also what is left of a first save that never finished, and may be restored from",
    )
    clean.add_argument("--dry-run", action="store_true", help="say what would be removed")
    commands.add_parser("convert", help="see python -m jsonckpt.convert --help", add_help=False)
    return parser


def _age(text: str) -> float:
    try:
        return parse_age(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _limit(text: str) -> str:
    try:
        parse_limits([text])
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _limits(options: argparse.Namespace) -> Limits:
    return parse_limits(options.limit)


def _digest(options: argparse.Namespace) -> str | None:
    digest: str | None = options.expected_digest
    try:
        check_expected(digest)
    except ValueError as error:
        raise _UsageError(str(error)) from error
    return digest


def _problem(error: BaseException) -> dict[str, Any]:
    """An error for a program to read."""
    return {
        "error": type(error).__name__,
        "file": getattr(error, "file", None),
        "tensor": getattr(error, "tensor", None),
        "chunk": getattr(error, "chunk", None),
        "message": str(error),
    }


def _show(options: argparse.Namespace) -> int:
    with open_checkpoint(
        options.path, limits=_limits(options), expected_digest=_digest(options)
    ) as checkpoint:
        if options.json:
            say(dump_json(_summary(checkpoint)))
            return EXIT_OK
        manifest = checkpoint.manifest
        totals = manifest.totals()
        created_by = printable(manifest.created_by)
        say(f"{printable(options.path)}: saved {manifest.created_at} by {created_by}")
        say(
            f"{totals['tensors']} tensors, {totals['bytes']:,} bytes; "
            f"{totals['stored_bytes']:,} bytes of text; checksum {manifest.checksum}"
        )
        for key, value in manifest.metadata.items():
            text = json.dumps(value, ensure_ascii=False)
            say(f"metadata {printable(key)}: {printable(text)}")
        names = {name: printable(name) for name in checkpoint}
        width = max(map(len, names.values()), default=0)
        for name, entry in checkpoint.items():
            dtype = str(entry.dtype).removeprefix("torch.")
            say(f"{names[name]:<{min(width, 80)}}  {dtype:<10} {list(entry.shape)}")
    return EXIT_OK


def _summary(checkpoint: Checkpoint) -> dict[str, Any]:
    manifest = checkpoint.manifest
    return {
        "save_id": manifest.save_id,
        "created_at": manifest.created_at,
        "created_by": manifest.created_by,
        "checksum": manifest.checksum,
        "metadata": manifest.metadata,
        "totals": manifest.totals(),
        "tensors": [
            {
                "name": name,
                "dtype": str(entry.dtype).removeprefix("torch."),
                "shape": list(entry.shape),
                "bytes": entry.nbytes,
            }
            for name, entry in checkpoint.items()
        ],
    }


def _verify(options: argparse.Namespace) -> int:
    report = verify(
        options.path,
        deep=options.deep,
        limits=_limits(options),
        progress=not options.quiet and not options.json and on_terminal(),
        expected_digest=_digest(options),
    )
    if options.json:
        summary = {
            "path": report.path,
            "ok": report.ok,
            "tensors": report.tensors,
            "bytes": report.nbytes,
            "files": report.files,
            "problems": [_problem(problem) for problem in report.problems],
            "notes": list(report.notes),
        }
        say(dump_json(summary))
    elif not report.ok or not options.quiet:
        say(report)
    if report.ok:
        return EXIT_OK
    # What this release cannot read is not for that reason other than what was saved.
    unread = all(isinstance(problem, UnsupportedVersionError) for problem in report.problems)
    return EXIT_FAILURE if unread else EXIT_MISMATCH


def _recover(options: argparse.Namespace) -> int:
    report = recover(
        _local(options.path),
        _local(options.out),
        save_id=options.save_id,
        trust_state=options.trust_state,
        limits=_limits(options),
    )
    if options.json:
        summary = dataclasses.asdict(report) | {"ok": report.complete}
        say(dump_json(summary))
    else:
        say(report)
    return EXIT_OK if report.complete else EXIT_MISMATCH


def _gc(options: argparse.Namespace) -> int:
    report = gc(
        _local(options.path),
        older_than=options.older_than,
        dry_run=options.dry_run,
        abandoned=options.abandoned,
        limits=_limits(options),
    )
    if options.json:
        say(dump_json(dataclasses.asdict(report) | {"ok": True}))
    else:
        say(report)
    return EXIT_OK
