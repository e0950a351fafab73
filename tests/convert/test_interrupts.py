"""A conversion that is interrupted while it opens its input."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt.convert import convert


def test_an_interrupt_while_the_archive_is_opened_leaves_no_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``ZipFile`` closes a file that it opened itself only once it is made."""
    torch.save({"w": torch.ones(3)}, tmp_path / "a.pt")
    given: list[Any] = []

    def interrupted(file: Any, *_: object, **__: object) -> None:
        given.append(file)
        raise KeyboardInterrupt

    monkeypatch.setattr(zipfile, "ZipFile", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "a.pt", tmp_path / "b.json")
    assert [file.closed for file in given] == [True]
    assert not (tmp_path / "b.json").exists()
