"""Files on the local file system: streamed writes, and the commit protocol.

What happens in which order on a save, and why, is ``docs/format.md`` section 7: a reader finds the
old checkpoint or the new one at every moment.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointExistsError, DurabilityUncertainError, JsonckptError, WriteError
from ..linux import Writeback, rename_new
from ..parallel import run_ordered
from .local import Descriptor

#: What a file system answers that cannot fsync a directory.
_NO_DIRECTORY_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES}
#: Buffers for one writev; IOV_MAX is 1024 on Linux.
_MOST_BUFFERS = 512
#: What a file system answers that knows no hard links, or no rename that replaces nothing.
_NO_SUCH_CALL = {
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL,
    errno.EMLINK, errno.EXDEV,
}  # fmt: skip


@contextmanager
def writing(path: str | os.PathLike[str]) -> Iterator[None]:
    """Map the system's errors to :class:`WriteError`, once, at the border."""
    try:
        yield
    except JsonckptError:
        raise
    except OSError as error:
        raise write_error(error, path) from error


def write_error(error: OSError, path: str | os.PathLike[str]) -> WriteError:
    """The system's error with the way out."""
    if error.errno == errno.ENOENT and not os.path.isabs(path) and _is_lost():
        return WriteError(
            "cannot write: the working directory of this process is gone",
            errno=error.errno,
            file=path,
            hint="Give an absolute path, or change to a directory that is there.",
        )
    hints = {
        errno.ENOSPC: "Free some space or save elsewhere; the previous checkpoint is untouched.",
        errno.EDQUOT: "Your quota is used up; the previous checkpoint is untouched.",
        errno.EFBIG: "Files may not grow so large here; save a directory, max_shard_size smaller.",
        errno.EROFS: "Save to a directory that can be written.",
        errno.EACCES: "Save to a directory that can be written.",
        errno.EPERM: "Save to a directory that can be written.",
        errno.ENOENT: "A directory on the way was removed meanwhile; make it and save again.",
        errno.ENOTDIR: "A part of the path is a file; choose another path.",
        errno.ENAMETOOLONG: "Choose a shorter name.",
        errno.ELOOP: "Symbolic links on the way lead in a circle; choose another path.",
        errno.EMFILE: "Too many files are open in this process; close some, or raise ulimit -n.",
        errno.EIO: "The disk fails: save elsewhere. The previous checkpoint is untouched.",
    }
    return WriteError(
        f"cannot write: {error.strerror or error}",
        errno=error.errno,
        file=path,
        hint=hints.get(error.errno or 0, "The previous checkpoint, if any, is untouched."),
    )


def kind_of(path: str | os.PathLike[str]) -> int | None:
    """The type and mode of what lies at a path, links followed; ``None`` where nothing does.

    Raises:
        OSError: the system does not say, or symbolic links lead in a circle.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


@dataclass(frozen=True)
class Mode:
    """Who may read a new file: permission bits, and whether the umask has a say, too."""

    bits: int = 0o666
    exact: bool = False


def mode_for(target: Path, shared: int = 0o077) -> Mode:
    """The mode of what is put in the place of ``target``: as it was, or as the umask says.

    Args:
        shared: what group and others may be allowed at most, see :func:`shared_bits`.

    Raises:
        WriteError: the system does not say what lies there.
    """
    with writing(target):
        replaced = kind_of(target)
    allowed = 0o700 | shared
    if replaced is None:
        return Mode(0o666 & allowed)
    return Mode(stat.S_IMODE(replaced) & 0o777 & allowed, exact=True)


def shared_bits(path: Path) -> int:
    """What group and others may do with a checkpoint: with its file, or all files of its directory.

    Where that cannot be found out, nothing.
    """
    try:
        mode = os.stat(path).st_mode
        shared = mode & 0o077
        if stat.S_ISDIR(mode):
            # Who may not enter the directory cannot read what is in it.
            shared = (0o070 if mode & 0o010 else 0) | (0o007 if mode & 0o001 else 0)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_file():
                        shared &= entry.stat().st_mode
    except OSError:
        return 0
    return shared


def _is_lost() -> bool:
    """Whether the working directory has been removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False


class NewFile:
    """A file that does not exist before :meth:`create`, written front to back or at offsets.

    Raises :class:`WriteError` from every method. :meth:`abandon` removes it. It is made in two
    steps so that whoever removes it holds it already at the moment when it comes into being: a
    Ctrl-C can arrive between any two instructions.

    Args:
        early: the disk is to begin before :meth:`finish`, which will have to wait for it.
        mode: who may read it, from the moment when it comes into being.
    """

    def __init__(self, path: Path, *, early: bool = False, mode: Mode | None = None) -> None:
        self.path = path
        self._mode = mode or Mode()
        self._writeback = Writeback() if early else None
        self._fd = -1
        self._opened: Descriptor | None = None
        self._ours = False

    def create(self) -> None:
        """Make it, empty."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with writing(self.path):
            self._ours = True
            try:
                self._opened = Descriptor(self.path, flags, self._mode.bits)
                self._fd = self._opened.number
            except FileExistsError:
                self._ours = False
                raise
            if self._mode.exact:
                # The umask took some away; a file system without modes may refuse this.
                with suppress(OSError):
                    os.fchmod(self._fd, self._mode.bits)

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
        if self._writeback is not None:
            self._writeback.reached(self._fd, offset)

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
        opened, self._opened, self._fd = self._opened, None, -1
        if opened is not None:
            opened.close()


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
        opened: Descriptor | None = None
        try:
            opened = Descriptor(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_DIRECTORY", 0))
            os.fsync(opened.number)
        except OSError as error:
            # A directory that may be written but not read cannot be opened for its fsync.
            if error.errno in _NO_DIRECTORY_FSYNC:
                return False
            raise
        finally:
            if opened is not None:
                opened.close()
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


def put_new(source: Path, target: Path, *, is_ours: Any) -> None:
    """Give ``source`` the name ``target``, which nothing may have: the commit without overwriting.

    By a hard link, which never replaces anything; where the file system has none, by Linux's rename
    that replaces nothing. Where there is neither, one looks before one renames.

    Args:
        is_ours: as for :func:`replace`.

    Raises:
        CheckpointExistsError: something has the name by now.
    """
    try:
        os.link(source, target)
    except OSError as error:
        if is_ours():
            unlink(source)
            return
        if error.errno == errno.EEXIST:
            raise _appeared(target) from error
        if error.errno not in _NO_SUCH_CALL:
            raise write_error(error, target) from error
    else:
        unlink(source)
        return
    try:
        renamed = rename_new(source, target)
    except FileExistsError as error:
        raise _appeared(target) from error
    if not renamed:
        if os.path.lexists(target):
            raise _appeared(target)
        replace(source, target, is_ours=is_ours)


def _appeared(target: Path) -> CheckpointExistsError:
    return CheckpointExistsError(
        "something was put there while this save was written, and was not touched",
        file=target,
        hint="Save to another path, or pass overwrite=True to replace it.",
    )


def commit(
    temporary: Path,
    target: Path,
    content: bytes | None,
    *,
    sync: bool,
    mode: Mode | None = None,
    exclusive: bool = False,
) -> bool:
    """Put ``temporary`` in the place of ``target``; with ``content``, write it first.

    A file that was not written here is the caller's to remove after an error.

    Args:
        mode: of a file that is written here.
        exclusive: never replace anything.

    Returns:
        whether the change is durable (``False`` without ``sync`` or where a directory cannot be
        fsynced).

    Raises:
        WriteError: nothing changed.
        CheckpointExistsError: with ``exclusive``: something lies there by now.
        DurabilityUncertainError: the new file is in place, but fsync of its directory failed.
    """
    file = NewFile(temporary, mode=mode)
    try:
        if content is not None:
            file.create()
            file.write_at(0, [content])
            file.finish(sync=sync)
        with writing(target):
            inode = os.stat(temporary).st_ino
        put = put_new if exclusive else replace
        put(temporary, target, is_ours=lambda: _is_ours(target, inode, content))
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
        return _holds(path, content)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def _is_ours(path: Path, inode: int, content: bytes | None) -> bool:
    """Whether a rename that reported an error has happened all the same.

    A network file system may give the file another inode: then its content tells, where it is
    known. Where nothing can be read, nothing is claimed.
    """
    try:
        return os.stat(path).st_ino == inode or (content is not None and _holds(path, content))
    except OSError:
        return False


def _holds(path: Path, content: bytes) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content


def unlink(path: Path) -> None:
    """Remove a file of ours; one that cannot be removed is an orphan, which harms nobody."""
    with suppress(OSError):
        os.unlink(path)


def unlink_all(paths: Sequence[Path], *, threads: int) -> None:
    """:func:`unlink` side by side: to let go of 400 MB of pages takes the system 20 to 40 ms."""
    run_ordered(
        paths,
        threads=min(threads, len(paths)),
        worker=lambda: None,
        work=lambda _, path: unlink(path),
        turn=lambda _, done: done,
    )


def new_save_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)
