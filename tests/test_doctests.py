"""Every example in the docstrings of the package runs."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import jsonckpt
from tests.support import framework

MODULES = [
    found.name
    for found in pkgutil.walk_packages(jsonckpt.__path__, "jsonckpt.")
    if not found.name.endswith("__main__")
]
#: Their modules import what may not be installed.
ADAPTERS = ("jsonckpt._src.frameworks.", "jsonckpt.integrations.")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    load = framework if name.startswith(ADAPTERS) else importlib.import_module
    outcome = doctest.testmod(load(name))
    assert outcome.failed == 0


def test_there_are_examples() -> None:
    """The public functions have some, so the test above looks at something."""
    finder = doctest.DocTestFinder()
    for public in (jsonckpt.save, jsonckpt.load, jsonckpt.load_into, jsonckpt.open, jsonckpt.stream,
                   jsonckpt.save_async, jsonckpt.verify, jsonckpt.register):  # fmt: skip
        assert any(test.examples for test in finder.find(public)), public
