"""Settings in other programs' JSON stay settings, also those that look like weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt._src.errors import FormatError
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from tests.foreign.dialects import read

#: A model beside the settings, in each of the places where settings stand.
MODEL = {"fc.weight": [[0.5, -1.5], [2.0, 0.25]], "fc.bias": [0.0, 1.0]}
SETTINGS: dict[str, Any] = {
    "optimizer settings": {"params": {"betas": [0.9, 0.999]}},
    "optimizer settings with more": {"params": {"betas": [0.9, 0.999], "eps": 1e-8, "lr": 0.1}},
    "a net's settings": {"model": {"hidden": [128, 64], "dropout": 0.1}},
    "a net's sizes": {"model": {"layers": [784, 128, 10]}},
    "numbers alone": {"model": {"width": 64, "depth": 3}},
    "bounds": {"params": {"bounds": [[0.0, 1.0], [-1.0, 1.0]]}},
    "anchors": {"model": {"anchors": [[10.5, 13.0], [16.0, 30.0]], "nc": 80}},
    "unknown 2-D list of a model": {"model": {"grid": [[0.5, 1.0], [1.0, 2.0]]}},
    "class weights": {"weights": [0.3, 0.7]},
    "class weights by name": {"weights": {"cat": 0.3, "dog": 0.7}},
    "class weights in a loss": {"loss": {"weight": [1.0, 2.0]}},
    "class weights by index": {"class_weights": {"0": 0.5, "1": 1.5}},
    "pos_weight": {"pos_weight": [3.0, 1.0], "loss_weights": [[1.0, 0.5], [0.5, 1.0]]},
    "task weights": {"weights": {"task": [0.5, 0.5]}},
    "hyper-parameters": {"hyper_parameters": {"hidden": [64, 32], "lr": 0.1, "betas": [0.9, 1.0]}},
    "matrices in hyper-parameters": {"hyper_parameters": {"weight": [[0.5, 1.0], [1.0, 0.5]]}},
    "config with weights": {"config": {"model": {"weight": [[0.5, 1.5]], "bias": [1.0]}}},
    "history": {"history": {"loss": [0.5, 0.25], "val_loss": [0.6, 0.3], "lr": [0.1, 0.01]}},
    "losses": {"loss": [0.5, 0.25, 0.125], "acc": [0.1, 0.9]},
    "confusion": {"confusion_matrix": [[50.0, 2.0], [3.0, 45.0]]},
    "shape": {"shape": [2, 3], "input_shape": [1, 28, 28]},
    "normalization": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "a scheduler": {"scheduler": {"base_lrs": [0.1], "last_epoch": 3, "_last_lr": [0.1]}},
    "a scheduler's state": {"scheduler_state_dict": {"base_lrs": [0.1], "_last_lr": [0.1]}},
    "schedulers in a list": {"lr_schedulers": [{"base_lrs": [0.1], "milestones": [10, 20]}]},
    "groups": {"param_groups": [{"lr": 0.1, "betas": [0.9, 0.999], "params": [0, 1]}]},
    "callbacks": {"callbacks": {"Early": {"best": 0.1, "scores": [0.5, 0.25]}}},
    "vocabulary": {"vocab": {"a": 0, "b": 1}, "id2label": {"0": "cat", "1": "dog"}},
    "generator state": {"rng_state": [1, 2, 3], "torch_rng": [0] * 50},
    "arguments": {"args": {"lr": 0.1, "sizes": [[1.5, 2.0], [3.0, 4.0]]}},
    "milestones": {"model": {"milestones": [30, 60], "gamma": 0.1}},
    "ragged history": {"events": [[0.5], [0.25, 0.125], []]},
    "null among numbers": {"aucs": [0.5, None, 0.75]},
    "texts": {"model": "resnet18", "weights": "imagenet", "params": None},
    "a file name": {"weights": {"file": "model.bin", "sha": "00"}},
    "trees": {"learner": {"gradient_booster": {"model": {"trees": [
        {"base_weights": [0.5, -0.5, 0.25], "left_children": [1, -1, -1],
         "split_conditions": [0.5, 0.1, 0.2], "tree_param": {"num_nodes": "3"}}]},
        "name": "gbtree"}}, "version": [1, 7, 3]},
    "boosters": {"tree_info": [{"tree_index": 0, "num_leaves": 2, "tree_structure": {
        "threshold": 0.5, "left_child": {"leaf_value": 0.1, "leaf_weight": 4.0}}}]},
    "neurons": {"neurons": [{"trace": {}, "bias": 0.125, "layer": "input"}],
                "connections": [{"from": 0, "to": 2, "weight": 0.5}]},
    "augmentation": {"transform": {"matrix": [[1.0, 0.0], [0.0, 1.0]], "scale": [0.8, 1.2]}},
    "an ordinary table": {"table": [[1.5, 2.0], [3.0, 4.0]]},
    "points": {"points": [{"x": [0.5, 1.0], "y": 1.0}, {"x": [1.5, 1.0], "y": 0.0}]},
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_beside_a_model(settings: dict[str, Any], tmp_path: Path) -> None:
    for model in ({"state_dict": MODEL}, {"net": MODEL}, MODEL):
        expected = json.loads(json.dumps(settings))
        for group in expected.get("param_groups", ()):
            group["betas"] = [0.9, 0.999]
        found = read(json.dumps({**model, **settings}), tmp_path)
        assert {key: found[key] for key in settings} == expected
        weights = next(iter(model.values())) if len(model) == 1 else model
        assert isinstance(weights, dict)
        place = found[next(iter(model))] if len(model) == 1 else found
        for name, value in weights.items():
            assert torch.equal(place[name], torch.tensor(value)), name


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_alone_are_no_checkpoint(settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no tensor was found"):
        read(json.dumps(settings), tmp_path)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_settings_inside_a_model(settings: dict[str, Any], tmp_path: Path) -> None:
    """An object with leaves that cannot be parameters is not a state dict. Sure arrays are."""
    text = json.dumps({"model": {**MODEL, "kind": "mlp", **settings}})
    found = read(text, tmp_path)["model"]
    assert {key: found[key] for key in settings} == settings
    assert torch.equal(found["fc.weight"], torch.tensor(MODEL["fc.weight"]))
    assert torch.equal(found["fc.bias"], torch.tensor([0.0, 1.0]))


def test_the_error_says_which_lists_there_are(tmp_path: Path) -> None:
    text = json.dumps({"a": [1.5, 2.0], "b": {"c": [[1, 2], [3]]}, "n": 1})
    with pytest.raises(FormatError, match=r"/a.*/b/c") as caught:
        read(text, tmp_path)
    assert "--tensors" in str(caught.value)
    assert "--plain-lists" in str(caught.value)
    with pytest.raises(FormatError, match="none of the outermost ones is an array") as caught:
        read(
            json.dumps({"b": {"c": [[1.5, 2], [3]]}, "r": [[1], [2, 3]]}),
            tmp_path,
            plain_lists=True,
        )
    assert "--plain-lists" not in str(caught.value)
    with pytest.raises(FormatError, match="it has no list of numbers"):
        read('{"epoch":3}', tmp_path)


def test_a_note_says_which_lists_stay_lists(tmp_path: Path) -> None:
    lists = {f"layer{i}": [[1.5, 2.0], [3.0, 4.0]] for i in range(7)}
    text = json.dumps({"state_dict": MODEL, **lists})
    found, notes = read_foreign(io.BytesIO(text.encode()), tmp_path, ForeignOptions())
    assert found["layer0"] == lists["layer0"]
    note = next(note for note in notes if "stay lists" in note)
    assert note.startswith("7 lists stay lists: '/layer0'")
    assert "and 2 more" in note
    assert "--tensors" in note
