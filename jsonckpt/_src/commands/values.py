"""``jsonckpt get`` and ``jsonckpt set``: read and change single values of a checkpoint."""

from __future__ import annotations

import argparse
import json
import re
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, printable, quote
from ..progress import human
from ..terminal.console import EXIT_OK, UsageError, dump_json, say, say_bytes
from ..terminal.options import (
    Commands,
    add_common,
    argument,
    interleave,
    limits_of,
    local_path,
    say_report,
)

if TYPE_CHECKING:
    from ..edit.get_value import TensorReading
    from ..edit.records import Opened

_ROWS = re.compile(r"(-?[0-9]+)?:(-?[0-9]+)?", re.ASCII)
#: What is a value although it begins with a minus: -1e-4, -Infinity, -5:.
_NEGATIVE = re.compile(r"-(\.?[0-9].*|Infinity|inf)$")


@argument
def _rows(text: str) -> slice:
    match = _ROWS.fullmatch(text)
    if match is None or len(text) > 40:
        raise ArgumentError(f"{quote(text)} is not FIRST:LAST, such as 0:10")
    return slice(*(None if bound is None else int(bound) for bound in match.groups()))


def add_parser(commands: Commands) -> None:
    """Add the two commands and their arguments."""
    _add_get(commands)
    _add_set(commands)


def _add_get(commands: Commands) -> None:
    parser = commands.add_parser(
        "get",
        help="print a value, or write a tensor to a .npy file",
        examples=(
            "jsonckpt get run.json /optimizer/param_groups/0/lr",
            "jsonckpt get run.json /model/0.weight -o weight.npy",
        ),
        epilog="Without -o, values are printed as JSON, and so are tensors of up to 1,000 numbers. "
        "-o - writes a tensor to standard output as .npy bytes.",
    )
    parser._negative_number_matcher = _NEGATIVE
    add_common(parser)
    parser.add_argument(
        "name", metavar="NAME", help="the place: /optimizer/state/0/step; / is the whole state"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="a new file that ends in .npy, .json or .txt; - is standard output",
    )
    parser.add_argument(
        "--rows", metavar="FIRST:LAST", type=_rows, help="only these rows of a tensor"
    )
    parser.add_argument(
        "--as",
        dest="as_dtype",
        choices=("float32", "float64", "bits"),
        help="for dtypes that NumPy lacks: floats with the same values, or the bytes as integers",
    )
    parser.add_argument("--raw", action="store_true", help="the JSON as it is stored, with tags")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    parser.set_defaults(run=run_get)


def _add_set(commands: Commands) -> None:
    parser = commands.add_parser(
        "set",
        help="change plain values, and leave the tensors as they are",
        examples=(
            "jsonckpt set run.json /optimizer/param_groups/0/lr 1e-4",
            "jsonckpt set run.json /epoch 4 --metadata note '\"by hand\"'",
        ),
        usage="jsonckpt set PATH NAME VALUE [NAME VALUE ...] [OPTIONS]",
        epilog="VALUE is JSON: 1e-4, true, null, [0.9, 0.95], '\"text\"'; also NaN, Infinity, "
        "-Infinity. The value keeps the type of the old one. All changes are made, or none.",
    )
    parser._negative_number_matcher = _NEGATIVE
    add_common(parser, path=local_path)
    parser.add_argument("values", metavar="NAME VALUE", nargs="*", help="a place and its new value")
    parser.add_argument("--delete", metavar="NAME", action="append", default=[], help="remove it")
    parser.add_argument(
        "--metadata",
        metavar=("KEY", "VALUE"),
        nargs=2,
        action="append",
        default=[],
        help="change the metadata of the checkpoint",
    )
    parser.add_argument(
        "--delete-metadata", metavar="KEY", action="append", default=[], help="remove a key of it"
    )
    parser.add_argument("--string", action="store_true", help="each VALUE is text, not JSON")
    parser.add_argument("--create", action="store_true", help="add what does not exist")
    parser.add_argument("--force", action="store_true", help="accept another type")
    parser.add_argument("--dry-run", action="store_true", help="only print the changes")
    parser.set_defaults(run=run_set)
    interleave(parser, "values")


def run_set(args: argparse.Namespace) -> int:
    """Make the changes and print them."""
    from ..edit.set_value import DELETE, Edit, apply_edits
    from ..edit.values import parse_value

    if len(args.values) % 2:
        raise UsageError(f"{printable(args.values[-1])} has no value: give NAME VALUE pairs")
    parse = str if args.string else parse_value
    edits = [Edit(n, parse(v)) for n, v in zip(args.values[::2], args.values[1::2])]
    edits += [Edit(name, DELETE) for name in args.delete]
    metadata: dict[str, Any] = {key: parse(value) for key, value in args.metadata}
    metadata |= dict.fromkeys(args.delete_metadata, DELETE)
    if not edits and not metadata:
        raise UsageError("nothing to set: give NAME VALUE, --delete or --metadata")
    result = apply_edits(
        args.path,
        edits,
        metadata=metadata,
        create=args.create,
        force=args.force,
        dry_run=args.dry_run,
        limits=limits_of(args),
    )
    say_report(args, result, ok=True)
    return EXIT_OK


def run_get(args: argparse.Namespace) -> int:
    """Print or write the value."""
    from contextlib import ExitStack

    from ..edit.get_value import TensorReading, export, find_tensor, look_up
    from ..edit.records import Opened
    from ..load.options import ReadOptions

    limits = limits_of(args)
    if args.output is not None:
        _export(args, export, limits)
        return EXIT_OK
    if args.as_dtype is not None:
        raise UsageError("--as is for -o FILE.npy and -o -")
    with ExitStack() as stack:
        opened = Opened(args.path, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            place = None if args.raw else find_tensor(opened, args.name)
            if place is not None:
                _print_tensor(args, TensorReading.of(opened, place, args.rows))
                return EXIT_OK
            if args.rows is not None:
                raise ArgumentError(f"{quote(args.name)} is no tensor and has no rows")
            _print_value(args, opened, look_up(opened, args.name))
    return EXIT_OK


def _export(args: argparse.Namespace, export: Any, limits: Any) -> None:
    if args.output == "-":
        if args.json:
            raise UsageError("--json and -o - both print")
        output: Any = _StandardOutput()
    else:
        output = local_path(args.output)
    size = export(
        args.path,
        args.name,
        output,
        rows=args.rows,
        as_dtype=args.as_dtype,
        raw=args.raw,
        overwrite=args.overwrite,
        limits=limits,
    )
    if args.json:
        report = {"ok": True, "path": args.path, "name": args.name, "output": output, "bytes": size}
        say(dump_json(report))
    elif args.output != "-":
        say(f"{printable(args.output)}: {human(size)}")


class _StandardOutput:
    """Standard output as a file object for bytes."""

    def write(self, data: bytes | memoryview) -> None:
        """Write all of it."""
        say_bytes(data)

    def flush(self) -> None:
        """The console does this."""


def _print_tensor(args: argparse.Namespace, reading: TensorReading) -> None:
    from ..edit.get_value import MOST_PRINTED, tensor_json

    place = reading.place
    small = reading.count <= MOST_PRINTED
    if args.json:
        value = json.loads("".join(tensor_json(reading))) if small else None
        report = {
            "ok": True,
            "path": args.path,
            "name": place.name,
            "kind": "tensor",
            "dtype": place.dtype,
            "shape": list(reading.shape),
            "value": value,
        }
        say(dump_json(report))
        return
    if not small:
        nbytes = human(place.entry.nbytes)
        raise ArgumentError(
            f"{quote(place.name, 200)} is {place.dtype} {list(reading.shape)}, {nbytes}: too many "
            f"numbers to print",
            hint="Write it to a file: -o FILE.npy; or print some rows: --rows 0:10.",
        )
    say("".join(tensor_json(reading)))


def _print_value(args: argparse.Namespace, opened: Opened, value: Any) -> None:
    from ..edit.values import readable
    from ..format.json_text import dump_pretty
    from ..state.references import references_in

    def described(reference: Any) -> str:
        found = next(references_in(reference))
        entry = opened.manifest.tensors.get(found.record)
        if entry is None:
            return f"<missing tensor {found.record}>"
        body = found.body if found.tag == "$view" else {}
        dtype, shape = body.get("dtype", entry.dtype), body.get("shape", list(entry.shape))
        return f"<tensor {dtype} {shape}>"

    shown = value if args.raw else readable(value, described)
    if args.json:
        report = {"ok": True, "path": args.path, "name": args.name, "kind": "value"}
        say(dump_json(report | {"dtype": None, "shape": None, "value": shown}))
    else:
        say(dump_pretty(shown).decode())
