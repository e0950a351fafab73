"""Trees without what was lost, and states made of the names alone."""

from __future__ import annotations

import dataclasses
import functools
import operator
import warnings
from typing import Any

import pytest

import jsonckpt
from jsonckpt._src.load.api import load_container
from jsonckpt._src.load.container import open_container
from jsonckpt._src.load.options import ReadOptions
from jsonckpt._src.load.selection import TensorSelection
from jsonckpt._src.state.prune import named_state, prune
from jsonckpt._src.state.references import references_in
from tests.golden.make_v1 import FOLDER
from tests.support import difference


@pytest.mark.parametrize(
    "name", ["shared.json", "numpy.json", "torch.json", "tensors.json", "plain", "gpt2-adamw.json"]
)
def test_pruning_is_what_exclude_does(name: str) -> None:
    """On golden states: a record is lost, or its tensors are left out of a load.

    At first none is lost, which is all there is to see where a state has no records.
    """
    path = FOLDER / name
    container = open_container(path, ReadOptions())
    tree = container.manifest.state
    records = {reference.name: reference.record for reference in references_in(tree)}
    some = list(container.manifest.by_name)[:: 1 + len(container.manifest.by_name) // 9]
    for gone in [None, *some]:
        pruned = prune(tree, functools.partial(operator.ne, gone))
        lacking = dataclasses.replace(
            container, manifest=dataclasses.replace(container.manifest, state=pruned)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
            found = load_container(lacking, TensorSelection.of())
            expected = jsonckpt.load(path, exclude=lambda name, gone=gone: records[name] == gone)
        assert difference(expected, found) is None


def test_pruning_keeps_the_parents() -> None:
    tree: Any = {
        "a": {"$tuple": [{"$tensor": "/a/0"}, 1]},
        "b": {"$parameter": {"data": {"$tensor": "/b"}, "requires_grad": True}},
        "c": {"$dict": [[0, {"$tied": {"name": "/c/0", "of": "/b"}}], [1, 2]]},
        "d": {"$ordered_dict": {"items": {"x": {"$tensor": "/d/x"}}, "metadata": {"v": 1}}},
        "e": {"$deque": {"items": [{"$tensor": "/e/0"}], "maxlen": None}},
        "f": {"$mine": {"w": {"$tensor": "/f"}, "n": 1}},
        "g": {"x": {"$tensor": "/g/x"}, "$y": 1},
        "h": {"$path": "p"},
    }
    assert prune(tree, lambda _: True) == tree
    assert prune(tree, lambda _: False) == {
        "a": {"$tuple": [1]},
        "c": {"$dict": [[1, 2]]},
        "d": {"$ordered_dict": {"items": {}, "metadata": {"v": 1}}},
        "e": {"$deque": {"items": [], "maxlen": None}},
        "g": {"$dict": [["$y", 1]]},
        "h": {"$path": "p"},
    }
    assert prune({"$tensor": ""}, lambda _: False) is None


def test_states_of_names() -> None:
    assert named_state([""]) == {"$tensor": ""}
    assert named_state(["/a/b~1c", "/a/d"]) == {
        "a": {"b/c": {"$tensor": "/a/b~1c"}, "d": {"$tensor": "/a/d"}}
    }
    tree: Any = named_state(["/a", "/a/b", "$storage/0", "/" * 900, ""])
    assert dict(tree["$dict"]) == {
        name: {"$tensor": full}
        for name, full in [
            ("a", "/a"),
            ("/a/b", "/a/b"),
            ("$storage/0", "$storage/0"),
            ("/" * 900, "/" * 900),
            ("", ""),
        ]
    }
