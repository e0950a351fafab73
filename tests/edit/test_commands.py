"""The commands ``get``, ``set``, ``rename``, ``merge``, ``split`` and ``average``."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main
from tests.support import same

STATE = {
    "model": {"module.w": torch.arange(6.0).reshape(2, 3), "big": torch.zeros(2000)},
    "half": torch.tensor([0.5, 1.0], dtype=torch.bfloat16),
    "optimizer": {"state": {0: {"step": 5}}, "betas": (0.9, float("nan"))},
    "lr": 0.001,
    "name": "run",
}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    jsonckpt.save(STATE, "c.json")
    return "c.json"


def ran(capsys: Capture, *arguments: str, code: int = 0) -> str:
    assert main(list(arguments)) == code
    captured = capsys.readouterr()
    return captured.out if code == 0 else captured.err


def printed(capsys: Capture, *arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ran(capsys, *arguments, "--json"))
    assert found["ok"] is True
    return found


def test_get(path: str, capsys: Capture) -> None:
    assert ran(capsys, "get", path, "/lr") == "0.001\n"
    assert ran(capsys, "get", path, "name") == '"run"\n'
    assert ran(capsys, "get", path, "/optimizer/state/0/step") == "5\n"
    assert json.loads(ran(capsys, "get", path, "/optimizer")) == {
        "state": {"0": {"step": 5}}, "betas": [0.9, "NaN"],
    }  # fmt: skip
    assert "$tuple" in ran(capsys, "get", path, "--raw", "/optimizer")
    assert json.loads(ran(capsys, "get", path, "/"))["half"] == "<tensor bfloat16 [2]>"
    assert json.loads(ran(capsys, "get", path, "/model/module.w")) == [[0, 1, 2], [3, 4, 5]]
    assert ran(capsys, "get", path, "--rows", "-1:", "/model/module.w") == "[[3.0,4.0,5.0]]\n"
    assert ran(capsys, "get", path, "half") == "[0.5,1.0]\n"


def test_get_json(path: str, capsys: Capture) -> None:
    assert printed(capsys, "get", path, "half") == {
        "ok": True, "path": path, "name": "/half", "kind": "tensor", "dtype": "bfloat16",
        "shape": [2], "value": [0.5, 1.0],
    }  # fmt: skip
    assert printed(capsys, "get", path, "/lr") == {
        "ok": True, "path": path, "name": "/lr", "kind": "value", "dtype": None, "shape": None,
        "value": 0.001,
    }  # fmt: skip
    assert printed(capsys, "get", path, "/model/big")["value"] is None
    out = printed(capsys, "get", path, "/model/big", "-o", "x.npy")
    assert out["bytes"] == Path("x.npy").stat().st_size


def test_get_files(path: str, capsys: Capture) -> None:
    ran(capsys, "get", path, "/model/module.w", "-o", "w.npy")
    np.testing.assert_array_equal(np.load("w.npy"), STATE["model"]["module.w"].numpy())  # type: ignore[index]
    ran(capsys, "get", path, "/half", "-o", "w.npy", "--as", "float32", "--overwrite")
    assert np.load("w.npy").tolist() == [0.5, 1.0]
    assert "Pass --overwrite" in ran(capsys, "get", path, "half", "-o", "w.npy",
                                     "--as", "bits", code=1)  # fmt: skip


def test_get_writes_to_a_pipe(path: str) -> None:
    command = [sys.executable, "-m", "jsonckpt", "get", path, "/model/module.w", "-o", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    np.testing.assert_array_equal(np.load(io.BytesIO(done.stdout)), np.arange(6.0).reshape(2, 3))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["get", "c.json", "/model/big"], 2, "-o FILE.npy"),
        (["get", "c.json", "/half", "-o", "x.npy"], 2, "--as float32"),
        (["get", "c.json", "/modle"], 1, "Did you mean '/model'"),
        (["get", "c.json", "/lr", "--rows", "0:1"], 2, "no rows"),
        (["get", "c.json", "/half", "--rows", "1"], 2, "0:10"),
        (["get", "none.json", "/lr"], 1, "no such file"),
        (["set", "c.json", "/lr"], 2, "has no value"),
        (["set", "c.json"], 2, "nothing to set"),
        (["set", "c.json", "/name", "cosine"], 2, "'\"cosine\"'"),
        (["set", "c.json", "/lr", "nan"], 2, "Write NaN"),
        (["set", "c.json", "/lr", "None"], 2, "Write null"),
        (["set", "c.json", "/lr", "fast", "--string"], 2, "a float, and this is a string"),
        (["set", "c.json", "/model/big", "1"], 2, "is a tensor"),
        (["set", "s3://a/b", "/lr", "1"], 2, "not a local path"),
        (["rename", "c.json"], 2, "--strip-prefix"),
        (["rename", "c.json", "a", "b", "c", "d"], 2, "--strip-prefix"),
        (["rename", "c.json", "--strip-prefix", "x."], 1, "no key of a tensor begins"),
        (["merge", "c.json", "-o", "d.json"], 2, "two checkpoints"),
        (["merge", "c.json", "c.json", "-o", "d.json"], 1, "both have '/model/module.w'"),
        (["split", "c.json", "-o", "d.json", "--include", "/x"], 1, "selects no tensor"),
        (["split", "c.json", "-o", "d", "--by", "a=b", "c"], 2, "NAME=GLOB"),
        (["average", "c.json", "c.json", "-o", "d.json", "--weights", "1"], 2, "1 weight for 2"),
        (["average", "c.json", "c.json", "-o", "d.json", "--weights", "x"], 2, "0.5,0.3"),
        (["average", "c.json", "c.json"], 2, "-o"),
    ],
)
@pytest.mark.usefixtures("path")
def test_refusals(arguments: list[str], code: int, message: str, capsys: Capture) -> None:
    before = Path("c.json").read_bytes()
    assert message in ran(capsys, *arguments, code=code)
    assert Path("c.json").read_bytes() == before
    assert [p.name for p in Path().iterdir()] == ["c.json"]


def test_set(path: str, capsys: Capture) -> None:
    assert ran(capsys, "set", path, "/lr", "-1e-4") == "/lr: 0.001 -> -0.0001\nc.json: written\n"
    ran(capsys, "set", path, "--create", "/lr", "-Infinity", "/new", "[1]")
    ran(capsys, "set", path, "--string", "/name", "cosine", "--metadata", "a", "1")
    ran(capsys, "set", path, "/optimizer/state/0/step", "6", "--delete", "/new")
    found = printed(capsys, "set", path, "/lr", "1", "--dry-run")
    assert found["changes"] == [
        {"name": "/lr", "old": {"$float": "-Infinity"}, "new": 1.0, "what": "set"}
    ]
    assert found.keys() == {"ok", "path", "changes", "digest", "pin", "notes"}
    state = jsonckpt.load(path)
    assert (state["lr"], state["name"], "new" in state) == (-float("inf"), "cosine", False)
    assert state["optimizer"]["state"][0]["step"] == 6
    with jsonckpt.open(path) as checkpoint:
        assert checkpoint.metadata == {"a": "1"}


def test_rename_merge_split_average(path: str, capsys: Capture) -> None:
    assert "/model/module.w -> /model/w" in ran(
        capsys, "rename", path, "--strip-prefix", "module.", "--dry-run"
    )
    found = printed(capsys, "rename", path, "d.json", "--regex", r"^module\.", "")
    assert found["renamed"] == [["/model/module.w", "/model/w"]]
    assert "Pass --overwrite" in ran(capsys, "rename", path, "d.json", "module.", "", code=1)
    ran(capsys, "rename", path, "d.json", "module.", "", "--overwrite")
    found = printed(capsys, "split", "d.json", "-o", "p", "--by", "m=/model", "o=/optimizer")
    assert [part["path"] for part in found["parts"]] == ["p/m.json", "p/rest.json", "p/o.json"]
    found = printed(capsys, "merge", "p/m.json", "-o", "e.json", "p/rest.json", "p/o.json")
    assert found["tensors"] == 3
    assert same(jsonckpt.load("e.json")["model"], jsonckpt.load("d.json")["model"])
    ran(capsys, "merge", "one=e.json", "two=d.json", "-o", "f.json")
    assert list(jsonckpt.load("f.json")) == ["one", "two"]
    found = printed(capsys, "average", "d.json", "e.json", "-o", "g.json", "--weights", "3,1")
    assert found["weights"] == [0.75, 0.25]
    assert all(jsonckpt.verify(name) for name in ("d.json", "e.json", "f.json", "g.json"))


NO_TORCH = """
import sys
from jsonckpt._src.cli.main import main
for line in sys.stdin.read().splitlines():
    assert main(line.split()) == 0, line
    assert "torch" not in sys.modules, line
"""


def test_no_command_needs_torch(path: str) -> None:
    lines = [
        "get c.json /optimizer", "get c.json /model/module.w", "get c.json half -o x.json",
        "get c.json /model/module.w -o x.npy", "set c.json /lr 1", "set c.json /lr 2 --dry-run",
        "rename c.json d.json module. _", "split d.json -o p --by top-level",
        "merge a=c.json b=d.json -o e.json", "average c.json c.json -o f.json",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", NO_TORCH], input="\n".join(lines), text=True,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert jsonckpt.load(path)["lr"] == 1.0
