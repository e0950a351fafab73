"""Huge pages for fresh memory: what is asked of the kernel, and when it is asked no more."""

from __future__ import annotations

import ctypes
import errno
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt import pages

HUGE = 2 << 20
Calls = list[tuple[int, int, int]]


class Kernel:
    """Takes down the advice, and refuses what it is told to refuse."""

    def __init__(self) -> None:
        self.calls: Calls = []
        self.refuse: Callable[[int], int] = lambda _: 0

    def __call__(self, address: ctypes.c_void_p, nbytes: ctypes.c_size_t, advice: int) -> int:
        start = address.value or 0
        self.calls.append((start, start + nbytes.value, advice))
        number = self.refuse(start) if advice == pages._MADV_COLLAPSE else 0
        ctypes.set_errno(number)
        return -1 if number else 0

    def of(self, advice: int) -> list[tuple[int, int]]:
        """The ranges of one kind of advice."""
        return [(start, stop) for start, stop, found in self.calls if found == advice]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    fake = Kernel()
    monkeypatch.setattr(pages, "linux_call", lambda _: fake)
    monkeypatch.setattr(pages, "_page_size", lambda: HUGE)
    return fake


def test_neighbours_are_one_stretch(kernel: Kernel) -> None:
    base = 64 * HUGE
    near = [(base + 64, HUGE - 128), (base + HUGE + 64, 3 * HUGE - 64)]
    far = (base + 5 * HUGE, 2 * HUGE)
    small = (base + 100 * HUGE, pages.LEAST - 1)
    fresh = pages.FreshPages([far, near[1], small, near[0], (base, 0)])
    assert fresh
    inside = (base + 4096, base + 4 * HUGE)  # whole pages of the range
    assert kernel.of(pages._MADV_HUGEPAGE) == [inside, (base + 5 * HUGE, base + 7 * HUGE)]
    assert kernel.of(pages._MADV_COLLAPSE) == []


def test_each_huge_page_that_is_wholly_ours_is_exchanged_once_before_it_is_written(
    kernel: Kernel,
) -> None:
    base = 64 * HUGE
    fresh = pages.FreshPages([(base + 100, 4 * HUGE)])
    fresh.before_writing(base + 100, 1000)  # its page begins before the stretch
    assert kernel.of(pages._MADV_COLLAPSE) == []
    fresh.before_writing(base + HUGE - 10, 20)
    fresh.before_writing(base + HUGE, 1 << 20)
    assert kernel.of(pages._MADV_COLLAPSE) == [(base + HUGE, base + 2 * HUGE)]
    fresh.before_writing(base + 2 * HUGE, 2 * HUGE + 100)  # the last page ends behind it
    assert kernel.of(pages._MADV_COLLAPSE)[1:] == [
        (base + 2 * HUGE, base + 3 * HUGE),
        (base + 3 * HUGE, base + 4 * HUGE),
    ]


def test_memory_of_others_is_left_alone(kernel: Kernel) -> None:
    base = 64 * HUGE
    fresh = pages.FreshPages([(base, 2 * HUGE), (base + 10 * HUGE, 2 * HUGE)])
    for address in (base - HUGE, base + 2 * HUGE, base + 5 * HUGE, base + 12 * HUGE):
        fresh.before_writing(address, HUGE)
    assert kernel.of(pages._MADV_COLLAPSE) == []
    assert not pages.FreshPages([(base, HUGE)])
    assert not pages.FreshPages([])


@pytest.mark.parametrize("number", [errno.ENOMEM, errno.EBUSY])
def test_a_kernel_without_huge_pages_left_is_soon_asked_no_more(
    kernel: Kernel, number: int
) -> None:
    kernel.refuse = lambda _: number
    base = 64 * HUGE
    fresh = pages.FreshPages([(base, 20 * HUGE)])
    for page in range(20):
        fresh.before_writing(base + page * HUGE, HUGE)
    assert len(kernel.of(pages._MADV_COLLAPSE)) == 3
    assert not fresh


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EAGAIN])
def test_quick_refusals_do_not_matter(kernel: Kernel, number: int) -> None:
    """Of memory without any page yet the kernel says EINVAL."""
    kernel.refuse = lambda start: number if start % (2 * HUGE) else 0
    base = 64 * HUGE
    fresh = pages.FreshPages([(base, 20 * HUGE)])
    fresh.before_writing(base, 20 * HUGE)
    assert len(kernel.of(pages._MADV_COLLAPSE)) == 20


def test_settings_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_SETTINGS", tmp_path)

    def size() -> int:
        pages._page_size.cache_clear()
        return pages._page_size()

    assert size() == 0
    (tmp_path / "enabled").write_text("always [madvise] never\n")
    assert size() == 0
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    assert size() == HUGE
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    assert size() == 0
    pages._page_size.cache_clear()


@pytest.mark.parametrize("threads", [1, 2])
def test_load_asks_before_each_chunk_of_small_tensors(
    kernel: Kernel, tmp_path: Path, threads: int
) -> None:
    state = {f"w{n}": torch.full((300_000,), float(n)) for n in range(20)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    kernel.calls.clear()
    loaded = jsonckpt.load(tmp_path / "c", threads=threads)
    addresses = [tensor.data_ptr() for tensor in loaded.values()]
    asked = kernel.of(pages._MADV_COLLAPSE)
    assert len(asked) == len(set(asked)) > 5
    for start, stop in asked:
        assert stop - start == HUGE
        assert min(addresses) <= start
        assert stop <= max(addresses) + 1_200_000
    assert all(bool((loaded[f"w{n}"] == n).all()) for n in range(20))


def test_memory_of_the_caller_gets_no_advice(kernel: Kernel, tmp_path: Path) -> None:
    state = {f"w{n}": torch.ones(2_000_000) for n in range(2)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    kernel.calls.clear()
    jsonckpt.load_into(state, tmp_path / "c")
    assert kernel.calls == []


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks the Linux kernel")
def test_the_kernel_itself(tmp_path: Path) -> None:
    """What comes back is right, whatever this kernel says to the advice."""
    state = {f"w{n}": torch.arange(250_000 + n) for n in range(12)}
    jsonckpt.save(state, tmp_path / "c", sync=False)
    for _ in range(2):
        loaded = jsonckpt.load(tmp_path / "c")
        assert all(torch.equal(loaded[name], state[name]) for name in state)
