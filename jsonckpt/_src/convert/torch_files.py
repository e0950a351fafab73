"""Reads files of ``torch.save`` without running code from them. Maps them where possible.

It also reads unpacked files. A ``.pt`` is a ZIP archive, so an upload to a site may turn
``best.pt`` into a directory ``best/`` with ``data.pkl``, ``data/0``, … in it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import (
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    UnsupportedTypeError,
    quote,
)
from ..storage.spool import PREFIX

#: The alignment of tensors in archives. A mapped file needs it.
_ALIGNMENT = 64
_COPY = 1 << 20
#: The name of a member of an archive, its size, and a function that opens it.
_Part = tuple[str, int, Callable[[], IO[bytes]]]
_NAMED_GLOBAL = re.compile(r"GLOBAL ([\w.<>]+) was not an allowed global")
_OTHER_GLOBAL = re.compile(r"[Uu]nsupported (?:global|class|operand)[^\n]{0,20}?([\w]+(?:\.\w+)+)")


def load_torch_file(path: Path, directory: Path, *, unsafe_pickle: bool = False) -> Any:
    """Load the state in a file of ``torch.save``, on the CPU.

    Args:
        path: a ZIP archive, whose tensors are mapped, or a file of the older format.
        directory: for a temporary copy, if the archive is compressed.
        unsafe_pickle: let the file run pickle code if it needs that.

    Raises:
        UnsupportedTypeError: the file needs pickle. The message names what it imports.
        FormatError: not a file of ``torch.save``.
        IncompleteCheckpointError: the file ends too early.
    """
    with _damaged(path):
        is_archive = zipfile.is_zipfile(path)
    if not is_archive:
        with path.open("rb") as file:
            if file.read(4) == b"PK\x03\x04":
                raise IncompleteCheckpointError("this ZIP archive ends too early", file=path)
        return _load(path, mapped=False, unsafe_pickle=unsafe_pickle)
    with path.open("rb") as file, _archive(path, file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        names = {entry.filename.split("/", 1)[-1] for entry in entries}
        if "data.pkl" not in names:
            raise FormatError(
                "a ZIP archive, but not one of torch.save: it has no data.pkl", file=path
            )
        if "constants.pkl" in names:
            raise FormatError(
                "a TorchScript program, not a checkpoint",
                file=path,
                hint="Convert the state_dict() of the loaded module instead.",
            )
        if all(entry.compress_type == zipfile.ZIP_STORED for entry in entries):
            return _load(path, mapped=True, unsafe_pickle=unsafe_pickle)
        # A compressed archive cannot be mapped.
        parts: list[_Part] = [
            (entry.filename, entry.file_size, partial(archive.open, entry)) for entry in entries
        ]
        with _damaged(path), _stored_archive(parts, directory) as copy:
            return _load(copy, mapped=True, unsafe_pickle=unsafe_pickle, shown=path)


def _archive(path: Path, file: IO[bytes]) -> zipfile.ZipFile:
    # An interrupt in ZipFile would leave a file open that ZipFile has opened itself.
    with _damaged(path):
        return zipfile.ZipFile(file)


@contextmanager
def _damaged(path: Path) -> Iterator[None]:
    try:
        yield
    except (JsonckptError, OSError):
        raise
    except Exception as error:
        # zipfile raises many types: BadZipFile, UnicodeDecodeError, NotImplementedError,
        # RuntimeError, zlib.error, …
        raise FormatError(f"a damaged ZIP archive ({quote(str(error))})", file=path) from error


def find_unpacked(directory: Path) -> Path | None:
    """The directory of an unpacked ``.pt``: ``directory`` itself, or one inside it."""
    candidates = [directory]
    if directory.is_dir():
        candidates += sorted(entry for entry in directory.iterdir() if entry.is_dir())
    found = [place for place in candidates if (place / "data.pkl").is_file()]
    if len(found) > 1 and found[0] != directory:
        names = ", ".join(quote(place.name) for place in found[:5])
        raise FormatError(
            f"{len(found)} unpacked checkpoints ({names})", file=directory, hint="Name one of them."
        )
    return found[0] if found else None


def load_unpacked(directory: Path, spool: Path, *, unsafe_pickle: bool = False) -> Any:
    """Load the state in a directory that is an unpacked file of ``torch.save``.

    The directory is packed again, without compression, into a temporary file under ``spool``.

    Raises: as :func:`load_torch_file`.
    """
    parts: list[_Part] = []
    for place, _, names in os.walk(directory):
        for name in names:
            file = Path(place) / name
            inside = file.relative_to(directory).as_posix()
            if file.is_file() and inside.split("/")[0] in _PARTS:
                parts.append((f"archive/{inside}", file.stat().st_size, partial(io.FileIO, file)))
    present = {name for name, _, _ in parts}
    if "archive/version" not in present:
        parts.append(("archive/version", 2, partial(io.BytesIO, b"3\n")))
    with _stored_archive(sorted(parts, key=lambda part: part[0]), spool) as copy:
        return _load(copy, mapped=True, unsafe_pickle=unsafe_pickle, shown=directory)


#: The files and directories that belong in the archive.
_PARTS = frozenset({"data.pkl", "data", "version", "byteorder", ".format_version", ".data"})


@contextmanager
def _stored_archive(parts: list[_Part], directory: Path) -> Iterator[Path]:
    """A temporary archive of ``parts``, not compressed, aligned as torch aligns it."""
    with tempfile.NamedTemporaryFile(dir=directory, prefix=PREFIX, suffix=".pt") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, size, opener in parts:
                info = zipfile.ZipInfo(name)
                info.file_size = size
                large = size >= 1 << 31
                # Before the content come the local header, the name, the ZIP64 field that Python
                # adds for large entries, and the head of this field. Padding aligns the content.
                head = file.tell() + 30 + len(name.encode()) + (20 if large else 0) + 4
                padding = -head % _ALIGNMENT
                info.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding
                with opener() as source, archive.open(info, "w", force_zip64=large) as target:
                    shutil.copyfileobj(source, target, _COPY)
        file.flush()
        yield Path(file.name)


def _load(path: Path, *, mapped: bool, unsafe_pickle: bool, shown: Path | None = None) -> Any:
    shown = shown or path
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        # Hostile bytes can make an unpickler raise anything. It means "not a checkpoint", except
        # when the file needs code.
        needed = _needed_globals(path, error)
        if not needed:
            raise _unreadable(error, shown) from error
        if not unsafe_pickle:
            names = ", ".join(quote(name) for name in needed[:10])
            more = f" and {len(needed) - 10} more" if len(needed) > 10 else ""
            raise UnsupportedTypeError(
                f"this file needs pickle, which can run any code: it imports {names}{more}",
                file=shown,
                hint="Save it again with tensors and plain values only, or pass --unsafe-pickle if "
                "you trust whoever made it.",
            ) from error
    try:
        return torch.load(path, map_location="cpu", weights_only=False, mmap=mapped)
    except Exception as error:
        raise _unreadable(error, shown) from error


def _needed_globals(path: Path, error: Exception) -> list[str]:
    """The names that a file imports and that ``torch.load`` does not allow."""
    lister = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if lister is not None and zipfile.is_zipfile(path):
        try:
            return sorted(set(lister(path)))
        except Exception:
            return []  # a damaged file, as the first error says
    text = str(error)
    return sorted(set(_NAMED_GLOBAL.findall(text)) or set(_OTHER_GLOBAL.findall(text)))


def _unreadable(error: Exception, path: Path) -> FormatError:
    text = str(error)
    if "WeightsUnpickler error:" in text:
        text = text.split("WeightsUnpickler error:", 1)[1]
    return FormatError(
        f"torch.load cannot read this file ({type(error).__name__}: "
        f"{quote(text.strip().split(chr(10))[0], 160)})",
        file=path,
    )
