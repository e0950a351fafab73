"""Files on the local file system: ranged reads, streamed writes, and the commit protocol.

The only room that opens local files of a checkpoint. What happens in which order on a save, and
why, is ``docs/format.md`` section 7: a reader finds the old checkpoint or the new one at every
moment.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

import zstandard

from jsonckpt import names
from jsonckpt.errors import (
    CUT_OFF,
    CheckpointNotFoundError,
    DurabilityUncertainError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    UnsafePathError,
    WriteError,
)
from jsonckpt.facts import MANIFEST_NAME
from jsonckpt.frames import FrameWatch

__all__ = ["LocalFile", "LocalStream", "NewFile", "fsync_directory", "replace", "unlink"]

#: What a file system answers that cannot fsync a directory.
_NO_DIRECTORY_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES}
#: Buffers for one writev; IOV_MAX is 1024 on Linux.
_MOST_BUFFERS = 512


# --- reading --------------------------------------------------------------------------------


def read_error(error: OSError, path: str) -> JsonckptError:
    """The system's error with the way out."""
    return JsonckptError(
        f"cannot read: {error.strerror or error}",
        file=path,
        hint="The disk or the connection fails: take another copy of the checkpoint, or restore "
        "what can be read with: jsonckpt recover PATH NEW",
    )


class LocalFile:
    """A regular file, open for reading at any offset from several threads."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        self._fd, self.size = _open_regular(self.path)

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
        os.close(self._fd)

    def __enter__(self) -> LocalFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class LocalStream:
    """A local file read forward, decompressed where its name ends in ``.zst``."""

    def __init__(self, path: str | os.PathLike[str], *, zstd_window: int | None = None) -> None:
        self.path = os.fspath(path)
        fd, self.size = _open_regular(self.path)
        self._file = open(fd, "rb", buffering=0)  # noqa: SIM115
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


def _open_regular(path: str) -> tuple[int, int]:
    """A descriptor and the size of a regular file."""
    # Opening a FIFO or a device for reading can block or have effects: O_NONBLOCK, then fstat.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    except FileNotFoundError as error:
        raise IncompleteCheckpointError(
            "the file is missing",
            file=path,
            hint="Copy it beside the others, or restore the rest with: jsonckpt recover PATH NEW",
        ) from error
    except OSError as error:
        raise JsonckptError(f"cannot open: {error.strerror}", file=path) from error
    try:
        facts = os.fstat(fd)
        if not stat.S_ISREG(facts.st_mode):
            raise UnsafePathError(
                "not a regular file", file=path, hint="Do not trust this checkpoint."
            )
    except OSError as error:
        os.close(fd)
        raise JsonckptError(f"cannot open: {error.strerror}", file=path) from error
    except BaseException:
        os.close(fd)
        raise
    return fd, facts.st_size


def read_manifest(directory: Path, limit: int | None) -> bytes:
    """The bytes of a directory's manifest.

    Raises:
        CheckpointNotFoundError: no such directory, or nothing of a checkpoint in it.
        IncompleteCheckpointError: there are shards, but no manifest.
    """
    path = directory / MANIFEST_NAME
    if not path.exists():
        if not directory.is_dir():
            raise CheckpointNotFoundError("there is no such directory", file=directory)
        if any(names.is_shard_name(name) for name in os.listdir(directory)):
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
    with LocalFile(path) as file:
        size = file.size if limit is None else min(file.size, limit + 1)
        text = bytearray(size)
        file.read_range(0, memoryview(text))
        return bytes(text)


# --- writing --------------------------------------------------------------------------------


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Map the system's errors to :class:`WriteError`, once, at the border."""
    try:
        yield
    except JsonckptError:
        raise
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: object) -> WriteError:
    """The system's error with the way out."""
    hints = {
        errno.ENOSPC: "Free some space or save elsewhere; the previous checkpoint is untouched.",
        errno.EDQUOT: "Your quota is used up; the previous checkpoint is untouched.",
        errno.EFBIG: "Files may not grow so large here; save a directory, max_shard_size smaller.",
        errno.EROFS: "Save to a directory that can be written.",
        errno.EACCES: "Save to a directory that can be written.",
    }
    return WriteError(
        f"cannot write: {error.strerror or error}",
        errno=error.errno,
        file=path,
        hint=hints.get(error.errno or 0, "The previous checkpoint, if any, is untouched."),
    )


class NewFile:
    """A file that does not exist before :meth:`create`, written front to back or at offsets.

    Raises :class:`WriteError` from every method. :meth:`abandon` removes it. It is made in two
    steps so that whoever removes it holds it already at the moment when it comes into being: a
    Ctrl-C can arrive between any two instructions.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._ours = False

    def create(self) -> None:
        """Make it, empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with writing(self.path):
            self._ours = True
            try:
                self._fd = os.open(self.path, flags, 0o666)
            except FileExistsError:
                self._ours = False
                raise

    def write_at(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write the buffers one behind the other, from ``offset`` on."""
        with writing(self.path):
            for first in range(0, len(buffers), _MOST_BUFFERS):
                group = [memoryview(b).cast("B") for b in buffers[first : first + _MOST_BUFFERS]]
                total = sum(len(buffer) for buffer in group)
                written = 0
                while written < total:
                    rest = _rest_of(group, written)
                    count = os.pwritev(self._fd, rest, offset + written)
                    if not count:
                        raise OSError(errno.EIO, "the system took no byte and gave no reason")
                    written += count
                offset += total

    def finish(self, *, sync: bool) -> None:
        """Make it durable and close it; a failed fsync is never tried again."""
        with writing(self.path):
            try:
                if sync:
                    os.fsync(self._fd)
            finally:
                self._close()

    def abandon(self) -> None:
        """Remove it, whatever state it is in."""
        with suppress(OSError):
            self._close()
        if self._ours:
            unlink(self.path)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def _rest_of(buffers: list[memoryview], written: int) -> list[memoryview]:
    if not written:
        return buffers
    rest = []
    for buffer in buffers:
        if written >= len(buffer):
            written -= len(buffer)
        else:
            rest.append(buffer[written:])
            written = 0
    return rest


def make_directory(path: Path, made: list[Path], *, sync: bool) -> bool:
    """Make a directory and what leads to it, durably.

    The last one that is there already is synced in its parent, too: an earlier save may have made
    it without ``sync``, or have been killed right then.

    Args:
        made: gets each directory before it is made, for :func:`remove_directories`.

    Returns:
        whether the names of those are durable.
    """
    missing = []
    with writing(path):
        at = path
        while not at.exists():
            missing.append(at)
            at = at.parent
    durable = sync
    if sync:
        with writing(path):
            there = at.resolve()
        if there.parent != there:
            durable = fsync_directory(there.parent)
    for directory in reversed(missing):
        made.append(directory)
        with writing(directory):
            try:
                os.mkdir(directory)
            except FileExistsError:
                made.pop()
                if not directory.is_dir():
                    raise
        if sync:
            durable &= fsync_directory(directory.parent)
    return durable


def remove_directories(made: list[Path]) -> None:
    """Remove the directories that :func:`make_directory` made, as far as they are empty."""
    while made:
        with suppress(OSError):
            os.rmdir(made.pop())


def fsync_directory(path: Path) -> bool:
    """Make the names in a directory durable; ``False`` where the file system cannot.

    Raises:
        WriteError: it can, and failed.
    """
    with writing(path):
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
            os.fsync(fd)
        except OSError as error:
            # A directory that may be written but not read cannot be opened for its fsync.
            if error.errno in _NO_DIRECTORY_FSYNC:
                return False
            raise
        finally:
            if fd >= 0:
                os.close(fd)
    return True


def replace(source: Path, target: Path, *, is_ours: Any) -> None:
    """Rename ``source`` over ``target``: the commit.

    Args:
        is_ours: called without arguments when the rename reports an error, which network file
            systems do although it happened: ``True`` when the target is what was to be put there.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if not is_ours():
            raise write_error(error, target) from error


def commit(temporary: Path, target: Path, content: bytes | None, *, sync: bool) -> bool:
    """Put ``temporary`` in the place of ``target``; with ``content``, write it first.

    A file that was not written here is the caller's to remove after an error.

    Returns:
        whether the change is durable (``False`` without ``sync`` or where a directory cannot be
        fsynced).

    Raises:
        WriteError: nothing changed.
        DurabilityUncertainError: the new file is in place, but fsync of its directory failed.
    """
    file = NewFile(temporary)
    try:
        if content is not None:
            file.create()
            file.write_at(0, [content])
            file.finish(sync=sync)
        with writing(target):
            inode = os.stat(temporary).st_ino
        replace(temporary, target, is_ours=lambda: _has_inode(target, inode))
    except BaseException:
        file.abandon()
        raise
    if not sync:
        return False
    try:
        return fsync_directory(target.parent)
    except WriteError as error:
        raise DurabilityUncertainError(
            "the new checkpoint is complete and visible, but its directory could not be fsynced: "
            f"{error.message}",
            errno=error.errno,
            file=target,
            hint="A power failure now may bring the previous one back. Save again.",
        ) from error


def may_hold(path: Path, content: bytes) -> bool:
    """Whether the file at ``path`` is exactly ``content``, so far as can be found out.

    It tells whether a commit has happened, and so whose the new shards are. Where the file cannot
    be read nobody knows, and then they must stay.
    """
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _has_inode(path: Path, inode: int) -> bool:
    try:
        return os.stat(path).st_ino == inode
    except OSError:
        return False


def unlink(path: Path) -> None:
    """Remove a file of ours; one that cannot be removed is an orphan, which harms nobody."""
    with suppress(OSError):
        os.unlink(path)


def new_save_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


class LocalPlace:
    """A directory of files, local."""

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self.directory = Path(directory)

    def manifest(self, limit: int | None) -> bytes:
        """The bytes of ``manifest.json``."""
        return read_manifest(self.directory, limit)

    def where(self, name: str) -> str:
        """How messages call a file."""
        return str(self.directory / name)

    def stamp(self, name: str) -> object:
        """What changes when another file is put in the place of this one; ``None`` if it is gone.

        A file system may give the number of a removed file to a new one, so times count, too.
        """
        try:
            found = os.stat(self.directory / name)
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def file(self, name: str) -> LocalFile:
        """A file for ranged reads."""
        return LocalFile(self.directory / name)

    def stream(self, name: str, *, zstd_window: int | None) -> LocalStream:
        """A file for forward reading, decompressed."""
        return LocalStream(self.directory / name, zstd_window=zstd_window)
