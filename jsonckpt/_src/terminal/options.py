"""Arguments that commands share, and reports as text or JSON."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from ..errors import ArgumentError, JsonckptError, printable
from ..format.checksums import check_expected
from ..format.limits import Limits, parse_limits
from ..storage.path_arguments import is_url, path_text
from .console import (
    EXIT_OK,
    REPORTED,
    code_of,
    complain_of,
    dump_json,
    in_commands,
    message_of,
    say,
)

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
_Value = TypeVar("_Value")


def argument(parse: Callable[[str], _Value]) -> Callable[[str], _Value]:
    """A type for argparse that shows the message of a ValueError of ``parse``."""

    def parsed(text: str) -> _Value:
        try:
            return parse(text)
        except (ValueError, JsonckptError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


@argument
def any_path(text: str) -> str:
    """A path or a URL, checked as in Python."""
    _refuse_stdin(text)
    return path_text(text, "the path")


def path_or_stdin(text: str) -> str:
    """A path, a URL, or ``-`` for standard input."""
    return text if text == "-" else any_path(text)


@argument
def local_path(text: str) -> str:
    """A path that is not a URL."""
    _refuse_stdin(text)
    if is_url(text):
        raise ArgumentError(
            f"{printable(text)} is not a local path: copy the checkpoint here first"
        )
    return path_text(text, "the path")


def _refuse_stdin(text: str) -> None:
    if text == "-":
        raise ArgumentError(
            "the path is '-', which is no name for a pipe here: inspect and verify read standard "
            "input, get -o - writes to standard output. Name a file"
        )


def file_path(text: str) -> Path:
    """A path of a conversion. ``Path("")`` is the working directory, so the text is checked."""
    return Path(local_path(text))


def file_or_url(text: str) -> Path | str:
    """A path of a conversion; a URL as text."""
    return any_path(text) if is_url(text) else file_path(text)


@argument
def _limit(text: str) -> str:
    parse_limits([text])
    return text


@argument
def _digest(text: str) -> str:
    check_expected(text)
    return text


def add_common(parser: argparse.ArgumentParser, path: Callable[[str], str] = any_path) -> None:
    """Add PATH, ``--json`` and ``--limit``, which every command has."""
    parser.add_argument("path", metavar="PATH", type=path, help="directory, .json or .json.zst")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_limit_option(parser)


def add_paths(
    parser: argparse.ArgumentParser,
    path: Callable[[str], str] = any_path,
    help: str = "directory, .json or .json.zst; several may be given",
) -> None:
    """Add PATH..., ``--json`` and ``--limit``, for a command that :func:`for_each_path` runs."""
    parser.add_argument("paths", metavar="PATH", type=path, nargs="+", help=help)
    parser.add_argument(
        "--json", action="store_true", help="print one JSON object, on a line for each path"
    )
    add_limit_option(parser)


def for_each_path(args: argparse.Namespace, run: Callable[[str], int]) -> int:
    """Run a command on each path. What goes wrong with one does not stop the others.

    Returns:
        The largest of their exit codes.
    """
    worst = EXIT_OK
    for path in args.paths:
        try:
            code = run(path)
        except REPORTED as error:
            report_error(args, error, path)
            code = code_of(error)
        worst = max(worst, code)
    return worst


def report_error(args: argparse.Namespace, error: BaseException, path: str | None = None) -> None:
    """Print what stopped a command: a line on standard error, or the object of ``--json``."""
    if getattr(args, "json", False):
        given = getattr(args, "path", None) if path is None else path
        say(dump_json({"ok": False, "path": given, **error_json(error)}))
    else:
        complain_of(error)


def add_limit_option(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Add ``--limit``, which :func:`limits_of` reads."""
    parser.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        type=_limit,
        help="change a limit on what is read, e.g. tensors=1000000 or expansion=none; may be "
        "repeated",
    )


def add_expected_digest(parser: argparse.ArgumentParser) -> None:
    """Add ``--expected-digest``."""
    parser.add_argument(
        "--expected-digest",
        metavar="DIGEST",
        type=_digest,
        help="refuse any other save: sha256:...",
    )


def interleave(parser: argparse.ArgumentParser, positional: str) -> None:
    """Let a list of positional arguments go on after an option.

    argparse takes such a list from one place only, and refuses the rest as unrecognized.
    """
    parse = parser.parse_known_args
    (action,) = (action for action in parser._actions if action.dest == positional)

    def parse_known_args(args: Any = None, namespace: Any = None) -> Any:
        found, rest = parse(args, namespace)
        is_negative = parser._negative_number_matcher.match
        values = [word for word in rest if word[:1] != "-" or is_negative(word)]
        try:
            more = [parser._get_value(action, word) for word in values]
        except argparse.ArgumentError as error:
            parser.error(str(error))
        getattr(found, positional).extend(more)
        return found, [word for word in rest if word not in values]

    parser.parse_known_args = parse_known_args  # type: ignore[method-assign]


def add_output(parser: argparse.ArgumentParser) -> None:
    """Add ``-o`` and ``--overwrite`` for a new checkpoint."""
    parser.add_argument(
        "-o", "--output", metavar="OUT", required=True, type=local_path, help="the new checkpoint"
    )
    add_overwrite(parser)


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """Add ``--overwrite``."""
    parser.add_argument("--overwrite", action="store_true", help="replace what is at OUT")


def add_selection(parser: argparse.ArgumentParser | argparse._ArgumentGroup, what: str) -> None:
    """Add ``--include`` (also ``--match``) and ``--exclude``, the same in all commands.

    Args:
        what: is selected, such as ``"tensors"``.
    """
    parser.add_argument(
        "--include",
        "--match",
        metavar="GLOB",
        action="append",
        help=f"only these {what}: a name such as /model, or a glob; may be repeated",
    )
    parser.add_argument(
        "--exclude", metavar="GLOB", action="append", help="all but these; may be repeated"
    )


def chosen_names(args: argparse.Namespace, names: Iterable[str]) -> Callable[[str], bool]:
    """Whether a name is selected by the options of :func:`add_selection`.

    Raises:
        StateMismatchError: one of them selects none of ``names``.
    """
    from ..state.selector import refuse_unmatched, selector

    chosen, unmatched = selector(args.include, args.exclude)
    known = list(names)
    refuse_unmatched(unmatched(known), known, option="--")
    return chosen


def limits_of(args: argparse.Namespace) -> Limits:
    """The limits in the arguments."""
    return parse_limits(args.limit)


def say_report(args: argparse.Namespace, report: Any, *, ok: bool) -> None:
    """Print a report (a dataclass) as text or as JSON."""
    if args.json:
        say(dump_json(finite({"ok": ok} | _for_json(dataclasses.asdict(report)))))
    else:
        say(report)


def _for_json(value: Any) -> Any:
    """The fields of a report. ``nbytes`` is ``bytes`` in the JSON of all commands."""
    if isinstance(value, dict):
        names = {"nbytes": "bytes"}
        return {names.get(key, key): _for_json(item) for key, item in value.items()}
    return [_for_json(item) for item in value] if isinstance(value, list | tuple) else value


def error_json(error: BaseException) -> dict[str, Any]:
    """An error as an object for programs: the same members in all commands."""
    return {
        "error": type(error).__name__,
        "kind": type(error).__name__,
        "file": getattr(error, "file", None),
        "tensor": getattr(error, "tensor", None),
        "chunk": getattr(error, "chunk", None),
        "message": message_of(error),
        "hint": None if (hint := getattr(error, "hint", None)) is None else in_commands(hint),
    }


def finite(value: Any) -> Any:
    """A value for JSON: floats that it lacks are the strings of the format.

    >>> finite([float("nan"), float("-inf"), 1.5])
    ['NaN', '-Infinity', 1.5]
    """
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value
