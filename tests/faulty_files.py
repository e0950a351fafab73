"""A file system in memory, through fsspec, whose calls can be made to fail at any one of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, ClassVar

import fsspec
from fsspec.implementations.memory import MemoryFileSystem

__all__ = ["EarlyFiles", "FaultyFiles", "ForeignError", "StoreFiles"]


class ForeignError(Exception):
    """What botocore's and aiohttp's errors are like: derived from ``Exception`` alone."""


class _Fault:
    """Counts calls, and spoils the one with the number ``at``."""

    def __init__(self, at: int, error: BaseException | None, *, happens: bool) -> None:
        self.at = at
        self.error = error
        self.happens = happens
        self.calls: list[str] = []

    def __call__(self, name: str, call: Callable[[], Any]) -> Any:
        self.calls.append(name)
        if self.error is None or len(self.calls) - 1 != self.at:
            return call()
        if self.happens:
            call()
        raise self.error


_CALLS = (
    "info",
    "cat_file",
    "pipe_file",
    "rm_file",
    "cp_file",
    "makedirs",
    "exists",
    "ls",
    "mkdir",
)


class FaultyFiles(MemoryFileSystem):  # type: ignore[misc]
    """Opening a file shows it at once, as file systems with directories do."""

    protocol = ("memory", "faulty")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    fault: ClassVar[_Fault | None] = None
    _inside: ClassVar[bool] = False
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.partition("://")[2] if "://" in path else path))

    def unstrip_protocol(self, name: str) -> str:
        return f"{self.protocol[1]}://{name.lstrip('/')}"

    @classmethod
    @contextmanager
    def failing(cls, at: int, error: BaseException | None, *, happens: bool = False) -> Any:
        """Within it the call number ``at`` raises ``error``: before it is done, or after."""
        cls.fault = FaultyFiles.fault = _Fault(at, error, happens=happens)
        try:
            yield cls.fault
        finally:
            cls.fault = FaultyFiles.fault = None

    def _watched(self, name: str, call: Callable[[], Any]) -> Any:
        """One call from outside; those that it makes itself are part of it."""
        if FaultyFiles.fault is None or FaultyFiles._inside:
            return call()
        FaultyFiles._inside = True
        try:
            return FaultyFiles.fault(name, call)
        finally:
            FaultyFiles._inside = False

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        opened = self._watched("open", lambda: self._opened(path, mode, **options))
        return _Watched(self, opened) if "w" in mode else opened

    def _opened(self, path: str, mode: str, **options: Any) -> Any:
        return super().open(path, mode, **options)


class StoreFiles(FaultyFiles):
    """Files appear when they are closed, as in an object store."""

    protocol = ("s3", "faultystore")

    def _opened(self, path: str, mode: str, **options: Any) -> Any:
        if "w" not in mode or "data" in options:
            return super()._opened(path, mode, **options)
        return _Held(self, self._strip_protocol(path))


class EarlyFiles(FaultyFiles):
    """A file system of which nothing is known: a file shows as soon as it is opened."""

    protocol = ("dav", "faultydav")


def _add(name: str) -> None:
    original = getattr(MemoryFileSystem, name)

    def call(self: FaultyFiles, *args: Any, **options: Any) -> Any:
        return self._watched(name, lambda: original(self, *args, **options))

    setattr(FaultyFiles, name, call)


for _name in _CALLS:
    _add(_name)


class _Held:
    """A file that is not there yet."""

    def __init__(self, fs: FaultyFiles, path: str) -> None:
        self._fs, self._path, self._data = fs, path, bytearray()
        self.closed = False

    def write(self, data: Any) -> int:
        self._data += data
        return len(data)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            MemoryFileSystem.pipe_file(self._fs, self._path, bytes(self._data))

    def discard(self) -> None:
        self._data.clear()


class _Watched:
    """A file that is written, whose writes and whose closing can fail."""

    def __init__(self, fs: FaultyFiles, file: Any) -> None:
        self._fs, self._file = fs, file

    def write(self, data: Any) -> Any:
        return self._fs._watched("write", lambda: self._file.write(data))

    def close(self) -> None:
        self._fs._watched("close", self._file.close)

    def discard(self) -> None:
        self._file.discard()

    @property
    def closed(self) -> bool:
        return bool(self._file.closed)

    @closed.setter
    def closed(self, value: bool) -> None:
        self._file.closed = value


for _kind in (FaultyFiles, StoreFiles, EarlyFiles):
    fsspec.register_implementation(_kind.protocol[1], _kind, clobber=True)
