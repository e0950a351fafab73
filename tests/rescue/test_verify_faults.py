"""``verify`` where the system cannot read: each chunk by its name, and nothing twice."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

STATE = {f"t{n}": torch.full((4_000,), float(n)) for n in range(4)}


def _break(monkeypatch: pytest.MonkeyPatch, path: Path, start: int, stop: int) -> None:
    """Let reads of ``[start, stop)`` of a file fail, as on a bad disk."""
    preadv = os.preadv
    inode = path.stat().st_ino

    def failing(fd: int, buffers: Any, offset: int, *rest: Any) -> int:
        length = sum(len(buffer) for buffer in buffers)
        if os.fstat(fd).st_ino == inode and offset < stop and start < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset, *rest)

    monkeypatch.setattr("os.preadv", failing)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("name", "last", "named"),
    [
        ("c.json", (1, 3), [("/t1", 2), ("/t1", 3)]),
        ("c", (1, 3), [("/t1", 2), ("/t1", 3)]),
        ("c", (2, 0), [("/t1", 2), ("/t1", 3), ("/t2", 0)]),
    ],
)
def test_chunks_that_cannot_be_read_are_named(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    last: tuple[int, int],
    named: list[tuple[str, int]],
    deep: bool,
) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, path, chunk_size=4_000)
    with jsonckpt.open(path) as checkpoint:
        entries = list(checkpoint.manifest.entries)
    file = path if path.is_file() else next(path.glob("shard-*"))
    stop = entries[last[0]].chunks[last[1]][0] + 9
    _break(monkeypatch, file, entries[1].chunks[2][0] + 9, stop)
    report = jsonckpt.verify(path, deep=deep)
    assert [(problem.tensor, problem.chunk) for problem in report.problems] == named
    for problem in report.problems:
        assert problem.message == "cannot read: Input/output error"
        assert problem.file == str(file)


def test_the_text_of_a_record_that_cannot_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonckpt.save(STATE, tmp_path / "c")
    with jsonckpt.open(tmp_path / "c") as checkpoint:
        offset = checkpoint.manifest.entries[2].offset
    _break(monkeypatch, next((tmp_path / "c").glob("shard-*")), offset + 1, offset + 2)
    [problem] = jsonckpt.verify(tmp_path / "c").problems
    assert (problem.tensor, problem.chunk) == ("/t2", None)


def test_a_file_that_cannot_be_opened_is_one_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonckpt.save(STATE, tmp_path / "c")
    really_open = os.open

    def refuse(name: Any, *arguments: Any, **options: Any) -> int:
        if "shard-" in os.fspath(name):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(name, *arguments, **options)

    monkeypatch.setattr("os.open", refuse)
    [problem] = jsonckpt.verify(tmp_path / "c").problems
    assert (problem.tensor, problem.message) == (None, "cannot open: Permission denied")
