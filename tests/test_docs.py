"""The documentation: every public name has an entry, and the checks of its pages find faults."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jsonckpt
import jsonckpt.convert
import jsonckpt.edit
import jsonckpt.torch_compat
import jsonckpt.training
from tests.support import lacking
from tools import site_hooks

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"


def script(name: str) -> Any:
    """A script of CI as a module."""
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


CHECK = script("check_docs")
SITE = script("check_site")


@pytest.mark.parametrize(
    "module",
    [jsonckpt, jsonckpt.training, jsonckpt.edit, jsonckpt.convert, jsonckpt.torch_compat],
)
def test_the_reference_has_every_public_name(module: ModuleType) -> None:
    pages = "".join(page.read_text("utf-8") for page in REFERENCE.glob("*.md"))
    entries = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    wanted = {f"{module.__name__}.{name}" for name in module.__all__ if name != "__version__"}
    found = {name for name in entries if name.rpartition(".")[0] == module.__name__}
    assert found == wanted
    assert len(entries) == len(set(entries))


def test_every_block_that_is_not_run_says_why() -> None:
    marked = [
        (page.name, block.line)
        for page in CHECK.PAGES
        for block in CHECK.blocks_of(page.read_text("utf-8"))
        if block.marks.get("not run") == ""
    ]
    assert marked == []


def outcome_of(text: str, tmp_path: Path) -> Any:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return CHECK.run_page(page)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CHECK, "ROOT", tmp_path)
    monkeypatch.chdir(tmp_path)


def test_blocks_of_a_page_run_in_order_and_share_names(tmp_path: Path) -> None:
    text = """
```python
a = 1
open("made", "w").close()
```

- in a list:

  ```bash
  test -e made && echo "there: $((1 + 1))"
  ```

<!-- output -->
```text
there: …
```

```python
assert a == 1
```
"""
    outcome = outcome_of(text, tmp_path)
    assert outcome.problems == []
    assert (outcome.ran, outcome.shown) == (3, 1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("```python\nassert 1 == 2\n```\n", "page.md:1: AssertionError"),
        ("```python\nimport warnings\nwarnings.warn('old')\n```\n", "UserWarning: old"),
        ("```bash\nfalse\ntrue\n```\n", "exit code 1"),
        ("<!-- exit: 3 -->\n```bash\ntrue\n```\n", "exit code 0"),
        ("```\nshown\n```\n", "a block without a language"),
        ("```ruby\nputs 1\n```\n", "nothing runs ruby"),
        (
            "```bash\necho 1\n```\n\n<!-- output -->\n```text\n2\n```\n",
            "the block before it printed",
        ),
    ],
)
def test_a_fault_in_a_page_is_a_problem(text: str, said: str, tmp_path: Path) -> None:
    [problem] = outcome_of(text, tmp_path).problems
    assert said in problem


def test_what_is_not_run_is_listed(tmp_path: Path) -> None:
    text = """
<!-- not run: it needs an account -->
```bash
false
```

<!-- needs: no-such-program -->
```bash
no-such-program
```

```python
after = "this needs what the block before it makes"
```

<!-- ci: job -->
```bash
false
```
"""
    outcome = outcome_of(text, tmp_path)
    assert outcome.problems == []
    assert outcome.left_out == [
        "page.md:3: it needs an account",
        "page.md:8: no no-such-program here",
        "page.md:12: no no-such-program here",
    ]
    assert (outcome.ran, outcome.elsewhere) == (0, 1)


def test_a_page_that_ends_its_process_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "check_docs.py", tmp_path / ".ci")
    (tmp_path / "bad.md").write_text("```python\nimport os\n\nos.kill(os.getpid(), 9)\n```\n")
    (tmp_path / "good.md").write_text("```bash\ntouch made\n```\n\n```bash\ntest -e made\n```\n")
    command = [sys.executable, str(tmp_path / ".ci" / "check_docs.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "2 pages: 2 blocks run" in done.stdout
    assert "bad.md: wait status 9" in done.stdout
    assert not (tmp_path / "made").exists()


def test_bad_links_are_found_outside_blocks_only(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("[a](gone.md) [b](#here) [c](#gone)\n\n# Here\n\n```text\n[d](e)\n```\n")
    assert CHECK.bad_links(page) == [
        "page.md: gone.md leads nowhere",
        "page.md: #gone: no such heading",
    ]


def test_links_between_the_top_and_the_site() -> None:
    change = site_hooks.site_links
    assert change("[d](docs/design.md#limits)", "") == "[d](design.md#limits)"
    assert change("[s](../../SECURITY.md)", "docs/guides") == "[s](../security.md)"
    assert change("[t](../tests/support.py)", "docs") == "t"
    assert change("[w](https://example.org/x)", "docs") == "[w](https://example.org/x)"
    assert change("![p](docs/p.svg)", "") == "![p](p.svg)"


def test_docstrings_become_markdown() -> None:
    if importlib.util.find_spec("griffe") is None:
        lacking("docs", "the docs extra is not installed")
    from tools.site_docstrings import shown

    text = (
        "Read it, see :func:`jsonckpt.load`.\n\nArgs:\n    a, b: two of ``them``, and\n        "
        "more.\n    c: one.\n\nReturns:\n    a :class:`X`.\n\n>>> 1\n1\n"
    )
    assert shown(text) == (
        "Read it, see `jsonckpt.load`.\n\n**Arguments**\n\n- `a`, `b`: two of `them`, and more.\n"
        "- `c`: one.\n\n**Returns**\n\na `X`.\n\n```pycon\n>>> 1\n1\n```"
    )


@pytest.mark.parametrize(
    ("name", "text", "code"),
    [
        ("a.html", '<a href="https://example.org">x</a><img src="p.svg">', 0),
        ("a.html", '<script src="https://example.org/x.js"></script>', 1),
        ("a.html", '<link rel="stylesheet" href="//example.org/x.css">', 1),
        ("a.css", "@font-face { src: url(https://example.org/f.woff) }", 1),
    ],
)
def test_remote_requests_of_the_site_are_found(
    name: str, text: str, code: int, tmp_path: Path
) -> None:
    (tmp_path / "index.html").write_text("<p>")
    (tmp_path / name).write_text(text)
    assert SITE.main(tmp_path) == code
