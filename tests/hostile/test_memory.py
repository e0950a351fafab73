"""What a load leaves behind in memory: nothing."""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path

import pytest

import jsonckpt
from tests.hostile.cases import write
from tests.hostile.forge import Forgery, good
from tests.readers import readers_for


def _bad() -> Forgery:
    forgery = good()
    forgery["/w"].sums[1] = "ab" * 16
    return forgery


@pytest.mark.parametrize("form", ["directory", "single", "zst"])
@pytest.mark.parametrize("forgery", [good(), _bad()], ids=["good", "bad"])
def test_no_reader_outlives_its_load(form: str, forgery: Forgery, tmp_path: Path) -> None:
    """Not even until the next garbage collection.

    ijson's C objects are unknown to the collector: a cycle through one, with the whole skeleton of
    the checkpoint in it, would stay for as long as the process.
    """
    path = write(forgery, form, tmp_path)
    gc.collect()
    gc.disable()
    try:
        for reader in readers_for(path).values():
            with contextlib.suppress(jsonckpt.IntegrityError):
                reader(path)
        parsers = {"RunParser", "ShardParser"}
        alive = [kind for kind in map(type, gc.get_objects()) if kind.__name__ in parsers]
        assert not alive
    finally:
        gc.enable()
