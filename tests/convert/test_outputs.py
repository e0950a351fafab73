"""Conversion: every kind of output, and what of a state is chosen for it."""

from __future__ import annotations

import errno
import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.commands.convert import main
from jsonckpt._src.convert.select import cast, choose, drop_optimizers, named_tensors
from jsonckpt._src.errors import JsonckptError, UnsupportedTypeError
from jsonckpt._src.json_stream.spooled import tensor_spool
from jsonckpt.convert import convert
from tests.convert.guide import guide_state, same

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
            convert(tmp_path / "in.pt", tmp_path / name, to=to)  # type: ignore[arg-type]
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
    for option in ("--include", "--exclude"):
        assert main([str(checkpoint), option, "/model_state_dict/wte"]) == 1
        said = capsys.readouterr().err
        assert f"{option} '/model_state_dict/wte' selects no tensor" in said
        assert "Did you mean '/model_state_dict" in said
        with pytest.raises(JsonckptError, match="selects no tensor"):
            convert(checkpoint, include=["*"], exclude=["/model_state_dict/wte*x"])


def test_what_was_left_out_is_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(checkpoint.with_name("part.json"))
    command = [str(checkpoint), "-o", output, "--include", "*ln_f.*", "--test-load", "--overwrite"]
    everything = [name for name, _ in named_tensors(guide_state())]
    kept = [name for name in everything if "ln_f." in name]
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["tensors"] == len(kept)
    assert said["left_out"] == [name for name in everything if name not in kept]
    assert said["tensors_left_out"] == len(everything) - len(kept)
    assert (said["test_load"]["same"], said["test_load"]["everything"]) == (True, False)
    assert main(command) == 0
    text = capsys.readouterr().out
    assert f"and {len(said['left_out']) - 10} more, {said['tensors_left_out']} tensors" in text
    assert f"type is the same; not compared: {len(said['left_out'])} names left out" in text
    assert main([*command[:3], "--test-load", "--overwrite", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["left_out"], said["tensors_left_out"]) == ([], 0)
    assert said["test_load"]["everything"] is True


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
        "ema": {"shadow_params": [torch.nn.Parameter(torch.ones(2))]},
    }
    with tensor_spool(tmp_path) as spool:
        result = cast(state, torch.float16, spool)
    changed = result.state
    assert result.changed == 3
    assert changed["model"]["w"].dtype == torch.float16
    assert changed["model"]["n"].dtype == torch.int64
    assert isinstance(changed["ema"]["shadow_params"][0], torch.nn.Parameter)
    assert changed["ema"]["shadow_params"][0].dtype == torch.float16
    for name in ("lr_scheduler", "scaler", "rng_state", "optimizers", "wrapped"):
        before = [tensor for _, tensor in named_tensors(state[name])]
        after = [tensor for _, tensor in named_tensors(changed[name])]
        assert all(one is other for one, other in zip(before, after, strict=True))
    with tensor_spool(tmp_path) as spool, pytest.raises(JsonckptError, match=r"'/w'.*too large"):
        cast({"w": torch.tensor([1e6])}, torch.float16, spool)


def test_choose_keeps_types() -> None:
    state = OrderedDict(a=[torch.ones(1), 5], b=(torch.ones(1),), c=np.ones(2))
    found, left_out = choose(state, [], ["/a/0", "/c"])
    assert left_out == ["/a/0", "/c"]
    assert type(found) is OrderedDict
    assert found["a"] == [5]
    assert list(found) == ["a", "b"]


@pytest.mark.parametrize("number", range(1, 6))
def test_an_error_of_the_system_is_no_other_answer(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "w.pt")
    output = tmp_path / "run"
    jsonckpt.save({"w": torch.ones(2)}, output)
    stat, asked = os.stat, []

    def failing(path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if str(path) == str(output):
            asked.append(path)
            if len(asked) == number:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
        return stat(path, *arguments, **options)

    raised = ""
    monkeypatch.setattr(os, "stat", failing)
    try:
        jsonckpt.convert(tmp_path / "w.pt", output, overwrite=True, to="dir")
    except jsonckpt.JsonckptError as error:
        raised = type(error).__name__
    monkeypatch.undo()
    assert raised != "CheckpointExistsError"
