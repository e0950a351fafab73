"""Chunks: raw bytes to payload text and back (format section 4). Bytes in, bytes out.

A :class:`ChunkCodec` holds what one thread needs: compressor, decompressor, scratch memory. Nothing
large is allocated per chunk. It is not thread-safe: each thread has its own.
"""

from __future__ import annotations

import functools

import numpy as np
import pybase64

from ..errors import FormatError
from . import number_list
from .dtypes import DTYPES
from .model import Codec
from .zstd import Bytes, Compressor, Decompressor, Shuffler

#: A frame that leaves a larger share of a chunk is not worth its time on loading.
_WORTHWHILE = 0.98
#: The sample of bytes that hold the exponents of floats. Where it has at most so many distinct
#: values, they take five bits or less: that saves three of the at most 64 bits of an element.
_EXPONENTS, _FEW_EXPONENTS = 256, 32
#: Far more than a frame or text of a usual chunk: the C library gives memory back when twice as
#: much is free.
_LARGEST_USUAL = 16 << 20


def payload_bound(nbytes: int, codec: Codec, dtype: str) -> int:
    """The longest payload that this package writes for ``nbytes`` raw bytes.

    >>> payload_bound(3, Codec("base64", "none", "none", 1024), "uint8")
    4
    """
    if codec.encoding == "list":
        return number_list.text_bound(nbytes, dtype)
    if codec.compression == "zstd":
        nbytes = nbytes + nbytes // 128 + 1024
    return base64_length(nbytes)


def longest_payload(nbytes: int, codec: Codec, dtype: str) -> int:
    """The longest payload that a reader accepts for ``nbytes`` raw bytes.

    Other writers may spell the numbers of lists at greater length.
    """
    bound = payload_bound(nbytes, codec, dtype)
    return 2 * bound + 64 if codec.encoding == "list" else bound


def base64_length(nbytes: int) -> int:
    """Characters of the base64 text of ``nbytes`` bytes, padding included."""
    return 4 * -(-nbytes // 3)


def payload_too_long(longest: int) -> FormatError:
    """The error for a payload that is refused because of its length alone."""
    return FormatError(f"the payload has over {longest} characters, the most for its size")


class ChunkCodec:
    """Encodes and decodes chunks for one thread.

    It keeps its compressor, decompressor and scratch memory, so that nothing large is allocated
    for each chunk. Not thread-safe.

    Args:
        level: zstd level, or ``None`` for the parameters that measured best on weights.
        zstd_window: the largest window that a frame may ask for, in bytes.
    """

    def __init__(self, *, level: int | None = None, zstd_window: int | None = None) -> None:
        self._level = level
        self._window = zstd_window if zstd_window is not None else 1 << 31
        self._compressor: Compressor | None = None
        self._decompressor: Decompressor | None = None
        self._planes = np.empty(0, np.uint8)
        self._shuffler = Shuffler()

    def encode(self, raw: memoryview, codec: Codec, dtype: str) -> bytes:
        """The payload of one chunk.

        Args:
            raw: the chunk's bytes, little-endian, whole elements.
        """
        return b"".join(self.pieces(raw, codec, dtype))

    def pieces(self, raw: memoryview, codec: Codec, dtype: str) -> list[bytes | memoryview]:
        """The payload of one chunk, in pieces to be joined."""
        _keep_heap()
        if codec.encoding == "list":
            return number_list.encode_pieces(raw, dtype)
        if codec.compression == "none" and codec.filter == "none":
            return [pybase64.b64encode(raw)]
        itemsize = _plane_count(codec, dtype)
        if codec.compression == "zstd":
            return [pybase64.b64encode(self._frame(raw, itemsize, dtype))]
        return [pybase64.b64encode(self._shuffle(raw, itemsize).data)]

    def compresses(self, raw: memoryview, codec: Codec, dtype: str) -> bool:
        """Whether compression is worth its time for a tensor, judged by a sample of it."""
        itemsize = _plane_count(codec, dtype)
        if DTYPES[dtype].kind == "float" and itemsize > 1 and _EXPONENTS * itemsize <= len(raw):
            # 256 random bytes have 162 distinct values. A fifth of that says as much as a trial.
            exponents = raw[itemsize - 1 :: len(raw) // (_EXPONENTS * itemsize) * itemsize]
            if len(set(exponents[:_EXPONENTS])) <= _FEW_EXPONENTS:
                return True
        return len(self._frame(raw, itemsize, dtype)) < _WORTHWHILE * len(raw)

    def _frame(self, raw: memoryview, itemsize: int, dtype: str) -> bytes | memoryview:
        if self._compressor is None:
            self._compressor = Compressor(self._level)
        floats = DTYPES[dtype].kind in ("float", "complex")
        return self._compressor.frame(np.frombuffer(raw, np.uint8), itemsize, floats=floats)

    def _shuffle(self, raw: memoryview, itemsize: int) -> Bytes:
        flat = np.frombuffer(raw, np.uint8)
        if itemsize == 1:
            return flat
        if len(self._planes) < len(raw):
            self._planes = np.empty(len(raw), np.uint8)
        return self._shuffler.apart(flat, itemsize, self._planes[: len(raw)])

    def decode_into(self, payload: memoryview, codec: Codec, dtype: str, out: memoryview) -> None:
        """Decode a payload into exactly ``len(out)`` raw bytes.

        Args:
            payload: the text between the quotes or brackets.
            out: writable bytes of the chunk's raw size.

        Raises:
            FormatError: the payload is not the canonical encoding of that many bytes.
            LimitError: a zstd frame asks for too large a window.
        """
        _keep_heap()
        longest = longest_payload(len(out), codec, dtype)
        if len(payload) > longest:
            raise payload_too_long(longest)
        if codec.encoding == "list":
            number_list.decode_into(payload, dtype, out)
        else:
            data = self._unpacked(payload, codec, len(out))
            # numpy lets other threads run while it copies; a memoryview does not.
            raw, target = np.frombuffer(data, np.uint8), np.frombuffer(out, np.uint8)
            self._shuffler.together(raw, _plane_count(codec, dtype), target)
        if dtype == "bool":
            check_bool(out)

    def _unpacked(self, payload: memoryview, codec: Codec, nbytes: int) -> bytes:
        if codec.compression == "zstd":
            if self._decompressor is None:
                self._decompressor = Decompressor(self._window)
            return self._decompressor.data(_from_base64(payload), nbytes)
        expected = base64_length(nbytes)
        if len(payload) != expected:
            raise FormatError(
                f"{len(payload)} base64 characters, expected {expected} for {nbytes} bytes"
            )
        data = _from_base64(payload)
        if len(data) != nbytes:
            raise FormatError(f"base64 text holds {len(data)} bytes, expected {nbytes}")
        return data


@functools.cache
def _keep_heap() -> None:
    """Make the C library reuse the memory of frames and texts.

    The C library of Linux maps memory of more than 128 KiB anew each time, until a mapping is
    freed: from then on it takes that size from its heap. With a mapping for each chunk, the page
    faults took as long as compressing or encoding it.
    """
    np.empty(_LARGEST_USUAL, np.uint8)


def _plane_count(codec: Codec, dtype: str) -> int:
    """The number of byte planes of a chunk; 1 without the filter."""
    return DTYPES[dtype].itemsize if codec.filter == "shuffle" else 1


def check_bool(raw: memoryview) -> None:
    """Refuse bytes other than 0 and 1: torch computes wrong results from them."""
    if len(raw) and int(np.frombuffer(raw, np.uint8).max()) > 1:
        raise FormatError("a bool tensor holds bytes other than 0 and 1")


def _from_base64(payload: memoryview) -> bytes:
    """Strict base64: no line breaks, exact padding, zero trailing bits."""
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
