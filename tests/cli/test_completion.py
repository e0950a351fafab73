"""Shell completion: what is offered, and that shells take the scripts."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.completion import candidates
from jsonckpt._src.cli.main import main, make_parser
from jsonckpt._src.commands.completion import SCRIPTS
from tests.support import lacking


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a checkpoint and the program ``jsonckpt``."""
    room = tmp_path_factory.mktemp("completion")
    jsonckpt.save(
        {"model": {"w": torch.ones(2), "b é": torch.ones(1)}, "n": torch.ones(1), "epoch": 3},
        room / "c",
    )
    program = room / "jsonckpt"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jsonckpt "$@"\n')
    program.chmod(0o755)
    return room


def offered(*words: str) -> list[str]:
    return [text for text, _ in candidates(make_parser(), words[:-1], words[-1])]


def test_what_is_offered(room: Path) -> None:
    path = str(room / "c")
    assert {"inspect", "verify", "convert", "gc", "recover", "completion"} <= set(offered(""))
    assert offered("ver") == ["verify"]
    assert "--expected-digest" in offered("verify", "--")
    assert offered("inspect", "--sort", "") == ["size", "name"]
    assert offered("inspect", "--limit", "ran") == ["rank="]
    assert offered("inspect", path, "--match", "/model/") == ["/model/w", "/model/b é"]
    assert offered("show", path, "--tree", "--match", "/n") == ["/n"]
    assert offered("completion", "z") == ["zsh"]
    for command in ("diff", "inspect", "split", "average", "convert"):
        assert {"--include", "--match", "--exclude"} <= set(offered(command, path, "--"))
        assert offered(command, path, "--exclude", "/n") == ["/n"]
    assert offered("get", path, "/model/w") == ["/model/w"]
    assert offered("set", path, "/ep") == ["/epoch"]
    assert offered("set", path, "/epoch", "") == []  # a value
    assert offered("set", path, "/epoch", "4", "/ep") == ["/epoch"]
    assert offered("get", path, "/mod") == ["/model/w", "/model/b é", "/model"]
    assert offered("rename", path, "--at", "/n") == ["/n"]
    assert offered("get", path, "/n", "--as", "b") == ["bits"]
    assert {"diff", "find", "get", "set", "rename", "merge", "split", "average", "kaggle-init",
            "export-reader", "textconv"} <= set(offered(""))  # fmt: skip
    assert offered("completion", "zsh", "") == []
    assert offered("inspect", "") == []  # the shell completes files
    assert offered("convert", "x", "--t") == ["--to", "--test-load", "--tie"] or offered(
        "convert", "x", "--to", ""
    )


@pytest.mark.parametrize(
    "arguments",
    [
        [], ["x"], ["-1"], ["99", "jsonckpt"], ["1"],
        ["4", "jsonckpt", "inspect", "/no/such", "--match", "/"],
        ["5", "jsonckpt", "inspect", "-", "--match", "/"], ["2", "jsonckpt", "nothing", ""],
    ],
    ids=str,
)  # fmt: skip
def test_nothing_disturbs_the_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["_complete", *arguments]) in {0, 1}
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "Traceback" not in printed.out


#: Programs that complete the line ``$LINE`` and print what they would offer.
DRIVERS = {
    "bash": (
        "bash", "-c",
        'eval "$(jsonckpt completion bash)"; COMP_WORDS=("$@"); '
        'COMP_CWORD=$(($# - 1)); _jsonckpt; printf "%s\\n" "${COMPREPLY[@]}"', "bash",
    ),
    "zsh": (
        "zsh", "-f", "-c",
        'compdef() { :; }; _files() { :; }; compadd() { print -l -- "${(@P)2}"; }; '
        'eval "$(jsonckpt completion zsh)"; words=("$@"); CURRENT=$#; _jsonckpt', "zsh",
    ),
    "fish": (
        "fish", "--no-config", "-c",
        'jsonckpt completion fish | source; complete -C (string join " " -- $argv)',
    ),
}  # fmt: skip


@pytest.mark.parametrize("shell", sorted(SCRIPTS))
def test_in_the_shell_itself(shell: str, room: Path) -> None:
    if shutil.which(shell) is None:
        lacking(shell, f"{shell} is not installed")
    path = os.pathsep.join([str(room), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}

    def complete(*words: str) -> list[str]:
        done = subprocess.run(
            [*DRIVERS[shell], *words], env=environment, cwd=room, capture_output=True, text=True
        )
        assert done.stderr == ""
        return [line.partition("\t")[0] for line in done.stdout.splitlines() if line]

    assert complete("jsonckpt", "insp") == ["inspect"]
    assert complete("jsonckpt", "inspect", "--sor") == ["--sort"]
    assert complete("jsonckpt", "inspect", "c", "--match", "/model/w") == ["/model/w"]
    assert complete("jsonckpt", "completion", "") == ["bash", "fish", "zsh"]
