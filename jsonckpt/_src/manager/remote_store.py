"""The directory of a run behind a URL. An object store has no locks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import LimitError
from ..storage.lock import NoLock
from ..transfer.run_store import RemoteRun


class RemoteStore:
    """As :class:`.store.LocalStore`. Nothing keeps two managers from one run."""

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None) -> None:
        self._url = url.rstrip("/")
        self._run = RemoteRun(url, storage_options)

    def make(self) -> None:
        """The first write makes it."""

    def names(self) -> list[str]:
        return [entry.name for entry in self._run.entries()]

    def path(self, name: str) -> str:
        return self._run.path(name) if name else self._url

    def read(self, name: str, limit: int) -> bytes | None:
        try:
            return self._run.read(name, limit)
        except LimitError:
            return b""  # no history is so long: it is damaged

    def write(self, name: str, data: bytes, *, sync: bool) -> None:
        del sync
        self._run.write(name, data)

    def exists(self, name: str) -> bool:
        if "/" not in name:
            return name in self.names()
        try:
            return self._run.read(name, 0) is not None
        except LimitError:
            return True

    def is_link(self, name: str) -> bool:
        del name
        return False

    def tidy(self, name: str) -> None:
        """A write that was killed has left nothing that can be told from one in progress."""

    def lock(self, name: str, *, shared: bool) -> NoLock:
        del name, shared
        return NoLock()

    def remove_step(self, name: str) -> bool:
        self._run.remove_step(name)
        return True
