"""A headless Chromium that records what a page does."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..support import lacking

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser; the test is left out where there is none."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        lacking("chromium", "needs the package playwright")
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        lacking("chromium", "needs the program chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


class Visit:
    """A page that is open, with all it said and asked for."""

    def __init__(self, browser: Any, file: Path, **options: Any) -> None:
        self.said: list[str] = []
        self.asked: list[str] = []
        self.page = browser.new_page(**{"viewport": {"width": 1280, "height": 900}, **options})
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", lambda dialog: self.said.append(f"dialog {dialog.message}"))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(file.as_uri())
        self.page.wait_for_selector("html[data-ready]")
        self.file = file

    def close(self) -> None:
        """Check that the page was quiet and asked for nothing but itself."""
        self.page.close()
        assert self.said == []
        assert [url for url in self.asked if not url.startswith("data:")] == [self.file.as_uri()]


@contextmanager
def visit(browser: Any, file: Path, **options: Any) -> Iterator[Any]:
    """A page; at the end it must have been quiet."""
    opened = Visit(browser, file, **options)
    yield opened.page
    opened.close()


def rows(page: Any, section: str = "tensors") -> list[str]:
    """The names in the rows of a table that are drawn, from the top."""
    found = page.locator(f"#{section} .row .whole").evaluate_all(
        "nodes => nodes.map(n => [n.parentNode.offsetTop, n.title])"
    )
    return [title for _, title in sorted(found)]
