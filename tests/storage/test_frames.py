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


def with_window(descriptor: int) -> bytes:
    """A frame of one raw block that states a window."""
    block = (len(TEXT) << 3 | 1).to_bytes(3, "little") + TEXT
    return b"\x28\xb5\x2f\xfd\x00" + bytes([descriptor]) + block


def test_windows_are_taken_at_their_exact_size() -> None:
    data = with_window(7 << 3 | 5)  # 2^17 and five eighths of it
    window = (1 << 17) * 13 // 8
    assert read(data, window) == TEXT
    with pytest.raises(LimitError, match=str(window)):
        read(data, window - 1)


def test_without_a_limit_any_window_that_zstd_knows_is_taken() -> None:
    assert read(with_window(18 << 3)) == TEXT  # 256 MiB, of which only the text is touched
    with pytest.raises(FormatError, match="damaged"):
        read(with_window(0xFF))


def test_frames_may_be_empty() -> None:
    empty = zstandard.compress(b"")
    assert read(empty) == b""
    assert read(empty * 3000 + zstandard.compress(TEXT) + empty * 3000) == TEXT
    with pytest.raises(IncompleteCheckpointError):
        read(b"")


class Drops(io.BytesIO):
    """A source that gives one byte at a time."""

    def read(self, size: int | None = -1) -> bytes:
        return super().read(min(1, size or 0))


def test_a_source_may_give_little_at_a_time() -> None:
    stream = ZstdStream(Drops(frames(TEXT, 1000)), zstd_window=None)
    buffer, text = bytearray(777), b""
    while count := stream.readinto(memoryview(buffer)):
        text += buffer[:count]
    assert text == TEXT


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
