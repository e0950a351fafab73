"""Reads plain pickles, and the two older forms of ``torch.save``: one stream, and a tar file."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ..errors import FormatError, IncompleteCheckpointError, JsonckptError, UnsupportedTypeError
from .cursor import INT64
from .instructions import load
from .machine import ROOM, Machine, Vocabulary
from .torch_types import storage_dtype, strided, untyped_storage
from .values import Global, Storage, typed, unfit
from .vocabulary import VOCABULARY

#: The first value of the stream form.
_MAGIC: Final = 0x1950A86A20F9469CFC6C
_LEGACY: Final = re.compile(
    rb"\x80.(\x95.{8})?\x8a\n" + re.escape(_MAGIC.to_bytes(10, "little")) + rb"\.", re.DOTALL
)
_VERSION: Final = 1001


@dataclass(slots=True)
class _Storages:
    """The storages of a file. Their bytes come after the pickle that names them.

    Attributes:
        room: the most bytes that they may still take: the file has not more.
    """

    room: int
    whole: dict[Any, tuple[torch.UntypedStorage, int]] = field(default_factory=dict)
    views: dict[Any, torch.UntypedStorage] = field(default_factory=dict)

    def named(self, ident: Any) -> Any:
        """What a persistent id stands for."""
        parts = typed(ident, tuple, "a persistent id")
        if text_of(parts[0]) == "module":
            return parts[1]
        if text_of(parts[0]) != "storage":
            raise unfit("a persistent id that names no storage")
        _, kind, key, _, count, view = (*parts, None)[:6]
        dtype = storage_dtype(kind)
        self.add(key, count, dtype.itemsize)
        untyped = self.whole[key][0]
        if view is not None:
            name, first, size = typed(view, tuple, "a view")
            if name not in self.views:
                self.views[name] = _part(untyped, first, size, dtype.itemsize)
            untyped = self.views[name]
        return Storage(untyped, dtype)

    def add(self, key: Any, count: Any, itemsize: int) -> None:
        """Make room for a storage, once."""
        nbytes = typed(count, int, "a number of elements") * itemsize
        if key in self.whole:
            if self.whole[key][0].nbytes() != nbytes:
                raise unfit("a storage of two sizes")
            return
        if nbytes < 0 or nbytes > self.room:
            raise IncompleteCheckpointError(
                f"a storage of {nbytes} bytes in a file with {max(self.room, 0)} more",
                hint="Copy the file again.",
            )
        self.room -= nbytes
        self.whole[key] = (untyped_storage(nbytes), itemsize)

    def fill(self, key: Any, machine: Machine) -> None:
        """Read the number of elements and the bytes of a storage."""
        if key not in self.whole:
            raise unfit("the bytes of a storage that no tensor has")
        untyped, itemsize = self.whole[key]
        nbytes = untyped.nbytes()
        if machine.number(INT64) * itemsize != nbytes:
            raise unfit("a storage of two sizes")
        start = machine.position
        if start + nbytes > len(machine.data):
            raise IncompleteCheckpointError(
                f"a storage of {nbytes} bytes ends too early", hint="Copy the file again."
            )
        if nbytes:
            target = torch.empty(0, dtype=torch.uint8).set_(untyped)
            target.numpy()[:] = np.frombuffer(machine.data, np.uint8, nbytes, start)
        machine.position += nbytes


def text_of(value: Any) -> Any:
    """A text, also one of Python 2 that was kept as bytes."""
    return value.decode("ascii", "replace") if type(value) is bytes else value


def _part(untyped: torch.UntypedStorage, first: Any, size: Any, itemsize: int) -> Any:
    start = typed(first, int, "an offset") * itemsize
    end = start + typed(size, int, "a size") * itemsize
    if not 0 <= start <= end <= untyped.nbytes():
        raise unfit("a view that reaches beyond its storage")
    return untyped[start:end]


def _no_storages(_: Any) -> Any:
    raise UnsupportedTypeError(
        "a pickle that refers to values beside it, as data.pkl of an unpacked .pt does",
        hint="Give the directory that it lies in, with its other files.",
    )


@contextmanager
def mapped(path: Path) -> Iterator[mmap]:
    """The bytes of a file. The values that are made of them are copies."""
    if not path.stat().st_size:
        raise IncompleteCheckpointError("the file is empty")
    with path.open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as data:
        yield data


def read_stream(path: Path, encoding: str = "utf-8") -> Any:
    """Read a plain pickle, or a file of ``torch.save`` before torch 1.6.

    Args:
        path: the file.
        encoding: of the strings of Python 2.

    Raises:
        FormatError: it is neither.
        IncompleteCheckpointError: it ends too early.
    """
    with mapped(path) as data:
        return _read(data, encoding, _TOP)


def _read(data: bytes | mmap, encoding: str, vocabulary: Vocabulary, room: int = ROOM) -> Any:
    machine = Machine(
        data,
        vocabulary=vocabulary,
        persistent_load=_no_storages,
        encoding=encoding,
        room=room,
    )
    try:
        first = load(machine)
    except FormatError as error:
        if any(name.startswith("joblib.") for name in machine.names):
            hint = "Load it with joblib.load, and save its values with torch.save or jsonckpt."
            raise FormatError("a file of joblib", hint=hint) from error
        raise
    if type(first) is int and first == _MAGIC:
        return _read_legacy(machine)
    if machine.position != len(data):
        more = len(data) - machine.position
        raise FormatError(
            f"{more} bytes follow the first pickle of this file",
            hint="Load it with pickle.load, once for each pickle, and save all in one.",
        )
    return first


@contextmanager
def _parts() -> Iterator[None]:
    """What several pickles say together fits, or the file is damaged."""
    try:
        yield
    except (JsonckptError, MemoryError):
        raise
    except Exception as error:
        # Values of any type can stand in the place of a key, a number or a tuple.
        raise unfit(f"a part of another kind than torch writes ({type(error).__name__})") from error


@_parts()
def _read_legacy(machine: Machine) -> Any:
    version, system = load(machine), load(machine)
    if version != _VERSION or not isinstance(system, dict):
        raise FormatError("a file of torch.save in a form that is not known")
    if system.get("little_endian", system.get(b"little_endian")) is not True:
        raise FormatError("its numbers are big-endian", hint="Save it again on another machine.")
    storages = _Storages(len(machine.data) - machine.position)
    machine.persistent_load = storages.named
    state = load(machine)
    keys = typed(load(machine), list, "the list of storages")
    for name in keys:
        storages.fill(name, machine)
    if len(set(keys)) != len(storages.whole):
        raise IncompleteCheckpointError("the bytes of a storage are missing")
    return state


def _from_bytes(raw: Any) -> Any:
    """``torch.storage._load_from_bytes``: a storage within a plain pickle."""
    found = _read(typed(raw, bytes, "the bytes of a storage"), "utf-8", VOCABULARY, room=0)
    return typed(found, Storage, "a storage")


_TOP: Final = replace(
    VOCABULARY,
    constructors={**VOCABULARY.constructors, "torch.storage._load_from_bytes": _from_bytes},
    raw=VOCABULARY.raw | {"torch.storage._load_from_bytes"},
)


def is_legacy(head: bytes) -> bool:
    """True if a file begins as those of ``torch.save`` did before torch 1.6."""
    return _LEGACY.match(head) is not None


def is_tar(head: bytes) -> bool:
    """True if a file begins as a tar file does."""
    return head[257:262] == b"ustar"


@_parts()
def read_tar(path: Path, encoding: str = "utf-8") -> Any:
    """Read a file of ``torch.save`` of torch 0.1: a tar file.

    Args:
        path: the file.
        encoding: of the strings of Python 2.

    Raises:
        FormatError: it is another tar file.
        IncompleteCheckpointError: it ends too early.
    """
    places = _members(path)
    if not {"pickle", "storages", "tensors"} <= places.keys():
        raise FormatError(
            "a tar file, but not one of torch.save: it has no storages, tensors and pickle",
            hint="Unpack it, and convert what is in it.",
        )
    with mapped(path) as data:
        storages = _Storages(len(data))
        machine = Machine(
            data,
            places["storages"],
            vocabulary=_TOP,
            persistent_load=_no_storages,
            encoding=encoding,
        )
        found: dict[Any, Any] = {}
        for _ in range(typed(load(machine), int, "the number of storages")):
            key, _, kind = load(machine)
            dtype, start = storage_dtype(kind), machine.position
            storages.add(key, machine.number(INT64), dtype.itemsize)
            machine.position = start
            storages.fill(key, machine)
            found[key] = Storage(storages.whole[key][0], dtype)
        for key, root, first, size in load(machine):
            base = typed(found[root], Storage, "a storage")
            part = _part(base.untyped, first, size, base.dtype.itemsize)
            found[key] = Storage(part, base.dtype)
        machine.position = places["tensors"]
        for _ in range(typed(load(machine), int, "the number of tensors")):
            key, root, _ = load(machine)
            found[key] = _tar_tensor(found[root], machine)

        def named(ident: Any) -> Any:
            if type(ident) is tuple:
                return typed(ident[0], Global, "a class")
            return found[int(ident)]

        machine.position, machine.persistent_load = places["pickle"], named
        return load(machine)


def _tar_tensor(storage: Any, machine: Machine) -> torch.Tensor:
    rank = machine.number(INT64) & 0xFFFFFFFF
    if rank > 64:
        raise unfit(f"a tensor of {rank} dimensions")
    sizes, steps = (
        tuple(machine.number(INT64) for _ in range(rank)),
        tuple(machine.number(INT64) for _ in range(rank)),
    )
    return strided(storage, machine.number(INT64), sizes, steps)


def _members(path: Path) -> dict[str, int]:
    """Where the plain files of a tar file begin."""
    try:
        with tarfile.open(path, "r:") as tar:
            found, position = {}, -1
            for member in tar:
                if member.offset <= position:
                    raise FormatError("a damaged tar file: its members go back")
                position = member.offset
                if member.isreg() and not member.issparse():
                    found[member.name] = member.offset_data
            return found
    except JsonckptError:
        raise
    except Exception as error:
        # tarfile raises many types for hostile bytes.
        raise FormatError(f"a damaged tar file ({type(error).__name__})") from error
