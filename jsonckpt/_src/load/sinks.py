"""Sinks that pass a record's bytes on to other sinks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..storage.protocols import Sink


@dataclass(frozen=True, slots=True)
class PartSink:
    """Passes the raw bytes ``[start, stop)`` of a record on to ``sink``, which begins at ``start``.

    ``on_write`` is called before the sink's memory is changed or returned.
    """

    sink: Sink
    start: int
    stop: int
    on_write: Callable[[], None] | None = None

    def window(self, start: int, stop: int) -> memoryview | None:
        """The sink's own memory, if the bytes are inside the part."""
        if start < self.start or stop > self.stop:
            return None
        if self.on_write is not None:
            self.on_write()
        return self.sink.window(start - self.start, stop - self.start)

    def write(self, start: int, data: memoryview) -> None:
        """Pass on the bytes that are inside the part."""
        first, last = max(start, self.start), min(start + len(data), self.stop)
        if first >= last:
            return
        part = data[first - start : last - start]
        window = self.window(first, last)
        if window is None:
            self.sink.write(first - self.start, part)
        else:
            window[:] = part


@dataclass(frozen=True, slots=True)
class TeeSink:
    """Copies a record's bytes to several parts."""

    parts: Sequence[PartSink]

    def window(self, start: int, stop: int) -> None:
        """``None``: the parts have no common memory."""

    def write(self, start: int, data: memoryview) -> None:
        """Copy to each part the bytes that belong to it."""
        for part in self.parts:
            part.write(start, data)
