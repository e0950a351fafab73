"""The command line: ``python -m jsonckpt.convert INPUT --output OUTPUT``.

Exit codes: 0 done; 1 it could not be done; 2 wrong usage; 3 what was read back differs; 4 it is
done, but standard output did not take the report; 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..._version import __version__
from ..errors import JsonckptError, printable, quote
from ..format.limits import parse_limits
from ..progress import Parser, complain, dump_json, reporting, say, show_anything
from .conversion import ConvertOptions, ConvertResult, run
from .progress import human
from .targets import FORMATS, format_of

EXIT_FAILURE, EXIT_USAGE, EXIT_MISMATCH, EXIT_INTERRUPTED, EXIT_TERMINATED = 1, 2, 3, 130, 143
_SHOWN = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Convert as the arguments say.

    Args:
        argv: arguments without the program's name; ``None`` takes the process's.

    Returns:
        The exit code.
    """
    show_anything()
    return reporting(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
        options = _options(parser, arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else EXIT_USAGE
    try:
        with _terminable():
            result = run(arguments.input, arguments.output, options)
    except KeyboardInterrupt:
        complain("interrupted; nothing was left behind")
        return EXIT_INTERRUPTED
    except _TerminatedError:
        complain("terminated; nothing was left behind")
        return EXIT_TERMINATED
    except (JsonckptError, OSError, MemoryError, RecursionError) as error:
        message = _one_line(error)
        if arguments.json:
            say(dump_json({"ok": False, "error": message, "kind": type(error).__name__}))
        complain(f"error: {message}")
        return EXIT_FAILURE
    different = result.comparison is not None and bool(result.comparison.differences)
    if arguments.json:
        say(dump_json(_machine(result, ok=not different)))
    elif not arguments.quiet:
        _report(result)
    if different:
        _report_differences(result)
        return EXIT_MISMATCH
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m jsonckpt.convert",
        description="Convert PyTorch checkpoints to JSON and back. The input's kind is told by its "
        "content: a file of torch.save (also one that a site unpacked into a directory), "
        "safetensors, jsonckpt, or the JSON of another program.",
        epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 what was read back differs, "
        "4 done, but the report could not be printed.",
    )
    parser.add_argument("input", type=Path, help="the checkpoint to convert")
    parser.add_argument(
        "-o", "--output", type=Path, help="where to write (default: the input's name with .json)"
    )
    parser.add_argument(
        "--to", choices=list(FORMATS), help="the output's format (default: by its suffix)"
    )
    parser.add_argument(
        "--test-load", action="store_true", help="read the output back and compare every bit"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--delete-first",
        action="store_true",
        help="with --overwrite: remove the old output before the new one is written, where there "
        "is no room for both; a failure then leaves neither",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what would be written, and write nothing"
    )
    parser.add_argument("--version", action="version", version=f"jsonckpt {__version__}")

    form = parser.add_argument_group("the form of a jsonckpt output")
    form.add_argument("--encoding", choices=["base64", "list"], help="how tensors are written")
    form.add_argument("--compression", choices=["none", "zstd"], help="of the tensors")
    form.add_argument("--max-shard-size", metavar="SIZE", help='such as "5GB"; for directories')

    choice = parser.add_argument_group("what to convert")
    choice.add_argument(
        "--include",
        metavar="NAME",
        action="append",
        default=[],
        help="only these tensors: a name such as /model_state_dict, or a glob; may be repeated",
    )
    choice.add_argument(
        "--exclude", metavar="NAME", action="append", default=[], help="not these; may be repeated"
    )
    choice.add_argument("--no-optimizer", action="store_true", help="leave optimizers out")
    choice.add_argument(
        "--dtype", metavar="DTYPE", help="of the model's floating-point tensors, such as bfloat16"
    )

    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--unsafe-pickle",
        action="store_true",
        help="let a file that needs it run pickle code; only if you trust whoever made it",
    )
    reading.add_argument(
        "--plain-lists",
        action="store_true",
        help="in JSON: outermost lists of numbers are tensors",
    )
    reading.add_argument(
        "--shapes", metavar="FILE", type=Path, help="a JSON object of shapes for flattened lists"
    )
    reading.add_argument(
        "--tie",
        metavar="KEY=KEY",
        action="append",
        default=[],
        help="in JSON: make one tensor of two equal ones; may be repeated",
    )
    reading.add_argument(
        "--limit",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="change a limit on what is read, e.g. tensors=1000000 or expansion=none; may be "
        "repeated",
    )
    reading.add_argument("--spool", metavar="DIR", type=Path, help="where to put temporary files")

    shown = parser.add_argument_group("what is shown")
    shown.add_argument("--json", action="store_true", help="print one JSON object, and only that")
    shown.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def _options(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> ConvertOptions:
    """What the arguments mean together; wrong usage exits."""
    to = arguments.to or (format_of(arguments.output) if arguments.output else "json")
    for name in ("encoding", "compression", "max_shard_size"):
        if getattr(arguments, name) is not None and to not in ("dir", "json", "json.zst"):
            parser.error(f"--{name.replace('_', '-')} does not apply to {to}")
    if arguments.delete_first and to not in ("dir", "json", "json.zst"):
        parser.error(f"--delete-first does not apply to {to}")
    if arguments.delete_first and not arguments.overwrite:
        parser.error("--delete-first needs --overwrite")
    if arguments.encoding == "list" and arguments.compression == "zstd":
        parser.error("--compression zstd needs --encoding base64; .json.zst compresses lists")
    ties = [tuple(pair.split("=", 1)) for pair in arguments.tie]
    if any(len(pair) != 2 or not all(pair) for pair in ties):
        parser.error("--tie takes KEY=KEY")
    try:
        limits = parse_limits(arguments.limit)
    except ValueError as error:
        parser.error(f"--limit: {error}")
    return ConvertOptions(
        to=arguments.to,
        encoding=arguments.encoding,
        compression=None if arguments.compression == "none" else arguments.compression,
        max_shard_size=arguments.max_shard_size,
        include=arguments.include,
        exclude=arguments.exclude,
        optimizer=not arguments.no_optimizer,
        dtype=arguments.dtype,
        overwrite=arguments.overwrite,
        delete_first=arguments.delete_first,
        dry_run=arguments.dry_run,
        test_load=arguments.test_load,
        unsafe_pickle=arguments.unsafe_pickle,
        plain_lists=arguments.plain_lists,
        tie=ties,
        shapes=_shapes(parser, arguments.shapes),
        spool=arguments.spool,
        progress=None if arguments.quiet or arguments.json else sys.stderr,
        limits=limits,
    )


def _shapes(parser: argparse.ArgumentParser, path: Path | None) -> dict[str, list[int]]:
    if path is None:
        return {}
    try:
        shapes: dict[str, list[int]] = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        parser.error(f"--shapes {path}: {_one_line(error)}")
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            parser.error(f"--shapes {path}: {quote(name)} has no list of sizes")
    return shapes


def _report(result: ConvertResult) -> None:
    count, size = len(result.tensors), human(result.tensor_bytes)
    output = printable(result.output)
    say(f"read   {printable(result.input)} ({printable(result.kind)}, {human(result.input_bytes)})")
    if result.dry_run:
        for name, dtype, shape in result.tensors:
            say(f"       {printable(name)}  {dtype} {list(shape)}")
        say(
            f"would write {output} ({result.to}): {count} tensors, {size}, "
            f"about {human(result.output_bytes)} on disk, {result.ratio:.2f}x the input"
        )
    else:
        say(
            f"wrote  {output} ({result.to}, {human(result.output_bytes)}), "
            f"{result.ratio:.2f}x the input: {count} tensors, {size}, in {result.seconds:.1f} s"
        )
    for note in result.notes[:_SHOWN]:
        say(f"note   {printable(note)}")
    if len(result.notes) > _SHOWN:
        say(f"note   and {len(result.notes) - _SHOWN} more like these")
    if result.left_out:
        shown = ", ".join(printable(name) for name in result.left_out[:_SHOWN])
        more = len(result.left_out) - _SHOWN
        tensors = f", {result.tensors_left_out} tensors in all" if result.tensors_left_out else ""
        say(f"left out: {shown}{f' and {more} more' if more > 0 else ''}{tensors}")
    if result.comparison is not None and not result.comparison.differences:
        what = " of what was written" if result.left_out else ""
        say(
            f"test   every bit, dtype, key and type{what} is the same: "
            f"{result.comparison.tensors} tensors, {human(result.comparison.nbytes)}"
        )


def _report_differences(result: ConvertResult) -> None:
    assert result.comparison is not None
    count = len(result.comparison.differences) + result.comparison.more
    complain(f"error: {printable(result.output)}: {count} differences to what was written:")
    for line in result.comparison.differences:
        complain(f"  {printable(line)}")
    if result.comparison.more:
        complain(f"  and {result.comparison.more} more")


def _machine(result: ConvertResult, *, ok: bool) -> dict[str, Any]:
    comparison = result.comparison
    return {
        "ok": ok,
        "input": str(result.input),
        "output": str(result.output),
        "kind": result.kind,
        "to": result.to,
        "dry_run": result.dry_run,
        "input_bytes": result.input_bytes,
        "output_bytes": result.output_bytes,
        "ratio": round(result.ratio, 4),
        "tensors": len(result.tensors),
        "tensor_bytes": result.tensor_bytes,
        "left_out": result.left_out,
        "tensors_left_out": result.tensors_left_out,
        "notes": result.notes,
        "seconds": round(result.seconds, 3),
        "test_load": None
        if comparison is None
        else {
            "same": not comparison.differences,
            "everything": not result.left_out,
            "tensors": comparison.tensors,
            "bytes": comparison.nbytes,
            "differences": comparison.differences,
        },
    }


def _one_line(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, RecursionError):
        return "the state is nested too deeply"
    text = str(error) if isinstance(error, JsonckptError) else quote(str(error), 200)
    return " ".join(text.split("\n"))


class _TerminatedError(BaseException):
    """The process was asked to end; as an exception, so that temporary files go."""


@contextmanager
def _terminable() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TerminatedError

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
