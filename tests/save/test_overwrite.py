"""A save replaces a checkpoint while somebody reads it: one or the other is read, never a mix."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.storage.local import LocalLocation

Save = Callable[[int], None]


def _state(number: int) -> dict[str, Any]:
    return {"a": torch.full((4,), number), "b": torch.full((9,), number), "number": number}


def _numbers(state: dict[str, Any]) -> set[int]:
    return {int(n) for name in "ab" for n in state[name]} | {state["number"]}


@pytest.fixture
def overwrites(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """What happens, one by one, whenever a shard is about to be opened."""
    pending: list[Callable[[], None]] = []
    for method in ("file", "stream"):
        real = getattr(LocalLocation, method)

        def opened(place: LocalLocation, name: str, *, real: Any = real, **options: Any) -> Any:
            if pending and name != "manifest.json":
                action = pending.pop(0)
                action()
            return real(place, name, **options)

        monkeypatch.setattr(LocalLocation, method, opened)
    return pending


def _replace(path: Path, number: int) -> Callable[[], None]:
    return lambda: _save(path, number)


def _save(path: Path, number: int) -> None:
    jsonckpt.save(_state(number), path, max_shard_size=40)


def _into(path: Path) -> Any:
    target = _state(0)
    jsonckpt.load_into(target, path)
    return target


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_load_takes_the_new_one(
    tmp_path: Path, name: str, overwrites: list[Callable[[], None]]
) -> None:
    path = tmp_path / name
    for reader in (jsonckpt.load, _into):
        _save(path, 1)
        # A single file is opened twice: to see what is in it, and to read it.
        overwrites[:] = [lambda: None] * (name != "c") + [_replace(path, 2)]
        assert _numbers(reader(path)) == {2}
        assert not overwrites
    _save(path, 1)
    overwrites[:] = [lambda: None] * (name != "c") + [_replace(path, 2)]
    assert jsonckpt.verify(path)


def test_load_does_not_try_for_ever(tmp_path: Path, overwrites: list[Callable[[], None]]) -> None:
    path = tmp_path / "c"
    _save(path, 0)
    overwrites[:] = [_replace(path, number) for number in range(1, 10)]
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="overwritten 4 times"):
        jsonckpt.load(path)
    assert len(overwrites) == 5


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_an_open_checkpoint_stays_what_it_was(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    _save(path, 1)
    with jsonckpt.open(path, verify=False) as checkpoint:
        assert int(checkpoint["/a"].load()[0]) == 1
        _save(path, 2)
        for read in (
            checkpoint.load,
            checkpoint["/b"].load,
            lambda: checkpoint["/b"][1:3],
            lambda: checkpoint["/a"][0],
        ):
            with pytest.raises(jsonckpt.JsonckptError, match="overwritten since it was opened"):
                read()


def test_load_into_does_not_mix(tmp_path: Path, overwrites: list[Callable[[], None]]) -> None:
    """Once tensors have been overwritten, there is no second try."""
    path = tmp_path / "c"
    _save(path, 1)
    # Two shards: both are looked for first, then read.
    overwrites[:] = [*[lambda: None] * 3, _replace(path, 2)]
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="overwritten since"):
        _into(path)


def test_an_error_that_no_save_has_caused_is_told_at_once(
    tmp_path: Path, overwrites: list[Callable[[], None]]
) -> None:
    path = tmp_path / "c"
    _save(path, 1)
    overwrites[:] = [(lambda: next(path.glob("shard-*")).unlink()), *[lambda: None] * 9]
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="missing"):
        jsonckpt.load(path)
    assert len(overwrites) >= 7
