"""``python -m jsonckpt.convert``: every kind of input and output, and what goes wrong."""

from __future__ import annotations

import fractions
import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zstandard

import jsonckpt
from jsonckpt.convert import ConvertOptions, conversion, convert, readback, targets
from jsonckpt.convert.command import main
from jsonckpt.convert.compare import compare
from jsonckpt.convert.selection import cast, choose, drop_optimizers
from jsonckpt.convert.spool import Spool
from jsonckpt.errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    StateMismatchError,
    UnsupportedTypeError,
)

DATA = Path(__file__).parent / "data"
GUIDE = DATA / "guide_checkpoint.pt"


def guide_state() -> Any:
    return torch.load(GUIDE, weights_only=True)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint_epoch1_step6500.pt"
    shutil.copy(GUIDE, path)
    return path


def same(expected: Any, found: Any, *, exact: bool = True) -> None:
    assert compare(expected, found, exact_types=exact).differences == []


def files(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


# --- the guide's command ----------------------------------------------------------------------


def test_the_guides_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = checkpoint.with_suffix(".json")
    assert main([str(checkpoint), "--output", str(output), "--test-load"]) == 0
    printed = capsys.readouterr().out
    assert "58.3 kB" in printed
    assert f"{output.stat().st_size / 1000:.1f} kB" in printed
    assert "x the input" in printed
    assert "every bit, dtype, key and type is the same: 112 tensors" in printed
    found = jsonckpt.load(output)
    same(guide_state(), found)
    unique = {id(tensor): tensor for tensor in found["model_state_dict"].values()}.values()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor.clone()) for tensor in unique])
    optimizer.load_state_dict(found["optimizer_state_dict"])


def test_a_difference_exits_3_and_says_where(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = targets.write_target

    def damaged(state: Any, *args: Any, **options: Any) -> Any:
        state["model_state_dict"]["transformer.ln_f.bias"][3] += 1
        return honest(state, *args, **options)

    def convert_to(name: str) -> tuple[int, str]:
        real = conversion._read_back

        def fresh(_: Any, *args: Any) -> Any:
            return real(guide_state(), *args)

        monkeypatch.setattr(conversion, "_read_back", fresh)
        code = main([str(checkpoint), "-o", str(checkpoint.with_name(name)), "--test-load"])
        monkeypatch.setattr(conversion, "_read_back", real)
        return code, capsys.readouterr().err

    monkeypatch.setattr(conversion, "write_target", damaged)
    for name in ("a.json", "b", "c.pt"):
        code, message = convert_to(name)
        assert code == 3
        assert "'/model_state_dict/transformer.ln_f.bias': 1 of 8 elements differ" in message
        assert "the first at [3]" in message
    monkeypatch.setattr(conversion, "_read_back", lambda state, *_: compare(guide_state(), state))
    with pytest.raises(StateMismatchError, match=r"ln_f\.bias"):
        convert(checkpoint, checkpoint.with_name("d.pt"), test_load=True)


def test_the_default_output(checkpoint: Path) -> None:
    assert main([str(checkpoint), "-q"]) == 0
    assert checkpoint.with_suffix(".json").is_file()
    assert main([str(checkpoint), "-q", "--to", "safetensors"]) == 0
    assert checkpoint.with_suffix(".safetensors").is_file()
    assert main([str(checkpoint), "-q", "--to", "dir"]) == 0
    assert (checkpoint.with_suffix("") / "manifest.json").is_file()


# --- inputs -----------------------------------------------------------------------------------


def as_legacy(path: Path) -> Path:
    target = path.with_name("legacy.bin")
    torch.save(guide_state(), target, _use_new_zipfile_serialization=False)
    return target


def as_unpacked(path: Path) -> Path:
    directory = path.with_name("best")
    directory.mkdir()
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            target = directory / name.split("/", 1)[1]
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))
    return directory


def as_nested(path: Path) -> Path:
    directory = path.with_name("outer")
    directory.mkdir()
    as_unpacked(path).rename(directory / "best")
    return directory


def as_bare(path: Path) -> Path:
    """What a site leaves that drops hidden files."""
    directory = as_unpacked(path)
    for hidden in directory.glob(".*"):
        shutil.rmtree(hidden) if hidden.is_dir() else hidden.unlink()
    return directory


def as_deflated(path: Path) -> Path:
    target = path.with_name("deflated.ckpt")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as out:
        for name in source.namelist():
            out.writestr(name, source.read(name))
    return target


def as_single(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("single.json"))
    return path.with_name("single.json")


def as_compressed(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("single.json.zst"))
    return path.with_name("single.json.zst")


def as_directory(path: Path) -> Path:
    jsonckpt.save(guide_state(), path.with_name("directory"))
    return path.with_name("directory")


def as_manifest(path: Path) -> Path:
    return as_directory(path) / "manifest.json"


@pytest.mark.parametrize(
    "make",
    [
        lambda path: path,
        as_legacy,
        as_unpacked,
        as_nested,
        as_bare,
        as_deflated,
        as_single,
        as_compressed,
        as_directory,
        as_manifest,
    ],
    ids=lambda make: make.__name__,
)
def test_every_input_of_our_own(make: Callable[[Path], Path], checkpoint: Path) -> None:
    source = make(checkpoint)
    before = files(checkpoint.parent)
    output = checkpoint.with_name("out.pt")
    result = convert(source, output, test_load=True)
    same(guide_state(), torch.load(output, weights_only=True))
    assert result.comparison is not None
    assert result.comparison.tensors == 112
    assert files(checkpoint.parent) == before | {"out.pt"}


@pytest.mark.parametrize("name", ["guide_checkpoint.json", "packed.json.zst", "packed.json.gz"])
def test_json_of_another_program(name: str, tmp_path: Path) -> None:
    source = tmp_path / name
    text = (DATA / "guide_checkpoint.json").read_bytes()
    if name.endswith(".zst"):
        text = zstandard.ZstdCompressor().compress(text[:99999]) + (
            zstandard.ZstdCompressor().compress(text[99999:])
        )
    if name.endswith(".gz"):
        text = gzip.compress(text)
    source.write_bytes(text)
    result = convert(source, tmp_path / "out.json", test_load=True)
    same(guide_state(), jsonckpt.load(tmp_path / "out.json"), exact=False)
    assert "tied again: lm_head.weight is transformer.wte.weight" in result.notes
    assert files(tmp_path) == {name, "out.json"}


def test_safetensors_and_shards(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = {
        "b.weight": torch.randn(3, 5).to(torch.bfloat16),
        "a.weight": torch.arange(7, dtype=torch.uint8),
        "c": torch.tensor(True),
        "empty": torch.empty(0, 3),
    }
    safetensors.save_file(tensors, tmp_path / "one.safetensors", metadata={"format": "pt"})
    convert(tmp_path / "one.safetensors", tmp_path / "one.pt", test_load=True)
    found = torch.load(tmp_path / "one.pt", weights_only=True)
    same(tensors, {name: found[name] for name in tensors}, exact=False)

    directory = tmp_path / "model"
    directory.mkdir()
    weight_map = {}
    for number, name in enumerate(tensors):
        shard = f"model-{number}.safetensors"
        safetensors.save_file({name: tensors[name]}, directory / shard)
        weight_map[name] = shard
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for source in (index, directory):
        result = convert(source, tmp_path / "two.pt", test_load=True, overwrite=True)
        assert result.kind == "sharded checkpoint"
        same(tensors, torch.load(tmp_path / "two.pt", weights_only=True), exact=False)
    (directory / "model-1.safetensors").unlink()
    with pytest.raises(IncompleteCheckpointError, match=r"model-1\.safetensors"):
        convert(index, tmp_path / "three.pt")
    index.write_text(json.dumps({"weight_map": {"a": "../one.safetensors"}}))
    with pytest.raises(FormatError, match="does not lie beside"):
        convert(index, tmp_path / "three.pt")


def test_a_file_that_needs_pickle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = {"w": torch.ones(2), "ratio": fractions.Fraction(1, 3)}
    for name, new in (("new.pt", True), ("old.pt", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=new)
        output = tmp_path / f"{name}.json"
        assert main([str(tmp_path / name), "-o", str(output)]) == 1
        message = capsys.readouterr().err
        assert message.startswith("error: ")
        assert message.count("\n") == 1
        assert "fractions.Fraction" in message
        assert "--unsafe-pickle" in message
        assert not output.exists()
        assert main([str(tmp_path / name), "-o", str(output), "--unsafe-pickle", "-q"]) == 0
        assert jsonckpt.load(output)["ratio"] == fractions.Fraction(1, 3)


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_pickle_never_runs_unasked(tmp_path: Path) -> None:
    trap = tmp_path / "trapped"
    torch.save({"w": torch.ones(2), "x": Malicious(trap)}, tmp_path / "bad.pt")
    with pytest.raises(UnsupportedTypeError):
        convert(tmp_path / "bad.pt", tmp_path / "out.json")
    assert not trap.exists()


NOT_CHECKPOINTS: dict[str, bytes] = {
    "empty.pt": b"",
    "text.pt": b"hello",
    "short.pt": b"PK\x03\x04",
    "pickle.pt": b"\x80\x04K\x01.",
    "legacy.pt": b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.",
    "header.safetensors": b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b" " * 30,
    "offsets.safetensors": b"\x40\0\0\0\0\0\0\0"
    + b'{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,9]}}'.ljust(90),
    "own.json": b'{"format":"jsonckpt.shard","version":1}',
    "zst.json.zst": b"\x28\xb5\x2f\xfd\x00\x00",
    "gz.json.gz": b"\x1f\x8b\x08\x00",
}


@pytest.mark.parametrize("name", NOT_CHECKPOINTS)
def test_what_is_no_checkpoint(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(NOT_CHECKPOINTS[name])
    assert main([str(tmp_path / name), "-o", str(tmp_path / "out.pt")]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {tmp_path / name}")
    assert captured.err.count("\n") == 1
    assert files(tmp_path) == {name}


def test_truncated_inputs(checkpoint: Path) -> None:
    sources = [checkpoint, as_single(checkpoint), as_compressed(checkpoint)]
    convert(checkpoint, checkpoint.with_name("x.safetensors"))
    for source in [*sources, checkpoint.with_name("x.safetensors")]:
        content = source.read_bytes()
        cut = source.with_name(f"cut-{source.name}")
        for length in (len(content) - 1, len(content) // 2, 100):
            cut.write_bytes(content[:length])
            with pytest.raises((FormatError, IncompleteCheckpointError)):
                convert(cut, checkpoint.with_name("out.pt"))
            assert not checkpoint.with_name("out.pt").exists()


def test_a_path_to_nothing(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        convert(tmp_path / "missing.pt")
    (tmp_path / "hollow").mkdir()
    with pytest.raises(CheckpointNotFoundError, match=r"data\.pkl"):
        convert(tmp_path / "hollow", tmp_path / "out.pt")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(FormatError, match="neither a file nor"):
        convert(tmp_path / "fifo", tmp_path / "out.pt")


# --- outputs ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["-o", "o.json"],
        ["-o", "o.json.zst"],
        ["-o", "o"],
        ["-o", "o.json", "--encoding", "list"],
        ["-o", "o", "--compression", "zstd"],
        ["-o", "o", "--max-shard-size", "10kB"],
        ["-o", "o.pth"],
        ["-o", "o.safetensors"],
        ["-o", "o.json", "--to", "legacy-json"],
    ],
    ids=" ".join,
)
def test_every_output(arguments: list[str], checkpoint: Path) -> None:
    arguments[1] = str(checkpoint.with_name(arguments[1]))
    assert main([str(checkpoint), *arguments, "--test-load", "-q"]) == 0
    back = checkpoint.with_name("back.pt")
    convert(arguments[1], back, test_load=True)
    found = torch.load(back, weights_only=True)
    if arguments[1].endswith("safetensors"):
        assert len(found) == 113
        assert torch.equal(
            found["model_state_dict.lm_head.weight"],
            guide_state()["model_state_dict"]["lm_head.weight"],
        )
    else:
        same(guide_state(), found, exact="legacy-json" not in arguments)
    if "--max-shard-size" in arguments:
        assert len(list(Path(arguments[1]).glob("shard-*.json"))) > 1


def test_the_guides_dialect_is_read_by_what_the_guide_does(checkpoint: Path) -> None:
    output = checkpoint.with_name("o.json")
    convert(checkpoint, output, to="legacy-json", exclude=["*exp_avg*"])
    plain = json.loads(output.read_text())
    expected = guide_state()
    for name, entry in plain["model_state_dict"].items():
        tensor = torch.tensor(entry["data"]).reshape(entry["shape"])
        assert torch.equal(tensor, expected["model_state_dict"][name])
        assert entry["dtype"] == "torch.float32"
    assert plain["epoch"] == 1
    assert plain["optimizer_state_dict"]["param_groups"][0]["betas"] == [0.9, 0.999]
    assert list(plain["optimizer_state_dict"]["state"]["0"]) == ["step"]


def test_safetensors_output_is_read_by_safetensors(checkpoint: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    output = checkpoint.with_name("o.safetensors")
    result = convert(checkpoint, output, optimizer=False, test_load=True)
    found = safetensors.load_file(output)
    expected = guide_state()["model_state_dict"]
    tied = expected.pop("lm_head.weight")
    assert torch.equal(tied, found["transformer.wte.weight"])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "/optimizer_state_dict" in result.left_out
    assert "/epoch" in result.left_out
    assert any("lm_head.weight" in note for note in result.notes)


def test_tensors_in_other_forms(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    state = OrderedDict(
        plain=base,
        view=base[3:9],
        transposed=torch.arange(6).reshape(2, 3).t(),
        expanded=torch.ones(1, 1).expand(3, 4),
        parameter=torch.nn.Parameter(torch.randn(3)),
        conjugate=torch.tensor([1 + 2j]).conj(),
        scalar=torch.tensor(2.5, dtype=torch.bfloat16),
        empty=torch.empty(0, 4),
        listed=[torch.ones(2), {"deep": (torch.zeros(1), 5)}],
        nan=torch.tensor([0x7FC00001, 0x7FC00000], dtype=torch.int32).view(torch.float32),
    )
    torch.save(state, tmp_path / "in.pt")
    expected = torch.load(tmp_path / "in.pt", weights_only=True)
    for name in ("o.json", "o", "o.json.zst", "o.pt"):
        convert(tmp_path / "in.pt", tmp_path / name, test_load=True)
    same(expected, jsonckpt.load(tmp_path / "o.json"))
    convert(tmp_path / "in.pt", tmp_path / "o.safetensors", test_load=True)
    with pytest.raises(UnsupportedTypeError, match="/conjugate"):
        convert(tmp_path / "in.pt", tmp_path / "g.json", to="legacy-json")
    plain = tmp_path / "g.json"
    convert(tmp_path / "in.pt", plain, to="legacy-json", exclude=["conjugate"], test_load=True)
    assert not list(tmp_path.glob(".*"))


def test_sparse_tensors_come_back(tmp_path: Path) -> None:
    sparse = torch.tensor([[0.0, 1.5], [0.0, 0.0]]).to_sparse()
    torch.save({"s": sparse, "w": torch.ones(3)}, tmp_path / "in.pt")
    convert(tmp_path / "in.pt", tmp_path / "o.json", test_load=True)
    assert torch.equal(jsonckpt.load(tmp_path / "o.json")["s"].to_dense(), sparse.to_dense())
    for name, to in (("o.safetensors", None), ("g.json", "legacy-json")):
        with pytest.raises(UnsupportedTypeError, match="s'"):
            convert(tmp_path / "in.pt", tmp_path / name, to=to)
        assert not (tmp_path / name).exists()


def test_metadata_goes_along(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "a", metadata={"run": 7})
    convert(tmp_path / "a", tmp_path / "b.json")
    with jsonckpt.open(tmp_path / "b.json") as found:
        assert found.metadata["run"] == 7


# --- what is chosen ---------------------------------------------------------------------------


def test_include_and_exclude(checkpoint: Path) -> None:
    output = checkpoint.with_name("o.json")
    arguments = ["--include", "model_state_dict", "--include", "/optimizer_state_dict/state/0"]
    assert main([str(checkpoint), "-o", str(output), *arguments, "--exclude", "*.bias", "-q"]) == 0
    found = jsonckpt.load(output)
    assert "transformer.ln_f.weight" in found["model_state_dict"]
    assert "transformer.ln_f.bias" not in found["model_state_dict"]
    assert set(found["optimizer_state_dict"]["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert found["optimizer_state_dict"]["state"][1] == {}
    assert found["epoch"] == 1


def test_an_include_that_selects_nothing(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "--include", "/model_state_dict/wte"]) == 1
    assert "'/model_state_dict/wte' selects no tensor" in capsys.readouterr().err


def test_no_optimizer(checkpoint: Path) -> None:
    result = convert(checkpoint, checkpoint.with_name("o.json"), optimizer=False, test_load=True)
    found = jsonckpt.load(checkpoint.with_name("o.json"))
    assert "optimizer_state_dict" not in found
    assert result.left_out == ["/optimizer_state_dict"]
    group: dict[str, Any] = {"state": {}, "param_groups": []}
    state = {"a": {"opt": group}, "opts": [1], "optimizer_name": "AdamW", "model": {"optim": {}}}
    assert drop_optimizers(state)[1] == ["/a/opt"]


def test_dtype_changes_the_model_only(checkpoint: Path, tmp_path: Path) -> None:
    output = tmp_path / "o.json"
    assert main([str(checkpoint), "-o", str(output), "--dtype", "bfloat16", "--test-load"]) == 0
    found, expected = jsonckpt.load(output), guide_state()
    for name, tensor in found["model_state_dict"].items():
        assert torch.equal(tensor, expected["model_state_dict"][name].bfloat16())
    model = found["model_state_dict"]
    assert model["lm_head.weight"].data_ptr() == model["transformer.wte.weight"].data_ptr()
    same(expected["optimizer_state_dict"], found["optimizer_state_dict"])

    kept = torch.ones(2)
    state = {
        "model": {"w": torch.ones(2), "n": torch.tensor(3), "scheduler": torch.ones(1)},
        "lr_scheduler": {"t": kept},
        "scaler": {"t": kept},
        "rng_state": kept,
        "optimizers": [{"state": {0: {"m": kept}}, "param_groups": []}],
        "wrapped": {"state": {0: {"m": kept}}, "param_groups": []},
        "ema": torch.nn.Parameter(torch.ones(2)),
    }
    with Spool(tmp_path) as spool:
        changed, count = cast(state, torch.float16, spool)
    assert count == 3
    assert changed["model"]["w"].dtype == torch.float16
    assert changed["model"]["n"].dtype == torch.int64
    assert isinstance(changed["ema"], torch.nn.Parameter)
    for name in ("lr_scheduler", "scaler", "rng_state", "optimizers", "wrapped"):
        assert changed[name] is state[name]
    with Spool(tmp_path) as spool, pytest.raises(JsonckptError, match="too large"):
        cast({"w": torch.tensor([1e6])}, torch.float16, spool)


def test_choose_keeps_types() -> None:
    state = OrderedDict(a=[torch.ones(1), 5], b=(torch.ones(1),), c=np.ones(2))
    found = choose(state, [], ["/a/0", "/c"])
    assert type(found) is OrderedDict
    assert found["a"] == [5]
    assert list(found) == ["a", "b"]


# --- what is shown, and what goes wrong -------------------------------------------------------


def test_a_dry_run_writes_nothing(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(checkpoint.parent)
    sizes = {}
    for name in ("o.json", "o.pt", "o.safetensors"):
        assert main([str(checkpoint), "-o", name, "--dry-run", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["dry_run"] is True
        assert result["tensors"] == 112
        sizes[name] = result["output_bytes"]
    assert files(checkpoint.parent) == before
    for name, size in sizes.items():
        written = convert(checkpoint, checkpoint.with_name(name)).output_bytes
        assert 0.5 < size / written < 2
    assert main([str(checkpoint), "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "would write" in printed
    assert "/model_state_dict/transformer.ln_f.bias  float32 [8]" in printed


def test_machine_readable(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = checkpoint.with_name("o.json")
    assert main([str(checkpoint), "-o", str(output), "--json", "--test-load"]) == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert captured.err == ""
    assert result["ok"] is True
    assert result["input_bytes"] == checkpoint.stat().st_size
    assert result["output_bytes"] == output.stat().st_size
    assert result["test_load"] == {
        "same": True,
        "tensors": 112,
        "bytes": result["tensor_bytes"],
        "differences": [],
    }
    assert main([str(checkpoint), "-o", str(output), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["ok"] is False


def test_quiet(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(checkpoint), "-q"]) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_an_existing_output_is_refused(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("o.json", "o.pt", "o.safetensors", "o"):
        output = checkpoint.with_name(name)
        output.write_text("precious")
        assert main([str(checkpoint), "-o", str(output)]) == 1
        assert "--overwrite" in capsys.readouterr().err
        assert output.read_text() == "precious"
    for name in ("o.json", "o.pt", "o.safetensors"):
        output = checkpoint.with_name(name)
        assert main([str(checkpoint), "-o", str(output), "--overwrite", "--test-load", "-q"]) == 0


def test_input_and_output_are_the_same(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(checkpoint), "-o", str(checkpoint), "--overwrite"]) == 1
    assert "is the input itself" in capsys.readouterr().err
    same(guide_state(), torch.load(checkpoint, weights_only=True))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["in.pt", "--bogus"],
        ["in.pt", "--to", "xml"],
        ["in.pt", "-o", "o.pt", "--encoding", "list"],
        ["in.pt", "--encoding", "list", "--compression", "zstd"],
        ["in.pt", "--tie", "a"],
        ["in.pt", "--shapes", "missing.json"],
    ],
    ids=" ".join,
)
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert "usage:" in capsys.readouterr().err


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    assert main(["--version"]) == 0
    assert jsonckpt.__version__ in capsys.readouterr().out


@pytest.mark.parametrize("name", ["o.pt", "o.safetensors", "g.json"])
@pytest.mark.parametrize("how", ["interrupt", "terminate", "disk full"])
def test_nothing_half_written_is_left(
    name: str,
    how: str,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = checkpoint.with_name(name)
    output.write_text("old")
    before = files(checkpoint.parent)

    def stop(_: int) -> None:
        if how == "interrupt":
            raise KeyboardInterrupt
        if how == "terminate":
            os.kill(os.getpid(), signal.SIGTERM)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", stop)
    arguments = [str(checkpoint), "-o", str(output), "--overwrite"]
    if name == "g.json":
        arguments += ["--to", "legacy-json"]
    assert main(arguments) == {"interrupt": 130, "terminate": 143, "disk full": 1}[how]
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "Traceback" not in captured.err
    assert output.read_text() == "old"
    assert files(checkpoint.parent) == before
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupted_import_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "guide.json"
    shutil.copy(DATA / "guide_checkpoint.json", source)

    def stop(*_: Any) -> None:
        assert list(tmp_path.glob(".*")) == []  # temporary files have no names
        raise KeyboardInterrupt

    monkeypatch.setattr("jsonckpt.convert.dialects.mend_optimizers", stop)
    assert main([str(source), "-o", str(tmp_path / "o.pt")]) == 130
    assert files(tmp_path) == {"guide.json"}


def test_no_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jsonckpt.convert.spool.os.pwrite", full)
    arguments = [str(DATA / "guide_checkpoint.json"), "-o", str(tmp_path / "o.pt")]
    assert main(arguments) == 1
    assert "--spool" in capsys.readouterr().err
    assert main([*arguments, "--spool", str(tmp_path / "missing")]) == 1
    assert "is not a directory" in capsys.readouterr().err
    assert files(tmp_path) == set()


def test_the_module_runs(checkpoint: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "jsonckpt.convert", checkpoint.name, "--test-load"],
        cwd=checkpoint.parent,
        env={**os.environ, "PYTHONPATH": str(Path(jsonckpt.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == 0
    assert "checkpoint_epoch1_step6500.json" in done.stdout


# --- comparing --------------------------------------------------------------------------------


def test_large_states_are_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the sizes of parts made small, all ways of comparing find the same."""
    shared = torch.randn(600, 8)
    state = {
        "model": OrderedDict(
            big=shared,
            tied=shared,
            parameter=torch.nn.Parameter(torch.randn(300, 8)),
            wide=torch.randn(1, 5000),
            small=torch.ones(3),
            pair=[torch.randn(500), torch.ones(2)],
        ),
        "views": {"all": (base := torch.arange(4000.0)), "some": base[5:50]},
        "state": {0: {"m": torch.randn(40, 40)}, 1: {"m": torch.ones(40, 40)}},
        "epoch": 3,
    }
    monkeypatch.setattr(readback, "LEAST_PART", 4000)
    monkeypatch.setattr(readback, "LARGEST_PART", 6000)
    monkeypatch.setattr(readback, "ROWS", 3000)
    path = tmp_path / "c"
    jsonckpt.save(state, path)
    whole: list[Any] = []

    def counted(*states: Any) -> Any:
        whole.append(states)
        return compare(*states)

    monkeypatch.setattr(readback, "compare", counted)
    result = readback.compare_checkpoint(state, path, tmp_path)
    assert result.differences == []
    assert result.tensors == 10
    assert whole == []

    def broken(change: Callable[[Any], None]) -> list[str]:
        copy: Any = torch.load(_saved(state, tmp_path), weights_only=True)
        change(copy)
        return readback.compare_checkpoint(copy, path, tmp_path).differences

    assert broken(lambda s: s["epoch"]) == []
    assert broken(lambda s: s["model"]["big"].data[599].add_(1))[0].startswith(
        "'/model/big': 8 of 4,800 elements differ, the first at [599, 0]: "
    )
    assert "'/model/wide'" in broken(lambda s: s["model"]["wide"][0, 4999].neg_())[0]
    assert "'/model/pair/1'" in broken(lambda s: s["model"]["pair"][1][1].neg_())[0]
    assert "'/epoch'" in broken(lambda s: s.update(epoch=3.0))[0]
    assert "requires_grad" in broken(lambda s: s["model"]["parameter"].requires_grad_(False))[0]
    assert broken(lambda s: s["state"].update({"0": s["state"].pop(0)}))
    assert broken(lambda s: s["model"].pop("small"))
    assert broken(lambda s: s["model"].update(new=torch.ones(1)))
    untied = {"model": {"big": shared, "tied": shared.clone()}}
    jsonckpt.save(untied, tmp_path / "untied")
    tied = {"model": {"big": shared, "tied": shared}}
    differences = readback.compare_checkpoint(tied, tmp_path / "untied", tmp_path).differences
    assert differences == ["'/model/tied': is no longer tied to another tensor"]


def _saved(state: Any, directory: Path) -> Path:
    torch.save(state, directory / "copy.pt")
    return directory / "copy.pt"


@pytest.mark.parametrize(
    ("left", "right", "what"),
    [
        ({"a": 1}, {"a": True}, "int became bool"),
        ({"a": (1,)}, {"a": [1]}, "tuple became list"),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}, "order"),
        ({1: 0}, {"1": 0}, "missing"),
        (OrderedDict(a=1), {"a": 1}, "OrderedDict became dict"),
        ({"a": 0.0}, {"a": -0.0}, "'0.0' became '-0.0'"),
        ({"a": [1, 2]}, {"a": [1]}, "2 items became 1"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2, 1)}, "shape"),
        ({"a": torch.ones(2)}, {"a": torch.ones(2).double()}, "dtype"),
        ({"a": torch.ones(2)}, {"a": None}, "Tensor became NoneType"),
        ({"a": torch.ones(2)}, {"a": torch.nn.Parameter(torch.ones(2))}, "became Parameter"),
        ({"a": np.ones(2)}, {"a": np.ones(2, "f4")}, "dtype or shape of the array"),
        ({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}, "0.0 became -0.0"),
    ],
)
def test_compare_sees(left: Any, right: Any, what: str) -> None:
    differences = compare(left, right).differences
    assert any(what in line for line in differences), differences


def test_compare_sees_a_lost_tie() -> None:
    tied = torch.ones(2)
    assert compare({"a": tied, "b": tied}, {"a": tied, "b": tied.clone()}).differences
    assert not compare({"a": tied, "b": tied}, {"a": tied, "b": tied}).differences


def test_options_by_name() -> None:
    assert ConvertOptions().test_load is False
    with pytest.raises(TypeError):
        convert("x.pt", nonsense=True)
