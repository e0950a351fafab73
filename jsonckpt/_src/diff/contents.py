"""The bytes of tensors on both sides: whether they are the same, and parts of them to compare.

Parts of 1 MiB, or one chunk, are in memory at a time. A compressed file gives no parts, so its
tensors go through a temporary file without a name; so does a view with gaps.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

import numpy as np
from numpy.typing import NDArray

from ..errors import FormatError
from ..format.dtypes import DTYPES
from ..format.model import Stored, Whole, entries_of, parts_of
from ..inspect.facts import TensorFacts
from ..load.container import Container, Shard
from ..load.sinks import MemorySink, RegionSink
from ..storage.os_errors import writing
from ..storage.protocols import Sink

Bytes = NDArray[np.uint8]
_PART = 1 << 20


def same_checksums(
    algorithms: tuple[str, str], before: TensorFacts, after: TensorFacts
) -> bool | None:
    """Whether stored checksums say that two tensors have the same bytes.

    Returns:
        ``None`` if they do not decide: other algorithms, other chunks, or other parts of records.
    """
    part = [(t.kind == "view", t.stride, t.offset, t.dtype) for t in (before, after)]
    if algorithms[0] != algorithms[1] or part[0] != part[1]:
        return None
    one, two = before.entry, after.entry
    if one.nbytes != two.nbytes or one.dtype != two.dtype:
        return None
    if _pieces(one) != _pieces(two):
        return None
    sums = [[c[2] for each in entries_of(stored) for c in each.chunks] for stored in (one, two)]
    same = sums[0] == sums[1]
    # Another record says nothing of the part that a view takes of it.
    return None if not same and before.kind == "view" else same


def _pieces(stored: Stored) -> list[object]:
    """What the checksums of a tensor are of. One chunk holds all, however large chunks may be."""
    return [
        (
            part.offset,
            part.entry.shape if isinstance(stored, Whole) else None,
            part.entry.codec.chunk_bytes if len(part.entry.chunks) > 1 else len(part.entry.chunks),
        )
        for part in parts_of(stored)
    ]


class Contents:
    """The bytes of the tensors of one checkpoint, in row-major order. A context manager.

    Args:
        tensors: those that will be asked for. Files without ranges are read once for all of them.
    """

    def __init__(self, container: Container, tensors: Iterable[TensorFacts]) -> None:
        self._container = container
        #: Records that are in the temporary file, or will be.
        self._spooled: dict[str, Bytes] = {}
        self._filled: set[str] = set()
        by_shard: dict[int, list[TensorFacts]] = {}
        for tensor in tensors:
            for number in {entry.shard for entry in entries_of(tensor.entry)}:
                by_shard.setdefault(number, []).append(tensor)
        forward: list[list[Stored]] = []
        entries: dict[str, Stored] = {}
        for number, wanted in by_shard.items():
            shard = Shard(container, number)
            shard.check_file()
            if not shard.is_ranged:
                forward.append([tensor.entry for tensor in wanted])
            some = [one for one in wanted if not (shard.is_ranged and one.is_row_major)]
            entries |= {one.entry.name: one.entry for one in some}
        start = 0
        # One file for all: a process may open about a thousand.
        self._file, memory = _temporary(sum(entry.nbytes for entry in entries.values()))
        for name, entry in entries.items():
            self._spooled[name] = memory[start : start + entry.nbytes]
            start += entry.nbytes
        for each in forward:
            self._fill(each)

    def _fill(self, tensors: Iterable[Stored]) -> None:
        """Read tensors into the temporary file, each file in one pass."""
        by_shard: dict[int, dict[str, Sink | None]] = {}
        for stored in tensors:
            if stored.name in self._filled:
                continue
            self._filled.add(stored.name)
            memory = MemorySink(self._spooled[stored.name])
            for part in parts_of(stored):
                sink = RegionSink(memory, stored, part) if isinstance(stored, Whole) else memory
                by_shard.setdefault(part.entry.shard, {})[part.entry.name] = sink
        for number, sinks in by_shard.items():
            Shard(self._container, number).read(sinks)

    def __enter__(self) -> Contents:
        return self

    def __exit__(self, *_: object) -> None:
        self._spooled.clear()
        self._file.close()

    def parts(self, tensor: TensorFacts, step: int) -> Iterator[Bytes]:
        """The raw bytes of a tensor in parts of ``step`` bytes.

        Raises:
            JsonckptError: they cannot be read, or are not those that were saved.
        """
        entry, start = tensor.entry, 0
        if tensor.kind == "view":
            itemsize = DTYPES[tensor.dtype].itemsize
            start = tensor.offset * itemsize
            if not tensor.is_row_major:
                file, gathered = _temporary(tensor.nbytes)
                with file:
                    self._gather(tensor, gathered)
                    yield from _cut(gathered, step)
                return
            if start + tensor.nbytes > entry.nbytes:
                raise FormatError("the view leaves its record", tensor=tensor.name)
        if entry.name in self._filled:
            yield from _cut(self._spooled[entry.name][start : start + tensor.nbytes], step)
            return
        memory = np.empty(min(step, tensor.nbytes), np.uint8)
        for begin in range(0, tensor.nbytes, step):
            length = min(step, tensor.nbytes - begin)
            first = start + begin
            self._container.read_range(entry, first, first + length, MemorySink(memory[:length]))
            yield memory[:length]

    def _gather(self, tensor: TensorFacts, into: Bytes) -> None:
        """Write the elements of a view that has gaps, one after the other."""
        entry, itemsize = tensor.entry, DTYPES[tensor.dtype].itemsize
        steps = tensor.stride or ()
        last = tensor.offset + sum((size - 1) * step for size, step in zip(tensor.shape, steps))
        if tensor.numel and (last + 1) * itemsize > entry.nbytes:
            raise FormatError("the view leaves its record", tensor=tensor.name)
        self._fill([entry])
        elements = self._spooled[entry.name][tensor.offset * itemsize :]
        shape, strides = (*tensor.shape, itemsize), (*(step * itemsize for step in steps), 1)
        view = np.lib.stride_tricks.as_strided(elements, shape, strides, writeable=False)
        if tensor.numel:
            into.reshape(shape)[...] = view


def _temporary(nbytes: int) -> tuple[IO[bytes], Bytes]:
    """A temporary file of a size, and its memory."""
    file = tempfile.TemporaryFile()  # noqa: SIM115, the caller closes it
    if not nbytes:
        return file, np.empty(0, np.uint8)
    try:
        with writing(tempfile.gettempdir()):
            # Now, as an error: a full disk would end the process when its memory is written to.
            os.posix_fallocate(file.fileno(), 0, nbytes)
            return file, np.memmap(file, np.uint8, "r+", shape=(nbytes,))
    except BaseException:
        file.close()
        raise


def step_for(before: TensorFacts, after: TensorFacts) -> int:
    """Bytes of a part: whole elements, and where that is possible whole chunks of both."""
    chunk = max(before.entry.codec.chunk_bytes, after.entry.codec.chunk_bytes)
    itemsize = DTYPES[before.dtype].itemsize
    return max(_PART // chunk, 1) * chunk if chunk % itemsize == 0 else _PART // itemsize * itemsize


def same_bytes(sides: tuple[Contents, Contents], before: TensorFacts, after: TensorFacts) -> bool:
    """Read both tensors and compare them."""
    step = step_for(before, after)
    parts = sides[0].parts(before, step), sides[1].parts(after, step)
    return all(np.array_equal(one, two) for one, two in zip(*parts))


def _cut(memory: Bytes, step: int) -> Iterator[Bytes]:
    for begin in range(0, len(memory), step):
        yield memory[begin : begin + step]
