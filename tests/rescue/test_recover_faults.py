"""``recover`` where the file system or an editor stands between a save and its reader."""

from __future__ import annotations

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.format.model import Entry


def _edited(path: Path) -> None:
    manifest = path / "manifest.json"
    text = manifest.read_bytes().replace(b"0.25", b"0.75")
    manifest.write_bytes(text[: text.rindex(b'"seal":')] + b'"seal":null}\n')


def test_a_state_that_no_seal_vouches_for_is_not_called_verified(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save({"w": torch.ones(3), "lr": 0.25}, path)
    _edited(path)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert (report.state, report.lost, report.complete) == ("unverified", (), False)
    assert report.notes == ("manifest.json was edited by hand: its seal is null",)
    assert "the state could not be checked against a seal" in str(report)
    assert jsonckpt.load(tmp_path / "new")["lr"] == 0.75
    temporary = ".manifest-0123456789ab.tmp"
    (path / "manifest.json").rename(path / temporary)
    report = jsonckpt.recover(path, tmp_path / "newer")
    assert report.state == "unverified"
    assert f"{temporary} was edited by hand: its seal is null" in report.notes


# --- what the system cannot read ------------------------------------------------------------------

STATE = {f"t{n}": torch.full((4_000,), float(n)) for n in range(8)}


def _entries(path: Path) -> list[Entry]:
    with jsonckpt.open(path) as checkpoint:
        return list(checkpoint.manifest.entries)


def _break(monkeypatch: pytest.MonkeyPatch, path: Path, start: int, stop: int) -> None:
    """Let reads of ``[start, stop)`` of a file fail, as on a bad disk."""
    preadv = os.preadv
    inode = path.stat().st_ino

    def failing(fd: int, buffers: Any, offset: int, *rest: Any) -> int:
        length = sum(len(buffer) for buffer in buffers)
        bad = os.fstat(fd).st_ino == inode
        if bad and offset < stop and start < offset + length:
            raise OSError(errno.EIO, "Input/output error")
        return preadv(fd, buffers, offset, *rest)

    monkeypatch.setattr("os.preadv", failing)


@pytest.mark.parametrize("container", ["c.json", "c"])
def test_a_place_that_cannot_be_read_costs_what_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, container: str
) -> None:
    path = tmp_path / container
    jsonckpt.save(STATE, path, chunk_size=4_000)
    entries = _entries(path)
    file = path if path.is_file() else next(path.glob("shard-*"))
    # From a chunk of one tensor into the next but one: all three are hit, one of them whole.
    start, stop = entries[2].chunks[2][0], entries[4].chunks[1][0]
    _break(monkeypatch, file, start, stop)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert set(report.recovered) == {f"/t{n}" for n in (0, 1, 5, 6, 7)}
    assert sorted(str(item.name) for item in report.lost) == ["/t2", "/t3", "/t4"]
    by_name = {item.name: item for item in report.lost}
    assert by_name["/t2"].reason == "cannot read: Input/output error"
    assert by_name["/t2"].chunk in (1, 2)
    [note] = [note for note in report.notes if "cannot be read" in note]
    assert "Input/output error" in note
    loaded = jsonckpt.load(tmp_path / "new")
    for n in (0, 1, 5, 6, 7):
        assert torch.equal(loaded[f"t{n}"], STATE[f"t{n}"])
    assert jsonckpt.verify(tmp_path / "new")


def test_a_place_inside_a_tensor_leaves_the_state_vouched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.zeros(40_000), "v": torch.ones(3), "lr": 1}, path)
    offset, length, _ = _entries(path)[0].chunks[0]
    _break(monkeypatch, path, offset + length // 2, offset + length // 2 + 1)
    report = jsonckpt.recover(path, tmp_path / "new.json")
    assert (report.state, report.recovered) == ("verified", ("/v",))
    assert [(item.name, item.chunk, item.reason) for item in report.lost] == [
        ("/w", 0, "cannot read: Input/output error")
    ]
    assert "4096 bytes cannot be read" in report.notes[0]


def test_compressed_frames_that_cannot_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json.zst"
    generator = torch.Generator().manual_seed(1)
    state = {f"t{n}": torch.randn(300_000, generator=generator) for n in range(6)}
    jsonckpt.save(state, path)
    text = zstandard.ZstdDecompressor().stream_reader(
        io.BytesIO(path.read_bytes()), read_across_frames=True
    )
    parts = text.read().partition(b'{"name":"/t3"')
    pieces = [parts[0], parts[1] + parts[2]]
    path.write_bytes(b"".join(zstandard.compress(piece) for piece in pieces))
    middle = path.stat().st_size - 100_000
    _break(monkeypatch, path, middle, middle + 1)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert set(report.recovered) >= {"/t0", "/t1", "/t2"}
    assert report.lost
    assert {str(item.name) for item in report.lost} | set(report.recovered) == {
        f"/t{n}" for n in range(6)
    }
    assert any(item.reason == "cannot read: Input/output error" for item in report.lost)
    for name in report.recovered:
        assert torch.equal(jsonckpt.load(tmp_path / "new")[name[1:]], state[name[1:]])


@pytest.mark.parametrize("manifest", [True, False])
def test_a_shard_that_cannot_be_opened_costs_its_own_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, manifest: bool
) -> None:
    path = tmp_path / "c"
    result = jsonckpt.save(STATE, path, max_shard_size=50_000)
    closed = result.files[1]
    entries = _entries(path)
    lost = [entry.name for entry in entries if entry.shard == 1]
    kept = [entry.name for entry in entries if entry.shard != 1]
    assert lost
    if not manifest:
        (path / "manifest.json").unlink()
    really_open = os.open

    def refuse(name: Any, *arguments: Any, **options: Any) -> int:
        if os.fspath(name).endswith(closed):
            raise PermissionError(errno.EACCES, "Permission denied")
        return really_open(name, *arguments, **options)

    monkeypatch.setattr("os.open", refuse)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert list(report.recovered) == kept
    assert f"{closed} is not used: cannot open: Permission denied" in report.notes
    if manifest:
        assert [item.name for item in report.lost] == lost
        assert report.lost[0].reason == "cannot open: Permission denied"
        assert report.lost[0].file == str(path / closed)
    with pytest.raises(jsonckpt.JsonckptError, match="cannot open: Permission denied"):
        jsonckpt.recover(path / closed, tmp_path / "newer")
