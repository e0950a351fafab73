"""States that no save writes: the report raises only errors of its own."""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.inspect.facts import facts_of
from jsonckpt._src.load.container import open_container
from jsonckpt._src.load.options import ReadOptions
from jsonckpt._src.report.collect import Collected, collect
from jsonckpt._src.report.compare import Compared, changed_values
from jsonckpt._src.report.data import data_of
from jsonckpt._src.report.page import build

from ..support import examples
from .states import ATTACKS, saved, training_state

TAGS = re.findall(
    r"\S+",
    "$tensor $tied $view $parameter $requires_grad $sparse $quantized $tuple $set $dict $counter "
    "$ordered_dict $defaultdict $deque $int $float $complex $str $bytes $range $ndarray $scalar "
    "$dtype $namespace $Own",
)
KEYS = re.findall(
    r"\S+",
    "state param_groups lr betas params param_names exp_avg exp_avg_sq step epoch history loss rng "
    "last_epoch _last_lr scale growth_factor name of items shape dtype 0 1 -1",
)
LEAVES: list[Any] = [
    None, True, 0, -1, 10**400, 1e308, -0.0, "", "/w", "0x1", "NaN", "x" * 9_999, [], {},
    {"$float": "Infinity"}, {"$tensor": "/w"}, {"$int": "0x" + "f" * 500}, *ATTACKS,
]  # fmt: skip


def odd_states(count: int) -> Iterator[Any]:
    source = random.Random(15)

    def value(depth: int) -> Any:
        kind = source.randrange(5 if depth else 1)
        if kind == 0:
            return source.choice(LEAVES)
        if kind == 1:
            return [value(depth - 1) for _ in range(source.randrange(5))]
        if kind == 2:
            return {source.choice(TAGS): value(depth - 1)}
        names = [source.choice(KEYS + ATTACKS) for _ in range(source.randrange(6))]
        return {name: value(depth - 1) for name in names}

    for _ in range(count):
        yield {
            "optimizer": {"state": value(4), "param_groups": [value(4)]},
            "history": value(4),
            **({} if source.randrange(3) else {"step": value(1), "epoch": value(1)}),
            "any": value(5),
        }


def test_odd_states(tmp_path: Path) -> None:
    """What references say wrongly is an error; all else is shown."""
    container = open_container(saved(tmp_path / "c", {"w": torch.ones(3)}), ReadOptions())
    usual = collect(container, facts_of(container.manifest), pictures=True)
    made = 0
    for state in odd_states(examples(2_000)):
        try:
            facts = facts_of(replace(container.manifest, state=state))
        except jsonckpt.JsonckptError:
            continue
        odd = Collected(facts, usual.statistics, usual.pictures)
        compared = Compared((), tuple(changed_values(usual, odd)))
        for read in ([odd], [usual, odd], [odd, usual, odd]):
            page = build(data_of(read, compared if len(read) == 2 else None, made_by="a test"))
        assert page.count("<script") == 2
        made += 1
    assert made > 50


def test_numbers_that_no_float_holds(tmp_path: Path) -> None:
    state = {**training_state(1), "step": 10**400, "epoch": math.nan}
    paths = [saved(tmp_path / str(at), state) for at in range(3)]
    for many in (paths[:1], paths):
        found = jsonckpt.report(many).html
        assert json.dumps("state") in found


@pytest.mark.parametrize("cut", [0, 1, 40, 400, -200, -1])
def test_a_file_that_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = saved(tmp_path / "c.json", {"w": torch.ones(3)})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.report(path)
