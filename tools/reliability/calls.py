"""Watches, records and fails the system calls of the library in one directory."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

#: The system calls of a save. Calls of other modules get these names, too.
WATCHED = (
    "open",
    "pwritev",
    "preadv",
    "fsync",
    "close",
    "replace",
    "link",
    "unlink",
    "mkdir",
    "rmdir",
    "stat",
    "fstat",
    "listdir",
)


@dataclass(frozen=True)
class Call:
    """One call on the directory.

    Attributes:
        name: of the function in ``os``.
        path: the path; for ``replace`` and ``link`` the source.
        arguments: as given.
        creates: whether it is an ``open`` that may make a file.
    """

    name: str
    path: str
    arguments: tuple[Any, ...]
    creates: bool = False


Hook = Callable[[Call, Callable[[], Any]], Any]
#: Is told of a call before it happens.
Turn = Callable[[Call], None]


def _at_once(call: Call) -> None:
    del call


@contextmanager
def watched(root: Path, hook: Hook, *, turn: Turn = _at_once) -> Iterator[None]:
    """Send every call on ``root``, and on anything below it, through ``hook``.

    Args:
        hook: gets the call and a function that does it. Its result is the result of the call. One
            at a time.
        turn: is called before that. It may wait for other threads.
    """
    inside = os.path.realpath(root)
    opened: dict[int, str] = {}
    lock = threading.RLock()
    #: The thread whose hook runs: a call in it has no turn of its own.
    hooked: list[int] = []
    real = {name: getattr(os, name) for name in WATCHED}

    def concerns(path: Any) -> str | None:
        if isinstance(path, int):
            return opened.get(path)
        text = os.path.abspath(os.fspath(path))
        if not isinstance(text, str):
            return None
        return text if text == inside or text.startswith(inside + os.sep) else None

    def wrapped(name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            function = real[name]
            path = concerns(arguments[0]) if arguments else None
            if path is None:
                return function(*arguments, **named)
            creates = name == "open" and bool(arguments[1] & os.O_CREAT)
            made = Call(name, path, arguments, creates)
            if threading.get_ident() not in hooked:
                turn(made)
            with lock:
                hooked.append(threading.get_ident())
                try:
                    result = hook(made, lambda: function(*arguments, **named))
                finally:
                    hooked.pop()
                if name == "open":
                    opened[result] = path
                elif name == "close":
                    opened.pop(arguments[0], None)
            return result

        return call

    with ExitStack() as patches:
        for name in WATCHED:
            patches.enter_context(mock.patch.object(os, name, wrapped(name)))
        yield


@dataclass(frozen=True)
class Operation:
    """One change to the directory, or one fsync.

    Attributes:
        kind: ``mkdir``, ``create``, ``write``, ``fsync``, ``fsync directory``, ``rename``,
            ``link``, ``unlink`` or ``rmdir``.
        path: relative to the directory; of ``rename`` and ``link`` the source; of ``write`` and
            ``fsync`` the name that the file was created under.
        target: of ``rename`` and ``link``.
        offset, data: of ``write``.
    """

    kind: str
    path: str
    target: str = ""
    offset: int = 0
    data: bytes = b""


_CHANGES = {"mkdir": "mkdir", "rmdir": "rmdir", "unlink": "unlink"}


@contextmanager
def recorded(root: Path, *, turn: Turn = _at_once) -> Iterator[list[Operation]]:
    """The operations below ``root``, in order, each only after it happened.

    Args:
        turn: see :func:`watched`.
    """
    log: list[Operation] = []
    base = os.path.realpath(root)

    def hook(call: Call, do: Callable[[], Any]) -> Any:
        path = os.path.relpath(call.path, base)
        existed = call.creates and os.path.lexists(call.path)
        result = do()
        if call.creates and not existed:
            log.append(Operation("create", path))
        elif call.name in _CHANGES:
            log.append(Operation(_CHANGES[call.name], path))
        elif call.name in ("replace", "link"):
            target = os.path.relpath(os.path.abspath(call.arguments[1]), base)
            log.append(Operation("rename" if call.name == "replace" else "link", path, target))
        elif call.name == "pwritev":
            text = b"".join(bytes(buffer) for buffer in call.arguments[1])[:result]
            log.append(Operation("write", path, offset=call.arguments[2], data=text))
        elif call.name == "fsync":
            kind = "fsync directory" if os.path.isdir(call.path) else "fsync"
            log.append(Operation(kind, path))
        return result

    with watched(root, hook, turn=turn):
        yield log
