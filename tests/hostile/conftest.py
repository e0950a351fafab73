"""What the hostile tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.hostile.runner import Child


@pytest.fixture(scope="session")
def child() -> Iterator[Child]:
    """The process that loads hostile files."""
    process = Child()
    yield process
    process.close()
