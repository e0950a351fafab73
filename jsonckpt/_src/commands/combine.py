"""``jsonckpt merge``, ``split`` and ``average``: several checkpoints into one, and back."""

from __future__ import annotations

import argparse
import os
import re

from ..errors import ArgumentError, printable, quote
from ..terminal.console import EXIT_OK, UsageError
from ..terminal.options import (
    Commands,
    add_common,
    add_limit_option,
    add_output,
    add_selection,
    any_path,
    argument,
    interleave,
    limits_of,
    say_report,
)

_NAMED = re.compile(r"([^=/]+)=(.+)", re.DOTALL)


@argument
def _weights(text: str) -> list[float]:
    try:
        return [float(number) for number in text.split(",")]
    except ValueError:
        raise ArgumentError(f"{quote(text)} is no list of numbers, such as 0.5,0.3,0.2") from None


def _input(text: str) -> tuple[str | None, str]:
    """The name, if there is one, and the path."""
    match = None if os.path.lexists(text) else _NAMED.fullmatch(text)
    return (match[1], any_path(match[2])) if match else (None, any_path(text))


def add_parser(commands: Commands) -> None:
    """Add the three commands and their arguments."""
    _add_merge(commands)
    _add_split(commands)
    _add_average(commands)


def _add_merge(commands: Commands) -> None:
    parser = commands.add_parser(
        "merge",
        help="join several checkpoints into one",
        examples=("jsonckpt merge model=a.json optimizer=b.json -o c.json",),
        epilog="The states are joined key by key. With NAME=PATH the whole state of a checkpoint "
        "goes under that key.",
    )
    parser.add_argument(
        "inputs", metavar="[NAME=]PATH", nargs="+", type=_input, help="the checkpoints"
    )
    _add_rest(parser)
    parser.set_defaults(run=run_merge)
    interleave(parser, "inputs")


def _add_average(commands: Commands) -> None:
    parser = commands.add_parser(
        "average",
        help="the mean of the weights of several checkpoints",
        examples=("jsonckpt average run/step-000[1-3] -o mean.json --include /model",),
        epilog="What is not averaged (integers, plain values) is that of the last checkpoint.",
    )
    parser.add_argument("inputs", metavar="PATH", nargs="+", type=any_path, help="the checkpoints")
    parser.add_argument(
        "--weights",
        metavar="W,W,...",
        type=_weights,
        help="a number for each checkpoint; only their ratios count",
    )
    add_selection(parser, "tensors")
    _add_rest(parser)
    parser.set_defaults(run=run_average)
    interleave(parser, "inputs")


def _add_split(commands: Commands) -> None:
    parser = commands.add_parser(
        "split",
        help="write parts of a checkpoint as checkpoints of their own",
        examples=(
            "jsonckpt split run.json -o weights.json --include /model",
            "jsonckpt split run.json -o parts --by top-level",
        ),
        epilog="Without --by OUT is one checkpoint; with it OUT is a directory of parts.",
    )
    add_common(parser)
    parser.add_argument(
        "--by",
        metavar="BY",
        nargs="+",
        help="top-level; a size such as 500MB; or NAME=GLOB pairs, a part each",
    )
    add_selection(parser, "places")
    add_output(parser)
    parser.set_defaults(run=run_split)


def _add_rest(parser: argparse.ArgumentParser) -> None:
    add_output(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_limit_option(parser)


def run_merge(args: argparse.Namespace) -> int:
    """Merge and print what was written."""
    from ..edit.merge import merge_inputs

    result = merge_inputs(
        args.inputs, args.output, overwrite=args.overwrite, limits=limits_of(args)
    )
    say_report(args, result, ok=True)
    return EXIT_OK


def run_average(args: argparse.Namespace) -> int:
    """Average and print what was written."""
    from ..edit.average import average

    result = average(
        args.inputs,
        args.output,
        weights=args.weights,
        include=args.include,
        exclude=args.exclude,
        overwrite=args.overwrite,
        limits=limits_of(args),
    )
    say_report(args, result, ok=True)
    return EXIT_OK


def run_split(args: argparse.Namespace) -> int:
    """Split and print the parts."""
    from ..edit.split import split

    result = split(
        args.path,
        args.output,
        by=_by(args.by),
        include=args.include,
        exclude=args.exclude,
        overwrite=args.overwrite,
        limits=limits_of(args),
    )
    say_report(args, result, ok=True)
    return EXIT_OK


def _by(words: list[str] | None) -> str | dict[str, list[str]] | None:
    """What ``--by`` says: a word, or patterns by the name of their part."""
    if words is None:
        return None
    if len(words) == 1 and "=" not in words[0]:
        return words[0]
    parts: dict[str, list[str]] = {}
    for word in words:
        match = _NAMED.fullmatch(word)
        if match is None:
            raise UsageError(f"--by {printable(word)}: give top-level, a size, or NAME=GLOB pairs")
        parts.setdefault(match[1], []).append(match[2])
    return parts
