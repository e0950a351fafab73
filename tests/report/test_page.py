"""The page in a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.report.api import report

from .browser import chromium, rows, visit
from .states import ATTACKS, hostile_state, saved, training_state

CLICK_ALL = """selector => [...document.querySelectorAll(selector)].slice(0, 300).forEach(
    node => node.dispatchEvent(new MouseEvent("click", {bubbles: true})))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    path = saved(folder / "run.json", training_state(12), metadata={"note": "first run"})
    return report(path).save(folder / "one.html")


def text(page: Any, selector: str) -> str:
    return " ".join(page.locator(selector).inner_text().split())


def test_it_shows_what_is_in_a_checkpoint(browser: Any, one: Path) -> None:
    with visit(browser, one) as page:
        overview = text(page, "#overview")
        for fact in ("step 12", "epoch 1", "learning rate 0.002824", "first run", "saved"):
            assert fact in overview
        assert "history" in overview
        assert "loss" in overview
        assert page.locator("#overview .chart").count() == 1
        assert page.locator("#bytes svg g").count() > 5
        assert "optimizer" in text(page, "#state")
        assert "rng" in text(page, "#state")
        assert page.locator("#compare").is_hidden()
        assert page.locator("#run").is_hidden()


def test_search_sort_and_choose(browser: Any, one: Path) -> None:
    with visit(browser, one) as page:
        assert rows(page)[0] == "/rng/torch"
        page.get_by_label("Search tensors").fill("model weight 20x30")
        assert rows(page) == ["/model/0.weight"]
        assert "1 of" in text(page, "#tensors .tools")
        page.get_by_label("Search tensors").fill("no such tensor")
        assert rows(page) == []
        assert "Nothing matches" in text(page, "#tensors")
        page.get_by_label("Search tensors").fill("/model")
        page.locator("#tensors .head button", has_text="Name").click()
        names = rows(page)
        assert names == sorted(names)
        assert len(names) == 4
        page.locator("#tensors .head button", has_text="Name").click()
        assert rows(page) == names[::-1]
        page.locator("#tensors .row", has_text="0.weight").click()
        detail = text(page, ".detail")
        assert "/model/0.weight" in detail
        assert "20 × 30" in detail
        assert "exp_avg" in detail
        assert page.locator(".detail canvas").first.evaluate("c => [c.width, c.height]") == [30, 20]
        colours = page.locator(".detail canvas").first.evaluate(
            "c => new Set(c.getContext('2d').getImageData(0, 0, 30, 20).data).size"
        )
        assert colours > 50
        page.locator(".detail button", has_text="exp_avg_sq").click()
        assert "Kept for /model/0.weight" in text(page, ".detail")


def test_the_keyboard_is_enough(browser: Any, one: Path) -> None:
    with visit(browser, one) as page:
        page.keyboard.press("/")
        page.keyboard.type("bias")
        page.locator("#tensors .scroll").focus()
        page.keyboard.press("ArrowDown")
        page.keyboard.press("ArrowDown")
        assert text(page, ".detail h3") == rows(page)[1]
        page.locator("#bytes svg > g").first.focus()
        page.keyboard.press("Enter")
        assert page.locator("#bytes .crumbs button").count() >= 1


def test_the_tree_opens_and_closes(browser: Any, one: Path) -> None:
    with visit(browser, one) as page:
        tree = page.locator("#state .tree")
        for key in ("optimizer", "param_groups", "0"):
            exact = page.locator(".key", has_text=re.compile(f"^{key}$"))
            node = tree.locator("> .node, > [role=group] > .node").filter(has=exact).first
            if node.get_attribute("aria-expanded") != "true":
                node.click()
            tree = node.locator("xpath=following-sibling::div[1]")
        betas = page.locator("#state .node", has_text="betas").first
        assert betas.is_visible()
        page.locator("#state .node").first.click()
        assert not betas.is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark(browser: Any, one: Path, scheme: str) -> None:
    with visit(browser, one, color_scheme=scheme) as page:
        brightness = "() => parseInt(getComputedStyle(document.body).backgroundColor.slice(4))"
        before = page.evaluate(brightness)
        assert (before > 128) == (scheme == "light")
        page.locator("#theme").click()
        assert (page.evaluate(brightness) > 128) == (scheme == "dark")


@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_nothing_scrolls_sideways(browser: Any, one: Path, width: int) -> None:
    with visit(browser, one, viewport={"width": width, "height": 800}) as page:
        inner = page.evaluate("document.documentElement.scrollWidth")
        assert inner <= width
        page.locator("#tensors .row").first.click()
        page.wait_for_timeout(300)
        assert page.locator(".detail").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        if width < 1080:
            page.get_by_label("Close").click()
            page.wait_for_timeout(300)
            assert not page.locator(".detail").is_visible()


def test_two_side_by_side(browser: Any, tmp_path: Path) -> None:
    first, second = training_state(3), training_state(9)
    second["model"]["new"] = torch.ones(3)
    paths = saved(tmp_path / "a", first), saved(tmp_path / "b.json", second)
    with visit(browser, report(paths).save(tmp_path / "two.html")) as page:
        compare = text(page, "#compare")
        assert "From a (step 3) to b.json (step 9)" in compare
        assert "1 added" in compare
        assert "tensors changed" in compare
        assert "/step" in rows(page, "compare")
        assert "/model/0.weight" in rows(page, "compare")


def test_a_run(browser: Any, tmp_path: Path) -> None:
    paths = [saved(tmp_path / f"{step}", training_state(step)) for step in (8, 2, 5)]
    with visit(browser, report(paths).save(tmp_path / "run.html")) as page:
        run = text(page, "#run")
        assert "3 checkpoints, step 2 to 8" in run
        assert "learning rate" in run
        assert "NaN and infinite elements" in run
        assert page.locator("#run .chart").count() >= 4
        page.locator("#run .row", has_text="0.weight").first.click()
        assert "Norm over the steps" in text(page, ".detail")


def test_nothing_from_a_hostile_checkpoint_becomes_html(browser: Any, tmp_path: Path) -> None:
    metadata = {text.encode("utf-8", "replace").decode(): text[:5] for text in ATTACKS[:5]}
    names = [f"<b>{at}&amp;.json" for at in range(3)]
    paths = [saved(tmp_path / name, hostile_state(), metadata=metadata) for name in names]
    for number in (1, 2, 3):
        page_of = report(paths[:number])
        file = page_of.save(tmp_path / "hostile.html")
        assert file.stat().st_size < 2_000_000
        with visit(browser, file) as page:
            assert page.title().endswith("checkpoint report")
            for name in rows(page):
                assert not re.search("[\u202e\u2066\u200b\x00]", name)
            for selector in ("summary", ".node[aria-expanded=false]", ".row", ".treemap g") * 3:
                page.evaluate(CLICK_ALL, selector)
            page.wait_for_timeout(200)
            assert page.locator("img, b[onclick], [onerror], [onclick], iframe").count() == 0
            assert page.locator("script").count() == 2
            assert page.title().endswith("checkpoint report")


def test_a_notebook_shows_it_in_a_frame(browser: Any, tmp_path: Path) -> None:
    shown = report(saved(tmp_path / "c.json", hostile_state()))._repr_html_()
    file = tmp_path / "notebook.html"
    file.write_text(f"<!doctype html><html data-ready=1><meta charset=utf-8>{shown}</html>")
    with visit(browser, file) as page:
        frame = page.frame_locator("iframe")
        frame.locator("html[data-ready]").wait_for()
        assert frame.locator("#tensors .row").count() > 5
        assert page.locator("script, img").count() == 0


def test_ten_thousand_tensors_stay_fluent(browser: Any, tmp_path: Path) -> None:
    state = {f"blocks.{at // 20}.weight_{at % 20}": torch.randn(4, 6) for at in range(10_000)}
    file = report(saved(tmp_path / "many", {"model": state})).save(tmp_path / "many.html")
    assert file.stat().st_size < 8_000_000
    begin = time.perf_counter()
    with visit(browser, file) as page:
        opened = time.perf_counter() - begin
        assert page.locator("#tensors .row").count() < 60
        assert page.evaluate("document.querySelectorAll('*').length") < 6_000
        begin = time.perf_counter()
        page.get_by_label("Search tensors").fill("blocks.499.weight_7")
        assert rows(page) == ["/model/blocks.499.weight_7"]
        searched = time.perf_counter() - begin
        page.get_by_label("Search tensors").fill("")
        begin = time.perf_counter()
        page.locator("#tensors .head button", has_text="Norm").click()
        sort = time.perf_counter() - begin
        assert page.locator("#tensors .row").count() < 60
        page.locator("#tensors .scroll").evaluate("node => node.scrollTop = 100000")
        page.wait_for_timeout(100)
        assert len(rows(page)) < 60
    print(f"10,000 tensors: open {opened:.2f} s, search {searched:.2f} s, sort {sort:.2f} s")


def test_empty_states(browser: Any, tmp_path: Path) -> None:
    for number, state in enumerate(({}, {"a": torch.empty(0)}, 3, torch.tensor(1.0))):
        path = saved(tmp_path / f"{number}.json", state)
        with visit(browser, report(path).save(tmp_path / "empty.html")) as page:
            assert page.locator("#state .node").count() >= 1
    assert jsonckpt.load(tmp_path / "2.json") == 3
