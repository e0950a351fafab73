"""Statistics of tensors: one pass, chunk by chunk, in bounded memory.

The elements of a dtype of at most 16 bits are counted by their bit pattern. All else follows from
these counts. Wider elements are taken in blocks. Blocks are joined in the order of the tensor,
whatever thread decoded them, so that the result does not depend on threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import mul

import numpy as np
from numpy.typing import NDArray

from ..format.dtypes import DTYPES
from ..format.model import Entry, Part, Stored, Whole, contiguous_stride
from ..load.container import Container
from ..load.sinks import MovedSink, RegionSink
from ..storage.protocols import Sink
from .element_values import (
    Numbers,
    has_pattern_table,
    numbers_of,
    pattern_values,
    smallest_normal,
)
from .histogram import FineBins, Histogram
from .moments import Moments, join_all

#: Numbers of a block: their float64 copies stay in a processor's cache.
_BLOCK = 1 << 15
#: Counting bit patterns pays for tensors of more elements than this.
_FEW = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorStatistics:
    """What the elements of a tensor are like. Of complex numbers the magnitudes are taken.

    Everything but the counts is about the finite elements, and ``None`` where there are none.

    Attributes:
        count: elements; a byte of ``float4_e2m1fn_x2`` has two.
        nans, positive_infs, negative_infs, zeros: how many elements are these.
        denormals: elements that are not zero but below the dtype's smallest normal number.
        min, max: exact; integers for dtypes of integers.
        mean: the mean.
        std: the standard deviation, divided by the number of elements.
        norm: the L2 norm; infinite if it is over the range of float64.
        histogram: of at most 64 intervals.
    """

    count: int
    nans: int
    positive_infs: int
    negative_infs: int
    zeros: int
    denormals: int
    min: float | int | None
    max: float | int | None
    mean: float | None
    std: float | None
    norm: float | None
    histogram: Histogram

    @property
    def infs(self) -> int:
        """How many elements are infinite."""
        return self.positive_infs + self.negative_infs

    @property
    def finite(self) -> int:
        """How many elements are finite."""
        return self.count - self.nans - self.infs

    @property
    def is_constant(self) -> bool:
        """Whether there are two elements or more, all of one finite value."""
        return self.count > 1 and self.finite == self.count and self.min == self.max


class Accumulator:
    """Takes numbers piece by piece; :meth:`result` says what they are like.

    Args:
        smallest_normal: smaller magnitudes are denormal.

    >>> accumulator = Accumulator()
    >>> accumulator.add(np.array([1.0, 3.0, np.nan]))
    >>> accumulator.add(np.array([0.0, 4.0]))
    >>> found = accumulator.result()
    >>> found.mean, found.min, found.max, found.nans, found.zeros
    (2.0, 0.0, 4.0, 1, 1)
    """

    def __init__(self, smallest_normal: float = 0.0) -> None:
        self._normal = smallest_normal
        self._count = self._nans = self._above = self._below = self._zeros = self._denormals = 0
        self._min: float | int | None = None
        self._max: float | int | None = None
        self._moments: list[tuple[int, Moments]] = []
        self._bins = FineBins()

    def add(self, numbers: Numbers, counts: NDArray[np.int64] | None = None) -> None:
        """Take numbers of any kind and shape; ``counts`` says how often each is there."""
        flat = numbers.reshape(-1)
        place = self._count
        if counts is not None:
            self._add_block(flat, counts, place)
            return
        for begin in range(0, len(flat), _BLOCK):
            self._add_block(flat[begin : begin + _BLOCK], None, place + begin)

    def _add_block(self, numbers: Numbers, counts: NDArray[np.int64] | None, place: int) -> None:
        self._count += len(numbers) if counts is None else int(counts.sum())
        if numbers.dtype.kind in "fc":
            numbers, counts = self._finite(numbers, counts)
        if counts is not None:
            present = counts > 0
            numbers, counts = numbers[present], counts[present]
        if not len(numbers):
            return
        low, high = numbers.min().item(), numbers.max().item()
        self._min = low if self._min is None else min(self._min, low)
        self._max = high if self._max is None else max(self._max, high)
        self._zeros += _how_many(numbers == 0, counts)
        wide = numbers.astype(np.float64)
        if self._normal and low < self._normal and high > -self._normal:
            tiny = (wide < self._normal) & (wide > -self._normal) & (wide != 0)
            self._denormals += _how_many(tiny, counts)
        moments = Moments.of(wide, counts)
        self._bins.add(wide, moments.largest, counts)
        self._moments.append((place, moments))

    def _finite(
        self, numbers: Numbers, counts: NDArray[np.int64] | None
    ) -> tuple[Numbers, NDArray[np.int64] | None]:
        """The finite ones; the others are counted. Complex numbers become magnitudes."""
        finite = np.isfinite(numbers)
        if not finite.all():
            is_nan = np.isnan(numbers)
            real = numbers.real
            nans = _how_many(is_nan, counts)
            above = _how_many(~finite & ~is_nan & ~(real == -np.inf), counts)
            self._nans += nans
            self._above += above
            self._below += _how_many(~finite, counts) - nans - above
            numbers = numbers[finite]
            counts = counts if counts is None else counts[finite]
        if numbers.dtype.kind == "c":
            with np.errstate(over="ignore"):
                wide = np.abs(numbers.astype(np.complex128))
            numbers = np.minimum(wide, np.finfo(np.float64).max)
        return numbers, counts

    def merge(self, other: Accumulator, start: int | None = None) -> None:
        """Take what another one has taken. The other one is not used afterwards.

        Args:
            start: the place of its first number, where pieces come out of order. By default its
                numbers come after those that are here.
        """
        place = self._count if start is None else start
        for name in ("_count", "_nans", "_above", "_below", "_zeros", "_denormals"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        lows = [low for low in (self._min, other._min) if low is not None]
        highs = [high for high in (self._max, other._max) if high is not None]
        self._min, self._max = min(lows, default=None), max(highs, default=None)
        self._moments += [(place + begin, moments) for begin, moments in other._moments]
        self._bins.merge(other._bins)

    def result(self) -> TensorStatistics:
        """What the numbers are like."""
        total = join_all([part for _, part in sorted(self._moments, key=lambda item: item[0])])
        known = total.count > 0
        return TensorStatistics(
            count=self._count,
            nans=self._nans,
            positive_infs=self._above,
            negative_infs=self._below,
            zeros=self._zeros,
            denormals=self._denormals,
            min=self._min,
            max=self._max,
            mean=total.actual_mean if known else None,
            std=total.std if known else None,
            norm=total.norm if known else None,
            histogram=self._bins.result(),
        )


def _how_many(mask: NDArray[np.bool_], counts: NDArray[np.int64] | None) -> int:
    return int(np.count_nonzero(mask)) if counts is None else int(counts[mask].sum())


class StatisticsSink:
    """A sink that keeps statistics in place of the bytes. Threads may write at the same time.

    Args:
        dtype: of the tensor, a name of the format.
        nbytes: raw bytes of the tensor.
        done: called with the result when all bytes have come.
        also: called with ``(place, numbers)`` by one thread at a time, in any order. ``place`` is
            that of the first number, in raw bytes.
    """

    def __init__(
        self,
        dtype: str,
        nbytes: int,
        done: Callable[[TensorStatistics], None],
        also: Callable[[int, Numbers], None] | None = None,
    ) -> None:
        self._dtype, self._left, self._done, self._also = dtype, nbytes, done, also
        self._lock = threading.Lock()
        #: Made with the first bytes: there are as many sinks as tensors, and each has bins.
        self._accumulator: Accumulator | None = None
        self._patterns: NDArray[np.int64] | None = None
        self._by_pattern = has_pattern_table(dtype) and nbytes > _FEW
        if not nbytes:
            done(Accumulator().result())

    def window(self, start: int, stop: int) -> None:
        """``None``: the bytes are not kept."""

    def write(self, start: int, data: memoryview) -> None:
        """Take raw bytes, whole elements."""
        numbers, piece, patterns = None, None, None
        if self._also is not None or not self._by_pattern:
            numbers = numbers_of(self._dtype, data)
        if self._by_pattern:
            patterns = self._count(data)
        elif numbers is not None:
            piece = Accumulator(smallest_normal(self._dtype))
            piece.add(numbers)
        with self._lock:
            if patterns is not None:
                self._patterns = patterns if self._patterns is None else self._patterns + patterns
            if piece is not None:
                self._taken().merge(piece, start)
            if self._also is not None and numbers is not None:
                self._also(start, numbers)
            self._left -= len(data)
            if not self._left:
                self._finish()

    def _count(self, data: memoryview) -> NDArray[np.int64]:
        bits = np.frombuffer(data, np.uint8 if DTYPES[self._dtype].itemsize == 1 else np.uint16)
        return np.bincount(bits, minlength=1 << (8 * bits.itemsize))

    def _finish(self) -> None:
        """Make the result, and give the memory back: other sinks may live longer."""
        if self._patterns is not None:
            values = pattern_values(self._dtype)
            times = len(values) // len(self._patterns)
            self._taken().add(values, np.repeat(self._patterns, times))
            self._patterns = None
        self._done(self._taken().result())
        self._accumulator = None

    def _taken(self) -> Accumulator:
        if self._accumulator is None:
            self._accumulator = Accumulator(smallest_normal(self._dtype))
        return self._accumulator


def read_statistics(
    container: Container,
    chosen: Callable[[str], bool] = lambda _: True,
    advance: Callable[[int], None] | None = None,
    also: Callable[[Stored], Callable[[int, Numbers], None] | None] = lambda _: None,
) -> dict[str, TensorStatistics]:
    """Read records of a container, each file once, and say what their elements are like.

    Args:
        chosen: whether a record, by its name, is read.
        advance: called with the raw bytes that are done.
        also: gives a function that takes the numbers of a record, too: ``(place, numbers)``, where
            ``place`` is that of the first number in raw bytes.

    Returns:
        By record name, in the order of the manifest.

    Raises:
        JsonckptError: a record cannot be read, or its bytes are not those that were saved.
    """
    found: dict[str, TensorStatistics] = {}
    parts = {
        part.entry.name: (part, whole)
        for whole in container.manifest.wholes.values()
        if chosen(whole.name)
        for part in whole.parts
    }
    made: dict[str, tuple[Sink, bool]] = {}

    def sink_of(entry: Entry) -> Sink:
        part, whole = parts.get(entry.name, (None, None))
        stored = whole or entry
        if stored.name not in made:
            watch, done = also(stored), partial(found.__setitem__, stored.name)
            made[stored.name] = (
                StatisticsSink(stored.dtype, stored.nbytes, done, watch),
                watch is not None,
            )
        sink, is_watched = made[stored.name] if whole else made.pop(stored.name)
        if part is None or whole is None:
            return sink
        # Only who takes the numbers, too, needs their true places.
        return RegionSink(sink, whole, part) if is_watched else MovedSink(sink, _begin(part, whole))

    for shard in container.shards():
        sinks: dict[str, Sink | None] = {
            entry.name: sink_of(entry)
            for entry in shard.entries
            if entry.name in parts or chosen(entry.name)
        }
        shard.read(sinks, advance)
    names = [entry.name for entry in container.manifest.entries]
    names += container.manifest.wholes
    return {name: found[name] for name in names if name in found}


def _begin(part: Part, whole: Whole) -> int:
    """The place of a region's first element, in raw bytes of the tensor."""
    steps = contiguous_stride(whole.shape)
    elements: int = sum(map(mul, part.offset, steps))
    return elements * DTYPES[whole.dtype].itemsize
