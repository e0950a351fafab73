"""The command ``jsonckpt``: what is printed, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt.cli import main


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "c.json"
    state = {"model": {"w": torch.zeros(6, 2, dtype=torch.uint8)}, "n": torch.ones(2)}
    jsonckpt.save(state, path, metadata={"run": "é"})
    return str(path)


def damage(path: str) -> None:
    file = Path(path)
    file.write_bytes(file.read_bytes().replace(b'"AAAA', b'"BAAA', 1))


def test_show(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", path]) == 0
    out = capsys.readouterr().out
    assert "2 tensors, 20 bytes" in out
    assert 'metadata run: "é"' in out
    assert "/model/w  uint8      [6, 2]" in out


def test_show_json(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "--json", path]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["metadata"] == {"run": "é"}
    assert summary["tensors"] == [
        {"name": "/model/w", "dtype": "uint8", "shape": [6, 2], "bytes": 12},
        {"name": "/n", "dtype": "float32", "shape": [2], "bytes": 8},
    ]


def test_verify(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", path]) == 0
    assert "ok, 2 tensors" in capsys.readouterr().out
    assert main(["verify", "-q", path]) == 0
    assert capsys.readouterr().out == ""
    damage(path)
    assert main(["verify", "-q", path]) == 3
    assert "/model/w" in capsys.readouterr().out
    assert main(["verify", "--json", path]) == 3
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    (problem,) = report["problems"]
    assert (problem["error"], problem["tensor"], problem["chunk"]) == (
        "IntegrityError",
        "/model/w",
        0,
    )


@pytest.mark.parametrize("command", ["show", "verify"])
def test_nothing_there(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path / "x.json")]) == 1
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["show"],
        ["show", "--limit", "wings=2", "x"],
        ["show", "--limit", "rank=x", "x"],
    ],
    ids=str,
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage: jsonckpt" in capsys.readouterr().err


def test_limits(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", path, "--limit", "tensors=1"]) == 1
    assert "tensors" in capsys.readouterr().err
    assert main(["verify", path, "--limit", "tensors=1"]) == 3
    assert main(["show", path, "--limit", "tensors=none", "--limit", "rank=2"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jsonckpt {jsonckpt.__version__}\n"
