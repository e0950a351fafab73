"""A disk that cannot be read is an error of ours with the file in it, not the system's alone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.storage import local

CASES: dict[str, dict[str, Any]] = {
    "c": {},
    "c.json": {},
    "c.json.zst": {},
    "lists": {"encoding": "list", "compression": "zstd"},
}
DOORS: dict[str, Callable[[Path], Any]] = {
    "load": jsonckpt.load,
    "stream": lambda path: list(jsonckpt.stream(path)),
    "load_into": lambda path: jsonckpt.load_into({"w": torch.zeros(50_000)}, path),
}


class Broken:
    """A file of which the first bytes can be read, and no more."""

    def __init__(self, file: Any, good: int) -> None:
        self._file, self._left = file, good

    def readinto(self, buffer: memoryview) -> int:
        if self._left <= 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        count: int = self._file.readinto(buffer[: self._left])
        self._left -= count
        return count

    def read(self, size: int) -> bytes:
        buffer = bytearray(size)
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def close(self) -> None:
        self._file.close()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards and single files have an unreadable block behind their first 2,000 bytes."""
    preadv, opened = os.preadv, open

    def read(fd: int, buffers: Any, offset: int) -> int:
        if offset + len(buffers[0]) > 2_000 and os.fstat(fd).st_size > 4_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", read)
    monkeypatch.setattr(
        local, "open", lambda *a, **k: Broken(opened(*a, **k), 2_000), raising=False
    )


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("name", CASES)
def test_an_unreadable_block(tmp_path: Path, name: str, door: str) -> None:
    path = tmp_path / name
    jsonckpt.save({"w": torch.randn(50_000)}, path, sync=False, **CASES[name])
    with pytest.raises(jsonckpt.JsonckptError, match="cannot read: Input/output error") as caught:
        DOORS[door](path)
    error = caught.value
    assert error.file is not None
    assert str(path) in error.file
    assert isinstance(error.__cause__, OSError)
    assert "take another copy" in str(error)


@pytest.mark.usefixtures("broken")
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_verify_reports_it(tmp_path: Path, name: str, deep: bool) -> None:
    path = tmp_path / name
    jsonckpt.save({"w": torch.randn(50_000)}, path, sync=False, **CASES[name])
    report = jsonckpt.verify(path, deep=deep)
    assert not report
    assert any("Input/output error" in str(problem) for problem in report.problems)


@pytest.mark.parametrize(
    ("number", "way"),
    [
        (errno.EACCES, "Check the permissions"),
        (errno.EMFILE, "Too many files are open"),
        (errno.EIO, "take another copy"),
    ],
)
@pytest.mark.parametrize("name", CASES)
def test_a_file_that_cannot_be_opened(
    tmp_path: Path, name: str, number: int, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    jsonckpt.save({"w": torch.ones(9)}, path, sync=False, **CASES[name])

    def refuse(*_: object, **__: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(jsonckpt.JsonckptError, match="cannot open: ") as caught:
        jsonckpt.load(path)
    monkeypatch.undo()
    assert caught.value.file is not None
    assert way in str(caught.value)
