"""Fetches the ranges that will be read next: neighbours in one request, several at once."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from .requests import Requests, result_of

#: Ranges with a smaller gap between them are fetched together: that is faster than two requests.
_GAP = 64 << 10


@dataclass(eq=False)
class _Block:
    """One request. ``readers`` ranges lie in it."""

    start: int
    stop: int
    readers: int = 1
    future: Future[Any] | None = field(default=None, repr=False)


class ReadAhead:
    """Ranges of one file that will be read once each, about in their order.

    The readers may be several threads. At most ``connections`` blocks are in memory or under way,
    and one more for each reader that is faster.

    Args:
        fetch: the request for a range.
        ranges: ``(start, stop)``, in order.
        slow_start: begin with one request at a time: the reader may stop soon.
    """

    def __init__(
        self,
        requests: Requests,
        fetch: Callable[[int, int], Awaitable[Any]],
        ranges: Iterable[tuple[int, int]],
        *,
        slow_start: bool = False,
    ) -> None:
        self._requests = requests
        self._fetch = fetch
        self._most = requests.policy.connections
        self._allowed = 1 if slow_start else self._most
        self._coming = _grouped(iter(ranges), requests.policy.request_bytes)
        self._lock = threading.Lock()
        #: What each range that is not read yet needs, and the requests that are not begun yet.
        self._ready: dict[tuple[int, int], deque[_Block]] = {}
        self._queue: deque[_Block] = deque()
        self._held: set[_Block] = set()
        self._position = 0
        self._closed = False
        with self._lock:
            self._fill()

    def parts(self, start: int, stop: int) -> Iterator[memoryview] | None:
        """The bytes of a range, part by part; ``None`` if the range is not one that is expected."""
        with self._lock:
            while (start, stop) not in self._ready and start >= self._position and self._next():
                pass
            blocks = self._ready.pop((start, stop), None)
        return None if blocks is None else self._parts(start, stop, blocks)

    def _parts(self, start: int, stop: int, blocks: deque[_Block]) -> Iterator[memoryview]:
        while blocks:
            block = blocks.popleft()
            assert block.future is not None
            data = memoryview(result_of(block.future))
            yield data[max(start - block.start, 0) : min(stop, block.stop) - block.start]
            del data
            with self._lock:
                self._release(block)
                if blocks:
                    self._begin(blocks[0])

    def close(self) -> None:
        """End the requests that nobody waits for any more."""
        with self._lock:
            self._closed = True
            for block in self._held:
                if block.future is not None:
                    block.future.cancel()
            self._held.clear()
            self._ready.clear()

    def _release(self, block: _Block) -> None:
        block.readers -= 1
        if not block.readers:
            self._held.discard(block)
            block.future = None
            self._allowed = min(self._allowed * 2, self._most)
            self._fill()

    def _fill(self) -> None:
        while len(self._held) < self._allowed and self._next():
            pass

    def _next(self) -> bool:
        """Begin the next request. ``False`` if there is none."""
        while not self._queue:
            group = None if self._closed else next(self._coming, None)
            if group is None:
                return False
            ranges, blocks = group
            for one in ranges:
                self._ready[one] = deque(blocks)
            self._position = ranges[-1][1]
            self._queue += blocks
        self._begin(self._queue.popleft())
        return True

    def _begin(self, block: _Block) -> None:
        if block.future is None and block.readers and not self._closed:
            self._held.add(block)
            start, stop = block.start, block.stop
            block.future = self._requests.start(lambda: self._fetch(start, stop), stop - start)


def _grouped(
    ranges: Iterator[tuple[int, int]], most: int
) -> Iterator[tuple[list[tuple[int, int]], list[_Block]]]:
    """Ranges that are fetched together, and their requests.

    A long range has several requests. Short neighbours share one.
    """
    group: list[tuple[int, int]] = []
    for start, stop in ranges:
        if group and not (0 <= start - group[-1][1] <= _GAP and stop - group[0][0] <= most):
            yield group, [_Block(group[0][0], group[-1][1], len(group))]
            group = []
        if stop - start > most:
            starts = range(start, stop, most)
            yield [(start, stop)], [_Block(at, min(at + most, stop)) for at in starts]
        elif stop > start:
            group.append((start, stop))
    if group:
        yield group, [_Block(group[0][0], group[-1][1], len(group))]
