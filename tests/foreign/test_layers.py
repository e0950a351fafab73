"""Lists of layers become tensors whatever their lengths are: in the text, lifted whole or in part.

What was lifted is released once, whatever becomes of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt._src.json_stream.scratch import Scratch
from tests.foreign.dialects import read
from tests.foreign.test_ragged import rows


@pytest.fixture(autouse=True)
def _all_is_released(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    held: list[int] = []
    close = Scratch.close

    def closing(scratch: Scratch) -> None:
        if not held:  # it is closed twice
            held.append(scratch._held)
        close(scratch)

    monkeypatch.setattr(Scratch, "close", closing)
    yield
    assert held == [0]


def layers(width: int) -> tuple[list[Any], list[Any]]:
    """Two matrices, and the vectors that fit them."""
    return [rows(width, 5), rows(3, width)], [rows(width), rows(3)]


def _shapes(items: list[Any]) -> list[tuple[int, ...]]:
    return [tuple(item.shape) for item in items]


#: Short enough for the text, lifted as one ragged list, and lifted item by item.
WIDTHS = pytest.mark.parametrize("width", [2, 300, 4000])


@WIDTHS
@pytest.mark.parametrize("key", ["weights", "layers", None])
def test_in_one_list(width: int, key: str | None, tmp_path: Path) -> None:
    (w, w2), (b, b2) = layers(width)
    items = [w, b, w2, b2]
    found = read(json.dumps(items if key is None else {key: items, "epoch": 3}), tmp_path)
    found = found if key is None else found[key]
    assert _shapes(found) == [(width, 5), (width,), (3, width), (3,)]
    assert torch.equal(found[2], torch.tensor(w2))


@WIDTHS
@pytest.mark.parametrize("key", ["weights", "layers", None])
def test_in_one_list_for_each_layer(width: int, key: str | None, tmp_path: Path) -> None:
    (w, w2), (b, b2) = layers(width)
    items = [[w, b], [w2, b2]]
    found = read(json.dumps(items if key is None else {key: items, "epoch": 3}), tmp_path)
    found = found if key is None else found[key]
    assert [_shapes(layer) for layer in found] == [[(width, 5), (width,)], [(3, width), (3,)]]


@WIDTHS
@pytest.mark.parametrize("holder", [None, "model"])
@pytest.mark.parametrize("alike", [False, True])
def test_weights_and_biases(width: int, holder: str | None, alike: bool, tmp_path: Path) -> None:
    """Also where all biases are of one size, and so are an array by themselves."""
    weights, biases = layers(width)
    if alike:
        weights[1], biases[1] = rows(width, 7), rows(width)
    thing: Any = {"weights": weights, "biases": biases, "cost": 0.5}
    if holder is not None:
        del thing["cost"]
        thing["other.weight"] = rows(2, 2)
    found = read(json.dumps(thing if holder is None else {holder: thing}), tmp_path)
    found = found if holder is None else found[holder]
    assert _shapes(found["weights"]) == [(width, 5), (width, 7) if alike else (3, width)]
    assert _shapes(found["biases"]) == [(width,), (width if alike else 3,)]


@WIDTHS
def test_lists_that_are_asked_for(width: int, tmp_path: Path) -> None:
    odd = [rows(width, 5), rows(width), rows(4)]
    found = read(json.dumps({"odd": odd, "more": odd}), tmp_path, tensors=["/odd/0", "/odd/2"])
    assert _shapes([found["odd"][0], found["odd"][2]]) == [(width, 5), (4,)]
    assert found["odd"][1] == odd[1]
    assert found["more"] == odd


@WIDTHS
@pytest.mark.parametrize("key", ["history", "config", "sizes"])
def test_lists_that_stay_lists(width: int, key: str, tmp_path: Path) -> None:
    (w, w2), (b, b2) = layers(width)
    thing: Any = {key: [w, b, w2, b2], "state_dict": {"a.weight": rows(2, 2), "odd": [[1.5], w]}}
    found = read(json.dumps(thing), tmp_path)
    assert found[key] == thing[key]
    assert found["state_dict"]["odd"] == thing["state_dict"]["odd"]


@pytest.mark.parametrize("count", [3, 4000])
def test_values_that_no_dtype_holds_stay_lists(count: int, tmp_path: Path) -> None:
    """The array is lifted already when its tensor cannot be made."""
    wide = [10**30] * count
    document = {
        "state_dict": {"a.weight": rows(2, 2), "b.weight": wide, "c": [[wide, wide], [1.5]]}
    }
    found = read(json.dumps(document), tmp_path)["state_dict"]
    assert (found["b.weight"], found["c"]) == (wide, document["state_dict"]["c"])
