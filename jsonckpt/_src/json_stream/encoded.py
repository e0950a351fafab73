"""Bytes that stand in JSON text: base64, hexadecimal digits, lists of bytes, zlib, ``.npy`` files.

Everything is decoded in pieces. Nothing is allocated by what the text says of its own size.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections.abc import Iterator
from itertools import chain
from typing import Any, Final, Literal, NamedTuple

import numpy.typing as npt
import pybase64

from ..errors import FormatError, quote
from .number_array import Kind
from .scratch import Scratch, Text

Form = Literal["base64", "hex"]
#: How a ``.npy`` file begins, as bytes and in base64.
NPY_MAGIC: Final = b"\x93NUMPY"
NPY_HEAD: Final = "k05VTVBZ"
#: How gzip data and zlib data of any level begin.
_DEFLATED = (b"\x1f\x8b\x08", b"x\x01", b"x\x5e", b"x\x9c", b"x\xda")
#: The longest header of a ``.npy`` file that is read.
_MAX_HEADER = 10_000
_DATA_URL = re.compile(r"data:[^,]{0,200};base64,")
_PREFIX = re.compile(r"([A-Za-z0-9_.+-]{1,16}):")
#: The words of an encoding, and what each says. Words with ``None`` say nothing about the bytes.
_WORDS: dict[str, str | None] = {
    **dict.fromkeys(("base64", "b64", "url", "urlsafe", "safe", "base64url"), "base64"),
    **dict.fromkeys(("hex", "base16", "b16"), "hex"),
    **dict.fromkeys(("zlib", "gzip", "gz", "deflate"), "compressed"),
    **dict.fromkeys(("raw", "none", "list", "json", "binary", "bytes", "utf", "8", "npy", "numpy")),
    **dict.fromkeys(("", "ascii", "nested", "flat", "plain", "little", "big", "endian", "le")),
}
_ESCAPES = (
    *((rf"\{letter}".encode(), plain) for letter, plain in (("/", b"/"), ("n", b""), ("r", b""))),
    *((rf"\u00{code}".encode(), bytes.fromhex(code)) for code in ("2b", "2f", "3d", "2B", "2F")),
    (b"\\u003D", b"="),
)
_LONGEST_ESCAPE = 6


class Encoded(NamedTuple):
    """Text that stands for bytes.

    Attributes:
        text: the text, without a prefix.
        form: how bytes are written.
        compressed: True for zlib or gzip data. ``None``: the bytes tell.
    """

    text: str | Text
    form: Form
    compressed: bool | None


def head_of(text: str | Text) -> str:
    """The first characters."""
    return text.head if isinstance(text, Text) else text[:256]


def is_npy(value: object) -> bool:
    """True for base64 of a ``.npy`` file."""
    return isinstance(value, str | Text) and head_of(value).startswith(NPY_HEAD)


def encoded(text: str | Text, said: object = None) -> Encoded:
    """What the text is, by its prefix and by the encoding that stands beside it.

    Args:
        text: base64 and the like, perhaps with ``data:…;base64,`` or ``b64.gz:`` before it.
        said: the name of an encoding, or ``None``.

    Raises:
        FormatError: the encoding is unknown.

    >>> encoded("data:application/octet-stream;base64,AAAA").text
    'AAAA'
    >>> encoded("b64.gz:AAAA")
    Encoded(text='AAAA', form='base64', compressed=True)
    """
    names = [said] if isinstance(said, str) else []
    head = head_of(text)
    prefix = _DATA_URL.match(head)
    if prefix is None and (prefix := _PREFIX.match(head)) is not None:
        names.append(prefix[1])
    if prefix is not None:
        text = text[len(prefix[0]) :] if isinstance(text, str) else text.after(len(prefix[0]))
    facts = set()
    for name in names:
        for word in re.split(r"[^a-z0-9]+", name.lower()):
            if word not in _WORDS:
                raise FormatError(f"array data in the unknown encoding {quote(name)}")
            facts.add(_WORDS[word])
    form: Form = "hex" if "hex" in facts else "base64"
    return Encoded(text, form, True if "compressed" in facts else None)


def most_bytes(text: str | Text) -> int:
    """The number of characters. There are not more bytes in it, unless they are compressed."""
    return text.stretch.length if isinstance(text, Text) else len(text)


def byte_pieces(text: str | Text, scratch: Scratch, form: Form = "base64") -> Iterator[bytes]:
    """Decode in pieces. Both alphabets of base64 are read, with or without padding.

    Raises:
        FormatError: a character that does not belong there.
    """
    if isinstance(text, str):
        chunks: Iterator[bytes] = iter([text.encode("utf-8", "replace")])
        escaped = False
    else:
        chunks, escaped = scratch.read(*text.stretch, 3 << 18), text.escaped
    left = torn = b""
    for chunk in chunks:
        chunk = torn + chunk
        torn = b""
        if escaped:
            # The end of the chunk may cut an escape in two.
            last = chunk.rfind(b"\\", max(0, len(chunk) - _LONGEST_ESCAPE + 1))
            if last >= 0:
                chunk, torn = chunk[:last], chunk[last:]
            chunk = _unescaped(chunk)
        chunk = left + chunk.translate(None, b" \t\r\n")
        cut = len(chunk) // 4 * 4
        chunk, left = chunk[:cut], chunk[cut:]
        yield _decode(chunk, form)
    if rest := left + _unescaped(torn).translate(None, b" \t\r\n"):
        yield _decode(rest + b"=" * (-len(rest) % 4 if form == "base64" else 0), form)


def _unescaped(text: bytes) -> bytes:
    if b"\\" in text:
        for escape, plain in _ESCAPES:
            text = text.replace(escape, plain)
    return text


def _decode(text: bytes, form: Form) -> bytes:
    try:
        if form == "hex":
            return bytes.fromhex(text.decode("ascii"))
        if b"-" in text or b"_" in text:
            text = text.replace(b"-", b"+").replace(b"_", b"/")
        return pybase64.b64decode(text, validate=True)
    except ValueError as error:
        raise FormatError(f"not {form} ({quote(str(error))})") from error


def byte_values(arrays: Iterator[tuple[Kind, npt.NDArray[Any]]], size: int = 1) -> Iterator[bytes]:
    """The bytes that a list of whole numbers of ``size`` bytes each stands for.

    Raises:
        FormatError: another value.
    """
    largest = (1 << 8 * size) - 1
    for kind, array in arrays:
        if kind != "int" or (len(array) and not 0 <= array.min() <= array.max() <= largest):
            raise FormatError(f"a list of bytes has whole numbers from 0 to {largest:,}")
        yield array.astype(f"<u{size}").tobytes()


def looks_deflated(first: bytes) -> bool:
    """True if zlib or gzip data may begin like this."""
    return first.startswith(_DEFLATED)


def inflate(pieces: Iterator[bytes], nbytes: int) -> Iterator[bytes]:
    """Decompress zlib or gzip data.

    Raises:
        FormatError: damaged data, or more than ``nbytes``.
    """
    engine = zlib.decompressobj(wbits=47)
    try:
        for piece in pieces:
            while piece:
                out = engine.decompress(piece, 1 << 20)
                nbytes -= len(out)
                if nbytes < 0:
                    raise FormatError("compressed data longer than shape and dtype say")
                yield out
                piece = engine.unconsumed_tail
                if engine.unused_data:
                    raise FormatError("more bytes after the compressed data")
    except zlib.error as error:
        raise FormatError(f"damaged compressed data ({quote(str(error))})") from error
    if not engine.eof:
        raise FormatError("compressed data ends too early")


class NpyHeader(NamedTuple):
    """The header of a ``.npy`` file, as far as arrays of numbers need it."""

    dtype: str
    fortran: bool
    shape: list[int]


def npy_header(pieces: Iterator[bytes]) -> tuple[NpyHeader, Iterator[bytes]]:
    """Read the header of a ``.npy`` file.

    Returns:
        The header, and the bytes after it.

    Raises:
        FormatError: the header is damaged, or the array does not hold numbers.
    """
    first = b""
    while len(first) < _MAX_HEADER + 12 and (piece := next(pieces, b"")):
        first += piece
    width = 2 if first[6:7] == b"\x01" else 4
    start = 8 + width
    length = int.from_bytes(first[8:start], "little")
    text = first[start : start + length]
    if not first.startswith(NPY_MAGIC) or length > _MAX_HEADER or len(text) < length:
        raise FormatError("a damaged .npy file: its header is cut or too long")
    try:
        header = ast.literal_eval(text.decode("utf-8").strip())
        dtype, fortran, shape = header["descr"], header["fortran_order"], list(header["shape"])
    except (ValueError, SyntaxError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise FormatError("a damaged .npy file: its header is not what NumPy writes") from error
    if not isinstance(dtype, str) or "O" in dtype or "V" in dtype:
        raise FormatError(
            f"a .npy file with values of the type {quote(dtype)}: only numbers are read",
            hint="Arrays of objects are a pickle inside, which may run code.",
        )
    return NpyHeader(dtype, fortran is True, shape), chain([first[start + length :]], pieces)
