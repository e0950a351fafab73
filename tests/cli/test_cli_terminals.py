"""The commands on terminals that cannot show everything, and with what they cannot do."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
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


#: Runs commands one after the other, each with output streams like those of the process.
CHILD = """
import io, json, os, sys
from jsonckpt.cli import main
for line in sys.stdin:
    streams = [io.TextIOWrapper(io.BytesIO(), stream.encoding, stream.errors, write_through=True)
               for stream in (sys.__stdout__, sys.__stderr__)]
    assert streams[0].encoding == "ascii"
    sys.stdout, sys.stderr = streams
    # As in sys.argv: what the locale's encoding lacks stands there as surrogates.
    code = main([os.fsdecode(word.encode()) for word in json.loads(line)])
    texts = [stream.buffer.getvalue().decode("ascii") for stream in streams]
    print(json.dumps([code, *texts]), file=sys.__stdout__, flush=True)
"""


@pytest.fixture(scope="module")
def child() -> Iterator[subprocess.Popen[str]]:
    """A process whose terminal knows ASCII only."""
    with subprocess.Popen(
        [sys.executable, "-c", CHILD],
        env={**os.environ, **ASCII}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2],
    ) as process:  # fmt: skip
        yield process


def run(child: subprocess.Popen[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(json.dumps(arguments) + "\n")
    child.stdin.flush()
    return subprocess.CompletedProcess(arguments, *json.loads(child.stdout.readline()))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("terminal") / "c"
    jsonckpt.save({"größe": torch.ones(2), "名": torch.zeros(1)}, path, metadata={"é": "日本"})
    return path


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
@pytest.mark.parametrize("command", ["show", "verify", "recover", "gc"])
def test_names_that_ascii_lacks(
    child: subprocess.Popen[str], saved: Path, tmp_path: Path, command: str, options: list[str]
) -> None:
    targets = {"recover": [str(tmp_path / "out")], "gc": ["--older-than", "24h"]}.get(command, [])
    shown = run(child, command, str(saved), *targets, *options)
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr == ""
    if options:
        told = json.loads(shown.stdout)
        assert command != "recover" or told["recovered"] == ["/größe", "/名"]
    elif command == "show":
        assert r"/gr\xf6\xdfe" in shown.stdout


def test_convert_shows_them_too(child: subprocess.Popen[str], saved: Path, tmp_path: Path) -> None:
    shown = run(child, "convert", str(saved), "--output", str(tmp_path / "ü.pt"), "--dry-run")
    assert shown.returncode == 0, shown.stderr
    assert r"\xf6" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["set", "s3://x", "/lr", "1"],
        ["convert", "x", "-o", "y.json", "--spool", "s3://o"],
    ],
    ids=str,
)
def test_remote_places_are_wrong_usage(child: subprocess.Popen[str], arguments: list[str]) -> None:
    shown = run(child, *arguments)
    assert shown.returncode == 2
    assert "is not a local path" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_the_process_itself(saved: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "jsonckpt", "show", str(saved)],
        env={**os.environ, **ASCII}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    assert r"/gr\xf6\xdfe" in shown.stdout


def test_a_newer_file_is_no_mismatch(child: subprocess.Popen[str], tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(1)}, path)
    path.write_bytes(path.read_bytes().replace(b'"version":1', b'"version":2', 1))
    shown = run(child, "verify", str(path))
    assert shown.returncode == 1
    assert "version 2 is newer than 1" in shown.stdout
