"""CPython's own tests of pickle, with ``save`` and ``load`` for ``dumps`` and ``loads``.

Each test ends in one of three ways. It passes: the value comes back. It is refused: the value is an
object with a class of its own, a function, a cycle, and the error says so. Or it is one of the
tests that look into pickle's own bytes, which say nothing here.
"""

from __future__ import annotations

import io
import pickle
import unittest
from pathlib import Path
from typing import Any

import pytest

from jsonckpt import JsonckptError, UnsupportedTypeError, load, save
from tests.outside.support import module_of

SUITE = module_of("test.pickletester", "pickletester")

#: Tests of plain values: these must come back.
PLAIN = {
    "test_bytes",
    "test_ellipsis",
    "test_float",
    "test_ints",
    "test_long",
    "test_many_puts_and_gets",
    "test_unicode",
    "test_unicode_high_plane",
}
#: They ask for pickle's own text, for its classes, or for its buffers. ("The same object twice" is
#: kept for tensors only.)
OF_PICKLE = {
    "test_buffers_numpy",
    "test_bytearray",
    "test_bytearray_memoization_bug",
    "test_compat_pickle",
    "test_evil_pickler_mutating_collection",
    "test_float_format",
    "test_framed_write_sizes_with_delayed_writer",
    "test_pickle_to_2x",
    "test_proto",
}


def _dumps(value: object, *_: object, **__: object) -> bytes:
    file = io.BytesIO()
    save(value, file)
    return file.getvalue()


def _loads(data: bytes, **_: object) -> Any:
    return load(io.BytesIO(data))


class _OfPickle(Exception):
    """A test that cannot be asked of another format."""


class ShimTests(SUITE.AbstractPickleTests, unittest.TestCase):  # type: ignore[misc, name-defined]
    __test__ = False  # each is run by the parametrized test below
    optimized = False

    dumps = staticmethod(_dumps)
    loads = staticmethod(_loads)

    @property
    def pickler(self) -> Any:
        raise _OfPickle


NAMES = [name for name in dir(ShimTests) if name.startswith("test_")]


def _error_of(name: str) -> BaseException | None:
    """What a test of the suite raised."""
    case = ShimTests(name)
    case.setUp()
    try:
        getattr(case, name)()
    except (Exception, unittest.SkipTest) as error:
        return error
    finally:
        case.tearDown()
        case.doCleanups()
    return None


def _looks_into_bytes(error: BaseException) -> bool:
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return at is not None and at.tb_frame.f_globals.get("__name__") == "pickletools"


@pytest.mark.parametrize("name", NAMES)
def test_every_test_passes_or_is_refused_by_name(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each test runs once for each of pickle's protocols: here they are all one.
    monkeypatch.setattr(SUITE, "protocols", [pickle.HIGHEST_PROTOCOL])
    error = _error_of(name)
    if name in PLAIN:
        assert error is None
    elif isinstance(error, unittest.SkipTest):
        pytest.skip(str(error))
    elif error is not None and name not in OF_PICKLE and not _looks_into_bytes(error):
        assert isinstance(error, UnsupportedTypeError), repr(error)
        assert error.hint


@pytest.mark.parametrize(
    "name", [name for name in NAMES if name.startswith("test_recursive_") and name.endswith(
        ("_list", "_tuple_and_dict", "_recursive_dict", "_tuple_and_list"))]
)  # fmt: skip
def test_a_cycle_of_plain_containers_is_refused_as_one(name: str) -> None:
    error = _error_of(name)
    assert isinstance(error, UnsupportedTypeError)
    assert "contains itself" in str(error)


def _pickles() -> dict[str, bytes]:
    found = {name: data for name, data in vars(SUITE).items() if type(data) is bytes}
    values = [None, 1, 2.5, "text", b"bytes", [1], (1,), {"a": [1, {2}]}, 10**40]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        found |= {f"{protocol}-{at}": pickle.dumps(v, protocol) for at, v in enumerate(values)}
    return {name: data for name, data in found.items() if len(data) > 1}


@pytest.mark.parametrize("data", _pickles().values(), ids=_pickles())
def test_a_pickle_is_no_checkpoint(data: bytes) -> None:
    with pytest.raises(JsonckptError):
        load(io.BytesIO(data))


class _Module(SUITE.AbstractPickleModuleTests, unittest.TestCase):  # type: ignore[misc, name-defined]
    __test__ = False
    dump = staticmethod(lambda value, file, *_: save(value, file))
    load = staticmethod(load)
    dumps = staticmethod(_dumps)
    loads = staticmethod(_loads)


@pytest.mark.parametrize(
    "name",
    [
        "test_dump_closed_file",
        "test_dump_text_file",
        "test_load_closed_file",
        "test_load_from_and_dump_to_file",
    ],
)
def test_files_are_treated_as_pickle_treats_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _Module(name).debug()
