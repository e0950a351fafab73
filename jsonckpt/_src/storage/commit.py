"""The commit protocol on local file systems: directories, renames and fsyncs.

``docs/format.md`` section 7 gives the order of the steps of a save, and the reasons. At every
moment a reader finds the old checkpoint or the new one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from ..errors import CheckpointExistsError, DurabilityUncertainError, WriteError
from ..linux import rename_new
from ..parallel import run_all
from .local import Descriptor
from .new_file import Mode, NewFile
from .os_errors import write_error, writing

#: Errors of a file system that cannot fsync a directory.
_NO_DIRECTORY_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF, errno.EACCES}
#: Errors of a file system without hard links, or without a rename that replaces nothing.
_NO_SUCH_CALL = {
    errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL,
    errno.EMLINK, errno.EXDEV,
}  # fmt: skip


def make_directory(path: Path, made: list[Path], *, sync: bool) -> bool:
    """Make a directory and its parents, durably.

    The parent of the deepest existing directory is synced, too: an earlier save may have made that
    directory without ``sync``, or may have been killed before its fsync.

    Args:
        made: gets each directory before it is made, for :func:`remove_directories`.

    Returns:
        whether the new names are durable.
    """
    with writing(path):
        missing = missing_directories(path)
        at = missing[0].parent if missing else path
        if not at.is_dir():
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
    durable = sync
    if sync:
        with writing(path):
            there = at.resolve()
        if there.parent != there:
            durable = fsync_directory(there.parent)
    for directory in missing:
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


def missing_directories(path: Path) -> list[Path]:
    """The directory and its parents, as far as they do not exist. The outermost is the first."""
    missing = []
    while not path.exists():
        missing.append(path)
        path = path.parent
    return missing[::-1]


def remove_directories(made: list[Path]) -> None:
    """Remove directories that were made for a save and are empty. The outermost is the first."""
    while made:
        with suppress(OSError):
            os.rmdir(made.pop())


def fsync_directory(path: Path) -> bool:
    """Make the names in a directory durable; ``False`` if the file system cannot do that.

    Raises:
        WriteError: the fsync failed.
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


def fsync_file(path: Path) -> None:
    """Make a file durable that an earlier save may have written without that.

    Raises:
        WriteError: the fsync failed.
    """
    with writing(path):
        opened = Descriptor(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(opened.number)
        finally:
            opened.close()


def replace(source: Path, target: Path, *, is_ours: Callable[[], bool]) -> None:
    """Rename ``source`` over ``target``: the commit.

    Args:
        is_ours: called when the rename reports an error. On network file systems it may have
            happened all the same. Returns whether the target is the new file.
    """
    try:
        os.replace(source, target)
    except OSError as error:
        if not is_ours():
            raise write_error(error, target) from error


def put_new(source: Path, target: Path, *, is_ours: Callable[[], bool]) -> None:
    """Give ``source`` the name ``target``, unless it is taken: the commit without overwriting.

    This is done by a hard link, which never replaces a file. On a file system without hard links
    this uses Linux's rename that replaces nothing. If neither works, this checks for the name and
    then renames.

    Args:
        is_ours: as for :func:`replace`.

    Raises:
        CheckpointExistsError: the name exists now.
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
        "another program created this path during the save; it was not touched",
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
    """Rename ``temporary`` to ``target``. With ``content``, write it first.

    After an error the caller removes ``temporary``, unless it was written here.

    Args:
        mode: of a file that is written here.
        exclusive: never replace anything.

    Returns:
        whether the change is durable (``False`` without ``sync``, or if a directory cannot be
        fsynced).

    Raises:
        WriteError: nothing changed.
        CheckpointExistsError: with ``exclusive``: the target exists now.
        DurabilityUncertainError: the new file is in place, but the fsync of its directory failed.
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
        put(temporary, target, is_ours=lambda: is_ours(target, inode, content))
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
    """Whether the file at ``path`` is exactly ``content``, or cannot be read.

    True means that a commit may have happened, so that the new shards may be in use and must stay.
    """
    try:
        return _holds(path, content)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True


def is_ours(path: Path, inode: int, content: bytes | None = None) -> bool:
    """Whether a rename that reported an error happened all the same.

    A network file system may give the file another inode. Then its content tells, if it is known.
    A file that cannot be read is not ours.
    """
    try:
        return os.stat(path).st_ino == inode or (content is not None and _holds(path, content))
    except OSError:
        return False


def _holds(path: Path, content: bytes) -> bool:
    return path.stat().st_size == len(content) and path.read_bytes() == content


def unlink(path: Path) -> None:
    """Remove a file of ours. A file that cannot be removed is an orphan and does no harm."""
    with suppress(OSError):
        os.unlink(path)


def unlink_all(paths: Sequence[Path], *, threads: int) -> None:
    """:func:`unlink` on several threads: freeing 400 MB of pages takes the system 20 to 40 ms."""
    run_all(paths, lambda path: unlink(path), threads=min(threads, len(paths)))
