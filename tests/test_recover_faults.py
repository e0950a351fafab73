"""``recover`` where the file system or an editor stands between a save and its reader."""

from __future__ import annotations

from pathlib import Path

import torch

import jsonckpt


def _edited(path: Path) -> None:
    manifest = path / "manifest.json"
    text = manifest.read_bytes().replace(b"0.25", b"0.75")
    manifest.write_bytes(text[: text.rindex(b'"seal":')] + b'"seal":null}\n')


def test_a_state_that_no_seal_vouches_for_is_not_called_verified(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save({"w": torch.ones(3), "lr": 0.25}, path)
    _edited(path)
    report = jsonckpt.recover(path, tmp_path / "new")
    assert (report.state, report.lost, report.complete) == ("unverified", (), False)
    assert report.notes == ("manifest.json was edited by hand: its seal is null",)
    assert "the state could not be checked against a seal" in str(report)
    assert jsonckpt.load(tmp_path / "new")["lr"] == 0.75
    temporary = ".manifest-0123456789ab.tmp"
    (path / "manifest.json").rename(path / temporary)
    report = jsonckpt.recover(path, tmp_path / "newer")
    assert report.state == "unverified"
    assert f"{temporary} was edited by hand: its seal is null" in report.notes
