"""Local files, read: at any offset from several threads, or forward, decompressed."""

from __future__ import annotations

import errno
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import zstandard

from ..errors import (
    CUT_OFF,
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    UnsafePathError,
)
from ..format import filenames
from ..format.model import MANIFEST_NAME
from .frames import FrameWatch
from .os_errors import read_error


class Descriptor:
    """A file that the system has opened; closed at the latest when nothing refers to it.

    An interrupt may come after the system's answer and before the statement that keeps it. Here
    both are one step of the interpreter: ``extend`` of a ``map``, and so is closing.

    Args:
        arguments: of ``os.open``.
    """

    __slots__ = ("_open",)

    def __init__(self, *arguments: Any) -> None:
        self._open: list[int] = []
        self._open.extend(map(os.open, *([argument] for argument in arguments)))

    @property
    def number(self) -> int:
        """What the system calls it."""
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

    def close(self) -> None:
        """Close the file."""
        self._opened.close()

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalStream:
    """A local file read forward, decompressed where its name ends in ``.zst``."""

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
        if self.path.endswith(".zst"):
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


def widen_pipe(stream: Any) -> None:
    """Let a pipe hold 1 MiB instead of 64 KiB, where the system can: fewer changes of process."""
    try:
        import fcntl

        fcntl.fcntl(stream.fileno(), fcntl.F_SETPIPE_SZ, 1 << 20)
    except (ImportError, AttributeError, OSError, ValueError):
        return  # not a pipe, or not Linux: it is only faster


class ZstdStream:
    """A compressed source, decompressed as it is read; any number of frames."""

    def __init__(self, source: Any, *, zstd_window: int | None) -> None:
        self._watch = FrameWatch(source, window_limit=zstd_window)
        # The watch has refused larger windows before the decompressor sees the frame.
        self._reader = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(
            cast("Any", self._watch), read_across_frames=True, read_size=1 << 17
        )

    def readinto(self, buffer: memoryview, /) -> int:
        """The next bytes of the text.

        Raises:
            FormatError: damaged frames.
            IncompleteCheckpointError: the last frame is cut off.
        """
        try:
            count: int = self._reader.readinto(buffer)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd frame: {error}") from error
        if not count:
            self._watch.check_end()
        return count


def _open_regular(path: str, *, follow: bool) -> tuple[Descriptor, int]:
    """A descriptor and the size of a regular file; of a link to one only where ``follow``."""
    # Opening a FIFO or a device for reading can block or have effects: O_NONBLOCK, then fstat.
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
        # Linux says ELOOP of a link that is not followed, FreeBSD EMLINK.
        if not follow and error.errno in (errno.ELOOP, errno.EMLINK):
            raise UnsafePathError(
                "the file is a symbolic link, the limit is 0 links",
                file=path,
                hint="Pass limits=jsonckpt.Limits(links=None) if it is meant, or copy what the "
                "link leads to.",
            ) from error
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


def read_manifest(directory: Path, limit: int | None, *, follow: bool = True) -> bytes:
    """The bytes of a directory's manifest.

    Raises:
        CheckpointNotFoundError: no such directory, or nothing of a checkpoint in it.
        IncompleteCheckpointError: there are shards, but no manifest.
    """
    path = directory / MANIFEST_NAME
    if not (path.exists() or path.is_symlink()):
        if not directory.is_dir():
            raise CheckpointNotFoundError("there is no such directory", file=directory)
        if any(filenames.is_shard_name(name) for name in os.listdir(directory)):
            raise IncompleteCheckpointError(
                f"there are shards but no {MANIFEST_NAME}: a first save that did not finish",
                file=directory,
                hint="Save again, or restore what is intact with: jsonckpt recover PATH NEW",
            )
        raise CheckpointNotFoundError(
            f"there is no {MANIFEST_NAME} in this directory",
            file=directory,
            hint="Give the directory that holds it, or the path of a .json file.",
        )
    with LocalFile(path, follow=follow) as file:
        size = file.size if limit is None else min(file.size, limit + 1)
        text = bytearray(size)
        file.read_range(0, memoryview(text))
        return bytes(text)


class LocalLocation:
    """A directory of files, local; ``follow`` says whether they may be symbolic links."""

    def __init__(self, directory: str | os.PathLike[str], *, follow: bool = True) -> None:
        self.directory = Path(directory)
        self.follow = follow

    def manifest(self, limit: int | None) -> bytes:
        """The bytes of ``manifest.json``."""
        return read_manifest(self.directory, limit, follow=self.follow)

    def where(self, name: str) -> str:
        """How messages call a file."""
        return str(self.directory / name)

    def version_tag(self, name: str) -> object:
        """What changes when another file is put in the place of this one; ``None`` if it is gone.

        A file system may give the number of a removed file to a new one, so times count, too.
        """
        try:
            found = os.stat(self.directory / name)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def ranged(self, name: str) -> bool:
        """Whether parts of a file can be read: of any file here."""
        del name
        return True

    def file(self, name: str) -> LocalFile:
        """A file for ranged reads."""
        return LocalFile(self.directory / name, follow=self.follow)

    def stream(self, name: str, *, zstd_window: int | None) -> LocalStream:
        """A file for forward reading, decompressed."""
        return LocalStream(self.directory / name, zstd_window=zstd_window, follow=self.follow)
