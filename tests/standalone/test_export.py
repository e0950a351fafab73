"""``export_reader`` and ``with_reader``: what is written, replaced, kept and refused."""

from __future__ import annotations

import hashlib
import io
import json
import re
from importlib import resources
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.standalone.export import FILES, marked
from jsonckpt.cli import main

STATE = {"w": torch.ones(3)}


def _names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def _of_release(version: str, body: bytes) -> bytes:
    """An unchanged copy that another release wrote."""
    line = b"from __future__ import annotations"
    body = b'"""Old."""\n' + line + b"\n" + body
    mark = f"  # jsonckpt {version}, sha256 {hashlib.sha256(body).hexdigest()}".encode()
    return body.replace(line, line + mark)


def test_the_files_are_data_of_the_package() -> None:
    folder = resources.files("jsonckpt._src.standalone")
    for name in FILES:
        text = (folder / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (jsonckpt\b|tests|numpy)", text, re.MULTILINE)
        compile(text, name, "exec")


def test_export_writes_both_and_again_nothing(tmp_path: Path) -> None:
    paths = jsonckpt.export_reader(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [*FILES]
    before = [path.stat().st_mtime_ns for path in paths]
    assert jsonckpt.export_reader(str(tmp_path / "new" / "folder")) == paths
    assert [path.stat().st_mtime_ns for path in paths] == before
    assert _names(tmp_path / "new" / "folder") == {*FILES}


@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_an_older_copy_is_replaced(tmp_path: Path, newline: bytes) -> None:
    old = _of_release("0.0.9", b"x = 1\n").replace(b"\n", newline)
    (tmp_path / FILES[0]).write_bytes(old)
    jsonckpt.export_reader(tmp_path)
    assert (tmp_path / FILES[0]).read_bytes() == marked(FILES[0])


def test_a_newer_copy_is_kept(tmp_path: Path) -> None:
    new = _of_release("99.10", b"x = 1\n")
    (tmp_path / FILES[0]).write_bytes(new)
    jsonckpt.export_reader(tmp_path)
    assert (tmp_path / FILES[0]).read_bytes() == new


@pytest.mark.parametrize("content", [b"mine", b"", marked(FILES[1]) + b"# changed\n"])
def test_a_file_of_the_user_is_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILES[1]).write_bytes(content)
    with pytest.raises(jsonckpt.CheckpointExistsError, match="another file of this name"):
        jsonckpt.export_reader(tmp_path)
    for path in (tmp_path / "c", tmp_path / "c" / "c.json"):
        (tmp_path / "c").mkdir(exist_ok=True)
        (tmp_path / "c" / FILES[1]).write_bytes(content)
        with pytest.raises(jsonckpt.CheckpointExistsError, match="another file of this name"):
            jsonckpt.save(STATE, path, with_reader=True)
    assert _names(tmp_path / "c") == {FILES[1]}
    assert _names(tmp_path) == {FILES[1], "c"}
    assert (tmp_path / FILES[1]).read_bytes() == content


def test_a_directory_of_that_name(tmp_path: Path) -> None:
    (tmp_path / FILES[0]).mkdir()
    with pytest.raises(jsonckpt.CheckpointExistsError, match="a directory"):
        jsonckpt.export_reader(tmp_path)


def test_urls_and_file_objects_are_refused(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="directory is a URL"):
        jsonckpt.export_reader("memory://bucket")
    with pytest.raises(jsonckpt.ArgumentError, match="path is a URL, and with_reader"):
        jsonckpt.save(STATE, "memory://bucket/c.json", with_reader=True)
    with pytest.raises(jsonckpt.ArgumentError, match="path is a file object, and with_reader"):
        jsonckpt.save(STATE, io.BytesIO(), with_reader=True)
    del tmp_path


def test_the_reader_lies_in_a_directory_and_beside_a_file(tmp_path: Path) -> None:
    inside = jsonckpt.save(STATE, tmp_path / "d", with_reader=True)
    beside = jsonckpt.save(STATE, tmp_path / "run" / "c.json", with_reader=True)
    assert inside.reader_files == tuple(str(tmp_path / "d" / name) for name in FILES)
    assert beside.reader_files == tuple(str(tmp_path / "run" / name) for name in FILES)
    assert jsonckpt.save(STATE, tmp_path / "e").reader_files == ()
    assert _names(tmp_path / "run") == {"c.json", *FILES}
    again = jsonckpt.save(STATE, tmp_path / "d", with_reader=True)
    assert again.reader_files == inside.reader_files


def test_save_async_writes_it_too(tmp_path: Path) -> None:
    result = jsonckpt.save_async(STATE, tmp_path / "d", with_reader=True).result()
    assert _names(tmp_path / "d") >= {"manifest.json", *FILES}
    assert len(result.reader_files) == 2


def test_other_commands_do_not_mind(tmp_path: Path) -> None:
    path = tmp_path / "d"
    jsonckpt.save(STATE, path, with_reader=True)
    assert jsonckpt.verify(path).ok
    assert jsonckpt.gc(path, older_than=0, abandoned=True).removed == ()
    assert {*FILES} < _names(path)
    assert jsonckpt.export_reader(tmp_path / "new")
    jsonckpt.save(STATE, tmp_path / "new", overwrite=False)  # it counts as empty
    jsonckpt.recover(path, tmp_path / "r")
    assert torch.equal(jsonckpt.load(tmp_path / "r")["w"], STATE["w"])
    jsonckpt.save(STATE, path, delete_first=True)
    assert {*FILES} < _names(path)


def test_a_failed_reader_says_that_the_checkpoint_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(directory: Path) -> None:
        raise jsonckpt.WriteError("no space", file=directory)

    monkeypatch.setattr("jsonckpt._src.save.write.export_reader", refuse)
    with pytest.raises(jsonckpt.WriteError, match="the checkpoint is written, but not its reader"):
        jsonckpt.save(STATE, tmp_path / "d", with_reader=True)
    assert torch.equal(jsonckpt.load(tmp_path / "d")["w"], STATE["w"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(tmp_path / "d" / name) for name in FILES]
    assert main(["export-reader", str(tmp_path / "d")]) == 0
    assert capsys.readouterr().out.splitlines() == paths
    assert main(["export-reader", str(tmp_path / "d"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "ok": True,
        "path": str(tmp_path / "d"),
        "files": paths,
    }
    (tmp_path / "d" / FILES[0]).write_text("mine")
    assert main(["export-reader", str(tmp_path / "d"), "--json"]) == 1
    out = json.loads(capsys.readouterr().out)
    assert (out["ok"], out["error"]) == (False, "CheckpointExistsError")


def test_convert_takes_it_for_its_own_formats_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(STATE, tmp_path / "w.pt")
    source, output = str(tmp_path / "w.pt"), str(tmp_path / "w.safetensors")
    assert main(["convert", source, "-o", output, "--with-reader"]) == 2
    assert "--with-reader does not apply to safetensors" in capsys.readouterr().err
    with pytest.raises(jsonckpt.ArgumentError, match="does not apply to safetensors"):
        jsonckpt.convert(source, output, with_reader=True)
    target = str(tmp_path / "d")
    assert main(["convert", source, "-o", target, "--with-reader", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["reader_files"]
    assert files == [str(tmp_path / "d" / name) for name in FILES]
