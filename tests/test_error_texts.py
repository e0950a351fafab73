"""What is wrong, where, what was expected and found, what to do now: each error as it is read."""

# ruff: noqa: E501 (messages stand here as they are read)

from __future__ import annotations

import errno
import json
import os
import re
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

TROUBLESHOOTING = (Path(__file__).parents[1] / "docs" / "troubleshooting.md").read_text("utf-8")


def _state() -> dict[str, Any]:
    return {"model": {"w": torch.arange(12.0).reshape(3, 4), "b": torch.ones(3)}, "lr": 0.1}


class Situation:
    """A checkpoint in a directory and one in a file, to be broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        jsonckpt.save(_state(), path / "step10")
        jsonckpt.save(_state(), path / "a.json")
        self.text = (path / "a.json").read_bytes()
        self.manifest = path / "step10" / "manifest.json"
        self.shard = next((path / "step10").glob("shard-*"))

    def load(self, name: str, text: bytes | None = None, **options: Any) -> Any:
        if text is not None:
            (self.path / name).write_bytes(text)
        return jsonckpt.load(self.path / name, **options)

    def remove(self, path: Path) -> Path:
        path.unlink()
        return path

    def edited(self, old: str, new: str, *, seal: bool = False) -> Any:
        text = self.manifest.read_text()
        assert old in text
        text = text.replace(old, new, 1)
        if not seal:
            text = text.rpartition('"seal"')[0] + '"seal":null}\n'
        self.manifest.write_text(text)
        return jsonckpt.load(self.path / "step10")


def _hidden(patch: pytest.MonkeyPatch, module: str) -> str:
    patch.setitem(sys.modules, module, None)
    return module


class Unknown:
    pass


def _no_room(s: Situation, patch: pytest.MonkeyPatch, number: int) -> Any:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    patch.setattr("os.pwritev", refuse)
    return jsonckpt.save(_state(), s.path / "new.json")


def _last_fsync(s: Situation, patch: pytest.MonkeyPatch) -> Any:
    real = os.fsync
    directories = iter(["above", "its own"])

    def fsync(fd: int) -> None:
        if stat.S_ISDIR(os.fstat(fd).st_mode) and next(directories) == "its own":
            raise OSError(errno.EIO, "Input/output error")
        real(fd)

    patch.setattr("os.fsync", fsync)
    return jsonckpt.save(_state(), s.path / "new.json")


def _cancelled(s: Situation, patch: pytest.MonkeyPatch) -> Any:
    real, cancelled = os.pwritev, threading.Event()

    def late(*arguments: Any) -> int:
        cancelled.wait(10)
        return real(*arguments)

    patch.setattr("os.pwritev", late)
    pending = jsonckpt.save_async(_state(), s.path / "new.json")
    threading.Timer(0.1, cancelled.set).start()
    assert pending.cancel()
    return pending.result()


NONE = None
HEX = "[0-9a-f]{32}"
RECOVER = "restore what is intact with: jsonckpt recover PATH NEW"
E = jsonckpt
#: what is done -> (class, its text as a pattern, its cause)
SITUATIONS: dict[str, tuple[Callable[[Situation, pytest.MonkeyPatch], Any], Any, str, Any]] = {
    "a save that was cancelled": (
        _cancelled,
        E.SaveCancelledError,
        r"the save was cancelled\. What was at its path before is untouched\.",
        NONE,
    ),
    "nothing there": (
        lambda s, _: s.load("step11"),
        E.CheckpointNotFoundError,
        r"DIR/step11: there is no such file or directory\. The same directory has step10, a\.json\.",
        FileNotFoundError,
    ),
    "a directory without a checkpoint": (
        lambda s, _: jsonckpt.load(s.path),
        E.CheckpointNotFoundError,
        r"DIR: there is no manifest\.json in this directory\. It holds checkpoints, the newest "
        r"first: a\.json, step10\. Give one of them; jsonckpt\.find\(directory\) lists them\.",
        NONE,
    ),
    "some other file": (
        lambda s, _: s.load("b.json", b"PK\x03\x04rest"),
        E.FormatError,
        r"DIR/b\.json: not a jsonckpt checkpoint \(it begins with 'PK\\x03\\x04rest'\)\. "
        r"jsonckpt convert turns \.pt, \.safetensors and other JSON into one\.",
        NONE,
    ),
    "reformatted": (
        lambda s, _: s.load("b.json", json.dumps(json.loads(s.text), indent=1).encode()),
        E.IntegrityError,
        r"DIR/b\.json: the file was edited by hand, or written again by a JSON tool\. "
        r"To accept that, set \"seal\":null in it: jq '\.seal=null' FILE > NEW\. "
        rf"Or {RECOVER}",
        NONE,
    ),
    "line endings": (
        lambda s, _: s.load("b.json", s.text.replace(b"\n", b"\r\n")),
        E.FormatError,
        r"DIR/b\.json: line endings were changed from LF to CRLF, as Git does with core\.autocrlf\. "
        r"Undo it with: jsonckpt recover PATH NEW\. Or clone the repository again after the line "
        r"\*\.json -text is in its \.gitattributes\.",
        NONE,
    ),
    "an edit that broke the JSON": (
        lambda s, _: s.edited('"lr": 0.1', '"lr": 0.2,,', seal=True),
        E.FormatError,
        r"DIR/step10/manifest\.json: the manifest: line \d+ column \d+: not JSON: .*\. "
        r"After an edit by hand, mend it there; else take another copy\.",
        ValueError,
    ),
    "a bool of neither 0 nor 1": (
        lambda s, _: (
            jsonckpt.save({"m": torch.ones(3, dtype=torch.bool)}, s.path / "b.json"),
            s.load("b.json", (s.path / "b.json").read_bytes().replace(b'"AQEB"', b'"AgEB"')),
        ),
        E.FormatError,
        r"DIR/b\.json: tensor '/m': chunk 0: a bool tensor holds bytes other than 0 and 1\. "
        rf"The file was damaged or changed: take another copy, or {RECOVER}",
        NONE,
    ),
    "a registered type that is missing": (
        lambda s, _: s.edited('"lr": 0.1', '"lr": {"$my.Rate": 1}'),
        E.FormatError,
        r"DIR/step10: state '/lr': unknown tag '\$my\.Rate'\. If it is a type of your own, call "
        r"jsonckpt\.register\(cls, 'my\.Rate', \.\.\.\) before loading\.",
        NONE,
    ),
    "a newer version": (
        lambda s, _: s.edited('"version":1', '"version":2,"readable_by":"jsonckpt 2.0"'),
        E.UnsupportedVersionError,
        r"DIR/step10/manifest\.json: format version 2 is newer than 1, the newest that this release "
        r"reads; 'jsonckpt 2\.0' and later read it\. Upgrade: pip install -U jsonckpt\.",
        NONE,
    ),
    "an unknown feature": (
        lambda s, _: s.edited('"version":1', '"version":1,"requires":["deltas"]'),
        E.UnsupportedVersionError,
        r"DIR/step10/manifest\.json: the file requires 'deltas', which this release does not know\. "
        r"Upgrade: pip install -U jsonckpt\.",
        NONE,
    ),
    "a path that leads out": (
        lambda s, _: s.edited(s.shard.name, "../../etc/passwd"),
        E.UnsafePathError,
        r"DIR/step10/manifest\.json: shards\[0\]: unsafe shard file name "
        r"'\.\./\.\./etc/passwd'\. Do not trust this file\.",
        NONE,
    ),
    "too large": (
        lambda s, _: s.load("a.json", limits=jsonckpt.Limits(tensors=1)),
        E.LimitError,
        r"DIR/a\.json: 2 tensors or more, the limit is 1\. "
        r"Pass limits=jsonckpt\.Limits\(tensors=\.\.\.\) if it is meant\.",
        NONE,
    ),
    "a damaged tensor": (
        lambda s, _: s.load("b.json", s.text.replace(b'"AACAPwAAgD', b'"AACAPwAAgE', 1)),
        E.IntegrityError,
        rf"DIR/b\.json: tensor '/model/b': chunk 0: the checksum is {HEX}, expected {HEX}\. "
        rf"The file was damaged or changed: take another copy, or {RECOVER}",
        NONE,
    ),
    "damage beside the tensors": (
        lambda s, _: s.load("b.json", s.text.replace(b'"lr": 0.1', b'"lr": 0.2', 1)),
        E.IntegrityError,
        r"DIR/b\.json: the text around the payloads does not match its seal "
        rf"\(expected xxh3_128:{HEX}, found xxh3_128:{HEX}\)\. "
        r"If it was edited on purpose or a JSON tool wrote it again, set \"seal\":null in it: "
        r"jq '\.seal=null' FILE > NEW\. Else take another copy",
        NONE,
    ),
    "an edit that does not say so": (
        lambda s, _: s.edited('"lr": 0.1', '"lr": 0.2', seal=True),
        E.IntegrityError,
        r"DIR/step10/manifest\.json: the text does not match its seal "
        rf"\(expected xxh3_128:{HEX}, found xxh3_128:{HEX}\)\. "
        r"If it was edited on purpose or a JSON tool wrote it again, set \"seal\":null in it: "
        r"jq '\.seal=null' FILE > NEW\. Else take another copy",
        NONE,
    ),
    "another save than the pinned one": (
        lambda s, _: (
            jsonckpt.save(_state(), s.path / "b.json", checksum="sha256"),
            s.load("b.json", expected_digest="sha256:" + "0" * 64),
        ),
        E.IntegrityError,
        r"DIR/b\.json: the file has the digest sha256:[0-9a-f]{64}, expected sha256:0{64}; no tensor "
        r"was read\. This is another save, or it was changed: take the checkpoint you pinned\.",
        NONE,
    ),
    "cut off": (
        lambda s, _: s.load("b.json", s.text[:800]),
        E.IncompleteCheckpointError,
        r"DIR/b\.json: the file of 800 bytes does not end in its seal and index_offset\. "
        rf"It was cut off: copy it again, or {RECOVER}",
        NONE,
    ),
    "a missing shard": (
        lambda s, _: (s.remove(s.shard), s.load("step10")),
        E.IncompleteCheckpointError,
        r"DIR/step10/shard-[0-9a-f]{12}-00001\.json: the file is missing\. Copy it beside the "
        r"others, or restore the rest with: jsonckpt recover PATH NEW",
        FileNotFoundError,
    ),
    "a missing manifest": (
        lambda s, _: (s.remove(s.manifest), s.load("step10")),
        E.IncompleteCheckpointError,
        r"DIR/step10: there are shards but no manifest\.json: a first save that did not finish\. "
        rf"Save again, or {RECOVER}",
        NONE,
    ),
    "something is there": (
        lambda s, _: jsonckpt.save(_state(), s.path / "a.json", overwrite=False),
        E.CheckpointExistsError,
        r"DIR/a\.json: the file exists\. Pass overwrite=True to replace it\.",
        NONE,
    ),
    "a name that belongs to a directory": (
        lambda s, _: jsonckpt.save(_state(), s.path / "step10" / "manifest.json"),
        E.ArgumentError,
        r"DIR/step10/manifest\.json: manifest\.json is the name of a part of a directory checkpoint, "
        r"not of a single file\. Give the directory that it lies in, or choose another name\.",
        None,
    ),
    "another model": (
        lambda s, _: jsonckpt.load_into(
            {"model": {"w": torch.zeros(2, 2), "c": torch.zeros(1)}, "lr": 0}, s.path / "a.json"
        ),
        E.StateMismatchError,
        r"DIR/a\.json: the checkpoint and the target differ; nothing has been changed\. Pass "
        r"strict=False to copy what fits, include= or exclude= to choose\. Build the target with the "
        r"sizes of the run that saved it: no shape is changed\.\n  missing: '/model/c'\n  unexpected: '/model/b'\n"
        r"  mismatched: '/model/w: shape \[3, 4\] in the checkpoint, \[2, 2\] in the target'",
        NONE,
    ),
    "a target that cannot be filled": (
        lambda s, _: jsonckpt.load_into({"model": iter([torch.zeros(3, 4)])}, s.path / "a.json"),
        E.ArgumentError,
        r"target: '/model' is '<list_iterator object at 0x[0-9a-f]+>', which cannot be filled\. Give "
        r"a dict or list of tensors, modules, optimizers and objects with load_state_dict, or one "
        r"of these alone\.",
        NONE,
    ),
    "a type without a rule": (
        lambda s, _: jsonckpt.save({"config": {"x": Unknown()}}, s.path / "new.json"),
        E.UnsupportedTypeError,
        r"state '/config/x': cannot write a value of type 'tests\.test_error_texts\.Unknown'\. Call "
        r"jsonckpt\.register\(Unknown, to_json=\.\.\., from_json=\.\.\.\) before saving, or put "
        r"plain values in its place\.",
        NONE,
    ),
    "a full disk": (
        lambda s, patch: _no_room(s, patch, errno.ENOSPC),
        E.WriteError,
        r"DIR/\.new\.json\.[0-9a-f]{12}\.tmp: cannot write: No space left on device\. It takes up "
        r"to [0-9,]+ bytes, and [0-9,]+ were free\. Free some space or save elsewhere\.",
        OSError,
    ),
    "the last fsync failed": (
        _last_fsync,
        E.DurabilityUncertainError,
        r"DIR/new\.json: the new checkpoint is complete and visible, but its directory could not be "
        r"fsynced: cannot write: Input/output error\. A power failure now may bring the previous one "
        r"back\. Save again\.",
        E.WriteError,
    ),
    "nothing to recover": (
        lambda s, _: (
            (s.path / "b.json").write_bytes(b"{'jsonckpt.shard'"),
            jsonckpt.recover(s.path / "b.json", s.path / "new"),
        ),
        E.IncompleteCheckpointError,
        r"DIR/b\.json: nothing in it is intact \(the state is lost: .*\)\. Nothing was written\. "
        r"Take another copy, or an earlier checkpoint\.",
        NONE,
    ),
    "gc without a manifest": (
        lambda s, _: (s.remove(s.manifest), jsonckpt.gc(s.path / "step10")),
        E.IncompleteCheckpointError,
        r"DIR/step10: nothing was removed, because there is no manifest\.json: the files are those of a "
        r"first save that did not finish \('shard-[0-9a-f]{12}-00001\.json'\)\. jsonckpt recover "
        r"PATH NEW restores their intact tensors; abandoned=True \(--abandoned\) lets gc remove "
        r"them\.",
        None,
    ),
    "blake3 is not installed": (
        lambda s, patch: (
            _hidden(patch, "blake3"),
            jsonckpt.save(_state(), s.path / "new", checksum="blake3"),
        ),
        E.JsonckptError,
        r"the checksum blake3 needs the package blake3, which is not installed\. "
        r"pip install 'jsonckpt\[blake3\]'\.",
        ImportError,
    ),
}


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_text(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    act, kind, text, cause = SITUATIONS[name]
    situation = Situation(tmp_path)
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        act(situation, monkeypatch)
    monkeypatch.undo()
    error = caught.value
    assert type(error) is kind
    said = str(error).replace(str(tmp_path), "DIR")
    assert re.fullmatch(text, said), said
    assert len(said) <= 500
    assert said.count("\n") <= 4
    if cause is None:
        assert error.__cause__ is None
    else:
        assert isinstance(error.__cause__, cause)


def test_every_class_has_a_situation() -> None:
    classes = {value for name, value in vars(jsonckpt).items() if name.endswith("Error")}
    assert classes == {kind for _, kind, _, _ in SITUATIONS.values()}


def test_the_page_knows_every_class() -> None:
    for name in vars(jsonckpt):
        if name.endswith("Error") and name != "JsonckptError":
            assert f"`{name}`" in TROUBLESHOOTING


@pytest.mark.parametrize("name", SITUATIONS)
def test_the_examples_of_the_page_are_real(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An example in the page that names this situation's error is what is really said."""
    act, kind, _, _ = SITUATIONS[name]
    situation = Situation(tmp_path)
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        act(situation, monkeypatch)
    monkeypatch.undo()
    hint = caught.value.hint
    assert hint is not None
    if kind not in (E.JsonckptError, E.StateMismatchError):
        # Of a disk's figures only the words are compared.
        first, page = (
            re.sub("[0-9][0-9,]*", "N", text)
            for text in (hint.split(".")[0], TROUBLESHOOTING.replace("\n", " "))
        )
        assert first in page
