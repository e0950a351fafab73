"""One chunk's elements to one zstd frame of their byte planes, and a frame to its bytes (format
section 4.3). Bytes in, bytes out.

What is tuned here is tuned for the byte planes of floats, of which some are noise and the others
have skewed bytes and few repetitions. Nothing here is thread-safe: each thread has its own.
"""

from __future__ import annotations

import numpy as np
import zstandard
from zstandard import BLOCKSIZE_MAX, FRAME_HEADER

from ..errors import FormatError, LimitError
from .byte_shuffle import Bytes, take_planes
from .entropy_coder import EntropyCoder
from .limits import way_over

_WINDOW_LOG = 20
#: Of a block (RFC 8878 section 3.1.1.2).
_BLOCK_HEADER = 3
#: The header of a frame that is put together here (section 3.1.1.1): a window, a size in 4 bytes.
_DESCRIPTOR, _WINDOW = 0x80, (_WINDOW_LOG - 10) << 3
_HEADER = 10
#: The header of a frame without a size: a magic number, a descriptor and a window.
_BARE_HEADER = 6
#: Blocks of smaller planes cost more than they save.
_SMALLEST_PLANE = 512
#: Judging planes costs more than it saves where they are smaller.
_SMALLEST_JUDGED = 64 << 10
#: Noise is judged by so many bytes, in so many pieces: a prime number of them, for rows of tensors
#: come in powers of two, and some pieces have to lie in each.
_SAMPLE, _PIECES = 16 << 10, 61
#: A plane repeats itself where a search leaves less than this share of what the coder alone makes
#: of so many bytes in a row. It takes twice the time: for less, writing the bytes is quicker.
_REPETITIVE, _RUN = 0.6, 4 << 10


class Compressor:
    """Makes frames; owns the memory it needs.

    Args:
        level: zstd level, or ``None`` for the parameters that measured best on weights.
    """

    def __init__(self, level: int | None = None) -> None:
        if level is not None:
            self._general = zstandard.ZstdCompressor(level=level)
        else:
            self._general = _fast(hash_log=14, min_match=5)
        self._tuned = level is None
        # Hardly a match in skewed bytes is worth its cost: the coder alone takes a third of the
        # time of level 1 and ends nearer to the entropy (0.327 against 0.354 of the exponents'
        # plane of weights).
        self._skewed = EntropyCoder(window_log=_WINDOW_LOG)
        self._bare_skewed = EntropyCoder(window_log=_WINDOW_LOG, sized=False)
        self._bare_repetitive = _fast(hash_log=14, min_match=7, sized=False)
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
            return self._general.compress(raw.data)
        plane = len(raw) // itemsize
        if not (self._tuned and floats):
            return _searched(self._general, _parts(self._all_planes(raw, itemsize), plane))
        if plane < _SMALLEST_JUDGED:
            return self._skewed.frame(_parts(self._all_planes(raw, itemsize), plane))
        # The plane of the exponents first: to take it reads all elements in a row, and then those
        # that are looked at here and there are in the cache.
        planes = self._room(len(raw)).reshape(itemsize, 1, -1)
        take_planes(raw, itemsize, itemsize - 1, planes[-1:])
        noise = _leading_noise(raw, itemsize, self._bare_skewed)
        take_planes(raw, itemsize, noise, planes[noise:-1])
        rest = planes[noise:].reshape(-1)
        middle = len(rest) - (plane + _RUN) // 2
        parts = _parts(rest, plane)
        if self._repeats(rest[middle : middle + _RUN]):
            bare = _searched(self._bare_repetitive, parts)
        else:
            bare = self._bare_skewed.frame(parts)
        return self._assembled(raw, itemsize, noise, bare)

    def _all_planes(self, raw: Bytes, itemsize: int) -> Bytes:
        planes = self._room(len(raw))
        take_planes(raw, itemsize, 0, planes.reshape(itemsize, 1, -1))
        return planes

    def _room(self, nbytes: int) -> Bytes:
        if len(self._planes) < nbytes:
            self._planes = np.empty(nbytes, np.uint8)
        return self._planes[:nbytes]

    def _repeats(self, run: Bytes) -> bool:
        """Whether a search for repetitions is worth its time, judged by a run of bytes."""
        coded = len(self._bare_skewed.frame([run.data]))
        return len(self._bare_repetitive.compress(run.data)) < _REPETITIVE * coded

    def _assembled(self, raw: Bytes, itemsize: int, noise: int, bare: bytes) -> memoryview:
        """The frame whose first planes are noise, and whose other ones are in a bare frame.

        zstd finds out by itself that noise does not compress, but takes several times as long as
        it takes to put it there. Raw blocks change nothing of what a decoder remembers, so that
        blocks which were made as the first ones of a frame may follow them.
        """
        count = len(raw) // itemsize
        whole, part = divmod(count, BLOCKSIZE_MAX)
        stored = whole * (_BLOCK_HEADER + BLOCKSIZE_MAX) + (_BLOCK_HEADER + part if part else 0)
        length = _HEADER + noise * stored + len(bare) - _BARE_HEADER
        if len(self._frame) < length:
            self._frame = np.empty(length + length // 8, np.uint8)
        frame = self._frame[:length]
        size = len(raw).to_bytes(4, "little")
        frame[:_HEADER] = (*FRAME_HEADER, _DESCRIPTOR, _WINDOW, *size)
        rows = frame[_HEADER : _HEADER + noise * stored].reshape(noise, stored)
        at = stored - part - _BLOCK_HEADER if part else stored
        split = whole * BLOCKSIZE_MAX * itemsize
        # All whole blocks at once: after each call a thread has to get Python's lock again.
        if noise and whole:
            _store(raw[:split], itemsize, rows[:, :at].reshape(noise, whole, -1))
        if noise and part:
            _store(raw[split:], itemsize, rows[:, at:].reshape(noise, 1, -1))
        frame[_HEADER + noise * stored :] = np.frombuffer(bare, np.uint8, offset=_BARE_HEADER)
        return frame.data


def _leading_noise(raw: Bytes, itemsize: int, coder: EntropyCoder) -> int:
    """How many planes from the first one on are noise; of floats mostly all but the last."""
    length = len(raw) // itemsize // _PIECES
    pieces = raw[: _PIECES * length * itemsize].reshape(_PIECES, length, itemsize)
    count = itemsize - 1
    while count and not _is_noise(pieces[:, :, :count], coder):
        count -= 1
    return count


def _is_noise(pieces: Bytes, coder: EntropyCoder) -> bool:
    """Judged by pieces from all over them: some rows of a tensor may be zeros, others noise.

    Half of the sample is from the last plane: it is next to the exponents, and less even than
    the others where there is a difference.
    """
    others = pieces.shape[2] - 1
    width = _SAMPLE // _PIECES // (2 if others else 1)
    others_width = width // max(1, others)
    parts = [pieces[:, :width, others]]
    parts += [pieces[:, :others_width, number] for number in range(others)]
    sample = np.concatenate(parts, axis=None)
    return len(coder.frame([sample.data])) >= len(sample)


def _store(raw: Bytes, itemsize: int, out: Bytes) -> None:
    """Raw blocks of one size with the first planes, none of which is the last of its frame."""
    size = out.shape[2] - _BLOCK_HEADER
    out[:, :, :_BLOCK_HEADER] = tuple((size << 3).to_bytes(3, "little"))
    take_planes(raw, itemsize, 0, out[:, :, _BLOCK_HEADER:])


def _fast(*, hash_log: int, min_match: int, sized: bool = True) -> zstandard.ZstdCompressor:
    """A compressor of zstd's fastest kind that still codes literals.

    Args:
        sized: whether its frames state their size.
    """
    return zstandard.ZstdCompressor(
        compression_params=zstandard.ZstdCompressionParameters(
            write_content_size=sized,
            window_log=_WINDOW_LOG,
            hash_log=hash_log,
            min_match=min_match,
            target_length=0,
            strategy=zstandard.STRATEGY_FAST,
        )
    )


def _parts(data: Bytes, plane: int) -> list[memoryview]:
    """The planes, or all in one where blocks end with the planes anyway.

    Blocks have one table of codes each: none may hold the end of one plane and the beginning of
    another. It costs 1 to 10 per cent of the size where planes are no multiples of a block.
    """
    if plane % BLOCKSIZE_MAX == 0 or plane < _SMALLEST_PLANE:
        return [data.data]
    return [data.data[start : start + plane] for start in range(0, len(data), plane)]


def _searched(compressor: zstandard.ZstdCompressor, parts: list[memoryview]) -> bytes:
    """A frame with the repetitions that zstd finds, whose blocks end where the parts do."""
    if len(parts) == 1:
        return compressor.compress(parts[0])
    stream = compressor.compressobj(size=sum(map(len, parts)))
    pieces = []
    for part in parts[:-1]:
        pieces += [stream.compress(part), stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*pieces, stream.compress(parts[-1]), stream.flush()])


class Decompressor:
    """Opens frames.

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
        # zstandard believes the size that a frame states and allocates it, whatever limit it is
        # given: so the header is read first.
        if frame[:4] != FRAME_HEADER:
            raise FormatError("not a zstd frame")
        if len(frame) > 4 and frame[4] & 0x18:
            raise FormatError("damaged zstd frame: a bit without meaning is set in its header")
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
        if header.window_size > max(self._window, 1024):
            raise LimitError(
                f"the zstd frame needs a window of {header.window_size} bytes, "
                f"the limit is {self._window}",
                hint=way_over("zstd_window"),
            )
        try:
            data: bytes = self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd frame: {error}") from error
        if len(data) != nbytes:
            raise FormatError(f"the zstd frame holds {len(data)} bytes, expected {nbytes}")
        return data
