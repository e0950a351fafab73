"""The docs build: every relative link and anchor leads somewhere, every Python block runs.

Blocks of a page run one after the other in one namespace, in an empty directory. A block that only
shows something is marked with the comment ``<!-- not run -->`` before it.
"""

import os
import re
import sys
import tempfile
import warnings
from pathlib import Path

ROOT = Path(__file__).parent.parent.resolve()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"(<!-- not run -->\n+)?```python\n(.*?)```", re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def main() -> int:
    """Check every page; the number of problems is the exit code."""
    problems = []
    ran = 0
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in LINK.findall(text):
            if "://" in link or link.startswith("mailto:"):
                continue
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.exists():
                problems.append(f"{page.relative_to(ROOT)}: {link} leads nowhere")
            elif anchor and target.suffix == ".md" and anchor not in anchors(target):
                problems.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
        namespace: dict[str, object] = {"__name__": "__docs__"}
        with tempfile.TemporaryDirectory() as directory:
            os.chdir(directory)
            for skipped, block in BLOCK.findall(text):
                if skipped:
                    continue
                try:
                    with warnings.catch_warnings():
                        warnings.simplefilter("error")
                        exec(compile(block, str(page), "exec"), namespace)
                    ran += 1
                except Exception as error:
                    problems.append(f"{page.relative_to(ROOT)}: {error!r} in\n{block}")
                    break
            os.chdir(ROOT)
    print("\n".join(problems) or f"{len(PAGES)} pages, {ran} blocks run")
    return min(len(problems), 100)


if __name__ == "__main__":
    sys.exit(main())
