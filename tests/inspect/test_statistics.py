"""Statistics of tensors against torch in float64."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.inspect.element_values import numbers_of
from jsonckpt._src.inspect.histogram import BARS, Histogram, sparkline
from jsonckpt._src.inspect.statistics import (
    Accumulator,
    StatisticsSink,
    TensorStatistics,
    read_statistics,
)
from jsonckpt._src.load.container import Container, open_container
from jsonckpt._src.load.options import ReadOptions


def opened(path: Path, state: Any, threads: int = 1, **options: Any) -> Container:
    jsonckpt.save(state, path, **options)
    return open_container(path, ReadOptions(threads=threads))


def only(container: Container) -> TensorStatistics:
    (found,) = read_statistics(container).values()
    return found


def float64(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.is_complex():
        tensor = torch.from_numpy(np.abs(tensor.to(torch.complex128).numpy()))
    return tensor.to(torch.float64).flatten()


def check(found: TensorStatistics, tensor: torch.Tensor) -> None:
    """Against torch, to the last few bits of float64."""
    wide = float64(tensor)
    fine = wide[wide.isfinite()]
    assert found.count == wide.numel()
    assert found.nans == int(wide.isnan().sum())
    assert found.infs == int(wide.isinf().sum())
    assert found.zeros == int((fine == 0).sum())
    assert sum(found.histogram.counts) == found.finite == fine.numel()
    if not fine.numel():
        assert [found.min, found.max, found.mean, found.std, found.norm] == [None] * 5
        return
    assert found.min == fine.min().item()
    assert found.max == fine.max().item()
    scale = float(fine.abs().max())
    assert found.mean == pytest.approx(fine.mean().item(), rel=1e-12, abs=1e-14 * scale)
    assert found.std == pytest.approx(fine.std(correction=0).item(), rel=1e-10, abs=1e-13 * scale)
    assert found.norm == pytest.approx(torch.linalg.norm(fine).item(), rel=1e-12)
    check_histogram(found.histogram, fine)


def check_histogram(histogram: Histogram, fine: torch.Tensor) -> None:
    assert len(histogram.counts) <= BARS
    places = np.floor(fine.numpy() / histogram.width) - round(histogram.start / histogram.width)
    expected = np.bincount(places.astype(int), minlength=len(histogram.counts))
    assert list(histogram.counts) == expected.tolist()


FLOATS = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.complex64,
    torch.complex128, torch.complex32,
]  # fmt: skip
INTEGERS = [
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
    torch.uint32, torch.uint64,
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize("size", [1, 7, 70_001])
@pytest.mark.parametrize("dtype", FLOATS + INTEGERS, ids=str)
def test_they_are_those_of_torch(tmp_path: Path, dtype: torch.dtype, size: int) -> None:
    generator = torch.Generator().manual_seed(size)
    if dtype in FLOATS:
        wide = torch.complex64 if dtype.is_complex else torch.float64
        tensor = torch.randn(size, generator=generator, dtype=wide).mul(3).add(1).to(dtype)
    else:
        tensor = torch.randint(0, 2 if dtype == torch.bool else 120, (size,), generator=generator)
        tensor = tensor.to(dtype)
    check(only(opened(tmp_path / "c", {"w": tensor}, chunk_size=65536)), tensor)


@pytest.mark.parametrize("size", [512, 1 << 18])
@pytest.mark.parametrize("name", [row for row in DTYPES if DTYPES[row].itemsize <= 2])
def test_each_bit_pattern(name: str, size: int) -> None:
    """Counting bit patterns and taking numbers agree, also for what torch cannot compute with."""
    raw = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)
    raw = raw % 2 if name == "bool" else raw
    found: list[TensorStatistics] = []
    sink = StatisticsSink(name, size, found.append)
    sink.write(0, raw.data)
    direct = Accumulator()
    direct.add(numbers_of(name, raw.data))
    expected = direct.result()
    assert found[0].count == size // DTYPES[name].itemsize * (1 + (DTYPES[name].kind == "packed"))
    for fact in ("count", "nans", "infs", "zeros", "min", "max", "histogram"):
        assert getattr(found[0], fact) == getattr(expected, fact)
    for fact in ("mean", "std", "norm"):
        assert getattr(found[0], fact) == pytest.approx(getattr(expected, fact), rel=1e-10)


def test_float4_counts_both_numbers() -> None:
    found: list[TensorStatistics] = []
    StatisticsSink("float4_e2m1fn_x2", 1, found.append).write(0, memoryview(b"\xf1"))
    assert (found[0].count, found[0].min, found[0].max) == (2, -6.0, 0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [5, 200_000])
def test_what_is_not_finite(tmp_path: Path, dtype: torch.dtype, size: int) -> None:
    tensor = torch.randn(size, dtype=torch.float64).to(dtype)
    tensor[0], tensor[1], tensor[2] = math.inf, -math.inf, math.nan
    found = only(opened(tmp_path / "c", {"w": tensor}))
    check(found, tensor)
    assert (found.positive_infs, found.negative_infs, found.nans) == (1, 1, 1)


def test_nan_payloads_are_nans(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00001, 0x7F800001, -1, 0x7F800000], dtype=torch.int32)
    found = only(opened(tmp_path / "c", {"w": bits.view(torch.float32)}))
    assert (found.nans, found.infs, found.finite) == (3, 1, 0)


@pytest.mark.parametrize(
    "tensor",
    [torch.empty(0), torch.empty(3, 0, 2), torch.full((4,), math.nan), torch.full((4,), math.inf)],
    ids=["empty", "no rows", "all nan", "all inf"],
)
def test_no_finite_number(tmp_path: Path, tensor: torch.Tensor) -> None:
    found = only(opened(tmp_path / "c", {"w": tensor}))
    check(found, tensor)
    assert found.histogram == Histogram(0.0, 0.0, ())


@pytest.mark.parametrize("scale", [1e-320, 1e-200, 1e-160, 1e160, 1e300])
def test_squares_outside_the_range_of_float64(tmp_path: Path, scale: float) -> None:
    tensor = torch.tensor([3.0, -4.0, 0.0], dtype=torch.float64) * scale
    found = only(opened(tmp_path / "c", {"w": tensor}))
    assert found.norm == pytest.approx(5 * scale, rel=1e-3)
    assert found.std == pytest.approx(math.sqrt(74 / 9) * scale, rel=1e-3)
    assert found.denormals == (2 if scale < 1e-310 else 0)


def test_a_small_number_beside_a_large_one() -> None:
    accumulator = Accumulator()
    for number in (1e-200, 1e200, 1e-200, 0.0):
        accumulator.add(np.array([number]))
    found = accumulator.result()
    assert found.norm == pytest.approx(1e200)
    assert found.mean == pytest.approx(2.5e199)


def test_a_norm_over_the_range_is_infinite() -> None:
    accumulator = Accumulator()
    accumulator.add(np.full(4, 1.7e308))
    accumulator.add(np.full(4, -1.7e308))
    found = accumulator.result()
    assert found.norm == math.inf
    assert found.max == 1.7e308
    assert math.isfinite(found.histogram.start)


def test_the_mean_of_a_far_constant_keeps_its_digits() -> None:
    accumulator = Accumulator()
    numbers = np.random.default_rng(0).normal(size=200_000)
    accumulator.add(numbers + 1e9)
    assert accumulator.result().std == pytest.approx(numbers.std(), rel=1e-6)


def test_large_integers_are_exact(tmp_path: Path) -> None:
    tensor = torch.tensor([-(2**63), 2**63 - 1, 2**53 + 1])
    found = only(opened(tmp_path / "c", {"w": tensor}))
    assert (found.min, found.max) == (-(2**63), 2**63 - 1)


def test_merge_is_the_same_as_one_after_the_other() -> None:
    numbers = np.random.default_rng(1).normal(size=1000) * np.logspace(-8, 8, 1000)
    together, one, two = Accumulator(), Accumulator(), Accumulator()
    for part, to in ((numbers[:300], one), (numbers[300:], two)):
        together.add(part)
        to.add(part)
    one.merge(two)
    assert one.result() == together.result()


def test_the_order_of_pieces_does_not_matter() -> None:
    numbers = np.random.default_rng(2).normal(size=100_000) * np.logspace(-9, 9, 100_000)
    raw = memoryview(numbers.tobytes())
    results: list[TensorStatistics] = []
    for order in (range(0, len(raw), 8000), reversed(range(0, len(raw), 8000))):
        sink = StatisticsSink("float64", len(raw), results.append)
        for start in order:
            sink.write(start, raw[start : start + 8000])
    assert results[0] == results[1]


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("target", ["c", "c.json", "c.json.zst"])
def test_each_layout_and_number_of_threads(tmp_path: Path, target: str, threads: int) -> None:
    torch.manual_seed(0)
    state: dict[str, Any] = {
        "w": torch.randn(600, 700),
        "b": torch.randn(90_000).bfloat16(),
        "e": torch.empty(0),
        "s": [torch.tensor(3.0) for _ in range(40)],
    }
    container = opened(tmp_path / target, state, threads, compression="none")
    done: list[int] = []
    found = read_statistics(container, advance=done.append)
    assert list(found) == [entry.name for entry in container.manifest.entries]
    assert sum(done) == container.manifest.nbytes
    check(found["/w"], state["w"])
    check(found["/b"], state["b"])
    assert set(read_statistics(container, lambda name: name == "/b")) == {"/b"}


def test_numbers_are_handed_on_with_their_places(tmp_path: Path) -> None:
    tensor = torch.arange(100_000).bfloat16()
    container = opened(tmp_path / "c", {"w": tensor}, chunk_size=65536)
    got = np.zeros(100_000, np.float32)

    def take(place: int, numbers: np.ndarray[Any, Any]) -> None:
        got[place // 2 : place // 2 + len(numbers)] = numbers

    read_statistics(container, also=lambda _: take)
    assert got.tolist() == tensor.tolist()


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.zeros(1000)}, tmp_path / "c", compression="none")
    shard = next((tmp_path / "c").glob("shard-*"))
    shard.write_bytes(shard.read_bytes().replace(b"AAAAAAAA", b"AAAABAAA", 1))
    with pytest.raises(jsonckpt.IntegrityError, match="/w"):
        read_statistics(open_container(tmp_path / "c", ReadOptions()))


@pytest.mark.parametrize("make", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_a_few_chunks(tmp_path: Path, make: torch.dtype) -> None:
    container = opened(tmp_path / "c", {"w": torch.randn(8_000_000).to(make)})
    read_statistics(container)
    tracemalloc.start()
    try:
        read_statistics(container)
        assert tracemalloc.get_traced_memory()[1] < 12 << 20
    finally:
        tracemalloc.stop()


def test_many_tensors_do_not_add_up(tmp_path: Path) -> None:
    """Tables of bit patterns are given back when their tensor is done."""
    state = [torch.randn(70_000).half() for _ in range(60)]
    container = opened(tmp_path / "c", state)
    tracemalloc.start()
    try:
        assert len(read_statistics(container)) == 60
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("counts", "text"),
    [([], "    "), ([0, 0], "    "), ([1], "█"), ([1, 2, 4, 8] * 2, "▂█▂█"), ([0, 9], " █")],
)
def test_a_line_of_bars(counts: list[int], text: str) -> None:
    assert sparkline(counts, 4) == text


def test_constant() -> None:
    accumulators: list[Callable[[], TensorStatistics]] = []
    for numbers in ([2.0, 2.0], [2.0], [2.0, math.nan], [1.0, 2.0]):
        accumulator = Accumulator()
        accumulator.add(np.array(numbers))
        accumulators.append(accumulator.result)
    assert [result().is_constant for result in accumulators] == [True, False, False, False]
