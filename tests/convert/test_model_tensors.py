"""``--dtype``: which tensors of the checkpoints of many programs belong to models."""

from __future__ import annotations

import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import ones, tensor

from jsonckpt._src.convert.select import Cast, cast, drop_optimizers, named_tensors
from jsonckpt._src.errors import ArgumentError, StateMismatchError
from jsonckpt._src.json_stream.spooled import tensor_spool
from jsonckpt.convert import convert

NET = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
OPTIMIZER = torch.optim.Adam(NET.parameters())
NET(torch.randn(4, 3)).sum().backward()
OPTIMIZER.step()
AVERAGED = torch.optim.swa_utils.AveragedModel(NET).state_dict()
#: As other programs write it, without torch's ``_metadata``.
WEIGHTS = dict(NET.state_dict())
FLOATS = [name for name, value in WEIGHTS.items() if value.is_floating_point()]
MOMENTS = OPTIMIZER.state_dict()
HALF = tensor(0.5)


def under(*places: str) -> list[str]:
    return [f"{place}/{name}" for place in places for name in FLOATS]


#: A layout, and the names of the tensors that change.
LAYOUTS: dict[str, tuple[Any, list[str]]] = {
    "lightning": (
        {
            "state_dict": NET.state_dict(),
            "callbacks": {
                "ModelCheckpoint{'monitor': 'loss'}": {
                    "best_model_score": HALF,
                    "best_k_models": {"/runs/last.ckpt": HALF, "last.ckpt": HALF},
                    "kth_value": HALF,
                },
                "EMA": {"ema_state_dict": WEIGHTS, "decay": HALF},
            },
            "optimizer_states": [MOMENTS],
            "lr_schedulers": [{"base": ones(2)}],
            "hyper_parameters": {"model": {"width": 3}},
        },
        under("/state_dict", "/callbacks/EMA/ema_state_dict"),
    ),
    "timm": (
        {
            "state_dict": WEIGHTS,
            "state_dict_ema": WEIGHTS,
            "metric": HALF,
            "amp_scaler": {"scale": ones(1)},
        },
        under("/state_dict", "/state_dict_ema"),
    ),
    "diffusers": (
        {"ema": {"decay": HALF, "num_updates": HALF, "shadow_params": [ones(2), ones(3)]}},
        ["/ema/shadow_params/0", "/ema/shadow_params/1"],
    ),
    "torch-ema alone": (
        {"decay": HALF, "num_updates": 3, "shadow_params": [ones(2)], "collected_params": None},
        ["/shadow_params/0"],
    ),
    "fairseq": (
        {
            "model": WEIGHTS,
            "last_optimizer_state": MOMENTS,
            "extra_state": {"metrics": {"loss": ones(9)}, "ema_fp32_params": WEIGHTS, "best": HALF},
        },
        under("/model", "/extra_state/ema_fp32_params"),
    ),
    "detectron2": (
        {"model": WEIGHTS, "optimizer": MOMENTS, "scheduler": {"lrs": ones(2)}, "iteration": 9},
        under("/model"),
    ),
    "mmdet": ({"meta": {"loss": ones(3)}, "state_dict": WEIGHTS}, under("/state_dict")),
    "yolo": (
        {"model": WEIGHTS, "ema": WEIGHTS, "updates": HALF, "best_fitness": ones(1)},
        under("/model", "/ema"),
    ),
    "gan": (
        {
            **dict.fromkeys(("g", "discriminator", "g_ema"), WEIGHTS),
            "g_optim": MOMENTS,
            "latent_avg": ones(5),
            "fixed_noise": ones(2, 2),
        },
        under("/g", "/discriminator", "/g_ema"),
    ),
    "swa": (
        {"swa_model": AVERAGED, "n_averaged": HALF},
        [f"/swa_model/module.{name}" for name in FLOATS],
    ),
    "fsdp": ({"model": {"_flat_param": ones(9), "a.flat_param_0": ones(3)}, "r": ones(2)},
             ["/model/_flat_param", "/model/a.flat_param_0"]),
    "plain": (NET.state_dict(), under("")),
    "plain without metadata": (WEIGHTS, under("")),
    "plain with a number": ({**WEIGHTS, "epoch": 3, "best_acc": HALF, "prior": ones(2)}, under("")),
    "other names": ({"w": ones(2), "decay": HALF, "losses": ones(4)}, ["/w"]),
    "observers": (
        {
            "model": {
                "l.weight": ones(2),
                "l.act.min_val": HALF,
                "l.act.max_val": ones(2),
                "l.fq.scale": ones(1),
                "l.fq.zero_point": ones(1, dtype=torch.int32),
                "norm.scale": ones(2),
                "logit_scale": HALF,
                "model_ema.decay": HALF,
            }
        },
        ["/model/l.weight", "/model/norm.scale", "/model/logit_scale"],
    ),
    "lone": (
        {"ema": ones(2), "ema_decay": HALF, "best_model_score": HALF, "a_history": {"x": ones(2)}},
        [],
    ),
    "nested": ({"params": {"enc": {"kernel": ones(2)}, "steps": HALF}}, ["/params/enc/kernel"]),
    "flat": (
        {"optimizer.state.fc.weight.exp_avg": ones(2), "opt_model.fc.weight": ones(2)},
        ["/opt_model.fc.weight"],
    ),
    "list": ([ones(2), ones(3)], ["/0", "/1"]),
    "tensor": (ones(2), [""]),
    "moments": ({"model": WEIGHTS, "exp_avg": WEIGHTS, "grads": WEIGHTS}, under("/model")),
    "rng": ({"net": WEIGHTS, "rng_state": ones(8), "random_state": {"a": ones(8)}}, under("/net")),
    "buffers of data": ({"replay": {"obs": ones(9), "reward": ones(9)}}, []),
    "optimizer alone": (MOMENTS, []),
}  # fmt: skip


def half(state: Any, directory: Path, **options: Any) -> Cast:
    with tensor_spool(directory) as spool:
        return cast(state, torch.bfloat16, spool, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_only_tensors_of_models_change(layout: str, tmp_path: Path) -> None:
    state, expected = LAYOUTS[layout]
    before = dict(named_tensors(state))
    result = half(state, tmp_path)
    after = dict(named_tensors(result.state))
    assert list(after) == list(before)
    changed = [name for name, value in after.items() if value.dtype == torch.bfloat16]
    assert changed == expected
    for name in before.keys() - set(changed):
        assert after[name] is before[name]
    # Each tensor that stayed is counted in a note that says why.
    stayed = sum(value.is_floating_point() for value in before.values()) - len(expected)
    counts = [re.search(r": ([\d,]+) \(", note) for note in result.notes[1:]]
    said = sum(int(count[1].replace(",", "")) for count in counts if count is not None)
    assert said == stayed, result.notes


def test_the_note_says_what_changed_where_and_what_stayed(tmp_path: Path) -> None:
    state = {"model": WEIGHTS, "ema_decay": HALF, "prior": ones(2), "a": np.ones(2)}
    assert half(state, tmp_path).notes == [
        "converted to torch.bfloat16: 6 tensors of models, in /model",
        "unchanged are tensors that are numbers beside the weights (decays, scores, histories): "
        "1 (/ema_decay)",
        "unchanged are tensors that may not be of a model (pass --dtype-of NAME to change them): "
        "1 (/prior)",
        "NumPy arrays keep their dtypes: 1 (/a)",
    ]


def test_named_tensors_change(tmp_path: Path) -> None:
    torch.save({"model": WEIGHTS, "prior": ones(2)}, tmp_path / "in.pt")
    result = convert(
        tmp_path / "in.pt", tmp_path / "o.pt", dtype="float16", dtype_of=["prior"], test_load=True
    )
    found = torch.load(tmp_path / "o.pt")
    assert found["prior"].dtype == torch.float16
    assert found["model"]["0.weight"].dtype == torch.float32
    assert (result.changed, result.notes) == (
        1,
        ["converted to torch.float16: 1 tensor that --dtype-of names, in /"],
    )
    with pytest.raises(StateMismatchError, match="--dtype-of"):
        convert(tmp_path / "in.pt", tmp_path / "p.pt", dtype="float16", dtype_of=["nothing"])
    with pytest.raises(ArgumentError, match="dtype_of needs dtype"):
        convert(tmp_path / "in.pt", tmp_path / "p.pt", dtype_of=["prior"])


def test_ties_between_models_stay(tmp_path: Path) -> None:
    state = half({"model": WEIGHTS, "ema": {**WEIGHTS}}, tmp_path).state
    assert state["model"]["0.weight"] is state["ema"]["0.weight"]


def test_settings_of_an_optimizer_stay() -> None:
    state = {
        "opt_model": WEIGHTS,
        "config": {"optimizer": {"type": "SGD", "lr": 0.1}},
        "optimizer": OrderedDict(MOMENTS),
        "opt": {"momentum": ones(1)},
    }
    kept, dropped = drop_optimizers(state)
    assert dropped == ["/optimizer", "/opt"]
    assert list(kept) == ["opt_model", "config"]
    assert kept["config"] == state["config"]
