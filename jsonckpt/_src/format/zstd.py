"""Byte planes: the filter ``shuffle``, and Zstandard frames of them (format sections 4.2 and 4.3).

Moving single bytes is slow: the processor stores one a cycle. So elements are taken apart and put
together as wider integers, which NumPy shifts and converts with SIMD. Each call of NumPy releases
Python's lock and takes it again, which is slow while another thread does the same. So a chunk of
usual size is one block, and there are few calls. (Two threads were slower than one with blocks that
stay in the cache.) Little-endian machines only, like the whole package.

Bytes in, bytes out. The parameters are tuned for the byte planes of floats: some planes are noise,
the others have skewed bytes and few repetitions. Nothing here is thread-safe: each thread has its
own objects.

Two packages do the work. Python's own module compresses, because it passes every parameter on to
zstd. ``zstandard`` decompresses, because it keeps its memory between frames and allocates the size
that a frame states.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Final, TypeAlias

import numpy as np
import zstandard
from zstandard import BLOCKSIZE_MAX, FRAME_HEADER

from ..errors import FormatError, LimitError, quote
from .limits import way_over

if sys.version_info >= (3, 14):
    from compression import zstd as zstd
else:
    from backports import zstd as zstd
#: The zstd library that compresses; ``zstandard`` has its own.
ZSTD_VERSION: Final = zstd.zstd_version
_WINDOW_LOG: Final = 20
_PARAMETER: Final = zstd.CompressionParameter
#: ``ZSTD_c_literalCompressionMode``, whose name is not exported, and ``ZSTD_ps_enable``.
_CODE_LITERALS, _ENABLED = 1002, 1
#: Common to all parameters here: zstd's fastest strategy that still codes bytes.
_FAST: Final[dict[int, int]] = {
    _PARAMETER.window_log: _WINDOW_LOG,
    _PARAMETER.strategy: zstd.Strategy.fast,
    _PARAMETER.target_length: 0,
}
#: Parameters for general data: few repetitions, skewed bytes.
_GENERAL: Final[dict[int, int]] = {_PARAMETER.hash_log: 14, _PARAMETER.min_match: 5}
#: Parameters for planes that repeat themselves.
_REPETITIVE: Final[dict[int, int]] = {_PARAMETER.hash_log: 14, _PARAMETER.min_match: 7}
#: The header of a block (RFC 8878 section 3.1.1.2).
_BLOCK_HEADER: Final = 3
#: The header of an assembled frame (section 3.1.1.1): descriptor, window, then a size in 4 bytes.
_DESCRIPTOR, _WINDOW = 0x80, (_WINDOW_LOG - 10) << 3
_HEADER: Final = 10
#: Smaller planes share blocks: a block of their own costs more than it saves.
_SMALLEST_PLANE: Final = 512
#: Smaller planes are not judged: that costs more than it saves.
_SMALLEST_JUDGED: Final = 64 << 10
#: The sample that decides whether planes are noise, and its number of pieces. The number is prime:
#: rows of tensors come in powers of two, and some pieces must lie in each kind of row.
_SAMPLE, _PIECES = 16 << 10, 61
#: A plane is repetitive where the search leaves less than this share of what the coder leaves of a
#: run of so many bytes. The search takes twice the time: for less, writing the bytes is quicker.
_REPETITIVE_SHARE, _RUN = 0.6, 4 << 10
Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"
#: Unsigned integers that begin at an element; there is none of 16 bytes.
_WORDS = {2: np.uint16, 4: np.uint32, 8: np.uint64, 16: np.uint64}
#: Bytes of a block, as many as a usual chunk has. It bounds the memory for larger chunks.
_BLOCK = 1 << 20


def take_planes(raw: Bytes, itemsize: int, first: int, out: Bytes) -> None:
    """Copy some byte planes of ``raw``; each plane goes to blocks that may lie apart.

    Byte ``n`` of an element is the lowest byte of the integer that begins there. Narrowing an
    integer to its lowest byte is a conversion that uses SIMD, aligned or not.

    Args:
        raw: whole elements.
        itemsize: bytes of an element: 2, 4, 8 or 16.
        first: the first plane that is taken.
        out: of shape (planes, blocks, elements in each).

    >>> planes = np.empty((1, 2, 3), np.uint8)
    >>> take_planes(np.arange(12, dtype=np.uint8), 2, 1, planes)
    >>> planes.tolist()
    [[[1, 3, 5], [7, 9, 11]]]
    """
    planes, blocks, count = out.shape
    if not count:
        return
    steps = (1, itemsize * count, itemsize)
    # The last element of a block is copied alone: the memory may end behind it.
    words: Any = np.ndarray(
        (planes, blocks, count - 1), _WORDS[itemsize], raw.data, first, steps
    )  # fmt: skip
    np.copyto(out[:, :, :-1], words, casting="unsafe")
    last = raw.reshape(blocks, count, itemsize)[:, -1]
    out[:, :, -1] = last[:, first : first + planes].T


class Shuffler:
    """Takes elements apart into byte planes and puts them together; keeps the memory it needs.

    Not thread-safe: each thread has its own.

    >>> shuffler = Shuffler()
    >>> planes = shuffler.apart(np.arange(6, dtype=np.uint8), 2, np.empty(6, np.uint8))
    >>> planes.tolist()
    [0, 2, 4, 1, 3, 5]
    >>> shuffler.together(planes, 2, np.empty(6, np.uint8)).tolist()
    [0, 1, 2, 3, 4, 5]
    """

    def __init__(self) -> None:
        self._spare = [np.empty(0, np.uint8), np.empty(0, np.uint8)]

    def apart(self, raw: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The byte planes of ``raw`` in ``out``, which is returned.

        Args:
            raw: whole elements.
            itemsize: bytes of an element: 1, 2, 4, 8 or 16.
            out: as many bytes.
        """
        if itemsize == 1:
            np.copyto(out, raw)
            return out
        take_planes(raw, itemsize, 0, out.reshape(itemsize, 1, -1))
        return out

    def together(self, planes: Bytes, itemsize: int, out: Bytes) -> Bytes:
        """The elements of byte planes in ``out``, which is returned. Undoes :meth:`apart`."""
        if itemsize == 1:
            np.copyto(out, planes)
            return out
        columns = planes.reshape(itemsize, -1)
        step = _BLOCK // itemsize
        for start in range(0, columns.shape[1], step):
            block = out[start * itemsize : (start + step) * itemsize]
            self._join(columns[:, start : start + step], block)
        return out

    def _join(self, rows: Any, out: Bytes) -> None:
        """Join pairs of rows to integers of 16 bits, pairs of those to 32 bits, and so on.

        The upper half of an integer is written as a wide integer that begins in the middle of its
        place, which saves the shift. The zeros of its own upper half fall on the next integer's
        lower half.
        """
        itemsize, count = rows.shape
        width, nbytes = 1, len(out)
        while width < min(itemsize, 8):
            wide = _WORDS[2 * width]
            memory = self._memory(width, nbytes)
            memory[:width] = 0
            joined = memory[:nbytes].view(wide).reshape(-1, count)
            np.copyto(memory[width : width + nbytes].view(wide).reshape(-1, count), rows[1::2])
            width *= 2
            target = joined if width < itemsize else out.view(wide).reshape(1, count)
            np.bitwise_or(joined, rows[0::2], out=target, dtype=wide)
            rows = target
        if width < itemsize:
            np.copyto(out.view(rows.dtype).reshape(count, -1).T, rows)

    def _memory(self, width: int, nbytes: int) -> Bytes:
        """Scratch memory of so many bytes and a word, not that of the next width."""
        number = width == 2  # integers of 16 and of 64 bits are not needed at the same time
        if len(self._spare[number]) < nbytes + 8:
            self._spare[number] = np.empty(nbytes + 8, np.uint8)
        return self._spare[number][: nbytes + 8]


class FrameEncoder:
    """Makes frames with one set of parameters.

    Args:
        parameters: a zstd level, or parameters of zstd's fastest strategy.

    >>> encoder = FrameEncoder(3)
    >>> zstd.decompress(encoder.frame([memoryview(b"abc" * 1000)])) == b"abc" * 1000
    True
    """

    def __init__(self, parameters: int | dict[int, int]) -> None:
        self._parameters = parameters
        self._compressor = self._new()

    def frame(self, parts: Sequence[memoryview]) -> bytes:
        """One frame of all parts that states its size. Blocks end where the parts end."""
        compressor = self._compressor
        if len(parts) == 1:
            return compressor.compress(parts[0], compressor.FLUSH_FRAME)
        try:
            compressor.set_pledged_input_size(sum(map(len, parts)))
            pieces = [compressor.compress(part, compressor.FLUSH_BLOCK) for part in parts[:-1]]
            pieces.append(compressor.compress(parts[-1], compressor.FLUSH_FRAME))
        except BaseException:
            self._compressor = self._new()  # the old one is still inside a frame
            raise
        return b"".join(pieces)

    def _new(self) -> zstd.ZstdCompressor:
        made: zstd.ZstdCompressor
        if isinstance(self._parameters, int):
            made = zstd.ZstdCompressor(self._parameters)
        else:
            made = zstd.ZstdCompressor(options=_FAST | self._parameters)
        return made


def entropy_coder() -> FrameEncoder:
    """An encoder that codes single bytes and hardly searches for repetitions.

    The search costs more than the coding and finds almost nothing in the exponents of floats. This
    looks at one place in 64, which still finds runs of zeros. zstd's target length says so, but
    then bytes are not coded either; a further parameter says that they are.
    """
    slow: dict[int, int] = {_PARAMETER.hash_log: 6, _PARAMETER.min_match: 7}
    try:
        return FrameEncoder(slow | {_PARAMETER.target_length: 64, _CODE_LITERALS: _ENABLED})
    except (zstd.ZstdError, ValueError):
        # The system's zstd does not know the parameter: same sizes, more time.
        return FrameEncoder(slow)


class Compressor:
    """Makes the frames of chunks; keeps the memory it needs.

    Args:
        level: zstd level, or ``None`` for the parameters that measured best on weights.
    """

    def __init__(self, level: int | None = None) -> None:
        self._tuned = level is None
        self._general = FrameEncoder(_GENERAL if level is None else level)
        self._repetitive = FrameEncoder(_REPETITIVE)
        self._coder = entropy_coder()
        self._frame: Bytes = np.empty(0, np.uint8)
        self._planes: Bytes = np.empty(0, np.uint8)

    def frame(self, raw: Bytes, itemsize: int, *, floats: bool) -> bytes | memoryview:
        """The frame of the byte planes of some elements; valid until the next call.

        Args:
            raw: whole elements, as they are.
            itemsize: bytes of an element; 1 where there are no planes to be made.
            floats: whether they are floats, whose exponents are in the last plane.
        """
        if itemsize == 1:
            return self._general.frame([raw.data])
        if len(self._planes) < len(raw):
            self._planes = np.empty(len(raw), np.uint8)
        count = len(raw) // itemsize
        planes = self._planes[: len(raw)].reshape(itemsize, 1, count)
        tuned = self._tuned and floats
        if not tuned or count < _SMALLEST_JUDGED:
            take_planes(raw, itemsize, 0, planes)
            return (self._coder if tuned else self._general).frame(_parts(planes))
        # The plane of the exponents first: taking it reads all elements in a row, so the sample
        # that is judged next is in the cache.
        take_planes(raw, itemsize, itemsize - 1, planes[-1:])
        noise = self._leading_noise(raw, itemsize)
        take_planes(raw, itemsize, noise, planes[noise:-1])
        coded = planes[noise:]
        encoder = self._repetitive if self._repeats(coded) else self._coder
        return self._assembled(raw, itemsize, noise, encoder.frame(_parts(coded)))

    def _leading_noise(self, raw: Bytes, itemsize: int) -> int:
        """The number of planes that are noise, from the first on; most often all but the last."""
        length = len(raw) // itemsize // _PIECES
        pieces = raw[: _PIECES * length * itemsize].reshape(_PIECES, length, itemsize)
        count = itemsize - 1
        while count and not self._is_noise(pieces[:, :, :count]):
            count -= 1
        return count

    def _is_noise(self, pieces: Bytes) -> bool:
        """Whether planes are noise, judged by pieces of them.

        Half of the sample is from the last plane: it is next to the exponents, and its bytes are
        the most uneven.
        """
        others = pieces.shape[2] - 1
        width = _SAMPLE // _PIECES // (2 if others else 1)
        parts = [pieces[:, :width, others]]
        parts += [pieces[:, : width // others, number] for number in range(others)]
        sample = np.concatenate(parts, axis=None)
        return len(self._coder.frame([sample.data])) >= len(sample)

    def _repeats(self, planes: Bytes) -> bool:
        """Whether a search for repetitions is worth its time, judged by a run in the middle."""
        flat = planes.reshape(-1)
        middle = len(flat) - (planes.shape[2] + _RUN) // 2
        run = [flat[middle : middle + _RUN].data]
        return len(self._repetitive.frame(run)) < _REPETITIVE_SHARE * len(self._coder.frame(run))

    def _assembled(self, raw: Bytes, itemsize: int, noise: int, rest: bytes) -> memoryview:
        """One frame: raw blocks with the planes that are noise, then the blocks of another frame.

        zstd stores noise in raw blocks, too, but takes several times as long. A raw block leaves
        the state of a decoder as it is, so the first blocks of a frame may follow it.
        """
        count = len(raw) // itemsize
        whole, part = divmod(count, BLOCKSIZE_MAX)
        stored = count + _BLOCK_HEADER * (whole + (part > 0))
        blocks = np.frombuffer(rest, np.uint8, offset=zstandard.frame_header_size(rest))
        length = _HEADER + noise * stored + len(blocks)
        if len(self._frame) < length:
            self._frame = np.empty(length + length // 8, np.uint8)
        frame = self._frame[:length]
        frame[:_HEADER] = (*FRAME_HEADER, _DESCRIPTOR, _WINDOW, *len(raw).to_bytes(4, "little"))
        rows = frame[_HEADER : length - len(blocks)].reshape(noise, stored)
        # All whole blocks at once: after each call a thread has to get Python's lock again.
        split = stored - part - _BLOCK_HEADER if part else stored
        end = whole * BLOCKSIZE_MAX * itemsize
        if noise and whole:
            _store(raw[:end], itemsize, rows[:, :split].reshape(noise, whole, -1))
        if noise and part:
            _store(raw[end:], itemsize, rows[:, split:].reshape(noise, 1, -1))
        frame[length - len(blocks) :] = blocks
        return frame.data


def _store(raw: Bytes, itemsize: int, out: Bytes) -> None:
    """Write the first planes as raw blocks of one size, none of which is the last of its frame."""
    size = out.shape[2] - _BLOCK_HEADER
    out[:, :, :_BLOCK_HEADER] = tuple((size << 3).to_bytes(3, "little"))
    take_planes(raw, itemsize, 0, out[:, :, _BLOCK_HEADER:])


def _parts(planes: Bytes) -> list[memoryview]:
    """The planes one by one, or all in one part where blocks end with the planes anyway.

    A block has one table of codes, so no block may hold parts of two planes. It costs 1 to 10 per
    cent of the size where planes are no multiple of a block.
    """
    count = planes.shape[2]
    if count % BLOCKSIZE_MAX == 0 or count < _SMALLEST_PLANE:
        return [planes.reshape(-1).data]
    return [plane.reshape(-1).data for plane in planes]


class Decompressor:
    """Opens the frames of chunks.

    Args:
        window: the largest window that a frame may ask for, in bytes.
    """

    def __init__(self, window: int) -> None:
        self._window = window
        self._decompressor = zstandard.ZstdDecompressor()

    def data(self, frame: bytes, nbytes: int) -> bytes:
        """The bytes of a frame that holds ``nbytes`` of them.

        Raises:
            FormatError: it is damaged, or holds another number of bytes.
            LimitError: it asks for too large a window.
        """
        # zstandard allocates the size that a frame states, whatever its limit. So the header is
        # checked first.
        if frame[:4] != FRAME_HEADER:
            raise FormatError("not a zstd frame")
        check_reserved_bits(frame)
        try:
            header = zstandard.get_frame_parameters(frame)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd frame: {error}") from error
        if header.content_size != nbytes:
            size = header.content_size
            stated = "no size" if size == zstandard.CONTENTSIZE_UNKNOWN else f"{size} bytes"
            raise FormatError(f"the zstd frame states {stated}, expected {nbytes}")
        if header.dict_id:
            raise FormatError("the zstd frame needs a dictionary, which the format forbids")
        check_window(header.window_size, self._window)
        try:
            data: bytes = self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd frame: {error}") from error
        if len(data) != nbytes:
            raise FormatError(f"the zstd frame holds {len(data)} bytes, expected {nbytes}")
        return data


def new_decompressor() -> zstd.ZstdDecompressor:
    """For one frame that is decompressed as it is read. It accepts any window.

    zstd itself refuses windows of more than 128 MiB: callers check their own limit before.
    """
    made: zstd.ZstdDecompressor
    made = zstd.ZstdDecompressor(options={int(zstd.DecompressionParameter.window_log_max): 31})
    return made


def frame_window(header: bytes) -> int | None:
    """The window that a frame asks for; ``None`` while there is too little of its header.

    Raises:
        FormatError: no zstd frame, or one that the format forbids. A skippable frame is no zstd
            frame here.

    >>> frame_window(zstandard.compress(bytes(1000)))
    1000
    """
    if len(header) < 5:
        return None
    if header[:4] != FRAME_HEADER:
        raise FormatError(
            f"expected a zstd frame, found {quote(header[:8])}",
            hint="A name that ends in .zst stands for a compressed checkpoint.",
        )
    check_reserved_bits(header)
    descriptor = header[4]
    if descriptor & 0x03:
        raise FormatError("the zstd frame needs a dictionary, which the format forbids")
    if not descriptor & 0x20:
        if len(header) == 5:
            return None
        exponent, mantissa = divmod(header[5], 8)
        return (8 + mantissa) << (7 + exponent)
    # One segment: the window is the whole content, whose size is stated in 1, 2, 4 or 8 bytes.
    size = header[5 : 5 + (1 << (descriptor >> 6))]
    if len(size) < 1 << (descriptor >> 6):
        return None
    return int.from_bytes(size, "little") + (256 if len(size) == 2 else 0)


def check_reserved_bits(frame: bytes) -> None:
    """Refuse a frame whose descriptor, if it is there, has an unused or reserved bit set.

    Raises:
        FormatError: it has.
    """
    if len(frame) > 4 and frame[4] & 0x18:
        raise FormatError("damaged zstd frame: a bit without meaning is set in its header")


def check_window(window: int, limit: int | None) -> None:
    """Refuse a frame that asks for too much memory.

    Raises:
        LimitError: the window is over the limit.
    """
    if limit is not None and window > max(limit, 1024):
        raise LimitError(
            f"the zstd frame needs a window of {window} bytes, the limit is {limit}",
            hint=way_over("zstd_window"),
        )
