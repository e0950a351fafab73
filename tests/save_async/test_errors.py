"""save_async: what the call raises, what the result does, and errors that nobody asked for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.save import api
from jsonckpt._src.state import registry
from tests.save_async.obstacles import fail
from tests.support import same
from tests.two_states import KINDS, NEW, OLD, files


def test_what_the_call_itself_raises(tmp_path: Path) -> None:
    class Mine:
        pass

    (tmp_path / "file").write_text("mine")
    for state, name, options, error in [
        ({"w": torch.ones(1), "deep": [Mine()]}, "c", {}, jsonckpt.UnsupportedTypeError),
        ({"k" * 1024: torch.ones(1)}, "c", {}, jsonckpt.LimitError),
        (NEW, "c", {"encoding": "hex"}, ValueError),
        (NEW, "c", {"threads": 0}, ValueError),
        (NEW, "c", {"chunk_size": "1 parsec"}, ValueError),
        (NEW, "c.json", {"encoding": "list", "compression": "zstd"}, ValueError),
        (NEW, "c", {"metadata": {"x": torch.ones(1)}}, TypeError),
        (NEW, "file", {}, jsonckpt.CheckpointExistsError),
    ]:
        with pytest.raises(error):
            jsonckpt.save_async(state, tmp_path / name, **options)  # type: ignore[arg-type]
    with open(tmp_path / "stream", "wb") as stream, pytest.raises(TypeError, match="takes a path"):
        jsonckpt.save_async(NEW, stream)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path must be"):
        jsonckpt.save_async(NEW, b"c")  # type: ignore[arg-type]
    assert files(tmp_path) == ["file", "stream"]


def test_overwrite_false_sees_what_the_save_before_has_written(tmp_path: Path) -> None:
    jsonckpt.save_async(OLD, tmp_path / "c", overwrite=False)
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save_async(NEW, tmp_path / "c", overwrite=False)
    assert same(jsonckpt.load(tmp_path / "c"), OLD)


@pytest.mark.parametrize("name", KINDS)
def test_an_error_at_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save(OLD, path)
    where = path if path.is_dir() else tmp_path
    before = files(where)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, path)
        for _ in range(2):
            with pytest.raises(jsonckpt.WriteError) as caught:
                pending.result()
    assert caught.value.errno == errno.ENOSPC
    assert "failed: WriteError" in repr(pending)
    assert pending.cancel() is False
    assert same(jsonckpt.load(path), OLD)
    assert files(where) == before
    # It has been seen: the next call has nothing to tell.
    jsonckpt.save_async(NEW, path).result()
    assert same(jsonckpt.load(path), NEW)


def test_an_error_that_nobody_asked_for_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, tmp_path / "one")
        with pytest.raises(jsonckpt.WriteError, match="saved nothing") as caught:
            jsonckpt.save_async(NEW, tmp_path / "two")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.file == str(tmp_path / "one")
    assert "No space left" in str(caught.value)
    assert isinstance(caught.value.__cause__, jsonckpt.WriteError)
    assert not (tmp_path / "two").exists()
    jsonckpt.save_async(NEW, tmp_path / "two").result()
    assert same(jsonckpt.load(tmp_path / "two"), NEW)
    with pytest.raises(jsonckpt.WriteError):
        pending.result()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("boom"), jsonckpt.JsonckptError),
        (SystemExit(3), jsonckpt.JsonckptError),
        (jsonckpt.LimitError("too much"), jsonckpt.LimitError),
        (jsonckpt.DurabilityUncertainError("eh", errno=5), jsonckpt.DurabilityUncertainError),
    ],
)
def test_errors_of_all_kinds_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[jsonckpt.JsonckptError],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(api, "write_checkpoint", fail(error))
        pending = jsonckpt.save_async(NEW, tmp_path / "one")
        with pytest.raises(kind, match=r"previous background save.*saved nothing") as caught:
            jsonckpt.save_async(NEW, tmp_path / "two")
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    with pytest.raises(type(error)):
        pending.result()


def test_a_thread_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail(RuntimeError("can't start new thread")))
        pending = jsonckpt.save_async(OLD, tmp_path / "c")
        assert pending.done()
        assert pending.result().tensors == 2
        assert same(jsonckpt.load(tmp_path / "c", threads=1), OLD)
        patch.setattr(threading.Thread, "start", fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            jsonckpt.save_async(NEW, tmp_path / "c")
    assert same(jsonckpt.load(tmp_path / "c"), OLD)
    jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_no_memory_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    api._buffers.release()
    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", fail(OSError(errno.ENOMEM, "Cannot allocate memory")))
        with pytest.raises(MemoryError, match=r"copy of the state: \d+ bytes.*jsonckpt\.save"):
            jsonckpt.save_async(NEW, tmp_path / "c")
    assert files(tmp_path) == []
    jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_a_save_inside_a_save(tmp_path: Path) -> None:
    class Inner:
        pass

    def save(_: Inner) -> object:
        return jsonckpt.save_async(OLD, tmp_path / "inner")

    registry.register(Inner, "tests.Inner", save, lambda _: Inner())
    with pytest.raises(jsonckpt.JsonckptError, match="preparing another save"):
        jsonckpt.save_async([Inner()], tmp_path / "c")
    assert files(tmp_path) == []
    jsonckpt.save_async(NEW, tmp_path / "c").result()
