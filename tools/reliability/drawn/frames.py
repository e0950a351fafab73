"""Strategies for zstd frames (RFC 8878), valid ones and ones with a fault."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import xxhash
from hypothesis import strategies as st

from tests.hostile.forge import zstd

_MAGIC = b"\x28\xb5\x2f\xfd"
_SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
#: Bytes of the content size for each value of its flag; 1 for the first in a single segment.
_SIZE_BYTES = (0, 2, 4, 8)


@dataclass
class Frame:
    """The parts of a frame.

    Attributes:
        blocks: type, content, and stated size of each block.
        size: the stated content size.
        flag: how many bytes state it, 0 to 3.
        single: a single segment: no window, but the whole content.
        window: the window descriptor.
        bits: further bits of the descriptor.
        dictionary: the bytes of the dictionary's id.
        checksum: the checksum at the end of the frame, if there is one.
        last: whether the last block is marked as the last.
        behind: bytes after the frame.
        cut: bytes that are missing at the end.
    """

    blocks: list[tuple[int, bytes, int]]
    size: int
    flag: int
    single: bool
    window: int = 0
    bits: int = 0
    dictionary: bytes = b""
    checksum: bytes | None = None
    last: bool = True
    magic: bytes = _MAGIC
    behind: bytes = b""
    cut: int = 0

    def __bytes__(self) -> bytes:
        flag = {0: 0, 1: 1, 2: 2, 4: 3}[len(self.dictionary)]
        checked = 4 * (self.checksum is not None)
        descriptor = self.flag << 6 | self.single << 5 | self.bits | checked | flag
        data = self.magic + bytes([descriptor])
        if not self.single:
            data += bytes([self.window])
        data += self.dictionary
        width = _SIZE_BYTES[self.flag] or int(self.single)
        said = self.size - 256 if width == 2 else self.size
        data += (said % (1 << 8 * width)).to_bytes(width, "little")
        for number, (kind, content, size) in enumerate(self.blocks):
            last = self.last and number + 1 == len(self.blocks)
            data += (size << 3 | kind << 1 | last).to_bytes(3, "little") + content
        data += (self.checksum or b"") + self.behind
        return data[: len(data) - self.cut]


def sound_frame(draw: st.DrawFn, raw: bytes) -> Frame:
    """A frame of raw and run-length blocks that holds ``raw``."""
    blocks: list[tuple[int, bytes, int]] = []
    rest = raw
    for cut in draw(st.lists(st.integers(0, len(raw)), max_size=2)):
        blocks.append(_block(draw, rest[:cut]))
        rest = rest[cut:]
    # A block has 128 KiB at most; texts of this fuzzer are shorter.
    blocks.append(_block(draw, rest))
    widths = [2, 3] + [1] * (256 <= len(raw) < 256 + 65536)
    single = draw(st.booleans())
    flag = draw(st.sampled_from(widths + [0] * (single and len(raw) < 256)))
    # From 128 KiB to 64 MiB: a block is no longer than the window.
    made = Frame(blocks, len(raw), flag, single, window=draw(st.integers(7 << 3, 16 << 3)))
    if draw(st.booleans()):
        made.checksum = _checksum(raw)
    return made


def _block(draw: st.DrawFn, piece: bytes) -> tuple[int, bytes, int]:
    if piece and len(set(piece)) == 1 and draw(st.booleans()):
        return 1, piece[:1], len(piece)
    return 0, piece, len(piece)


def _checksum(raw: bytes) -> bytes:
    return xxhash.xxh64_intdigest(raw).to_bytes(8, "little")[:4]


# --- faults ---------------------------------------------------------------------------------------


def _states_another_size(draw: st.DrawFn, made: Frame, raw: bytes) -> None:
    # If the last block is empty, the library's stream does not compare the size. The seal covers
    # the text all the same.
    made.blocks = [block for block in made.blocks if block[2]] or [(0, b"\0", 1)]
    # The library treats 2^64-1 as a frame without a size, and a file may have such frames.
    most = min(1 << 63, (1 << 8 * (_SIZE_BYTES[made.flag] or 1)) - 1)
    sizes = [len(raw) + 1, len(raw) - 1, 0, 2 * len(raw), 1 << 40, most]
    fitting = [size for size in sizes if 0 <= size <= most and size != len(raw)]
    if made.flag == 1:
        fitting = [size for size in fitting if size >= 256]
    made.size = draw(st.sampled_from(fitting or [len(raw) + 1]))


def _meaningless_bit(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    made.bits = draw(st.sampled_from([8, 16, 24]))


def _dictionary(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    made.dictionary = draw(st.sampled_from([b"\x07", b"\x07\1", b"\1\2\3\4"]))


def _large_window(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    made.single = False
    made.flag = made.flag or 2
    made.window = draw(st.integers((16 << 3) + 1, 255))


def _reserved_block(_: st.DrawFn, made: Frame, __: bytes) -> None:
    made.blocks[-1] = (3, *made.blocks[-1][1:])


def _no_last_block(_: st.DrawFn, made: Frame, __: bytes) -> None:
    made.last = False


def _wrong_checksum(draw: st.DrawFn, made: Frame, raw: bytes) -> None:
    right = bytearray(_checksum(raw))
    right[draw(st.integers(0, 3))] ^= 1 << draw(st.integers(0, 7))
    made.checksum = bytes(right)


def _something_behind(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    made.behind = draw(st.sampled_from([b"\0", _MAGIC, _SKIPPABLE, b"more"]))


def _cut_off(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    # Not all of it: a compressed file may lack an empty frame.
    made.cut = draw(st.integers(1, len(bytes(made)) - 1))


def _wrong_magic(draw: st.DrawFn, made: Frame, _: bytes) -> None:
    made.magic = draw(
        st.sampled_from([b"\x27\xb5\x2f\xfd", b"\x50\x2a\x4d\x18", b"\x28\xb5\x2f", b"\0\0\0\0"])
    )


def _block_says_another_size(draw: st.DrawFn, made: Frame, raw: bytes) -> None:
    number = draw(st.integers(0, len(made.blocks) - 1))
    kind, content, size = made.blocks[number]
    others = {0, 1, size + 1, size - 1, len(raw), (1 << 21) - 1} - {size, -1}
    made.blocks[number] = (kind, content, draw(st.sampled_from(sorted(others))))


#: Faults that a reader must refuse, in a payload and in a compressed file.
FAULTS: list[Callable[[st.DrawFn, Frame, bytes], None]] = [
    _states_another_size, _meaningless_bit, _dictionary, _large_window, _reserved_block,
    _no_last_block, _wrong_checksum, _something_behind, _cut_off, _wrong_magic,
    _block_says_another_size,
]  # fmt: skip


def frame(draw: st.DrawFn, raw: bytes) -> bytes:
    """A valid frame, made by hand or by the library."""
    if draw(st.booleans()):
        return bytes(sound_frame(draw, raw))
    level = draw(st.sampled_from([1, 3, 19, -5]))
    return zstd(raw, level=level, write_checksum=draw(st.booleans()))
