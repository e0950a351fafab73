"""The Zstandard decoder of the viewer, against the ``zstandard`` package."""

from __future__ import annotations

import random

import numpy as np
import pytest
import zstandard

from jsonckpt._src.format.zstd import FrameEncoder
from tests.viewer.node import packed, run, unpacked

SIZES = [0, 1, 2, 5, 6, 63, 255, 256, 1000, 65_535, 131_072, 131_073, 300_000]
LEVELS = [-5, 1, 3, 5, 9, 15, 22]


def decode(cases: list[tuple[int, bytes]]) -> list[bytes]:
    """For each frame ``+`` and its content, or ``-`` and a message; size -1: frames in pieces."""
    parts = [part for size, frame in cases for part in (str(size).encode(), frame)]
    found = unpacked(run("zstd.mjs", data=packed(parts)))
    assert len(found) == len(cases)
    return found


def content(kind: str, size: int) -> bytes:
    draw = np.random.default_rng(size + len(kind))
    if kind == "noise":
        return draw.bytes(size)
    if kind == "zeros":
        return bytes(size)
    if kind == "words":
        words = [draw.bytes(int(n)) for n in draw.integers(1, 12, 200)]
        picks = draw.zipf(1.3, size // 3 + 1) % 200
        return b"".join(words[i] for i in picks)[:size]
    if kind == "skewed":
        return bytes((draw.geometric(0.1, size) % 256).astype(np.uint8))
    if kind == "periodic":
        return (b"abcdefg" * (size // 7 + 1))[:size]
    floats = draw.normal(0, 0.02, size // 4 + 1).astype("<f4").tobytes()[:size]
    if kind == "shuffled":
        return b"".join(floats[i::4] for i in range(4))
    return floats


KINDS = ["noise", "zeros", "words", "skewed", "periodic", "floats", "shuffled"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_level_and_size(kind: str) -> None:
    contents = [content(kind, size) for size in SIZES]
    cases, expected = [], []
    for level in LEVELS:
        for index, data in enumerate(contents):
            if level > 15 and len(data) > 140_000:
                continue
            writer = zstandard.ZstdCompressor(level=level, write_checksum=index % 2 == 1)
            frame = writer.compress(data)
            cases += [(len(data), frame), (-1, frame)]
            expected += [b"+" + data] * 2
    assert decode(cases) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_this_package(kind: str) -> None:
    data = content(kind, 1 << 20)
    frames = [FrameEncoder(level).frame([memoryview(data)]) for level in (1, 3, 9)]
    frames.append(FrameEncoder(3).frame([memoryview(data)[i::4].tobytes() for i in range(4)]))  # type: ignore[misc]
    whole = b"".join(data[i::4] for i in range(4))
    assert decode([(len(data), frame) for frame in frames]) == [b"+" + data] * 3 + [b"+" + whole]


@pytest.mark.parametrize("strategy", range(1, 10))
def test_every_strategy(strategy: int) -> None:
    data = content("words", 200_000)
    cases = []
    for window, shortest in [(10, 3), (12, 4), (17, 5), (20, 7)]:
        parameters = zstandard.ZstdCompressionParameters(
            window_log=window, min_match=shortest, strategy=strategy, write_content_size=1
        )
        frame = zstandard.ZstdCompressor(compression_params=parameters).compress(data)
        cases += [(len(data), frame), (-1, frame)]
    assert decode(cases) == [b"+" + data] * len(cases)


def test_frames_one_after_the_other_and_matches_across_a_window() -> None:
    far = content("noise", 700_000)
    data = far + content("words", 900_000) + far[:400_000]
    parameters = zstandard.ZstdCompressionParameters(window_log=22, enable_ldm=True)
    whole = zstandard.ZstdCompressor(compression_params=parameters)
    unsized = zstandard.ZstdCompressor(level=3).compressobj()  # states no content size
    pieces = [whole.compress(data), zstandard.compress(b""), unsized.compress(data)]
    pieces[-1] += unsized.flush()
    assert decode([(-1, b"".join(pieces))]) == [b"+" + data + data]


def test_damaged_frames_are_refused_and_nothing_else_is_raised() -> None:
    draw = random.Random(5)
    cases = []
    for kind in ("words", "floats", "skewed"):
        data = content(kind, 3000)
        writer = zstandard.ZstdCompressor(level=12, write_checksum=True)
        frame = writer.compress(data)
        cases += [(len(data), frame[:cut]) for cut in range(0, len(frame), 7)]
        cases += [(-1, frame[:cut]) for cut in range(1, len(frame), 7)]
        for place in range(len(frame)):
            damaged = bytearray(frame)
            damaged[place] ^= 1 << draw.randrange(8)
            cases.append((len(data), bytes(damaged)))
            cases.append((-1, bytes(damaged)))
    found = decode(cases)
    # The checksum of the content finds what the decoder cannot.
    assert {answer[:1] for answer in found} == {b"-"}, [
        case for case, answer in zip(cases, found) if answer[:1] == b"+"
    ][:3]


def test_damage_without_a_checksum_gives_what_the_package_gives() -> None:
    draw = random.Random(6)
    cases: list[tuple[int, bytes]] = []
    expected: list[bytes | None] = []
    for kind in ("words", "floats", "zeros"):
        frame = zstandard.ZstdCompressor(level=5).compress(content(kind, 5000))
        for _ in range(1500):
            damaged = bytearray(frame)
            for _ in range(draw.randrange(1, 4)):
                damaged[draw.randrange(6, len(frame))] = draw.randrange(256)
            cases.append((5000, bytes(damaged)))
            try:
                content_of = zstandard.ZstdDecompressor(max_window_size=64 << 20)
                expected.append(content_of.decompress(bytes(damaged), allow_extra_data=False))
            except zstandard.ZstdError:
                expected.append(None)
    found = decode(cases)
    for answer, value in zip(found, expected):
        # The decoder may refuse more than the package does, but never says something else.
        if value is None:
            assert answer[:1] == b"-"
        elif answer[:1] == b"+":
            assert answer[1:] == value
    assert sum(answer[:1] == b"+" for answer in found) > 50


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (b"", "ends inside its header"),
        (b"\x28\xb5\x2f\xfd", "ends inside its header"),
        (b"\x50\x2a\x4d\x18\x04\0\0\0abcd", "no zstd frame"),
        (b"\x28\xb5\x2f\xfd\x28\x05\x01\0\0", "reserved bit"),
        (b"\x28\xb5\x2f\xfd\x21\x07\x05\x01\0\0", "dictionary"),
        (b"\x28\xb5\x2f\xfd\x80\xff\x05\0\0\0\x01\0\0", "window of more than 64 MiB"),
        (b"\x28\xb5\x2f\xfd\xe0" + b"\xff" * 8 + b"\x01\0\0", "window of more than 64 MiB"),
        (b"\x28\xb5\x2f\xfd\x20\x06\x01\0\0", "says 6 bytes, not 5"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x01\0\0", "holds 0 bytes, not 5"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x2b\0\0a!", "bytes follow"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x33\0\0a", "block is too large"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x2f\0\0a", "type that is reserved"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x2a\0\0a\x2b\0\0a", "more than it says"),
        (b"\x28\xb5\x2f\xfd\x20\x05\x29\0\0abc", "cut off"),
    ],
)
def test_hostile_frames(frame: bytes, message: str) -> None:
    [answer] = decode([(5, frame)])
    assert answer[:1] == b"-"
    assert message in answer.decode()


def test_one_rle_block() -> None:
    assert decode([(5, b"\x28\xb5\x2f\xfd\x20\x05\x2b\0\0a")]) == [b"+aaaaa"]
