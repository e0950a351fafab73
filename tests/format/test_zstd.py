"""Frames that are put together here: any decoder opens them, and they are near the entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format.chunk_codec import payload_bound
from jsonckpt._src.format.model import Codec
from jsonckpt._src.format.zstd import (
    Bytes,
    Compressor,
    Decompressor,
    Shuffler,
    entropy_coder,
)

MIB = 1 << 20
RNG = np.random.default_rng(7)
KINDS = ["noise", "zeros", "rows of zeros", "repeated", "skewed"]
BOTH = Codec("base64", "zstd", "shuffle", MIB)


def planes_of(values: np.ndarray[Any, Any]) -> Bytes:
    raw = values.reshape(-1).view(np.uint8)
    return Shuffler().apart(raw, values.itemsize, np.empty_like(raw))


def frame_of(
    planes: Bytes, count: int, *, floats: bool = True, compressor: Compressor | None = None
) -> bytes:
    """The frame of the elements that have such byte planes."""
    raw = planes if count == 1 else Shuffler().together(planes, count, np.empty_like(planes))
    return bytes((compressor or Compressor()).frame(raw, count, floats=floats))


def entropy(planes: Bytes, count: int) -> float:
    """Bytes that a code without a memory needs."""
    bits = 0.0
    for plane in planes.reshape(count, -1):
        shares = np.bincount(plane, minlength=256) / len(plane)
        shares = shares[shares > 0]
        bits -= float((shares * np.log2(shares)).sum()) * len(plane)
    return bits / 8


def plane(kind: str, size: int, seed: int) -> Bytes:
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 256, size, dtype=np.uint8)
    if kind == "noise":
        return noise
    if kind == "zeros":
        return np.zeros(size, np.uint8)
    if kind == "rows of zeros":
        noise[np.arange(size) // 700 % 3 != 0] = 0
        return noise
    if kind == "repeated":
        return np.resize(noise[:1000], size)
    return rng.binomial(20, 0.3, size).astype(np.uint8)


@given(
    st.sampled_from([1, 2, 4, 8, 16]).flatmap(
        lambda count: st.lists(st.sampled_from(KINDS), min_size=count, max_size=count)
    ),
    st.sampled_from([1, 511, 4096, 65_535, 65_536, 65_537, 131_072, 131_073, 196_608, 262_144]),
    st.booleans(),
    st.integers(0, 3),
)
def test_any_decoder_opens_the_frame_of_any_planes(
    kinds: list[str], size: int, floats: bool, seed: int
) -> None:
    data = np.concatenate([plane(kind, size, seed + at) for at, kind in enumerate(kinds)])
    frame = frame_of(data, len(kinds), floats=floats)
    assert zstandard.ZstdDecompressor().decompress(frame) == data.tobytes()
    assert Decompressor(MIB).data(frame, len(data)) == data.tobytes()
    assert 4 * -(-len(frame) // 3) <= payload_bound(len(data), BOTH, "float32")


def test_a_compressor_is_used_again_for_planes_of_every_size() -> None:
    compressor = Compressor()
    for size in (262_144, 65_536, 200_000, 131_072, 262_144, 3 * 131_072 + 5):
        data = np.concatenate([plane("noise", size, 1), plane("skewed", size, 2)])
        frame = frame_of(data, 2, compressor=compressor)
        assert zstandard.ZstdDecompressor().decompress(frame) == data.tobytes()


@pytest.mark.parametrize("size", [65_536, 196_608, 262_144])
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "bf16"])
def test_weights_take_their_entropy_and_at_most_a_hundredth_and_a_half(
    size: int, dtype: str
) -> None:
    weights = RNG.normal(0, 0.02, size).astype("<f4" if dtype == "bf16" else dtype)
    halves = weights.view(np.uint16)[1::2].copy() if dtype == "bf16" else None
    values = weights if halves is None else halves
    planes = planes_of(values)
    frame = frame_of(planes, values.itemsize)
    assert len(frame) <= 1.015 * entropy(planes, values.itemsize)


def test_noise_is_stored_and_costs_a_few_bytes_of_headers() -> None:
    noise = plane("noise", MIB, 3)
    assert len(noise) < len(frame_of(noise, 4)) < len(noise) + 64


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_rows_of_zeros_between_weights_take_no_room(share: float) -> None:
    rows = RNG.normal(0, 0.02, (512, 512)).astype(np.float32)
    rows[RNG.permutation(512)[: int(512 * share)]] = 0  # tokens that the training has not seen
    planes = planes_of(rows)
    dense = len(frame_of(planes_of(rows[(rows != 0).any(1)]), 4))
    assert len(frame_of(planes, 4)) < 1.06 * dense + 0.004 * planes.size


@pytest.mark.parametrize("period", [2, 4, 8, 64])
@pytest.mark.parametrize("width", [256, 768, 1024, 4096])
def test_zeros_in_every_row_but_one_of_some_are_seen_whatever_the_widths(
    width: int, period: int
) -> None:
    rows = RNG.normal(0, 0.02, (MIB // 4 // width, width)).astype(np.float32)
    rows[np.arange(len(rows)) % period != 0] = 0
    planes = planes_of(rows)
    assert len(frame_of(planes, 4)) < planes.size * (1 / period + 0.05)


def test_exponents_that_repeat_themselves_get_a_table_that_finds_it() -> None:
    exponents = np.resize(plane("skewed", 1000, 5), 262_144)
    data = np.concatenate([plane("noise", 3 * 262_144, 6), exponents])
    assert len(frame_of(data, 4)) < 3 * 262_144 + 4096


def test_a_zstd_that_does_not_know_the_parameter_makes_the_same_of_it_in_more_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = plane("skewed", 262_144, 5)
    coded = entropy_coder().frame([data.data])
    monkeypatch.setattr("jsonckpt._src.format.zstd._CODE_LITERALS", 77_777)
    frame = entropy_coder().frame([data.data])
    assert zstandard.ZstdDecompressor().decompress(frame) == data.tobytes()
    assert 0.99 * len(coded) < len(frame) < 1.01 * len(coded)


def test_a_frame_that_was_broken_off_leaves_nothing_in_the_next() -> None:
    coder = entropy_coder()
    data = plane("skewed", 262_144, 5).data
    with pytest.raises(TypeError):
        coder.frame([data, data, "no bytes"])  # type: ignore[list-item]
    assert zstandard.ZstdDecompressor().decompress(coder.frame([data])) == data


@pytest.mark.parametrize("size", [0, 1, 255, 256, 65_791, 65_792, 262_144])
def test_a_frame_states_its_size(size: int) -> None:
    data = plane("skewed", size, 5).data
    for parts in ([data], [data, data]):
        frame = entropy_coder().frame(parts)
        assert zstandard.get_frame_parameters(frame).content_size == size * len(parts)
        text = zstandard.ZstdDecompressor().decompressobj().decompress(frame)
        assert text == b"".join(parts)


def test_a_level_is_taken_at_its_word() -> None:
    data = np.concatenate([plane("noise", 3 * 262_144, 6), plane("skewed", 262_144, 7)])
    expected = zstandard.ZstdCompressor(level=5).compress(data.tobytes())
    assert frame_of(data, 4, compressor=Compressor(5)) == expected


def test_a_damaged_raw_block_is_seen_as_a_frame_of_another_size() -> None:
    data = np.concatenate([plane("noise", 3 * 262_144, 6), plane("skewed", 262_144, 7)])
    frame = bytearray(frame_of(data, 4))
    frame[10] ^= 8  # the size of the first block
    with pytest.raises(FormatError):
        Decompressor(MIB).data(bytes(frame), len(data))
