"""What ``recover`` and ``gc`` refuse as a reader must, instead of taking it for damage."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.checksums import ALGORITHMS, Algorithm
from jsonckpt._src.format.limits import Limits
from tests.hostile.cases import FORMS, write
from tests.hostile.forge import good
from tests.support import difference

STATE = {"a": torch.arange(40), "b": torch.ones(2, 3), "lr": 0.25}
VERSION = (b'"version":1', b'"version":2')
REQUIRES = (b'"version":1', b'"version":1,"requires":["later"]')
RECORD = (b'{"name":"/b"', b'{"name":"/b","requires":["later"]')
TAIL = (b'"digest":', b'"requires":["later"],"digest":')


def _listing(path: Path) -> list[Path]:
    return sorted(path.rglob("*"))


def _edit(path: Path, change: tuple[bytes, bytes]) -> None:
    text = path.read_bytes()
    assert change[0] in text
    at = text.rindex(change[0])
    path.write_bytes(text[:at] + change[1] + text[at + len(change[0]) :])


@pytest.mark.parametrize(
    ("change", "said"),
    [(REQUIRES, "'later'"), (RECORD, "'later'"), (TAIL, "'later'")],
    ids=["head", "record", "tail"],
)
@pytest.mark.parametrize("place", ["c.json", "shard", "shard without manifest"])
def test_a_file_that_is_not_understood_is_not_recovered(
    tmp_path: Path, place: str, change: tuple[bytes, bytes], said: str
) -> None:
    path = tmp_path / place
    jsonckpt.save(STATE, path)
    file = path
    if path.is_dir():
        [file] = path.glob("shard-*")
        if "without" in place:
            (path / "manifest.json").unlink()
    _edit(file, change)
    before = _listing(tmp_path)
    for out in ("new", "new.json"):
        with pytest.raises(jsonckpt.UnsupportedVersionError, match=said) as caught:
            jsonckpt.recover(path, tmp_path / out)
        assert caught.value.file == str(file)
    assert _listing(tmp_path) == before


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("has_manifest", [True, False], ids=["manifest", "none"])
def test_a_file_of_a_later_version_is_not_recovered(
    tmp_path: Path, form: str, has_manifest: bool
) -> None:
    forgery = good()
    forgery.head["version"] = 2
    path = write(forgery, form, tmp_path)
    if path.is_dir() and not has_manifest:
        (path / "manifest.json").unlink()
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="version 2"):
        jsonckpt.recover(path, tmp_path / "new")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("version", [b"3", b"9", b"0", b"5"])
@pytest.mark.parametrize("place", ["c.json", "shard", "shard without manifest", "manifest"])
def test_a_version_that_the_seal_contradicts_is_damage(
    tmp_path: Path, place: str, version: bytes
) -> None:
    path = tmp_path / place
    jsonckpt.save(STATE, path)
    if place == "manifest":
        _edit(path / "manifest.json", (b'"version":1', b'"version":' + version))
        for shard in path.glob("shard-*"):
            _edit(shard, (b'"version":1', b'"version":' + version))
    elif path.is_dir():
        [file] = path.glob("shard-*")
        _edit(file, (b'"version":1', b'"version":' + version))
        if "without" in place:
            (path / "manifest.json").unlink()
    else:
        _edit(path, (b'"version":1', b'"version":' + version))
    report = jsonckpt.recover(path, tmp_path / "new")
    assert sorted(report.recovered) == ["/a", "/b"]
    assert not report.lost
    if version != b"0":  # that is no version, and only costs what stands beside it
        assert any("the seal matches another" in note for note in report.notes)
        if "without" not in place:
            assert report.state == "verified"
            assert difference(jsonckpt.load(tmp_path / "new"), STATE) is None


def test_damage_beside_a_version_leaves_its_refusal(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path)
    _edit(path, VERSION)
    _edit(path, (b"0.25", b"0.26"))
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="version 2"):
        jsonckpt.recover(path, tmp_path / "new")


@pytest.mark.parametrize("name", ["c.json", "c.json.zst"])
def test_members_in_another_order_hide_no_record(tmp_path: Path, name: str) -> None:
    forgery = good()
    for record in forgery.records:
        record.members = dict(reversed(record.members.items()))
    path = write(forgery, "zst" if name.endswith("zst") else "single", tmp_path)
    whole = jsonckpt.load(path)
    report = jsonckpt.recover(path, tmp_path / "new.json")
    assert not report.lost
    assert difference(jsonckpt.load(tmp_path / "new.json"), whole) is None
    if name.endswith("zst"):
        # The others are in order, and none of them is said not to be.
        first, *rest = forgery.records[0].payloads
        forgery.records[0].payloads = [b"BBBB" + first[4:], *rest]
        (tmp_path / "two").mkdir()
        problems = jsonckpt.verify(write(forgery, "zst", tmp_path / "two")).problems
        assert [problem.tensor for problem in problems] == [forgery.records[0].members["name"]]


@pytest.mark.parametrize("change", [VERSION, REQUIRES, RECORD], ids=["version", "top", "entry"])
@pytest.mark.parametrize("name", ["manifest.json", ".manifest-0123456789ab.tmp"])
def test_a_manifest_that_is_not_understood_hides_no_tensor(
    tmp_path: Path, name: str, change: tuple[bytes, bytes]
) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    _edit(path / "manifest.json", change)
    text = (path / "manifest.json").read_bytes()
    text = text[: text.rindex(b'"seal":')] + b'"seal":null}\n'
    (path / "manifest.json").unlink()
    (path / name).write_bytes(text)
    before = _listing(tmp_path)
    with pytest.raises(jsonckpt.UnsupportedVersionError, match=r"version 2|'later'") as caught:
        jsonckpt.recover(path, tmp_path / "new")
    assert caught.value.file == str(path / name)
    assert _listing(tmp_path) == before


def test_a_feature_that_is_not_known_counts_before_damage(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path)
    with jsonckpt.open(path) as checkpoint:
        offset, _, _ = checkpoint.manifest.entries[-1].chunks[0]
    data = bytearray(path.read_bytes())
    data[offset + 2 : offset + 6] = b"####"
    path.write_bytes(data)
    _edit(path, TAIL)
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="'later'"):
        jsonckpt.recover(path, tmp_path / "new")


# --- limits ---------------------------------------------------------------------------------------

TOO_SMALL = [
    Limits(rank=0),
    Limits(tensors=1),
    Limits(chunks=1),
    Limits(total_floor=100, expansion=0),
    Limits(name_bytes=1),
    Limits(chunk_bytes=100),
    Limits(manifest_bytes=40),
    Limits(depth=1),
    Limits(number_chars=1),
    Limits(marks=3),
]


def _said(limits: Limits) -> str:
    return ",".join(key for key, value in vars(limits).items() if value != getattr(Limits(), key))


def _run(what: str, path: Path, out: Path, limits: Limits) -> None:
    if what == "gc":
        jsonckpt.gc(path, older_than=0, limits=limits)
    else:
        jsonckpt.recover(path, out, limits=limits)


@pytest.mark.parametrize("limits", TOO_SMALL, ids=_said)
@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
@pytest.mark.parametrize("what", ["recover", "gc"])
def test_a_limit_is_no_damage(tmp_path: Path, what: str, name: str, limits: Limits) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE | {"deep": [[1.25]]}, path)
    left = path / "shard-0123456789ab-00001.json"
    if not path.is_dir():
        left = tmp_path / f".{name}.0123456789ab.tmp"
    left.write_text("left over")
    before = _listing(tmp_path)
    with pytest.raises(jsonckpt.LimitError):
        _run(what, path, tmp_path / "new", limits)
    assert _listing(tmp_path) == before


def test_the_limit_on_shards_is_no_damage(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "c", max_shard_size=600)
    for limits in (Limits(shards=1), Limits(manifest_bytes=40)):
        with pytest.raises(jsonckpt.LimitError):
            jsonckpt.recover(tmp_path / "c", tmp_path / "new", limits=limits)
        with pytest.raises(jsonckpt.LimitError):
            jsonckpt.gc(tmp_path / "c", older_than=0, limits=limits)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_gc_refuses_what_it_does_not_understand_by_its_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save(STATE, path)
    file = path / "manifest.json" if path.is_dir() else path
    _edit(file, VERSION)
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="version 2"):
        jsonckpt.gc(path, older_than=0)


@pytest.mark.parametrize("name", ["c", "c.json", "shard"])
def test_a_missing_package_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    # What a file of blake3 is to whoever lacks the package: a name and as many digits.
    monkeypatch.setitem(ALGORITHMS, "blake3", _like_sha256())
    jsonckpt.save(STATE, path, checksum="blake3")
    if name == "shard":
        (path / "manifest.json").unlink()
        [path] = path.glob("shard-*")
        path.write_bytes(path.read_bytes()[60:])  # without its head nothing names the checksum
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "blake3", None)
    before = _listing(tmp_path)
    with pytest.raises(jsonckpt.JsonckptError, match=r"needs the package blake3.*pip install"):
        jsonckpt.recover(path, tmp_path / "new")
    if name != "shard":
        with pytest.raises(jsonckpt.JsonckptError, match=r"needs the package blake3.*pip install"):
            jsonckpt.gc(path, older_than=0)
    assert _listing(tmp_path) == before


def _like_sha256() -> Algorithm:
    return Algorithm("blake3", 64, ALGORITHMS["sha256"].start)


def test_a_head_over_the_limit_is_told_from_one_that_runs_into_tensors(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"a": torch.arange(4_000), "b": torch.ones(3)}, path)
    text = path.read_bytes()
    start = text.index(b'"tensors":[')
    path.write_bytes(text[:start] + bytes(40) + text[start + 40 :])
    report = jsonckpt.recover(path, tmp_path / "new", limits=Limits(manifest_bytes=10_000))
    assert report.recovered == ("/b",)
    assert any("larger than the limits allow" in note for note in report.notes)
