"""A tensor as an ``.npy`` file, as JSON or as lines of text, piece by piece. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

from ..format.chunk_codec import ChunkCodec
from ..format.dtypes import DTYPES
from ..format.model import Codec

_LIST = Codec("list", "none", "none", 1 << 20)


def npy_header(dtype: str, shape: Sequence[int]) -> bytes:
    """The beginning of an ``.npy`` file of version 1.0.

    >>> npy_header("<f4", (2, 3))[:10], len(npy_header("<f4", (2, 3)))
    (b'\\x93NUMPY\\x01\\x00v\\x00', 128)
    """
    sizes = "".join(f"{size}, " for size in shape[:-1]) + (
        f"{shape[-1]}{',' if len(shape) == 1 else ''}" if shape else ""
    )
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': ({sizes}), }}"
    padding = -(10 + len(text) + 1) % 64
    body = text.encode() + b" " * padding + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


def tokens(blocks: Iterable[memoryview], dtype: str) -> Iterator[str]:
    """Each number as JSON text: the parts of a complex number one after the other."""
    coder = ChunkCodec()
    for block in blocks:
        for piece in [b"".join(coder.pieces(block, _LIST, dtype)).decode()] if len(block) else []:
            numbers = piece.split(",")
            if DTYPES[dtype].kind == "bool":
                numbers = ["true" if number == "1" else "false" for number in numbers]
            yield from numbers


def json_pieces(numbers: Iterable[str], sizes: Sequence[int]) -> Iterator[str]:
    """Nested JSON arrays of the numbers, one row on a line.

    >>> "".join(json_pieces(["1", "2", "3", "4"], [2, 2]))
    '[[1,2],\\n[3,4]]'
    """
    if 0 in sizes:
        yield "[]"
        return
    products = [math.prod(sizes[place:]) for place in range(len(sizes))]
    yield "[" * len(sizes)
    for position, number in enumerate(numbers):
        if position:
            ends = sum(position % product == 0 for product in products)
            yield f"{']' * ends},\n{'[' * ends}" if ends else ","
        yield number
    yield "]" * len(sizes)


def text_pieces(numbers: Iterable[str], sizes: Sequence[int]) -> Iterator[str]:
    """The numbers of a row on a line, with spaces between them.

    >>> "".join(text_pieces(["1", "2", "3", "4"], [2, 2]))
    '1 2\\n3 4\\n'
    """
    row = sizes[-1] if sizes else 1
    for position, number in enumerate(numbers, 1):
        yield number + ("\n" if position % row == 0 else " ")


def number_sizes(dtype: str, shape: Sequence[int]) -> list[int]:
    """The shape of the numbers: a complex number is two."""
    pair = DTYPES[dtype].kind in ("complex", "packed")
    return [*shape, 2] if pair else list(shape)
