"""Saving: what is overwritten and what never is, and what a failed or killed save leaves behind."""

from __future__ import annotations

import errno
import io
import json
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
import torch

import jsonckpt
from jsonckpt import storage
from tests.support import same

OLD = {"a": torch.arange(50.0), "b": torch.zeros(30, dtype=torch.int16), "epoch": 1}
NEW = {"a": torch.arange(50.0) + 1, "b": torch.ones(30, dtype=torch.int16), "epoch": 2}
OPTIONS: dict[str, Any] = {"chunk_size": 64, "max_shard_size": 300, "threads": 1}


def files(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


# --- what may be overwritten -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_overwriting(tmp_path: Path, name: str) -> None:
    path = tmp_path / "run" / name
    first = jsonckpt.save(OLD, path, **OPTIONS)
    second = jsonckpt.save(NEW, path, **OPTIONS)
    assert first.save_id != second.save_id
    assert same(jsonckpt.load(path), NEW)
    assert files(path if path.is_dir() else path.parent) == sorted(second.files)
    with pytest.raises(jsonckpt.CheckpointExistsError, match="overwrite=True"):
        jsonckpt.save(OLD, path, overwrite=False)
    assert same(jsonckpt.load(path), NEW)


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_overwrite_false_on_a_free_path(tmp_path: Path, name: str) -> None:
    jsonckpt.save(OLD, tmp_path / name, overwrite=False)
    assert same(jsonckpt.load(tmp_path / name), OLD)


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    jsonckpt.save(OLD, tmp_path, overwrite=False)
    assert same(jsonckpt.load(tmp_path), OLD)


def test_a_directory_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("words")
    with pytest.raises(jsonckpt.CheckpointExistsError, match=r"thesis\.tex"):
        jsonckpt.save(NEW, tmp_path)
    assert files(tmp_path) == ["thesis.tex"]


def test_another_programs_manifest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    with pytest.raises(jsonckpt.CheckpointExistsError, match="another program"):
        jsonckpt.save(NEW, tmp_path)
    assert (tmp_path / "manifest.json").read_text() == '{"name": "a web page"}'


def test_files_beside_a_checkpoint_stay(tmp_path: Path) -> None:
    jsonckpt.save(OLD, tmp_path, **OPTIONS)
    (tmp_path / "notes.txt").write_text("mine")
    jsonckpt.save(NEW, tmp_path, **OPTIONS)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert same(jsonckpt.load(tmp_path), NEW)


def test_a_file_where_a_directory_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("mine")
    with pytest.raises(jsonckpt.CheckpointExistsError, match=r"ending in \.json"):
        jsonckpt.save(NEW, tmp_path / "c")
    assert (tmp_path / "c").read_text() == "mine"


def test_a_directory_where_a_file_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "c.json").mkdir()
    with pytest.raises(jsonckpt.CheckpointExistsError, match="there is a directory"):
        jsonckpt.save(NEW, tmp_path / "c.json")
    assert files(tmp_path / "c.json") == []


def test_a_file_on_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for name in ("c", "c.json"):
        with pytest.raises(jsonckpt.WriteError) as caught:
            jsonckpt.save(NEW, tmp_path / "file" / name)
        assert caught.value.errno in (errno.ENOTDIR, errno.EEXIST)


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "latest.json").symlink_to(tmp_path / "real.json")
    jsonckpt.save(NEW, tmp_path / "latest.json")
    assert (tmp_path / "latest.json").is_symlink()
    assert same(jsonckpt.load(tmp_path / "real.json"), NEW)


def test_orphans_of_a_killed_save_are_ignored(tmp_path: Path) -> None:
    orphans = ["shard-0123456789ab-00000.json", ".manifest-0123456789ab.tmp"]
    for name in orphans:
        (tmp_path / name).write_text("{")
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="did not finish"):
        jsonckpt.load(tmp_path)
    jsonckpt.save(NEW, tmp_path)
    assert same(jsonckpt.load(tmp_path), NEW)
    assert jsonckpt.verify(tmp_path)


def test_an_unreadable_manifest_keeps_its_shards(tmp_path: Path) -> None:
    old = jsonckpt.save(OLD, tmp_path, **OPTIONS)
    manifest = (tmp_path / "manifest.json").read_bytes()
    (tmp_path / "manifest.json").write_bytes(manifest[:-100])
    jsonckpt.save(NEW, tmp_path, **OPTIONS)
    assert set(old.files) <= set(files(tmp_path))
    assert same(jsonckpt.load(tmp_path), NEW)


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_type_without_a_rule_writes_nothing(tmp_path: Path, name: str) -> None:
    class Mine:
        pass

    with pytest.raises(jsonckpt.UnsupportedTypeError, match=r"/deep/0.*register"):
        jsonckpt.save({"w": torch.ones(1), "deep": [Mine()]}, tmp_path / name)
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"encoding": "hex"}, ValueError),
        ({"compression": "gzip"}, ValueError),
        ({"filter": "delta"}, ValueError),
        ({"checksum": "md5"}, ValueError),
        ({"chunk_size": 0}, ValueError),
        ({"chunk_size": "1 parsec"}, ValueError),
        ({"chunk_size": "1GiB"}, ValueError),
        ({"max_shard_size": -1}, ValueError),
        ({"threads": 0}, ValueError),
        ({"compression": "zstd", "compression_level": 99}, ValueError),
        ({"encoding": "list", "compression": "zstd"}, ValueError),
        ({"metadata": {"x": torch.ones(1)}}, (TypeError, ValueError)),
    ],
)
def test_options_that_do_not_exist(tmp_path: Path, options: dict[str, Any], error: Any) -> None:
    with pytest.raises(error):
        jsonckpt.save(NEW, tmp_path / "c.json", **options)
    assert files(tmp_path) == []


# --- what readers would refuse ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_name_that_is_too_long(tmp_path: Path, name: str) -> None:
    with pytest.raises(jsonckpt.LimitError):
        jsonckpt.save({"k" * 1_024: torch.ones(1)}, tmp_path / name)
    assert files(tmp_path) == []
    jsonckpt.save({"k" * 1_023: torch.ones(1)}, tmp_path / name)
    assert len(jsonckpt.load(tmp_path / name)) == 1


def nested(depth: int) -> Any:
    state: Any = 1
    for _ in range(depth):
        state = [state]
    return state


def test_a_state_that_is_too_deep(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.LimitError):
        jsonckpt.save(nested(300), tmp_path / "c.json")
    assert files(tmp_path) == []
    deepest = 0
    for depth in range(190, 201):
        with open(tmp_path / "c.json", "wb") as file:
            try:
                jsonckpt.save(nested(depth), file)
            except jsonckpt.LimitError:
                break
        assert jsonckpt.load(tmp_path / "c.json") == nested(depth)
        deepest = depth
    assert 190 < deepest < 200


# --- the result -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_the_result(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    result = jsonckpt.save(NEW, path, **OPTIONS)
    assert result.path == str(path)
    assert (result.tensors, result.nbytes) == (2, 50 * 4 + 30 * 2)
    where = path if path.is_dir() else tmp_path
    assert sorted(result.files) == files(where)
    assert result.stored_bytes == sum((where / file).stat().st_size for file in result.files)
    assert result.durability == "synced"
    assert len(result.save_id) == 32
    assert int(result.save_id, 16) >= 0
    assert result.seconds > 0
    assert ":" in result.digest
    if path.is_dir():
        assert result.files[-1] == "manifest.json"
    assert jsonckpt.open(path).manifest.save_id == result.save_id


def test_sha256_pins_every_byte(tmp_path: Path) -> None:
    result = jsonckpt.save(NEW, tmp_path, checksum="sha256", **OPTIONS)
    text = (tmp_path / "manifest.json").read_text()
    assert json.loads(text)["tensors"][0]["chunks"][0][2] in text
    assert len(json.loads(text)["tensors"][0]["chunks"][0][2]) == 64
    assert result.digest.startswith("sha256:")
    assert same(jsonckpt.load(tmp_path), NEW)


def test_metadata(tmp_path: Path) -> None:
    metadata = {"run": "a\n\u00e9", "loss": 0.1, "tags": [1, None, {"x": True}]}
    for name in ("c", "c.json", "c.json.zst"):
        jsonckpt.save(NEW, tmp_path / name, metadata=metadata)
        assert jsonckpt.open(tmp_path / name).metadata == metadata


def test_compression_level(tmp_path: Path) -> None:
    state = {"w": torch.arange(200_000) % 1000}
    sizes = [
        jsonckpt.save(
            state, tmp_path / "c", compression="zstd", compression_level=level
        ).stored_bytes
        for level in (1, 19)
    ]
    assert sizes[1] < sizes[0] < 400_000
    assert same(jsonckpt.load(tmp_path / "c"), state)


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save(NEW, tmp_path / "c")
    jsonckpt.load(tmp_path / "c")
    assert capsys.readouterr().err == ""
    jsonckpt.save(NEW, tmp_path / "c", progress=True)
    shown = capsys.readouterr().err
    assert "save" in shown
    assert "260" in shown
    jsonckpt.load(tmp_path / "c", progress=True)
    assert "load" in capsys.readouterr().err


def test_a_file_object(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    result = jsonckpt.save(NEW, buffer)
    assert (result.path, result.files, result.durability) == ("", (), "none")
    assert result.stored_bytes == len(buffer.getvalue())
    (tmp_path / "c.json").write_bytes(buffer.getvalue())
    assert same(jsonckpt.load(tmp_path / "c.json"), NEW)


def test_a_pipe_between_processes() -> None:
    script = (
        "import sys, jsonckpt, torch; jsonckpt.save({'w': torch.arange(99999)}, sys.stdout.buffer)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        state = jsonckpt.load(child.stdout)
    assert child.returncode == 0
    assert same(state, {"w": torch.arange(99_999)})


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
@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
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
import sys, torch, jsonckpt
path = sys.argv[1]
version = 0
while True:
    version += 1
    state = {"version": version, "w": [torch.full((3000,), version) for _ in range(6)]}
    jsonckpt.save(state, path, max_shard_size=30_000, chunk_size=4096, sync=version % 2 == 0)
    print(version, flush=True)
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
        "    print(-child, flush=True)\n"
        "    os.waitpid(child, 0)\n"
        "    print('dead', flush=True)\n",
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
