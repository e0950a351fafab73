"""Builds docs/viewer/index.html: one page that holds its scripts and its style.

A page that is opened from a disk (``file://``) may load no module from another file. So all modules
are put into the page, each in a function of its own. Its policy names their checksums, and forbids
every other script and all of the network.

    python tools/viewer_page.py           # write the page
    python tools/viewer_page.py --check   # only say whether it is up to date
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import re
import sys
from pathlib import Path

VIEWER = Path(__file__).parents[1] / "docs" / "viewer"
_IMPORT = re.compile(r'^import (?:(\{[^}]*\}) from )?"([^"]+)";\n', re.MULTILINE)
_EXPORTED = re.compile(
    r"^export (?=(?:async )?(?:function\*?|class|const|let) (\w+))", re.MULTILINE
)
_EXPORT_LIST = re.compile(r"^export \{([^}]*)\};\n", re.MULTILINE)


def bundle(entry: Path) -> str:
    """A module and all that it imports as one script."""
    done: dict[Path, str] = {}

    def add(path: Path) -> None:
        if path in done:
            return
        text = path.read_text("utf-8")
        done[path] = ""  # imports in a circle end here; their order would be wrong
        for _, target in _IMPORT.findall(text):
            add((path.parent / target).resolve())
        del done[path]  # to the end: after what it imports
        done[path] = _as_function(path, text)

    add(entry.resolve())
    return '"use strict";\n' + "\n".join(done.values())


def _as_function(path: Path, text: str) -> str:
    def imported(match: re.Match[str]) -> str:
        names = (match[1] or "{}").replace(" as ", ": ")
        return f"const {names} = {_name((path.parent / match[2]).resolve())};\n"

    exported = _EXPORTED.findall(text)
    for names in _EXPORT_LIST.findall(text):
        exported += [name.strip() for name in names.split(",") if name.strip()]
    body = _EXPORT_LIST.sub("", _EXPORTED.sub("", _IMPORT.sub(imported, text)))
    return f"const {_name(path)} = (() => {{\n{body}return {{ {', '.join(exported)} }};\n}})();\n"


def _name(path: Path) -> str:
    return "module_" + re.sub(r"\W", "_", path.relative_to(VIEWER.resolve()).stem)


def _checksum(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def page() -> str:
    """The text of the page."""
    script = bundle(VIEWER / "page" / "app.js")
    style = (VIEWER / "page" / "viewer.css").read_text("utf-8")
    if "</script" in script.lower() or "<!--" in script:
        raise ValueError("the scripts hold what ends a script in HTML")
    policy = [
        "default-src 'none'",
        f"script-src {_checksum(script)}",
        f"style-src {_checksum(style)}",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    text = (VIEWER / "page" / "page.html").read_text("utf-8")
    for mark, part in [("@POLICY@", "; ".join(policy)), ("@STYLE@", style), ("@SCRIPT@", script)]:
        text = text.replace(mark, part)
    return text


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build docs/viewer/index.html.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if it is old")
    options = parser.parse_args(arguments)
    target = VIEWER / "index.html"
    text = page()
    if options.check:
        if not target.exists() or target.read_text("utf-8") != text:
            print("docs/viewer/index.html is not up to date: run python tools/viewer_page.py")
            return 1
        return 0
    target.write_text(text, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
