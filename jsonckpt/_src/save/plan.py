"""What a save will do, decided before anything is written.

Which codec each record gets, which records share a shard, and which chunks make one job.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeAlias

from ..format import filenames
from ..format.chunk_codec import ChunkCodec, payload_bound
from ..format.dtypes import DTYPES
from ..format.model import Codec, chunk_count, claimed_bytes
from ..sharing.unchanged import NOTHING, Reuse
from ..state.selector import selector
from ..storage.protocols import RawSource
from . import reader_limits
from .options import SaveOptions
from .snapshot import Snapshot

#: A job ends when it has this many raw bytes. Small records share one job.
JOB_BYTES = 1 << 20
_JOB_PARTS = 1_024
#: Shards for parallel writing are not smaller than this.
SMALLEST_PARALLEL_SHARD = 64 << 20
#: Sizes of shards for parallel writing differ by at most this part of the whole. None is larger
#: than this many times its share.
_SIZE_PRECISION = 400
_MOST_UNEVEN = 1.25
#: By content: shards of less text are put together, and the average is this part of the largest.
SMALLEST_SHARD, _AVERAGE = 128 << 10, 4
_SECTION_PARTS = 4
_SEPARATORS = re.compile(r"[/.]")
#: Compressing fewer bytes than this is not worth the frame around them.
SMALLEST_COMPRESSED = 256
_SAMPLE_BYTES = 1 << 14
#: Text of a record around its payloads: head and tail, and what each chunk adds.
_RECORD_OVERHEAD = 400
_CHUNK_OVERHEAD = 110


#: Gives the pieces of a chunk's payload and the checksum of its raw bytes.
StoredChunk: TypeAlias = "Callable[[int], tuple[list[bytes | memoryview], str]]"


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """A record to be written: its tensor and its codec.

    Attributes:
        stored: for a record that another checkpoint has in this codec: its payloads are copied.
    """

    source: RawSource
    codec: Codec
    nbytes: int
    stored: StoredChunk | None = None

    @property
    def chunks(self) -> int:
        """The number of chunks."""
        return chunk_count(self.nbytes, self.codec.chunk_bytes)

    def chunk_range(self, chunk: int) -> tuple[int, int]:
        """Where a chunk begins and ends in the raw bytes."""
        start = chunk * self.codec.chunk_bytes
        return start, min(self.nbytes, start + self.codec.chunk_bytes)

    @property
    def most_text(self) -> int:
        """An upper bound of its text in bytes."""
        return self._text_bound(self.codec)

    @property
    def plain_text(self) -> int:
        """An upper bound of its text without compression. The values do not change it."""
        return self._text_bound(replace(self.codec, compression="none", filter="none"))

    def _text_bound(self, codec: Codec) -> int:
        payload = payload_bound(min(self.nbytes, codec.chunk_bytes), codec, self.source.dtype)
        return _RECORD_OVERHEAD + self.chunks * (payload + _CHUNK_OVERHEAD)

    @property
    def least_text(self) -> int:
        """A lower bound of its text in bytes."""
        if self.codec.encoding == "list":
            # An element takes a digit and a comma at least.
            return 2 * (self.nbytes // DTYPES[self.source.dtype].itemsize)
        return self.nbytes * 4 // 3 if self.codec.compression == "none" else 0


@dataclass(frozen=True)
class ShardPlan:
    """A file to be written: its number in the checkpoint, its name and its records."""

    number: int
    name: str
    records: Sequence[RecordPlan]

    @property
    def first(self) -> str:
        """The name of its first tensor; empty if it has none."""
        return self.records[0].source.name if self.records else ""


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk of one record; a record of no bytes has one part without data."""

    record: RecordPlan
    chunk: int
    first: bool
    last: bool


@dataclass(frozen=True)
class SavePlan:
    """A snapshot, and how it is written.

    Attributes:
        reuse: what an earlier checkpoint has already.
    """

    snapshot: Snapshot
    options: SaveOptions
    records: Sequence[RecordPlan]
    reuse: Reuse = NOTHING

    @property
    def written(self) -> Sequence[RecordPlan]:
        """The records that are not in shards that are used again."""
        names = self.reuse.names
        return [r for r in self.records if r.source.name not in names] if names else self.records

    @property
    def chunks(self) -> int:
        return sum(record.chunks for record in self.records)

    def single_file(self, name: str) -> list[ShardPlan]:
        """All records in one file."""
        return [ShardPlan(0, name, self.records)]

    def shards(self) -> list[ShardPlan]:
        """The files of a directory.

        Raises:
            LimitError: too many.
        """
        options = self.options
        # A shard that is named by its content has another name until it is complete.
        zst = options.compresses_files
        save_id = self.snapshot.token if options.by_content else self.snapshot.save_id
        groups = [members for records in self._groups() for members in self._assigned(records)]
        reader_limits.check_shard_count(len(self.reuse.rows) + len(groups))
        return [
            ShardPlan(
                len(self.reuse.rows) + number,
                filenames.shard_name(save_id, number + 1, compressed=zst, rank=self.snapshot.rank),
                members,
            )
            for number, members in enumerate(groups)
        ]

    def _groups(self) -> list[Sequence[RecordPlan]]:
        """The records that are written; those that may be used again later, apart from others."""
        written, apart = self.written, self.reuse.apart
        frozen, _ = selector(self.options.frozen, None)
        if self.options.frozen is not None:
            apart |= {r.source.name for r in written if frozen(r.source.name)}
        if not apart:
            return [written]
        return [
            [record for record in written if (record.source.name in apart) is wanted]
            for wanted in (True, False)
        ]

    def _assigned(self, records: Sequence[RecordPlan]) -> list[Sequence[RecordPlan]]:
        """The records of each shard."""
        options = self.options
        if options.by_content:
            names = [record.source.name for record in records]
            sizes = [record.plain_text for record in records]
            assigned = assign_by_name(names, sizes, options.max_shard_size)
        else:
            sizes = [record.most_text for record in records]
            most = parallel_shard_size(sizes, options.threads, options.max_shard_size)
            assigned = assign_shards(sizes, most)
        return [records[members.start : members.stop] for members in assigned]

    def check_index(self, text: bytes) -> None:
        """Check that a reader accepts the index of a single file. Raises :class:`LimitError`."""
        widest = max((record.codec.chunk_bytes for record in self.records), default=0)
        reader_limits.check_index(text, len(self.records), self.chunks, widest)

    def check_expansion(self, stored: int) -> None:
        """Check that a reader accepts this ratio of compression. Raises :class:`LimitError`."""
        claimed = claimed_bytes((r.nbytes, r.source.layout) for r in self.records)
        reader_limits.check_expansion(claimed, len(self.records), self.chunks, stored)


def plan_save(snapshot: Snapshot, options: SaveOptions) -> SavePlan:
    """Choose the codec of each record. A sample of the record shows whether it compresses.

    This is not part of the snapshot: a background save has the time for it, the training has not.

    Raises:
        LimitError: too many chunks, or a name that is too long.
    """
    coder = ChunkCodec(level=options.level)
    records = []
    for source in snapshot.sources:
        reader_limits.check_tensor_name(source.name)
        codec = choose_codec(source, options)
        if codec.compression != "none" and not _sample_compresses(coder, source, codec):
            codec = choose_codec(source, options, worthwhile=False)
        records.append(RecordPlan(source, codec, source.nbytes))
    plan = SavePlan(snapshot, options, records)
    reader_limits.check_chunk_count(len(records), plan.chunks, options.chunk_bytes)
    return plan


def choose_codec(source: RawSource, options: SaveOptions, *, worthwhile: bool = True) -> Codec:
    """The codec of one record.

    A record is not compressed if it is small, or if its sample does not compress (``worthwhile``).
    The filter ``"auto"`` shuffles compressed records whose elements have several bytes.
    """
    itemsize = DTYPES[source.dtype].itemsize
    chunk_bytes = max(itemsize, options.chunk_bytes // itemsize * itemsize)
    compression, filter = options.compression, options.filter
    if options.encoding == "list":
        return _codec("list", "none", "none", chunk_bytes)
    if compression != "none" and (source.nbytes < SMALLEST_COMPRESSED or not worthwhile):
        compression = "none"
        filter = "none" if filter == "auto" else filter
    if filter == "auto":
        filter = "shuffle" if compression != "none" and itemsize > 1 else "none"
    return _codec(options.encoding, compression, filter, chunk_bytes)


@lru_cache(maxsize=64)
def _codec(encoding: str, compression: str, filter: str, chunk_bytes: int) -> Codec:
    # One object for all records with this codec: thousands of small tensors compare it.
    return Codec(encoding, compression, filter, chunk_bytes)


def _sample_compresses(coder: ChunkCodec, source: RawSource, codec: Codec) -> bool:
    # From the middle: the edges of a tensor (padding rows, zeros) are often not typical.
    size = min(source.nbytes, _SAMPLE_BYTES)
    unit = 16  # a multiple of every item size
    start = (source.nbytes - size) // 2 // unit * unit
    size -= size % DTYPES[source.dtype].itemsize
    return coder.compresses(source.read(start, start + size), codec, source.dtype)


def parallel_shard_size(sizes: Sequence[int], threads: int, max_shard_size: int) -> int:
    """The shard size that gives each thread one shard, all of about the same size.

    Writes to one file wait for each other in the kernel. All threads share one shard if the shards
    would be small, or if one record is so large that its shard would take much longer.

    >>> sizes = [200 << 20] * 4
    >>> assign_shards(sizes, parallel_shard_size(sizes, 2, 5_000_000_000))
    [range(0, 2), range(2, 4)]
    >>> parallel_shard_size([700 << 20, 100 << 20], 2, 5_000_000_000)
    5000000000
    """
    total = sum(sizes)
    if threads < 2 or total < threads * SMALLEST_PARALLEL_SHARD:
        return max_shard_size
    share, largest = -(-total // threads), max(sizes)
    # The lower bound makes more shards than threads, the upper bound does not. The size that is
    # looked for is between them: the smallest that makes at most one shard for each thread.
    low, high = max(share, largest) - 1, share + largest
    while high - low > max(1, total // _SIZE_PRECISION):
        middle = (low + high) // 2
        if len(assign_shards(sizes, middle)) <= threads:
            high = middle
        else:
            low = middle
    return min(max_shard_size, high) if high <= _MOST_UNEVEN * share else max_shard_size


def assign_shards(sizes: Sequence[int], max_shard_size: int) -> list[range]:
    """Which records go into which shard, in order. A record is never split.

    >>> assign_shards([3, 3, 9, 1], 6)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    shards: list[range] = []
    first, total = 0, 0
    for position, size in enumerate(sizes):
        if position > first and total + size > max_shard_size:
            shards.append(range(first, position))
            first, total = position, 0
        total += size
    if first < len(sizes):
        shards.append(range(first, len(sizes)))
    return shards


def assign_by_name(names: Sequence[str], sizes: Sequence[int], max_shard_size: int) -> list[range]:
    """Which records go into which shard, in order, where a change of one tensor moves no other.

    A cut between shards depends only on the names and sizes of the records beside it. The records
    of one section (``/model/head``) lie together, apart from others. Small sections
    share a shard. In a large one, a record ends its shard with a chance in proportion to its size,
    by a hash of its name. A record of a quarter of ``max_shard_size`` has a shard to itself.

    >>> names = ["/model/body.0", "/model/body.1", "/model/head.weight", "/model/head.bias"]
    >>> assign_by_name(names, [900_000, 900_000, 100_000, 400], 2_000_000)
    [range(0, 1), range(1, 2), range(2, 4)]
    """
    shards: list[range] = []
    for section in _sections(names, sizes):
        first, total = section.start, 0
        large = False
        for position in section:
            size = sizes[position]
            alone = _AVERAGE * size >= max_shard_size
            if position > first and (large or alone or total + size > max_shard_size):
                shards.append(range(first, position))
                first, total = position, 0
            total += size
            large = alone or _ends_shard(names[position], size, max_shard_size)
        shards.append(range(first, section.stop))
    return shards


def _sections(names: Sequence[str], sizes: Sequence[int]) -> Iterator[range]:
    """Neighbours of one section. Small sections that follow one another are put together."""
    first, total = 0, 0
    groups = itertools.groupby(range(len(names)), key=lambda position: _section(names[position]))
    for _, members in groups:
        positions = list(members)
        start, size = positions[0], sum(sizes[position] for position in positions)
        if start > first and (total >= SMALLEST_SHARD or size >= SMALLEST_SHARD):
            yield range(first, start)
            first, total = start, 0
        total += size
    if first < len(names):
        yield range(first, len(names))


def _section(name: str) -> tuple[str, ...]:
    """Up to four parts of a name, without the last: a layer, as in ``/model/encoder.h.7``."""
    return tuple(_SEPARATORS.split(name.lstrip("/"))[:-1][:_SECTION_PARTS])


def _ends_shard(name: str, size: int, max_shard_size: int) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") * max_shard_size < (_AVERAGE * size) << 32


def jobs(records: Sequence[RecordPlan]) -> Iterator[list[Part]]:
    """The parts of a shard in order, grouped into jobs of about :data:`JOB_BYTES`."""
    job: list[Part] = []
    size = 0
    for record in records:
        count, chunk_bytes = max(1, record.chunks), record.codec.chunk_bytes
        for chunk in range(count):
            job.append(Part(record, chunk, chunk == 0, chunk == count - 1))
            size += min(chunk_bytes, record.nbytes - chunk * chunk_bytes)
            if size >= JOB_BYTES or len(job) >= _JOB_PARTS:
                yield job
                job, size = [], 0
    if job:
        yield job
