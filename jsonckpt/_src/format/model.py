"""What a checkpoint consists of: frozen facts, and the arithmetic of chunks. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

from ..errors import FormatError, quote

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "jsonckpt.manifest"
SHARD_FORMAT = "jsonckpt.shard"
ENCODINGS = ("base64", "list")
COMPRESSIONS = ("none", "zstd")
FILTERS = ("none", "shuffle")
MAX_SIZE = (1 << 63) - 1
#: The feature that a manifest requires if shards of another save are among its own.
SHARED_SHARDS: Final = "shared_shards"
#: The ``save_id`` and the ``created_at`` of a save whose bytes depend on the state only.
CONTENT_ID: Final = "0" * 32
NO_TIME: Final = "1970-01-01T00:00:00Z"


def saved_text(created_at: str, created_by: str) -> str:
    """When and by what something was saved, for people.

    >>> saved_text("2026-11-27T19:02:00Z", "jsonckpt 0.1.0"), saved_text(NO_TIME, "jsonckpt 0.1.0")
    ('2026-11-27T19:02:00Z by jsonckpt 0.1.0', 'by content, without a time, by jsonckpt 0.1.0')
    """
    time = "by content, without a time," if created_at == NO_TIME else created_at
    return f"{time} by {created_by}"


@dataclass(frozen=True, slots=True)
class Codec:
    """How chunks are encoded. ``chunk_bytes`` is the raw size of all but the last of a record."""

    encoding: str
    compression: str
    filter: str
    chunk_bytes: int


@dataclass(frozen=True, slots=True)
class Layout:
    """How a record's tensor lies in memory, where that is not row-major in memory of its own.

    Attributes:
        stride: in elements, of a tensor that is dense but not row-major.
        storage: ``(id, offset, size)`` in bytes, of a tensor that shares its storage with others
            that it does not overlap.
    """

    stride: tuple[int, ...] | None = None
    storage: tuple[int, int, int] | None = None

    def to_text(self) -> str:
        """The members of a record, each with the comma that precedes it."""
        text = ""
        if self.stride is not None:
            text += f',"stride":[{",".join(map(str, self.stride))}]'
        if self.storage is not None:
            text += ',"storage":[{},{},{}]'.format(*self.storage)
        return text


#: Row-major, in memory of its own: nearly every record.
PLAIN: Final = Layout()


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor of ``shape``.

    >>> contiguous_stride((2, 3, 4))
    (12, 4, 1)
    """
    steps: list[int] = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(reversed(steps))


def is_dense(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Whether strides are those of a tensor that fills its memory and meets no byte twice.

    Strides of dimensions that have one element or none mean nothing and may be any.

    >>> is_dense((2, 3), (1, 2)), is_dense((2, 3), (1, 3)), is_dense((2, 1), (1, 7))
    (True, False, True)
    """
    expected = 1
    for step, size in sorted((step, size) for size, step in zip(shape, stride) if size > 1):
        if step != expected:
            return False
        expected *= size
    return True


def parse_layout(item: dict[str, Any], shape: list[int], itemsize: int) -> Layout:
    """The members ``stride`` and ``storage``, each where it is there.

    Raises:
        FormatError: one is not what it may be.
    """
    stride, storage = item.get("stride"), item.get("storage")
    if "stride" in item:
        if type(stride) is not list or not all(map(is_size, stride)) or len(stride) != len(shape):
            raise FormatError(f"stride is {quote(stride)}, expected {len(shape)} sizes")
        # Those of dimensions of one element mean nothing, but NumPy counts them in bytes.
        if max(stride, default=0) * itemsize > MAX_SIZE or not is_dense(shape, stride):
            raise FormatError(
                f"stride {quote(stride)} is not that of a dense tensor of shape {quote(shape)}"
            )
    if "storage" in item:
        nbytes = element_count(shape) * itemsize
        if type(storage) is not list or not all(map(is_size, storage)) or len(storage) != 3:
            raise FormatError(f"storage is {quote(storage)}, expected [id, offset, size]")
        _, offset, size = storage
        if not nbytes or offset % itemsize or offset + nbytes > size:
            raise FormatError(
                f"storage is {quote(storage)}, where {nbytes} bytes of items of {itemsize} bytes "
                "have no place"
            )
    return Layout(
        None if stride is None else tuple(stride), None if storage is None else tuple(storage)
    )


@dataclass(frozen=True, slots=True)
class Header:
    """What a record says before its data. ``nbytes`` follows from dtype and shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    codec: Codec
    nbytes: int
    layout: Layout = field(default=PLAIN, kw_only=True)

    @property
    def chunk_count(self) -> int:
        """How many chunks the data has."""
        return chunk_count(self.nbytes, self.codec.chunk_bytes)

    def raw_range(self, chunk: int) -> tuple[int, int]:
        """The raw bytes ``(start, stop)`` of the tensor that a chunk holds."""
        start = chunk * self.codec.chunk_bytes
        return start, min(self.nbytes, start + self.codec.chunk_bytes)


@dataclass(frozen=True, slots=True)
class Entry(Header):
    """One record: what tensor it holds and where its bytes lie.

    ``chunks`` are ``(offset, length, checksum)`` of each payload in the text of the shard;
    ``offset`` and ``length`` the range of the record itself.
    """

    shard: int
    offset: int
    length: int
    chunks: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True, slots=True)
class Part:
    """A region of a tensor: its record, and where the first element of that lies in the tensor."""

    entry: Entry
    offset: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Whole(Header):
    """A tensor in regions, put together from its records. ``codec`` is that of the first one."""

    parts: tuple[Part, ...]

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The records of its parts."""
        return tuple([part.entry for part in self.parts])


#: What holds a tensor: one record, or several.
Stored = Entry | Whole


def entries_of(stored: Stored) -> tuple[Entry, ...]:
    """The records that hold a tensor."""
    return stored.entries if isinstance(stored, Whole) else (stored,)


def parts_of(stored: Stored) -> tuple[Part, ...]:
    """The records that hold a tensor, each with its place."""
    return stored.parts if isinstance(stored, Whole) else (Part(stored, (0,) * len(stored.shape)),)


def entry_of(
    header: Header, shard: int, offset: int, length: int, chunks: tuple[tuple[int, int, str], ...]
) -> Entry:
    """A record as a manifest lists it."""
    return Entry(
        header.name,
        header.dtype,
        header.shape,
        header.device,
        header.codec,
        header.nbytes,
        shard,
        offset,
        length,
        chunks,
        layout=header.layout,
    )


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of records: its name, its size on disk, the size of its text, its seal.

    Attributes:
        save_id: of the save that wrote it, if that is not the one of the manifest; else ``""``.
        directory: where it lies, if that is not the directory of the manifest: ``"../NAME"``, a
            directory beside it; else ``""``.
    """

    file: str
    bytes: int
    text_bytes: int
    seal: str
    save_id: str = ""
    directory: str = ""

    @property
    def path(self) -> str:
        """Its path, seen from the directory of the manifest."""
        return f"{self.directory}/{self.file}" if self.directory else self.file

    def row(self) -> dict[str, Any]:
        """The members of its row in a manifest."""
        row = {"file": self.file, "bytes": self.bytes, "text_bytes": self.text_bytes}
        others = {"seal": self.seal, "save_id": self.save_id, "directory": self.directory}
        return row | {member: value for member, value in others.items() if value}


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
    #: Checksum of the head of a single file, which need not be parsed again when it agrees.
    head_digest: str = field(default="", repr=False, compare=False)
    #: Whether a seal covers its text. After an edit by hand, none does.
    sealed: bool = field(default=True, repr=False, compare=False)
    #: As ``SaveResult.digest``: of the text of a manifest, or the seal of a single file. Empty if
    #: that is null.
    digest: str = field(default="", repr=False, compare=False)
    #: The tensors that several records hold, by name.
    wholes: Mapping[str, Whole] = field(default_factory=dict, repr=False, compare=False)
    #: The records.
    by_name: Mapping[str, Entry] = field(init=False, repr=False, compare=False)
    #: The records and the tensors that several of them hold: what the state may refer to.
    tensors: Mapping[str, Stored] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_name = {entry.name: entry for entry in self.entries}
        object.__setattr__(self, "by_name", by_name)
        object.__setattr__(self, "tensors", {**by_name, **self.wholes} if self.wholes else by_name)

    @property
    def features(self) -> list[str]:
        """The features that its text requires of a reader."""
        shared = any(shard.save_id or shard.directory for shard in self.shards)
        return [SHARED_SHARDS] if shared else []

    @property
    def own_files(self) -> set[str]:
        """The names of its shards that lie in its own directory."""
        return {shard.file for shard in self.shards if not shard.directory}

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


def claimed_bytes(records: Iterable[tuple[int, Layout]]) -> int:
    """Raw bytes that records take in memory: those in one storage, together what it has."""
    total, sizes = 0, dict[int, int]()
    for nbytes, layout in records:
        if layout.storage is None:
            total += nbytes
        else:
            sizes[layout.storage[0]] = layout.storage[2]
    return total + sum(sizes.values())


def is_size(value: object) -> TypeGuard[int]:
    return type(value) is int and 0 <= value <= MAX_SIZE


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def chunk_count(nbytes: int, chunk_bytes: int) -> int:
    """Number of chunks that ``nbytes`` raw bytes make."""
    return -(-nbytes // chunk_bytes)


def identity_lines(header: Header, sums: Iterable[str]) -> bytes:
    """The text whose checksum is a record's ``digest`` (format section 3.2)."""
    codec = header.codec
    sizes = ",".join(map(str, header.shape))
    lines = (
        header.name,
        header.dtype,
        sizes,
        header.device,
        codec.encoding,
        codec.compression,
        codec.filter,
        str(codec.chunk_bytes),
        *sums,
        "",
    )
    return "\n".join(lines).encode()


def optional_members(header: Header) -> str:
    """``device``, ``stride`` and ``storage`` where they are needed, each behind a comma."""
    text = "" if header.device == "cpu" else f',"device":"{header.device}"'
    return text if header.layout is PLAIN else text + header.layout.to_text()
