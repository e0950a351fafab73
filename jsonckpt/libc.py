"""The C library's calls of Linux that Python does not offer. All are advice to the system.

Where there is no such call (another system, another C library), everything works without it.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable

__all__ = ["linux_call"]


@functools.cache
def linux_call(name: str) -> Callable[..., int] | None:
    """A function of the C library, which leaves its error number to ``ctypes.get_errno``.

    >>> linux_call("no_such_call") is None
    True
    """
    if not sys.platform.startswith("linux"):
        return None
    try:
        found: Callable[..., int] = getattr(ctypes.CDLL(None, use_errno=True), name)
    except (OSError, AttributeError):  # a libc without the function
        return None
    return found
