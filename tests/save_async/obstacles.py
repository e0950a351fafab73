"""What stands in the way of a save: one that holds it up, a call that fails."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from jsonckpt._src.save import api
from jsonckpt._src.save.write import write_checkpoint

__all__ = ["Blocked", "fail"]


class Blocked:
    """Holds up every save in the background between the copy and the first byte written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        write = write_checkpoint

        def held_up(plan: Any, target: Any, cancel: Any, began: float) -> Any:
            if threading.current_thread().name == "jsonckpt-save":
                self.reached.set()
                assert self.go.wait(30)
            return write(plan, target, cancel, began)

        patch.setattr(api, "write_checkpoint", held_up)


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing
