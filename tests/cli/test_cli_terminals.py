"""The commands on terminals that cannot show everything, and with what they cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt

ASCII = {
    "LC_ALL": "C",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jsonckpt", *arguments],
        env={**os.environ, **ASCII}, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "c"
    jsonckpt.save({"größe": torch.ones(2), "名": torch.zeros(1)}, path, metadata={"é": "日本"})
    return path


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
@pytest.mark.parametrize("command", ["show", "verify", "recover", "gc"])
def test_names_that_ascii_lacks(
    saved: Path, tmp_path: Path, command: str, options: list[str]
) -> None:
    targets = {"recover": [str(tmp_path / "out")], "gc": ["--older-than", "24h"]}.get(command, [])
    shown = run(command, str(saved), *targets, *options)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    if options:
        told = json.loads(shown.stdout)
        assert command != "recover" or told["recovered"] == ["/größe", "/名"]
    elif command == "show":
        assert r"/gr\xf6\xdfe" in shown.stdout


def test_convert_shows_them_too(saved: Path, tmp_path: Path) -> None:
    shown = run("convert", str(saved), "--output", str(tmp_path / "ü.pt"), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert r"\xf6" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["gc", "s3://x", "--older-than", "24h"],
        ["recover", "s3://x", "o"],
        ["recover", "x", "s3://o"],
    ],
    ids=str,
)
def test_remote_places_are_wrong_usage(arguments: list[str]) -> None:
    shown = run(*arguments)
    assert shown.returncode == 2
    assert "is not a local path" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_a_newer_file_is_no_mismatch(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(1)}, path)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2', 1))
    shown = run("verify", str(path))
    assert shown.returncode == 1
    assert "version 2 is newer than 1" in shown.stdout
