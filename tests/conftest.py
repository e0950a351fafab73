"""For all tests: how much Hypothesis draws, and a look at every small file that is saved.

Hypothesis draws a quarter of the examples by default; ``--hypothesis-profile=full`` draws all. A
busy machine is no failure: there are no deadlines.

Two processes run the tests, and torch has as many threads as cores in each: they must not spin
while they wait for each other.
"""

from __future__ import annotations

import functools
import gc
import io
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

import jsonckpt
from tests.schemas import SMALL, checkpoint_files, validate_checkpoint, validate_text

_SLOW_MACHINES = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile("full", deadline=None, suppress_health_check=_SLOW_MACHINES)
settings.register_profile("quick", settings.get_profile("full"), max_examples=25)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """Keep Python's collector from walking ten thousand test items again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def saved_files_follow_the_schemas() -> Iterator[None]:
    """Look at what ``jsonckpt.save`` has written, as long as it is small."""
    save = jsonckpt.save

    @functools.wraps(save)
    def save_and_validate(state: object, path: Any, **options: Any) -> Any:
        start = path.tell() if isinstance(path, io.BytesIO) else 0
        result = save(state, path, **options)
        if isinstance(path, io.BytesIO):
            if path.tell() - start < SMALL:
                validate_text(path.getvalue()[start:], "what was saved")
        elif isinstance(path, str | os.PathLike) and "://" not in os.fspath(path):
            written = Path(path)
            if sum(file.stat().st_size for file in checkpoint_files(written)) < SMALL:
                validate_checkpoint(written)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jsonckpt, "save", save_and_validate)
        yield
