"""The data that a page gets, without a browser."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.report.api import Report, report
from jsonckpt._src.report.page import as_script, plain
from jsonckpt._src.report.tree import lines_of

from .states import ATTACKS, hostile_state, saved, training_state


def data_of(made: Report) -> Any:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', made.html)
    return json.loads(found)


def tensors(data: Any) -> dict[str, Any]:
    return {row["name"]: row for row in data["tensors"]}


def findings(state: Any, tmp_path: Path) -> dict[str, list[str]]:
    data = data_of(report(saved(tmp_path / "c", state)))
    return {one["title"]: [name for name, _ in one["tensors"]] for one in data["health"]}


def test_statistics_and_overview(tmp_path: Path) -> None:
    state = training_state(4)
    data = data_of(report(saved(tmp_path / "c.json", state)))
    row = tensors(data)["/model/0.weight"]
    weight = state["model"]["0.weight"].double()
    assert row["shape"] == [20, 30]
    assert row["dtype"] == "float32"
    assert row["bytes"] == 2400
    assert row["mean"] == pytest.approx(weight.mean().item(), rel=1e-5)
    assert row["norm"] == pytest.approx(weight.norm().item(), rel=1e-5)
    assert len(row["bars"]) <= 64
    assert row["from"] <= row["min"]
    assert row["to"] > row["max"]
    assert row["moments"]["exp_avg"] == "/optimizer/state/0/exp_avg"
    overview = {label: value for label, value, _ in data["overview"]}
    assert (overview["step"], overview["epoch"]) == ("4", "1")
    assert {what for what, _, _ in data["facts"]} >= {"saved", "digest", "optimizer", "rng"}
    assert data["history"][0][0] == "loss"
    assert data["history"][0][1] == [1, 2, 3, 4]
    assert data["compare"] is data["run"] is None


def test_the_update_is_near_the_true_one(tmp_path: Path) -> None:
    """The estimate from statistics against the step that the optimizer made."""
    before, after = training_state(30), training_state(31)
    for group in after["optimizer"]["param_groups"]:  # the schedule has moved on already
        group["lr"] = before["optimizer"]["param_groups"][0]["lr"]
    data = data_of(report(saved(tmp_path / "c", after)))
    weight = after["model"]["0.weight"]
    moved = (weight - before["model"]["0.weight"]).norm() / weight.norm()
    assert tensors(data)["/model/0.weight"]["update"] == pytest.approx(moved.item(), rel=0.5)


def test_moments_are_matched_past_buffers(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 1, 8, 8)).sum().backward()
    optimizer.step()
    state = {"optim": optimizer.state_dict(), "model": model.state_dict()}
    found = tensors(data_of(report(saved(tmp_path / "c", state))))
    matched = {name: row["moments"]["exp_avg"] for name, row in found.items() if "moments" in row}
    assert matched == {
        f"/model/{name}": f"/optim/state/{at}/exp_avg"
        for at, name in enumerate(("0.weight", "0.bias", "1.weight", "1.bias"))
    }


def test_health(tmp_path: Path) -> None:
    good = torch.randn(6, 6)
    dead = good.clone()
    dead[2] = 0
    state = {
        "good": good,
        "nan": torch.tensor([1.0, math.nan]),
        "inf": torch.tensor([1.0, -math.inf]),
        "large": good * 1e6,
        "half": torch.full((2,), 60_000.0).half(),
        "dead": dead,
        "zero": torch.zeros(6, 6),
        "tiny": torch.full((8,), 1e-42),
        "ids": torch.arange(100_000, 100_036),
    }
    assert findings(state, tmp_path) == {
        "NaN": ["/nan"],
        "Infinity": ["/inf"],
        "Very large values": ["/large", "/half"],
        "Near the end of float16": ["/half"],
        "Dead rows or columns": ["/dead"],
        "Denormal numbers": ["/tiny"],
        "Constant tensors": ["/half", "/zero", "/tiny"],
    }


def test_large_updates_and_growing_norms(tmp_path: Path) -> None:
    first, last = training_state(2), training_state(3)
    last["optimizer"]["param_groups"][0]["lr"] = 50.0
    last["model"]["2.bias"] = first["model"]["2.bias"] * 1000
    paths = [saved(tmp_path / "a", first), saved(tmp_path / "b", last)]
    data = data_of(report(paths))
    found = {one["title"]: [name for name, _ in one["tensors"]] for one in data["health"]}
    assert "/model/0.weight" in found["Large updates"]
    assert "/model/2.bias" in found["Growing norms"]


def test_two_side_by_side(tmp_path: Path) -> None:
    torch.manual_seed(0)
    weight, moved = torch.randn(700, 900), torch.randn(700, 900)
    one = {"same": weight, "w": weight, "shape": torch.ones(2), "old": torch.ones(1), "lr": 0.1}
    one["w"] = weight.clone()
    two: dict[str, Any] = {
        "same": weight.clone(),
        "w": weight + 0.1 * moved,
        "shape": torch.ones(3),
        "lr": 0.2,
    }
    two["new"] = torch.ones(5)
    paths = [saved(tmp_path / "a", one), saved(tmp_path / "b.json", two)]
    compared = data_of(report(paths))["compare"]
    rows = {row["name"]: row for row in compared["tensors"]}
    assert {name: row["status"] for name, row in rows.items()} == {
        "/same": "same",
        "/w": "changed",
        "/shape": "reshaped",
        "/old": "removed",
        "/new": "added",
    }
    wide, other = weight.double().flatten(), two["w"].double().flatten()
    assert rows["/w"]["distance"] == pytest.approx((wide - other).norm().item(), rel=1e-5)
    cosine = torch.nn.functional.cosine_similarity(wide, other, dim=0).item()
    assert rows["/w"]["cosine"] == pytest.approx(cosine, rel=1e-5)
    assert rows["/w"]["relative"] == pytest.approx(
        ((wide - other).norm() / wide.norm()).item(), 1e-5
    )
    assert rows["/same"]["relative"] == 0
    assert compared["values"] == [["/lr", "0.1", "0.2"]]


@pytest.mark.parametrize("name", ["b.json.zst", "b"])
def test_other_codecs_and_compressed_files(tmp_path: Path, name: str) -> None:
    one, two = {"a": torch.ones(9), "w": torch.ones(9)}, {"a": torch.ones(9), "w": torch.zeros(9)}
    options: dict[str, Any] = {} if name.endswith(".zst") else {"encoding": "list"}
    paths = [saved(tmp_path / "a", one), saved(tmp_path / name, two, **options)]
    rows = {row["name"]: row for row in data_of(report(paths))["compare"]["tensors"]}
    assert rows["/a"]["status"] == "same"
    expected = "unread" if name.endswith(".zst") else "changed"
    assert rows["/w"]["status"] == expected


def test_a_run_is_in_the_order_of_its_steps(tmp_path: Path) -> None:
    paths = [saved(tmp_path / str(step), training_state(step)) for step in (9, 3, 6)]
    data = data_of(report(paths))
    assert [one["step"] for one in data["checkpoints"]] == [3, 6, 9]
    assert data["title"] == "9"
    run = data["run"]
    assert len(run["values"]["learning rate"]) == 3
    assert "/step" not in run["values"]
    assert "/scheduler/last_epoch" not in run["values"]
    assert run["groups"].keys() == {"/model", "/optimizer exp_avg", "/optimizer exp_avg_sq"}
    norm = training_state(6)["model"]["0.weight"].double().norm().item()
    assert run["norms"]["/model/0.weight"][1] == pytest.approx(norm, rel=1e-5)
    assert run["broken"] == [0, 0, 0]


def test_ties_and_views_share_statistics(tmp_path: Path) -> None:
    weight = torch.randn(6, 4)
    state = {"w": weight, "tied": weight, "view": weight[1:3]}
    found = tensors(data_of(report(saved(tmp_path / "c", state))))
    assert found["/tied"]["of"] == "tied to /w"
    assert found["/tied"]["norm"] == found["/w"]["norm"]
    assert "own" in found["/w"]
    assert "own" not in found["/tied"]
    assert "own" not in found["/view"]


def test_torch_is_not_imported(tmp_path: Path) -> None:
    path = saved(tmp_path / "c", training_state(2))
    code = (
        "import sys, jsonckpt; jsonckpt.report(sys.argv[1]).save(sys.argv[2]); "
        "print('torch' in sys.modules)"
    )
    arguments = [sys.executable, "-c", code, str(path), str(tmp_path / "r.html")]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "False\n"


def test_memory_is_a_few_chunks(tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{at}", {"w": torch.randn(6_000_000)}) for at in range(2)]
    tracemalloc.start()
    try:
        report(paths)
        assert tracemalloc.get_traced_memory()[1] < 40 << 20
    finally:
        tracemalloc.stop()


def test_the_page_stays_small(tmp_path: Path) -> None:
    state = {"values": list(range(300_000)), "many": {str(at): [at, [at]] for at in range(9_000)}}
    made = report(saved(tmp_path / "c.json", state))
    assert len(made.html) < 2_000_000
    assert "more" in json.dumps(data_of(made)["tree"])


def test_nothing_from_a_checkpoint_is_markup(tmp_path: Path) -> None:
    made = report(saved(tmp_path / "<b>&.json", hostile_state()))
    assert data_of(made)["title"] == "<b>&.json"
    outside = re.sub(r'id="data">.*?</script>', "", made.html)
    for attack in ("onerror", "owned", "<!--", "]]>", "\u202e", "alert(1)"):
        assert attack not in outside
    inside = re.search(r'id="data">(.*?)</script>', made.html)
    assert inside
    assert not set(inside[1]) & set("<>&\u2028\u2029\u202e\x00")
    assert made.html.isascii() or not re.search("[\u202e\u2028]", made.html)
    shown = made._repr_html_()
    assert shown.count("<") == 2
    assert shown.startswith('<iframe sandbox="allow-scripts"')


def test_text_in_a_script() -> None:
    assert json.loads(as_script(ATTACKS[:-1])) == ATTACKS[:-1]
    assert as_script({"x": ATTACKS[-1]}).isascii()
    odd = {"a": math.nan, "b": math.inf, "c": 2**60, "d": 1.23456789, "e": (1, True)}
    assert plain(odd) == {"a": None, "b": "Infinity", "c": str(2**60), "d": 1.23457, "e": [1, True]}


def test_deep_and_long_values() -> None:
    deep: Any = 1
    for _ in range(5_000):
        deep = [deep, 2]
    lines = lines_of({"deep": deep, "text": "x" * 100_000, "k" * 9_999: 1})
    assert max(len(part) for line in lines for part in line[1:]) <= 200
    assert max(line[0] for line in lines) == 5_001


def test_where_a_page_is_written(tmp_path: Path) -> None:
    made = report(saved(tmp_path / "c", {"w": torch.ones(2)}))
    for _ in range(2):
        file = made.save(tmp_path / "new" / "folder" / "page.html")
        assert file.read_text(encoding="utf-8") == made.html
    with pytest.raises(jsonckpt.WriteError, match="new"):
        made.save(tmp_path / "new")
    with pytest.raises(jsonckpt.ArgumentError, match="local file"):
        made.save("https://example.org/page.html")


def test_progress_ends_at_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [saved(tmp_path / f"{at}", {"w": torch.full((9,), float(at))}) for at in range(2)]
    report(paths)
    assert capsys.readouterr().err == ""
    report(paths, progress=True)
    assert "108 B" in capsys.readouterr().err  # each once, and the second again to compare


@pytest.mark.parametrize("paths", [[], ()])
def test_no_path(paths: Any) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="needs a path"):
        report(paths)


def test_errors_name_the_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "c", {"w": torch.zeros(1000)}, compression="none")
    shard = next(path.glob("shard-*"))
    shard.write_bytes(shard.read_bytes().replace(b"AAAAAAAA", b"AAAABAAA", 1))
    with pytest.raises(jsonckpt.IntegrityError, match="/w"):
        report(path)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        report(tmp_path / "nothing")


def test_every_dtype(tmp_path: Path) -> None:
    state = {
        str(dtype): torch.ones(8, 8).to(dtype)
        for dtype in (torch.bool, torch.int64, torch.float16, torch.bfloat16, torch.float8_e5m2)
    }
    state["c"] = torch.ones(3, dtype=torch.complex64)
    state["scalar"] = torch.tensor(2.0)
    found = tensors(data_of(report(saved(tmp_path / "c", state))))
    assert all(row["max"] == 1 for name, row in found.items() if name != "/scalar")
    assert found["/scalar"]["max"] == 2
    assert found["/scalar"]["shape"] == []
    assert np.isfinite([row["norm"] for row in found.values()]).all()
