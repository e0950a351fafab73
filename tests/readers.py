"""The readers, by name: every one must give the same state and the same verdict for a file.

The only place of the tests that reaches behind the public face for a reader.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import jsonckpt
from jsonckpt._src.load.api import load_selected
from jsonckpt._src.load.options import ReadOptions
from jsonckpt._src.load.selection import TensorSelection

__all__ = ["READERS", "Trickle", "indexed", "piped", "readers_for", "streaming"]

Reader = Callable[..., Any]


def indexed(path: str | os.PathLike[str], **options: Any) -> Any:
    """By the byte ranges, on two threads."""
    return jsonckpt.load(path, threads=options.pop("threads", 2), **options)


def streaming(path: str | os.PathLike[str], **options: Any) -> Any:
    """Forward only, although the ranges are known."""
    chosen = {
        name: options.pop(name)
        for name in ("include", "exclude", "map_location", "allocate")
        if name in options
    }
    read_options = ReadOptions.of(forward_only=True, **options)
    return load_selected(path, TensorSelection.of(**chosen), read_options)


def piped(path: str | os.PathLike[str], **options: Any) -> Any:
    """A single file as a pipe gives it: forward only, nothing known beforehand."""
    with open(path, "rb") as file:
        return jsonckpt.load(cast("BinaryIO", Trickle(file)), **options)


class Trickle(io.RawIOBase):
    """A stream that cannot seek and gives a few bytes at a time, as pipes and sockets do.

    Args:
        source: where the bytes come from.
        most: bytes of one read.
    """

    def __init__(self, source: Any, most: int = 65_536) -> None:
        super().__init__()
        self._source = source
        self._most = most

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return False

    def readinto(self, buffer: Any, /) -> int:
        data = self._source.read(min(len(buffer), self._most))
        buffer[: len(data)] = data
        return len(data)


READERS: dict[str, Reader] = {"indexed": indexed, "streaming": streaming, "piped": piped}


def readers_for(path: str | os.PathLike[str]) -> dict[str, Reader]:
    """Those readers that a checkpoint at ``path`` can be read with."""
    plain_file = Path(path).suffix == ".json" and not Path(path).is_dir()
    return {name: reader for name, reader in READERS.items() if plain_file or name != "piped"}
