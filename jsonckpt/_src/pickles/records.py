"""Reads the ZIP form of ``torch.save``, packed or unpacked: a pickle, and a record per storage."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from os import SEEK_END
from pathlib import Path
from typing import IO, Any, Final

import torch

from ..errors import FormatError, IncompleteCheckpointError, quote
from .instructions import load
from .machine import Machine
from .streams import text_of
from .torch_types import storage_dtype, untyped_storage
from .values import Storage, typed, unfit
from .vocabulary import VOCABULARY

#: Smaller records of a directory are read. Larger ones are mapped.
_MAPPED: Final = 1 << 16
#: The alignment that every dtype is content with.
_ALIGNMENT: Final = 16
_HEADER: Final = struct.Struct("<4s22xHH")
OpenRecord = Callable[[str], torch.UntypedStorage]


@dataclass(slots=True)
class _Records:
    """The storages by their keys.

    Attributes:
        find: gives the bytes of a record.
        big_endian: they are in the order of another machine.
    """

    find: OpenRecord
    big_endian: bool
    known: dict[str, torch.UntypedStorage] = field(default_factory=dict)

    def named(self, ident: Any) -> Storage:
        """What a persistent id stands for."""
        parts = typed(ident, tuple, "a persistent id")
        if text_of(parts[0]) != "storage":
            raise unfit("a persistent id that names no storage")
        _, kind, key, _, count, *_ = parts
        dtype, key = storage_dtype(kind), typed(text_of(key), str, "the key of a storage")
        nbytes = typed(count, int, "a number of elements") * dtype.itemsize
        if key not in self.known:
            found = self.find(key) if nbytes else untyped_storage(0)
            if self.big_endian and found.nbytes() % dtype.itemsize == 0:
                found = untyped_storage(found.nbytes()).copy_(found)
                found.byteswap(dtype)  # type: ignore[no-untyped-call]
            self.known[key] = found
        if not 0 <= nbytes <= self.known[key].nbytes():
            raise IncompleteCheckpointError(
                f"storage {quote(key)} has {self.known[key].nbytes()} bytes; {nbytes} are needed"
            )
        return Storage(self.known[key], dtype)


def read_records(
    pickle: bytes,
    find: OpenRecord,
    encoding: str = "utf-8",
    *,
    big_endian: bool = False,
    size: int = 0,
) -> Any:
    """Read the pickle of an archive.

    Args:
        pickle: the content of ``data.pkl``.
        find: gives the bytes of a storage for its key.
        encoding: of the strings of Python 2.
        big_endian: the storages are from a machine of that order.
        size: bytes of all storages.

    Raises:
        FormatError: it is damaged.
        IncompleteCheckpointError: a part is missing.
    """
    records = _Records(find, big_endian)
    machine = Machine(
        pickle, vocabulary=VOCABULARY, persistent_load=records.named, encoding=encoding
    )
    machine.room += size
    return load(machine)


def archive_records(
    path: Path, file: IO[bytes], entries: dict[str, zipfile.ZipInfo], prefix: str
) -> OpenRecord:
    """The records of a ZIP archive that is not compressed. They are mapped."""
    size = left = path.stat().st_size
    whole = _map(path, size)

    def find(key: str) -> torch.UntypedStorage:
        nonlocal left
        entry = entries.get(f"{prefix}data/{key}")
        if entry is None:
            raise IncompleteCheckpointError(f"the storage data/{key} is missing")
        start = _start(file, entry)
        if start + entry.file_size > size:
            raise IncompleteCheckpointError(f"storage {quote(key)} ends too early")
        left -= entry.file_size
        if left < 0:
            raise FormatError(f"storage {quote(key)} has bytes that another storage has, too")
        part: torch.UntypedStorage = whole[start : start + entry.file_size]
        # torch aligns its records. Other programs pack them anywhere.
        return part if start % _ALIGNMENT == 0 else untyped_storage(part.nbytes()).copy_(part)

    return find


def stored_bytes(file: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    """The content of a member that is not compressed. Its checksum is not compared.

    Raises:
        FormatError, IncompleteCheckpointError: the archive is damaged.
    """
    start, end = _start(file, entry), file.seek(0, SEEK_END)
    file.seek(start)
    content = file.read(min(entry.file_size, max(end - start, 0)))
    if len(content) < entry.file_size:
        raise IncompleteCheckpointError(f"{quote(entry.filename)} in it ends too early")
    return content


def _start(file: IO[bytes], entry: zipfile.ZipInfo) -> int:
    """Where the content of a member begins in an archive."""
    file.seek(entry.header_offset)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size or header[:4] != b"PK\x03\x04":
        raise FormatError(f"the record of {quote(entry.filename)} is damaged")
    if entry.file_size != entry.compress_size:
        raise FormatError(f"two sizes are stated for {quote(entry.filename)}")
    _, name, extra = _HEADER.unpack(header)
    return int(entry.header_offset + _HEADER.size + name + extra)


def _map(path: Path, size: int) -> Any:
    """The bytes of a file. What is written to them does not reach the file."""
    return torch.UntypedStorage.from_file(str(path), False, size)


def directory_records(directory: Path) -> OpenRecord:
    """The records of an unpacked archive."""

    def find(key: str) -> torch.UntypedStorage:
        path = directory / "data" / key
        # A key that is a path could leave the directory.
        if Path(key).name != key or not path.is_file():
            raise IncompleteCheckpointError(f"the storage {quote(f'data/{key}')} is missing")
        size = path.stat().st_size
        if size >= _MAPPED:
            whole: torch.UntypedStorage = _map(path, size)
            return whole
        raw = path.read_bytes()
        storage = untyped_storage(len(raw))
        if raw:
            torch.empty(0, dtype=torch.uint8).set_(storage).copy_(
                torch.frombuffer(bytearray(raw), dtype=torch.uint8)
            )
        return storage

    return find
