"""What a release writes stays what it was, or the CHANGELOG says so; newer files are named.

That files of the past are read is the business of ``test_golden``.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.model import FORMAT_VERSION
from tests.golden import fresh
from tests.golden.cases import CASES, Case

FORMAT = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
HOW = (
    "The bytes of a golden state changed. If that is not meant, it is a mistake. If it is: write a "
    "line into CHANGELOG.md, then run: python -m tests.golden.fresh --record 'that line'"
)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.path)
def test_a_golden_state_is_written_with_the_same_bytes(case: Case, tmp_path: Path) -> None:
    if not fresh.can_be_made(case):
        pytest.skip("this torch lacks a dtype")
    recorded = json.loads(fresh.RECORDED.read_text())
    made = fresh.write(case, tmp_path)
    if fresh.needs_zstd(case) and recorded["zstd"] != fresh.zstd_version():
        assert list(made) == list(recorded["files"][case.path])
        assert jsonckpt.verify(tmp_path / case.path)
        pytest.skip(f"the frames were recorded with zstd {recorded['zstd']}")
    assert made == recorded["files"][case.path], HOW


def test_the_last_change_of_bytes_stands_in_the_changelog() -> None:
    note = json.loads(fresh.RECORDED.read_text())["note"]
    assert len(note) > 10
    assert note in fresh.CHANGELOG.read_text(encoding="utf-8"), HOW


def test_nothing_is_recorded_without_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fresh, "RECORDED", tmp_path / "x.json")
    monkeypatch.setattr(fresh, "CASES", CASES[:1])
    for note in (" ", "no such line is there"):
        with pytest.raises(SystemExit, match=r"CHANGELOG.md has no such line"):
            fresh.main(["--record", note])
    assert not (tmp_path / "x.json").exists()


def test_another_change_needs_another_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    note = json.loads(fresh.RECORDED.read_text())["note"]
    recorded = tmp_path / "x.json"
    recorded.write_text(json.dumps({"note": note, "zstd": "", "files": {"x": {}}}))
    before = recorded.read_text()
    monkeypatch.setattr(fresh, "RECORDED", recorded)
    monkeypatch.setattr(fresh, "CASES", CASES[:1])
    with pytest.raises(SystemExit, match="earlier change"):
        fresh.main(["--record", note])
    assert recorded.read_text() == before


# --- the policy of versions -------------------------------------------------------------------


def _saved(path: Path) -> Path:
    jsonckpt.save({"w": torch.ones(2), "n": 1}, path)
    return path


def _edited(path: Path, old: str, new: str) -> None:
    """Edit a manifest by hand."""
    text = (path / "manifest.json").read_text()
    assert old in text
    lines = text.replace(old, new, 1).splitlines()
    (path / "manifest.json").write_text("\n".join([*lines[:-1], '"seal":null}\n']))


def test_unknown_optional_members_are_ignored(tmp_path: Path) -> None:
    path = _saved(tmp_path / "c")
    _edited(path, '"version":1', '"version":1,"weather":{"today":[1,2]},"requires":[]')
    _edited(path, '{"name":', '{"colour":"red","requires":[],"name":')
    assert jsonckpt.load(path)["n"] == 1
    assert jsonckpt.verify(path, deep=True)


@pytest.mark.parametrize("place", ['"version":1', '"dtype":"float32"'])
def test_an_unknown_required_feature_is_refused_by_name(tmp_path: Path, place: str) -> None:
    path = _saved(tmp_path / "c")
    _edited(path, place, f'{place},"requires":["time-travel"]')
    with pytest.raises(jsonckpt.UnsupportedVersionError, match="'time-travel'"):
        jsonckpt.load(path)


@pytest.mark.parametrize(
    ("members", "told"),
    [
        (',"readable_by":"jsonckpt 2.0"', "'jsonckpt 2.0' and later read it"),
        ("", "it was written by 'jsonckpt 9.1'"),
        (',"readable_by":["x"]', "it was written by 'jsonckpt 9.1'"),
        (f',"readable_by":"{"x" * 90}"', "it was written by 'jsonckpt 9.1'"),
    ],
)
def test_a_newer_file_says_which_release_reads_it(tmp_path: Path, members: str, told: str) -> None:
    path = _saved(tmp_path / "c")
    _edited(path, f'"created_by":"jsonckpt {jsonckpt.__version__}"', '"created_by":"jsonckpt 9.1"')
    _edited(path, f'"version":{FORMAT_VERSION}', f'"version":{FORMAT_VERSION + 1}{members}')
    with pytest.raises(jsonckpt.UnsupportedVersionError) as caught:
        jsonckpt.load(path)
    assert told in str(caught.value)
    assert "pip install -U jsonckpt" in str(caught.value)
    assert f"version {FORMAT_VERSION + 1} is newer than {FORMAT_VERSION}" in str(caught.value)


def test_a_newer_single_file_says_it_too(tmp_path: Path) -> None:
    path = _saved(tmp_path / "c.json")
    head = b'"version":2,"readable_by":"jsonckpt 3.1"'
    path.write_bytes(path.read_bytes().replace(b'"version":1', head, 1))
    told = pytest.raises(jsonckpt.UnsupportedVersionError, match=r"'jsonckpt 3\.1' and later")
    with path.open("rb") as file, told:
        jsonckpt.load(file)


def test_the_specification_states_the_policy() -> None:
    policy = FORMAT[FORMAT.index("## 9. Versions") :]
    for words in ("readable_by", "requires", "two years", "MUST be ignored", "new `version`"):
        assert words in policy
    assert re.search(r"Version 1 is frozen", policy)
