"""Reads local files: at any offset from several threads, or forward, decompressed.

Only this module and ``commit``, which writes, open local files of a checkpoint.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from ..errors import (
    CUT_OFF,
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    UnsafePathError,
)
from ..format import filenames
from ..format.model import MANIFEST_NAME
from ..format.zstd import check_window, frame_window, new_decompressor, zstd
from .missing import newest_hint
from .os_errors import read_error

#: Bytes that one step reads, and that one step decompresses: a block of zstd. With half of it,
#: loads were 10% slower.
_STEP: Final = 1 << 17


class Descriptor:
    """A file descriptor. It is closed when nothing refers to it any more, or earlier.

    An interrupt may come after the system has opened the file and before Python keeps the number.
    Here both happen in one step of the interpreter, the ``extend`` of a ``map``. So does closing.

    Args:
        arguments: of ``os.open``.
    """

    __slots__ = ("_open",)

    def __init__(self, *arguments: Any) -> None:
        self._open: list[int] = []
        self._open.extend(map(os.open, *([argument] for argument in arguments)))

    @property
    def number(self) -> int:
        """The number of the descriptor."""
        return self._open[0]

    def close(self) -> None:
        """Close it, once."""
        if self._open:
            any(map(os.close, map(self._open.pop, [0])))

    def __del__(self) -> None:
        with suppress(OSError):
            self.close()


class LocalFile:
    """A regular file, open for reading at any offset from several threads."""

    def __init__(self, path: str | os.PathLike[str], *, follow: bool = True) -> None:
        self.path = os.fspath(path)
        self._opened, self.size = _open_regular(self.path, follow=follow)
        self._fd = self._opened.number

    def expect(self, ranges: Iterable[tuple[int, int]]) -> None:
        """Nothing is fetched ahead: the system does that."""

    def read_range(self, offset: int, buffer: memoryview) -> None:
        """Fill ``buffer`` from ``offset`` on.

        Raises:
            IncompleteCheckpointError: the file ends before that.
        """
        done = 0
        while done < len(buffer):
            try:
                count = os.preadv(self._fd, [buffer[done:]], offset + done)
            except OSError as error:
                raise read_error(error, self.path) from error
            if count == 0:
                raise IncompleteCheckpointError(
                    f"the file ends after {offset + done} bytes, expected "
                    f"{offset + len(buffer)} or more",
                    file=self.path,
                    hint=CUT_OFF,
                )
            done += count

    def sync(self) -> None:
        """Make what it holds durable. Raises :class:`OSError`."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalStream:
    """A local file read forward. It is decompressed if its name or else its content says so."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        zstd_window: int | None = None,
        follow: bool = True,
    ) -> None:
        self.path = os.fspath(path)
        self._opened, self.size = _open_regular(self.path, follow=follow)
        self._file = open(self._opened.number, "rb", buffering=0, closefd=False)  # noqa: SIM115
        self._source: Any = self._file
        self.compressed = _is_compressed(self.path, self._opened)
        if self.compressed:
            self._source = ZstdStream(self._file, zstd_window=zstd_window)

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text.

        Raises:
            JsonckptError: the system cannot read it.
        """
        try:
            return self._source.readinto(buffer) or 0
        except OSError as error:
            raise read_error(error, self.path) from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._opened.close()

    def __enter__(self) -> LocalStream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ZstdStream:
    """The text of consecutive zstd frames, decompressed as it is read."""

    def __init__(self, source: Any, *, zstd_window: int | None) -> None:
        self._source = source
        self._window = zstd_window
        self._input = b""
        self._frame: zstd.ZstdDecompressor | None = None
        self._begun = False

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text.

        Raises:
            FormatError: damaged frames, or something that is not a frame.
            IncompleteCheckpointError: the last frame is cut off.
            LimitError: a frame asks for too large a window.
        """
        while (frame := self._frame or self._next_frame()) is not None:
            if frame.needs_input and not (self._input or self._read()):
                raise _cut_off()
            try:
                data = frame.decompress(self._input, min(len(buffer), _STEP))
            except zstd.ZstdError as error:
                raise FormatError(f"damaged zstd frame: {error}") from error
            self._input = frame.unused_data
            self._frame = None if frame.eof else frame
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0

    def _next_frame(self) -> zstd.ZstdDecompressor | None:
        """A decompressor for the next frame; ``None`` at the end of the source."""
        while (window := frame_window(self._input)) is None:
            if not self._read():
                if self._input or not self._begun:
                    raise _cut_off()
                return None
        check_window(window, self._window)
        self._begun = True
        return new_decompressor()

    def _read(self) -> bool:
        """Whether there was more input."""
        data: bytes = self._source.read(_STEP) or b""
        self._input += data
        return bool(data)


def _cut_off() -> IncompleteCheckpointError:
    return IncompleteCheckpointError("the compressed text ends inside a zstd frame", hint=CUT_OFF)


def _open_regular(path: str, *, follow: bool) -> tuple[Descriptor, int]:
    """A descriptor and the size of a regular file, or with ``follow`` of a link to one."""
    # Opening a FIFO or a device can block or have effects: O_NONBLOCK, then fstat.
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
    if not follow:
        if not hasattr(os, "O_NOFOLLOW"):
            raise UnsafePathError(
                "this system cannot open files without following links",
                file=path,
                hint="Pass limits=jsonckpt.Limits(links=None).",
            )
        flags |= os.O_NOFOLLOW
    try:
        opened = Descriptor(path, flags)
    except FileNotFoundError as error:
        raise IncompleteCheckpointError(
            "the file is missing",
            file=path,
            hint="Copy it beside the others, or restore the rest with: jsonckpt recover PATH NEW",
        ) from error
    except OSError as error:
        # For a link that is not followed, Linux says ELOOP, FreeBSD EMLINK.
        if not follow and error.errno in (errno.ELOOP, errno.EMLINK):
            raise _link_refused(path) from error
        raise read_error(error, path, opening=True) from error
    try:
        facts = os.fstat(opened.number)
        if not stat.S_ISREG(facts.st_mode):
            raise UnsafePathError(
                "not a regular file", file=path, hint="Do not trust this checkpoint."
            )
    except OSError as error:
        opened.close()
        raise read_error(error, path, opening=True) from error
    except BaseException:
        opened.close()
        raise
    return opened, facts.st_size


def _link_refused(path: str | os.PathLike[str], what: str = "file") -> UnsafePathError:
    return UnsafePathError(
        f"the {what} is a symbolic link, the limit is 0 links",
        file=path,
        hint="Pass limits=jsonckpt.Limits(links=None) if that is intended, or copy what the link "
        "leads to.",
    )


def _is_compressed(path: str, opened: Descriptor) -> bool:
    """Whether a file is compressed, by its name or else by its first bytes."""
    named = filenames.zstd_by_name(path)
    if named is not None:
        return named
    try:
        return os.pread(opened.number, 4, 0) == filenames.ZSTD_MAGIC
    except OSError as error:
        raise read_error(error, path) from error


class LocalLocation:
    """A local directory; ``follow`` says whether its files may be symbolic links."""

    def __init__(self, directory: str | os.PathLike[str], *, follow: bool = True) -> None:
        self.directory = Path(directory)
        self.follow = follow

    def manifest(self, limit: int | None) -> bytes:
        """The bytes of ``manifest.json``, up to one more than ``limit``.

        Raises:
            CheckpointNotFoundError: there is no such directory, or no checkpoint in it.
            IncompleteCheckpointError: there are shards, but no manifest.
        """
        directory = self.directory
        path = directory / MANIFEST_NAME
        if not (path.exists() or path.is_symlink()):
            if not directory.is_dir():
                raise CheckpointNotFoundError("there is no such directory", file=directory)
            inside = os.listdir(directory)
            if filenames.SHARED_MARK in inside:
                raise CheckpointNotFoundError(
                    "the checkpoint was removed; what is left are files that others beside it use",
                    file=directory,
                    hint=newest_hint(directory.parent),
                )
            if any(filenames.is_shard_name(name) for name in inside):
                raise IncompleteCheckpointError(
                    f"there are shards but no {MANIFEST_NAME}: a first save that did not finish",
                    file=directory,
                    hint="Save again, or restore what is intact with: jsonckpt recover PATH NEW",
                )
            raise CheckpointNotFoundError(
                f"there is no {MANIFEST_NAME} in this directory",
                file=directory,
                hint=newest_hint(directory)
                or "Give the directory that holds it, or the path of a .json file.",
            )
        with self.file(MANIFEST_NAME) as file:
            text = bytearray(file.size if limit is None else min(file.size, limit + 1))
            file.read_range(0, memoryview(text))
            return bytes(text)

    def where(self, name: str) -> str:
        """The path of a file, for messages."""
        return str(self.directory / name)

    def version_tag(self, name: str) -> object:
        """A value that changes when another file replaces this one; ``None`` if it does not exist.

        A file system may give the inode of a removed file to a new one, so the time counts, too.
        """
        try:
            found = os.stat(self.directory / name)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def was_replaced(self, name: str, tag: object) -> bool:
        """Whether another file has replaced the one that had this tag."""
        return tag is not None and self.version_tag(name) != tag

    def expect_files(self, names: Iterable[str]) -> None:
        """Nothing is asked ahead."""

    def ranged(self, name: str) -> bool:
        """Whether parts of a file can be read. Always true for local files."""
        del name
        return True

    def compressed(self, name: str) -> bool:
        """Whether a file is compressed as a whole, by its name or else by its content."""
        named = filenames.zstd_by_name(name)
        if named is not None:
            return named
        with self.stream(name, zstd_window=None) as stream:
            return stream.compressed

    def file(self, name: str) -> LocalFile:
        """A file for ranged reads."""
        return LocalFile(self._path(name), follow=self.follow)

    def stream(self, name: str, *, zstd_window: int | None) -> LocalStream:
        """A file for forward reading, decompressed."""
        return LocalStream(self._path(name), zstd_window=zstd_window, follow=self.follow)

    def _path(self, name: str) -> Path:
        """The path of a file. The directory of ``../NAME/FILE`` is as a file: maybe no link."""
        path = self.directory / name
        if "/" in name and not self.follow and path.parent.is_symlink():
            raise _link_refused(path.parent, "directory")
        return path
