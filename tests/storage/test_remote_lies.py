"""A store that lies, in every answer: errors of ours or the right tensors, and no long wait."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import CheckpointManager, JsonckptError
from tests.support import lacking

try:
    import fsspec
    from fsspec.implementations.memory import MemoryFileSystem
except ImportError:
    lacking("fsspec", "the store that lies is one of its file systems")

STATE = {"w": torch.arange(5_000.0), "b": torch.ones(3)}
SIZES: list[Any] = [0, 7, 1 << 62, 1 << 70, -5, None, "x", "12", []]
TYPES: list[Any] = ["directory", "other", None]
PATHS: list[Any] = ["", "../x", None, 5]
INFO: list[tuple[str, Any]] = [
    (key, value)
    for key, values in (("size", SIZES), ("type", TYPES), ("name", PATHS))
    for value in values
]
NAMES: list[Any] = ["..", "", ".", "a\0b", "/etc/passwd", "step-00000009", "\ud800", "x" * 5_000,
                    "shard-0.json", None, 5]  # fmt: skip


class Liar(MemoryFileSystem):  # type: ignore[misc]
    """Some answers are lies."""

    protocol = "liar"
    cachable = False
    draw = random.Random(0)
    chance = 0.0

    def _lies(self) -> bool:
        return self.draw.random() < Liar.chance

    def info(self, path: str, **options: Any) -> Any:
        facts = dict(super().info(path, **options))
        if self._lies():
            key, value = self.draw.choice([*INFO, ("", None)])
            if not key:
                return self.draw.choice([None, "text", {}])
            facts[key] = value
        return facts

    def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
        rows = list(super().ls(path, detail=detail, **options))
        if not self._lies() or not detail:
            return rows
        row = {
            "name": self.draw.choice(NAMES),
            "size": self.draw.choice([0, -1, None, "x", 1 << 70]),
            "type": self.draw.choice(["file", "directory", None]),
        }
        return self.draw.choice([None, "text", [], rows + rows, [*rows, row], [*rows, None, 5]])

    def cat_file(self, path: str, start: Any = None, end: Any = None, **options: Any) -> Any:
        data = super().cat_file(path, start=start, end=end, **options)
        if not self._lies():
            return data
        place = self.draw.randrange(len(data)) if data else 0
        flipped = data[:place] + bytes(byte ^ 1 for byte in data[place : place + 1])
        lies = [data[:-1], data + b"x" * 99, b"", None, "text", flipped + data[place + 1 :]]
        return self.draw.choice([*lies, super().cat_file(path)])

    def exists(self, path: str, **options: Any) -> bool:
        return bool(super().exists(path, **options)) ^ self._lies()


@pytest.fixture
def store() -> Iterator[dict[str, bytes]]:
    """An honest store with two checkpoints."""
    fsspec.register_implementation("liar", Liar, clobber=True)
    before = dict(MemoryFileSystem.store), list(MemoryFileSystem.pseudo_dirs)
    MemoryFileSystem.store.clear()
    Liar.chance = 0.0
    jsonckpt.save(STATE, "liar://d/c")
    jsonckpt.save(STATE, "liar://d/s.json")
    yield {path: file.getvalue() for path, file in MemoryFileSystem.store.items()}
    Liar.chance = 0.0
    MemoryFileSystem.store.clear()
    MemoryFileSystem.store.update(before[0])
    MemoryFileSystem.pseudo_dirs[:] = before[1]


def train() -> None:
    with CheckpointManager("liar://d/run", keep_last=2, every_steps=1) as manager:
        filled = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
        manager.restore(filled)
        manager.step(9, STATE)
        manager.steps()
        manager.latest()


def whole(state: Any) -> None:
    assert torch.equal(state["w"], STATE["w"])
    assert torch.equal(state["b"], STATE["b"])


def into() -> None:
    filled = {name: torch.zeros_like(tensor) for name, tensor in STATE.items()}
    jsonckpt.load_into(filled, "liar://d/c")
    whole(filled)


def part() -> None:
    assert jsonckpt.open("liar://d/c")["/w"][5:8].tolist() == [5, 6, 7]


CALLS: dict[str, Callable[[Path], object]] = {
    "load": lambda _: whole(jsonckpt.load("liar://d/c")),
    "load a file": lambda _: whole(jsonckpt.load("liar://d/s.json")),
    "part": lambda _: part(),
    "into": lambda _: into(),
    "stream": lambda _: list(jsonckpt.stream("liar://d/c")),
    "verify": lambda _: jsonckpt.verify("liar://d/c"),
    "find": lambda _: jsonckpt.find("liar://d"),
    "save": lambda _: jsonckpt.save(STATE, "liar://d/new"),
    "overwrite": lambda _: jsonckpt.save(STATE, "liar://d/c"),
    "gc": lambda _: jsonckpt.gc("liar://d/c"),
    "recover": lambda path: jsonckpt.recover("liar://d/c", path / str(len(list(path.iterdir())))),
    "manager": lambda _: train(),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("call", CALLS)
def test_a_store_that_lies(store: dict[str, bytes], tmp_path: Path, call: str) -> None:
    outcomes = {"error": 0, "done": 0}
    for seed in range(40):
        Liar.chance, Liar.draw = 0.0, random.Random(f"{call} {seed}")
        MemoryFileSystem.store.clear()
        for path, data in store.items():
            Liar().pipe_file(path, data)
        Liar.chance = (0.05, 0.2, 0.5)[seed % 3]
        try:
            CALLS[call](tmp_path)
        except JsonckptError:
            outcomes["error"] += 1
        else:
            outcomes["done"] += 1
    assert outcomes["done"]
    assert outcomes["error"] or call in ("find", "save", "verify")


def test_odd_names_in_a_listing_are_no_steps(store: dict[str, bytes]) -> None:
    del store
    from jsonckpt._src.transfer.run_store import RemoteRun

    listed: list[Any] = [{"name": name, "size": "x", "type": "file"} for name in NAMES]
    run = RemoteRun("liar://d")
    run._files.requests.fs.ls = lambda *_, **__: [*listed, None, "text"]
    entries = run.entries()
    assert {entry.name for entry in entries} == {
        "a\0b", "passwd", "step-00000009", "x" * 5_000, "shard-0.json"
    }  # fmt: skip
    assert {entry.nbytes for entry in entries} == {0}
