"""What commands say to arguments that are nearly right, and to paths that are."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import _Groups, main, make_parser
from jsonckpt._src.terminal.parser import did_you_mean

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["inspct", "x"], "there is no 'inspct'; did you mean 'inspect'? (inspect, "),
        (["xyz"], "there is no 'xyz' (inspect, "),
        (["inspect", "--jsn", "x"], "jsonckpt inspect: error: unrecognized arguments: --jsn; did "
         "you mean '--json'?"),
        (["verify", "x", "--expected-digst=1"], "did you mean '--expected-digest'?"),
        (["inspect", "x", "--sort", "sizes"], "there is no 'sizes'; did you mean 'size'?"),
        (["inspect", "x", "--depth", "0"], "a depth is a number from 1 to 200, not 0"),
        (["completion", "bsh"], "did you mean 'bash'"),
        (["convert", "x", "--incldue", "y"], "did you mean '--include'"),
        (["convert", "x", "--dtype-of", "y"], "--dtype-of needs --dtype"),
    ],
)  # fmt: skip
def test_did_you_mean(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert words in said
    known = arguments[0] in {"inspect", "verify", "convert", "completion"}
    assert f"usage: jsonckpt {arguments[0] if known else '['}" in said


def test_far_names_are_not_suggested() -> None:
    assert did_you_mean("frobnicate", ["inspect", "verify"]) == ""


def test_every_command_says_its_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ["", *commands_of(make_parser())]:
        assert main([*([name] if name else []), "--help"]) == 0
        text = capsys.readouterr().out
        assert text.count("Exit codes: 0 ") == 1, name
        assert all(len(line) <= 100 for line in text.splitlines())


def commands_of(parser: Any) -> list[str]:
    (action,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return list(action.choices)


def test_the_groups_of_the_help_text_have_every_command(capsys: Capture) -> None:
    grouped = [name for names in _Groups.groups.values() for name in names]
    assert sorted([*grouped, "show"]) == sorted(commands_of(make_parser()))
    assert main(["help"]) == 0
    text = capsys.readouterr().out
    assert text.index("  look:\n    inspect (show)") < text.index("  change:\n    set ")
    assert main(["help", "diff"]) == 0
    assert "examples:\n  jsonckpt diff " in capsys.readouterr().out


@pytest.mark.parametrize("command", ["inspect", "diff", "split", "average", "convert"])
def test_tensors_are_selected_by_the_same_options(command: str, capsys: Capture) -> None:
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "--include GLOB, --match GLOB" in text
    assert "--exclude GLOB" in text


def test_messages_name_options(tmp_path: Path, capsys: Capture) -> None:
    path, other = str(tmp_path / "c.json"), str(tmp_path / "d.json")
    jsonckpt.save({"lr": 1.0, "w": torch.ones(1)}, path)
    for arguments, words in (
        (["convert", path, "-o", str(tmp_path)], "Pass --overwrite to"),
        (["inspect", path, "--limit", "tensors=0"], "Pass --limit tensors=NUMBER if"),
        (["set", path, "/new", "1"], "pass --create."),
        (["set", path, "/lr", "true"], "pass --force."),
        (["split", path, "-o", other, "--match", "/x"], "--include '/x' selects no"),
        (["diff", path, path, "--exclude", "/x"], "exclude '/x' selects no"),
        (["verify", str(tmp_path)], "jsonckpt find DIRECTORY lists them"),
        (["textconv", other], "d.json: there is no such file or directory"),
        (["rename", path, "--strip-prefix", "a", "--add-prefix", "b"], "not both"),
    ):
        assert main(arguments) in {1, 2}, arguments
        said = capsys.readouterr().err
        assert words in said, arguments
        assert "=True" not in said


@pytest.mark.parametrize(
    "arguments",
    [
        ["diff", "-", "a"], ["textconv", "-"], ["get", "-", "/a"], ["set", "-", "/a", "1"],
        ["rename", "-", "a", "b"], ["merge", "-", "a", "-o", "b"], ["merge", "n=-", "a", "-o", "b"],
        ["average", "a", "-", "-o", "b"], ["split", "-", "-o", "b"], ["recover", "a", "-"],
        ["convert", "a", "-o", "-"], ["find", "-"], ["kaggle-init", "-"], ["export-reader", "-"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_standard_input_where_it_is_not_read(arguments: list[str], capsys: Capture) -> None:
    assert main(arguments) == 2
    assert "no name for a pipe here: inspect and verify read standard input" in (
        capsys.readouterr().err
    )


def test_names_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save({"model": {"weight": torch.ones(1)}}, tmp_path / "c")
    assert main(["inspect", str(tmp_path / "c"), "--match", "/model/wieght"]) == 1
    assert "--include '/model/wieght' selects no tensor" in (said := capsys.readouterr().err)
    assert "Did you mean '/model/weight'" in said


def test_paths(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("alpha.json", "beta.json", "gamma.json", "run-0001.json", "run-0002.json"):
        jsonckpt.save({"w": torch.ones(1)}, tmp_path / name)
    assert main(["verify", str(tmp_path / "run-0003.json")]) == 1
    said = capsys.readouterr().err
    assert "The same directory has run-0001.json, run-0002.json." in said
    assert main(["verify", str(tmp_path / "zzz")]) == 1
    assert "The same directory" not in capsys.readouterr().err  # five, and none is like it
    assert main(["verify", str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert "It holds checkpoints, the newest first: run-0002.json" in said


@pytest.mark.parametrize("command", ["verify", "inspect", "gc", "recover", "convert"])
def test_no_checkpoint_is_code_1_everywhere(command: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(b"PK\x03\x04")
    more = {"recover": [str(tmp_path / "new")], "convert": ["-o", str(tmp_path / "n.pt")]}
    assert main([command, str(tmp_path / "x.json"), *more.get(command, [])]) == 1
