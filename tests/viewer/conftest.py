"""A browser for the tests of the page."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support import lacking
from tests.viewer.node import VIEWER

#: No connection to anywhere is tried: the page needs none, and the machine may have none.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
_FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("playwright", "the package playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        lacking("chromium", "there is no Chromium here")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def viewer(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens the page from the disk, with options of the browser's context; no error may occur."""
    contexts: list[Any] = []
    errors: list[str] = []
    requests: list[str] = []

    def open_page(**options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on(
            "console",
            lambda message: errors.append(message.text) if message.type == "error" else None,
        )
        page.on("request", lambda request: requests.append(request.url))
        page.goto((VIEWER / "index.html").as_uri())
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert errors == []
    assert requests == [(VIEWER / "index.html").as_uri()] * len(contexts)
