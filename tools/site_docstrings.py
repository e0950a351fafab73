"""Docstrings as the documentation site shows them (``mkdocs.yml``).

Docstrings are written for ``help()``: names in Sphinx's roles, one entry for several arguments, and
examples without a heading. Here they become the Markdown that the site shows.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc):`~?([^`]+)`")
SECTION = re.compile(
    r"^(Args|Attributes|Raises|Returns|Yields):\n((?: {4}.*\n?|\n)+)", re.MULTILINE
)
TITLES = {"Args": "Arguments"}
#: One or several names with commas between them, and what is said of them.
ENTRY = re.compile(r"^((?:\*{0,2}[A-Za-z_][\w.]*)(?:,\s*[A-Za-z_][\w.]*)*):\s", re.MULTILINE)


def as_list(section: re.Match[str]) -> str:
    """A section of arguments, attributes or errors as a list."""
    title, body = section[1], textwrap.dedent(section[2]).strip()
    heading = f"**{TITLES.get(title, title)}**\n\n"
    if title in {"Returns", "Yields"}:
        return f"{heading}{body}\n\n"
    # What stands before the first entry is empty; then names and their texts take turns.
    _, *parts = ENTRY.split(body)
    entries = []
    for names, text in zip(parts[::2], parts[1::2]):
        quoted = ", ".join(f"`{name.strip()}`" for name in names.split(","))
        words = " ".join(text.split())
        entries.append(f"- {quoted}: {words}\n")
    return f"{heading}{''.join(entries)}\n"


def shown(text: str) -> str:
    """A docstring as Markdown."""
    text = ROLE.sub(r"`\1`", text).replace("``", "`").replace("::\n", ":\n")
    paragraphs = SECTION.sub(as_list, text + "\n").split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if paragraph.lstrip("\n").startswith(">>>"):
            paragraphs[number] = f"```pycon\n{paragraph.strip()}\n```"
    return "\n\n".join(paragraphs).strip()


class Docstrings(Extension):
    """Changes each docstring once it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
