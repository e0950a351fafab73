"""What commands say to arguments that are nearly right, and to paths that are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import COMMANDS, main
from jsonckpt._src.terminal.parser import did_you_mean


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
    for command in ["", *(module.__name__.rpartition(".")[2] for module in COMMANDS)]:
        name = command.replace("_", "-")
        assert main([*([name] if name else []), "--help"]) == 0
        text = capsys.readouterr().out
        assert "Exit codes: 0 " in text, command
        assert all(len(line) <= 100 for line in text.splitlines())


def test_names_of_tensors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save({"model": {"weight": torch.ones(1)}}, tmp_path / "c")
    assert main(["inspect", str(tmp_path / "c"), "--match", "/model/wieght"]) == 1
    assert "--match '/model/wieght' selects no tensor" in (said := capsys.readouterr().err)
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
