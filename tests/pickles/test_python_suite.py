"""CPython's own tests of unpickling, run against the reader that imports and calls nothing.

Each ends in one of two ways. It passes. Or it is refused: what it unpickles is an object with a
class of its own, and the error names it.
"""

from __future__ import annotations

import tempfile
import unittest
from pathlib import Path
from typing import Any

import pytest

from jsonckpt import JsonckptError, UnsupportedTypeError
from tests.outside.support import module_of
from tests.pickles.support import loaded

SUITE = module_of("test.pickletester", "pickletester")
#: They ask for what no file can have: buffers beside it, extension codes, Python's own errors.
OF_PYTHON = {
    "test_bad_newobj",
    "test_bad_newobj_ex",
    "test_bad_reduce",
    "test_badly_escaped_string",
    "test_badly_quoted_string",
    "test_get",
    "test_misc_get",
    "test_load_classic_instance",
    "test_load_str",
    "test_truncated_data",
    "test_negative_32b_binunicode",
    "test_unpickle_module_race",
}


def _loads(data: bytes, **options: Any) -> Any:
    encoding = {"encoding": options["encoding"]} if "encoding" in options else {}
    with tempfile.TemporaryDirectory() as directory:
        return loaded(data, Path(directory), **encoding)


class ShimTests(SUITE.AbstractUnpickleTests, unittest.TestCase):  # type: ignore[misc, name-defined]
    __test__ = False  # each is run by the parametrized test below
    bad_stack_errors = (JsonckptError,)
    truncated_errors = (JsonckptError,)

    loads = staticmethod(_loads)


NAMES = [name for name in dir(ShimTests) if name.startswith("test_") and name not in OF_PYTHON]


def test_the_suite_is_there() -> None:
    assert len(NAMES) > 30


@pytest.mark.parametrize("name", NAMES)
def test_python_s_own_tests_of_unpickling(name: str) -> None:
    case = ShimTests(name)
    try:
        getattr(case, name)()
        passed = True
    except UnsupportedTypeError as error:
        passed = "it imports" in str(error)
    assert passed
