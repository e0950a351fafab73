"""What was read of an input, and first looks at files."""

from __future__ import annotations

import zipfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..sources.kinds import HEAD, Look


@dataclass(frozen=True, slots=True)
class Source:
    """What was read.

    Attributes:
        state: the nested state. Tensors are mapped files where possible.
        kind: the kind of the input, in words.
        nbytes: its size on disk.
        notes: what was repaired or assumed.
        metadata: of the user, in a jsonckpt checkpoint or a safetensors file.
        parts: names of further files that were read, beside the one that names them.
        pickled: it may hold objects, and parts that the reader of pickles has not made.
    """

    state: Any
    kind: str
    nbytes: int
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()
    pickled: bool = False


def size_on_disk(path: Path) -> int:
    """The bytes of a file, or of all files in a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def look_at(path: Path) -> Look:
    """Read what tells the kind of a file."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    members: tuple[str, ...] = ()
    if head.startswith(b"PK\x03\x04"):
        # Its reader reports an archive that cannot be opened.
        with suppress(Exception), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = tuple(archive.namelist())
    return Look(path, head, path.stat().st_size, members)
