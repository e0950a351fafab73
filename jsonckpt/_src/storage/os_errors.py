"""Maps errors of file systems to errors of this package, in this one place.

Local files raise ``OSError``. Each remote file system has its own errors, and they derive only from
``Exception``. So only calls of the file system may be inside :func:`writing`, or :func:`reading`
with ``remote=True``.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import IncompleteCheckpointError, JsonckptError, WriteError

_UNTOUCHED = "The previous checkpoint, if any, is untouched."
#: The hint where a file system, or ``ulimit -f``, limits the size of each file.
TOO_LARGE = (
    "This is a limit on the size of each file (of the file system, or ulimit -f), not a lack of "
    "room. A directory of JSON with a smaller max_shard_size has smaller files, but each tensor "
    "lies in one of them."
)
_WRITE_HINTS = {
    errno.ENOSPC: "Free some space or save elsewhere; the previous checkpoint is untouched.",
    errno.EDQUOT: "Your quota is used up; the previous checkpoint is untouched.",
    errno.EFBIG: TOO_LARGE,
    errno.EROFS: "Save to a directory that can be written.",
    errno.EACCES: "Save to a directory that can be written.",
    errno.EPERM: "Save to a directory that can be written.",
    errno.ENOENT: "A directory of this path was removed meanwhile: save again.",
    errno.ENOTDIR: "A part of the path is a file; choose another path.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.ELOOP: "Symbolic links in this path form a circle; choose another path.",
    errno.EMFILE: "Too many files are open in this process; close some, or raise ulimit -n.",
    errno.EIO: "The disk fails: save elsewhere. The previous checkpoint is untouched.",
}
_OPEN_HINTS = {
    errno.EACCES: "Check the permissions of the file and of the directories above it.",
    errno.EPERM: "Check the permissions of the file and of the directories above it.",
    errno.EMFILE: "Too many files are open: close some, or raise the limit (ulimit -n).",
    errno.ENFILE: "Too many files are open: close some, or raise the limit (ulimit -n).",
}
_QUERY = re.compile(r"(?<=\?)[^\s'\")>]+")


@contextmanager
def writing(where: str | os.PathLike[str], *, remote: bool = False) -> Iterator[None]:
    """Map errors of file systems on writing to :class:`WriteError`."""
    try:
        yield
    except (JsonckptError, MemoryError):
        raise
    except Exception as error:
        if not (remote or isinstance(error, OSError)):
            raise
        raise write_error(error, where, remote=remote) from error


@contextmanager
def reading(where: str) -> Iterator[None]:
    """Map errors of remote file systems on reading."""
    try:
        yield
    except (JsonckptError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and is_absent(error):
            raise IncompleteCheckpointError("the file is missing", file=where) from error
        raise JsonckptError(
            f"cannot read: {describe(error)}",
            file=where,
            hint="Check the connection and storage_options, or download the checkpoint.",
        ) from error


def write_error(
    error: Exception, where: str | os.PathLike[str], *, remote: bool = False
) -> WriteError:
    """The error for a failed write, with a hint."""
    number = getattr(error, "errno", None)
    reason, hint = describe(error), _UNTOUCHED
    if remote and isinstance(error, FileNotFoundError):
        hint = "Does this bucket exist? Check the name, or create the bucket first."
    elif not remote:
        reason = getattr(error, "strerror", None) or reason
        hint = _WRITE_HINTS.get(number or 0, _UNTOUCHED)
        if number == errno.ENOENT and not os.path.isabs(where) and _is_lost():
            reason = "the working directory of this process does not exist any more"
            hint = "Give an absolute path, or change to a directory that exists."
    return WriteError(f"cannot write: {reason}", errno=number, file=where, hint=hint)


def read_error(error: OSError, path: str, *, opening: bool = False) -> JsonckptError:
    """The error for a local file that cannot be read or opened, with a hint."""
    hint = "The disk or the connection fails: take another copy of the checkpoint"
    if opening:
        hint = _OPEN_HINTS.get(error.errno or 0, f"{hint}.")
    else:
        hint += ", or restore what can be read with: jsonckpt recover PATH NEW"
    verb = "open" if opening else "read"
    return JsonckptError(f"cannot {verb}: {error.strerror or error}", file=path, hint=hint)


def describe(error: BaseException) -> str:
    """The text of a foreign error, without the secrets that the query of a URL may hold."""
    attempts = getattr(error, "jsonckpt_attempts", None)  # of remote/requests
    if isinstance(error, FileNotFoundError) and error.__cause__ and not is_absent(error):
        error = error.__cause__
    text = str(error) or type(error).__name__
    if not isinstance(error, OSError | ImportError | ValueError):
        text = f"{type(error).__name__}: {error}" if str(error) else text
    text = _QUERY.sub("...", text) if "://" in text else text
    return text if attempts is None else f"{text} ({attempts})"


def is_absent(error: FileNotFoundError) -> bool:
    """Whether the server has said that a file does not exist.

    fsspec raises the same error if a web server cannot be reached, or refuses to answer.
    """
    cause = error.__cause__
    status = getattr(cause, "status", None)
    if isinstance(status, int):
        return status in (404, 410)
    if cause is None or isinstance(cause, FileNotFoundError):
        return True
    kind = type(cause)
    lost = isinstance(cause, OSError) or "Timeout" in kind.__name__
    return not lost and kind.__module__.partition(".")[0] != "aiohttp"


def _is_lost() -> bool:
    """Whether the working directory has been removed."""
    try:
        os.getcwd()
    except OSError:
        return True
    return False
