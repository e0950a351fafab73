"""``jsonckpt_reader.py`` gives what :func:`jsonckpt.load` gives, without jsonckpt."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.standalone import jsonckpt_reader
from jsonckpt._src.standalone.jsonckpt_reader import CheckpointError, Registered
from tests.golden import test_golden
from tests.golden.cases import CASES, Case
from tests.golden.make_v1 import FOLDER
from tests.standalone.conftest import Load
from tests.support import difference

case = test_golden.case
expected = test_golden.expected
COMPRESSED = [one.path for one in CASES if "zst" in one.path]


def load(path: object, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        return jsonckpt_reader.load(path, **options)


def test_it_has_less_than_350_lines(reader_folder: Path) -> None:
    text = (reader_folder / "jsonckpt_reader.py").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 350
    assert sum(len(line) > 121 for line in text.splitlines()) <= 1  # says who wrote the copy


@test_golden.only(lambda case: not case.needs_types)
def test_it_reads_every_golden_checkpoint(case: Case, expected: Any) -> None:
    test_golden.agree(expected, load(FOLDER / case.path))


def test_a_registered_type_comes_back_with_its_name() -> None:
    found = load(FOLDER / "registered.json")
    assert found["colors"][0] == Registered("golden.Color", "RED")
    assert found["config"].name == "golden.Config"


@pytest.mark.parametrize("missing", ["", "xxhash", "xxhash,zstandard"])
def test_it_needs_no_jsonckpt(load_alone: Load, missing: str) -> None:
    paths = [FOLDER / name for name in ("gpt2-adamw", "gpt2-adamw.json", "strides", "names")]
    for path, (state, error) in zip(paths, load_alone(*paths, missing=missing), strict=True):
        assert error is None
        assert difference(jsonckpt.load(path), state) is None


def test_it_says_that_zstd_is_missing(load_alone: Load) -> None:
    modules = "zstandard,backports,compression"
    paths = [FOLDER / "chunks.json.zst", FOLDER / "chunks-zstd.json", FOLDER / "chunks.json"]
    packed, chunks, plain = load_alone(*paths, missing=modules)
    for _, error in (packed, chunks):
        assert "no zstd is here: pip install zstandard" in str(error)
    assert plain[1] is None


@pytest.mark.parametrize("other", ["zstandard", "backports"])
def test_either_zstd_will_do(load_alone: Load, other: str) -> None:
    paths = [FOLDER / name for name in COMPRESSED]
    for path, (state, error) in zip(paths, load_alone(*paths, missing=other), strict=True):
        assert error is None
        assert difference(jsonckpt.load(path), state) is None


@pytest.mark.parametrize("options", [{}, {"encoding": "list"}, {"compression": "zstd"}])
@pytest.mark.parametrize("name", ["c", "c.json"])
def test_it_reads_what_is_written_now(tmp_path: Path, options: Any, name: str) -> None:
    for path in ("shared", "strides", "tensors.json", "numpy.json", "storages", "dtypes.json"):
        state = jsonckpt.load(FOLDER / path)
        jsonckpt.save(state, tmp_path / name, chunk_size=64, sync=False, **options)
        test_golden.agree(jsonckpt.load(tmp_path / name), load(tmp_path / name))


@pytest.mark.parametrize("checksum", ["sha256", "blake3", "xxh3_128"])
def test_all_checksums_are_compared(tmp_path: Path, checksum: str) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.arange(6.0)}, path, checksum=checksum)
    text = path.read_bytes()
    path.write_bytes(text.replace(b"AAAAAAAAgD8", b"AAAAAAAAgT8"))
    with pytest.raises(CheckpointError, match=r"c\.json: tensor /w: a chunk is damaged"):
        load(path)
    assert load(path, verify=False)["w"][1] != 1
    path.write_bytes(text.replace(b'"metadata":{}', b'"metadata":{ }'))
    with pytest.raises(CheckpointError, match=r"c\.json: the file is damaged"):
        load(path)


def test_a_warning_says_what_was_not_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "c.json")
    monkeypatch.setitem(sys.modules, "xxhash", None)
    with pytest.warns(UserWarning, match="xxh3_128 checksums are not compared") as caught:
        found = jsonckpt_reader.load(tmp_path / "c.json")
    assert len({(one.filename, one.lineno) for one in caught}) == 1  # Python shows it once
    assert torch.equal(found["w"], torch.ones(2))
    assert torch.equal(jsonckpt_reader.load(tmp_path / "c.json", verify=False)["w"], found["w"])


def test_edited_files(tmp_path: Path) -> None:
    state = {"lr": 0.1, "w": torch.tensor([1.5, -0.0, float("nan")]), "n": torch.arange(3)}
    for encoding in ("base64", "list"):
        path = tmp_path / f"{encoding}.json"
        jsonckpt.save(state, path, encoding=encoding)
        document = json.loads(path.read_bytes())
        document["state"]["lr"], document["seal"] = 0.5, None
        for indent in (None, 2):
            path.write_text(json.dumps(document, indent=indent))
            assert difference({**state, "lr": 0.5}, load(path)) is None
        document["seal"] = "xxh3_128:" + "0" * 32
        path.write_text(json.dumps(document, indent=1))
        with pytest.raises(CheckpointError):
            load(path)


def test_an_edited_line_and_an_edited_manifest(tmp_path: Path) -> None:
    state = {"lr": 0.1, "w": torch.ones(3)}
    jsonckpt.save(state, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_text()
    start = text.index('"seal":"')
    text = text[:start] + '"seal":null' + text[text.index(",", start) :]
    (tmp_path / "c.json").write_text(text.replace("0.1", "0.25"))
    assert load(tmp_path / "c.json")["lr"] == 0.25
    jsonckpt.save(state, tmp_path / "d")
    manifest = json.loads((tmp_path / "d" / "manifest.json").read_bytes())
    manifest["state"]["lr"], manifest["seal"] = 7, None
    (tmp_path / "d" / "manifest.json").write_text(json.dumps(manifest, indent=3))
    assert load(tmp_path / "d")["lr"] == 7


def test_include_leaves_the_rest_out(tmp_path: Path) -> None:
    w = torch.arange(8.0)
    state = {
        "model": {"w": w, "half": w[:4], "tied": w},
        "list": [torch.ones(1), 3],
        "p": torch.nn.Parameter(torch.ones(2)),
        "epoch": 1,
    }
    jsonckpt.save(state, tmp_path / "c")
    found = load(tmp_path / "c", include="/model/*")
    assert difference({"model": state["model"], "list": [3], "epoch": 1}, found) is None
    assert [*load(tmp_path / "c", include=["p"])] == ["model", "list", "p", "epoch"]
    assert load(tmp_path / "c", include=lambda name: name == "/p")["p"].requires_grad
    jsonckpt.save(w, tmp_path / "root")
    assert load(tmp_path / "root", include=lambda _: False) is None


def test_tensors_go_to_a_device(tmp_path: Path) -> None:
    w = torch.arange(8.0)
    jsonckpt.save({"w": w, "tied": w}, tmp_path / "c")
    assert load(tmp_path / "c", map_location="meta")["tied"].device.type == "meta"


def test_tied_tensors_share_their_memory(tmp_path: Path) -> None:
    w = torch.arange(8.0)
    jsonckpt.save({"w": w, "tied": w}, tmp_path / "c.json")
    found = load(tmp_path / "c.json")
    assert found["w"].data_ptr() == found["tied"].data_ptr()


def test_the_command_lists_tensors(tmp_path: Path, reader_folder: Path) -> None:
    jsonckpt.save({"w": torch.ones(2, 3)}, tmp_path / "c.json")
    command = [sys.executable, "-I", "jsonckpt_reader.py", str(tmp_path / "c.json")]
    done = subprocess.run(command, cwd=reader_folder, capture_output=True, text=True, check=True)
    assert done.stdout == "/w float32 [2, 3] 24 bytes\n"


@pytest.mark.slow
def test_memory_is_that_of_the_tensors(tmp_path: Path, reader_folder: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({f"w{i}": torch.rand(5_000_000) for i in range(10)}, path, sync=False)
    code = (
        "import resource, sys, torch; sys.path.insert(0, sys.argv[1]); import jsonckpt_reader\n"
        "torch.rand(9).sum(); peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); state = jsonckpt_reader.load(sys.argv[2], verify=True)\n"
        "print((peak() - before) * 1024 - sum(t.nbytes for t in state.values()))"
    )
    command = [sys.executable, "-I", "-c", code, str(reader_folder), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30_000_000
