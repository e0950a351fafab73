"""Chunks to text and back."""

from __future__ import annotations

import base64
import os
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, LimitError
from jsonckpt._src.format.chunk_codec import ChunkCodec, check_bool, payload_bound
from jsonckpt._src.format.model import Codec

PLAIN = Codec("base64", "none", "none", 1 << 20)
SHUFFLED = Codec("base64", "none", "shuffle", 1 << 20)
ZSTD = Codec("base64", "zstd", "none", 1 << 20)
BOTH = Codec("base64", "zstd", "shuffle", 1 << 20)


def decode(
    payload: bytes, codec: Codec, dtype: str, nbytes: int, coder: ChunkCodec | None = None
) -> bytes:
    out = bytearray(nbytes)
    (coder or ChunkCodec()).decode_into(memoryview(payload), codec, dtype, memoryview(out))
    return bytes(out)


@given(
    st.sampled_from([PLAIN, SHUFFLED, ZSTD, BOTH]),
    st.sampled_from([("uint8", 1), ("bfloat16", 2), ("float32", 4), ("complex128", 16)]),
    st.binary(max_size=400),
)
def test_what_is_encoded_comes_back(codec: Codec, dtype: tuple[str, int], raw: bytes) -> None:
    name, itemsize = dtype
    raw = raw * itemsize
    if not raw:
        return
    payload = ChunkCodec().encode(memoryview(raw), codec, name)
    assert decode(payload, codec, name, len(raw)) == raw
    assert len(payload) <= payload_bound(len(raw), codec, name)


def test_plain_base64_is_that_of_the_standard_library() -> None:
    raw = bytes(range(256))
    assert ChunkCodec().encode(memoryview(raw), PLAIN, "uint8") == base64.b64encode(raw)


def test_shuffle_puts_byte_j_of_element_i_at_j_times_count_plus_i() -> None:
    raw = bytes([1, 2, 3, 4, 11, 12, 13, 14, 21, 22, 23, 24])
    payload = ChunkCodec().encode(memoryview(raw), SHUFFLED, "float32")
    assert base64.b64decode(payload) == bytes([1, 11, 21, 2, 12, 22, 3, 13, 23, 4, 14, 24])


def test_zstd_writes_one_ordinary_frame_with_its_size() -> None:
    raw = bytes(100_000)
    frame = base64.b64decode(ChunkCodec().encode(memoryview(raw), ZSTD, "uint8"))
    assert zstandard.get_frame_parameters(frame).content_size == len(raw)
    assert zstandard.ZstdDecompressor().decompress(frame) == raw
    assert len(frame) < 100


def test_weights_compress_to_the_entropy_of_their_planes_within_one_and_a_half_percent() -> None:
    weights = np.random.default_rng(0).normal(0, 0.02, 1 << 18).astype(np.float32)
    raw = weights.tobytes()
    frame = base64.b64decode(ChunkCodec().encode(memoryview(raw), BOTH, "float32"))
    bits = 0.0
    for plane in np.frombuffer(raw, np.uint8).reshape(-1, 4).T:
        counts = np.bincount(plane, minlength=256)
        share = counts[counts > 0] / len(plane)
        bits += float(-(share * np.log2(share)).sum())
    assert len(frame) <= 1.015 * len(raw) * bits / 32


def test_noise_is_judged_not_worth_compressing_and_weights_are() -> None:
    noise = os.urandom(1 << 16)
    assert not ChunkCodec().compresses(memoryview(noise), ZSTD, "uint8")
    assert not ChunkCodec().compresses(memoryview(noise), BOTH, "float32")
    weights = np.random.default_rng(0).normal(0, 0.02, 1 << 14).astype(np.float32).tobytes()
    assert ChunkCodec().compresses(memoryview(weights), BOTH, "float32")


@pytest.mark.parametrize(
    ("payload", "nbytes", "why"),
    [
        (b"QUJD", 2, "3 bytes, expected 2"),
        (b"QR==", 1, "trailing bits"),
        (b"QUI", 2, "characters"),
        (b"QUJ\n", 3, "base64"),
        (b"QU JD", 3, "characters"),
        (b"QU*D", 3, "base64"),
        (b"QQ==", 3, "base64"),
        (b"\xff\xff\xff\xff", 3, "base64"),
    ],
)
def test_base64_has_one_spelling(payload: bytes, nbytes: int, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        decode(payload, PLAIN, "uint8", nbytes)


def frame_of(raw: bytes, **options: Any) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(raw)


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (frame_of(bytes(99)), "states 99 bytes"),
        (frame_of(bytes(100), write_content_size=False), "states no size"),
        (frame_of(bytes(100)) + frame_of(bytes(1)), "zstd"),
        (frame_of(bytes(100)) + b"x", "zstd"),
        (frame_of(bytes(100))[:-1], "zstd"),
        (b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd", "not a zstd frame"),
        (b"", "not a zstd frame"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
    ],
)
def test_frames_that_the_format_forbids(frame: bytes, why: str) -> None:
    with pytest.raises(FormatError, match=why):
        decode(base64.b64encode(frame), ZSTD, "uint8", 100)


def test_a_forged_size_is_refused_before_it_is_allocated() -> None:
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(FormatError, match="1099511627776"):
        decode(base64.b64encode(frame), ZSTD, "uint8", 100)


def test_a_window_over_the_limit() -> None:
    raw = bytes(1 << 20)
    payload = base64.b64encode(frame_of(raw))
    assert decode(payload, ZSTD, "uint8", len(raw), ChunkCodec(zstd_window=1 << 20)) == raw
    with pytest.raises(LimitError, match="window"):
        decode(payload, ZSTD, "uint8", len(raw), ChunkCodec(zstd_window=1 << 16))


def test_bool_bytes() -> None:
    check_bool(memoryview(b"\0\1\1"))
    check_bool(memoryview(b""))
    with pytest.raises(FormatError, match="0 and 1"):
        check_bool(memoryview(b"\0\2"))
    with pytest.raises(FormatError, match="0 and 1"):
        decode(base64.b64encode(b"\7"), PLAIN, "bool", 1)
