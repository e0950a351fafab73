"""The benchmarks' own arithmetic, and that their aims name figures which are measured."""

from __future__ import annotations

import doctest
import importlib
import json
import math
import re
import subprocess
import sys
import xml.dom.minidom
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import (
    arena,
    background,
    first,
    foreign,
    growth,
    inputs,
    memory,
    plots,
    probe,
    report,
    sizes,
    small,
    states,
)
from benchmarks.figures import FIGURES, label_of
from benchmarks.peers import PEERS, available
from benchmarks.probe import Watched
from benchmarks.settings import Place, Settings, places
from benchmarks.tables import Table
from benchmarks.targets import TARGETS, target_table

MODULES = ("arena", "growth", "settings", "sizes", "tables")


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings_hold(name: str) -> None:
    result = doctest.testmod(importlib.import_module(f"benchmarks.{name}"))
    assert result.attempted > 0
    assert result.failed == 0


def speed_figures() -> Iterator[str]:
    for figure in FIGURES:
        for place in ("memory", "disk"):
            for turn in figure.turns:
                yield f"{figure.key}/{place}/{turn.key}"
                yield f"{figure.key}/{place}/{turn.key}/ratio"
            if {"stream", "torch"} <= {turn.key for turn in figure.turns}:
                yield f"{figure.key}/{place}/file-to-torch"


def test_every_speed_target_names_a_figure_that_is_measured() -> None:
    known = set(speed_figures())
    groups = {figure.key for figure in FIGURES}
    wanted = [target.figure for target in TARGETS if target.figure.split("/")[0] in groups]
    assert wanted
    assert [figure for figure in wanted if figure not in known] == []


def test_turns_of_a_figure_have_different_keys_and_labels() -> None:
    for figure in FIGURES:
        assert len({turn.key for turn in figure.turns}) == len(figure.turns)
        assert len({label_of(turn) for turn in figure.turns}) == len(figure.turns), figure.key


def test_a_target_is_reached_on_its_side_only() -> None:
    table = target_table({"load/memory/torch/ratio": 1.4, "open/own/seconds": 1.6}, quick=False)
    verdicts = {row[0]: row[-1] for row in table.rows}
    assert verdicts["load base64 / torch.load"] == "yes"  # 1.4, and later 1.6
    assert verdicts["open, and the first of 100,000 tensors"] == "no"
    assert verdicts["save zstd / torch.save"] == ""


def test_entropy_of_known_planes() -> None:
    ramp = torch.arange(256, dtype=torch.uint8).repeat(64)
    assert math.isclose(sizes.entropy_ratio({"ramp": ramp}), 1.0)
    halves = torch.zeros(1024, dtype=torch.int16)
    halves[::2] = 1  # one bit in the low plane, none in the high one
    assert math.isclose(sizes.entropy_ratio({"halves": halves}), 1 / 16)


def test_ratios_compare_the_turns_of_one_round() -> None:
    assert arena.ratios([2.0, 9.0, 4.0], [1.0, 3.0, 4.0]) == arena.Spread(2.0, 1.0, 3.0)


def test_plots_are_well_formed_whatever_the_labels() -> None:
    bars = plots.bars("a < b", "MB/s", {"x & y": arena.Spread(2.0, 1.0, 3.0)})
    lines = plots.lines("t", "x", "y", {"<s>": [(1.0, 10.0), (1000.0, 10.0)]})
    groups = plots.groups("a > b", {"x & y": {"**<z>**": 0.0}, "none": {}})
    for svg in (bars, lines, groups):
        root = xml.dom.minidom.parseString(svg).documentElement
        assert root is not None
        assert root.tagName == "svg"
    assert "nan" not in bars + lines + groups


def test_the_page_is_one_that_the_report_writes() -> None:
    page = arena.ROOT / "docs" / "benchmarks.md"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(report._HEAD)
    shown = set(re.findall(r"!\[.*\]\(benchmarks/(.*)\)", text))
    assert shown == {path.name for path in page.with_suffix("").iterdir()}


def test_cells_of_a_markdown_table_stay_apart() -> None:
    text = Table("t", ["", "a"], [["x | y", "1"]]).markdown()
    assert r"| x \| y | 1 |" in text


@pytest.mark.parametrize("peer", [peer for peer in PEERS if available(peer)])
def test_every_peer_gives_back_what_it_saved(peer: str, tmp_path: Path) -> None:
    state = {"a": torch.randn(300, 7), "b.c": torch.randn(5)}
    path = tmp_path / f"saved{PEERS[peer].suffix}"
    PEERS[peer].save(state, path)
    loaded = PEERS[peer].load(path)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())


def test_large_state_repeats_no_bytes() -> None:
    weight = torch.randn(64, 16)
    checkpoint = {
        "model_state_dict": {"wte.weight": weight, "lm_head.weight": weight},
        "optimizer_state_dict": {"state": {0: {"exp_avg": weight + 1, "exp_avg_sq": weight + 2}}},
    }
    state = states.large(checkpoint, 5 * weight.nbytes)
    assert states.nbytes(state) == 5 * weight.nbytes
    assert not torch.equal(state["0.wte.weight.weight"], state["1.wte.weight.weight"])


def test_files_of_a_killed_run_are_removed_by_the_next_one(tmp_path: Path) -> None:
    abandoned = tmp_path / "jsonckpt-bench-abandoned"
    abandoned.mkdir()
    (abandoned / "lock").touch()
    with places(tmp_path) as first:
        assert not abandoned.exists()
        with places(tmp_path) as second:
            assert first[0].path.exists()
            assert first[0].path != second[0].path
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.skipif(not available("safetensors"), reason="safetensors is not installed")
def test_figures_of_another_machine_are_compared_with_a_warning(tmp_path: Path) -> None:
    """Warnings are errors in tests; a kernel that was updated meanwhile is none."""
    pytest.importorskip("pytest_benchmark")
    storage = tmp_path / "storage"
    # pytest-benchmark measures nothing in what seems to be a worker of pytest-xdist.
    environment = {
        name: value
        for name, value in arena.child_environment().items()
        if not name.startswith("PYTEST_XDIST")
    }

    def run(*options: str) -> str:
        shown = subprocess.run(
            [
                sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                str(arena.ROOT / "benchmarks"), "-c", str(arena.ROOT / "pyproject.toml"),
                "-k", "save-0 and not sync", "--bench-bytes=1000000",
                f"--bench-dir={tmp_path / 'files'}", f"--benchmark-storage={storage}", *options,
            ],
            cwd=tmp_path, env=environment, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stdout + shown.stderr
        return shown.stdout + shown.stderr

    assert "Can't compare" in run("--benchmark-autosave", "--benchmark-compare")
    (saved,) = storage.rglob("*.json")
    text = saved.read_text()
    release = json.loads(text)["machine_info"]["release"]
    saved.write_text(text.replace(json.dumps(release), '"another kernel"'))
    assert "machine_info is different" in run("--benchmark-compare")


# --- every group, with all that measures replaced -------------------------------------------------


class _NoArena:
    """Takes no turns and says that each took a second."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> _NoArena:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def use(self, _: Path) -> None:
        pass

    def compare(self, turns: list[arena.Turn], rounds: int) -> dict[str, list[float]]:
        return {turn.key: [1.0] * rounds for turn in turns}


def _watched(_: str, **arguments: object) -> Watched:
    del arguments
    return Watched(1 << 20, 1 << 20, 1.0, {"read": 1000})


def _written(state: object, path: Path) -> Path:
    del state
    path.touch()
    return path


@pytest.fixture
def unmeasured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The settings of a full run in which nothing is saved, loaded or timed."""
    weight = torch.zeros(8, 16)
    tiny = {"w": weight}
    for module in (growth, inputs, small):
        monkeypatch.setattr(module, "Arena", _NoArena)
    monkeypatch.setattr(small, "watch", _watched)
    monkeypatch.setattr(probe.Crew, "watch", lambda _, *args, **options: _watched(*args, **options))
    for name in ("trained", "map_state"):
        monkeypatch.setattr(states, name, lambda *_, **__: tiny)
    for name in ("large", "small"):
        monkeypatch.setattr(states, name, lambda *_, **__: tiny)
    monkeypatch.setattr(states, "half_random", lambda _: torch.zeros(1024))
    monkeypatch.setattr(states, "write_state", _written)
    monkeypatch.setattr(memory, "_directory", lambda *_: tmp_path)
    monkeypatch.setattr(small, "_saved", lambda *_: tmp_path / "saved")
    monkeypatch.setattr(small, "_told", lambda _: 0)
    monkeypatch.setattr(foreign, "FORMS", {"one": lambda path, _: path.touch()})
    monkeypatch.setattr(sizes, "_written", lambda *_: 1)
    once = {peer: [1.0] for peer in [*PEERS, "clone"]}
    monkeypatch.setattr(first, "_seconds", lambda *_: (once, once))
    for name in ("_zstd_ratio", "_zipnn_ratio"):
        monkeypatch.setattr(sizes, name, lambda *_: 1.0)
    kinds = dict.fromkeys(sizes.kinds({}, 0), lambda: tiny)
    for module in (sizes, inputs):
        monkeypatch.setattr(module, "kinds", lambda *_: kinds)
    child = {key: {"blocked": [1.0], "whole": [1.0], "step": [1.0]} for key in background.LABELS}
    answer = subprocess.CompletedProcess(
        [], 0, stdout=json.dumps({"alone": {"step": [1.0]}, **child})
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answer)
    return Settings.of((Place("memory", "nowhere", tmp_path),), quick=False, cache=tmp_path)


def test_every_target_of_the_other_groups_names_a_figure(unmeasured: Settings) -> None:
    disk = replace(unmeasured.fast, key="disk")
    both = replace(unmeasured, places=(unmeasured.fast, disk))
    figures = dict(first.run(both).figures)
    for group in (background, foreign, growth, inputs, memory, sizes, small):
        section = group.run(unmeasured)
        figures |= section.figures
        for table in section.tables:
            assert {len(row) for row in table.rows} == {len(table.columns)}, table.title
    groups = {figure.key for figure in FIGURES}
    wanted = [target.figure for target in TARGETS if target.figure.split("/")[0] not in groups]
    assert len(wanted) > 10
    assert [figure for figure in wanted if figure not in figures] == []
