"""The short example: killed and run again, it prints what an undisturbed run prints."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import jsonckpt

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "docs" / "examples" / "resumable_loop.py"

pytestmark = pytest.mark.skipif(
    not hasattr(jsonckpt, "CheckpointManager"), reason="this version has no CheckpointManager"
)


def run(folder: Path) -> str:
    command = [sys.executable, str(PROGRAM)]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_a_killed_example_goes_on_exactly(tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    undisturbed.mkdir()
    killed.mkdir()
    expected = run(undisturbed)
    assert len(expected.splitlines()) == 12

    with subprocess.Popen(
        [sys.executable, str(PROGRAM)], cwd=killed, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            first = [process.stdout.readline() for _ in range(5)]
        finally:
            os.kill(process.pid, signal.SIGKILL)
    assert expected.startswith("".join(first))
    rest = run(killed)
    assert rest
    assert expected.endswith(rest)


def test_it_is_as_short_as_it_says() -> None:
    text = PROGRAM.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 40
    assert re.findall(r"  # (\d)\b", text) == list("12345")
