"""``python -m jsonckpt.convert``: the guide's command, what is shown, and what goes wrong."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.commands.convert import main
from jsonckpt._src.convert import api
from jsonckpt._src.convert.write import write
from jsonckpt._src.errors import StateMismatchError
from jsonckpt.convert import ConvertOptions, convert
from tests.convert.guide import DATA, files, guide_state, same

# --- the guide's command ----------------------------------------------------------------------


def test_the_guides_command(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = checkpoint.with_suffix(".json")
    assert main([str(checkpoint), "--output", str(output), "--test-load"]) == 0
    printed = capsys.readouterr().out
    assert "58.3 kB" in printed
    assert f"{output.stat().st_size / 1000:.1f} kB" in printed
    assert "x the input" in printed
    assert "test   112 tensors, " in printed
    assert printed.endswith("every bit, dtype, shape, stride, key and type is the same\n")
    found = jsonckpt.load(output)
    same(guide_state(), found)
    unique = {id(tensor): tensor for tensor in found["model_state_dict"].values()}.values()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(tensor.clone()) for tensor in unique])
    optimizer.load_state_dict(found["optimizer_state_dict"])


def test_a_difference_exits_3_and_says_where(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = write

    def damaged(prepared: Any, *args: Any, **options: Any) -> Any:
        prepared.state["model_state_dict"]["transformer.ln_f.bias"][3] += 1
        written = honest(prepared, *args, **options)
        prepared.state["model_state_dict"]["transformer.ln_f.bias"][3] -= 1
        return written

    monkeypatch.setattr(api, "write", damaged)
    for name in ("a.json", "b", "c.pt"):
        assert main([str(checkpoint), "-o", str(checkpoint.with_name(name)), "--test-load"]) == 3
        message = capsys.readouterr().err
        assert "'/model_state_dict/transformer.ln_f.bias': 1 of 8 elements differ" in message
        assert "the first at [3]" in message
    with pytest.raises(StateMismatchError, match=r"ln_f\.bias"):
        convert(checkpoint, checkpoint.with_name("d.pt"), test_load=True)


def test_the_default_output(checkpoint: Path) -> None:
    assert main([str(checkpoint), "-q"]) == 0
    assert checkpoint.with_suffix(".json").is_file()
    assert main([str(checkpoint), "-q", "--to", "safetensors"]) == 0
    assert checkpoint.with_suffix(".safetensors").is_file()
    assert main([str(checkpoint), "-q", "--to", "dir"]) == 0
    assert (checkpoint.with_suffix("") / "manifest.json").is_file()


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
        "everything": True,
        "tensors": 112,
        "bytes": result["tensor_bytes"],
        "differences": [],
        "compared": ["bit", "dtype", "shape", "stride", "key", "type"],
        "not_compared": [],
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

    monkeypatch.setattr("jsonckpt._src.foreign.dialects.mend_optimizers", stop)
    assert main([str(source), "-o", str(tmp_path / "o.pt")]) == 130
    assert files(tmp_path) == {"guide.json"}


def test_no_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jsonckpt._src.storage.spool.os.pwrite", full)
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


def test_options_by_name() -> None:
    assert ConvertOptions().test_load is False
    with pytest.raises(TypeError):
        convert("x.pt", nonsense=True)  # type: ignore[call-arg]
