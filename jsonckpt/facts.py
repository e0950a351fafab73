"""What a checkpoint consists of: frozen facts, and the arithmetic of chunks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Codec", "Entry", "Manifest", "ShardFile"]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "jsonckpt.manifest"
SHARD_FORMAT = "jsonckpt.shard"
ENCODINGS = ("base64", "list")
COMPRESSIONS = ("none", "zstd")
FILTERS = ("none", "shuffle")


@dataclass(frozen=True, slots=True)
class Codec:
    """How chunks are encoded. ``chunk_bytes`` is the raw size of all but the last of a record."""

    encoding: str
    compression: str
    filter: str
    chunk_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The object of the manifest's ``codecs``."""
        return {
            "encoding": self.encoding,
            "compression": self.compression,
            "filter": self.filter,
            "chunk_bytes": self.chunk_bytes,
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: what tensor it holds and where its bytes lie.

    ``chunks`` are ``(offset, length, checksum)`` of each payload in the text of the shard;
    ``offset`` and ``length`` the range of the record itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    codec: Codec
    shard: int
    offset: int
    length: int
    chunks: tuple[tuple[int, int, str], ...]
    nbytes: int

    def raw_range(self, chunk: int) -> tuple[int, int]:
        """The raw bytes ``(start, stop)`` of the tensor that a chunk holds."""
        start = chunk * self.codec.chunk_bytes
        return start, min(self.nbytes, start + self.codec.chunk_bytes)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of records: its name, its size on disk, the size of its text, its seal."""

    file: str
    bytes: int
    text_bytes: int
    seal: str


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint but for its payloads."""

    save_id: str
    created_at: str
    created_by: str
    checksum: str
    metadata: dict[str, Any]
    state: Any
    shards: tuple[ShardFile, ...]
    entries: tuple[Entry, ...]
    by_name: Mapping[str, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {entry.name: entry for entry in self.entries})

    @property
    def nbytes(self) -> int:
        """Raw bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    def totals(self) -> dict[str, int]:
        """What a person reads first."""
        return {
            "tensors": len(self.entries),
            "bytes": self.nbytes,
            "stored_bytes": sum(chunk[1] for entry in self.entries for chunk in entry.chunks),
            "shards": len(self.shards),
        }


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def chunk_count(nbytes: int, chunk_bytes: int) -> int:
    """Number of chunks that ``nbytes`` raw bytes make."""
    return -(-nbytes // chunk_bytes)


def identity_lines(
    name: str, dtype: str, shape: Iterable[int], device: str, codec: Codec, sums: Iterable[str]
) -> bytes:
    """The text whose checksum is a record's ``digest`` (format section 3.2)."""
    items = [
        name,
        dtype,
        ",".join(map(str, shape)),
        device,
        codec.encoding,
        codec.compression,
        codec.filter,
        str(codec.chunk_bytes),
        *sums,
    ]
    return "".join(f"{item}\n" for item in items).encode()
