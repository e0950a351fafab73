"""The two files as they lie beside a checkpoint, and a process that has only these."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

CHILD = Path(__file__).with_name("child.py")
Load = Callable[..., list[tuple[Any, str | None]]]


@pytest.fixture
def reader_folder(tmp_path: Path) -> Path:
    """A directory with copies of the files."""
    folder = tmp_path / "reader"
    jsonckpt.export_reader(folder)
    return folder


@pytest.fixture
def load_alone(reader_folder: Path, tmp_path: Path) -> Load:
    """Loads checkpoints in a process without jsonckpt: states, or messages of errors."""

    def load(*paths: Path, missing: str = "") -> list[tuple[Any, str | None]]:
        output = tmp_path / "states.pt"
        command = [sys.executable, "-I", str(CHILD), str(reader_folder), missing, str(output)]
        done = subprocess.run(
            [*command, *map(str, paths)], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        found: list[tuple[Any, str | None]] = torch.load(output, weights_only=False)
        return found

    return load
