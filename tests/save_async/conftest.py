"""What the tests of ``save_async`` share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jsonckpt._src.save import api
from tests.save_async.obstacles import Blocked


@pytest.fixture(autouse=True)
def nothing_under_way() -> Iterator[None]:
    """No test leaves a save, or an error, to the next one."""
    yield
    api._background.run_next(lambda: None)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    made = Blocked(monkeypatch)
    yield made
    made.go.set()
