"""Chunks: raw bytes to payload text and back (format section 4). Bytes in, bytes out.

A :class:`Coder` holds what one thread needs (compressor, decompressor, scratch memory), so that
nothing large is allocated per chunk. It is not thread-safe: each thread has its own.
"""

from __future__ import annotations

import functools

import numpy as np
import pybase64
import zstandard

from jsonckpt import lists
from jsonckpt.dtypes import DTYPES
from jsonckpt.errors import FormatError, LimitError
from jsonckpt.facts import Codec
from jsonckpt.limits import way_over
from jsonckpt.shuffle import Bytes, Shuffler

__all__ = ["Coder", "longest_payload", "payload_bound", "payload_too_long"]

#: A frame has to save at least this share of a chunk for compression to be worth its time on
#: loading.
_WORTHWHILE = 0.98
_ZSTD_BLOCK = 128 << 10
#: Far more than any frame or text that is made at once for a chunk of usual size, because the C
#: library gives memory back when twice as much is free.
_LARGEST_USUAL = 16 << 20
#: Blocks of smaller planes cost more than they save.
_SMALLEST_PLANE = 512
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def payload_bound(nbytes: int, codec: Codec, dtype: str) -> int:
    """The longest payload that a chunk of ``nbytes`` raw bytes can have.

    >>> payload_bound(3, Codec("base64", "none", "none", 1024), "uint8")
    4
    """
    if codec.encoding == "list":
        return lists.text_bound(nbytes, dtype)
    if codec.compression == "zstd":
        nbytes = nbytes + nbytes // 128 + 1024
    return base64_length(nbytes)


def longest_payload(nbytes: int, codec: Codec, dtype: str) -> int:
    """The longest payload that a reader takes for ``nbytes`` raw bytes.

    More than :func:`payload_bound` where other writers may spell numbers at greater length.
    """
    bound = payload_bound(nbytes, codec, dtype)
    return 2 * bound + 64 if codec.encoding == "list" else bound


def base64_length(nbytes: int) -> int:
    """Characters of the base64 text of ``nbytes`` bytes, padding included."""
    return 4 * -(-nbytes // 3)


def payload_too_long(longest: int) -> FormatError:
    """The error for a payload that is not looked at because of its length."""
    return FormatError(f"the payload has over {longest} characters, the most for its size")


class Coder:
    """Encodes and decodes chunks for one thread.

    Args:
        level: zstd level, or ``None`` for the parameters that measured best on weights.
        zstd_window: the largest window that a frame may ask for, in bytes.
    """

    def __init__(self, *, level: int | None = None, zstd_window: int | None = None) -> None:
        self._level = level
        self._window = zstd_window if zstd_window is not None else 1 << 31
        self._compressors: dict[bool, zstandard.ZstdCompressor] = {}
        self._decompressor: zstandard.ZstdDecompressor | None = None
        self._planes = np.empty(0, np.uint8)
        self._shuffler = Shuffler()

    # --- encoding ---------------------------------------------------------------------------

    def encode(self, raw: memoryview, codec: Codec, dtype: str) -> bytes:
        """The payload of one chunk.

        Args:
            raw: the chunk's bytes, little-endian, whole elements.
        """
        return b"".join(self.pieces(raw, codec, dtype))

    def pieces(self, raw: memoryview, codec: Codec, dtype: str) -> list[bytes | memoryview]:
        """What :meth:`encode` makes, in pieces that belong one behind the other."""
        _keep_heap()
        if codec.encoding == "list":
            return lists.encode_pieces(raw, dtype)
        if codec.compression == "none" and codec.filter == "none":
            return [pybase64.b64encode(raw)]
        itemsize = _plane_count(codec, dtype)
        data = self._shuffle(raw, itemsize)
        if codec.compression == "zstd":
            return [pybase64.b64encode(self._compress(data, itemsize, dtype))]
        return [pybase64.b64encode(data.data)]

    def compresses(self, raw: memoryview, codec: Codec, dtype: str) -> bool:
        """Whether compressing is worthwhile for a tensor, judged by one chunk of it."""
        itemsize = _plane_count(codec, dtype)
        frame = self._compress(self._shuffle(raw, itemsize), itemsize, dtype)
        return len(frame) < _WORTHWHILE * len(raw)

    def _compress(self, data: Bytes, itemsize: int, dtype: str) -> bytes:
        """One zstd frame."""
        compressor = self._zstd(noisy=itemsize > 1 and DTYPES[dtype].kind in ("float", "complex"))
        plane = len(data) // itemsize
        if itemsize == 1 or plane % _ZSTD_BLOCK == 0 or plane < _SMALLEST_PLANE:
            return compressor.compress(data.data)
        # Blocks have one table of codes each: none may hold the end of one plane and the
        # beginning of another. It costs 1 to 10 per cent of the size where planes are no
        # multiples of a block.
        stream = compressor.compressobj(size=len(data))
        pieces = []
        for start in range(0, len(data), plane):
            last = start + plane == len(data)
            end = zstandard.COMPRESSOBJ_FLUSH_FINISH if last else zstandard.COMPRESSOBJ_FLUSH_BLOCK
            pieces += [stream.compress(data.data[start : start + plane]), stream.flush(end)]
        return b"".join(pieces)

    def _zstd(self, *, noisy: bool) -> zstandard.ZstdCompressor:
        """The compressor for byte planes of floats (``noisy``), or for anything else."""
        if self._level is not None:
            noisy = False
        if noisy not in self._compressors:
            if self._level is not None:
                made = zstandard.ZstdCompressor(level=self._level)
            else:
                # Planes of floats have skewed bytes but hardly a match worth its cost: with a
                # tiny hash table zstd comes down to its Huffman coder, which takes half the time
                # of level 1 and ends nearer to the entropy (0.340 against 0.354 of the exponents'
                # plane of weights; the bound is 0.335).
                made = zstandard.ZstdCompressor(
                    compression_params=zstandard.ZstdCompressionParameters(
                        window_log=20,
                        hash_log=6 if noisy else 14,
                        min_match=7 if noisy else 5,
                        target_length=0,
                        strategy=zstandard.STRATEGY_FAST,
                    )
                )
            self._compressors[noisy] = made
        return self._compressors[noisy]

    def _shuffle(self, raw: memoryview, itemsize: int) -> Bytes:
        flat = np.frombuffer(raw, np.uint8)
        if itemsize == 1:
            return flat
        if len(self._planes) < len(raw):
            self._planes = np.empty(len(raw), np.uint8)
        return self._shuffler.apart(flat, itemsize, self._planes[: len(raw)])

    # --- decoding ---------------------------------------------------------------------------

    def decode_into(self, payload: memoryview, codec: Codec, dtype: str, out: memoryview) -> None:
        """Decode a payload into exactly ``len(out)`` raw bytes.

        Args:
            payload: the text between the quotes or brackets.
            out: writable bytes of the chunk's raw size.

        Raises:
            FormatError: the payload is not the canonical encoding of that many bytes.
            LimitError: a zstd frame asks for too large a window.
        """
        longest = longest_payload(len(out), codec, dtype)
        if len(payload) > longest:
            raise payload_too_long(longest)
        if codec.encoding == "list":
            lists.decode_into(payload, dtype, out)
        elif codec.compression == "none":
            _check_length(payload, len(out))
            data = _from_base64(payload)
            if len(data) != len(out):
                raise FormatError(f"base64 text holds {len(data)} bytes, expected {len(out)}")
            self._put(data, codec, dtype, out)
        else:
            self._put(self._decompress(_from_base64(payload), len(out)), codec, dtype, out)
        if dtype == "bool":
            check_bool(out)

    def _put(self, data: bytes, codec: Codec, dtype: str, out: memoryview) -> None:
        # Without planes numpy copies, which lets other threads run; a memoryview does not.
        raw, target = np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8)
        self._shuffler.together(raw, _plane_count(codec, dtype), target)

    def _decompress(self, frame: bytes, nbytes: int) -> bytes:
        # zstandard believes the size that a frame states and allocates it, whatever limit it is
        # given: so the header is read first.
        if frame[:4] != _ZSTD_MAGIC:
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
        if self._decompressor is None:
            self._decompressor = zstandard.ZstdDecompressor()
        try:
            data: bytes = self._decompressor.decompress(frame, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd frame: {error}") from error
        if len(data) != nbytes:
            raise FormatError(f"the zstd frame holds {len(data)} bytes, expected {nbytes}")
        return data


@functools.cache
def _keep_heap() -> None:
    """See to it that memory for frames and texts is used again, not mapped anew for each chunk.

    The C library of Linux maps what is larger than 128 KiB, until a mapping is freed: then it takes
    that size from its heap from now on. With a mapping for each chunk, its page faults took as long
    as compressing or encoding it.
    """
    np.empty(_LARGEST_USUAL, np.uint8)


def _plane_count(codec: Codec, dtype: str) -> int:
    """Into how many byte planes the filter takes a chunk apart."""
    return DTYPES[dtype].itemsize if codec.filter == "shuffle" else 1


def check_bool(raw: memoryview) -> None:
    """Refuse bytes that are neither 0 nor 1: torch computes wrong results from them.

    Raises:
        FormatError: there is one.
    """
    if len(raw) and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise FormatError("a bool tensor holds bytes other than 0 and 1")


def _check_length(payload: memoryview, nbytes: int) -> None:
    expected = base64_length(nbytes)
    if len(payload) != expected:
        raise FormatError(
            f"{len(payload)} base64 characters, expected {expected} for {nbytes} bytes"
        )


def _from_base64(payload: memoryview) -> bytes:
    """Strict base64: one spelling only (no line breaks, right padding, zero trailing bits)."""
    try:
        # validate=True is also the fast path of pybase64 (22 against 4 GB/s measured).
        data: bytes = pybase64.b64decode(payload, validate=True)
    except ValueError as error:
        raise FormatError(f"damaged base64 text: {error}") from error
    odd = len(data) % 3
    if len(payload) != base64_length(len(data)):
        raise FormatError("damaged base64 text: wrong padding")
    if odd and pybase64.b64encode(data[-odd:]) != bytes(payload[-4:]):
        raise FormatError("damaged base64 text: the trailing bits are not zero")
    return data
