"""Frames of a compressed file, followed as they pass."""

from __future__ import annotations

import io
from typing import Any

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, IncompleteCheckpointError, LimitError
from jsonckpt._src.storage.local import ZstdStream

TEXT = b'{"some":"text"}\n' * 400


def frames(text: bytes, size: int, **options: Any) -> bytes:
    compress = zstandard.ZstdCompressor(**options).compress
    return b"".join(compress(text[i : i + size]) for i in range(0, len(text), size))


def read(data: bytes, window: int | None = None) -> bytes:
    stream = ZstdStream(io.BytesIO(data), zstd_window=window)
    buffer, text = bytearray(777), b""
    while count := stream.readinto(memoryview(buffer)):
        text += buffer[:count]
    return text


@given(st.binary(max_size=3000), st.integers(1, 5000), st.booleans(), st.booleans())
def test_any_frames_are_read(text: bytes, size: int, checksum: bool, sized: bool) -> None:
    data = frames(text or b"x", size, write_checksum=checksum, write_content_size=sized)
    assert read(data) == (text or b"x")


@pytest.mark.parametrize("size", [100, 10_000])
@pytest.mark.parametrize("checksum", [False, True])
def test_every_truncation_is_noticed(size: int, checksum: bool) -> None:
    data = frames(TEXT, size, write_checksum=checksum)
    whole = set()
    compress = zstandard.ZstdCompressor(write_checksum=checksum).compress
    position = 0
    for i in range(0, len(TEXT), size):
        position += len(compress(TEXT[i : i + size]))
        whole.add(position)
    for cut in range(len(data)):
        if cut in whole:
            continue  # between frames: the text itself then ends too early
        with pytest.raises(IncompleteCheckpointError):
            read(data[:cut])


def test_what_is_no_frame_is_refused() -> None:
    data = frames(TEXT, 1000)
    skippable = b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd"
    for bad in (b"plain text, not zstd", data + b"trailing", skippable + data, data + skippable):
        with pytest.raises((FormatError, IncompleteCheckpointError)):
            read(bad)


def test_a_window_over_the_limit_is_refused() -> None:
    data = frames(bytes(1 << 20), 1 << 20)
    assert read(data, 1 << 20) == bytes(1 << 20)
    with pytest.raises(LimitError, match="window"):
        read(data, 1 << 16)


def test_a_dictionary_is_refused() -> None:
    dictionary = zstandard.ZstdCompressionDict(TEXT)
    # A raw dictionary has no id; with one, the frame's header names it.
    trained = zstandard.train_dictionary(
        1024, [bytes([i % 7, i % 11, i % 13]) * 50 for i in range(500)]
    )
    data = zstandard.ZstdCompressor(dict_data=trained).compress(TEXT)
    assert dictionary.dict_id() == 0
    with pytest.raises(FormatError, match="dictionary"):
        read(data)
