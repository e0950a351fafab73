"""The speed group: runs ``test_speed.py`` under pytest-benchmark and makes tables of it."""

from __future__ import annotations

import io
import json
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from benchmarks.arena import ROOT, Spread, ratios, speeds
from benchmarks.conftest import PLUGIN
from benchmarks.figures import FIGURES, Figure, label_of
from benchmarks.plots import bars
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text, times

#: Figures that have a plot.
PLOTTED = ("save", "load")


class _Plugin:
    """Passes the settings to the tests. They find it by its name."""

    __name__ = PLUGIN

    def __init__(self, settings: Settings) -> None:
        self.settings = settings


def run(settings: Settings) -> Section:
    """Measure everything of :data:`benchmarks.figures.FIGURES`.

    Raises:
        RuntimeError: a measurement failed; the message is pytest's output.
    """
    found = _measure(settings)
    section = Section(
        "speed",
        "The same again, in one process",
        f"{bytes_text(settings.state_bytes)} of fp32 weights and AdamW moments of a trained GPT-2, "
        "tiled and scaled; 2 or 3 rounds after one that warms up and checks the bytes. The page "
        "cache is warm, except where the title says cold. A speed is MB (10^6 bytes) of tensors a "
        "second.",
    )
    for figure in FIGURES:
        here = {place: info for (key, place), info in found.items() if key == figure.key}
        if here:
            _add(section, settings, figure, here)
    return section


def _measure(settings: Settings) -> dict[tuple[str, str], dict[str, Any]]:
    """The ``extra_info`` of the tests, by figure and place."""
    kept = settings.cache.parent if settings.cache.parent.is_dir() else settings.fast.path
    report = kept / "pytest-benchmark.json"
    arguments = [
        str(Path(__file__).with_name("test_speed.py")),
        f"--rootdir={ROOT}",
        "-qq",
        "-p",
        "no:cacheprovider",
        f"--benchmark-json={report}",
    ]
    output = io.StringIO()
    with redirect_stdout(output), redirect_stderr(output):
        code = pytest.main(arguments, plugins=[_Plugin(settings)])
    if code != 0:
        raise RuntimeError(f"the speed group failed\n{output.getvalue()}")
    found = {}
    for benchmark in json.loads(report.read_text(encoding="utf-8"))["benchmarks"]:
        info = benchmark["extra_info"]
        found[info["figure"], info["place"]] = info
    return found


def _add(
    section: Section, settings: Settings, figure: Figure, here: dict[str, dict[str, Any]]
) -> None:
    """A table with two columns for each place; for some figures a plot of the first place."""
    shown = [place for place in settings.places if place.key in here]
    columns = [bytes_text(next(iter(here.values()))["bytes"])]
    turns = figure.turns_of(settings)
    rows = {turn.key: [label_of(turn)] for turn in turns}
    for place in shown:
        info = here[place.key]
        columns += [f"MB/s {place.label}", "jsonckpt is"]
        seconds: dict[str, list[float]] = info["seconds"]
        own = turns[0].key
        for key, speed in speeds(seconds, info["bytes"]).items():
            ratio = ratios(seconds[key], seconds[own])
            rows[key] += [f"{speed:,.0f}", "" if key == own else _ratio_text(ratio)]
            section.figures[f"{figure.key}/{place.key}/{key}"] = speed.median
            section.figures[f"{figure.key}/{place.key}/{key}/ratio"] = ratio.median
        for key in rows.keys() - seconds.keys():
            if len(rows[key]) > 1:
                rows[key] += ["", ""]
        if {"stream", "torch"} <= seconds.keys():
            beside = ratios(seconds["torch"], seconds["stream"])
            section.figures[f"{figure.key}/{place.key}/file-to-torch"] = beside.median
            info["notes"].append(
                f"jsonckpt.stream from a file against torch.load: {_ratio_text(beside)}."
            )
    notes = sorted({note for info in here.values() for note in info["notes"]})
    if figure.note:
        notes.insert(0, figure.note)
    kept = [row for row in rows.values() if len(row) > 1]
    section.tables.append(Table(figure.title, columns, kept, notes))
    if figure.key not in PLOTTED:
        return
    first = here[shown[0].key]
    section.plots[f"{figure.key}.svg"] = bars(
        f"{figure.title} ({shown[0].label})",
        "MB/s",
        {
            label_of(turn): speed
            for turn in turns
            for key, speed in speeds(first["seconds"], first["bytes"]).items()
            if key == turn.key
        },
    )


def _ratio_text(ratio: Spread) -> str:
    return f"{times(ratio.median)} ({ratio.low:.2f}–{ratio.high:.2f})"
