"""The page in a browser: opened from the disk, with files from the disk, and no network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests.viewer.node import VIEWER, node
from tools import viewer_page

Viewer = Callable[..., Any]


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three checkpoints of a run: a directory, a single file, a compressed one."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(1)
    weight = torch.randn(64, 32)
    state = {
        "model": {"weight": weight, "head": weight, "bias": torch.zeros(32, dtype=torch.bfloat16)},
        "optimizer": {
            "state": {0: {"exp_avg": torch.rand(64, 32)}},
            "param_groups": [{"lr": 2e-4}],
        },
        "rng": {"numpy": np.random.default_rng(7).bit_generator.state},
        "nothing": torch.zeros(0, 3),
        "bad": torch.tensor([1.0, float("nan"), float("inf")]),
        "epoch": 3,
        "step": 1200,
    }
    jsonckpt.save(state, folder / "step-1200", max_shard_size=9000, metadata={"run": "é"})
    jsonckpt.save(state, folder / "best.json", compression="zstd")
    jsonckpt.save(state, folder / "last.json.zst")
    return folder


def opened(page: Any, path: Path) -> Any:
    """The page with a file or a folder opened."""
    page.set_input_files("#folder-input" if path.is_dir() else "#file-input", path)
    page.wait_for_selector("body[data-opened]")
    return page


def names(page: Any) -> list[str]:
    found: list[str] = page.locator("#rows .cell.name").all_inner_texts()
    return found


def test_the_page_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert viewer_page.main(["--check"]) == 0, capsys.readouterr().out


def test_the_scripts_are_valid_and_need_no_network() -> None:
    page = (VIEWER / "index.html").read_text("utf-8")
    script = viewer_page.bundle(VIEWER / "page" / "app.js")
    subprocess.run([node(), "--check", "-"], input=script.encode(), check=True)
    for word in ("fetch(", "XMLHttpRequest", "WebSocket", "innerHTML", "eval(", "document.write"):
        assert word not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize("name", ["step-1200", "best.json", "last.json.zst"])
def test_a_checkpoint_is_opened(name: str, viewer: Viewer, run_folder: Path) -> None:
    page = opened(viewer(), run_folder / name)
    assert page.inner_text("#title") == name
    assert "✓ seal" in page.inner_text("#badges")
    facts = page.inner_text("#facts")
    assert "jsonckpt" in facts
    assert "xxh3_128" in facts
    # torch.equal ties the head to the weight: it is a row of its own
    assert names(page)[:2] == ["/model/weight", "/model/bias"]
    assert "/model/head" in names(page)
    assert "epoch 3" in page.inner_text("#highlights")
    assert "lr 0.0002" in page.inner_text("#highlights")
    page.click("button.badge:text-is('Check all')")
    page.wait_for_selector("button.badge:has-text('✓ all 5 tensors')")


def test_search_sort_and_keys(viewer: Viewer, run_folder: Path) -> None:
    page = opened(viewer(), run_folder / "best.json")
    page.fill("#search", "model BF".lower())
    assert names(page) == ["/model/bias"]
    assert page.inner_text("#found").startswith("1 of 6")
    page.fill("#search", "")
    page.click("#columns .nbytes button")
    assert names(page)[0] in ("/model/weight", "/optimizer/state/0/exp_avg")
    assert page.get_attribute("#columns .nbytes", "aria-sort") == "descending"
    page.click("#columns .nbytes button")
    assert names(page)[0] == "/nothing"
    page.click("#columns .name button")
    assert names(page) == sorted(names(page))
    page.keyboard.press("/")
    page.keyboard.type("exp")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.inner_text("#tensor h3") == "/optimizer/state/0/exp_avg"
    page.keyboard.press("Escape")
    assert page.is_hidden("#panel")


def test_a_tensor_in_detail(viewer: Viewer, run_folder: Path) -> None:
    page = opened(viewer(), run_folder / "step-1200")
    weight = jsonckpt.load(run_folder / "step-1200")["model"]["weight"]
    page.click("#rows .cell.name:text-is('/model/weight')")
    page.wait_for_selector("canvas.heat")
    tiles = dict(
        zip(
            page.locator(".numbers dt").all_inner_texts(),
            page.locator(".numbers dd").all_inner_texts(),
        )
    )
    assert float(tiles["Min"]) == pytest.approx(weight.min().item(), rel=1e-3)
    assert float(tiles["Mean"]) == pytest.approx(weight.mean().item(), rel=1e-3)
    assert float(tiles["Std"]) == pytest.approx(weight.std(correction=0).item(), rel=1e-3)
    assert float(tiles["Norm"]) == pytest.approx(weight.norm().item(), rel=1e-3)
    assert page.locator(".histogram rect").count() > 20
    page.fill("label:has-text('from row') input", "60")
    page.wait_for_selector(".grid th:text-is('63')")
    cell = page.locator(".grid tbody tr").nth(3).locator("td").nth(2)
    assert np.float32(cell.inner_text()) == weight[63, 2].item()
    page.click("button:has-text('Check xxh3_128')")
    page.wait_for_selector(".check .good")
    page.fill("#search", "bad")
    page.click("#rows .cell.name:text-is('/bad')")
    page.wait_for_selector(".numbers .bad")
    assert "1 (33.33 %)" in page.inner_text(".numbers")
    page.fill("#search", "nothing")
    page.click("#rows .cell.name:text-is('/nothing')")
    page.wait_for_selector("text=The tensor has no elements.")


def test_the_state_tree_shows_every_digit(viewer: Viewer, run_folder: Path) -> None:
    page = opened(viewer(), run_folder / "step-1200")
    page.click("#tab-state")
    page.click("#tree button.line:has(.key:text-is('rng'))")
    page.click("#tree button.line:has(.key:text-is('numpy'))")
    page.click("#tree button.line:has(.key:text-is('state')) >> nth=-1")
    number = np.random.default_rng(7).bit_generator.state["state"]["state"]
    assert number > 2**64
    assert str(number) in page.inner_text("#tree")
    page.click("#tree button.line:has(.key:text-is('model'))")
    page.click("#tree button.tensor >> nth=0")
    assert page.inner_text("#tensor h3") == "/model/weight"
    assert page.get_attribute("#tab-tensors", "aria-selected") == "true"


def test_a_folder_of_many_and_shards_given_later(viewer: Viewer, run_folder: Path) -> None:
    page = viewer()
    page.set_input_files("#folder-input", run_folder)
    page.wait_for_selector("#choices button")
    assert page.locator("#choices button").count() == 3
    page.click("#choices button:has-text('best.json')")
    page.wait_for_selector("body[data-opened]")
    page = opened(viewer(), run_folder / "step-1200" / "manifest.json")
    assert "not given" in page.inner_text("#badges")
    assert "epoch 3" in page.inner_text("#highlights")
    page.click("#rows .row >> nth=0")
    page.wait_for_selector("#tensor .bad")
    page.set_input_files("#file-input", sorted((run_folder / "step-1200").glob("shard-*")))
    page.wait_for_selector("#badges:not(:has-text('not given'))")
    page.click("#rows .row >> nth=0")
    page.wait_for_selector("canvas.heat")


def test_files_are_dropped(viewer: Viewer, run_folder: Path) -> None:
    page = viewer()
    content = (run_folder / "best.json").read_bytes()
    page.evaluate(
        """(bytes) => {
          const transfer = new DataTransfer();
          transfer.items.add(new File([new Uint8Array(bytes)], "dropped.json"));
          for (const kind of ["dragenter", "dragover", "drop"]) {
            document.body.dispatchEvent(
              new DragEvent(kind, { dataTransfer: transfer, bubbles: true, cancelable: true }));
          }
        }""",
        list(content),
    )
    page.wait_for_selector("body[data-opened]")
    assert page.inner_text("#title") == "dropped.json"


def test_what_is_no_checkpoint(viewer: Viewer, tmp_path: Path, run_folder: Path) -> None:
    page = viewer()
    for name, content, message in [
        ("other.json", b'{"a":1}', "no checkpoint of jsonckpt"),
        ("cut.json", (run_folder / "best.json").read_bytes()[:-40], "byte"),
    ]:
        (tmp_path / name).write_bytes(content)
        page.set_input_files("#file-input", tmp_path / name)
        page.wait_for_selector("#message.bad")
        assert message in page.inner_text("#message")


NAUGHTY = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(1)</script>",
    "a\u202egnp.exe",
    "${alert(1)}",
    "__proto__",
    "constructor",
    "x" * 900,
    "&lt;b&gt;",
    "'\"><svg onload=alert(1)>",
]


def test_nothing_of_a_checkpoint_becomes_html(viewer: Viewer, tmp_path: Path) -> None:
    state = {name: {"value": name, "weight": torch.ones(2)} for name in NAUGHTY}
    state["history"] = [{"loss": "<b>1</b>", "epoch": "<i>2</i>"}]  # type: ignore[assignment]
    path = tmp_path / "<b>run.json"
    jsonckpt.save(state, path, metadata={"<u>k</u>": "</style><script>alert(1)</script>"})
    text = json.loads(path.read_text())
    text["created_by"], text["created_at"], text["seal"] = "<img src=x>", "<img src=y>", None
    path.write_text(json.dumps(text))
    page = viewer()
    page.evaluate("void (window.alert = () => { document.body.dataset.attacked = 'yes'; })")
    made = "document.querySelectorAll('img, script, b:not(.chip b), u, iframe, svg[onload]').length"
    before = page.evaluate(made)
    opened(page, path)
    for place in range(len(NAUGHTY)):
        page.click(f"#rows .row >> nth={place}")
        page.wait_for_selector(".grid td")
    page.click("#tab-state")
    closed = "document.querySelectorAll('#tree button.line[aria-expanded=false]')"
    for _ in range(3):
        page.evaluate(f"{closed}.forEach((button) => button.click())")
    assert page.evaluate(f"{closed}.length") == 0
    assert page.evaluate(made) == before
    assert page.get_attribute("body", "data-attacked") is None
    tree = page.inner_text("#tree")
    assert "<img src=x onerror=alert(1)>" in tree
    assert "a\\u202egnp.exe" in tree
    assert "\u202e" not in page.inner_text("body")
    assert "edited by hand" in page.inner_text("#badges")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "many.json"
    names = [f"layers.{i // 10}.block.{i % 10}.weight" for i in range(10_000)]
    jsonckpt.save({name: torch.full((4, 8), 1.0) for name in names}, path)
    return path


def test_ten_thousand_tensors_stay_fluent(viewer: Viewer, many: Path) -> None:
    page = opened(viewer(), many)
    print("opened in", page.get_attribute("body", "data-opened"))
    assert page.locator("#rows .row").count() < 100
    times = page.evaluate(
        """() => {
          const search = document.getElementById("search");
          const times = [];
          for (const text of ["l", "la", "layers.9", "layers.99", "block.3", ""]) {
            const start = performance.now();
            search.value = text;
            search.dispatchEvent(new Event("input"));
            document.getElementById("rows").getBoundingClientRect();
            times.push(performance.now() - start);
          }
          return times;
        }"""
    )
    print("milliseconds for a keystroke:", [round(time, 1) for time in times])
    page.click("#columns .name button")
    page.evaluate("document.getElementById('rows').scrollTop = 1e9")
    page.wait_for_selector("#rows .cell.name:text-is('/layers.999.block.9.weight')")
    assert page.locator("#rows .row").count() < 100
    page.fill("#search", "layers.77. block.3")
    assert names(page) == ["/layers.77.block.3.weight"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_nothing_is_cut_off(scheme: str, viewer: Viewer, run_folder: Path) -> None:
    page = opened(
        viewer(color_scheme=scheme, viewport={"width": 390, "height": 844}),
        run_folder / "best.json",
    )
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(16, 20, 27)") == (scheme == "dark")
    wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
    assert not page.evaluate(wide)
    page.click("#rows .row >> nth=0")
    page.wait_for_selector("canvas.heat")
    assert not page.evaluate(wide)
    assert page.locator("#panel").bounding_box()["width"] == 390
    page.click("#close")
    assert page.is_hidden("#panel")
