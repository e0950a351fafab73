"""A rename that reports a failure, and happened."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

OLD, NEW = {"w": torch.zeros(3)}, {"w": torch.ones(3)}


def test_the_file_has_another_inode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As network file systems may do it: the manifest is read again, and it is ours."""
    path = tmp_path / "c"
    jsonckpt.save(OLD, path)

    def replace(source: Any, target: Any) -> None:
        shutil.copyfile(source, f"{target}.moved")
        os.unlink(source)
        os.rename(f"{target}.moved", target)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        jsonckpt.save(NEW, path)
    assert torch.equal(jsonckpt.load(path)["w"], NEW["w"])
    assert len(list(path.iterdir())) == 2


def test_the_old_manifest_is_still_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    jsonckpt.save(OLD, path)

    def refuse(*_: Any) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", refuse)
        with pytest.raises(jsonckpt.WriteError, match="previous checkpoint is untouched"):
            jsonckpt.save(NEW, path)
    assert torch.equal(jsonckpt.load(path)["w"], OLD["w"])
    assert len(list(path.iterdir())) == 2


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "Free some space"),
        (errno.EMFILE, "raise ulimit"),
        (errno.ENAMETOOLONG, "shorter name"),
        (errno.EIO, "save elsewhere"),
        (errno.EROFS, "can be written"),
    ],
)
def test_a_refusal_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, way_out: str
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pwritev", refuse)
    with pytest.raises(jsonckpt.WriteError) as caught:
        jsonckpt.save(NEW, tmp_path / "c")
    assert caught.value.errno == number
    assert way_out in str(caught.value)
    assert list(tmp_path.iterdir()) == []
