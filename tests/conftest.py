"""Every small file that a test saves through ``jsonckpt.save`` must follow the JSON Schemas."""

from __future__ import annotations

import functools
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from tests.schemas import SMALL, checkpoint_files, validate_checkpoint, validate_text


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
