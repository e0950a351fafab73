"""The docs build: every relative link leads somewhere, and every code block of every page runs.

A page's blocks run in their order, as they stand, in one empty directory; pages run side by side.
What is run is said by the language of a block:

- ``python``: all blocks of a page share one namespace, in one process; a warning is an error
- ``bash``: ``bash -euo pipefail``, with the commands of this environment in PATH
- ``javascript``: node
- ``sql``: DuckDB, one connection for the page

``text``, ``json``, ``yaml``, ``html`` and the like are shown only. A block without a language is an
error. A comment on the line before a block says what is special about it:

- ``<!-- not run: REASON -->``: it cannot run here. All these are listed at the end
- ``<!-- ci: NAME -->``: another step of CI runs it (see ``readme_command.py``)
- ``<!-- needs: NAME -->``: a program or module without which the block and the rest of its page
  are left out, which is listed, too. ``JSONCKPT_REQUIRE="docs"`` makes that an error
- ``<!-- exit: 3 -->``: the exit code that a bash block has
- ``<!-- clone -->``: it runs in a clone of the repository, so ``docs`` is there
- ``<!-- output -->``: before a ``text`` block: what the block before it printed; ``…`` stands for
  any text

Names of pages as arguments check only these::

    python .ci/check_docs.py [docs/guides/editing.md …]
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import types
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.resolve()
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
MARK = re.compile(r"^\s*<!-- (not run|ci|needs|exit|output|clone)(?:: ([^>]*?))? -->\s*$")
FENCE = re.compile(r"^(\s*)(`{3,})([\w+-]*)(.*)$")
SHOWN = {"text", "json", "yaml", "toml", "ini", "gitattributes", "html", "markdown"}
IMPLIED = {"javascript": "node", "sql": "duckdb"}


@dataclass
class Block:
    """A fenced block of a page."""

    language: str
    code: str
    line: int
    marks: dict[str, str] = field(default_factory=dict)


@dataclass
class Outcome:
    """What became of a page's blocks."""

    ran: int = 0
    shown: int = 0
    elsewhere: int = 0
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks of a page, with the comments before them."""
    blocks: list[Block] = []
    marks: dict[str, str] = {}
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        fence = FENCE.match(lines[at])
        if fence is None:
            if mark := MARK.match(lines[at]):
                marks[mark[1]] = mark[2] or ""
            elif lines[at].strip():
                marks = {}
            at += 1
            continue
        indent, ticks, language, _ = fence.groups()
        start = at
        at += 1
        while at < len(lines) and lines[at].strip() != ticks:
            at += 1
        code = "\n".join(line.removeprefix(indent) for line in lines[start + 1 : at]) + "\n"
        blocks.append(Block(language, code, start + 1, marks))
        marks = {}
        at += 1
    return blocks


def lacks(name: str) -> bool:
    """Whether this machine has neither a program nor a module of this name."""
    return shutil.which(name) is None and importlib.util.find_spec(name) is None


def matches(pattern: str, printed: str) -> bool:
    """Whether a printed text is the expected one, in which ``…`` stands for any text."""
    parts = [re.escape(part) for part in pattern.strip().split("…")]
    tidy = "\n".join(line.rstrip() for line in printed.strip().split("\n"))
    return re.fullmatch(".*?".join(parts), tidy, re.DOTALL) is not None


class Runner:
    """Runs the blocks of one page in the current directory."""

    def __init__(self, page: str) -> None:
        self.page = page
        # Dataclasses and pickles look the module of a class up.
        sys.modules["__docs__"] = types.ModuleType("__docs__")
        self.connection: Any = None

    def run(self, block: Block) -> str:
        """Run a block and return what it printed; an exception says that it failed."""
        return str(getattr(self, block.language)(block))

    def python(self, block: Block) -> str:
        """Run a block in the page's namespace."""
        printed = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(printed):
            warnings.simplefilter("error")
            code = "\n" * block.line + block.code
            exec(compile(code, self.page, "exec"), vars(sys.modules["__docs__"]))
        return printed.getvalue()

    def bash(self, block: Block) -> str:
        """Run a block as a script."""
        wanted = int(block.marks.get("exit", "0"))
        return self.called(["bash", "-euo", "pipefail", "-c", block.code], wanted)

    def javascript(self, block: Block) -> str:
        """Run a block as a program of node."""
        Path(".block.mjs").write_text(block.code, encoding="utf-8")
        return self.called(["node", ".block.mjs"])

    def sql(self, block: Block) -> str:
        """Run statements; what is printed are the rows of each."""
        duckdb = importlib.import_module("duckdb")
        self.connection = self.connection or duckdb.connect()
        rows: list[str] = []
        for statement in self.connection.extract_statements(block.code):
            found = self.connection.execute(statement).fetchall()
            rows += [" | ".join(map(str, row)) for row in found]
        return "\n".join(rows)

    def called(self, command: list[str], wanted: int = 0) -> str:
        """Run a program; what it prints on both outputs is for the error."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode != wanted:
            raise RuntimeError(f"exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout


def run_page(page: Path) -> Outcome:
    """Run the blocks of a page in the current directory, until one fails."""
    outcome, started = Outcome(), time.monotonic()
    name = str(page.relative_to(ROOT))
    runner, printed = Runner(str(page)), ""
    lacking = ""
    for block in blocks_of(page.read_text(encoding="utf-8")):
        place = f"{name}:{block.line}"
        if not block.language:
            outcome.problems.append(f"{place}: a block without a language; say text if it is shown")
        elif block.language in SHOWN:
            outcome.shown += 1
            if "output" in block.marks and not lacking and not matches(block.code, printed):
                outcome.problems.append(f"{place}: the block before it printed\n{printed}")
        elif "ci" in block.marks:
            outcome.elsewhere += 1
        elif "not run" in block.marks:
            why = block.marks["not run"] or "no reason is given"
            outcome.left_out.append(f"{place}: {why}")
        elif not hasattr(Runner, block.language):
            outcome.problems.append(f"{place}: nothing runs {block.language}")
        else:
            needs = [*block.marks.get("needs", "").split(), IMPLIED.get(block.language, "bash")]
            lacking = lacking or next((need for need in needs if lacks(need)), "")
            if lacking:
                outcome.left_out.append(f"{place}: no {lacking} here")
                continue
            if "clone" in block.marks and not os.path.lexists("docs"):
                os.symlink(ROOT / "docs", "docs")
            try:
                printed = runner.run(block)
                outcome.ran += 1
            except Exception as error:
                shown = "".join(traceback.format_exception_only(error))
                outcome.problems.append(f"{place}: {shown}in\n{block.code}")
                break
    outcome.seconds = time.monotonic() - started
    return outcome


def in_a_room(page: Path, directory: Path) -> None:
    """Run a page in an empty directory, in a child process, which ends here."""
    code = 1
    try:
        with open(directory / "printed", "w", encoding="utf-8") as printed:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
        room = directory / "page"
        room.mkdir()
        os.chdir(room)
        outcome = asdict(run_page(page))
        (directory / "outcome").write_text(json.dumps(outcome), encoding="utf-8")
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def run_pages(pages: list[Path]) -> dict[Path, Outcome]:
    """Run each page in a child process, as many at once as there are processors.

    The children are forked after torch is imported, which takes seconds.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    # Pages run side by side. More threads make each command slower to start, not faster.
    os.environ.update(PATH=path, PYTHONPATH=paths, PYTHONDONTWRITEBYTECODE="1", OMP_NUM_THREADS="1")
    sys.path.insert(0, str(ROOT))
    if any("import torch" in page.read_text(encoding="utf-8") for page in pages):
        importlib.import_module("torch")
    outcomes: dict[Path, Outcome] = {}
    running: dict[int, tuple[Path, Path]] = {}
    waiting = list(pages)
    with tempfile.TemporaryDirectory() as rooms:
        while waiting or running:
            while waiting and len(running) < (os.cpu_count() or 1):
                page = waiting.pop(0)
                directory = Path(tempfile.mkdtemp(dir=rooms))
                if (child := os.fork()) == 0:
                    in_a_room(page, directory)
                running[child] = page, directory
            child, status = os.wait()
            page, directory = running.pop(child)
            if status:
                said = (directory / "printed").read_text(encoding="utf-8")
                name = page.relative_to(ROOT)
                outcomes[page] = Outcome(problems=[f"{name}: wait status {status}: {said}"])
            else:
                text = (directory / "outcome").read_text(encoding="utf-8")
                outcomes[page] = Outcome(**json.loads(text))
    return outcomes


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as the usual renderers make them."""
    headings = re.findall(r"^#+ +(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


def bad_links(page: Path) -> list[str]:
    """The relative links of a page that lead nowhere."""
    problems = []
    lines = page.read_text(encoding="utf-8").split("\n")
    for block in reversed(blocks_of("\n".join(lines))):
        del lines[block.line : block.line + block.code.count("\n")]
    for link in LINK.findall("\n".join(lines)):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists():
            problems.append(f"{page.relative_to(ROOT)}: {link} leads nowhere")
        elif anchor and target.suffix == ".md" and anchor not in anchors(target):
            problems.append(f"{page.relative_to(ROOT)}: {link}: no such heading")
    return problems


def main(arguments: list[str]) -> int:
    """Check the pages; the number of problems is the exit code."""
    pages = [Path(argument).resolve() for argument in arguments] or list(PAGES)
    problems = [problem for page in pages for problem in bad_links(page)]
    # Each command of a page imports torch: those with the most of them begin.
    pages.sort(key=lambda page: page.read_text(encoding="utf-8").count("\njsonckpt "), reverse=True)
    outcomes = run_pages(pages)
    problems += [problem for outcome in outcomes.values() for problem in outcome.problems]
    left_out = [line for outcome in outcomes.values() for line in outcome.left_out]
    if "docs" in os.environ.get("JSONCKPT_REQUIRE", "").split():
        problems += [line for line in left_out if line.endswith(" here")]
    print("\n".join(f"not run: {line}" for line in left_out))
    ran, shown, elsewhere = (
        sum(getattr(outcome, name) for outcome in outcomes.values())
        for name in ("ran", "shown", "elsewhere")
    )
    print(
        f"{len(pages)} pages: {ran} blocks run, {elsewhere} run by other steps of CI, "
        f"{shown} of text, {len(left_out)} not run"
    )
    slowest = max(outcomes, key=lambda page: outcomes[page].seconds)
    print(f"the slowest page: {slowest.relative_to(ROOT)}, {outcomes[slowest].seconds:.1f} s")
    print("\n".join(problems))
    return min(len(problems), 100)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
