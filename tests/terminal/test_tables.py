"""Columns that fit, colours and progress: for terminals only."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from jsonckpt._src import progress
from jsonckpt._src.cli.main import main
from jsonckpt._src.terminal import console, tables


class Screen(io.StringIO):
    """A terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("width", [0, 1, 5, 6, 7, 20])
@pytest.mark.parametrize("text", ["", "/model/layers.11.weight", "/größe/層の重み/é"])
def test_a_text_is_cut_to_a_width(text: str, width: int) -> None:
    if width == 0:
        assert tables.width_of(tables.cut_middle(text, 1)) <= 1
        return
    cut = tables.cut_middle(text, width)
    assert tables.width_of(cut) <= width
    assert cut == text or "…" in cut
    assert (cut == text) == (tables.width_of(text) <= width)


def test_a_table_fits_or_is_whole() -> None:
    rows = [("tensor", "bytes"), ("/a" * 60, "12 B"), ("/b", "1.0 kB")]
    fitting = list(tables.lines(rows, "<>", 40))
    assert [tables.width_of(line) for line in fitting] == [40, 40, 40]
    assert "…" in fitting[1]
    assert max(map(len, tables.lines(rows, "<>", None))) == 120 + 2 + 6
    assert max(map(len, tables.lines(rows, "<>", 5))) == 16 + 2 + 6  # never narrower
    wide = list(tables.lines([("/名", "1"), ("/ab", "2")], "<<", None))
    assert wide == ["/名  1", "/ab  2"]


@pytest.mark.parametrize(
    ("environment", "on_screen", "in_file"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": "1", "CLICOLOR_FORCE": "1"}, False, False),
        ({"CLICOLOR_FORCE": "1"}, True, True),
        ({"CLICOLOR_FORCE": "0"}, True, False),
        ({"TERM": "dumb"}, False, False),
        ({"NO_COLOR": ""}, True, False),
    ],
    ids=str,
)
def test_colours(
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    on_screen: bool,
    in_file: bool,
) -> None:
    for name in ("NO_COLOR", "CLICOLOR_FORCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    for stream, expected in ((Screen(), on_screen), (io.StringIO(), in_file)):
        monkeypatch.setattr(sys, "stdout", stream)
        console.say("a\x1bb", style="red")
        plain = "a\\x1bb"  # text from files is escaped in either case
        assert stream.getvalue() == (f"\x1b[31m{plain}\x1b[0m\n" if expected else f"{plain}\n")


def test_a_listing_on_a_screen_is_as_wide_as_the_screen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    import torch

    import jsonckpt

    path = f"{tmp_path}/c"
    jsonckpt.save({"a" * 300: torch.ones(1), "b": {"名" * 90: torch.ones(2)}}, path)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    assert main(["inspect", path, "--tree"]) == 0
    assert main(["inspect", path, "--tensors"]) == 0
    lines = [line for line in screen.getvalue().splitlines() if not line.startswith(path)]
    assert len(lines) > 6
    assert max(map(tables.width_of, lines)) == 60


@pytest.mark.parametrize("width", [40, 80, 200])
def test_every_view_fits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, width: int) -> None:
    import torch

    import jsonckpt

    monkeypatch.chdir(tmp_path)
    names = {f"blocks.{n}.attention.query.weight": torch.ones(64, 64) for n in range(3)}
    group = {"lr": 0.000299926, "betas": (0.9, 0.999), "weight_decay": 0.01, "params": [0]}
    state = {"model": names, "optimizer": {"state": {}, "param_groups": [group]}, "step": 12}
    jsonckpt.save(state, "run-a/step-0012")
    jsonckpt.save(state | {"step": 24, "other": torch.ones(1)}, "run-a/step-0024")
    names["blocks.0.attention.query.weight"].fill_(float("nan"))
    jsonckpt.save(state, "run-a/step-0036")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("NO_COLOR", "1")
    for command in (
        "inspect run-a/step-0012", "inspect run-a/step-0036 --stats", "find run-a",
        "inspect run-a/step-0012 --tree", "diff run-a/step-0012 run-a/step-0036 --stats",
        "verify run-a/step-0012", "inspect run-a/step-0012 --state",
    ):  # fmt: skip
        monkeypatch.setattr(sys, "stdout", screen := Screen())
        assert main(command.split()) in {0, 3}
        lines = screen.getvalue().splitlines()
        assert lines
        for line in lines:  # a digest and a name are whole, so that they can be copied
            assert tables.width_of(line) <= width or max(map(len, line.split())) > width - 16


def test_long_texts_are_whole_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", log := io.StringIO())
    tables.labels([("note", "a long text " * 20), ("x", "1\x1b")])
    assert log.getvalue() == f"note  {'a long text ' * 20}\nx     1\\x1b\n"
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setattr(sys, "stdout", screen := Screen())
    tables.labels([("note", "a long text that has words"), ("x", "1")])
    assert screen.getvalue() == "note  a long text that has\n      words\nx     1\n"


def test_columns_are_left_out_where_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [("name", "one", "two"), ("/a" * 20, "1" * 12, "2" * 12)]
    for width, expected in ((60, "name one two"), (40, "name one"), (24, "name")):
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys, "stdout", screen := Screen())
        tables.table(rows, "<<<", header=False, optional=(2, 1))
        assert screen.getvalue().splitlines()[0].split() == expected.split()


def test_progress_in_a_log_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress.progress_bar("save", 2_000, show=True) as advance:
        assert advance is not None
        advance(1_000)
    assert log.getvalue().splitlines() == [
        "save: 1.0 kB of 2.0 kB",
        "save: 1.0 kB in 0.0 s",
    ]
    assert "\r" not in log.getvalue()


def test_a_bar_is_removed_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    with progress.progress_bar("save", 2_000, show=True) as advance:
        assert advance is not None
        advance(2_000)
    shown = screen.getvalue()
    assert "save" in shown
    assert not shown.endswith("\n")
    assert shown.split("\r")[-1].strip() == ""  # nothing is left on the line
