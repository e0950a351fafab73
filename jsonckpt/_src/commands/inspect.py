"""``jsonckpt inspect``: show what is in a checkpoint."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ArgumentError, counted, printable
from ..progress import human
from ..terminal.console import EXIT_OK, can_show, columns, dump_json, on_terminal, say
from ..terminal.options import (
    Commands,
    add_expected_digest,
    add_paths,
    add_selection,
    argument,
    chosen_names,
    finite,
    for_each_path,
    limits_of,
    path_or_stdin,
)
from ..terminal.tables import cut_middle, fit, labels, say_wrapped, table, width_of

if TYPE_CHECKING:
    from ..inspect.facts import Inspection, TensorFacts
    from ..inspect.statistics import TensorStatistics
    from ..load.container import Container

#: Columns of the last cell of a tensor on a terminal: its name needs the room.
_NOTE = 22
#: Tensors that are listed where nothing asks for all.
_FEW = 50
_DEPTH = 3


@argument
def _depth(text: str) -> int:
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 200:
        raise ArgumentError(f"a depth is a number from 1 to 200, not {text}")
    return value


def add_parser(commands: Commands) -> None:
    """Add the command and its arguments."""
    parser = commands.add_parser(
        "inspect",
        aliases=["show"],
        help="show what is in a checkpoint: state, groups, tensors (also: show)",
        description="Show what is in a checkpoint. Only --stats reads tensors.",
        examples=(
            "jsonckpt inspect run/step-0001",
            "jsonckpt inspect run/step-0001 --stats --include '/model/*' --sort size",
            "jsonckpt inspect run/* --html report.html",
        ),
    )
    add_paths(parser, path_or_stdin, "directory, .json or .json.zst; - reads standard input")
    add_expected_digest(parser)
    view = parser.add_mutually_exclusive_group()
    view.add_argument("--tree", action="store_true", help="the state as a tree")
    view.add_argument("--tensors", action="store_true", help="all tensors, and nothing else")
    view.add_argument("--state", action="store_true", help="all plain values that are found")
    parser.add_argument(
        "--depth", metavar="N", type=_depth, help="levels of the tree, or parts of a group's name"
    )
    parser.add_argument(
        "--stats",
        action="store_true",
        help="read the tensors: min, max, mean, std, norm, NaN, Inf, zeros, histogram",
    )
    add_selection(parser, "tensors")
    parser.add_argument(
        "--sort", choices=["size", "name"], help="the largest first, or by name (default: none)"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write a report for a browser, of all the paths together"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Inspect each path."""
    if args.html is not None:
        return _write_html(args)
    several = len(args.paths) > 1 and not args.json

    def one(path: str) -> int:
        if several and path is not args.paths[0]:
            say("")
        _inspect(args, path)
        return EXIT_OK

    return for_each_path(args, one)


def _write_html(args: argparse.Namespace) -> int:
    from ..report.api import report

    if "-" in args.paths:
        raise ArgumentError("--html does not read standard input: write it to a file first")
    page = report(
        args.paths, limits=limits_of(args), progress=on_terminal() and not args.json
    ).save(args.html)
    facts = {"ok": True, "paths": args.paths, "html": str(page)}
    say(dump_json(facts) if args.json else f"wrote {printable(page)}")
    return EXIT_OK


def _inspect(args: argparse.Namespace, path: str) -> None:
    from ..format.json_text import collector_paused
    from ..inspect.api import inspect_container, inspect_pipe
    from ..load.container import open_container
    from ..load.options import ReadOptions
    from ..storage.file_source import FileSource

    options = ReadOptions.of(limits=limits_of(args), expected_digest=args.expected_digest)
    with collector_paused():
        if path == "-":
            if args.stats:
                raise ArgumentError(
                    "--stats does not read standard input: write it to a file first"
                )
            container, facts = None, inspect_pipe(FileSource(sys.stdin.buffer), options)
        else:
            container = open_container(path, options)
            facts = inspect_container(container)
        tensors = _chosen(args, facts)
        stats = _statistics(container, tensors) if args.stats and container is not None else {}
        if args.json:
            say(dump_json(finite(_summary(args, facts, tensors, stats))))
        else:
            _print(args, facts, tensors, stats)


def _chosen(args: argparse.Namespace, facts: Inspection) -> Sequence[TensorFacts]:
    """The tensors that are listed, in the order that is asked for."""
    tensors: Sequence[TensorFacts] = facts.tensors
    if args.include or args.exclude:
        chosen = chosen_names(args, (tensor.name for tensor in tensors))
        tensors = [tensor for tensor in tensors if chosen(tensor.name)]
    if args.sort == "size":
        return sorted(tensors, key=lambda tensor: (-tensor.nbytes, tensor.name))
    return sorted(tensors, key=lambda tensor: tensor.name) if args.sort == "name" else tensors


def _statistics(
    container: Container, tensors: Iterable[TensorFacts]
) -> dict[str, TensorStatistics]:
    """The statistics of tensors by their names. A view that has gaps has none."""
    from ..inspect.statistics import read_statistics
    from ..inspect.view_statistics import statistics_of_views
    from ..progress import progress_bar

    whole = [tensor for tensor in tensors if tensor.kind != "view"]
    wanted = {tensor.entry.name: tensor.entry.nbytes for tensor in whole}
    with (
        container.errors(),
        progress_bar("read", sum(wanted.values()), show=on_terminal()) as bar,
    ):
        container.check_files(range(len(container.manifest.shards)))
        found = read_statistics(container, wanted.__contains__, bar)
        by_name = {tensor.name: found[tensor.entry.name] for tensor in whole}
        return by_name | statistics_of_views(container, tensors)


def _summary(
    args: argparse.Namespace,
    facts: Inspection,
    tensors: Iterable[TensorFacts],
    stats: dict[str, TensorStatistics],
) -> dict[str, Any]:
    manifest = facts.manifest
    summary = {
        "ok": True,
        "path": facts.path,
        "kind": facts.kind,
        "save_id": facts.save_id,
        "created_at": facts.created_at,
        "created_by": facts.created_by,
        "checksum": facts.checksum,
        "digest": facts.digest,
        "pin": facts.pin,
        "sealed": facts.sealed,
        "files": facts.files,
        "file_bytes": facts.file_bytes,
        "ratio": None if facts.ratio is None else round(facts.ratio, 4),
        "elements": facts.numel,
        "metadata": facts.metadata,
        "totals": manifest.totals(),
        "groups": [_group(group) for group in facts.groups(args.depth or 1)],
        "encodings": [_group(group) for group in facts.codecs()],
        "state": [
            {"what": fact.what, "path": fact.path, "text": fact.text, "value": fact.value}
            for fact in facts.state
        ],
        "tensors": [_tensor(tensor, stats.get(tensor.name), args.stats) for tensor in tensors],
    }
    return summary | ({"tree": manifest.state} if args.tree else {})


def _group(group: Any) -> dict[str, Any]:
    return {
        "name": group.name,
        "tensors": group.tensors,
        "elements": group.numel,
        "bytes": group.nbytes,
        "stored_bytes": group.stored_bytes,
    }


def _tensor(
    tensor: TensorFacts, stats: TensorStatistics | None, with_stats: bool
) -> dict[str, Any]:
    row = {
        "name": tensor.name,
        "dtype": tensor.dtype,
        "shape": list(tensor.shape),
        "bytes": tensor.nbytes,
        "elements": tensor.numel,
        "stored_bytes": tensor.stored_bytes,
        "kind": tensor.kind,
        "record": tensor.entry.name,
    }
    return row | ({"stats": None if stats is None else _stats_json(stats)} if with_stats else {})


def _stats_json(stats: TensorStatistics) -> dict[str, Any]:
    names = ("count", "nans", "positive_infs", "negative_infs", "zeros", "denormals",
             "min", "max", "mean", "std", "norm")  # fmt: skip
    histogram = stats.histogram
    found = {name: getattr(stats, name) for name in names}
    row = {name: int(it) if isinstance(it, bool) else it for name, it in found.items()}
    bars = {"start": histogram.start, "width": histogram.width, "counts": list(histogram.counts)}
    return row | {"histogram": bars}


def _print(
    args: argparse.Namespace,
    facts: Inspection,
    tensors: Sequence[TensorFacts],
    stats: dict[str, TensorStatistics],
) -> None:
    from ..inspect.overview import about, group_rows, headline, state_rows, top

    say_wrapped(printable(headline(facts)), rest="  ", style="bold")
    lists_tensors = (
        args.tensors or args.stats or bool(args.include or args.exclude) or args.sort is not None
    )
    if args.tree:
        _print_tree(facts, args.depth or _DEPTH)
    elif args.state:
        labels(state_rows(facts.state, None))
    elif not lists_tensors:
        labels(about(facts))
        say("")
        table(
            _printable(group_rows(top(facts, args.depth or 1), facts.nbytes)),
            "<>>>>",
            optional=(2, 1),
        )
        if facts.state:
            say("")
            say("state", style="bold")
            labels(state_rows(facts.state))
        say("")
    if args.stats:
        _print_statistics(tensors, stats)
    elif not (args.tree or args.state):
        _print_tensors(tensors, None if lists_tensors else _FEW)


def _printable(rows: Iterable[Iterable[str]]) -> list[list[str]]:
    return [[printable(cell) for cell in row] for row in rows]


def _print_tree(facts: Inspection, depth: int) -> None:
    from ..inspect.tree import ASCII, UNICODE, tree_lines

    for line in tree_lines(facts, depth, UNICODE if can_show("├─│└·…") else ASCII):
        say(fit(f"{line.strokes}{printable(line.key)}  {printable(line.text)}"))


def _print_tensors(tensors: Sequence[TensorFacts], most: int | None) -> None:
    shown = tensors[:most]
    rows = [("tensor", "dtype", "shape", "bytes", "")]
    width, mark = columns(), "…" if can_show("…") else "..."
    for tensor in shown:
        note = "" if tensor.kind == "tensor" else f"{_RELATIONS[tensor.kind]} {tensor.entry.name}"
        note = printable(note) if width is None else cut_middle(printable(note), _NOTE, mark)
        name, size = printable(tensor.name), human(tensor.nbytes)
        rows.append((name, tensor.dtype, str(list(tensor.shape)), size, note))
    count = 5 if any(row[4] for row in rows) else 4
    optional = (4, 1) if count == 5 else (1,)
    table([row[:count] for row in rows], "<<<><"[:count], optional=optional)
    if len(shown) < len(tensors):
        say(f"and {counted(len(tensors) - len(shown), 'more tensor')}: --tensors lists all")


_RELATIONS = {"tied": "tied to", "view": "view of"}


def _print_statistics(tensors: Sequence[TensorFacts], stats: dict[str, TensorStatistics]) -> None:
    """Two lines for each tensor: what it is, and what is in it."""
    from ..inspect.histogram import sparkline

    blocks = can_show("▁▂▃▄▅▆▇█")
    for tensor in tensors:
        facts = f"{tensor.dtype} {list(tensor.shape)}, {human(tensor.nbytes)}"
        name = printable(tensor.name)
        width = columns()
        beside = width is None or width_of(name) + len(facts) + 2 <= width
        say(name, end="  " if beside else "\n", style="bold")
        say(facts if beside else f"  {facts}")
        found = stats.get(tensor.name)
        if found is None:
            say(f"  a view of {printable(tensor.entry.name)} that has gaps: no statistics")
            continue
        bars = sparkline(found.histogram.counts)
        numbers = [f"{name} {_short(getattr(found, name))}"
                   for name in ("min", "max", "mean", "std", "norm")]  # fmt: skip
        share = f" ({100 * found.zeros / found.count:.1f}%)" if found.zeros else ""
        numbers += [f"zeros {found.zeros:,}{share}"]
        numbers += [f"{label} {count:,}" for label, count in _odd(found)]
        numbers += [f"|{bars if blocks else bars.translate(_ASCII_BARS)}|"]
        style = "red" if any(count for _, count in _odd(found)) else ""
        for line in _filled(numbers, columns()):
            say(f"  {line}", style=style)


def _odd(found: TensorStatistics) -> Iterator[tuple[str, int]]:
    return zip(("NaN", "Inf"), (found.nans, found.infs))


def _filled(cells: Iterable[str], width: int | None) -> list[str]:
    """Lines of whole cells that fit a terminal."""
    lines: list[str] = []
    for cell in cells:
        if lines and (width is None or width_of(lines[-1]) + len(cell) + 4 <= width):
            lines[-1] += f"  {cell}"
        else:
            lines.append(cell)
    return lines


_ASCII_BARS = str.maketrans("▁▂▃▄▅▆▇█", "._-:=+*#")


def _short(value: float | int | None) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "-" if value is None else str(int(value))
