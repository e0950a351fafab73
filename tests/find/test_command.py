"""``jsonckpt find``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt.cli import main


def make(path: Path, **state: object) -> Path:
    jsonckpt.save({"w": torch.ones(3), **state}, path)
    return path


def test_the_table_begins_with_the_newest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path / "a", step=500, epoch=1)
    make(tmp_path / "b.json", step=600)
    torn = make(tmp_path / "c.json", step=700)
    torn.write_bytes(torn.read_bytes()[:-5])
    (tmp_path / "old.json").write_text('{"w.weight": [0.5, 1.5]}')
    assert main(["find", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["step", "epoch", "saved", "(UTC)", "size", "path"]
    assert lines[1].split()[:2] == ["600", "-"]
    assert lines[1].endswith("b.json")
    assert lines[2].split()[:2] == ["500", "1"]
    assert "1 checkpoint passed over:" in lines
    assert any("c.json: the file of" in line for line in lines)
    assert any("old.json  JSON number lists" in line for line in lines)
    assert main(["find", str(tmp_path), "--newest"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'b.json'}\n"


def test_the_object_for_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(tmp_path / "x" / "a", step=500, epoch=1)
    make(tmp_path / "y" / "b.json", step=600)
    assert main(["find", "--json", str(tmp_path / "x"), str(tmp_path / "y")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [
        "ok", "paths", "newest", "checkpoints", "torn", "convertible", "unread",
    ]  # fmt: skip
    assert report["newest"] == str(tmp_path / "y" / "b.json")
    first = report["checkpoints"][0]
    assert list(first) == [
        "path", "kind", "valid", "problem", "step", "epoch", "saved_at", "bytes",
    ]  # fmt: skip
    assert (first["kind"], first["step"], first["problem"]) == ("file", 600, None)
    assert report["checkpoints"][1]["epoch"] == 1


def test_nothing_found_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["find", str(tmp_path)]) == 1
    assert "no checkpoint below" in capsys.readouterr().out
    assert main(["find", "--newest", str(tmp_path)]) == 1
    assert "no whole checkpoint" in capsys.readouterr().err
    assert main(["find", str(tmp_path / "missing")]) == 1
    assert "no such directory" in capsys.readouterr().err


def test_it_needs_no_torch(tmp_path: Path) -> None:
    make(tmp_path / "a", step=500)
    code = (
        "import sys; from jsonckpt.cli import main; main(sys.argv[1:]); print('torch' in "
        "sys.modules)"
    )
    command = [sys.executable, "-c", code, "find", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
