"""Which tensors share a shard in a save by content: their names decide, not their neighbours.

A change of one tensor rewrites its shard, so the cuts between shards must not move. Each cut depends
on the names and sizes of the tensors beside it only.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterator, Sequence

#: Shards of less text than this are put together.
SMALLEST_SHARD = 64 << 10
#: A shard has this part of the largest size on average.
_AVERAGE = 4
_SEPARATORS = re.compile(r"[/.]")


def assign_by_name(names: Sequence[str], sizes: Sequence[int], max_shard_size: int) -> list[range]:
    """Which records go into which shard, in order.

    The records of one section (``/model/head``) lie together, apart from others. Small sections
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
    """The first two parts of a name: ``/model/head.weight`` is in ``model``, ``head``."""
    return tuple(_SEPARATORS.split(name.lstrip("/"), maxsplit=2)[:2])


def _ends_shard(name: str, size: int, max_shard_size: int) -> bool:
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big") * max_shard_size < (_AVERAGE * size) << 32
