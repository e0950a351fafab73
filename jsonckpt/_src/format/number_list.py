"""The ``list`` encoding of one chunk: raw little-endian bytes to a flat JSON array and back.

``docs/format.md`` section 4.4. This module writes and reads the text *between* the brackets.
orjson writes and simdjson reads, both in blocks: a large chunk needs no more working memory than
a small one. If simdjson refuses a block, or would accept too much in it, a slow reader reads the
block item by item. The slow reader decides what is allowed, and names the item that is not.

All functions are thread-safe.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any, NoReturn

import numpy as np
import orjson
import simdjson
from numpy.typing import NDArray

from ..errors import FormatError, quote
from .dtypes import DTYPES, DType
from .small_floats import INFINITY, narrow, small_float

Buffer = bytes | bytearray | memoryview
#: Elements that are written at once. With more, the C library does not reuse the memory.
_BLOCK_ELEMENTS = 1 << 17
#: Characters that are read at once. With fewer, calls cost too much; with more, the numbers no
#: longer fit in the cache.
_BLOCK_CHARACTERS = 1 << 19
#: Longest number that is read.
_LONGEST_NUMBER = 64
#: How far back the end of an item is looked for first.
_NEAR = 1_024
_NUMBER = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_MINUS_ZERO_INTEGER = re.compile(rb"(?<![eE])-0(?=[], \t])")
_HEX = re.compile(rb"0x[0-9a-f]+")
# Numbers are read as binary64 and then rounded to binary32. One magnitude of the 2**31 does not
# survive this with its shortest decimal (tools/exhaustive_float32.py tries all): the binary64
# number is a tie between two binary32 numbers, and the tie goes to the other one. One more digit
# is enough.
_ROUNDED_TWICE = 0x15AE43FD
_ROUNDED_TWICE_TEXT = b"7.038531e-26", b"7.0385307e-26"
# Replaces a string while simdjson reads a block. The spaces separate it from adjacent digits.
_STAND_IN = b" 3e-297 "
_STAND_IN_VALUE = float(_STAND_IN)
#: Longest text of one number of a dtype, with its comma. orjson writes numbers below 1e16 without
#: an exponent. Only the strings ``"-Infinity"`` and float64's ``"0x…"`` are longer than numbers.
_WIDTH = {
    "bool": 2,
    "uint8": 4,
    "uint16": 6,
    "uint32": 11,
    "uint64": 21,
    "int8": 5,
    "int16": 7,
    "int32": 12,
    "int64": 21,
    "float64": 26,
    "float32": 21,
    "float16": 13,
    "bfloat16": 21,
    "float8_e4m3fn": 13,
    "float8_e4m3fnuz": 13,
    "float8_e5m2": 13,
    "float8_e5m2fnuz": 13,
    "float8_e8m0fnu": 21,
    "float4_e2m1fn_x2": 5,
}


def text_bound(nbytes: int, dtype: str) -> int:
    """An upper bound of ``len(encode(raw, dtype))`` for ``nbytes`` raw bytes.

    >>> text_bound(16, "float32") >= len(encode(bytes(16), "float32"))
    True
    """
    row = _row(dtype)
    return _count(row, nbytes) * _WIDTH[row.real]


def encode(raw: Buffer, dtype: str) -> bytes:
    """The text between the brackets for ``raw``: little-endian bytes of whole elements.

    Raises:
        FormatError: an unknown dtype, a part of an element, or a bool that is neither 0 nor 1.

    >>> import struct
    >>> encode(struct.pack("<3f", 1.0, -0.0, float("inf")), "float32")
    b'1.0,-0.0,"Infinity"'
    """
    return b"".join(encode_pieces(raw, dtype))


def encode_pieces(raw: Buffer, dtype: str) -> list[bytes | memoryview]:
    """As :func:`encode`, but in consecutive pieces."""
    row = _row(dtype)
    source = memoryview(raw)
    if not _count(row, source.nbytes):
        return []
    patterns = np.frombuffer(source, np.uint8).view(_storage(row))
    if not patterns.flags.aligned or not patterns.dtype.isnative:
        patterns = patterns.astype(patterns.dtype.newbyteorder("="))
    pieces: list[bytes | memoryview] = []
    for start in range(0, len(patterns), _BLOCK_ELEMENTS):
        if pieces:
            pieces.append(b",")
        pieces.append(_block_text(row, patterns[start : start + _BLOCK_ELEMENTS]))
    return pieces


def decode_into(text: Buffer, dtype: str, out: memoryview) -> None:
    """Read the text between the brackets into ``out``, which it must fill exactly.

    Args:
        text: numbers and strings (section 4.4), separated by commas. Spaces and tabs are allowed
            between them, line breaks are not. A number may be any decimal of at most 64
            characters, not only the one that :func:`encode` writes.
        dtype: a name from section 4.
        out: writable and C-contiguous. Gets raw little-endian bytes. Undefined after an error.

    Raises:
        FormatError: the text is not that many elements of that dtype.

    >>> out = bytearray(4)
    >>> decode_into(b"1, 255, 0, 7", "uint8", memoryview(out))
    >>> list(out)
    [1, 255, 0, 7]
    """
    row = _row(dtype)
    expected = _count(row, out.nbytes)
    target = np.frombuffer(out, np.uint8) if expected else np.empty(0, np.uint8)
    if row.kind == "packed":
        patterns = np.empty(expected, np.uint8)
    else:
        patterns = target.view(_storage(row))
    found = 0
    for block in _blocks(memoryview(text).cast("B")):
        if row.kind in ("float", "complex", "packed"):
            values = _read_floats(block, row, found)
        else:
            values = _read_integers(block, row, found)
        if found + len(values) > expected:
            raise FormatError(f"the list holds more than the {expected} numbers expected")
        patterns[found : found + len(values)] = values
        found += len(values)
    if found != expected:
        raise FormatError(f"the list holds {found} numbers, expected {expected}")
    if row.kind == "packed":
        np.bitwise_or(patterns[0::2], patterns[1::2] << 4, out=target)


def _row(dtype: str) -> DType:
    try:
        return DTYPES[dtype]
    except KeyError:
        raise FormatError(f"unknown dtype {quote(dtype)}") from None


def _real_size(row: DType) -> int:
    """Bytes of one component of a complex number, else of the element."""
    return row.itemsize // 2 if row.kind == "complex" else row.itemsize


def _storage(row: DType) -> np.dtype[Any]:
    """The NumPy dtype of one number: integers as they are, floats as their bit patterns."""
    return np.dtype(f"<{'i' if row.kind == 'int' else 'u'}{_real_size(row)}")


def _count(row: DType, nbytes: int) -> int:
    """How many numbers ``nbytes`` raw bytes make."""
    if nbytes % row.itemsize:
        raise FormatError(
            f"{nbytes} bytes are not whole elements of {row.name} ({row.itemsize} bytes each)"
        )
    return nbytes * 2 if row.kind == "packed" else nbytes // _real_size(row)


def _block_text(row: DType, block: NDArray[Any]) -> bytes | memoryview:
    if row.kind == "bool":
        return _bool_text(block)
    if row.kind == "packed":
        return _bytes_text(row.real, block)
    if row.kind in ("int", "uint"):
        return _numbers_text(block)
    return _float_text(row.real, block)


def _numbers_text(numbers: NDArray[Any]) -> memoryview:
    text: bytes = orjson.dumps(numbers, option=orjson.OPT_SERIALIZE_NUMPY)
    return memoryview(text)[1:-1]  # without a copy


def _bool_text(block: NDArray[np.uint8]) -> bytes:
    if block.max() > 1:
        raise FormatError(
            f"a bool is stored as the byte {block.max()}, expected 0 or 1",
            hint="Repair the tensor with `tensor.view(torch.uint8) != 0`.",
        )
    text = np.full(2 * len(block) - 1, ord(","), np.uint8)
    text[0::2] = block + ord("0")
    return text.tobytes()


@functools.cache
def _padded_texts(name: str) -> NDArray[np.bytes_]:
    """The text of each byte's numbers, each with a comma, padded with zeros to one width."""
    single = bytes(_numbers_text(small_float(name).decimals)).split(b",")
    if DTYPES[name].kind == "packed":
        return np.array([b"%b,%b," % (single[byte & 15], single[byte >> 4]) for byte in range(256)])
    return np.array([b"%b," % text for text in single])


def _bytes_text(name: str, block: NDArray[np.uint8]) -> bytes:
    """The text of a dtype of one byte: a table is faster than orjson."""
    padded: NDArray[np.uint8] = _padded_texts(name)[block].view(np.uint8)
    text: bytes = padded[padded != 0].tobytes()
    return text[:-1]


def _float_text(real: str, block: NDArray[Any]) -> bytes | memoryview:
    if real in ("float64", "float32"):
        numbers = block.view(real)
        text: bytes | memoryview = _numbers_text(numbers)
        if real == "float32" and (block & 0x7FFFFFFF == _ROUNDED_TWICE).any():
            text = bytes(text).replace(*_ROUNDED_TWICE_TEXT)
    else:
        numbers = small_float(real).decimals[block]
        text = _bytes_text(real, block) if block.itemsize == 1 else _numbers_text(numbers)
    # So far, null is written for what is not finite.
    finite = np.isfinite(numbers)
    if finite.all():
        return text
    distinct, which = np.unique(block[~finite], return_inverse=True)
    tokens = [_token(real, pattern) for pattern in distinct.tolist()]
    text = bytes(text)
    if len(tokens) == 1:
        return text.replace(b"null", tokens[0])
    pieces = text.split(b"null")
    whole = [b""] * (2 * len(pieces) - 1)
    whole[0::2] = pieces
    whole[1::2] = [tokens[index] for index in which.tolist()]
    return b"".join(whole)


@functools.cache
def _named(real: str) -> dict[bytes, int]:
    """The names of a real dtype (``NaN``, ``Infinity``) and their bit patterns."""
    row = DTYPES[real]
    names: dict[bytes, int] = {} if row.nan is None else {b"NaN": row.nan}
    if real in INFINITY:
        names[b"Infinity"] = INFINITY[real]
        names[b"-Infinity"] = INFINITY[real] | 1 << (8 * row.itemsize - 1)
    return names


def _token(real: str, pattern: int) -> bytes:
    """The string, with its quotes, for a bit pattern that is not finite."""
    for name, named in _named(real).items():
        if pattern == named:
            return b'"%b"' % name
    return b'"0x%0*x"' % (2 * DTYPES[real].itemsize, pattern)


def _pattern(real: str, token: bytes) -> int | None:
    """The bit pattern of the text between quotes, or None if the dtype has no such string."""
    named = _named(real)
    digits = 2 * DTYPES[real].itemsize
    if token in named:
        return named[token]
    if len(token) != 2 + digits or not _HEX.fullmatch(token):
        return None
    pattern = int(token, 16)
    magnitude = pattern & ~(1 << (4 * digits - 1))
    if real in INFINITY:
        is_nan = magnitude > INFINITY[real]
    else:
        is_nan = real == "float8_e4m3fn" and magnitude == 0x7F
    return pattern if is_nan and pattern != DTYPES[real].nan else None


def _blocks(text: memoryview) -> Iterator[bytes]:
    """The text in pieces that end between items, each with brackets as a JSON array."""
    start = 0
    while len(text) - start > _BLOCK_CHARACTERS:
        stop = start + _BLOCK_CHARACTERS
        for near in (max(start, stop - _NEAR), start):
            end = bytes(text[near:stop]).rfind(b",")
            if end >= 0:
                break
        else:
            raise FormatError(f"an item of the list is longer than {_BLOCK_CHARACTERS} characters")
        yield b"".join((b"[", text[start : near + end], b"]"))
        start = near + end + 1
    last = text[start:]
    if start or len(last) > _NEAR or bytes(last).strip(b" \t"):
        yield b"".join((b"[", last, b"]"))


#: Parsers that are not in use. A parser serves one thread at a time. It keeps its memory, which
#: grows with the size of a block only.
_parsers: list[simdjson.Parser] = []
_SIMDJSON_TYPES = {"d": np.float64, "i": np.int64, "u": np.uint64}


def _simdjson(block: bytes, of_type: str) -> NDArray[Any] | None:
    """The numbers of a block as simdjson reads them, or None if the slow reader must read it.

    simdjson is too lenient: it flattens nested arrays and accepts line breaks and numbers of any
    length. It reads an empty block as no items, but here an item is missing.

    Args:
        of_type: ``"d"`` (binary64), ``"i"`` (int64) or ``"u"`` (uint64).
    """
    nested = block.find(b"[", 1) > 0
    if nested or b"\n" in block or b"\r" in block or not _has_only_short_items(block):
        return None
    try:
        parser = _parsers.pop()
    except IndexError:
        parser = simdjson.Parser()
    try:
        document: Any = parser.parse(block)
        buffer = document.as_buffer(of_type=of_type)
    except (ValueError, TypeError, RuntimeError):
        return None  # the slow reader says what is wrong
    # The parser cannot be used again while its document is alive.
    del document
    _parsers.append(parser)
    size = memoryview(buffer).nbytes
    return np.frombuffer(buffer, _SIMDJSON_TYPES[of_type]) if size else None


def _has_only_short_items(block: bytes) -> bool:
    """False if 32 aligned bytes have no comma: an item may be longer than the longest number."""
    whole = len(block) // 32 * 32
    commas = (np.frombuffer(block, np.uint8, count=whole) == ord(",")).view(np.uint64)
    in_16_bytes = commas[0::2] | commas[1::2]
    return bool((in_16_bytes[0::2] | in_16_bytes[1::2]).all())


def _read_integers(block: bytes, row: DType, before: int) -> NDArray[Any]:
    """The numbers of a block; ``before`` counts the numbers of the blocks before it."""
    of_type = "i" if row.kind == "int" else "u"
    if row.kind == "bool":
        characters = np.frombuffer(block, np.uint8)[1:-1]
        bits: NDArray[np.uint8] = characters[0::2] - np.uint8(ord("0"))
        if len(block) % 2 and (bits <= 1).all() and (characters[1::2] == ord(",")).all():
            return bits
        low, high = 0, 1
    else:
        limits = np.iinfo(_storage(row))
        low, high = int(limits.min), int(limits.max)
    numbers = _simdjson(block, of_type)
    if numbers is not None and numbers.min() >= low and numbers.max() <= high:
        return numbers
    slow = list(_slow_integers(block, row, low, high, before))
    return np.array(slow, _SIMDJSON_TYPES[of_type])


def _slow_integers(block: bytes, row: DType, low: int, high: int, before: int) -> Iterator[int]:
    for index, item in enumerate(block[1:-1].split(b","), before):
        item = item.strip(b" \t")
        if len(item) > _LONGEST_NUMBER or not _INTEGER.fullmatch(item):
            _refuse(index, item, row, "an integer")
        number = int(item)
        if not low <= number <= high:
            _refuse(index, item, row, f"{low} to {high}")
        yield number


def _read_floats(block: bytes, row: DType, before: int) -> NDArray[Any]:
    """The bit patterns of a block; ``before`` counts the numbers of the blocks before it."""
    numbers, places, strings = _fast_floats(block, row) or _slow_floats(block, row, before)
    if row.real == "float64":
        patterns: NDArray[Any] = numbers.view(np.uint64)
    else:
        patterns, misfit = narrow(row.real, numbers)
        if misfit.any():
            index = int(misfit.argmax())
            item = block[1:-1].split(b",")[index].strip(b" \t")
            _refuse(before + index, item, row, "a number that the dtype has")
    patterns[places] = strings
    return patterns


#: Numbers (1.0 for each string), the positions of the strings, the bit patterns of the strings.
_Floats = tuple[NDArray[np.float64], NDArray[np.intp], NDArray[Any]]


def _fast_floats(block: bytes, row: DType) -> _Floats | None:
    nothing = np.zeros(0, np.intp), np.zeros(0, _storage(row))
    if b'"' not in block:
        numbers = _fast_numbers(block)
        return None if numbers is None else (numbers, *nothing)
    pieces = block.split(b'"')
    tokens = pieces[1::2]
    numbers = _fast_numbers(_STAND_IN.join(pieces[0::2]))
    meanings = {token: _pattern(row.real, token) for token in set(tokens)}
    if numbers is None or len(pieces) % 2 == 0 or None in meanings.values():
        return None
    places = np.flatnonzero(numbers == _STAND_IN_VALUE)
    if len(places) != len(tokens):
        return None
    numbers[places] = 1.0
    return numbers, places, np.array([meanings[token] for token in tokens], _storage(row))


def _fast_numbers(block: bytes) -> NDArray[np.float64] | None:
    numbers = _simdjson(block, "d")
    if numbers is None or numbers.view(np.uint64).all() or not _may_have_minus_zero_integer(block):
        return numbers
    # simdjson reads the token -0 as an integer and loses the sign.
    return _simdjson(_MINUS_ZERO_INTEGER.sub(b"-0.0", block), "d")


def _may_have_minus_zero_integer(block: bytes) -> bool:
    """A quick test before the slow regular expression."""
    characters = np.frombuffer(block, np.uint8)
    minus_zero = (characters[:-2] == ord("-")) & (characters[1:-1] == ord("0"))
    return bool((minus_zero & (characters[2:] != ord("."))).any())


def _slow_floats(block: bytes, row: DType, before: int) -> _Floats:
    numbers: list[float] = []
    places: list[int] = []
    strings: list[int] = []
    for place, item in enumerate(block[1:-1].split(b",")):
        item = item.strip(b" \t")
        if item[:1] == b'"':
            pattern = _pattern(row.real, item[1:-1]) if item[1:][-1:] == b'"' else None
            if pattern is None:
                _refuse(before + place, item, row, 'a number or a string such as "NaN"')
            places.append(place)
            strings.append(pattern)
            numbers.append(1.0)
            continue
        if len(item) > _LONGEST_NUMBER or not _NUMBER.fullmatch(item):
            _refuse(before + place, item, row, "a number")
        number = float(item)
        if number in (float("inf"), float("-inf")):
            _refuse(before + place, item, row, "a number that the dtype has")
        numbers.append(number)
    return (
        np.array(numbers, np.float64),
        np.array(places, np.intp),
        np.array(strings, _storage(row)),
    )


def _refuse(index: int, item: bytes, row: DType, expected: str) -> NoReturn:
    found = quote(item) if len(item) <= _LONGEST_NUMBER else f"{len(item)} characters long"
    raise FormatError(f"item {index} of the list is {found}, expected {expected} ({row.name})")
