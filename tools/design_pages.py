"""Writes the parts of the design pages that come from the source.

These are the picture ``docs/design/imports.svg`` (packages, modules, and which imports which) and
the table of modules in each page ``docs/design/PACKAGE.md``. With ``--check`` nothing is written,
and the exit code is 1 when something in the repository is out of date::

    python tools/design_pages.py
    python tools/design_pages.py --check
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "jsonckpt" / "_src"
PAGES = ROOT / "docs" / "design"
TABLE = re.compile(r"<!-- modules -->\n.*?<!-- end -->\n", re.DOTALL)
#: From the top down: rows of columns of packages. A package imports only from packages below it.
ROWS = [
    [["cli"]],
    [["commands"]],
    [["terminal"]],
    [
        ["rescue", "edit"],
        ["convert"],
        ["kaggle", "training", "distributed", "find", "load_into"],
        ["report"],
    ],
    [["sources"], ["diff"]],
    [["inspect"]],
    [["save"], ["load"], ["foreign", "json_stream"], ["pickles"]],
    [["standalone"]],
    [["tensors", "state"], ["shards"], ["storage"]],
    [["format"]],
    [["ground"]],
]
PACKAGES = [name for row in ROWS for column in row for name in column]
#: Modules that every package may use.
GROUND = {"boxes", "errors", "linux", "parallel", "progress", "shown"}
WIDTH, MARGIN, GAP, LINE = 1120, 24, 56, 17
SANS = 'font-family="Helvetica, Arial, sans-serif"'
Edge = tuple[str, str]
Box = tuple[float, float, float, float]


def package_of(parts: tuple[str, ...]) -> str:
    """The package of a module below ``_src``."""
    name = parts[0].removesuffix(".py")
    return "ground" if name in GROUND else name


def modules() -> dict[str, list[str]]:
    """The modules of each package."""
    found: dict[str, list[str]] = {}
    for file in sorted(SOURCE.rglob("*.py")):
        parts = file.relative_to(SOURCE).parts
        if file.name != "__init__.py":
            found.setdefault(package_of(parts), []).append(file.stem)
    return found


def edges() -> dict[Edge, int]:
    """How many modules of a first package import from a second one."""
    pairs: set[tuple[str, str, str]] = set()
    for file in SOURCE.rglob("*.py"):
        parts = file.relative_to(SOURCE).parts
        if parts == ("__init__.py",):
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            base = parts[: len(parts) - node.level]
            target = (*base, *(node.module.split(".") if node.module else ()))
            names = [target] if target else [(alias.name,) for alias in node.names]
            for name in names:
                first, second = package_of(parts), package_of(name)
                if first != second and name[0] != "_version":
                    pairs.add((first, second, "/".join(parts)))
    count: dict[Edge, int] = {}
    for first, second, _ in pairs:
        count[first, second] = count.get((first, second), 0) + 1
    return count


def direct(count: dict[Edge, int]) -> set[Edge]:
    """The edges that do not follow from other edges."""
    below: dict[str, set[str]] = {}
    for first, second in count:
        below.setdefault(first, set()).add(second)

    def reaches(start: str, end: str) -> bool:
        return end in below.get(start, ()) or any(reaches(n, end) for n in below.get(start, ()))

    return {
        (first, second)
        for first, second in count
        if not any(reaches(other, second) for other in below[first] if other != second)
    }


def sentence(package: str) -> str:
    """The purpose of a package: the first line of its docstring."""
    if package == "ground":
        return "What every package may use."
    text = (SOURCE / package / "__init__.py").read_text(encoding="utf-8")
    return (ast.get_docstring(ast.parse(text)) or "").partition("\n")[0].replace("`", "")


def wrapped(words: list[str], width: float) -> list[str]:
    """Break text into lines of at most ``width`` pixels."""
    lines = [""]
    for name in words:
        longer = f"{lines[-1]} {name}".lstrip()
        if len(longer) * 6.6 > width - 20 and lines[-1]:
            lines.append(name)
        else:
            lines[-1] = longer
    return lines


def box(
    name: str, lines: list[tuple[str, str]], place: tuple[float, float, float, float]
) -> list[str]:
    """A package as SVG: its name, and its modules."""
    x, y, width, height = place
    return [
        f'<rect x="{x:.0f}" y="{y:.0f}" width="{width:.0f}" height="{height:.0f}" rx="6" '
        'fill="#f6f8fa" stroke="#57606a"/>'
        f'<text x="{x + 12:.0f}" y="{y + 20:.0f}" {SANS} font-size="14" '
        f'font-weight="bold">{escape(name)}</text>',
        *(
            f'<text x="{x + 12:.0f}" y="{y + 38 + LINE * number:.0f}" {SANS} font-size="12" '
            f'fill="{colour}">{escape(line)}</text>'
            for number, (line, colour) in enumerate(lines)
        ),
    ]


def draw() -> str:
    """The picture as SVG text."""
    found, count = modules(), edges()
    unknown = set(found) - set(PACKAGES)
    if unknown:
        raise SystemExit(f"{sorted(unknown)} are in no row of {Path(__file__).name}")
    order = {name: number for number, name in enumerate(PACKAGES)}
    row_of = {name: number for number, row in enumerate(ROWS) for one in row for name in one}
    same = {name: one for row in ROWS for one in row for name in one}
    upward = [
        (first, second)
        for first, second in count
        if row_of[first] > row_of[second]
        or (
            row_of[first] == row_of[second]
            and not (same[first] is same[second] and order[first] < order[second])
        )
    ]
    if upward:
        raise SystemExit(f"imports that go up: {upward}")
    boxes: dict[str, Box] = {}
    texts: list[str] = []
    y = float(MARGIN)
    for row in ROWS:
        width = (WIDTH - MARGIN * (len(row) + 1)) / len(row)
        lines = {
            name: [(line, "#1f2328") for line in wrapped(sentence(name).split(), width)]
            + [(line, "#57606a") for line in wrapped(", ".join(found[name]).split(), width)]
            for one in row
            for name in one
        }
        tall = {name: 34.0 + LINE * len(text) for name, text in lines.items()}
        height = max(sum(tall[name] for name in one) + GAP * (len(one) - 1) for one in row)
        for column, names in enumerate(row):
            x, top = MARGIN + column * (width + MARGIN), y
            for name in names:
                high = height if len(names) == 1 else tall[name]
                boxes[name] = (x, top, width, high)
                texts += box(name, lines[name], boxes[name])
                top += high + GAP
        y += height + GAP
    arrows = []
    shown = direct(count)
    starts: dict[str, int] = {}
    for first, second in sorted(count, key=lambda edge: (order[edge[0]], edge)):
        if (first, second) not in shown:
            continue
        x, top, wide, high = boxes[first]
        starts[first] = starts.get(first, 0) + 1
        total = sum(1 for edge in shown if edge[0] == first)
        start = x + wide * starts[first] / (total + 1)
        left, bottom, across, _ = boxes[second]
        end = min(max(start, left + 20), left + across - 20)
        arrows.append(
            f'<path d="M {start:.0f} {top + high:.0f} L {end:.0f} {bottom - 3:.0f}" '
            'stroke="#0969da" stroke-width="1.6" fill="none" marker-end="url(#tip)"/>'
        )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y - GAP + MARGIN:.0f}">\n'
        "<title>Packages of jsonckpt and their imports</title>\n"
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#0969da"/></marker>'
        '</defs>\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([*arrows, *texts])
        + "\n</svg>\n"
    )


def table(page: Path) -> str:
    """A page with the table of its package's modules, from the first lines of their docstrings."""
    rows = []
    for file in sorted((SOURCE / page.stem).glob("*.py")):
        words = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        if file.name != "__init__.py":
            rows.append(f"| `{file.stem}` | {words.partition(chr(10))[0].replace('``', '`')} |\n")
    block = f"<!-- modules -->\n| module | |\n|---|---|\n{''.join(rows)}<!-- end -->\n"
    text, count = TABLE.subn(lambda _: block, page.read_text(encoding="utf-8"))
    if count != 1:
        raise SystemExit(
            f"{page.relative_to(ROOT)} needs one block <!-- modules --> ... <!-- end -->"
        )
    return text


def main() -> int:
    """Write the files that are out of date. With ``--check`` only name them."""
    parser = argparse.ArgumentParser(description="Picture and tables of the design pages.")
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    wanted = {page: table(page) for page in sorted(PAGES.glob("*.md"))}
    missing = {name for name in PACKAGES if name != "ground"} - {page.stem for page in wanted}
    if missing:
        raise SystemExit(f"no page for {sorted(missing)}")
    wanted[PAGES / "imports.svg"] = draw()
    stale = [
        file
        for file, text in wanted.items()
        if not file.exists() or file.read_text(encoding="utf-8") != text
    ]
    for file in stale:
        if check:
            print(f"{file.relative_to(ROOT)} is out of date: python tools/design_pages.py")
        else:
            file.write_text(wanted[file], encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
