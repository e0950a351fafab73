"""Boxes in tensors, and ranges of their row-major order. Pure arithmetic."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import quote

#: Offset and shape of a part of a tensor.
Box = tuple[tuple[int, ...], tuple[int, ...]]
#: ``(start, stop)`` of each dimension.
Ranges = list[tuple[int, int]]
#: ``(prefix, low, high)`` stands for ``t[prefix][low:high]``.
Slice = tuple[tuple[int, ...], int, int]


def overlap(
    offset: Sequence[int], shape: Sequence[int], other: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """Offset and shape of what two boxes have in common; ``None`` if they share no element.

    >>> overlap((0, 4), (2, 4), (1, 0), (9, 6)), overlap((0,), (2,), (2,), (2,))
    (((1, 4), (1, 2)), None)
    """
    low = tuple(map(max, offset, other))
    sizes = tuple(
        min(one + length, two + width) - start
        for one, length, two, width, start in zip(offset, shape, other, size, low)
    )
    return (low, sizes) if all(length > 0 for length in sizes) else None


def chunks_of_box(
    shape: Sequence[int],
    elements: int,
    offset: Sequence[int],
    size: Sequence[int],
) -> list[int]:
    """The chunks that hold an element of a box, in order.

    Args:
        shape: of the record.
        elements: in each chunk.
        offset, size: of the box, which lies in the record.

    >>> chunks_of_box((4, 6), 3, (1, 0), (2, 2))
    [2, 4]
    """
    if not math.prod(size):
        return []
    shape, offset, size = with_a_dimension(shape, offset, size)
    first, last = 0, 0
    for length, start, width in zip(shape, offset, size):
        first, last = first * length + start, last * length + start + width - 1
    count = math.prod(shape)
    return [
        chunk
        for chunk in range(first // elements, last // elements + 1)
        if any(
            True
            for ranges, _ in row_boxes(shape, chunk * elements, min((chunk + 1) * elements, count))
            if common_box(ranges, offset, size)
        )
    ]


def flat_slices(shape: Sequence[int], start: int, stop: int) -> Iterator[Slice]:
    """A row-major range of elements as slices of the tensor, in order, at most ``2 × rank - 1``.

    Args:
        shape: of the tensor, at least one dimension, none of size 0.
        start, stop: the range of elements.

    >>> list(flat_slices((4, 3), 2, 10))
    [((0,), 2, 3), ((), 1, 3), ((3,), 0, 1)]
    """
    if start >= stop:
        return
    inner = math.prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if first == last:
        yield from _inner_slices(first, shape, head, tail)
        return
    if head:
        yield from _inner_slices(first, shape, head, inner)
        first += 1
    if first < last:
        yield (), first, last
    if tail:
        yield from _inner_slices(last, shape, 0, tail)


def _inner_slices(index: int, shape: Sequence[int], start: int, stop: int) -> Iterator[Slice]:
    for prefix, low, high in flat_slices(shape[1:], start, stop):
        yield (index, *prefix), low, high


def with_a_dimension(
    shape: Sequence[int], offset: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """A scalar as one row."""
    if not shape:
        return (1,), (0,), (1,)
    return tuple(shape), tuple(offset), tuple(size)


def row_boxes(shape: Sequence[int], first: int, last: int) -> Iterator[tuple[Ranges, int]]:
    """A row-major range of elements as boxes, each with the number of elements before it."""
    done = 0
    for prefix, low, high in flat_slices(shape, first, last):
        ranges = [(index, index + 1) for index in prefix]
        ranges.append((low, high))
        ranges += [(0, size) for size in shape[len(ranges) :]]
        yield ranges, done
        done += math.prod(stop - start for start, stop in ranges)


def common_box(
    ranges: Ranges, offset: Sequence[int], size: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    return overlap(
        [start for start, _ in ranges], [stop - start for start, stop in ranges], offset, size
    )


def box_of_index(key: Any, shape: Sequence[int]) -> tuple[list[int], list[int], Any] | None:
    """What an index needs of a tensor: offset and size of a box, and the index into that.

    The dimensions up to the first index that is not an integer or a slice are cut.

    Returns:
        ``None`` if it needs the whole tensor, or no tensor has such an index.

    Raises:
        IndexError, TypeError, ValueError: there is no such part.

    >>> box_of_index((3, slice(1, 9, 2)), (4, 6))
    ([3, 1], [1, 5], (0, slice(None, None, 2)))
    """
    items = list(key) if isinstance(key, tuple) else [key]
    at = next((number for number, item in enumerate(items) if item is Ellipsis), None)
    if at is not None and all(map(_is_plain, [*items[:at], *items[at + 1 :]])):
        items[at : at + 1] = [slice(None)] * (len(shape) - len(items) + 1)
    count = next((n for n, item in enumerate(items) if not _is_plain(item)), len(items))
    if not count or not shape:
        return None
    if count > len(shape):
        raise IndexError(f"{count} indices for a tensor of {len(shape)} dimensions")
    ranges = [_range(item, shape[n], n) for n, item in enumerate(items[:count])]
    offset = [start for start, _, _ in ranges] + [0] * (len(shape) - count)
    size = [stop - start for start, stop, _ in ranges] + list(shape[count:])
    return offset, size, (*[inside for _, _, inside in ranges], *items[count:])


def _is_plain(item: Any) -> bool:
    """Whether an index takes a range of one dimension."""
    return isinstance(item, int | slice) and not isinstance(item, bool)


def _range(item: Any, length: int, dimension: int) -> tuple[int, int, Any]:
    """Begin and end of what an index needs of a dimension, and the index into that."""
    if isinstance(item, int):
        if not -length <= item < length:
            raise IndexError(
                f"index {quote(item)} is out of bounds for dimension {dimension} with size {length}"
            )
        return item % length, item % length + 1, 0
    start, stop, step = item.indices(length)
    if step < 1:
        raise ValueError("the step of a slice must be greater than zero")
    return start, max(start, stop), slice(None, None, step)
