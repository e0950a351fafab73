"""Fresh memory: what is asked of the kernel, and when it is asked no more."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src import linux

PAGE = mmap.PAGESIZE
BASE = 64 << 20


class Kernel:
    """Takes down the advice, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, int, int]] = []
        self.refuse: Callable[[int], bool] = lambda _: False

    def __call__(self, address: ctypes.c_void_p, nbytes: ctypes.c_size_t, advice: int) -> int:
        start = address.value or 0
        self.calls.append((start, start + nbytes.value, advice))
        return -1 if self.refuse(start) else 0

    @property
    def ranges(self) -> list[tuple[int, int]]:
        return [(start, stop) for start, stop, _ in self.calls]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(linux, "linux_call", lambda _: fake)
    monkeypatch.setattr(linux, "_can_populate", True)
    return fake


def test_only_whole_pages_of_a_range_are_mapped(kernel: Kernel) -> None:
    linux.populate(BASE + 100, 1 << 20)
    assert kernel.ranges == [(BASE + PAGE, BASE + (1 << 20))]


def test_a_small_range_is_not_worth_a_call(kernel: Kernel) -> None:
    linux.populate(BASE, linux._SMALLEST_POPULATED - 1)
    linux.populate(BASE, 0)
    assert kernel.calls == []


def test_a_kernel_that_refuses_is_asked_no_more(kernel: Kernel) -> None:
    kernel.refuse = lambda _: True
    for number in range(5):
        linux.populate(BASE + (number << 20), 1 << 20)
    assert len(kernel.calls) == 1


@pytest.mark.parametrize("threads", [1, 2])
def test_load_asks_for_each_chunk_right_before_it_is_written(
    kernel: Kernel, tmp_path: Path, threads: int
) -> None:
    state = {f"w{n}": torch.full((300_000,), float(n)) for n in range(20)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    kernel.calls.clear()
    loaded = jsonckpt.load(tmp_path / "c", threads=threads)
    for tensor in loaded.values():
        start, stop = tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        own = [(low, high) for low, high in kernel.ranges if start <= low and high <= stop]
        # Two chunks, and nothing beyond the tensor; the second chunk is 144 KiB.
        assert len(own) == 2
        assert sum(high - low for low, high in own) > tensor.nbytes - 4 * PAGE
    assert len(kernel.calls) == 2 * len(loaded)
    assert all(bool((loaded[f"w{n}"] == n).all()) for n in range(20))


def test_what_is_not_read_is_not_mapped(kernel: Kernel, tmp_path: Path) -> None:
    """Memory that a damaged file claims and never fills stays untaken."""
    jsonckpt.save({"w": torch.ones(2_000_000)}, tmp_path / "c", sync=False)
    shard = next((tmp_path / "c").glob("shard-*"))
    text = bytearray(shard.read_bytes())
    text[text.find(b'"chunks":[') + 20] = ord("!")
    shard.write_bytes(text)
    kernel.calls.clear()
    with pytest.raises(jsonckpt.JsonckptError):
        jsonckpt.load(tmp_path / "c", threads=1)
    assert len(kernel.calls) == 1


def test_memory_of_the_caller_gets_no_advice(kernel: Kernel, tmp_path: Path) -> None:
    state = {f"w{n}": torch.ones(2_000_000) for n in range(2)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    kernel.calls.clear()
    jsonckpt.load_into(state, tmp_path / "c")
    assert kernel.calls == []


def test_nothing_asks_for_huge_pages(kernel: Kernel, tmp_path: Path) -> None:
    """They are ten times slower where the host of a virtual machine has not backed them yet."""
    state = {"w": torch.ones(8_000_000)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    jsonckpt.load(tmp_path / "c")
    assert {advice for _, _, advice in kernel.calls} == {linux._MADV_POPULATE_WRITE}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_the_kernel_itself(tmp_path: Path) -> None:
    """What comes back is right, whatever this kernel says to the advice."""
    state = {f"w{n}": torch.arange(250_000 + n) for n in range(12)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    for _ in range(2):
        loaded = jsonckpt.load(tmp_path / "c")
        assert all(torch.equal(loaded[name], state[name]) for name in state)
