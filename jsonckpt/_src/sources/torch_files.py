"""Reads files of ``torch.save`` and other pickles without running code from them.

It also reads unpacked files. A ``.pt`` is a ZIP archive, so an upload to a site may turn
``best.pt`` into a directory ``best/`` with ``data.pkl``, ``data/0``, … in it.
"""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import (
    ArgumentError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    quote,
)
from ..format.limits import DEFAULT_LIMITS, Limits, exceeds
from ..pickles.records import archive_records, directory_records, read_records, stored_bytes
from ..pickles.streams import is_legacy, is_tar, read_stream, read_tar
from ..pickles.unread import check, find_unread, refuse_unread
from ..storage.spool import PREFIX

#: The alignment of tensors in archives. A mapped file needs it.
_ALIGNMENT = 64
_COPY = 1 << 20
#: The name of a member of an archive, its size, and a function that opens it.
_Part = tuple[str, int, Callable[[], IO[bytes]]]
_ZIP = b"PK\x03\x04"
_SCRIPT = (
    "Convert the state_dict() of the loaded module instead: torch.jit.load(path).state_dict()."
)


@dataclass(frozen=True, slots=True)
class PickleOptions:
    """How to read pickles.

    Attributes:
        unsafe: run their code where they need that.
        encoding: of the strings of Python 2, or ``"bytes"``.
        partial: return a state with parts that were not made (see :mod:`..pickles.unread`).
        limits: on the bytes of tensors, and of a compressed archive.
    """

    unsafe: bool = False
    encoding: str = "utf-8"
    partial: bool = False
    limits: Limits = DEFAULT_LIMITS

    def __post_init__(self) -> None:
        try:
            " ".encode("ascii" if self.encoding == "bytes" else self.encoding)
        except (LookupError, ValueError) as error:
            raise ArgumentError(
                f"pickle_encoding is {quote(self.encoding)}, which Python does not know",
                hint="utf-8, latin1 and bytes are usual.",
            ) from error


_SAFE = PickleOptions()


def pickle_kind(head: bytes) -> str:
    """The kind of a file that begins so, in words."""
    of_torch = head.startswith(_ZIP) or is_tar(head) or is_legacy(head)
    return "PyTorch file" if of_torch else "pickle"


def load_torch_file(path: Path, directory: Path, options: PickleOptions = _SAFE) -> Any:
    """Load the state in a file of ``torch.save`` or in a plain pickle, on the CPU.

    Args:
        path: a ZIP archive, whose tensors are mapped, a file of an older form, or a pickle.
        directory: for a temporary copy, if the archive is compressed.
        options: whether the file may run code, and what text it has.

    Raises:
        UnsupportedTypeError: the file needs pickle. The message names what it imports.
        FormatError: neither a file of ``torch.save`` nor a pickle.
        IncompleteCheckpointError: the file ends too early.
    """
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(_ZIP):
        return _load_archive(path, directory, options)
    read = read_tar if is_tar(head) else read_stream
    return _finished(
        lambda: read(path, options.encoding), lambda: _run_stream(path, options), path, options
    )


def _finished(
    read: Callable[[], Any], run: Callable[[], Any], shown: Path, options: PickleOptions
) -> Any:
    """The state that ``read`` gives, or that ``run`` gives where it needs code and may run it."""
    failed: JsonckptError | None = None
    try:
        state = read()
        check(state, options.limits.total_bytes(_bytes_of(shown)))
        needed = next(find_unread(state), None) is not None
    except RecursionError as error:
        raise LimitError("this pickle is nested too deeply", file=shown) from error
    except JsonckptError as error:
        failed = error.at(file=shown)
        if isinstance(error, LimitError) or not options.unsafe:
            raise failed from error.__cause__
    if options.unsafe and (failed or needed):
        try:
            return run()
        except Exception as error:
            # Code of the file can raise anything. Where the bytes are damaged, that says more.
            raise failed or _unreadable(error, shown) from error
    if not options.partial:
        refuse_unread(state, shown)
    return state


def _bytes_of(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _run_stream(path: Path, options: PickleOptions) -> Any:
    """Load a file that is no archive, and run its code, once."""
    with path.open("rb") as file:
        head = file.read(512)
        file.seek(0)
        if is_tar(head) or is_legacy(head):
            return torch.load(
                file, map_location="cpu", weights_only=False, encoding=options.encoding
            )
        return pickle.load(file, encoding=options.encoding)


def _run_archive(path: Path, options: PickleOptions) -> Any:
    """Load an archive that is not compressed, and run its code."""
    return torch.load(
        path, map_location="cpu", weights_only=False, mmap=True, encoding=options.encoding
    )


def _load_archive(path: Path, directory: Path, options: PickleOptions) -> Any:
    with _damaged(path):
        if not zipfile.is_zipfile(path):
            raise IncompleteCheckpointError("this ZIP archive ends too early", file=path)
    with path.open("rb") as file, _archive(path, file) as archive:
        entries = {e.filename: e for e in archive.infolist() if not e.is_dir()}
        prefix = _prefix(list(entries), path)
        if all(entry.compress_type == zipfile.ZIP_STORED for entry in entries.values()):
            return _load_stored(path, file, archive, prefix, options)
        # A compressed archive cannot be mapped.
        total = sum(entry.file_size for entry in entries.values())
        most = options.limits.total_bytes(path.stat().st_size)
        if exceeds(total, most):
            raise LimitError(
                f"this archive decompresses to {total:,} bytes; the limit is {most:,}",
                file=path,
                hint="Pass --limit expansion=none if it is meant.",
            )
        parts: list[_Part] = [
            (entry.filename, entry.file_size, partial(archive.open, entry))
            for entry in entries.values()
        ]
        with (
            _damaged(path),
            _stored_archive(parts, directory) as copy,
            copy.open("rb") as stored,
            _archive(copy, stored) as plain,
        ):
            return _load_stored(copy, stored, plain, prefix, options, shown=path)


def _prefix(names: list[str], path: Path) -> str:
    """The directory of ``data.pkl`` in an archive.

    Raises:
        FormatError: the archive is of another kind. The message says of which.
    """
    below = {name.split("/", 1)[-1] for name in names}
    if "constants.pkl" in below and "data.pkl" in below:
        raise FormatError("a TorchScript program, not a checkpoint", file=path, hint=_SCRIPT)
    found = [name for name in names if name == "data.pkl" or name.split("/", 1)[-1] == "data.pkl"]
    if not found:
        raise FormatError("a ZIP archive, but not one of torch.save: it has no data.pkl", file=path)
    return found[0].removesuffix("data.pkl")


def _load_stored(
    path: Path,
    file: IO[bytes],
    archive: zipfile.ZipFile,
    prefix: str,
    options: PickleOptions,
    shown: Path | None = None,
) -> Any:
    """Load an archive that is not compressed. Its tensors are mapped."""
    entries = {entry.filename: entry for entry in archive.infolist()}

    def read() -> Any:
        with _damaged(shown or path):
            # torch can write archives without checksums, so they are not compared.
            content = stored_bytes(file, entries[f"{prefix}data.pkl"])
            order = entries.get(f"{prefix}byteorder")
            big = order is not None and stored_bytes(file, order).strip() == b"big"
        find = archive_records(path, file, entries, prefix)
        size = path.stat().st_size
        return read_records(content, find, options.encoding, big_endian=big, size=size)

    return _finished(read, lambda: _run_archive(path, options), shown or path, options)


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


def load_unpacked(directory: Path, spool: Path, options: PickleOptions = _SAFE) -> Any:
    """Load the state in a directory that is an unpacked file of ``torch.save``.

    Args:
        directory: where ``data.pkl`` is. Large tensors are mapped.
        spool: for a temporary archive, if code is run.
        options: whether the file may run code, and what text it has.

    Raises: as :func:`load_torch_file`.
    """
    _prefix([file.name for file in directory.iterdir()], directory)

    def read() -> Any:
        order = directory / "byteorder"
        return read_records(
            (directory / "data.pkl").read_bytes(),
            directory_records(directory),
            options.encoding,
            big_endian=order.is_file() and order.read_bytes().strip() == b"big",
            size=_bytes_of(directory),
        )

    def run() -> Any:
        with _stored_archive(_files_of(directory), spool) as copy:
            return _run_archive(copy, options)

    return _finished(read, run, directory, options)


def _files_of(directory: Path) -> list[_Part]:
    """The files that belong in the archive."""
    parts: list[_Part] = []
    for place, _, names in os.walk(directory):
        for name in names:
            file = Path(place) / name
            inside = file.relative_to(directory).as_posix()
            if file.is_file() and inside.split("/")[0] in _PARTS:
                parts.append((f"archive/{inside}", file.stat().st_size, partial(io.FileIO, file)))
    if "archive/version" not in {name for name, _, _ in parts}:
        parts.append(("archive/version", 2, partial(io.BytesIO, b"3\n")))
    return sorted(parts, key=lambda part: part[0])


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


def _unreadable(error: Exception, path: Path) -> FormatError:
    hint = "Pass --pickle-encoding latin1, or bytes." if isinstance(error, UnicodeError) else None
    return FormatError(
        f"torch.load cannot read this file ({type(error).__name__}: "
        f"{quote(str(error).strip().split(chr(10))[0], 160)})",
        file=path,
        hint=hint,
    )
