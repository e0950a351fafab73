"""The command ``jsonckpt``: what is printed, and the exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main


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
    assert main(["verify", path, "--limit", "tensors=1"]) == 1  # nothing was found out
    assert main(["show", path, "--limit", "tensors=none", "--limit", "rank=2"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"jsonckpt {jsonckpt.__version__}\n"


@pytest.mark.parametrize("command", ["show", "verify", "recover", "gc", "convert"])
def test_every_command_that_reads_takes_limits(
    command: str, path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = {
        "recover": ["recover", path, str(tmp_path / "new")],
        "gc": ["gc", path, "--older-than", "1h"],
        "convert": ["convert", path, "--output", str(tmp_path / "new.pt"), "--quiet"],
    }.get(command, [command, path])
    assert main([*arguments, "--limit", "wings=1"]) == 2
    assert "no limit 'wings'; there are manifest_bytes" in capsys.readouterr().err
    assert main([*arguments, "--limit", "tensors=1"]) == 1
    printed = capsys.readouterr()
    assert "limit is 1" in printed.out + printed.err
    arguments = [str(tmp_path / "other") if "new" in item else item for item in arguments]
    assert main([*arguments, "--limit", "tensors=none", "--limit", "rank=3"]) == 0


def test_verify_with_a_digest(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    digest = jsonckpt.save({"w": torch.ones(2)}, path, checksum="sha256").digest
    other = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    for command in ("verify", "show"):
        assert main([command, path, "--expected-digest", digest]) == 0
        assert main([command, path, "--expected-digest", other]) == (1 + 2 * (command == "verify"))
        printed = capsys.readouterr()
        assert f"expected {other}" in printed.out + printed.err
        assert main([command, path, "--expected-digest", "abc"]) == 2
        assert "64 lower-case hexadecimal digits" in capsys.readouterr().err


def test_verify_deep(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    left = Path(path).with_name(".c.json.0123456789ab.tmp")
    left.write_text("")
    assert main(["verify", "--deep", path]) == 0
    assert "note: 1 leftover" in capsys.readouterr().out
    assert main(["verify", "--deep", "--json", path]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], len(report["notes"])) == (True, 1)


@pytest.mark.parametrize("text", [b"", b"PK\x03\x04rest", b'{"epoch": 1}', b"\x80\x02}q\x00."])
@pytest.mark.parametrize("command", ["show", "verify"])
def test_a_file_that_is_no_checkpoint(
    command: str, text: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.pt").write_bytes(text)
    assert main([command, str(tmp_path / "x.pt")]) == 1
    printed = capsys.readouterr()
    assert "not a jsonckpt checkpoint" in printed.out + printed.err


def test_recover(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recover", path, str(tmp_path / "a")]) == 0
    assert "2 tensors, 20 bytes restored; 0 lost" in capsys.readouterr().out
    damage(path)
    assert main(["recover", path, str(tmp_path / "b.json")]) == 3
    assert "lost: '/model/w', chunk 0: the checksum is" in capsys.readouterr().out
    assert main(["recover", path, str(tmp_path / "c"), "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["state"], report["recovered"]) == (False, "verified", ["/n"])
    assert report["lost"][0]["name"] == "/model/w"
    assert main(["recover", path, str(tmp_path / "c"), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["error"]) == (False, "CheckpointExistsError")
    Path(path).write_text("")
    assert main(["recover", path, str(tmp_path / "d")]) == 1
    assert "Nothing was written" in capsys.readouterr().err
    assert not (tmp_path / "d").exists()


def test_gc(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    left = Path(path).with_name(".c.json.0123456789ab.tmp")
    left.write_text("")
    os.utime(left, (1, 1))
    assert main(["gc", path]) == 2
    assert main(["gc", path, "--older-than", "soon"]) == 2
    assert "is not an age" in capsys.readouterr().err
    assert main(["gc", path, "--older-than", "24h", "--dry-run"]) == 0
    assert "would remove: .c.json.0123456789ab.tmp" in capsys.readouterr().out
    assert main(["gc", path, "--older-than", "24h", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["ok"], report["removed"]) == (True, [left.name])
    assert not left.exists()


WITHOUT_TORCH = """
import sys
from jsonckpt._src.cli.main import main
from jsonckpt._src.load.container import open_container
try:
    main(sys.argv[1:])
finally:
    assert "torch" not in sys.modules
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["gc", "--help"], ["nothing"]])
def test_what_makes_no_tensor_imports_no_torch(arguments: list[str]) -> None:
    code = [sys.executable, "-c", WITHOUT_TORCH, *arguments]
    subprocess.run(code, check=True, capture_output=True)
