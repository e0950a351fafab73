"""What the tests of conversion share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.convert.guide import GUIDE


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_epoch1_step6500.pt"
    shutil.copy(GUIDE, path)
    return path
