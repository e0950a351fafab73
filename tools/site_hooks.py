"""Hooks of the documentation site (``mkdocs.yml``).

Some pages lie at the top of the repository, where people look for them. They become pages of the
site, too, and links to them and from them lead there. Other links that leave ``docs/`` go to files
that the site does not have: they become plain text.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
#: Files at the top, and the pages that they become.
TOP = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "README.md": "index.md",
}
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def site_links(text: str, directory: str) -> str:
    """Change links between the top and ``docs/``; ``directory`` is that of the page."""

    def change(match: re.Match[str]) -> str:
        image, words, path, anchor = match[1], match[2], match[3], match[4] or ""
        if "://" in path or path.startswith("mailto:"):
            return match[0]
        target = posixpath.normpath(posixpath.join(directory, path))
        if target in TOP:
            target = f"docs/{TOP[target]}"
        if not target.startswith("docs/"):
            return words
        home = directory if directory.startswith("docs") else "docs"
        return f"{image}[{words}]({posixpath.relpath(target, home)}{anchor})"

    return LINK.sub(change, text)


def on_config(config: Any) -> Any:
    """Add the pages of the packages to the last entry of the navigation."""
    pages = sorted(path.name for path in (ROOT / "docs" / "design").glob("*.md"))
    [last] = config["nav"][-1].values()
    last.append({"Packages": [{name.removesuffix(".md"): f"design/{name}"} for name in pages]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages from the top."""
    from mkdocs.structure.files import File  # so that tests need no mkdocs

    for source, page in TOP.items():
        if page != "index.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            content = site_links(text, "")
            files.append(File.generated(config, page, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Change the links of a page that lead out of ``docs/``."""
    if page.file.src_uri in TOP.values() and page.file.src_uri != "index.md":
        return markdown
    return site_links(markdown, posixpath.dirname(f"docs/{page.file.src_uri}"))
