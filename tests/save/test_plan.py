"""What a save decides before it writes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.format.model import Codec
from jsonckpt._src.save.options import parse_size
from jsonckpt._src.save.plan import (
    SMALLEST_PARALLEL_SHARD,
    RecordPlan,
    assign_shards,
    jobs,
    parallel_shard_size,
)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("1MiB", 1 << 20),
        ("5GB", 5_000_000_000),
        ("2 kib", 2048),
        ("1.5KB", 1500),
        ("3TiB", 3 << 40),
        (7, 7),
    ],
)
def test_sizes(text: int | str, size: int) -> None:
    assert parse_size(text, "chunk_size") == size


@pytest.mark.parametrize("text", ["", "MB", "-1", "1XB", "0", 0, -5, "1e3"])
def test_what_is_no_size_is_refused_by_its_name(text: int | str) -> None:
    with pytest.raises(ValueError, match="chunk_size"):
        parse_size(text, "chunk_size")


@pytest.mark.parametrize("value", [True, 1.5, None])
def test_other_types_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match="chunk_size"):
        parse_size(value, "chunk_size")  # type: ignore[arg-type]


@given(st.lists(st.integers(1, 100)), st.integers(1, 150))
def test_shards_take_all_records_once_in_order_and_keep_the_size(
    sizes: list[int], most: int
) -> None:
    shards = assign_shards(sizes, most)
    assert [record for shard in shards for record in shard] == list(range(len(sizes)))
    for shard in shards:
        assert len(shard) == 1 or sum(sizes[record] for record in shard) <= most


def test_small_saves_make_one_shard_and_large_ones_one_for_each_thread() -> None:
    assert parallel_shard_size([100 << 20], 2, 5 << 30) == 5 << 30
    equal = [1 << 20] * 800
    assert len(assign_shards(equal, parallel_shard_size(equal, 4, 5 << 30))) == 4
    assert len(assign_shards(equal, parallel_shard_size(equal, 4, 100 << 20))) == 8
    assert parallel_shard_size(equal, 1, 5 << 30) == 5 << 30


@given(st.lists(st.integers(1, 60 << 20), min_size=40, max_size=200), st.integers(2, 8))
def test_no_thread_waits_long_for_the_shard_of_another(sizes: list[int], threads: int) -> None:
    most = parallel_shard_size(sizes, threads, 1 << 40)
    shards = assign_shards(sizes, most)
    if most == 1 << 40:
        small = sum(sizes) < threads * SMALLEST_PARALLEL_SHARD
        assert small or max(sizes) > sum(sizes) // (8 * threads)
        return
    assert len(shards) <= threads
    largest = max(sum(sizes[record] for record in shard) for shard in shards)
    # No border between two records makes the largest shard smaller, but for a part in 400.
    total = sum(sizes)
    assert len(assign_shards(sizes, largest - 1 - total // 400)) > threads


def test_a_record_larger_than_all_others_is_written_by_all_threads() -> None:
    sizes = [700 << 20, *[1 << 20] * 100]
    assert assign_shards(sizes, parallel_shard_size(sizes, 2, 5 << 30)) == [range(101)]


@given(st.lists(st.tuples(st.integers(0, 5_000_000), st.sampled_from([1, 4096, 1 << 20]))))
def test_jobs_hold_every_chunk_once_in_order(records: list[tuple[int, int]]) -> None:
    # Not so many chunks that the test takes long.
    source: Any = None
    plans = [
        RecordPlan(source, Codec("base64", "none", "none", max(chunk, nbytes // 50 + 1)), nbytes)
        for nbytes, chunk in records
    ]
    parts = [part for job in jobs(plans) for part in job]
    expected = [(plan, c) for plan in plans for c in range(max(1, plan.chunks))]
    assert len(parts) == len(expected)
    for part, (plan, chunk) in zip(parts, expected):
        assert part.record is plan
        assert part.chunk == chunk
    for part in parts:
        assert part.first == (part.chunk == 0)
        assert part.last == (part.chunk == max(1, part.record.chunks) - 1)
