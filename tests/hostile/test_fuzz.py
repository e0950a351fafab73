"""Lies at random, told consistently: every reader gives the same verdict and none crashes.

Each forgery changes a few things of a good checkpoint (members, payloads, ranges, lines, bytes) and
is written with checksums that fit. ``JSONCKPT_FUZZ=100000`` asks for that many, beginning after
``JSONCKPT_SEED``.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from tests.hostile.cases import write
from tests.hostile.forge import Forgery, good
from tests.readers import readers_for
from tests.support import difference
from tools.reliability.common import memory_directory
from tools.reliability.mutations import MUTATIONS

COUNT = int(os.environ.get("JSONCKPT_FUZZ", "150"))
SEED = int(os.environ.get("JSONCKPT_SEED", "0"))


def forged(seed: int) -> Forgery:
    """The forgery of a seed."""
    chance = random.Random(seed)
    forgery = good("sha256" if chance.random() < 0.1 else "xxh3_128")
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        chance.choice(MUTATIONS)(chance, forgery)
    return forgery


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where there is one."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        yield Path(directory)


@pytest.mark.parametrize("form", ["directory", "single", "zst", "directory_zst"])
def test_readers_agree(form: str, memory: Path) -> None:
    verdicts = {"accepted": 0, "refused": 0}
    for seed in range(SEED, SEED + COUNT):
        directory = memory / str(seed)
        directory.mkdir()
        try:
            path = write(forged(seed), form, directory)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
            continue  # a lie that the forger cannot tell
        found: dict[str, Any] = {}
        messages: list[str] = []
        for name, reader in readers_for(path).items():
            try:
                found[name] = reader(path)
            except jsonckpt.JsonckptError as error:
                messages.append(str(error))
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {form}, {name}: {error!r}") from error
        for message in messages:
            assert message.isprintable(), f"seed {seed}: {message}"
            assert len(message) < 2_000, f"seed {seed}: {message}"
        expected = len(readers_for(path))
        assert len(found) in (0, expected), f"seed {seed}, {form}: only {list(found)} load it"
        states = list(found.values())
        for state in states[1:]:
            assert difference(states[0], state) is None, f"seed {seed}, {form}"
        verdicts["accepted" if states else "refused"] += 1
    # Some changes mean nothing (the order of records, another metadata), most are refused.
    assert verdicts["refused"] > COUNT / 3
    assert verdicts["accepted"] > 0
