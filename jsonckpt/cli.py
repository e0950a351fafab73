"""The command ``jsonckpt``: look at a checkpoint, verify it, convert one.

Only arguments and printing are here; what is done is done elsewhere. Exit codes: 0 in order, 1 a
failure, 2 wrong usage, 3 the data is not what was saved.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jsonckpt._version import __version__
from jsonckpt.checkpoint import Checkpoint, open_checkpoint
from jsonckpt.errors import JsonckptError
from jsonckpt.inspection import verify
from jsonckpt.limits import Limits

__all__ = ["main"]

EXIT_OK, EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH = 0, 1, 2, 3


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code.

    >>> main(["show", "/no/such/checkpoint"])
    1
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["convert"]:
        from jsonckpt.convert.command import main as convert

        return convert(arguments[1:])
    parser = _parser()
    try:
        options = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    run: Callable[[argparse.Namespace], int] = options.run
    try:
        return run(options)
    except JsonckptError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_FAILURE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has gone (``| head``): nothing more to say, also not at exit.
        sys.stderr.close()
        return EXIT_FAILURE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="jsonckpt", description="Checkpoints for PyTorch that are plain JSON."
    )
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    show = commands.add_parser("show", help="list what is in a checkpoint, without reading tensors")
    show.set_defaults(run=_show)
    check = commands.add_parser("verify", help="read everything and report every problem")
    check.set_defaults(run=_verify)
    for command in (show, check):
        command.add_argument("path", help="directory, .json or .json.zst")
        command.add_argument("--json", action="store_true", help="print one JSON object")
        command.add_argument(
            "--limit",
            action="append",
            default=[],
            metavar="NAME=VALUE",
            type=_limit,
            help="change a limit, e.g. tensors=1000000 or chunk_bytes=none",
        )
    check.add_argument("-q", "--quiet", action="store_true", help="print problems only")
    commands.add_parser("convert", help="see python -m jsonckpt.convert --help", add_help=False)
    return parser


def _limit(text: str) -> tuple[str, int | None]:
    name, _, value = text.partition("=")
    known = [field.name for field in dataclasses.fields(Limits)]
    if name not in known:
        raise argparse.ArgumentTypeError(f"no limit {name!r}; there are {', '.join(known)}")
    if value.lower() == "none":
        return name, None
    if not value.isdecimal():
        raise argparse.ArgumentTypeError(f"{name} must be a number or none, not {value!r}")
    return name, int(value)


def _limits(options: argparse.Namespace) -> Limits:
    return Limits(**dict(options.limit))


def _show(options: argparse.Namespace) -> int:
    with open_checkpoint(options.path, limits=_limits(options)) as checkpoint:
        if options.json:
            print(json.dumps(_summary(checkpoint), ensure_ascii=False))
            return EXIT_OK
        manifest = checkpoint.manifest
        totals = manifest.totals()
        print(f"{options.path}: saved {manifest.created_at} by {manifest.created_by}")
        print(
            f"{totals['tensors']} tensors, {totals['bytes']:,} bytes; "
            f"{totals['stored_bytes']:,} bytes of text; checksum {manifest.checksum}"
        )
        for key, value in manifest.metadata.items():
            print(f"metadata {key}: {json.dumps(value, ensure_ascii=False)}")
        width = max((len(name) for name in checkpoint), default=0)
        for name, entry in checkpoint.items():
            dtype = str(entry.dtype).removeprefix("torch.")
            print(f"{name:<{min(width, 80)}}  {dtype:<10} {list(entry.shape)}")
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
        limits=_limits(options),
        progress=not options.quiet and not options.json and sys.stderr.isatty(),
    )
    if options.json:
        problems = [
            {
                "error": type(problem).__name__,
                "file": problem.file,
                "tensor": problem.tensor,
                "chunk": problem.chunk,
                "message": str(problem),
            }
            for problem in report.problems
        ]
        summary = {
            "path": report.path,
            "ok": report.ok,
            "tensors": report.tensors,
            "bytes": report.nbytes,
            "files": report.files,
            "problems": problems,
        }
        print(json.dumps(summary, ensure_ascii=False))
    elif not report.ok or not options.quiet:
        print(report)
    return EXIT_OK if report.ok else EXIT_MISMATCH
