"""The bytes of several files in a row, as the shards of a TensorFlow.js model are. Mapped."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from ..errors import FormatError, IncompleteCheckpointError, LimitError, UnsafePathError, quote
from ..format.limits import Limits, exceeds
from ..storage.path_arguments import is_url
from ..storage.spool import Spool
from ..tensors.pieces import over
from .kinds import HEAD, Look, kind_of

#: Bytes that are read at once.
_WINDOW = 1 << 16


@dataclass(slots=True)
class _Part:
    """One shard: its name, its place in the row, and its memory, if that is mapped already."""

    name: str
    start: int
    nbytes: int
    path: Path | None
    memory: Any = None  # an UntypedStorage


class ShardBytes:
    """The bytes of shards, one shard after the other.

    Attributes:
        total: the number of all bytes.
    """

    def __init__(self, parts: list[_Part]) -> None:
        self._parts = parts
        self._at = 0
        #: What was read last, and where it begins: a weight can have millions of strings.
        self._window = (0, b"")
        self.total = sum(part.nbytes for part in parts)

    @classmethod
    def over(cls, name: str, tensors: Sequence[torch.Tensor]) -> ShardBytes:
        """The bytes of flat tensors of uint8."""
        parts, start = [], 0
        for tensor in tensors:
            memory = tensor.untyped_storage()[: tensor.numel()]
            parts.append(_Part(name, start, tensor.numel(), None, memory))
            start += tensor.numel()
        return cls(parts)

    def check(self, wanted: int, *, exact: bool) -> None:
        """Check the number of bytes against what the manifest says of the weights.

        Raises:
            IncompleteCheckpointError: there are fewer than ``wanted``.
            FormatError: there are more, and ``exact`` is set.
        """
        if self.total < wanted or (exact and self.total > wanted):
            part = self._suspect(self.total < wanted)
            what = f"the shard {quote(part.name)}" if part.path else part.name
            if len(self._parts) > 1:
                which = "short" if self.total < wanted else "long"
                what = f"{what} is too {which}: all {len(self._parts)} shards of its group"
            message = f"{what} have {self.total:,} bytes where the manifest says {wanted:,}"
            message = message if len(self._parts) > 1 else message.replace(" have ", " has ")
            if self.total > wanted:
                raise FormatError(message, hint="Take the shards and the manifest of one save.")
            raise IncompleteCheckpointError(message, hint="It was cut off: copy it again.")

    def _suspect(self, short: bool) -> _Part:
        """The shard that does not fit: all but the last have the same size."""
        usual = self._parts[0].nbytes
        for part in self._parts[1:-1]:
            if (part.nbytes < usual) == short and part.nbytes != usual:
                return part
        if len(self._parts) > 2 and all(p.nbytes != usual for p in self._parts[1:-1]):
            return self._parts[0]
        return self._parts[-1]

    def storage(self, start: int, nbytes: int, itemsize: int, spool: Spool) -> torch.UntypedStorage:
        """The memory of some bytes: that of their shard, or a copy if no shard holds all of them.

        Args:
            start, nbytes: which bytes.
            itemsize: bytes of one value. Memory that is not aligned to it is copied.
            spool: memory for a copy.
        """
        if not nbytes:
            return torch.empty(0).untyped_storage()
        pieces = list(self._pieces(start, nbytes))
        if len(pieces) == 1 and pieces[0].data_ptr() % itemsize == 0:
            return pieces[0]
        copy = spool.allocate(nbytes)
        target, done = over(copy, torch.uint8, (nbytes,)), 0
        for piece in pieces:
            size = piece.nbytes()
            target[done : done + size] = over(piece, torch.uint8, (size,))
            done += size
        return copy

    def read(self, start: int, nbytes: int) -> bytes:
        """Some bytes.

        Raises:
            IncompleteCheckpointError: the shards end before.
        """
        if start + nbytes > self.total:
            raise IncompleteCheckpointError(
                f"the shard {quote(self._parts[-1].name)} ends within a string"
                if self._parts
                else "there is no shard"
            )
        first, window = self._window
        if not first <= start <= start + nbytes <= first + len(window):
            pieces = self._pieces(start, max(nbytes, min(_WINDOW, self.total - start)))
            memory = [over(piece, torch.uint8, (piece.nbytes(),)).numpy() for piece in pieces]
            first, window = start, b"".join([part.tobytes() for part in memory])
            self._window = first, window
        return window[start - first : start - first + nbytes]

    def _pieces(self, start: int, nbytes: int) -> Iterator[torch.UntypedStorage]:
        """The memory of the bytes, shard by shard. Callers go forward through the shards."""
        if self._at < len(self._parts) and self._parts[self._at].start > start:
            self._at = 0
        end = start + nbytes
        while start < end:
            part = self._parts[self._at]
            upto = part.start + part.nbytes
            if start >= upto:
                part.memory = None  # tensors keep their own reference
                self._at += 1
                continue
            if part.memory is None:
                part.memory = torch.UntypedStorage.from_file(str(part.path), False, part.nbytes)
            stop = min(end, upto)
            yield part.memory[start - part.start : stop - part.start]
            start = stop


def open_shards(index: Path, names: list[object], taken: set[str], limits: Limits) -> ShardBytes:
    """The shards that an index names. They lie beside it, or in directories there.

    Args:
        index: the file that names them.
        names: their paths, relative to the directory of the index.
        taken: the names in the index so far. The new ones are added.
        limits: on the number of shards, and whether symbolic links are followed.

    Raises:
        UnsafePathError: a name leads out of the directory, or is a URL.
        IncompleteCheckpointError: a shard is missing.
        FormatError, LimitError: a name is no text or stands twice; there are too many.
    """
    parts: list[_Part] = []
    start = 0
    missing = []
    for name in names:
        if not isinstance(name, str) or not name or "\0" in name:
            raise FormatError(f"the name of a shard is a text, not {quote(name)}")
        if name in taken:
            raise FormatError(f"the manifest names the shard {quote(name)} twice")
        taken.add(name)
        if exceeds(len(taken), limits.shards):
            raise LimitError(f"over {limits.shards:,} shards")
        path = _local(index, name)
        if not path.is_file():
            missing.append(name)
            continue
        steps = [path, *(index.parent / step for step in Path(name).parents)]
        if not limits.follow and any(step.is_symlink() for step in steps[:-1]):
            raise UnsafePathError(f"the shard {quote(name)} is a symbolic link")
        size = path.stat().st_size
        _refuse_pointer(path, name, size)
        parts.append(_Part(name, start, size, path))
        start += size
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise IncompleteCheckpointError(
            f"the shard {quote(missing[0])} is missing{more}",
            hint=f"Copy it beside {index.name}.",
        )
    return ShardBytes(parts)


def _local(index: Path, name: str) -> Path:
    if is_url(name):
        raise UnsafePathError(
            f"the shard {quote(name)} is a URL",
            hint=f"Download it, put it beside {index.name}, and write its name there.",
        )
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or not place.name:
        raise UnsafePathError(f"the shard {quote(name)} does not lie beside {index.name}")
    return index.parent / name


def _refuse_pointer(path: Path, name: str, size: int) -> None:
    """Refuse what stands in for a shard: a Git LFS pointer, a web page."""
    if size > HEAD:
        return
    kind = kind_of(Look(path, path.read_bytes(), size))
    if kind.name.startswith(("a Git LFS", "a pointer", "a web page")):
        raise FormatError(f"the shard {quote(name)} is {kind.name}", hint=kind.advice)
