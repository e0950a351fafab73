"""New local files: who may read them, and how they are written."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import CheckpointExistsError
from ..linux import Writeback
from .local import Descriptor
from .os_errors import writing

#: Buffers for one writev; IOV_MAX is 1024 on Linux.
_MOST_BUFFERS = 512


def mode_of(path: str | os.PathLike[str]) -> int | None:
    """The type and mode of what is at a path, links followed; ``None`` if nothing is there.

    Raises:
        OSError: the system refuses, or symbolic links form a circle.
    """
    try:
        return os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return None


#: What is no file and no directory.
_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


def special_kind(mode: int) -> str | None:
    """What a mode says that is neither a regular file nor a directory.

    >>> special_kind(stat.S_IFIFO | 0o644), special_kind(stat.S_IFREG | 0o644)
    ('a FIFO', None)
    """
    return _SPECIAL.get(stat.S_IFMT(mode))


def check_replaceable(path: Path) -> int | None:
    """The mode of the file at ``path``, which a new file may replace; ``None`` if there is none.

    Raises:
        CheckpointExistsError: something is there that is not a regular file.
        WriteError: the system does not tell what is there.
    """
    with writing(path):
        mode = mode_of(path)
    if mode is None:
        return None
    if stat.S_ISDIR(mode):
        raise CheckpointExistsError(
            "there is a directory at this path", file=path, hint="Choose another name."
        )
    if kind := special_kind(mode):
        raise CheckpointExistsError(
            f"there is {kind} at this path, which is never replaced by a file",
            file=path,
            hint='jsonckpt.save can write into it: pass open(PATH, "wb").',
        )
    return mode


@dataclass(frozen=True)
class Mode:
    """Who may read a new file.

    Attributes:
        bits: the permissions.
        exact: whether they hold whatever the umask says.
        owner: the user and the group that the file should belong to, if the system allows it.
    """

    bits: int = 0o666
    exact: bool = False
    owner: tuple[int, int] | None = None


def mode_for(target: Path, shared: int = 0o077) -> Mode:
    """The mode and owner of a file that replaces ``target``, or the mode that the umask gives.

    Args:
        shared: what group and others may do at most, see :func:`shared_bits`.

    Raises:
        WriteError: the system does not tell what is there.
    """
    allowed = 0o700 | shared
    with writing(target):
        try:
            replaced = os.stat(target)
        except (FileNotFoundError, NotADirectoryError):
            return Mode(0o666 & allowed)
    bits = stat.S_IMODE(replaced.st_mode) & 0o777 & allowed
    return Mode(bits, exact=True, owner=(replaced.st_uid, replaced.st_gid))


def shared_bits(path: Path) -> int:
    """What group and others may do with a checkpoint: its file, or all files of its directory.

    If that cannot be found out, the answer is: nothing.
    """
    try:
        mode = os.stat(path).st_mode
        shared = mode & 0o077
        if stat.S_ISDIR(mode):
            # Without the right to enter the directory, nobody reads its files.
            shared = (0o070 if mode & 0o010 else 0) | (0o007 if mode & 0o001 else 0)
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_file():
                        shared &= entry.stat().st_mode
    except OSError:
        return 0
    return shared


class NewFile:
    """A file that does not exist before :meth:`create`, written front to back or at offsets.

    Every method may raise :class:`WriteError`. :meth:`abandon` removes the file. The object exists
    before the file does, so that it can always remove the file: a Ctrl-C can come between any two
    instructions.

    Args:
        early: let the disk begin to write before :meth:`finish`, which waits for it.
        mode: who may read it, from its first moment on.
    """

    def __init__(self, path: Path, *, early: bool = False, mode: Mode | None = None) -> None:
        self.path = path
        self._mode = mode or Mode()
        self._writeback = Writeback() if early else None
        self._fd = -1
        self._opened: Descriptor | None = None
        self._ours = False

    def create(self) -> None:
        """Create the empty file."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with writing(self.path):
            self._ours = True
            # Until its group is known, the group may do nothing.
            first = self._mode.bits & (0o707 if self._mode.exact else 0o777)
            try:
                self._opened = Descriptor(self.path, flags, first)
                self._fd = self._opened.number
            except FileExistsError:
                self._ours = False
                raise
            if self._mode.exact:
                # The umask removed some bits. A file system without modes may refuse this.
                with suppress(OSError):
                    os.fchmod(self._fd, self._bits_for_owner())

    def _bits_for_owner(self) -> int:
        """Give the file to its owner. Returns the permissions that are safe then.

        Where the group cannot be kept, another group gets no more than everybody.
        """
        bits, owner = self._mode.bits, self._mode.owner
        found = os.fstat(self._fd)
        if owner is None or owner == (found.st_uid, found.st_gid):
            return bits
        for user in (owner[0], -1):  # only root may give the file to another user
            with suppress(OSError):
                os.fchown(self._fd, user, owner[1])
                return bits
        if found.st_gid == owner[1]:
            return bits
        return bits & 0o707 | bits & (bits & 0o007) << 3

    def write_at(self, offset: int, buffers: Sequence[Any]) -> None:
        """Write the buffers one after the other, from ``offset`` on."""
        with writing(self.path):
            for first in range(0, len(buffers), _MOST_BUFFERS):
                group = [memoryview(b).cast("B") for b in buffers[first : first + _MOST_BUFFERS]]
                total = sum(len(buffer) for buffer in group)
                written = 0
                while written < total:
                    rest = _rest_of(group, written)
                    count = os.pwritev(self._fd, rest, offset + written)
                    if not count:
                        raise OSError(errno.EIO, "the system wrote no byte and gave no reason")
                    written += count
                offset += total
        if self._writeback is not None:
            self._writeback.reached(self._fd, offset)

    def finish(self, *, sync: bool) -> None:
        """Make it durable and close it. A failed fsync is never repeated."""
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
            with suppress(OSError):  # an orphan does no harm
                os.unlink(self.path)

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
