"""Sinks that pass a record's bytes on to other sinks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..boxes import row_boxes, with_a_dimension
from ..format.dtypes import DTYPES
from ..format.model import Part, Whole, contiguous_stride
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


@dataclass(frozen=True, slots=True)
class MemorySink:
    """A sink over existing memory."""

    memory: NDArray[np.uint8]

    def window(self, start: int, stop: int) -> memoryview:
        """The memory itself."""
        return self.memory[start:stop].data

    def write(self, start: int, data: memoryview) -> None:
        """Copy to the memory."""
        self.memory[start : start + len(data)] = np.frombuffer(data, np.uint8)


@dataclass(frozen=True, slots=True)
class RegionSink:
    """Passes a region's bytes on to a sink of the whole tensor, run by run in row-major order."""

    sink: Sink
    whole: Whole
    part: Part

    def window(self, start: int, stop: int) -> None:
        """``None``: the bytes are not in one piece of the tensor."""

    def write(self, start: int, data: memoryview) -> None:
        """Pass on each run."""
        itemsize = DTYPES[self.whole.dtype].itemsize
        shape, offset, size = with_a_dimension(
            self.whole.shape, self.part.offset, self.part.entry.shape
        )
        steps = contiguous_stride(shape)
        # The first dimension of which a run has a part: it has all of those after it.
        inner = len(shape) - 1
        while inner and size[inner] == shape[inner]:
            inner -= 1
        first = start // itemsize
        for ranges, done in row_boxes(size, first, first + len(data) // itemsize):
            low, high = ranges[inner]
            run = (high - low) * math.prod(size[inner + 1 :]) * itemsize
            at = done * itemsize
            for index in itertools.product(*(range(*one) for one in ranges[:inner])):
                place = sum((i + o) * step for i, o, step in zip((*index, low), offset, steps))
                self.sink.write(place * itemsize, data[at : at + run])
                at += run


@dataclass(frozen=True, slots=True)
class MovedSink:
    """Passes a record's bytes on as if they began at ``base``, whatever their true places are."""

    sink: Sink
    base: int

    def window(self, start: int, stop: int) -> memoryview | None:
        """The other sink's memory."""
        return self.sink.window(self.base + start, self.base + stop)

    def write(self, start: int, data: memoryview) -> None:
        """Pass on."""
        self.sink.write(self.base + start, data)
