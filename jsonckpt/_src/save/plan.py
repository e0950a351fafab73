"""What a save will do, decided before anything is written. Pure.

Which codec each record gets, which records share a shard, and which chunks make one job.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Protocol

from ..errors import ArgumentError, quote
from ..format.chunk_codec import payload_bound
from ..format.dtypes import DTYPES
from ..format.limits import Limits, exceeds
from ..format.model import COMPRESSIONS, ENCODINGS, Codec, chunk_count

#: A job ends when it holds this many raw bytes; small records share one.
JOB_BYTES = 1 << 20
_JOB_PARTS = 1_024
#: Shards are not made smaller than this only to be written side by side.
SMALLEST_LANE = 64 << 20
#: Shares are equal to within this part of the whole, and no larger than this many times one.
_LANE_PRECISION = 400
_MOST_UNEVEN = 1.25
#: Compressing fewer bytes than this saves nothing worth the frame around them.
SMALLEST_COMPRESSED = 256
#: Text of a record beside its payloads: the head and tail, and what each chunk adds.
_RECORD_OVERHEAD = 400
_CHUNK_OVERHEAD = 110
_LARGEST_FILE = (1 << 63) - 1
#: Characters of a size: more digits than this name no file.
_LONGEST_SIZE = 100
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


class Sized(Protocol):
    """What the plan needs to know of a tensor."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def nbytes(self) -> int: ...


@dataclass(frozen=True, slots=True)
class RecordPlan:
    """A record to be written: the position of its source, and its codec."""

    source: int
    codec: Codec
    nbytes: int

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return chunk_count(self.nbytes, self.codec.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Part:
    """One chunk of one record; a record of no bytes has one part without data."""

    record: int
    chunk: int
    first: bool
    last: bool


def parse_size(value: int | str, what: str) -> int:
    """A number of bytes from an ``int`` or a text: ``"5GB"`` is decimal, ``"1MiB"`` binary.

    Raises:
        ArgumentError: it is neither, or not positive, or more than any file can have.

    >>> parse_size("1MiB", "chunk_size"), parse_size("5GB", "max_shard_size"), parse_size(7, "x")
    (1048576, 5000000000, 7)
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ArgumentError(f"{what} must be an int or a text such as '5GB', not {quote(value)}")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or len(value) > _LONGEST_SIZE:
            raise ArgumentError(
                f"{what}={quote(value)} is no size; write e.g. 1048576, '1MiB' or '5GB'"
            )
        base = 1024 if match[3] else 1000
        value = int(Fraction(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
    if value < 1:
        raise ArgumentError(f"{what} must be positive, not {_in_short(value)}")
    if value > _LARGEST_FILE:
        raise ArgumentError(
            f"{what} is {_in_short(value)}; no file is larger than {_LARGEST_FILE} bytes"
        )
    return value


def _in_short(value: int) -> str:
    # Python refuses to write out an integer of thousands of digits.
    return str(value) if value.bit_length() < 256 else hex(value)[:20] + "..."


def choose_codec(
    source: Sized,
    *,
    encoding: str,
    compression: str,
    filter: str,
    chunk_bytes: int,
    worthwhile: bool,
) -> Codec:
    """The codec of one record.

    Args:
        compression: what was asked for; small records and those of which a sample does not
            compress (``worthwhile``) go without.
        filter: ``"auto"`` shuffles what is compressed and has elements of several bytes.
    """
    itemsize = DTYPES[source.dtype].itemsize
    chunk_bytes = max(itemsize, chunk_bytes // itemsize * itemsize)
    if encoding == "list":
        return _codec("list", "none", "none", chunk_bytes)
    if compression != "none" and (source.nbytes < SMALLEST_COMPRESSED or not worthwhile):
        compression = "none"
        filter = "none" if filter == "auto" else filter
    if filter == "auto":
        filter = "shuffle" if compression != "none" and itemsize > 1 else "none"
    return _codec(encoding, compression, filter, chunk_bytes)


@lru_cache(maxsize=64)
def _codec(encoding: str, compression: str, filter: str, chunk_bytes: int) -> Codec:
    # One object for all records that have it: thousands of small tensors compare it.
    return Codec(encoding, compression, filter, chunk_bytes)


def check_options(
    *, encoding: str, compression: str | None, filter: str, chunk_bytes: int, limits: Limits
) -> None:
    """Refuse options that no checkpoint can have.

    Raises:
        ArgumentError: with what is allowed.
    """
    if encoding not in ENCODINGS:
        raise ArgumentError(
            f"encoding={quote(encoding)}; this release writes {', '.join(ENCODINGS)}"
        )
    if compression is not None and compression not in COMPRESSIONS:
        raise ArgumentError(
            f"compression={quote(compression)}; this release writes None and 'zstd'"
        )
    if filter not in ("auto", "none", "shuffle"):
        raise ArgumentError(f"filter={quote(filter)}; it may be 'auto', 'none' or 'shuffle'")
    if encoding == "list" and filter == "shuffle":
        raise ArgumentError("filter='shuffle' goes with encoding='base64' only")
    if exceeds(chunk_bytes, limits.chunk_bytes):
        raise ArgumentError(
            f"chunk_size is {chunk_bytes} bytes; readers accept at most {limits.chunk_bytes}"
        )


def text_estimate(plan: RecordPlan, dtype: str) -> int:
    """An upper bound of the text of a record."""
    payloads = plan.chunks * payload_bound(
        min(plan.nbytes, plan.codec.chunk_bytes), plan.codec, dtype
    )
    return payloads + _RECORD_OVERHEAD + plan.chunks * _CHUNK_OVERHEAD


def lane_size(estimates: Sequence[int], threads: int, max_shard_size: int) -> int:
    """The size of shards that lets every thread write one, all of about the same size.

    One shard for all threads where they would be small, or where one record is so large that the
    thread that writes it would be the only one for long.

    >>> sizes = [200 << 20] * 4
    >>> assign_shards(sizes, lane_size(sizes, 2, 5_000_000_000))
    [range(0, 2), range(2, 4)]
    >>> lane_size([700 << 20, 100 << 20], 2, 5_000_000_000)
    5000000000
    """
    total = sum(estimates)
    if threads < 2 or total < threads * SMALLEST_LANE:
        return max_shard_size
    share, largest = -(-total // threads), max(estimates)
    # With the upper bound each shard but the last takes more than a share; below it lies the least
    # size that does not make one more shard than threads, which would be waited for.
    low, high = max(share, largest) - 1, share + largest
    while high - low > max(1, total // _LANE_PRECISION):
        middle = (low + high) // 2
        if len(assign_shards(estimates, middle)) <= threads:
            high = middle
        else:
            low = middle
    return min(max_shard_size, high) if high <= _MOST_UNEVEN * share else max_shard_size


def assign_shards(estimates: Sequence[int], max_shard_size: int) -> list[range]:
    """Which records go into which shard, in order. A record is never split.

    >>> assign_shards([3, 3, 9, 1], 6)
    [range(0, 2), range(2, 3), range(3, 4)]
    """
    shards: list[range] = []
    first, size = 0, 0
    for position, estimate in enumerate(estimates):
        if position > first and size + estimate > max_shard_size:
            shards.append(range(first, position))
            first, size = position, 0
        size += estimate
    if first < len(estimates):
        shards.append(range(first, len(estimates)))
    return shards


def jobs(plans: Sequence[RecordPlan]) -> Iterator[list[Part]]:
    """The parts of a shard in order, grouped into jobs of about :data:`JOB_BYTES`."""
    job: list[Part] = []
    size = 0
    for record, plan in enumerate(plans):
        count = max(1, plan.chunks)
        for chunk in range(count):
            job.append(Part(record, chunk, chunk == 0, chunk == count - 1))
            size += min(plan.codec.chunk_bytes, plan.nbytes - chunk * plan.codec.chunk_bytes)
            if size >= JOB_BYTES or len(job) >= _JOB_PARTS:
                yield job
                job, size = [], 0
    if job:
        yield job
