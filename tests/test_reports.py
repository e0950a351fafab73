"""What commands and errors say to a new user: counts, the nearest files, the way out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.convert.options import FORMATS, Format
from jsonckpt.convert import convert

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.fixture(autouse=True)
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"w": torch.ones(3)}, "n": 1}, "one.pt")
    jsonckpt.save({"w": torch.ones(3)}, "one.json")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("show one.json", "1 tensor, 3 elements, 12 B; "),
        ("verify one.json --deep", "one.json: ok, 1 tensor, 12 B in 1 file\n"),
        ("recover one.json new.json", "1 tensor, 12 B restored; 0 lost"),
        ("gc one.json --older-than 1h", "removed 0 files, 0 B"),
        ("convert one.pt -o new.json --test-load", ": 1 tensor, 12 B, in"),
        ("convert one.pt -o new.json --dry-run", ": 1 tensor, 12 B, about"),
        ("convert one.pt -o new.json --dtype float16", "to torch.float16: 1 tensor of models"),
    ],
)
def test_one_is_singular(capsys: pytest.CaptureFixture[str], command: str, words: str) -> None:
    assert main(command.split()) == 0
    said = capsys.readouterr().out
    assert words in said
    assert "(s)" not in said


def test_a_pattern_without_effect_is_said() -> None:
    result = convert("one.pt", "new.json", exclude="/n")
    assert result.notes == ["--exclude '/n' has no effect: it selects no tensor"]
    assert jsonckpt.load("new.json")["n"] == 1
    assert convert("one.pt", "new.json", exclude="/model/w", overwrite=True).notes == []


@pytest.mark.parametrize("name", ["lfs.json", "lfs"])
def test_a_git_lfs_pointer_is_named(name: str) -> None:
    Path(name).write_bytes(POINTER)
    with pytest.raises(jsonckpt.FormatError, match=r"Git LFS pointer.*git lfs pull"):
        jsonckpt.load(name)


def test_only_checkpoints_are_called_so(room: Path) -> None:
    directory = room / "checkpoint-5"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="Give the directory that holds it"):
        jsonckpt.load(directory)
    (directory / "model.safetensors").write_bytes(b"")
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"jsonckpt convert reads"):
        jsonckpt.load(directory)
    jsonckpt.save({"w": torch.ones(1)}, directory / "step.json")
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"newest first: step\.json\. Give"):
        jsonckpt.load(directory)


def test_convert_suggests_files_of_other_programs() -> None:
    Path("two.pt").write_bytes(b"")
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"directory has two\.pt, one\."):
        convert("tow.pt")
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"directory has one\.json\.$"):
        jsonckpt.load("tow")


def test_a_mismatch_is_shown_whole() -> None:
    jsonckpt.save({"s": torch.eye(3).to_sparse()}, "sparse.json")
    with pytest.raises(jsonckpt.StateMismatchError) as caught:
        jsonckpt.load_into({"s": torch.eye(3).to_sparse()}, "sparse.json")
    assert "..." not in str(caught.value)


def test_stream_names_its_argument() -> None:
    with pytest.raises(jsonckpt.ArgumentError, match=r"^source must be"):
        list(jsonckpt.stream(None))
    with open("one.json", "rb") as file:
        file.seek(0, 2)
        with pytest.raises(jsonckpt.ArgumentError, match=r"^source is a file object at its end"):
            list(jsonckpt.stream(file))


@pytest.mark.parametrize(
    ("to", "output"),
    [("pt", "new.json"), ("safetensors", "new.pt"), ("legacy-json", "new.pt"), ("json", "new")],
)
def test_a_format_is_not_written_under_the_name_of_another(to: Format, output: str) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match=f"--to {to} needs an output whose name ends"):
        convert("one.pt", output, to=to)
    assert not Path(output).exists()
    convert("one.pt", "new.pkl" if to == "pt" else f"new{FORMATS[to]}", to=to)


class Config:
    """An object of a user's class, which no rule writes."""


def test_an_object_can_be_left_out_with_and_without_its_class() -> None:
    torch.save({"model": {"w": torch.ones(2)}, "config": Config()}, "own.pt")
    for unsafe in (False, True):
        with pytest.raises(jsonckpt.JsonckptError, match="Config"):
            convert("own.pt", "own.json", unsafe_pickle=unsafe, overwrite=True)
        result = convert(
            "own.pt", "own.json", exclude="/config", unsafe_pickle=unsafe, overwrite=True
        )
        assert result.left_out == ["/config"]
        assert list(jsonckpt.load("own.json")) == ["model"]
