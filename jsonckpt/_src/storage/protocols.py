"""The interfaces of files, sources and sinks, local or remote."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from ..format.model import Layout


class ByteSource(Protocol):
    """Bytes that come in order. ``size`` is the size of the file on disk, if it is known."""

    @property
    def size(self) -> int | None: ...

    def readinto(self, buffer: memoryview, /) -> int:
        """Fill the front of ``buffer``; returns the number of bytes, 0 at the end."""


class RawSource(Protocol):
    """A tensor to be written."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def layout(self) -> Layout: ...

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)``."""


class Sink(Protocol):
    """Takes the raw bytes of one tensor."""

    def window(self, start: int, stop: int) -> memoryview | None:
        """Memory for the raw bytes ``[start, stop)``, or ``None`` if :meth:`write` takes them."""

    def write(self, start: int, data: memoryview) -> None:
        """Take raw bytes that have no window."""


class RangeReader(Protocol):
    """A file that can be read anywhere, from several threads."""

    @property
    def size(self) -> int:
        """Bytes of the file."""

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` with the bytes from ``offset`` on; raises if the file ends before."""


class PlannedReader(RangeReader, Protocol):
    """A file that may fetch ahead what will be read."""

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """These ranges ``(start, stop)`` will be read next, each once, about in this order."""


class WritableFile(Protocol):
    """A new file that takes bytes at offsets."""

    def write_at(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write the buffers one after the other from ``offset`` on."""

    def finish(self, *, sync: bool) -> None:
        """Close it; with ``sync``, make it durable first."""


class Output(Protocol):
    """Takes the text of a shard. ``ordered``: it must come in order, from one thread."""

    ordered: bool
    written: int

    def put(self, offset: int, buffers: Sequence[Any]) -> None:
        """Take text that belongs at ``offset``."""

    def end(self, length: int) -> None:
        """The text is complete; it has ``length`` bytes."""


class _OpenFile(RangeReader, AbstractContextManager["RangeReader"], Protocol):
    pass


class _OpenStream(ByteSource, AbstractContextManager["ByteSource"], Protocol):
    pass


class Location(Protocol):
    """A directory with the files of a checkpoint, local or remote."""

    def manifest(self, limit: int | None) -> bytes: ...
    def where(self, name: str) -> str: ...
    def version_tag(self, name: str) -> object: ...
    def was_replaced(self, name: str, tag: object) -> bool: ...
    def expect_files(self, names: Iterable[str]) -> None: ...
    def ranged(self, name: str) -> bool: ...
    def compressed(self, name: str) -> bool: ...
    def file(self, name: str) -> Any: ...
    def stream(self, name: str, *, zstd_window: int | None) -> Any: ...
