"""tensors.overlap: sharing of bytes, against the sets of bytes themselves."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.tensors import overlap
from jsonckpt._src.tensors.overlap import Region, sharing_groups

Spec = tuple[int, int, tuple[int, ...], tuple[int, ...]]


def cells(spec: Spec) -> set[int]:
    start, itemsize, shape, stride = spec
    found: set[int] = set()
    for index in itertools.product(*(range(size) for size in shape)):
        first = start + itemsize * sum(i * step for i, step in zip(index, stride))
        found.update(range(first, first + itemsize))
    return found


def groups_by_force(specs: list[Spec]) -> list[list[int]]:
    sets = [cells(spec) for spec in specs]
    group_of = list(range(len(specs)))
    for i, j in itertools.combinations(range(len(specs)), 2):
        if sets[i] & sets[j] and group_of[i] != group_of[j]:
            low, high = sorted((group_of[i], group_of[j]))
            group_of = [low if g == high else g for g in group_of]
    found = [[i for i, g in enumerate(group_of) if g == group] for group in dict.fromkeys(group_of)]
    return [group for group in found if len(group) > 1]


@st.composite
def any_spec(draw: st.DrawFn) -> Spec:
    dims = draw(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 12)), max_size=3))
    itemsize = draw(st.sampled_from([1, 2, 4]))
    start = 4096 + draw(st.integers(0, 60))
    return start, itemsize, tuple(d[0] for d in dims), tuple(d[1] for d in dims)


@st.composite
def column_spec(draw: st.DrawFn) -> Spec:
    """Blocks of columns of one matrix with 12 columns."""
    first = draw(st.integers(0, 11))
    width = draw(st.integers(1, 12 - first))
    row = draw(st.integers(0, 3))
    return 4096 + 4 * (12 * row + first), 4, (draw(st.integers(1, 4)), width), (12, 1)


@given(st.lists(any_spec(), max_size=6))
def test_groups_are_exact_for_any_strides(specs: list[Spec]) -> None:
    assert sharing_groups([Region.of(*spec) for spec in specs]) == groups_by_force(specs)


@given(st.lists(column_spec(), max_size=8))
def test_groups_are_exact_for_blocks_of_columns(specs: list[Spec]) -> None:
    assert sharing_groups([Region.of(*spec) for spec in specs]) == groups_by_force(specs)


@given(any_spec())
def test_region_describes_the_bytes(spec: Spec) -> None:
    region = Region.of(*spec)
    expected = cells(spec)
    assert (region.start, region.stop) == (min(expected), max(expected) + 1)
    assert region.gapless == (len(expected) == region.stop - region.start)
    shape, stride = zip(*region.dims)
    assert cells((spec[0], 1, shape, stride)) == expected


def test_many_columns_of_a_huge_matrix_are_told_apart_quickly() -> None:
    columns = [Region.of(4096 + 4 * k, 4, (100_000,), (20_000,)) for k in range(20_000)]
    began = time.monotonic()
    assert sharing_groups(columns) == []
    assert sharing_groups([*columns, columns[7]]) == [[7, 20_000]]
    assert time.monotonic() - began < 10


def test_what_numpy_finds_too_hard_counts_as_sharing(monkeypatch: pytest.MonkeyPatch) -> None:
    apart = [Region.of(0, 1, (3, 3), (3, 7)), Region.of(1, 1, (3, 3), (7, 11))]
    assert sharing_groups(apart) == []
    monkeypatch.setattr(overlap, "_MAX_WORK", 1)
    assert sharing_groups(apart) == [[0, 1]]
