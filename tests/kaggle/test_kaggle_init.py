"""``jsonckpt kaggle-init``: the rules of Kaggle, and what the upload would take."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.kaggle.api import kaggle_init
from jsonckpt._src.kaggle.metadata import LICENSES
from jsonckpt.cli import main

ID = "me/text-gen-checkpoint"
FILE = "dataset-metadata.json"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = tmp_path / "run"
    jsonckpt.save({"w": torch.ones(300), "step": 600}, path)
    return path


def init(path: Path, **options: Any) -> Any:
    return kaggle_init(path, **{"id": ID, "with_reader": False, **options})


def test_it_writes_what_is_required(run: Path) -> None:
    made = init(run, title="Text generation")
    assert json.loads((run / FILE).read_text()) == made.metadata
    assert made.metadata == {
        "id": ID,
        "title": "Text generation",
        "licenses": [{"name": "other"}],
    }
    assert (made.files, made.updated, made.warnings) == (2, False, ())
    assert made.commands == (
        f"kaggle datasets create -p {run}",
        f'kaggle datasets version -p {run} -m "step 600"',
    )
    assert jsonckpt.verify(run).ok


def test_an_existing_file_keeps_what_is_not_given(run: Path) -> None:
    old = {
        "title": "Old title",
        "id": ID,
        "id_no": 7,
        "licenses": [{"name": "CC0-1.0"}],
        "keywords": ["nlp"],
        "resources": [{"path": "manifest.json", "description": "the state"}],
    }
    (run / FILE).write_text(json.dumps(old))
    made = init(run, id=None, title="New title")
    assert made.updated
    assert json.loads((run / FILE).read_text()) == {**old, "title": "New title"}
    init(run, id=None, license="PDDL", keywords=["a", "b"], subtitle="A subtitle of enough length")
    new = json.loads((run / FILE).read_text())
    assert (new["licenses"], new["keywords"]) == ([{"name": "PDDL"}], ["a", "b"])
    assert (new["title"], new["id_no"]) == ("New title", 7)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"id": None}, "id must be owner/slug"),
        ({"id": "text-gen"}, "id must be owner/slug"),
        ({"id": "me/a/b"}, "id must be owner/slug"),
        ({"id": "/text-gen"}, "owner in id must be your Kaggle user name"),
        ({"id": "me/short"}, "the slug must have 6 to 50 characters, 'short' has 5"),
        ({"id": "me/" + "a" * 51}, "the slug must have 6 to 50 characters"),
        ({"id": "me/Text-Gen"}, "lower-case letters and digits with single hyphens"),
        ({"id": "me/text--gen"}, "single hyphens"),
        ({"id": "me/text_gen"}, "single hyphens"),
        ({"id": "me/text-gen-"}, "single hyphens"),
        ({"title": "short"}, "title must have 6 to 50 characters, 'short' has 5"),
        ({"title": "t" * 51}, "title must have 6 to 50"),
        ({"subtitle": "too short"}, "subtitle must have 20 to 80"),
        ({"subtitle": "s" * 81}, "subtitle must have 20 to 80"),
        ({"license": "MIT"}, "no license 'MIT'; there are CC0-1.0"),
        ({"id": "me/short", "title": "short"}, "the slug must .*; title must"),
    ],
)
def test_each_rule_is_said_and_nothing_is_written(
    run: Path, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match=said):
        init(run, **options)
    assert not (run / FILE).exists()


@pytest.mark.parametrize(
    ("member", "value", "said"),
    [
        ("licenses", [], "exactly one"),
        ("licenses", [{"name": "PDDL"}, {"name": "other"}], "exactly one"),
        ("licenses", "PDDL", "exactly one"),
        ("title", 5, "title must be text"),
        ("keywords", "nlp", "keywords must be a list"),
        ("keywords", [1], "keywords must be a list"),
        ("description", 5, "description must be text"),
        ("resources", {}, "resources must be a list"),
        ("resources", [{"description": "x"}], "resources must be a list"),
        ("resources", [{"path": "gone.json"}], "files that are not there: 'gone.json'"),
        ("resources", [{"path": "../other.json"}], "files that are not there"),
        ("resources", [{"path": "manifest.json"}] * 2, "a path twice: 'manifest.json'"),
    ],
)
def test_the_rules_hold_for_an_existing_file(run: Path, member: str, value: Any, said: str) -> None:
    (run.parent / "other.json").write_text("{}")
    old = {"id": ID, "title": "Text generation", "licenses": [{"name": "other"}], member: value}
    text = json.dumps(old)
    (run / FILE).write_text(text)
    with pytest.raises(jsonckpt.ArgumentError, match=said):
        init(run)
    assert (run / FILE).read_text() == text


@pytest.mark.parametrize("text", ["", "{", "[]", "5", '{"a":1,"a":2}', "\xff", "[" * 5000])
def test_a_damaged_file_is_not_overwritten(run: Path, text: str) -> None:
    (run / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(jsonckpt.JsonckptError, match="Mend it, or remove it"):
        init(run)
    assert (run / FILE).read_text(encoding="latin-1") == text


def test_every_license_of_kaggle_is_taken(run: Path) -> None:
    for name in LICENSES:
        assert init(run, license=name).metadata["licenses"] == [{"name": name}]


def test_fifty_files_are_the_most(tmp_path: Path) -> None:
    run = tmp_path / "run"
    state = {f"w{number}": torch.rand(2000) for number in range(60)}
    jsonckpt.save(state, run, max_shard_size=12_000)
    with pytest.raises(jsonckpt.LimitError, match="61 files to upload, Kaggle takes 50") as caught:
        init(run)
    assert "max_shard_size" in str(caught.value.hint)
    assert not (run / FILE).exists()
    jsonckpt.save(state, run, max_shard_size="1MB")
    assert init(run).files == 2


def test_many_small_files_are_to_be_moved(run: Path) -> None:
    for number in range(48):
        (run / f"{number}.txt").write_text("")
    assert init(run).files == 50
    (run / "49.txt").write_text("")
    with pytest.raises(jsonckpt.LimitError, match="51 files") as caught:
        init(run)
    assert "Move files" in str(caught.value.hint)


def test_it_warns_of_what_the_upload_changes(run: Path) -> None:
    (run / "final_model").mkdir()
    jsonckpt.save({"w": torch.ones(2)}, run / "best")
    torch.save({"w": torch.ones(2)}, run / "old.pt")
    for name in ("model-metadata.json", "code.tar.gz", "jsonckpt-1-py3-none-any.whl", "a.json.zst"):
        (run / name).write_text("{}")
    (run / ".manifest-0123456789ab.tmp").write_text("")
    torn = run / "checkpoint_epoch2.json"
    jsonckpt.save({"w": torch.ones(2)}, torn)
    torn.write_bytes(torn.read_bytes()[:-3])
    warnings = init(run).warnings
    for said in (
        "these are checkpoints: 'best'",
        "never uploaded: 'model-metadata.json'",
        "unpacks archives (wheels, too): 'code.tar.gz', 'jsonckpt-1-py3-none-any.whl'",
        "ZIP archives inside, and may arrive as directories: 'old.pt'",
        ".zst: 'a.json.zst'",
        "hidden and temporary files are uploaded",
        "not a whole checkpoint: checkpoint_epoch2.json",
    ):
        assert any(said in warning for warning in warnings), (said, warnings)


def test_a_directory_without_a_checkpoint_is_said(tmp_path: Path) -> None:
    none = "no checkpoint of jsonckpt is among the files to upload"
    (tmp_path / "notes.txt").write_text("x")
    assert init(tmp_path).warnings == (none,)
    (tmp_path / "old.json").write_text('{"w.weight": [0.5, 1.5]}')
    assert init(tmp_path).warnings == (
        none,
        "old.json: JSON number lists. Convert it first: jsonckpt convert PATH -o NEW.json",
    )
    jsonckpt.save({"w": torch.ones(2), "step": 5}, tmp_path / "a" / "b")
    made = init(tmp_path)
    assert none in made.warnings
    assert "step 5" not in made.commands[1]
    jsonckpt.save({"w": torch.ones(2), "step": 5}, tmp_path / "new.json")
    assert none not in init(tmp_path).warnings


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no such directory"):
        init(tmp_path / "missing")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(jsonckpt.ArgumentError, match="which is a file"):
        init(tmp_path / "a.json")


def test_the_readers_are_copied_and_no_other_file_is_replaced(run: Path) -> None:
    made = init(run, with_reader=True)
    assert made.copied == ("jsonckpt_reader.py", "checkpoint_to_json.py")
    assert made.files == 4
    assert {path.name for path in run.iterdir()} > set(made.copied)
    assert init(run, with_reader=True).updated
    (run / FILE).unlink()
    (run / "checkpoint_to_json.py").write_text("print('mine')")
    with pytest.raises(jsonckpt.CheckpointExistsError, match="another file of this name"):
        init(run, with_reader=True)
    assert not (run / FILE).exists()
    assert (run / "checkpoint_to_json.py").read_text() == "print('mine')"


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["kaggle-init", str(run), "--id", ID, "--title", "Text generation", "--no-reader"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"wrote {run / FILE}" in said
    assert f"kaggle datasets create -p {run}" in said
    assert "version -p" in said
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == [
        "ok", "path", "updated", "metadata", "files", "bytes", "copied", "warnings", "commands",
    ]  # fmt: skip
    assert report["updated"]
    assert main([*arguments, "--title", "short"]) == 2
    assert "title must have 6 to 50" in capsys.readouterr().err
    assert main(["kaggle-init", str(run / "missing"), "--id", ID]) == 1


def test_it_needs_no_torch(run: Path) -> None:
    code = (
        "import sys; from jsonckpt.cli import main; code = main(sys.argv[1:]);"
        "print(code, 'torch' in sys.modules)"
    )
    arguments = ["kaggle-init", str(run), "--id", ID, "--no-reader"]
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
