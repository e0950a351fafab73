"""Checks the file objects that a caller passes."""

from __future__ import annotations

import io
import os
from typing import Any

from ..errors import ArgumentError


def is_file_object(value: object, *methods: str) -> bool:
    """Whether a value is a file object, not a path.

    Some paths have methods that read and write, such as ``py.path.local``. They are paths. Some
    file objects have a path, such as those of fsspec for local files. They are file objects.

    Args:
        methods: one of these makes it a file object.

    >>> import io
    >>> is_file_object(io.BytesIO(), "read"), is_file_object("run.json", "read")
    (True, False)
    """
    if isinstance(value, io.IOBase):
        return True
    if isinstance(value, str | os.PathLike | type):
        return False
    return any(callable(getattr(value, method, None)) for method in methods)


def check_file_object(file: Any, mode: str, argument: str = "path") -> None:
    """Check that a file object is open for bytes, in the direction of ``mode``.

    Args:
        mode: ``"rb"`` or ``"wb"``.
        argument: its name, for messages.

    Raises:
        ArgumentError: it is not.
    """
    done = "read" if mode == "rb" else "written"
    if isinstance(file, io.TextIOBase) or isinstance(getattr(file, "encoding", None), str):
        raise ArgumentError(
            f"{argument} is a file object for text, but a checkpoint is {done} as bytes",
            hint=f'Open it with "{mode}", or pass its .buffer; in memory, use io.BytesIO.',
        )
    if getattr(file, "closed", False) is True:
        raise ArgumentError(f"{argument} is a file object that is closed", hint="Open it again.")
    if not _may(file, "readable" if mode == "rb" else "writable"):
        raise wrong_direction(mode, argument)
    if mode == "wb" and (held := _appended_to(file)):
        raise ArgumentError(
            f"{argument} is a file object that appends, and its file has {held} bytes already: "
            "a checkpoint is a whole file",
            hint='Open it with "wb", or give the path.',
        )


def wrong_direction(mode: str, argument: str = "path") -> ArgumentError:
    """The error for a file object that is not open in the direction of ``mode``."""
    other = "writing" if mode == "rb" else "reading"
    return ArgumentError(
        f"{argument} is a file object that is open for {other} only",
        hint=f'Open it with "{mode}".',
    )


def _may(file: Any, question: str) -> bool:
    """What ``file.readable()`` or ``file.writable()`` says.

    A class outside of the standard library may inherit the answer no without meaning it.
    """
    ask = getattr(file, question, None)
    inherited = getattr(type(file), question, None) is getattr(io.IOBase, question)
    if not callable(ask) or (inherited and type(file).__module__ != "_io"):
        return True
    return bool(ask())


def _appended_to(file: Any) -> int:
    """The bytes that a file in append mode has already."""
    mode = getattr(file, "mode", None)
    if not (isinstance(mode, str) and "a" in mode):
        return 0
    try:
        return int(file.tell())
    except (AttributeError, OSError, TypeError, ValueError):  # a pipe has no position
        return 0
