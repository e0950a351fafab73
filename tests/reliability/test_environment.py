"""Where a checkpoint lies and how the system is set: read-only, another locale, links."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.readers import indexed, readers_for, streaming
from tests.support import difference, lacking

ROOT = Path(__file__).parents[2]
NOBODY = 65_534
STATE: dict[str, Any] = {
    "w": torch.arange(600, dtype=torch.float32).reshape(20, 30) / 7,
    "d": torch.tensor([1.5, 2.75e3, -0.0, 5e-324, float("inf"), 0.1], dtype=torch.float64),
    "h": torch.tensor([0.1, 65_504.0, -2.5], dtype=torch.float16),
    "floats": [1.5, 2.75e3, 1e-7],
    "epoch": 3,
}
KINDS: dict[str, dict[str, Any]] = {
    "run": {"max_shard_size": 1_000},
    "lists": {"encoding": "list"},
    "run.json": {},
    "run.json.zst": {"encoding": "list"},
}


@pytest.fixture
def everywhere() -> Iterator[Path]:
    """A directory that any user may reach."""
    with tempfile.TemporaryDirectory(prefix="jsonckpt-") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def _unprivileged(action: Callable[[], None]) -> None:
    """Run ``action`` in a child for whom permission bits count."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            action()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("name", KINDS)
def test_a_directory_that_cannot_be_written(everywhere: Path, name: str) -> None:
    folder = everywhere / "fixed"
    folder.mkdir()
    path = folder / name
    jsonckpt.save(STATE, path, **KINDS[name])
    for at in (*(path.iterdir() if path.is_dir() else ()), path, folder):
        os.chmod(at, 0o555 if at.is_dir() else 0o444)
    before = _listing(folder)

    def action() -> None:
        for reader in readers_for(path).values():
            assert difference(STATE, reader(path)) is None
        assert jsonckpt.verify(path)
        with jsonckpt.open(path) as checkpoint:
            assert torch.equal(checkpoint["/w"][3:5], STATE["w"][3:5])
        for target in (path, folder / "new", folder / "new.json"):
            with pytest.raises(jsonckpt.WriteError) as caught:
                jsonckpt.save(STATE, target)
            assert caught.value.errno == errno.EACCES

    try:
        _unprivileged(action)
        assert _listing(folder) == before
    finally:
        for at in (folder, path):
            os.chmod(at, 0o755)


def _listing(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


_TRACED = """
import os, sys, torch, jsonckpt
torch.set_num_threads(1)
names = sys.argv[2:]
for name in names:
    jsonckpt.load(sys.argv[1] + "/warm-" + name)  # what is imported late is imported
sys.stdout.flush()
for name in names:
    os.path.exists("/begin-of-load-" + name)
    state = jsonckpt.load(sys.argv[1] + "/" + name, threads=2)
    assert jsonckpt.verify(sys.argv[1] + "/" + name)
    assert state["epoch"] == 3
    os.path.exists("/end-of-load-" + name)
os._exit(0)
"""
_CALLS = (
    "open,openat,creat,mkdir,mkdirat,rename,renameat,renameat2,unlink,unlinkat,rmdir,link,linkat,"
    "symlink,symlinkat,truncate,ftruncate,chmod,fchmod,fchmodat,utimensat,write,writev,pwrite64,"
    "pwritev,flock,fsync,fdatasync,stat,newfstatat,access,faccessat,faccessat2"
)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The calls of a process that loads and verifies a checkpoint of each kind."""
    strace = shutil.which("strace")
    if strace is None:
        lacking("strace", "strace is not installed")
    folder = tmp_path_factory.mktemp("traced")
    for name, options in KINDS.items():
        jsonckpt.save(STATE, folder / name, **options)
        jsonckpt.save(STATE, folder / f"warm-{name}", **options)
    log = folder / "trace"
    traced = subprocess.run(
        [strace, "-f", "-qq", "-o", str(log), "-e", f"trace={_CALLS}", "-e", "signal=none",
         sys.executable, "-c", _TRACED, str(folder), *KINDS],
        cwd=ROOT, env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if traced.returncode and ("ptrace" in traced.stderr or "not permitted" in traced.stderr):
        lacking("strace", "processes may not be traced here")
    assert traced.returncode == 0, traced.stderr
    return log.read_text()


@pytest.mark.parametrize("name", KINDS)
def test_the_system_is_asked_for_no_write(trace: str, name: str) -> None:
    """Not even a lock file, an access time or an fsync, as the system itself sees it."""
    behind = trace.partition(f'/begin-of-load-{name}"')[2]
    during = behind.partition(f'/end-of-load-{name}"')[0].splitlines()[1:]
    calls = [line for line in during if not re.search(r"\b(f|new)?f?stat(at)?\(|access", line)]
    # The last line is the second mark's own.
    opened = [line for line in calls if "open" in line]
    assert any(name in line for line in opened), "the trace does not show the load"
    writes = [
        line
        for line in calls
        if not re.search(r"\bopen(at)?\(.*O_RDONLY|resumed>", line)
        and "/proc/self" not in line
        and line.strip()
        and "(" in line
        and not line.rstrip().endswith('"')
    ]
    assert not writes, writes[:5]


def _german(tmp_path: Path) -> dict[str, str]:
    """Variables that ask for a locale with a comma in numbers."""
    if shutil.which("localedef") is None:
        lacking("localedef", "localedef is not installed")
    made = subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", str(tmp_path / "de_DE.UTF-8")],
        capture_output=True,
        text=True,
        check=False,
    )
    if not (tmp_path / "de_DE.UTF-8" / "LC_NUMERIC").exists():
        lacking("localedef", f"localedef has no sources of de_DE: {made.stderr.strip()[:100]}")
    return {"LOCPATH": str(tmp_path), "LC_ALL": "de_DE.UTF-8", "LANG": "de_DE.UTF-8"}


def test_a_locale_with_a_comma(tmp_path: Path) -> None:
    """Bit for bit the same, read and written."""
    for name, options in KINDS.items():
        jsonckpt.save(STATE, tmp_path / name, **options)
    paths = [str(tmp_path / name) for name in KINDS]
    german = _german(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-m", "tests.reliability.locale_child", str(tmp_path), *paths],
        cwd=ROOT,
        env=os.environ | german,
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    with_comma, plain = map(json.loads, answer.stdout.splitlines())
    assert with_comma.pop("point") == ","
    assert plain.pop("point") == "."
    assert with_comma == plain


@pytest.mark.parametrize("name", KINDS)
def test_links_as_in_the_cache_of_a_hub(tmp_path: Path, name: str) -> None:
    """``snapshots/REVISION/NAME`` is a relative link to ``blobs/DIGEST``."""
    jsonckpt.save(STATE, tmp_path / name, **KINDS[name])
    blobs, snapshot = tmp_path / "hub" / "blobs", tmp_path / "hub" / "snapshots" / "0f3c"
    blobs.mkdir(parents=True)
    source = tmp_path / name
    snapshot = snapshot / name if source.is_dir() else snapshot
    snapshot.mkdir(parents=True)
    for file in source.iterdir() if source.is_dir() else [source]:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blobs / digest)
        link = snapshot / file.name
        link.symlink_to(os.path.relpath(blobs / digest, snapshot))
    path = snapshot if source.is_dir() else snapshot / name
    for reader in readers_for(path).values():
        assert difference(STATE, reader(path)) is None
    assert jsonckpt.verify(path)
    # A link to a blob of another size is refused like any other damage.
    shard = next(file for file in sorted(snapshot.iterdir()) if file.name != "manifest.json")
    blob = shard.resolve()
    blob.write_bytes(blob.read_bytes()[:-7])
    for reader in (indexed, streaming):
        with pytest.raises(jsonckpt.JsonckptError, match=re.escape(shard.name)):
            reader(path)
    os.unlink(shard)
    os.mkfifo(tmp_path / "fifo")
    shard.symlink_to(tmp_path / "fifo")
    for reader in (indexed, streaming):
        with pytest.raises(jsonckpt.UnsafePathError, match="not a regular file"):
            reader(path)


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
@pytest.mark.parametrize("name", ["run", "run.json"])
def test_directories_that_cannot_be_synced(
    tmp_path: Path, name: str, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.fsync

    def fsync(fd: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{fd}"):
            raise OSError(number, os.strerror(number))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(2):
        result = jsonckpt.save(STATE, tmp_path / name, **KINDS[name])
        assert result.durability == "best-effort"
        assert difference(STATE, jsonckpt.load(tmp_path / name)) is None
