"""``jsonckpt.diff`` finds a difference exactly where the loaded states differ."""

from __future__ import annotations

import copy
import random
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from tests import states, tensor_states
from tests.support import FakeTensor, difference, examples

LEAVES = st.one_of(
    tensor_states.tensors(), states.leaves.filter(lambda value: type(value) is not FakeTensor)
)
ANY = st.recursive(LEAVES, states.containers, max_leaves=12).map(lambda value: {"x": value, "n": 1})


def changed(state: Any, choose: random.Random) -> Any:
    """A copy in which one place is another, mostly."""
    state = copy.deepcopy(state)
    found: list[tuple[Any, Callable[[Any], None]]] = []

    def look(value: Any, put: Callable[[Any], None]) -> None:
        found.append((value, put))
        if isinstance(value, dict | list):
            for key in list(value if isinstance(value, dict) else range(len(value))):
                look(value[key], partial(value.__setitem__, key))

    look(state, lambda _: None)
    value, put = choose.choice(found)
    if isinstance(value, torch.Tensor):
        put(value.clone() if choose.random() < 0.5 else [value])
    elif isinstance(value, dict) and value:
        key = choose.choice(list(value))
        moved = value.pop(key)
        if choose.random() < 0.7:
            value[key if choose.random() < 0.5 else 1] = moved
    elif isinstance(value, list):
        put(tuple(value) if choose.random() < 0.5 else [*value, 0])
    elif isinstance(value, int) and value.bit_length() < 50:
        put(choose.choice([float(value), value + 1, bool(value)]))
    return state


@settings(max_examples=examples(60))
@given(ANY | tensor_states.states, st.randoms(use_true_random=False))
def test_a_difference_is_found_where_the_loaded_states_differ(
    state: Any, choose: random.Random
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        a, b = f"{directory}/a", f"{directory}/b"
        try:
            jsonckpt.save(state, a)
            jsonckpt.save(changed(state, choose), b)
            loaded = jsonckpt.load(a), jsonckpt.load(b)
        except jsonckpt.JsonckptError:
            return  # such a state cannot be saved
        found = jsonckpt.diff(a, b, stats=True)
        # What is tied is a difference here, but the comparison of loaded states does not see it.
        if {change.kind for change in found.changes} != {"sharing"}:
            assert bool(found) == (difference(*loaded) is not None), str(found)
