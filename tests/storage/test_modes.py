"""Who may read a checkpoint: as what it replaces, and no more than what it was made from."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.storage import new_file
from jsonckpt.convert import convert
from tests.support import difference

STATE = {"w": torch.arange(5_000), "v": torch.ones(3_000), "n": 1}
NAMES = ["c", "c.json", "c.json.zst"]
SHARDS: dict[str, Any] = {"chunk_size": 4096, "max_shard_size": 9_000, "threads": 2}


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def files(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.iterdir())


def modes(path: Path) -> set[int]:
    return {stat.S_IMODE(file.stat().st_mode) for file in files(path)}


def restrict(path: Path, mode: int) -> None:
    for file in files(path):
        file.chmod(mode)


@pytest.fixture
def born(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The mode of every file of the library, right after it was made and whenever it is written."""
    seen: list[int] = []
    real = os.open, os.pwritev

    def opened(path: Any, flags: int, mode: int = 0o777, **named: Any) -> int:
        fd = real[0](path, flags, mode, **named)
        if flags & os.O_CREAT:
            seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return fd

    def written(fd: int, buffers: Any, offset: int) -> int:
        seen.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return real[1](fd, buffers, offset)

    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwritev", written)
    return seen


SAVES: dict[str, Callable[[Path], object]] = {
    "save": lambda path: jsonckpt.save(STATE, path, **(SHARDS if path.suffix == "" else {})),
    "delete_first": lambda path: jsonckpt.save(STATE, path, delete_first=True),
    "save_async": lambda path: jsonckpt.save_async(STATE, path).result(),
}


@pytest.mark.parametrize("how", SAVES)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o400])
def test_what_is_replaced_decides(
    tmp_path: Path, born: list[int], name: str, how: str, mode: int
) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, path)
    assert modes(path) == {0o644}
    restrict(path, mode)
    del born[:]
    SAVES[how](path)
    assert modes(path) == {mode}
    assert born
    assert all(not seen & ~mode for seen in born)
    assert difference(jsonckpt.load(path), STATE) is None


def test_a_new_one_is_as_the_umask_says(tmp_path: Path) -> None:
    os.umask(0o027)
    for name in NAMES:
        jsonckpt.save(STATE, tmp_path / name)
        assert modes(tmp_path / name) == {0o640}


@pytest.mark.parametrize("name", [*NAMES, "c.pt"])
@pytest.mark.parametrize("allowed", ["all", "the group", "nothing"])
def test_owner_and_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, born: list[int], name: str, allowed: str
) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, tmp_path / "in")
    write: Callable[[], object] = lambda: jsonckpt.save(STATE, path, sync=False)  # noqa: E731
    if name == "c.pt":
        write = lambda: convert(tmp_path / "in", path, overwrite=True)  # noqa: E731
    write()
    restrict(path, 0o640)
    asked: list[tuple[int, int]] = []
    real = os.fstat

    def strange(fd: int) -> os.stat_result:
        """The files of this process belong to others."""
        values = list(real(fd))
        values[4:6] = [values[4] + 1, values[5] + 1]
        return os.stat_result(values)

    def chown(fd: int, user: int, group: int) -> None:
        del fd
        asked.append((user, group))
        if allowed == "nothing" or (allowed == "the group" and user != -1):
            raise PermissionError

    monkeypatch.setattr(os, "fchown", chown)
    del born[:]
    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", strange)
        write()
    owner = (os.getuid(), os.stat(path).st_gid)
    assert set(asked) == ({owner} if allowed == "all" else {owner, (-1, owner[1])})
    assert modes(path) == {0o600 if allowed == "nothing" else 0o640}
    assert all(not seen & ~0o640 for seen in born)


def test_through_a_link(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "real.json")
    (tmp_path / "real.json").chmod(0o600)
    (tmp_path / "link.json").symlink_to("real.json")
    jsonckpt.save(STATE, tmp_path / "link.json")
    assert (tmp_path / "link.json").is_symlink()
    assert modes(tmp_path / "real.json") == {0o600}


OUTPUTS = ["new", "new.json", "new.json.zst", "new.pt", "new.safetensors", "legacy.json"]


def _convert(source: Path, out: Path, **options: Any) -> None:
    convert(source, out, to="legacy-json" if out.name == "legacy.json" else None, **options)


@pytest.mark.parametrize("out", OUTPUTS)
def test_a_conversion_is_no_more_open_than_its_input(
    tmp_path: Path, born: list[int], out: str
) -> None:
    source, target = tmp_path / "in.pt", tmp_path / out
    torch.save(STATE, source)
    _convert(source, target)
    assert modes(target) == {0o644}
    source.chmod(0o600)
    del born[:]
    _convert(source, tmp_path / f"b{out}" if out != "legacy.json" else target, overwrite=True)
    assert all(not seen & 0o077 for seen in born)
    if out != "legacy.json":
        assert modes(tmp_path / f"b{out}") == {0o600}
    _convert(source, target, overwrite=True)  # what lies there does not make it more open
    assert modes(target) == {0o600}
    source.chmod(0o644)
    _convert(source, target, overwrite=True)  # nor does the input, what is private already
    assert modes(target) == {0o600}


@pytest.mark.parametrize("name", NAMES)
def test_recover_is_no_more_open_than_what_it_reads(
    tmp_path: Path, born: list[int], name: str
) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, path, compression="zstd")
    restrict(path, 0o600)
    del born[:]
    for out in ("a", "b.json"):
        jsonckpt.recover(path, tmp_path / out)
        assert modes(tmp_path / out) == {0o600}
    assert all(not seen & 0o077 for seen in born)


def test_a_private_directory_keeps_its_files_private(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    path.chmod(0o750)
    convert(path, tmp_path / "x.pt")
    assert modes(tmp_path / "x.pt") == {0o640}
    path.chmod(0o755)
    next(path.glob("shard-*")).chmod(0o600)
    jsonckpt.recover(path, tmp_path / "y.json")
    assert modes(tmp_path / "y.json") == {0o600}
    assert new_file.shared_bits(tmp_path / "nothing") == 0


def test_a_file_system_without_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise PermissionError

    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path)
    path.chmod(0o600)
    monkeypatch.setattr(os, "fchmod", refuse)
    jsonckpt.save(STATE, path)
    assert modes(path) == {0o600}
