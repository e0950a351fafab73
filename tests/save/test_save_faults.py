"""A save that fails or is killed: what it leaves behind, and the order that this hangs on."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from jsonckpt._src.storage import commit as storage
from tests.support import same
from tests.two_states import KINDS, NEW, OLD, OPTIONS, files

# --- faults -----------------------------------------------------------------------------------

Fault = Callable[[], BaseException]


class Faults:
    """Counts calls of the system, and fails the one with the number ``at``."""

    def __init__(self, at: int, error: Fault) -> None:
        self.at = at
        self.error = error
        self.calls = 0
        self.happened = False

    def call(self) -> None:
        self.calls += 1
        if self.calls == self.at:
            self.happened = True
            raise self.error()

    def install(self, patch: pytest.MonkeyPatch, name: str) -> None:
        real = getattr(os, name)

        def faulty(*arguments: Any, **named: Any) -> Any:
            if name != "open" or arguments[1] & os.O_CREAT:
                self.call()
            return real(*arguments, **named)

        patch.setattr(os, name, faulty)


def full() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


CALLS = ["pwritev", "fsync", "replace", "open"]


@pytest.mark.parametrize(
    ("interrupt", "threads"),
    [(False, 1), (False, 2), (True, 1)],
    ids=["full", "full, threads", "interrupt"],
)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", KINDS)
def test_a_fault_at_every_call(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    call: str,
    interrupt: bool,
    threads: int,
) -> None:
    path = tmp_path / name
    options = {**OPTIONS, "threads": threads}
    for at in range(1, 60):
        jsonckpt.save(OLD, path, **OPTIONS, sync=False)
        where = path if path.is_dir() else tmp_path
        before = files(where)
        faults = Faults(at, KeyboardInterrupt if interrupt else full)
        with monkeypatch.context() as patch:
            faults.install(patch, call)
            raised = saved(NEW, path, options)
        if not faults.happened:
            assert raised is None
            assert same(jsonckpt.load(path), NEW)
            break
        assert raised is not None
        assert isinstance(raised, KeyboardInterrupt if interrupt else jsonckpt.WriteError)
        if isinstance(raised, jsonckpt.WriteError):
            assert raised.errno == errno.ENOSPC
        found = jsonckpt.load(path)
        assert jsonckpt.verify(path)
        if isinstance(raised, jsonckpt.DurabilityUncertainError) or found["epoch"] == 2:
            assert call == "fsync"
            assert same(found, NEW)
        else:
            assert same(found, OLD)
            assert files(where) == before
    else:
        pytest.fail("the save never passed")
    assert at > 1


def saved(state: Any, path: Path, options: dict[str, Any]) -> BaseException | None:
    try:
        jsonckpt.save(state, path, **options)
    except (KeyboardInterrupt, jsonckpt.JsonckptError) as error:
        return error
    return None


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_fault_of_the_first_save_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with monkeypatch.context() as patch:
        Faults(2, full).install(patch, "pwritev")
        with pytest.raises(jsonckpt.WriteError, match="No space left"):
            jsonckpt.save(NEW, tmp_path / name, **OPTIONS)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.load(tmp_path / name)


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_last_fsync_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    jsonckpt.save(OLD, path)
    counting = Faults(0, full)
    with monkeypatch.context() as patch:
        counting.install(patch, "fsync")
        jsonckpt.save(OLD, path)
    with monkeypatch.context() as patch:
        Faults(counting.calls, lambda: OSError(errno.EIO, "I/O error")).install(patch, "fsync")
        with pytest.raises(jsonckpt.DurabilityUncertainError) as caught:
            jsonckpt.save(NEW, path)
    assert caught.value.errno == errno.EIO
    assert same(jsonckpt.load(path), NEW)


def test_a_file_system_that_cannot_fsync_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(errno.EINVAL, "Invalid argument")
        real(fd)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    monkeypatch.setattr(os, "fsync", fsync)
    assert jsonckpt.save(NEW, tmp_path / "c").durability == "best-effort"
    assert jsonckpt.save(NEW, tmp_path / "c.json").durability == "best-effort"


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_sync_false_calls_no_fsync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    counting = Faults(0, full)
    counting.install(monkeypatch, "fsync")
    for _ in range(2):
        assert jsonckpt.save(NEW, tmp_path / "new" / name, sync=False).durability == "none"
    assert counting.calls == 0
    assert same(jsonckpt.load(tmp_path / "new" / name), NEW)


def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.pwritev

    def few(fd: int, buffers: Any, offset: int) -> int:
        first = next(buffer for buffer in buffers if len(buffer))
        return real(fd, [first[:7]], offset)

    monkeypatch.setattr(os, "pwritev", few)
    for name in ("c", "c.json"):
        jsonckpt.save(NEW, tmp_path / name, sync=False)
        assert same(jsonckpt.load(tmp_path / name), NEW)


# --- the order of the commit ------------------------------------------------------------------


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the system was asked for, in order."""
    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("needs /proc")
    done: list[str] = []
    fsync, replace, unlink = os.fsync, os.replace, os.unlink

    def kind(path: str) -> str:
        name = os.path.basename(path)
        if os.path.isdir(path):
            return "directory"
        return "manifest" if "manifest" in name else "shard" if "shard" in name else "file"

    def log_fsync(fd: int) -> None:
        done.append(f"fsync {kind(os.readlink(f'/proc/self/fd/{fd}'))}")
        fsync(fd)

    def log_replace(source: Any, target: Any) -> None:
        done.append(f"replace {kind(str(target))}")
        replace(source, target)

    def log_unlink(path: Any, **named: Any) -> None:
        done.append(f"unlink {kind(str(path))}")
        unlink(path, **named)

    monkeypatch.setattr(os, "fsync", log_fsync)
    monkeypatch.setattr(os, "replace", log_replace)
    monkeypatch.setattr(os, "unlink", log_unlink)
    return done


def test_the_order_of_a_directory(tmp_path: Path, log: list[str]) -> None:
    jsonckpt.save(OLD, tmp_path / "c", **OPTIONS)
    commit = ["fsync directory", "fsync manifest", "replace manifest", "fsync directory"]
    # Two directories: that of the new one's name, and that of the name of the one that it lies in.
    assert log == ["fsync directory", "fsync directory", "fsync shard", "fsync shard", *commit]
    log.clear()
    jsonckpt.save(NEW, tmp_path / "c", **{**OPTIONS, "max_shard_size": "5GB"})
    assert log == [
        "fsync directory",
        "fsync shard",
        *commit,
        "unlink shard",
        "unlink shard",
    ]
    log.clear()
    jsonckpt.save(NEW, tmp_path / "c", **OPTIONS, sync=False)
    assert log == ["replace manifest", "unlink shard"]


def test_the_order_of_a_file(tmp_path: Path, log: list[str]) -> None:
    for _ in range(2):
        log.clear()
        jsonckpt.save(OLD, tmp_path / "c.json", **OPTIONS)
        # The first one is for a directory that a killed save has made and not yet synced.
        assert log == ["fsync directory", "fsync file", "replace file", "fsync directory"]


# --- killed -----------------------------------------------------------------------------------

FOREVER = """
import os, sys, torch, jsonckpt
path = sys.argv[1]
version = 0
while True:
    version += 1
    state = {"version": version, "w": [torch.full((3000,), version) for _ in range(6)]}
    jsonckpt.save(state, path, max_shard_size=30_000, chunk_size=4096, sync=version % 2 == 0)
    os.write(1, b"%d\\n" % version)
"""


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_killed_at_any_moment(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    moments = random.Random(0)
    command = [
        sys.executable,
        "-c",
        # One import of torch, many children of it: each is killed while it overwrites.
        "import os, sys, torch, jsonckpt\n"
        "script = compile(sys.stdin.readline().encode().decode('unicode_escape'), 's', 'exec')\n"
        "torch.set_num_threads(1)\n"
        "for line in sys.stdin:\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        exec(script)\n"
        # Two processes write to one pipe: a line must be a single write.
        "    os.write(1, b'%d\\n' % -child)\n"
        "    os.waitpid(child, 0)\n"
        "    os.write(1, b'dead\\n')\n",
        str(path),
    ]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    ) as parent:
        assert parent.stdin is not None
        assert parent.stdout is not None
        parent.stdin.write(FOREVER.encode("unicode_escape").decode() + "\n")
        for _ in range(10):
            parent.stdin.write("go\n")
            child, finished = 0, 0
            while not (child and finished):
                number = int(parent.stdout.readline())
                child, finished = (-number, finished) if number < 0 else (child, number)
            time.sleep(moments.random() * 0.03)
            os.kill(child, signal.SIGKILL)
            while (line := parent.stdout.readline()) != "dead\n":
                finished = max(finished, int(line))
            state = jsonckpt.load(path)
            assert state["version"] in (finished, finished + 1)
            assert all(bool((w == state["version"]).all()) for w in state["w"])
            assert jsonckpt.verify(path)
        parent.stdin.close()
    # What the killed saves left behind is in nobody's way.
    jsonckpt.save(NEW, path)
    assert same(jsonckpt.load(path), NEW)


def test_directories_that_a_killed_save_has_made_are_synced(tmp_path: Path) -> None:
    """Each name on the way that may not be on the disk yet, whoever made it."""
    (tmp_path / "a").mkdir()  # by a save that was killed before it could sync
    synced: list[Path] = []
    fsync = storage.fsync_directory

    def noted(path: Path) -> bool:
        synced.append(path)
        return fsync(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "fsync_directory", noted)
        storage.make_directory(tmp_path / "a" / "b" / "c", [], sync=True)
    assert synced == [tmp_path, tmp_path / "a", tmp_path / "a" / "b"]
