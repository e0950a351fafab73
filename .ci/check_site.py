"""The built site asks for nothing elsewhere: no script, style, font or picture of another host.

Links that a reader clicks may lead anywhere::

    python .ci/check_site.py SITE
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

REMOTE = re.compile(r"^(https?:)?//")
CSS = re.compile(r"url\(\s*['\"]?((?:https?:)?//[^)'\"]+)|@import\s+['\"]((?:https?:)?//[^'\"]+)")


class Requests(HTMLParser):
    """Collects what a browser fetches by itself when it shows a page."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the addresses of a tag that is no link for the reader."""
        values = dict(attrs)
        names = ["src", "srcset", "poster", "data"]
        if tag == "link" and values.get("rel") not in {"canonical", "next", "prev"}:
            names.append("href")
        for name in names:
            value = values.get(name) or ""
            if REMOTE.match(value):
                self.found.append(f"<{tag} {name}={value}>")


def main(site: Path) -> int:
    """Check each page and style sheet; 1 if anything is remote."""
    problems, pages = [], 0
    for file in sorted(site.rglob("*")):
        if file.suffix == ".html":
            pages += 1
            parser = Requests()
            parser.feed(file.read_text(encoding="utf-8"))
            problems += [f"{file.relative_to(site)}: {found}" for found in parser.found]
        elif file.suffix == ".css":
            for match in CSS.finditer(file.read_text(encoding="utf-8")):
                problems.append(f"{file.relative_to(site)}: {match[0]}")
    print("\n".join(problems) or f"{pages} pages ask for nothing elsewhere")
    return 1 if problems or not pages else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
