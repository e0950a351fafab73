"""The peak of a process's anonymous memory, without torch."""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable


def anonymous() -> int:
    """Bytes of memory that no file backs."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("RssAnon"))


def measure(action: Callable[[], object]) -> int:
    """Bytes at the peak of an action, beside those before it."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, highest, done = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not done.is_set():
            highest[0] = max(highest[0], anonymous())
            time.sleep(0.005)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    action()
    highest[0] = max(highest[0], anonymous())
    done.set()
    thread.join()
    return highest[0] - before
