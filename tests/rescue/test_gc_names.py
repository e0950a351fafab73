"""Whose a temporary file is: that of one name alone, however long and alike names are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.filenames import temporary_name, temporary_stem

COMMON = "experiment-with-a-long-name-" + "x" * 40
ONE, OTHER = f"{COMMON}-step0001.json", f"{COMMON}-step0002.json"
TOKEN = "0123456789ab"


def _killed_save(path: Path, value: float) -> Path:
    """What a save leaves that is killed just before its commit."""
    jsonckpt.save({"w": torch.full((3,), value)}, path)
    left = path.with_name(temporary_name(path.name, TOKEN))
    path.rename(left)
    return left


def test_long_names_that_begin_alike_have_temporaries_of_their_own(tmp_path: Path) -> None:
    assert len(ONE) > 80
    left = _killed_save(tmp_path / OTHER, 2.0)
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no leftovers"):
        jsonckpt.recover(tmp_path / ONE, tmp_path / "new.json")
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / ONE)
    assert jsonckpt.gc(tmp_path / ONE, older_than=0).removed == ()
    assert jsonckpt.verify(tmp_path / ONE, deep=True).notes == ()
    assert left.exists()
    assert jsonckpt.recover(tmp_path / OTHER, tmp_path / "new.json")
    assert jsonckpt.load(tmp_path / "new.json")["w"].tolist() == [2.0] * 3
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / OTHER)
    [note] = jsonckpt.verify(tmp_path / OTHER, deep=True).notes
    assert left.name in note
    assert jsonckpt.gc(tmp_path / OTHER, older_than=0).removed == (left.name,)


@pytest.mark.parametrize("character", ["a", "\xe9", "\u20ac", "\U0001f600", "\udcff"])
@pytest.mark.parametrize("ending", [".json", ".json.zst", ".pt", ""])
def test_a_temporary_name_is_a_name_that_the_system_takes(
    tmp_path: Path, character: str, ending: str
) -> None:
    most = (255 - len(ending)) // len(os.fsencode(character))
    names = [character * count + ending for count in range(1, most + 1)]
    stems = [temporary_stem(name) for name in names]
    assert len(set(stems)) == len(stems)
    for name in names[-3:]:
        temporary = temporary_name(name, TOKEN)
        assert len(os.fsencode(temporary)) <= 255
        (tmp_path / temporary).touch()


def test_no_short_name_is_the_stem_of_a_long_one() -> None:
    for name in (ONE, OTHER, "y" * 51, "z" * 60 + ".json.zst"):
        assert len(temporary_stem(name)) > 50
    assert temporary_stem("y" * 50) == "y" * 50
