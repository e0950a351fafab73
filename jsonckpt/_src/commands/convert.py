"""``jsonckpt convert`` and ``python -m jsonckpt.convert``: convert checkpoints.

Exit codes: 0 done; 1 failed; 2 wrong usage; 3 what was read back differs; 4 done, but the report
could not be printed; 130 interrupted; 143 terminated.

``--json`` prints one object. After an error it is that of all commands, but ``error`` is the text
on one line: ``{"ok": false, "error": text, "kind": class, "path": …, "message": …}``, where
``kind`` is the name of the error's class. Otherwise:

``ok``                 false if what was read back differs
``input``, ``output``  the paths
``kind``               the kind of the input, in words
``to``                 the format of the output
``dry_run``            true if nothing was written; then ``output_bytes`` is an estimate
``input_bytes``, ``output_bytes``, ``ratio``  sizes on disk, and the second divided by the first
``tensors``, ``tensor_bytes``  tensors that are in the output, tied ones once, and their raw bytes
``left_out``           names of values, tensors and whole optimizers that are not in the output
``tensors_left_out``   the number of tensors among them that were not asked for
``tensors_changed``    the number of tensors that ``--dtype`` changed
``notes``              what was repaired, assumed, changed or not kept: lines of text
``pin``                for ``expected_digest=``, with ``--checksum sha256`` or ``blake3``; else null
``reader_files``       with ``--with-reader``: the paths of the files of the reader
``seconds``            the time it took
``test_load``          null without ``--test-load``; else an object of
    ``same``           true if nothing differs
    ``everything``     true if also nothing was left out, changed, or not compared
    ``compared``       what was compared: "bit", "dtype", …
    ``not_compared``   what was not, lines of text
    ``tensors``, ``bytes``  how much was compared
    ``differences``    the first 20 differences, lines of text

``docs/guides/converting.md`` describes the same object for users.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ..convert.options import FORMATS, OWN_FORMATS, ConvertOptions, format_of
from ..errors import JsonckptError, counted, printable, quote
from ..format.checksums import ALGORITHMS
from ..progress import human
from ..terminal.console import (
    EXIT_MISMATCH,
    EXIT_OK,
    UsageError,
    complain,
    complain_with,
    dump_json,
    message_of,
    run_command,
    say,
)
from ..terminal.options import (
    Commands,
    add_limit_option,
    add_selection,
    error_json,
    file_or_url,
    file_path,
    limits_of,
)
from ..terminal.parser import Parser

if TYPE_CHECKING:
    from ..convert.api import ConvertResult

EXIT_TERMINATED = 143
_SHOWN = 10
#: Options that only the formats of this package have.
_OWN_OPTIONS = (
    *("encoding", "compression", "max_shard_size", "checksum", "save_id", "delete_first"),
    "with_reader",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a conversion and return the exit code.

    Args:
        argv: the arguments without the name of the program. ``None`` means those of the process.
    """
    return run_command(
        _filled(Parser(prog="python -m jsonckpt.convert", **_texts())), argv, _failed
    )


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    _filled(
        commands.add_parser(
            "convert", help="convert .pt, .safetensors and other files to JSON and back", **_texts()
        )
    )


def run(arguments: argparse.Namespace) -> int:
    """Convert and print the report."""
    options = _options(arguments)
    from ..convert.api import run as convert

    try:
        with _terminable():
            result = convert(arguments.input, arguments.output, options)
    except _TerminatedError:
        complain("terminated; nothing was left behind")
        return EXIT_TERMINATED
    different = result.comparison is not None and bool(result.comparison.differences)
    if arguments.json:
        say(dump_json(_machine(result, ok=not different)))
    elif not arguments.quiet:
        _report(result)
    if different:
        _report_differences(result)
        return EXIT_MISMATCH
    return EXIT_OK


def _failed(arguments: argparse.Namespace, error: BaseException) -> None:
    message = _one_line(error)
    if arguments.json:
        common = {"path": str(arguments.input), **error_json(error)}
        say(dump_json({"ok": False, **common, "error": message}))
    complain_with("error: ", "red", message)


def _texts() -> dict[str, Any]:
    return {
        "usage": "%(prog)s INPUT [-o OUTPUT] [options]",
        "description": "Convert PyTorch checkpoints to JSON and back. The content of the input "
        "says what it is: a file of torch.save (also one that a site unpacked into a directory), "
        "safetensors, NumPy, TensorFlow.js, jsonckpt, or the JSON of another program.",
        "epilog": "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 what was read back differs, "
        "4 done, but the report could not be printed. docs/guides/converting.md has examples, and "
        "describes the object that --json prints.",
    }


def _filled(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """The parser with the arguments of a conversion."""
    stopped = "interrupted; nothing was left behind"
    parser.set_defaults(run=run, failed=_failed, interrupted=stopped)
    option = parser.add_argument
    option("input", metavar="INPUT", type=file_or_url, help="the checkpoint to convert")
    option("--version", action="version", version=f"jsonckpt {__version__}")
    _add_output(parser.add_argument_group("output"))

    own = parser.add_argument_group("how a jsonckpt output is written")
    option = own.add_argument
    option("--encoding", choices=["base64", "list"], help="base64 (the default) or number lists")
    option("--compression", choices=["none", "zstd"], help="of the tensors (default: none)")
    option("--max-shard-size", metavar="SIZE", help='such as "5GB"; for directories')
    web = "a directory that every JSON tool opens: files up to 16 MB, without compression"
    _flag(own, "--for-web", web)
    strong = "of every byte; sha256 and blake3 give a digest to pin (default: xxh3_128)"
    option("--checksum", choices=[*ALGORITHMS], help=strong)
    same = "content: the same input gives the same bytes, for git and sha256sum"
    option("--save-id", choices=["content"], help=same)

    choice = parser.add_argument_group("what to convert")
    add_selection(choice, "tensors")
    _flag(choice, "--no-optimizer", "leave optimizers out")
    floats = "convert the floating-point tensors of models to it; such as bfloat16"
    choice.add_argument("--dtype", metavar="DTYPE", help=floats)
    instead = "with --dtype: convert these tensors instead; may be repeated"
    _repeated(choice, "--dtype-of", "NAME", instead)
    _add_pickles(parser.add_argument_group("pickles (.pt, .pth, .bin, .ckpt, .pkl)"))
    _add_reading(parser.add_argument_group("JSON of other programs"))

    shown = parser.add_argument_group("limits and reports")
    add_limit_option(shown)
    room = "where to put temporary files (default: beside the output)"
    shown.add_argument("--spool", metavar="DIR", type=file_path, help=room)
    _flag(shown, "--json", "print one JSON object, and only that")
    shown.add_argument("-q", "--quiet", action="store_true", help="print errors only")
    return parser


def _add_output(output: argparse._ArgumentGroup) -> None:
    option = output.add_argument
    option(
        "-o", "--output", type=file_or_url, help="where to write (default: the input's name.json)"
    )
    option("--to", choices=list(FORMATS), help="the format (default: by the output's suffix)")
    _flag(output, "--test-load", "read the output back and compare every value")
    _flag(output, "--overwrite", "replace an output that exists")
    room = "with --overwrite: remove the old output first; a failure then leaves neither"
    _flag(output, "--delete-first", room)
    reader = "also write jsonckpt_reader.py and checkpoint_to_json.py, which need no jsonckpt"
    _flag(output, "--with-reader", reader)
    _flag(output, "--dry-run", "say what would be written, and write nothing")


def _add_pickles(pickles: argparse._ArgumentGroup) -> None:
    taken = "take the state dicts of pickled modules and optimizers; their code is not run"
    _flag(pickles, "--state-dict", taken)
    trust = "run the code of a file that needs it; only if you trust whoever made it"
    _flag(pickles, "--unsafe-pickle", trust)
    strings = "encoding of the strings of Python 2, or bytes (default: utf-8)"
    pickles.add_argument("--pickle-encoding", metavar="NAME", default="utf-8", help=strings)


def _add_reading(reading: argparse._ArgumentGroup) -> None:
    _flag(reading, "--plain-lists", "in JSON: outermost lists of numbers are tensors")
    lists = "in JSON: these lists are tensors: a name such as /head/w, or a glob; may be repeated"
    _repeated(reading, "--tensors", "NAME", lists)
    shapes = "a JSON object of shapes for flattened lists"
    reading.add_argument("--shapes", metavar="FILE", type=file_path, help=shapes)
    ties = "in JSON: make one tensor of two equal ones; may be repeated"
    _repeated(reading, "--tie", "KEY=KEY", ties)


_Group = argparse.ArgumentParser | argparse._ArgumentGroup


def _flag(group: _Group, name: str, help: str) -> None:
    group.add_argument(name, action="store_true", help=help)


def _repeated(group: _Group, name: str, metavar: str, help: str) -> None:
    group.add_argument(name, metavar=metavar, action="append", default=[], help=help)


def _options(arguments: argparse.Namespace) -> ConvertOptions:
    """The options for the arguments.

    Raises:
        UsageError: the arguments do not fit together.
    """
    default = "dir" if arguments.for_web else "json"
    to = arguments.to or (format_of(Path(arguments.output)) if arguments.output else default)
    for name in _OWN_OPTIONS:
        if getattr(arguments, name) not in (None, False) and to not in OWN_FORMATS:
            raise UsageError(f"--{name.replace('_', '-')} does not apply to {to}")
    if arguments.dtype_of and arguments.dtype is None:
        raise UsageError("--dtype-of needs --dtype")
    if arguments.max_shard_size is not None and to != "dir":
        raise UsageError(f"--max-shard-size does not apply to {to}: name a directory")
    if arguments.for_web:
        _check_web(arguments, to)
    if arguments.delete_first and not arguments.overwrite:
        raise UsageError("--delete-first needs --overwrite")
    if arguments.encoding == "list" and arguments.compression == "zstd":
        raise UsageError("--compression zstd needs --encoding base64; .json.zst compresses lists")
    ties = [tuple(pair.split("=", 1)) for pair in arguments.tie]
    if any(len(pair) != 2 or not all(pair) for pair in ties):
        raise UsageError("--tie takes KEY=KEY")
    names = [field.name for field in fields(ConvertOptions) if field.name in arguments]
    chosen = {name: getattr(arguments, name) for name in names}
    chosen |= {
        "compression": None if arguments.compression == "none" else arguments.compression,
        "include": arguments.include or (),
        "exclude": arguments.exclude or (),
        "optimizer": not arguments.no_optimizer,
        "tie": ties,
        "shapes": _shapes(arguments.shapes),
        "progress": None if arguments.quiet or arguments.json else sys.stderr,
        "limits": limits_of(arguments),
    }
    return ConvertOptions(**chosen)


def _check_web(arguments: argparse.Namespace, to: str) -> None:
    if to != "dir":
        raise UsageError(f"--for-web writes a directory, not {to}")
    for name in ("compression", "max_shard_size"):
        if getattr(arguments, name) not in (None, "none"):
            raise UsageError(f"--for-web sets --{name.replace('_', '-')} itself")


def _shapes(path: Path | None) -> dict[str, list[int]]:
    if path is None:
        return {}
    try:
        shapes: dict[str, list[int]] = dict(json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UsageError(f"--shapes {path}: {_one_line(error)}") from error
    for name, shape in shapes.items():
        if not isinstance(shape, list) or not all(type(size) is int for size in shape):
            raise UsageError(f"--shapes {path}: {quote(name)} has no list of sizes")
    return shapes


def _report(result: ConvertResult) -> None:
    count, size = counted(len(result.tensors), "tensor"), human(result.tensor_bytes)
    output = printable(result.output)
    say(f"read   {printable(result.input)} ({printable(result.kind)}, {human(result.input_bytes)})")
    if result.dry_run:
        for name, dtype, shape in result.tensors:
            say(f"       {printable(name)}  {dtype} {list(shape)}")
        say(
            f"would write {output} ({result.to}): {count}, {size}, "
            f"about {human(result.output_bytes)} on disk, {result.ratio:.2f}x the input"
        )
    else:
        say(
            f"wrote  {output} ({result.to}, {human(result.output_bytes)}), "
            f"{result.ratio:.2f}x the input: {count}, {size}, in {result.seconds:.1f} s"
        )
    if result.reader_files:
        say(f"reader {', '.join(map(printable, result.reader_files))}")
    for note in result.notes[:_SHOWN]:
        say(f"note   {printable(note)}")
    if len(result.notes) > _SHOWN:
        say(f"note   and {len(result.notes) - _SHOWN} more like these")
    if result.left_out:
        shown = ", ".join(printable(name) for name in result.left_out[:_SHOWN])
        more = len(result.left_out) - _SHOWN
        left_out = result.tensors_left_out
        tensors = f", {counted(left_out, 'tensor')} in all" if left_out else ""
        say(f"left out: {shown}{f' and {more} more' if more > 0 else ''}{tensors}")
    if result.pin is not None:
        say(f"digest {result.pin}")
    if result.comparison is not None and not result.comparison.differences:
        *first, last = result.compared
        rest = "; ".join(map(printable, result.not_compared))
        say(
            f"test   {counted(result.comparison.tensors, 'tensor')}, "
            f"{human(result.comparison.nbytes)}: every "
            f"{', '.join(first)} and {last} is the same{f'; not compared: {rest}' if rest else ''}"
        )


def _report_differences(result: ConvertResult) -> None:
    assert result.comparison is not None
    count = counted(len(result.comparison.differences) + result.comparison.more, "difference")
    complain(f"error: {printable(result.output)}: {count} to what was written:")
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
        "tensors_changed": result.changed,
        "notes": result.notes,
        "pin": result.pin,
        "reader_files": result.reader_files,
        "seconds": round(result.seconds, 3),
        "test_load": None
        if comparison is None
        else {
            "same": not comparison.differences,
            "everything": not result.not_compared,
            "compared": list(result.compared),
            "not_compared": result.not_compared,
            "tensors": comparison.tensors,
            "bytes": comparison.nbytes,
            "differences": comparison.differences,
        },
    }


def _one_line(error: BaseException) -> str:
    text = message_of(error)
    if not isinstance(error, JsonckptError | MemoryError | RecursionError):
        text = quote(text, 200)
    return " ".join(line.strip() for line in text.split("\n"))


class _TerminatedError(BaseException):
    """The process got SIGTERM. The exception lets ``with`` blocks remove temporary files."""


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
