"""A remote save fails at each of its calls in turn: the old checkpoint or the new one loads."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import training
from tests.support import same

pytest.importorskip("fsspec")

from tests.faulty_files import EarlyFiles, FaultyFiles, ForeignError, StoreFiles

OLD = {"w": torch.arange(40.0), "b": [torch.ones(3)], "epoch": 1}
NEW = {"w": torch.arange(40.0) + 1, "b": [torch.zeros(3)], "epoch": 2}
ERRORS: dict[str, Callable[[], BaseException]] = {
    "lost": lambda: ConnectionResetError("the answer is lost"),
    "foreign": lambda: ForeignError("something of a library"),
    "refused": lambda: PermissionError(13, "you may not"),
    "interrupt": KeyboardInterrupt,
}


@pytest.fixture(autouse=True)
def _nothing_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    FaultyFiles.store.clear()
    monkeypatch.setattr("jsonckpt._src.remote.requests.FIRST_WAIT", 0.0)


def new_url(kind: type[FaultyFiles], name: str) -> str:
    return f"{kind.protocol[1]}://{uuid.uuid4().hex}/{name}"


def stored(url: str) -> list[str]:
    start = "/" + url.partition("://")[2].rpartition("/")[0]
    return sorted(name for name in FaultyFiles.store if name.startswith(start))


def save(state: Any, url: str) -> jsonckpt.SaveResult:
    return jsonckpt.save(state, url, max_shard_size=100, threads=1)


def calls_of(url: str, *, old: bool) -> list[str]:
    if old:
        save(OLD, url)
    with FaultyFiles.failing(-1, None) as fault:
        save(NEW, url)
    calls: list[str] = fault.calls
    return calls


@pytest.mark.parametrize("happens", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("old", [False, True], ids=["new", "overwrite"])
@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
@pytest.mark.parametrize("kind", [FaultyFiles, StoreFiles])
def test_a_fault_at_every_call(
    kind: type[FaultyFiles], name: str, old: bool, error: str, happens: bool
) -> None:
    count = len(calls_of(new_url(kind, name), old=old))
    assert count >= 3
    for at in range(count):
        url = new_url(kind, name)
        if old:
            save(OLD, url)
        before = stored(url)
        raised: BaseException | None = None
        with FaultyFiles.failing(at, ERRORS[error](), happens=happens) as fault:
            try:
                save(NEW, url)
            except (jsonckpt.JsonckptError, KeyboardInterrupt) as caught:
                raised = caught
        where = f"{fault.calls[at]}, number {at}"
        if raised is None:
            assert same(jsonckpt.load(url), NEW), where
            continue
        assert isinstance(raised, KeyboardInterrupt) == (error == "interrupt"), where
        try:
            found = jsonckpt.load(url)
        except jsonckpt.CheckpointNotFoundError:
            assert not old, where
        else:
            assert same(found, NEW) or (old and same(found, OLD)), where
            if same(found, NEW):
                assert error == "interrupt", where  # it was committed: that is no failure
        if error == "refused" and not happens:
            assert stored(url) == before, where
        FaultyFiles.store.clear()


@pytest.mark.parametrize("kind", [FaultyFiles, StoreFiles])
@pytest.mark.parametrize("name", ["c", "c.json"])
def test_reading_fails_at_every_call(kind: type[FaultyFiles], name: str) -> None:
    url = new_url(kind, name)
    save(OLD, url)
    readers: list[Callable[[], Any]] = [
        lambda: jsonckpt.load(url),
        lambda: list(jsonckpt.stream(url)),
        lambda: jsonckpt.open(url)["/w"][1:2],
        lambda: training.latest(url.rpartition("/")[0], "c*"),
    ]
    for read in readers:
        with FaultyFiles.failing(-1, None) as fault:
            read()
        for at in range(len(fault.calls)):
            error = ForeignError("something of a library")
            with (
                FaultyFiles.failing(at, error),
                pytest.raises(jsonckpt.JsonckptError, match="something of") as caught,
            ):
                read()
            assert caught.value.__cause__ is error
            assert not isinstance(caught.value, jsonckpt.CheckpointNotFoundError)
            with FaultyFiles.failing(at, ConnectionResetError("gone")):
                read()  # that is tried again
            with FaultyFiles.failing(at, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
                read()


def test_what_nobody_knows_is_said() -> None:
    """The answer to the manifest is lost, and then nothing can be read any more."""
    url = new_url(StoreFiles, "c")
    save(OLD, url)
    real = StoreFiles.cat_file

    def unreachable(*_: Any, **__: Any) -> bytes:
        raise ForeignError("no route")

    at = calls_of(new_url(StoreFiles, "c"), old=True).index("pipe_file")
    with FaultyFiles.failing(at, ForeignError("the answer is lost"), happens=True) as fault:
        spoil = fault.__call__

        def call(name: str, do: Callable[[], Any]) -> Any:
            if name == "pipe_file":
                StoreFiles.cat_file = unreachable
            return spoil(name, do)

        FaultyFiles.fault = call  # type: ignore[assignment]
        try:
            with pytest.raises(jsonckpt.WriteError, match="none of its files was removed"):
                save(NEW, url)
        finally:
            StoreFiles.cat_file = real
    assert same(jsonckpt.load(url), NEW)


def test_where_a_file_shows_at_once_the_loss_is_said() -> None:
    url = new_url(EarlyFiles, "c.json")
    save(OLD, url)
    at = calls_of(new_url(EarlyFiles, "c.json"), old=False).index("write")
    with (
        FaultyFiles.failing(at, ConnectionResetError("gone")),
        pytest.raises(jsonckpt.WriteError, match=r"previous checkpoint is lost.*directory"),
    ):
        save(NEW, url)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.load(url)
    assert stored(url) == []


@pytest.mark.parametrize("happens", [False, True])
def test_a_directory_is_safe_there_too(happens: bool) -> None:
    calls = calls_of(new_url(EarlyFiles, "c"), old=True)
    for at in range(len(calls)):
        url = new_url(EarlyFiles, "c")
        save(OLD, url)
        with FaultyFiles.failing(at, ForeignError("gone"), happens=happens), suppress(Exception):
            save(NEW, url)
        found = jsonckpt.load(url)
        assert same(found, OLD) or same(found, NEW), calls[at]
