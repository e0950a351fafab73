"""Ranges that are fetched ahead: which requests are made, and how many are in memory."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest

from jsonckpt._src.remote.policy import RemotePolicy
from jsonckpt._src.remote.read_ahead import ReadAhead
from jsonckpt._src.remote.requests import Requests

DATA = random.Random(5).randbytes(600_000)


class _Loop:
    """A file system that is only an event loop."""

    protocol = "loop"
    async_impl = True
    asynchronous = False
    fs = None

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.asked: list[tuple[int, int]] = []
        self.now = self.most = 0

    async def fetch(self, start: int, stop: int) -> bytes:
        self.asked.append((start, stop))
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.001)
        self.now -= 1
        return DATA[start:stop]


@pytest.fixture
def loop() -> Iterator[_Loop]:
    one = _Loop()
    one.thread.start()
    yield one
    one.loop.call_soon_threadsafe(one.loop.stop)
    one.thread.join(10)
    one.loop.close()


def ahead(loop: _Loop, ranges: list[tuple[int, int]], **policy: Any) -> ReadAhead:
    return ReadAhead(Requests(loop, RemotePolicy(**policy)), loop.fetch, iter(ranges))


def read(reader: ReadAhead, start: int, stop: int) -> bytes | None:
    parts = reader.parts(start, stop)
    return None if parts is None else b"".join(parts)


def test_neighbours_share_a_request(loop: _Loop) -> None:
    ranges = [(0, 10), (10, 30), (40, 50), (200_000, 200_010)]
    reader = ahead(loop, ranges, request_bytes=100_000)
    assert [read(reader, *one) for one in ranges] == [DATA[slice(*one)] for one in ranges]
    assert loop.asked == [(0, 50), (200_000, 200_010)]
    assert read(reader, 0, 10) is None  # each is read once
    reader.close()


def test_a_long_range_is_split(loop: _Loop) -> None:
    reader = ahead(loop, [(5, 500_005)], request_bytes=100_000, connections=2)
    assert read(reader, 5, 500_005) == DATA[5:500_005]
    assert loop.asked == [(start, start + 100_000) for start in range(5, 500_005, 100_000)]
    assert loop.most <= 2
    reader.close()


@pytest.mark.parametrize("seed", range(5))
def test_threads_read_any_ranges(loop: _Loop, seed: int) -> None:
    chance = random.Random(seed)
    edges = sorted(chance.sample(range(len(DATA)), 80))
    ranges = [(a, b) for a, b in pairwise(edges) if chance.random() < 0.7]
    reader = ahead(loop, ranges, request_bytes=20_000, connections=3)
    waiting, lock = iter(ranges), threading.Lock()
    found: dict[tuple[int, int], bytes | None] = {}

    def work() -> None:
        while True:
            with lock:
                one = next(waiting, None)
            if one is None:
                return
            found[one] = read(reader, *one)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {one: DATA[slice(*one)] for one in ranges}
    assert loop.most <= 3 + 4
    reader.close()
