"""The commands ``diff`` and ``textconv``, alone and as Git calls them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.diff.lines import lines_of

COMMAND = f"{sys.executable} -m jsonckpt"


def a_state(epoch: int = 3) -> dict[str, Any]:
    return {"w": torch.full((3, 2), float(epoch)), "frozen": torch.ones(700), "epoch": epoch}


@pytest.fixture
def pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    jsonckpt.save(a_state(), "a")
    jsonckpt.save(a_state(4), "b.json")
    return tmp_path


@pytest.mark.usefixtures("pair")
def test_exit_codes_and_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "a", "a"]) == 0
    assert capsys.readouterr().out == "a and a: the same state, 2 tensors\n"
    assert main(["diff", "a", "b.json"]) == 3
    assert capsys.readouterr().out.splitlines() == [
        "a → b.json: 2 differences; 1 tensor the same",
        "~ /w  float32 [3, 2]",
        "~ /epoch  3 → 4",
    ]
    assert main(["diff", "a", "b.json", "--match", "/frozen"]) == 0
    assert main(["diff", "-q", "a", "b.json"]) == 3
    assert main(["diff", "a", "nothing"]) == 1
    assert main(["diff", "a"]) == 2
    capsys.readouterr()
    assert main(["diff", "a", "b.json", "--exclude", "/epoch", "--match", "/e*", "-q"]) == 0
    assert main(["diff", "a", "b.json", "--match", "/epohc"]) == 1
    assert "Did you mean '/epoch'?" in capsys.readouterr().err


@pytest.mark.usefixtures("pair")
def test_stats_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", "a", "b.json", "--stats"]) == 3
    assert "difference 2.449 (33.3%), at most 1, cosine 1, 6 of 6 elements" in (
        capsys.readouterr().out
    )
    assert main(["diff", "a", "b.json", "--json", "--stats"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert (found["ok"], found["same_tensors"], found["read_tensors"]) == (False, 1, 0)
    assert [change["name"] for change in found["changes"]] == ["/w", "/epoch"]
    assert found["changes"][0]["distance"]["largest"] == 1.0
    assert found["changes"][1] == {
        "name": "/epoch",
        "kind": "value",
        "before": "3",
        "after": "4",
        "tensor": False,
        "distance": None,
    }


@pytest.mark.usefixtures("pair")
def test_neither_command_imports_torch() -> None:
    code = (
        "import sys; from jsonckpt._src.cli.main import main; main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules"
    )
    for arguments in (["diff", "a", "b.json"], ["diff", "a", "a"], ["textconv", "b.json"]):
        subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


@pytest.mark.usefixtures("pair")
def test_the_lines_of_each_file(capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save(a_state(), "a.json")
    expected = None
    for path in ("a", "a/manifest.json", "a.json"):
        assert main(["textconv", path]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert expected in (None, lines)
        expected = lines
    assert expected is not None
    assert [line.partition(", xxh3_128")[0] for line in expected] == [
        "/w: float32 [3, 2]",
        "/frozen: float32 [700]",
        "/epoch: 3",
    ]
    (shard,) = Path("a").glob("shard-*")
    assert main(["textconv", str(shard)]) == 0
    assert capsys.readouterr().out == "a shard: manifest.json says what it holds\n"


@pytest.mark.usefixtures("pair")
def test_another_file_is_printed_as_it_is(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    Path("other.json").write_bytes(b'{"a":\xff 1}\r\n')
    assert main(["textconv", "other.json"]) == 0
    assert capsysbinary.readouterr().out == b'{"a":\xff 1}\r\n'


def git(*arguments: str) -> str:
    environment = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b",
        "GIT_PAGER": "cat",
    }
    done = subprocess.run(
        ["git", *arguments], capture_output=True, text=True, check=True, env=environment
    )
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    git("init", "-q")
    Path(".gitattributes").write_text(
        "*.json -text diff=jsonckpt\n*.json.zst -text diff=jsonckpt\n"
    )
    git("config", "diff.jsonckpt.textconv", f"{COMMAND} textconv")
    git("config", "difftool.jsonckpt.cmd", f'{COMMAND} diff --stats "$LOCAL" "$REMOTE"')
    jsonckpt.save(a_state(), "run")
    jsonckpt.save(a_state(), "single.json")
    git("add", ".")
    git("commit", "-qm", "one")
    return tmp_path


@pytest.mark.usefixtures("repository")
def test_git_shows_what_changed() -> None:
    jsonckpt.save(a_state(4), "run")
    jsonckpt.save(a_state(4), "single.json")
    for path in ("run/manifest.json", "single.json"):
        lines = git("diff", path).splitlines()
        changed = [line for line in lines if line[:1] in "+-" and line[:3] not in ("+++", "---")]
        assert [line.partition(", xxh3_128")[0] for line in changed] == [
            "-/w: float32 [3, 2]",
            "+/w: float32 [3, 2]",
            "-/epoch: 3",
            "+/epoch: 4",
        ]


@pytest.mark.usefixtures("repository")
def test_the_log_of_a_directory_saved_by_content() -> None:
    for epoch in (1, 2):
        jsonckpt.save(a_state(epoch), "d", save_id="content")
        jsonckpt.save(a_state(epoch), "z.json.zst", save_id="content")
        git("add", ".")
        git("commit", "-qm", f"epoch {epoch}")
    shown = git("log", "-p", "-1", "--format=").splitlines()
    lines = [line for line in shown if line.startswith(("+/", "-/", " /"))]
    assert [line.partition(", xxh3_128")[0] for line in lines] == 2 * [
        "-/w: float32 [3, 2]",
        "+/w: float32 [3, 2]",
        " /frozen: float32 [700]",
        "-/epoch: 1",
        "+/epoch: 2",
    ]
    assert len(shown) < 40  # no text of a shard
    jsonckpt.save(a_state(2), "d", save_id="content")
    assert git("status", "--porcelain") == ""


@pytest.mark.usefixtures("repository")
def test_git_sees_no_change_in_the_same_state() -> None:
    jsonckpt.save(a_state(), "single.json")  # another save_id, time and seal
    assert git("status", "--porcelain") == " M single.json\n"
    lines = git("diff", "single.json").splitlines()
    assert not [line for line in lines if line.startswith(("+/", "-/"))]


@pytest.mark.usefixtures("repository")
def test_the_difftool() -> None:
    jsonckpt.save(a_state(4), "single.json")
    shown = git("difftool", "-y", "--no-prompt", "-t", "jsonckpt", "single.json")
    assert "~ /epoch  3 → 4" in shown
    assert "difference 2.449" in shown


def test_lines_say_what_stands_beside_a_tensor(tmp_path: Path) -> None:
    found = []
    for grad in (True, False):
        path = tmp_path / f"{grad}.json"
        parameter = torch.nn.Parameter(torch.ones(2), requires_grad=grad)
        jsonckpt.save({"w": parameter, "a": np.zeros(2, ">f4")}, path)
        found.append([*lines_of(str(path))])
    assert found[0][1] == '/w: {"$parameter":{"data":null,"requires_grad":true}}'
    assert found[0][3] == '/a: {"$ndarray":{"dtype":">f4","shape":[2],"data":null}}'
    assert [line for line in found[0] if line not in found[1]] == [found[0][1]]


def test_what_is_no_file_is_an_error_of_ours(tmp_path: Path) -> None:
    os.symlink("loop", tmp_path / "loop")
    os.mkfifo(tmp_path / "pipe")
    for name in ("missing", "loop", "pipe"):
        with pytest.raises(jsonckpt.JsonckptError):
            list(lines_of(str(tmp_path / name)))


def test_a_manifest_alone_has_its_limit(tmp_path: Path) -> None:
    # Not in the folder of the test itself: ``gc`` looks into manifests beside a directory.
    path = tmp_path / "alone" / "manifest.json"
    path.parent.mkdir()
    with path.open("wb") as file:
        file.write(b'{"format":"jsonckpt.manifest",')
        file.truncate(1 << 40)
    for read in (lambda: list(lines_of(str(path))), lambda: jsonckpt.diff(path, path)):
        with pytest.raises(jsonckpt.LimitError):
            read()
