"""The targets of jsonckpt, and whether a run reached them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.tables import Table

__all__ = ["TARGETS", "Target", "target_table"]


@dataclass(frozen=True)
class Target:
    """One target.

    Attributes:
        text: what is measured.
        figure: its name in ``Section.figures``.
        aim: the figure to reach; ``later``: the next one. Either may be missing.
        unit: of the figure.
        at_most: whether less is better.
    """

    text: str
    figure: str
    aim: float | None
    later: float | None = None
    unit: str = "x"
    at_most: bool = False


def _least(
    text: str, figure: str, aim: float, later: float | None = None, unit: str = "x"
) -> Target:
    return Target(text, figure, aim, later, unit)


def _most(text: str, figure: str, aim: float, unit: str = "x") -> Target:
    return Target(text, figure, aim, None, unit, at_most=True)


_FP32, _BF16 = "trained fp32 weights", "the same in bf16"

TARGETS = (
    *(
        _least(
            f"first load, {size} MB / torch.load",
            f"first/memory/{size}/load/torch/first/ratio",
            1.3,
        )
        for size in (16, 180, 720)
    ),
    _least("first load on disk / torch.load", "first/disk/720/load/torch/first/ratio", 1.3),
    _least("first zstd load / torch.load", "first/memory/720/load/zstd-to-torch/first", 0.9),
    _least(
        "first load_into / torch.load and copy_",
        "first/memory/180/load_into/torch/first/ratio",
        1.0,
    ),
    _least("first save / torch.save", "first/memory/180/save/torch/first/ratio", 1.0),
    _most("first save_async / clone", "first/memory/180/save_async/held/first", 1.3),
    _least("load again / torch.load again", "first/memory/720/load/torch/again/ratio", 0.75),
    _least("load base64 / torch.load", "load/memory/torch/ratio", 1.3, 1.6),
    _least("load base64 / torch.load, on disk", "load/disk/torch/ratio", 1.3, 1.6),
    _least("save base64 / torch.save, in memory", "save/memory/torch/ratio", 1.0, 1.5),
    _least("the same / torch.save without CRC-32", "save/memory/torch-fast/ratio", 1.0, 1.5),
    _least("save base64 / torch.save, on disk", "save/disk/torch/ratio", 0.9),
    _least("save zstd / torch.save", "zstd-save/memory/torch/ratio", 0.7, 1.0),
    _least("load zstd / torch.load", "zstd-load/memory/torch/ratio", 0.9, 1.1),
    _least("stream from a pipe", "stream/memory/stream_pipe", 1000, unit=" MB/s"),
    _least("stream from a pipe / torch.load", "stream/memory/torch/ratio", 0.5),
    _least("stream from a pipe / cat | cat", "stream/memory/drain_cat/ratio", 0.9),
    _least("the same, the pipe of cat widened", "stream/memory/drain_wide/ratio", 0.9),
    _least("stream from a file / torch.load", "stream/memory/file-to-torch", 0.9),
    _least("save lists / json.dump", "list-save/memory/numbers/ratio", 12, 20),
    _least("load lists / json.load", "list-load/memory/numbers/ratio", 5, 8),
    Target("save lists", "list-save/memory/own-list", None, 150, " MB/s"),
    Target("load lists", "list-load/memory/own-list", None, 200, " MB/s"),
    _most("size of base64, fp32", f"size/{_FP32}/own-file", 1.335),
    _most("size of base64 + zstd, fp32", f"size/{_FP32}/own-zstd", 1.11),
    _most("size of base64 + zstd, bf16", f"size/{_BF16}/own-zstd", 0.92),
    *(
        _most(f"zstd / entropy of the byte planes, {kind}", f"size/{kind}/zstd-to-entropy", 1.015)
        for kind in (_FP32, _BF16, "AdamW exp_avg", "AdamW exp_avg_sq")
    ),
    _least("load / safetensors load_file + clone", "load/memory/safetensors/ratio", 0.75),
    _least("load_into / dcp.load", "load-into/memory/dcp/ratio", 1.2),
    _least("save with fsync / dcp.save", "save-sync/disk/dcp/ratio", 1.0),
    _least("save many small tensors / torch.save", "small/save/torch/ratio", 1.0),
    _least("load many small tensors / torch.load", "small/load/torch/ratio", 1.0),
    _most("open, and the first of 100,000 tensors", "open/own/seconds", 1.5, " s"),
    _most("the same, extra memory", "open/own/mib", 300, " MiB"),
    _most("bytes read for a slice / its chunks and what tells of them", "slice/growth/most", 1.0),
    _most("the loop held by save_async, in copies of the state", "async/own-async/copies", 1.2),
    _most("a training step beside save_async", "async/own-async/step", 1.25),
    _most("extra memory of any operation", "memory/most", 64, " MiB"),
    _most("convert: growth of time with the size of other programs' files", "foreign/most", 1.1),
)


def target_table(figures: Mapping[str, float], *, quick: bool) -> Table:
    """The figures and their targets; ``quick``: of a run that is too small to judge."""
    rows = []
    for target in TARGETS:
        found = figures.get(target.figure)
        aims = [_aim_text(target, aim) for aim in (target.aim, target.later)]
        shown = "not measured" if found is None else f"{found:.4g}{target.unit}"
        rows.append([target.text, shown, *aims, "" if found is None else _verdict(target, found)])
    notes = ["A quick run: smaller states and fewer tensors than are aimed at."] if quick else []
    return Table("Targets", ["", "measured", "target", "later", "reached"], rows, notes)


def _aim_text(target: Target, aim: float | None) -> str:
    return "" if aim is None else f"{'≤' if target.at_most else '≥'} {aim:g}{target.unit}"


def _verdict(target: Target, found: float) -> str:
    reached = [
        found <= aim if target.at_most else found >= aim
        for aim in (target.aim, target.later)
        if aim is not None
    ]
    if all(reached):
        return "yes" if target.later is None else "yes, and later"
    return "yes" if reached[0] else "no"
