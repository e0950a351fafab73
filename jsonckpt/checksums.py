"""The checksum algorithms of the format, under one interface."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash

from jsonckpt.errors import JsonckptError

__all__ = ["ALGORITHMS", "Algorithm", "Hasher", "hasher", "hexdigest", "seal_of"]

Buffer = Any


class Hasher(Protocol):
    """What ``hashlib`` and ``xxhash`` objects share."""

    def update(self, data: Buffer, /) -> object:
        """Add bytes."""

    def hexdigest(self) -> str:
        """The checksum of all bytes so far."""


def _blake3() -> Hasher:
    try:
        import blake3  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise JsonckptError(
            "the checksum blake3 needs the package blake3, which is not installed",
            hint="pip install 'jsonckpt[blake3]'.",
        ) from error
    made: Hasher = blake3.blake3()
    return made


def _xxh3_128() -> Hasher:
    return xxhash.xxh3_128()


@dataclass(frozen=True)
class Algorithm:
    """A checksum: its name in files, its hexadecimal digits, how to start one."""

    name: str
    digits: int
    start: Callable[[], Hasher]


ALGORITHMS: dict[str, Algorithm] = {
    row.name: row
    for row in (
        Algorithm("xxh3_128", 32, _xxh3_128),
        Algorithm("sha256", 64, hashlib.sha256),
        Algorithm("blake3", 64, _blake3),
    )
}


def hasher(algorithm: str) -> Hasher:
    """A fresh checksum to feed."""
    return ALGORITHMS[algorithm].start()


def hexdigest(algorithm: str, data: Buffer) -> str:
    """The checksum of one buffer.

    >>> hexdigest("xxh3_128", b"")
    '99aa06d3014798d86001c324468d497f'
    """
    if algorithm == "xxh3_128":
        return xxhash.xxh3_128_hexdigest(data)
    state = hasher(algorithm)
    state.update(data)
    return state.hexdigest()


def seal_of(algorithm: str, data: Buffer) -> str:
    """The value of a ``seal`` over ``data``."""
    return f"{algorithm}:{hexdigest(algorithm, data)}"
