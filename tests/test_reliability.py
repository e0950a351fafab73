"""Samples of ``tools/reliability``; that its checks can fail; and faults of a real system."""

from __future__ import annotations

import errno
import inspect
import io
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.filenames import SHARED_MARK
from jsonckpt._src.storage import new_file
from jsonckpt.convert import convert
from tests.support import lacking, same, slow
from tools.reliability import faults, kills, power
from tools.reliability.calls import Call, Operation, watched
from tools.reliability.common import memory_directory
from tools.reliability.scenes import (
    EARLIER,
    NEW,
    OLD,
    SCENES,
    Scene,
    inside,
    outcome,
    snapshot,
)

OPTIONS: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 400, "threads": 1}
SHARDS = Scene("c", options={**OPTIONS, "max_shard_size": 1500})
NEW_SHARDS = Scene("c", overwrite=False, options=SHARDS.options)
#: Some of the ways to save, or all of them.
SOME_SCENES = pytest.mark.parametrize("scenes", [SCENES[::5], slow(SCENES)], ids=["some", "all"])
ONE_FILE = Scene("c.json", options={"threads": 1})


@pytest.fixture(autouse=True, scope="module")
def plain_save() -> Iterator[None]:
    """``conftest`` looks at every file that is saved; here that would be in the way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonckpt, "save", inspect.unwrap(jsonckpt.save))
        yield


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A directory in memory, where there is one."""
    with tempfile.TemporaryDirectory(prefix="jsonckpt-test-", dir=memory_directory()) as directory:
        yield Path(directory)


# --- samples ----------------------------------------------------------------------------------


def test_faults_at_some_calls(scratch: Path) -> None:
    report = faults.run(full=False, seed=0, scratch=scratch)
    assert report.words == []
    assert report.tried > 100


@pytest.mark.parametrize("scene", [SHARDS, ONE_FILE], ids=["c", "c.json"])
def test_power_failures_of_one_save(scratch: Path, scene: Scene) -> None:
    recording, room = scratch / "recording", scratch / "room"
    recording.mkdir()
    room.mkdir()
    report = power.check(power.trial(scene, recording), room, most=8, dice=random.Random(0))
    assert report.words == []
    assert report.states > 25
    assert set(report.after) == {"new"}


@pytest.mark.slow
def test_power_failures(scratch: Path) -> None:
    report = power.run(full=False, seed=0, scratch=scratch)
    assert report.words == []
    assert report.states > 5_000
    assert set(report.after) == {"new"}


@SOME_SCENES
def test_killed_at_some_calls(scratch: Path, scenes: list[Scene]) -> None:
    if reason := kills.strace_works():
        lacking("strace", reason)
    report = kills.at_every_call(scenes, scratch / "room", dice=random.Random(0), sample=2)
    assert report.words == []
    assert report.kills > len(scenes)


@SOME_SCENES
@pytest.mark.parametrize("interrupt", [False, True], ids=["kill", "Ctrl-C"])
def test_ended_at_random_moments(scratch: Path, interrupt: bool, scenes: list[Scene]) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")
    report = kills.at_random(
        scenes,
        scratch / "room",
        count=len(scenes) if interrupt else 2 * len(scenes),
        dice=random.Random(0),
        interrupt=interrupt,
    )
    assert report.words == []
    assert report.kills > 0


# --- the checks can fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scene", "kind", "path", "last"),
    [
        (SHARDS, "fsync directory", "c", False),
        (SHARDS, "fsync directory", "c", True),
        (SHARDS, "fsync", ".json", False),
        (SHARDS, "fsync", ".tmp", False),
        (NEW_SHARDS, "fsync directory", ".", False),
        (NEW_SHARDS, "fsync directory", "c", True),
        (ONE_FILE, "fsync", ".tmp", False),
        (ONE_FILE, "fsync directory", ".", True),
    ],
)
def test_a_save_without_one_fsync_is_found_out(
    scratch: Path, scene: Scene, kind: str, path: str, last: bool
) -> None:
    recording, room = scratch / "recording", scratch / "room"
    recording.mkdir()
    room.mkdir()
    whole = power.trial(scene, recording)
    log = tuple(power.without(whole.log, kind, path, last=last))
    assert len(log) == len(whole.log) - 1
    worse = power.Trial(scene.name, scene, whole.before, log, whole.allowed)
    since = next(at for at, step in enumerate(log) if step.path.endswith(".tmp"))
    assert power.check(worse, room, most=64, dice=random.Random(0), since=since).bad > 0


def test_a_save_that_removes_too_early_is_found_out(scratch: Path) -> None:
    recording, room = scratch / "recording", scratch / "room"
    recording.mkdir()
    room.mkdir()
    tried = power.trial(SHARDS, recording)
    removals = [step for step in tried.log if step.kind == "unlink"]
    rest = [step for step in tried.log if step.kind != "unlink"]
    log = (*rest[:-1], *removals, rest[-1])
    worse = power.Trial("too early", SHARDS, tried.before, log, tried.allowed)
    assert rest[-1].kind == "fsync directory"
    since = next(at for at, step in enumerate(log) if step.path.endswith(".tmp"))
    assert power.check(worse, room, most=64, dice=random.Random(0), since=since).bad > 0


def test_a_disk() -> None:
    disk = power.Disk.of({"a": b"old"})
    for step in (
        Operation("create", "t"),
        Operation("write", "t", data=b"new!"),
        Operation("rename", "t", "a"),
    ):
        disk.apply(step)
    found = {
        tuple(sorted(files.items())) for files in power.states(disk, most=99, dice=random.Random(0))
    }
    lost = [b"", b"\0\0\0\0", b"ne", b"ne\0\0", b"new!"]
    assert found == {
        (("a", b"old"),),
        *((("a", b"old"), ("t", data)) for data in lost),
        *((("a", data),) for data in lost),
    }
    disk.apply(Operation("fsync", "t"))
    disk.apply(Operation("fsync directory", "."))
    assert list(power.states(disk, most=99, dice=random.Random(0))) == [{"a": b"new!"}]


def test_leftovers_and_repeated_fsyncs_are_found_out(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = scratch / "room"
    SHARDS.prepare(room)
    before = snapshot(room)

    def wrong() -> list[str]:
        found = (faults.try_fault(SHARDS, room, before, at, 0)[1] for at in range(1, 60))
        return [text for text in found if text]

    assert wrong() == []
    with monkeypatch.context() as patch:
        patch.setattr(new_file.NewFile, "abandon", lambda _: None)
        assert any("not what was there before" in text for text in wrong())

    def again(self: new_file.NewFile, *, sync: bool) -> None:
        del sync
        try:
            os.fsync(self._fd)
        except OSError:
            os.fsync(self._fd)
        self._close()

    monkeypatch.setattr(new_file.NewFile, "finish", again)
    assert any("fsync again" in text for text in wrong())


def test_a_save_in_place_is_found_out(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not hasattr(os, "fork"):
        pytest.skip("needs os.fork")

    def in_place(self: Scene, room: Path, state: Any = None) -> None:
        whole = io.BytesIO()
        jsonckpt.save(NEW if state is None else state, whole)
        text = whole.getvalue()
        with open(self.path(room), "wb", buffering=0) as file:
            for start in range(0, len(text), -(-len(text) // 20)):
                file.write(text[start : start + -(-len(text) // 20)])
                time.sleep(0.002)

    monkeypatch.setattr(Scene, "run", in_place)
    report = kills.at_random([ONE_FILE], scratch / "room", count=8, dice=random.Random(0))
    assert report.wrong > 0


# --- one by one -------------------------------------------------------------------------------


def failing(name: str, error: BaseException, part: str = "") -> Callable[[Call, Any], Any]:
    """Fails the first call of that name about a path that has ``part`` in its name."""
    done: list[Call] = []

    def hook(call: Call, do: Callable[[], Any]) -> Any:
        if call.name == name and part in os.path.basename(call.path) and not done:
            done.append(call)
            raise error
        return do()

    return hook


@pytest.mark.parametrize("scene", [SHARDS, ONE_FILE], ids=["c", "c.json"])
def test_a_failure_between_the_last_write_and_the_rename(tmp_path: Path, scene: Scene) -> None:
    scene.prepare(tmp_path)
    before = inside(tmp_path)
    with (
        watched(tmp_path, failing("stat", OSError(errno.EIO, "I/O error"), ".tmp")),
        pytest.raises(jsonckpt.WriteError) as caught,
    ):
        scene.run(tmp_path)
    assert caught.value.errno == errno.EIO
    with (
        watched(tmp_path, failing("stat", KeyboardInterrupt(), ".tmp")),
        pytest.raises(KeyboardInterrupt),
    ):
        scene.run(tmp_path)
    assert inside(tmp_path) == before
    assert outcome(scene, tmp_path) == "old"


@pytest.mark.parametrize("name", ["run/deep/c", "run/deep/c.json"])
def test_directories_of_a_failed_first_save_go(tmp_path: Path, name: str) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with watched(tmp_path, failing("pwritev", full)), pytest.raises(jsonckpt.WriteError):
        jsonckpt.save(NEW, tmp_path / name)
    assert inside(tmp_path) == []
    (tmp_path / "run").mkdir()
    with watched(tmp_path, failing("pwritev", full)), pytest.raises(jsonckpt.WriteError):
        jsonckpt.save(NEW, tmp_path / name)
    assert inside(tmp_path) == ["run"]


def test_a_manifest_that_cannot_be_read_after_the_commit_keeps_its_shards(tmp_path: Path) -> None:
    SHARDS.prepare(tmp_path)
    committed: list[bool] = []

    def hook(call: Call, do: Callable[[], Any]) -> Any:
        if committed and call.name in ("fsync", "stat", "open"):
            raise OSError(errno.EIO, "I/O error")
        if call.name == "replace":
            committed.append(True)
        return do()

    with watched(tmp_path, hook), pytest.raises(jsonckpt.DurabilityUncertainError):
        SHARDS.run(tmp_path)
    assert committed
    assert outcome(SHARDS, tmp_path) == "new"


def test_old_shards_that_cannot_be_removed_are_orphans(tmp_path: Path) -> None:
    SHARDS.prepare(tmp_path)
    first = inside(tmp_path)
    with watched(tmp_path, failing("unlink", OSError(errno.EACCES, "Permission denied"))):
        SHARDS.run(tmp_path)
    assert outcome(SHARDS, tmp_path) == "new"
    assert len(set(first) & set(inside(tmp_path))) == len({"c", "c/manifest.json", "one orphan"})


@pytest.mark.parametrize("name", ["c" + "x" * 248 + ".json", "\u00e9" * 125 + ".json"])
def test_a_name_as_long_as_names_may_be(tmp_path: Path, name: str) -> None:
    assert len(name.encode()) > 250
    jsonckpt.save(NEW, tmp_path / name)
    assert same(jsonckpt.load(tmp_path / name), NEW)
    torch.save(NEW, tmp_path / "c.pt")
    convert(tmp_path / "c.pt", tmp_path / name, overwrite=True)
    assert same(jsonckpt.load(tmp_path / name), NEW)


def test_what_a_stream_says() -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    class Stream:
        write = full

    with pytest.raises(jsonckpt.WriteError, match="file object") as caught:
        jsonckpt.save(NEW, Stream())
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.__cause__ is not None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with (
        open(reader, "rb", buffering=0),
        open(writer, "wb", buffering=0) as pipe,
        pytest.raises(jsonckpt.WriteError) as caught,
    ):
        jsonckpt.save({"w": torch.zeros(1_000_000)}, pipe)
    assert caught.value.errno == errno.EAGAIN
    if not os.path.exists("/dev/full"):
        return
    with open("/dev/full", "wb", buffering=0) as file:
        with pytest.raises(jsonckpt.WriteError, match="/dev/full") as caught:
            jsonckpt.save(NEW, file)
        assert caught.value.errno == errno.ENOSPC


# --- a real system ----------------------------------------------------------------------------


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.name)
def test_a_file_may_not_grow(tmp_path: Path, scene: Scene) -> None:
    room = tmp_path / "room"
    scene.prepare(room)
    before, mark = set(inside(room)), f"{EARLIER}/{SHARED_MARK}"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    try:
        with pytest.raises(jsonckpt.WriteError) as caught:
            scene.run(room)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert caught.value.errno == errno.EFBIG
    if scene.gives_up:
        assert set(inside(room)) <= before
        assert outcome(scene, room) == "none"
    else:
        # The mark may come before anything that it is for.
        assert set(inside(room)) - {mark} == before - {mark}
        assert outcome(scene, room) == scene.before


def test_signals_all_the_time(tmp_path: Path) -> None:
    if not hasattr(signal, "setitimer"):
        pytest.skip("needs signal.setitimer")
    rings: list[int] = []
    previous = signal.signal(signal.SIGALRM, lambda number, _: rings.append(number))
    signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
    try:
        for _ in range(5):
            for scene in SCENES:
                if scene.how == "save":
                    scene.prepare(tmp_path)
                    scene.run_again(tmp_path)
                    assert outcome(scene, tmp_path) == "new"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(rings) > 50


SMALL_DISK = """
import errno, os, sys, torch, jsonckpt
from jsonckpt.convert import convert
from tests.support import lacking, same
room, source = sys.argv[1:]
old, new = {"w": torch.zeros(20_000)}, {"w": torch.randn(2_000_000)}
torch.save(new, source + "/new.pt")
for name in ("c", "c.json", "c.json.zst"):
    path = os.path.join(room, name)
    jsonckpt.save(old, path)
    before = sorted(os.walk(room))
    for save in (
        lambda: jsonckpt.save(new, path, max_shard_size=500_000),
        lambda: convert(source + "/new.pt", path, overwrite=True, spool=source),
    ):
        try:
            save()
        except jsonckpt.WriteError as error:
            assert error.errno == errno.ENOSPC, error
        else:
            sys.exit("there was room")
        assert sorted(os.walk(room)) == before
        assert same(jsonckpt.load(path), old)
    print(name)
"""


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    unshare = shutil.which("unshare")
    room, source = tmp_path / "room", tmp_path / "source"
    room.mkdir()
    source.mkdir()
    mount = f'mount -t tmpfs -o size=2m none "{room}"'
    if (
        unshare is None
        or subprocess.run(
            [unshare, "-Urm", "sh", "-c", mount], capture_output=True, check=False
        ).returncode
    ):
        lacking("unshare", "needs unshare, and leave to mount a tmpfs in a user namespace")
    script = f'{mount} && exec "$@"'
    done = subprocess.run(
        [
            unshare,
            "-Urm",
            "sh",
            "-c",
            script,
            "sh",
            sys.executable,
            "-W",
            "ignore::RuntimeWarning",
            "-c",
            SMALL_DISK,
            room,
            source,
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).parent.parent,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["c", "c.json", "c.json.zst"]


def test_old_and_new_differ() -> None:
    assert not same(OLD, NEW)
