"""The filter ``shuffle``: planes by wider integers equal those of single bytes."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonckpt._src.format import zstd
from jsonckpt._src.format.chunk_codec import ChunkCodec
from jsonckpt._src.format.model import Codec
from tests.support import examples

#: Beside the length of a block, too: one more element makes a second one.
COUNTS = [0, 1, 3, 1000, zstd._BLOCK - 1, zstd._BLOCK, zstd._BLOCK + 5]


@pytest.mark.parametrize("itemsize", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("start", [0, 1, 2, 3])
def test_planes(itemsize: int, count: int, start: int) -> None:
    """At any address: memory of the user's need not be aligned."""
    memory = np.random.default_rng(count).integers(0, 256, start + count * itemsize, dtype=np.uint8)
    raw = memory[start:]
    shuffler = zstd.Shuffler()
    planes = shuffler.apart(raw, itemsize, np.empty(len(raw), np.uint8))
    assert (planes.reshape(itemsize, -1) == raw.reshape(-1, itemsize).T).all()
    back = np.empty(start + len(raw), np.uint8)[start:]
    assert (shuffler.together(planes, itemsize, back) == raw).all()


@pytest.mark.parametrize("itemsize", [2, 4, 8, 16])
@pytest.mark.parametrize("count", [1, 2, 100])
@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_some_planes_in_blocks_that_lie_apart(itemsize: int, count: int, blocks: int) -> None:
    raw = np.random.default_rng(1).integers(0, 256, blocks * count * itemsize, dtype=np.uint8)
    expected = raw.reshape(-1, itemsize).T.reshape(itemsize, blocks, count)
    for first in range(itemsize):
        for last in range(first + 1, itemsize + 1):
            memory = np.full((last - first, blocks, count + 5), 7, np.uint8)
            zstd.take_planes(raw, itemsize, first, memory[:, :, 3:-2])
            assert (memory[:, :, 3:-2] == expected[first:last]).all()
            assert (memory[:, :, :3] == 7).all()
            assert (memory[:, :, -2:] == 7).all()


def test_nothing_is_read_beyond_the_last_element() -> None:
    """The memory may end there: the next page is not to be read."""
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    data = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    address = data.ctypes.data + mmap.PAGESIZE
    assert libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 0) == 0
    try:
        for itemsize in (2, 4, 8, 16):
            out = np.empty((itemsize, 1, mmap.PAGESIZE // itemsize), np.uint8)
            zstd.take_planes(data[: mmap.PAGESIZE], itemsize, 0, out)
            assert not out.any()
    finally:
        assert libc.mprotect(ctypes.c_void_p(address), mmap.PAGESIZE, 3) == 0


def test_one_shuffler_takes_one_size_after_the_other() -> None:
    shuffler = zstd.Shuffler()
    for size in (16, 64, 8, 9 << 20, 32):
        for itemsize in (4, 2, 8):
            raw = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8)
            planes = shuffler.apart(raw, itemsize, np.empty(size, np.uint8))
            assert (shuffler.together(planes, itemsize, np.empty(size, np.uint8)) == raw).all()


@settings(max_examples=examples(60))
@given(
    st.sampled_from(["float32", "bfloat16", "float64", "int64", "int16", "complex128"]),
    st.integers(1, 70_000),
    st.integers(0, 3),
)
def test_frames_of_any_length_come_back(dtype: str, count: int, seed: int) -> None:
    itemsize = {"bfloat16": 2, "int16": 2, "float32": 4, "complex128": 16}.get(dtype, 8)
    chance = np.random.default_rng(seed)
    kinds = [
        chance.standard_normal(count).astype(np.float32).view(np.uint8),
        np.zeros(4 * count, np.uint8),
        chance.integers(0, 256, 4 * count, dtype=np.uint8),
        np.arange(count, dtype=np.int32).view(np.uint8),
    ]
    raw = np.resize(kinds[seed], count * itemsize)
    codec = Codec("base64", "zstd", "shuffle", 1 << 26)
    coder = ChunkCodec()
    payload = coder.encode(raw.data, codec, dtype)
    out = bytearray(len(raw))
    coder.decode_into(memoryview(payload), codec, dtype, memoryview(out))
    assert bytes(out) == raw.tobytes()


def test_planes_that_are_no_multiple_of_a_block_compress_as_well_as_others() -> None:
    """A zstd block with the end of one plane and the beginning of the next has one table for both,
    which cost 4 per cent of the whole at this size."""
    codec = Codec("base64", "zstd", "shuffle", 1 << 20)
    weights = np.random.default_rng(0).standard_normal(1 << 18).astype(np.float32) * 0.02
    ratios = []
    for count in (1 << 18, 100_000):
        raw = weights[:count].view(np.uint8)
        ratios.append(len(ChunkCodec().encode(raw.data, codec, "float32")) / len(raw))
    assert ratios[1] < 1.005 * ratios[0]
