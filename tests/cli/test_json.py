"""``--json``: what each command prints follows its JSON Schema, errors follow one for all."""

from __future__ import annotations

import argparse
import functools
import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import jsonckpt
from jsonckpt._src.cli.main import main, make_parser

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "golden" / "v1").iterdir())


@functools.cache
def validator(name: str) -> Any:
    file = ROOT / "docs" / "schema" / "commands" / f"{name}.schema.json"
    return jsonschema.Draft202012Validator(json.loads(file.read_text(encoding="utf-8")))


def refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def objects(text: str) -> Iterator[dict[str, Any]]:
    for line in text.splitlines():
        yield json.loads(line, parse_constant=refuse)


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    odd = torch.tensor([float("nan"), float("inf"), 1.0, 0.0])
    state = {"w": odd, "v": torch.eye(3)[:, 0], "epoch": 3, "loss": float("nan"), "t": odd}
    jsonckpt.save(state, "c.json", metadata={"a": 1})
    jsonckpt.save(state, "c", checksum="sha256")
    jsonckpt.save(state | {"w": odd * 2, "t": odd * 2, "epoch": 4}, "d")
    damaged = Path("c.json").read_bytes().replace(b'"AADA', b'"BADA', 1)
    assert damaged != Path("c.json").read_bytes()
    Path("damaged.json").write_bytes(damaged)
    Path("x.pt").write_bytes(b"PK\x03\x04")
    return tmp_path


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize(
    ("command", "schema", "code"),
    [
        ("inspect c.json", "inspect", 0),
        ("show c", "inspect", 0),
        ("inspect c --stats --sort size --match w", "inspect", 0),
        ("inspect c --tree", "inspect", 0),
        ("inspect c c.json --html r.html", "inspect-html", 0),
        ("inspect no.json", "error", 1),
        ("inspect c --match no", "error", 1),
        ("verify c", "verify", 0),
        ("verify damaged.json --deep", "verify", 3),
        ("verify x.pt", "verify", 1),
        ("verify no", "error", 1),
        ("diff c c", "diff", 0),
        ("diff c c.json", "diff", 0),
        ("diff c d --stats", "diff", 3),
        ("diff c no", "error", 1),
        ("diff c d --match no", "error", 1),
        ("find .", "find", 0),
        ("find c c.json x.pt", "find", 0),
        ("find new", "error", 1),
        ("get c /epoch", "get", 0),
        ("get c /", "get", 0),
        ("get c /w", "get", 0),
        ("get c /w --raw", "get", 0),
        ("get c /w -o w.npy", "get-output", 0),
        ("get c /no", "error", 1),
        ("set c /epoch 4", "set", 0),
        ("set c /loss NaN --dry-run", "set", 0),
        ("set c --create /new [1] --metadata k 1", "set", 0),
        ("set c --delete /loss", "set", 0),
        ("set c /no 1", "error", 1),
        ("set c /epoch x", "error", 2),
        ("rename c n v x", "rename", 0),
        ("rename c --add-prefix m. --dry-run", "rename", 0),
        ("rename c --strip-prefix q", "error", 1),
        ("merge a=c b=d -o n.json", "merge", 0),
        ("merge c d -o n.json", "error", 1),
        ("split c -o n.json --include /w", "split", 0),
        ("split c -o n --by top-level", "split", 0),
        ("split c -o n --include /no", "error", 1),
        ("average c d -o n.json", "average", 0),
        ("average c no -o n.json", "error", 1),
        ("kaggle-init c --id me/my-run-1", "kaggle-init", 0),
        ("kaggle-init c --id me", "error", 2),
        ("kaggle-init no --id me/my-run-1", "error", 1),
        ("export-reader c", "export-reader", 0),
        ("export-reader x.pt", "error", 1),
        ("gc c", "gc", 0),
        ("gc no", "error", 1),
        ("recover damaged.json new", "recover", 3),
        ("recover c x.pt", "error", 2),
        ("recover no new", "error", 1),
        ("convert c -o n.pt", "convert", 0),
        ("convert c -o n.json --test-load --include /w", "convert", 0),
        ("convert no -o n.json", "error", 1),
        ("convert c -o n.pt --to safetensors", "error", 2),
    ],
)
def test_each_command(
    capsys: pytest.CaptureFixture[str], command: str, schema: str, code: int
) -> None:
    assert main([*command.split(), "--json"]) == code
    (found,) = objects(capsys.readouterr().out)
    validator(schema).validate(found)
    assert found["ok"] is (code == 0)


def test_every_command_has_a_schema() -> None:
    (action,) = (a for a in make_parser()._actions if isinstance(a, argparse._SubParsersAction))
    for name, parser in action.choices.items():
        if "--json" in parser._option_string_actions:
            jsonschema.Draft202012Validator.check_schema(
                validator("inspect" if name == "show" else name).schema
            )
    without = {n for n, p in action.choices.items() if "--json" not in p._option_string_actions}
    assert without == {"textconv", "completion"}


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_inspect_reads_every_golden_file(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(path), "--json", "--stats", "--tree"]) == 0
    (found,) = objects(capsys.readouterr().out)
    validator("inspect").validate(found)
    assert [row["name"] for row in found["tensors"]] == list(jsonckpt.open(path))
    for view in ([], ["--tree"], ["--stats"], ["--state"], ["--tensors", "--sort", "name"]):
        assert main(["inspect", str(path), *view]) == 0
        assert capsys.readouterr().out


@pytest.mark.usefixtures("room")
def test_a_line_for_each_path_and_the_worst_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--json", "c", "no", "damaged.json", "c.json"]) == 3
    found = list(objects(capsys.readouterr().out))
    assert [row["ok"] for row in found] == [True, False, False, True]
    assert [row["path"] for row in found] == ["c", "no", "damaged.json", "c.json"]
    assert main(["inspect", "no", "c"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: no: ")
    assert "\nsaved " in printed.out
    assert main(["gc", "c", "c.json", "--json"]) == 0
    assert [row["path"] for row in objects(capsys.readouterr().out)] == ["c", "c.json"]


class Input:
    """A standard input."""

    def __init__(self, path: str) -> None:
        self.buffer = io.BytesIO(Path(path).read_bytes())


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("command", ["inspect", "verify"])
def test_standard_input(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    command: str,
) -> None:
    told = []
    for path in ("c.json", "damaged.json"):
        monkeypatch.setattr(sys, "stdin", Input(path))
        code = main([command, "-", "--json"])
        (found,) = objects(capsys.readouterr().out)
        validator(command).validate(found)
        told.append((code, found["path"]))
    assert told == [(0, "-"), (3 if command == "verify" else 0, "-")]
    option = {"inspect": "--stats", "verify": "--deep"}[command]
    assert main([command, "-", option]) == 2
    assert "twice" in capsys.readouterr().err or command == "inspect"
