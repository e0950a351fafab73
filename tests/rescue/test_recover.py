"""``recover``, case by case: what is lost, what is found, and what is said of it."""

from __future__ import annotations

import collections
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt._src.format.checksums import hexdigest
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.rescue.damaged_files import DamagedZstd
from jsonckpt._src.rescue.scan import scan
from jsonckpt._src.storage.local import LocalFile
from tests.recovered import check_recovered, entries_of, small, tensors_of
from tests.support import difference


def _state() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    return {
        "model": {f"layer.{n}": torch.randn(50, 8, generator=generator) for n in range(6)},
        "lr": 0.25,
        "metrics": {"name": "x"},
    }


@pytest.mark.parametrize("container", ["c", "c.json", "c.json.zst"])
@pytest.mark.parametrize("out", ["out", "out.json", "out.json.zst"])
def test_an_intact_checkpoint_comes_back_whole(tmp_path: Path, container: str, out: str) -> None:
    jsonckpt.save(_state(), tmp_path / container, metadata={"run": 7}, max_shard_size=5000)
    report = jsonckpt.recover(tmp_path / container, tmp_path / out)
    assert report
    assert (report.state, report.lost, len(report.recovered)) == ("verified", (), 6)
    assert report.nbytes == 6 * 1600
    assert difference(_state(), jsonckpt.load(tmp_path / out)) is None
    with jsonckpt.open(tmp_path / out) as checkpoint:
        assert checkpoint.metadata == {"run": 7}
    assert "6 tensors, 9.6 kB restored; 0 lost; the state is as it was saved" in str(report)


@pytest.mark.parametrize("cut", [1, 700])
def test_a_truncated_file(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(_state(), path)
    text = path.read_bytes()
    end = text.index(b'{"name":"/model/layer.4"') if cut > 1 else len(text)
    path.write_bytes(text[: end - cut])
    report = jsonckpt.recover(path, tmp_path / "new")
    assert path.read_bytes() == text[: end - cut]
    lost = [] if cut == 1 else ["/model/layer.3", "/model/layer.4", "/model/layer.5"]
    assert [item.name for item in report.lost] == lost
    assert report.state == "unverified"
    assert not report.complete
    expected = _state()
    for name in lost:
        del expected["model"][name.removeprefix("/model/")]
    assert difference(expected, jsonckpt.load(tmp_path / "new")) is None
    if lost:
        assert "the file ends inside it" in report.lost[0].reason
        assert report.lost[0].file == str(path)
        assert report.lost[1].reason == "no file contains it"


def test_damage_in_a_tensor_leaves_the_state_vouched_for(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(_state(), path, chunk_size=800)
    entry = entries_of(path)[2]
    data = bytearray(path.read_bytes())
    offset, length, _ = entry.chunks[1]
    # A hole, as a file system leaves one: line feeds and quotes are gone as well.
    data[offset + 5 : offset + length - 5] = bytes(length - 10)
    path.write_bytes(data)
    report = jsonckpt.recover(path, tmp_path / "new.json")
    assert [(item.name, item.chunk) for item in report.lost] == [("/model/layer.2", 1)]
    assert report.state == "verified"
    data[offset - 3 : offset + 20] = bytes(23)
    path.write_bytes(data)
    report = jsonckpt.recover(path, tmp_path / "newer.json")
    assert [(item.name, item.chunk) for item in report.lost] == [("/model/layer.2", 0)]
    assert report.state == "verified"


def test_a_state_that_the_seal_contradicts_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(_state(), path)
    path.write_bytes(path.read_bytes().replace(b"0.25", b"0.75", 1))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.state == "lost"
    assert any("trust_state" in note for note in report.notes)
    assert list(jsonckpt.load(tmp_path / "new")) == ["model"]
    assert list(jsonckpt.load(tmp_path / "new")["model"]) == [f"layer.{n}" for n in range(6)]
    report = jsonckpt.recover(path, tmp_path / "trusted", trust_state=True)
    assert report.state == "unverified"
    assert jsonckpt.load(tmp_path / "trusted")["lr"] == 0.75


def test_a_state_that_refers_to_nothing_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    state = {"w": torch.arange(3), "v": [1]}
    for broken in (b'{"$tied": {"name":"/v"}}', b'{"$tensor": 1}', b'{"$view":{"of":"/w"}}'):
        jsonckpt.save(state, path)
        path.write_bytes(path.read_bytes().replace(b"[1]", broken, 1))
        out = tmp_path / f"new{len(broken)}"
        report = jsonckpt.recover(path, out, trust_state=True)
        assert (report.state, report.recovered) == ("lost", ("/w",))
        assert any("the state cannot be used" in note for note in report.notes)


@pytest.mark.parametrize("container", ["c", "c.json", "c.json.zst"])
def test_a_storage_that_is_whole_is_shared_again(tmp_path: Path, container: str) -> None:
    path = tmp_path / container
    flat = torch.arange(100.0)
    jsonckpt.save({"a": flat[:40], "b": flat[40:90].view(10, 5).t(), "c": torch.ones(3)}, path)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report
    whole, new = jsonckpt.load(path), jsonckpt.load(tmp_path / "new")
    assert difference(whole, new) is None
    for state in (whole, new):
        assert state["a"].untyped_storage().data_ptr() == state["b"].untyped_storage().data_ptr()
    if container == "c.json":
        path.write_bytes(path.read_bytes().replace(b'"AAAA', b'"BAAA', 1))
        report = jsonckpt.recover(path, tmp_path / "newer")
        assert [item.name for item in report.lost] == ["/a"]
        with jsonckpt.open(tmp_path / "newer") as checkpoint:
            assert [entry.layout.storage for entry in checkpoint.manifest.entries] == [None, None]


@pytest.mark.parametrize("size", [b"360", b"1440", b"720"])
def test_a_storage_that_makes_no_sense_is_not_shared(tmp_path: Path, size: bytes) -> None:
    """The seal of a manifest edited by hand is null, and that of a file can be computed anew."""
    path = tmp_path / "c.json"
    flat = torch.arange(90.0)
    jsonckpt.save({"a": flat[:40], "b": flat[40:]}, path)
    text = path.read_bytes()
    assert text.count(b'"storage":[0,160,360]') == 1
    body, _, end = text.replace(
        b'"storage":[0,160,360]', b'"storage":[0,160,' + size + b"]"
    ).rpartition(b',"seal":"')
    skeleton = re.sub(rb'^"[^"]*"(,?)$', rb'""\1', body, flags=re.MULTILINE)
    seal = hexdigest("xxh3_128", skeleton).encode()
    path.write_bytes(body + b',"seal":"xxh3_128:' + seal + end[end.index(b'"') :])
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.state == "verified"
    assert not report.lost
    assert torch.equal(jsonckpt.load(tmp_path / "new")["b"], flat[40:])
    with jsonckpt.open(tmp_path / "new") as checkpoint:
        shared = [entry.layout.storage is not None for entry in checkpoint.manifest.entries]
    assert shared == [size == b"360"] * 2


def test_a_lost_head(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    for checksum in ("xxh3_128", "sha256"):
        jsonckpt.save(_state(), path, checksum=checksum)
        path.write_bytes(path.read_bytes()[60:])
        report = jsonckpt.recover(path, tmp_path / checksum)
        assert (report.state, len(report.recovered), report.save_id) == ("lost", 6, "")
        assert torch.equal(
            jsonckpt.load(tmp_path / checksum)["model"]["layer.5"], _state()["model"]["layer.5"]
        )


def test_a_lost_manifest(tmp_path: Path) -> None:
    path = tmp_path / "c"
    result = jsonckpt.save(_state(), path, max_shard_size=5000)
    assert len(result.files) > 3
    (path / "manifest.json").unlink()
    (path / result.files[1]).unlink()
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.save_id == result.save_id
    assert report.state == "lost"
    found = jsonckpt.load(tmp_path / "new")
    assert 0 < len(found["model"]) < 6
    for key, tensor in found["model"].items():
        assert torch.equal(tensor, _state()["model"][key])
    lone = next(path.glob("shard-*-00001.json"))
    assert jsonckpt.recover(lone, tmp_path / "lone").recovered


def test_a_damaged_manifest_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(_state(), path)
    manifest = path / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"0.25", b"0.75"))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.state == "lost"
    assert "manifest.json is not used: the text does not match its seal" in str(report)
    assert "lr" not in jsonckpt.load(tmp_path / "new")


def test_a_missing_shard_is_reported_tensor_by_tensor(tmp_path: Path) -> None:
    path = tmp_path / "c"
    result = jsonckpt.save(small(), path, max_shard_size=400)
    entries = entries_of(path)
    (path / result.files[0]).unlink()
    report = jsonckpt.recover(path, tmp_path / "new")
    gone = [entry.name for entry in entries if entry.shard == 0]
    assert gone == ["/model/w"]
    assert [item.name for item in report.lost] == [*gone, "/model/tied"]
    assert report.lost[1].reason == "its data is that of '/model/w', which is lost"
    assert f"'{result.files[0]}' is missing" in report.notes
    state = jsonckpt.load(tmp_path / "new")
    assert list(state["model"]) == ["b"]
    assert type(state["model"]) is collections.OrderedDict
    assert state["lr"] == 0.001


def test_a_shard_of_another_save_gives_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c"
    first = jsonckpt.save({"w": torch.zeros(4)}, path)
    jsonckpt.save({"w": torch.ones(4)}, tmp_path / "other")
    shutil.copy(next((tmp_path / "other").glob("shard-*")), path / first.files[0])
    report = jsonckpt.recover(path, tmp_path / "new")
    assert [str(item.reason) for item in report.lost] == ["the manifest describes another record"]
    assert jsonckpt.load(tmp_path / "new") == {}


def test_a_save_killed_before_its_commit(tmp_path: Path) -> None:
    """The temporary manifest of a first save is whole: nothing is lost."""
    path = tmp_path / "c"
    result = jsonckpt.save(_state(), path)
    (path / "manifest.json").rename(path / f".manifest-{result.save_id[:12]}.tmp")
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report
    assert "of a save that did not finish" in report.notes[0]
    assert difference(_state(), jsonckpt.load(tmp_path / "new")) is None
    torn = path / f".manifest-{result.save_id[:12]}.tmp"
    torn.write_bytes(torn.read_bytes()[:-50])
    assert jsonckpt.recover(path, tmp_path / "newer").state == "lost"


@pytest.mark.parametrize("container", ["c.json", "c.json.zst"])
def test_a_killed_save_of_a_single_file(tmp_path: Path, container: str) -> None:
    path = tmp_path / container
    jsonckpt.save(_state(), path)
    text = path.read_bytes()
    if container.endswith(".zst"):  # in frames, as a larger save has them
        plain = zstandard.ZstdDecompressor().decompress(text)
        text = zstandard.compress(plain[:9000]) + zstandard.compress(plain[9000:])
    path.unlink()
    temporary = tmp_path / f".{container}.0123456789ab.tmp"
    temporary.write_bytes(text[: len(text) - 300])
    report = jsonckpt.recover(path, tmp_path / "new")
    assert len(report.recovered) >= 3
    assert report.state in ("verified", "unverified")
    assert jsonckpt.recover(temporary, tmp_path / "newer").recovered == report.recovered


def test_several_saves_in_one_directory(tmp_path: Path) -> None:
    path = tmp_path / "c"
    ids = []
    for number in range(3):
        made = tmp_path / f"made{number}"
        result = jsonckpt.save({"w": torch.full((4,), float(number))}, made)
        ids.append(result.save_id)
        path.mkdir(exist_ok=True)
        copy = path / result.files[0]
        shutil.copy(made / result.files[0], copy)
        if number == 2:  # the newest is cut off
            copy.write_bytes(copy.read_bytes()[:-30])
        os.utime(copy, (number + 1, number + 1))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.save_id == ids[1]
    assert sum("another save" in note for note in report.notes) == 2
    for number in (0, 2):
        out = tmp_path / f"out{number}"
        assert jsonckpt.recover(path, out, save_id=ids[number][:8]).save_id == ids[number]
        assert float(jsonckpt.load(out)["w"][0]) == number
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="no shards of this save"):
        jsonckpt.recover(path, tmp_path / "none", save_id="ffff" * 8)
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="It holds checkpoints") as caught:
        jsonckpt.recover(tmp_path, tmp_path / "none")
    assert path.name in str(caught.value)


def test_frames_behind_a_broken_one_are_read(tmp_path: Path) -> None:
    jsonckpt.save(_state(), tmp_path / "c.json", chunk_size=400)
    text = (tmp_path / "c.json").read_bytes()
    parts = [text[at : at + 3000] for at in range(0, len(text), 3000)]
    frames = [zstandard.compress(part, 3) for part in parts]
    assert len(frames) > 5
    for how in ("block", "magic", "cut"):
        broken = bytearray(frames[2])
        if how == "cut":
            broken = broken[: len(broken) // 2]
        else:
            broken[len(broken) // 2 if how == "block" else 1] ^= 0xFF
        path = tmp_path / f"{how}.json.zst"
        path.write_bytes(b"".join([*frames[:2], bytes(broken), *frames[3:]]))
        assert not jsonckpt.verify(path)
        report = jsonckpt.recover(path, tmp_path / how)
        assert 3 <= len(report.recovered) <= 5
        assert "/model/layer.0" in report.recovered
        assert "/model/layer.5" in report.recovered
        check_recovered(tmp_path / how, report, tensors_of(tmp_path / "c.json"))


def test_what_is_already_there_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(_state(), path)
    (tmp_path / "file.json").write_text("x")
    for out in (path, tmp_path / "file.json", tmp_path):
        with pytest.raises(jsonckpt.CheckpointExistsError, match="never overwrites"):
            jsonckpt.recover(path, out)
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no leftovers"):
        jsonckpt.recover(tmp_path / "gone.json", tmp_path / "new")


def test_nothing_left_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "noise.json").write_bytes(bytes(range(256)) * 50)
    (tmp_path / "empty").mkdir()
    for name in ("noise.json", "empty"):
        with pytest.raises(jsonckpt.IncompleteCheckpointError):
            jsonckpt.recover(tmp_path / name, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_lines_without_end_are_not_searched(tmp_path: Path) -> None:
    """A few kilobytes of zstd unfold to more line feeds than anybody has time for."""
    path = tmp_path / "bomb.json.zst"
    compressor = zstandard.ZstdCompressor()
    path.write_bytes(compressor.compress(b'{"format":"jsonckpt.shard",\n' + b"\n" * 20_000_000))
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.recover(path, tmp_path / "out")
    with LocalFile(path) as file:
        found = scan(DamagedZstd(file, window=None), DEFAULT_LIMITS)
    assert "too many short lines" in str(found.lost[0])
    assert found.position < 2_000_000


def test_limits_hold_for_what_is_recovered(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(_state(), path)
    for limits in (
        jsonckpt.Limits(tensors=2),
        jsonckpt.Limits(chunks=3),
        jsonckpt.Limits(total_floor=4000, expansion=0),
        jsonckpt.Limits(name_bytes=5),
        jsonckpt.Limits(chunk_bytes=100),
    ):
        with pytest.raises(jsonckpt.LimitError, match="limit"):
            jsonckpt.recover(path, tmp_path / "none", limits=limits)
        assert os.listdir(tmp_path) == ["c.json"]


def test_a_file_that_changes_meanwhile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(_state(), path)

    def scan_and_change(*arguments: Any, **options: Any) -> Any:
        result = scan(*arguments, **options)
        offset = result.found[3].chunks[0][0]
        data = bytearray(path.read_bytes())
        data[offset : offset + 4] = b"AAAA"
        path.write_bytes(data)
        return result

    monkeypatch.setattr("jsonckpt._src.rescue.scan_files.scan", scan_and_change)
    with pytest.raises(jsonckpt.IntegrityError, match="changed while it was read"):
        jsonckpt.recover(path, tmp_path / "new")
    assert not (tmp_path / "new" / "manifest.json").exists()
