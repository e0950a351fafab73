"""Docstrings as the documentation site shows them (``mkdocs.yml``).

Docstrings are written for ``help()``: names in Sphinx's roles, and examples without a heading. Here
roles become code, and examples get the heading by which the site recognises them.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|ref):`~?([^`]+)`")


def shown(text: str) -> str:
    """A docstring in the style that the site reads."""
    text = ROLE.sub(r"`\1`", text).replace("``", "`").replace("::\n", ":\n")
    paragraphs = text.split("\n\n")
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith(">>>"):
            body = "\n".join(f"    {line}".rstrip() for line in paragraph.split("\n"))
            paragraphs[number] = f"Examples:\n{body}"
    return "\n\n".join(paragraphs)


class Docstrings(Extension):
    """Changes each docstring once it is read."""

    def on_object(self, *, obj: Object, **_: Any) -> None:
        """Change the docstring of a module, class, function or attribute."""
        if obj.docstring is not None:
            obj.docstring.value = shown(obj.docstring.value)
