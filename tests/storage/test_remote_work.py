"""gc, recover, convert and the directory of a run behind URLs."""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.transfer.run_store import RemoteRun
from jsonckpt.cli import main
from jsonckpt.convert import convert
from tests.object_server import ObjectServer
from tests.support import lacking, same

fsspec = pytest.importorskip("fsspec")

STATE = {"w": torch.arange(400.0), "b": [torch.ones(3)], "epoch": 1}
ORPHAN = "shard-0123456789ab-00001.json"


@pytest.fixture(params=["memory", "file"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return f"file://{tmp_path}/remote"


def put(url: str, data: bytes = b"x") -> None:
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    fs.pipe_file(path, data)


def names(url: str) -> list[str]:
    fs, path = fsspec.core.url_to_fs(url)
    fs.invalidate_cache()
    return sorted(name.rpartition("/")[2] for name in fs.find(path))


# --- gc ---------------------------------------------------------------------------------------


def test_gc_removes_what_nobody_names(base: str) -> None:
    url = f"{base}/run/c"
    files = jsonckpt.save(STATE, url).files
    for name in (ORPHAN, ".manifest-0123456789ab.tmp", "notes.txt", "shard-of-mine.json"):
        put(f"{url}/{name}")
    assert jsonckpt.gc(url).removed == ()
    dry = jsonckpt.gc(url, older_than=0, dry_run=True)
    assert dry.removed == (".manifest-0123456789ab.tmp", ORPHAN)
    assert dry.nbytes == 2
    assert jsonckpt.gc(url, older_than=0).removed == dry.removed
    assert names(url) == sorted([*files, "notes.txt", "shard-of-mine.json"])
    assert same(jsonckpt.load(url), STATE)


def test_gc_keeps_what_a_checkpoint_beside_it_names(base: str) -> None:
    url = f"{base}/run/c"
    jsonckpt.save(STATE, url)
    put(f"{url}/{ORPHAN}")
    put(f"{base}/run/d/manifest.json", f'{{"shards":[{{"file":"{ORPHAN}"}}]}}'.encode())
    assert jsonckpt.gc(url, older_than=0).removed == ()
    assert ORPHAN in names(url)


def test_gc_beside_a_single_file(base: str) -> None:
    url = f"{base}/c.json"
    jsonckpt.save(STATE, url)
    put(f"{base}/.c.json.0123456789ab.tmp")
    put(f"{base}/.d.json.0123456789ab.tmp")
    assert jsonckpt.gc(url, older_than=0).removed == (".c.json.0123456789ab.tmp",)
    assert names(base) == [".d.json.0123456789ab.tmp", "c.json"]


def test_gc_of_a_save_that_never_finished(base: str) -> None:
    url = f"{base}/c"
    put(f"{url}/{ORPHAN}")
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="first save that did not finish"):
        jsonckpt.gc(url, older_than=0)
    put(f"{url}/notes.txt")
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match=r"other files.*notes.txt"):
        jsonckpt.gc(url, older_than=0, abandoned=True)
    fs, path = fsspec.core.url_to_fs(url)
    fs.rm_file(f"{path}/notes.txt")
    assert jsonckpt.gc(url, older_than=0, abandoned=True).removed == (ORPHAN,)
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.gc(f"{base}/nothing", older_than=0)


def test_gc_leaves_what_cannot_be_read(base: str) -> None:
    url = f"{base}/c"
    jsonckpt.save(STATE, url)
    put(f"{url}/{ORPHAN}")
    put(f"{url}/manifest.json", b'{"format": "jsonckpt.manifest"')
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="nothing was removed"):
        jsonckpt.gc(url, older_than=0)
    assert ORPHAN in names(url)


# --- recover ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_recover_from_a_url_and_to_one(base: str, tmp_path: Path, name: str) -> None:
    url = f"{base}/{name}"
    files = jsonckpt.save(STATE, url, max_shard_size=100).files
    fs, path = fsspec.core.url_to_fs(url)
    lost = f"{path}/{files[0]}" if name == "c" else path
    fs.pipe_file(lost, fs.cat_file(lost)[:-200])
    report = jsonckpt.recover(url, tmp_path / "new")
    assert report.path == url
    assert not report.complete
    assert all(item.file is None or item.file.startswith((base, "no ")) for item in report.lost)
    again = jsonckpt.recover(url, f"{base}/new/{name}")
    assert again.out == f"{base}/new/{name}"
    assert same(jsonckpt.load(again.out), jsonckpt.load(tmp_path / "new"))
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.recover(url, f"{base}/new/{name}")
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.recover(f"{base}/nothing", tmp_path / "other")
    assert {*os.listdir(tmp_path)} <= {"new", "remote"}  # the copies are gone


def test_recover_takes_what_a_killed_save_left(base: str, tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json")
    put(f"{base}/.c.json.0123456789ab.tmp", (tmp_path / "c.json").read_bytes())
    report = jsonckpt.recover(f"{base}/c.json", tmp_path / "new")
    assert report.complete
    assert same(jsonckpt.load(tmp_path / "new"), STATE)


# --- convert ----------------------------------------------------------------------------------


def test_convert_from_and_to_urls(base: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "best.pt")
    put(f"{base}/best.pt", (tmp_path / "best.pt").read_bytes())
    for name in ("a", "a.json", "a.json.zst"):
        result = convert(f"{base}/best.pt", f"{base}/{name}", test_load=True)
        assert result.output == f"{base}/{name}"
        assert same(jsonckpt.load(result.output), STATE)
        back = convert(result.output, tmp_path / "back" / f"{name}.pt", overwrite=True)
        assert same(torch.load(str(back.output), weights_only=True), STATE)
        with pytest.raises(jsonckpt.CheckpointExistsError):
            convert(f"{base}/best.pt", f"{base}/{name}")
    new = {**STATE, "epoch": 2}
    torch.save(new, tmp_path / "new.pt")
    convert(tmp_path / "new.pt", f"{base}/a", overwrite=True)
    assert same(jsonckpt.load(f"{base}/a"), new)
    assert len(names(f"{base}/a")) == 2  # the replaced shards are gone
    convert(f"{base}/a.json", f"{base}/w.safetensors", include=["w"])
    assert "w.safetensors" in names(base)
    convert(f"{base}/best.pt", f"{base}/dry.json", dry_run=True)
    assert "dry.json" not in names(base)


def test_the_command_takes_urls(base: str, tmp_path: Path, capsys: Any) -> None:
    torch.save(STATE, tmp_path / "best.pt")
    assert main(["convert", str(tmp_path / "best.pt"), "-o", f"{base}/c"]) == 0
    assert f"{base}/c" in capsys.readouterr().out
    assert main(["gc", f"{base}/c", "--dry-run"]) == 0
    assert main(["recover", f"{base}/c", str(tmp_path / "new")]) == 0
    assert same(jsonckpt.load(tmp_path / "new"), STATE)
    assert main(["convert", f"{base}/c"]) == 2
    assert "an output is needed" in capsys.readouterr().err


def test_from_a_web_server(tmp_path: Path) -> None:
    try:
        import aiohttp  # noqa: F401
    except ImportError:
        lacking("aiohttp", "a web server is read through fsspec and aiohttp")
    jsonckpt.save(STATE, tmp_path / "c")
    torch.save(STATE, tmp_path / "best.pt")
    with ObjectServer().running() as server:
        for file in [tmp_path / "best.pt", *(tmp_path / "c").iterdir()]:
            server.objects[f"/x/{file.relative_to(tmp_path)}"] = file.read_bytes()
        url = f"{server.url}/x"
        convert(f"{url}/best.pt", tmp_path / "a.json")
        convert(f"{url}/c", tmp_path / "b.json")
        assert jsonckpt.recover(f"{url}/c", tmp_path / "d").complete
        for name in ("a.json", "b.json", "d"):
            assert same(jsonckpt.load(tmp_path / name), STATE)
        with pytest.raises(jsonckpt.JsonckptError, match="does not list"):
            jsonckpt.gc(f"{url}/c")
        with pytest.raises(jsonckpt.WriteError, match="takes no files"):
            convert(tmp_path / "best.pt", f"{url}/e.json")
        with pytest.raises(jsonckpt.CheckpointNotFoundError):
            convert(f"{url}/nothing.pt", tmp_path / "e.json")


# --- a run ------------------------------------------------------------------------------------


def test_the_directory_of_a_run(base: str) -> None:
    run = RemoteRun(f"{base}/run")
    assert run.entries() == []
    assert run.read("history.json", 1_000) is None
    run.write("history.json", b"[1]")
    run.write("history.json", b"[1, 2]")
    assert run.read("history.json", 1_000) == b"[1, 2]"
    with pytest.raises(jsonckpt.LimitError):
        run.read("history.json", 3)
    for name in ("step-1", "step-2", "step-3.json"):
        jsonckpt.save(STATE, run.path(name))
    put(f"{base}/run/step-1/notes.txt")
    listed = {entry.name: entry.is_directory for entry in run.entries()}
    assert listed == {
        "history.json": False,
        "step-1": True,
        "step-2": True,
        "step-3.json": False,
    }
    assert all(entry.changed > 0 for entry in run.entries() if not entry.is_directory)
    for name in ("step-1", "step-2", "step-3.json", "step-4"):
        run.remove_step(name)
    assert names(f"{base}/run") == ["history.json", "notes.txt"]
    for wrong in ("", "..", "a/b"):
        with pytest.raises(jsonckpt.ArgumentError):
            run.remove_step(wrong)


def test_a_run_on_s3() -> None:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        lacking("moto", "S3 is read through s3fs")
    with ObjectServer().running() as server:
        run = RemoteRun("s3://bucket/run", server.s3_options)
        assert run.entries() == []
        run.write("history.json", b"[]")
        for name in ("step-1", "step-2"):
            jsonckpt.save(STATE, run.path(name), storage_options=server.s3_options)
        assert [entry.name for entry in run.entries()] == ["history.json", "step-1", "step-2"]
        run.remove_step("step-1")
        assert [entry.name for entry in run.entries()] == ["history.json", "step-2"]
        found = jsonckpt.find("s3://bucket/run", storage_options=server.s3_options)
        assert [one.name for one in found] == ["step-2"]
        server.objects[f"/bucket/run/step-2/{ORPHAN}"] = b"x"
        server.uploads = {"old": {1: b"x"}}
        server.upload_keys = {"old": f"run/step-2/{ORPHAN}", "other": "run/step-2/notes.txt"}
        for dry in (True, False):
            report = jsonckpt.gc(run.path("step-2"), storage_options=server.s3_options, dry_run=dry)
            assert report.removed == (ORPHAN,)
            assert report.uploads == 1
            assert bool(server.uploads) == dry
        assert "1 unfinished upload" in str(report)


def test_chained_urls(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path / "c.json")
    jsonckpt.save(STATE, tmp_path / "d")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for file in [tmp_path / "c.json", *(tmp_path / "d").iterdir()]:
            archive.write(file, file.relative_to(tmp_path))
    urls = [f"zip://{name}::file://{tmp_path}/x.zip" for name in ("c.json", "d")]
    urls += [f"simplecache::file://{tmp_path}/{name}" for name in ("c.json", "d")]
    for number, url in enumerate(urls):
        assert same(jsonckpt.load(url), STATE)
        assert jsonckpt.verify(url).ok
        convert(url, tmp_path / f"{number}.json")
        assert same(jsonckpt.load(tmp_path / f"{number}.json"), STATE)
    with pytest.raises(jsonckpt.WriteError, match="only be open for reading"):
        jsonckpt.save(STATE, urls[1])
