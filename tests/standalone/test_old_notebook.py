"""``checkpoint_to_json.py``: the commands and calls of the old guide go on working."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.standalone import checkpoint_to_json
from jsonckpt._src.standalone.checkpoint_to_json import load_json_checkpoint, save_json_checkpoint
from jsonckpt._src.standalone.jsonckpt_reader import Registered
from tests.convert.guide import GUIDE, guide_state
from tests.support import difference

OLD = GUIDE.with_suffix(".json")
#: What a notebook of the guide does with a checkpoint, as its users write it.
NOTEBOOK = """
import sys
sys.modules["jsonckpt"] = None
sys.path.insert(0, sys.argv[1])
import torch
from checkpoint_to_json import load_json_checkpoint

CONFIG = {"resume_from_json": True, "json_checkpoint_path": sys.argv[2]}
checkpoint = load_json_checkpoint(CONFIG["json_checkpoint_path"])
shapes = {name: tensor.shape for name, tensor in checkpoint["model_state_dict"].items()}
model = torch.nn.ParameterDict({n.replace(".", "_"): torch.zeros(s) for n, s in shapes.items()})
names = [name.replace(".", "_") for name in shapes if name != "lm_head.weight"]
model.load_state_dict({n.replace(".", "_"): t for n, t in checkpoint["model_state_dict"].items()})
optimizer = torch.optim.AdamW([model[name] for name in names])
optimizer.load_state_dict(checkpoint["optimizer_state_dict"])
start_epoch = checkpoint["epoch"] + 1
first = optimizer.state[model[names[0]]]
print(start_epoch, len(shapes), float(first["step"]), float(first["exp_avg"].abs().sum()) > 0)
print(float(sum(p.double().sum() for p in model.values())), checkpoint["val_loss"])
"""


def _run(*command: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", *map(str, command)], cwd=cwd, capture_output=True, text=True
    )


def test_the_notebook_resumes_from_both_dialects(tmp_path: Path, reader_folder: Path) -> None:
    new = tmp_path / "new.json"
    jsonckpt.convert(GUIDE, new)
    outputs = []
    for path in (OLD, new):
        done = _run("-c", NOTEBOOK, reader_folder, path, cwd=tmp_path)
        assert done.returncode == 0, done.stderr[-1500:]
        outputs.append(done.stdout)
    state = guide_state()
    assert outputs[0] == outputs[1]
    assert outputs[0].startswith(f"{state['epoch'] + 1} {len(state['model_state_dict'])} ")
    assert " True\n" in outputs[0]


def test_number_lists_come_back_exactly() -> None:
    found, expected = load_json_checkpoint(OLD), guide_state()
    assert [*checkpoint_to_json.differences(expected, found)] == []
    assert type(found["optimizer_state_dict"]["param_groups"][0]["betas"]) is tuple


def test_number_lists_keep_dtypes_and_numbers_that_are_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "old.json"
    w = {"data": [1.5, float("nan"), float("-inf")], "shape": [3], "dtype": "torch.bfloat16"}
    n = {"data": 7, "shape": [], "dtype": "torch.int64"}
    path.write_text(json.dumps({"model_state_dict": {"w": w, "n": n}, "epoch": 2}))
    found = load_json_checkpoint(path)
    w, n = found["model_state_dict"].values()
    assert w.dtype == torch.bfloat16
    assert str(w.tolist()) == "[1.5, nan, -inf]"
    assert (n.dtype, n.shape, int(n)) == (torch.int64, (), 7)


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"w":{"data":[1,2],"shape":[3],"dtype":"torch.float32"}}', "[" * 100_000,
     '{"w":{"data":[1],"shape":[1],"dtype":"torch.load"}}', '{"w":{"data":["a"],"shape":[1]}}'],
)  # fmt: skip
def test_other_json_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"old\.json: "):
        load_json_checkpoint(path)


@pytest.mark.parametrize("installed", [True, False])
def test_the_command_of_the_guide(tmp_path: Path, reader_folder: Path, installed: bool) -> None:
    block = "" if installed else "sys.modules['jsonckpt'] = None; "
    root = Path(jsonckpt.__file__).parents[1]
    code = (
        f"import sys, runpy; {block}sys.path.insert(0, {str(root)!r})\n"
        f"import importlib.util as u; find = u.find_spec\n"
        f"hidden = {not installed}\n"
        f"u.find_spec = lambda n, *a: None if hidden and n == 'jsonckpt' else find(n, *a)\n"
        f"sys.argv[0] = 'checkpoint_to_json.py'; sys.path.insert(0, {str(reader_folder)!r})\n"
        f"runpy.run_path({str(reader_folder / 'checkpoint_to_json.py')!r}, run_name='__main__')"
    )
    arguments = [GUIDE, "--output", "out.json", "--test-load"]
    for _ in range(2):  # the second run replaces the output, as it did in the guide
        done = _run("-c", code, *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert "all is the same" in done.stdout
    document = json.loads((tmp_path / "out.json").read_bytes())
    assert document["created_by"].startswith("jsonckpt" if installed else "checkpoint_to_json.py")
    assert jsonckpt.verify(tmp_path / "out.json").ok
    assert difference(guide_state(), jsonckpt.load(tmp_path / "out.json")) is None


def test_what_the_small_writer_writes_is_exact(tmp_path: Path) -> None:
    w = torch.randn(300, 1000)
    state: dict[Any, Any] = {
        "w": w,
        "tied": w,
        "t": torch.arange(12.0).reshape(3, 4).t(),
        "empty": torch.zeros(0, 3),
        "b": torch.tensor([True, False]),
        "h": torch.ones(2, dtype=torch.bfloat16),
        "c": torch.tensor([1 + 2j]),
        "p": torch.nn.Parameter(torch.ones(2)),
        "g": torch.ones(2, requires_grad=True),
        "a/b~c\n": torch.tensor(3),
        1: (1, 2.5, float("nan"), float("inf"), -0.0, None, 10**500),
        "1": torch.ones(1),
        "$x": {"y": {1, 2}, "z": frozenset([3])},
        "kinds": [torch.float16, torch.device("cuda:1"), torch.Size([1, 2]), "é\U0001f600"],
        "model": torch.nn.Linear(2, 2).state_dict(),
    }
    path = tmp_path / "c.json"
    save_json_checkpoint(state, path)
    report = jsonckpt.verify(path)
    assert report.ok, report
    assert difference(state, jsonckpt.load(path)) is None
    assert difference(state, load_json_checkpoint(path)) is None
    again = load_json_checkpoint(path)
    assert again["w"].data_ptr() == again["tied"].data_ptr()
    with jsonckpt.open(path) as checkpoint:
        assert torch.equal(checkpoint["/t"].load(), state["t"])


@pytest.mark.parametrize(
    "value", [object(), {"w": torch.ones(2).to_sparse()}, {"x": 1j}, {"s": "\ud800"}]
)
def test_the_small_writer_refuses_what_it_does_not_know(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "c.json"
    path.write_text("old")
    with pytest.raises((TypeError, ValueError)):
        save_json_checkpoint(value, path)
    assert path.read_text() == "old"
    assert [*tmp_path.iterdir()] == [path]


def test_code_in_a_pickle_is_not_run(tmp_path: Path, reader_folder: Path) -> None:
    torch.save({"x": Registered}, tmp_path / "evil.pt")
    script = reader_folder / "checkpoint_to_json.py"
    done = _run(script, "evil.pt", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "evil.json").exists()


def test_a_missing_reader_is_named(tmp_path: Path, reader_folder: Path) -> None:
    (reader_folder / "jsonckpt_reader.py").unlink()
    done = _run("-c", NOTEBOOK, reader_folder, GUIDE.with_suffix(".json.zst"), cwd=tmp_path)
    assert "jsonckpt_reader.py is not here" in done.stderr
    assert "jsonckpt export-reader DIRECTORY" in done.stderr


# --- the note of a conversion -----------------------------------------------------------------


def test_convert_says_how_a_notebook_reads_it(tmp_path: Path) -> None:
    [note] = jsonckpt.convert(GUIDE, tmp_path / "a.json").notes
    assert note == (
        "a notebook reads it with jsonckpt.load, or without jsonckpt after --with-reader; "
        "an unchanged notebook that reads number lists needs --to legacy-json"
    )
    result = jsonckpt.convert(OLD, tmp_path / "r" / "a.json", with_reader=True)
    assert "from checkpoint_to_json import load_json_checkpoint" in result.notes[-1]
    assert [Path(path).name for path in result.reader_files] == [
        "jsonckpt_reader.py",
        "checkpoint_to_json.py",
    ]


def test_and_only_there(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    jsonckpt.convert(GUIDE, tmp_path / "a.json")
    for source, output in (
        (tmp_path / "w.pt", "w.json"),
        (tmp_path / "a.json", "b.json"),
        (GUIDE, "c"),
        (GUIDE, "d.json.zst"),
    ):
        assert jsonckpt.convert(source, tmp_path / output).notes == []
