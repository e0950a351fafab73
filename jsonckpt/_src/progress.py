"""Progress of a long operation: a tqdm bar on a terminal, or a line now and then."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from .errors import printable

#: Seconds between two lines where there is no terminal.
_INTERVAL = 10.0


@contextmanager
def progress_bar(
    label: str, total: int | None, *, show: bool, stream: IO[str] | None = None
) -> Iterator[Callable[[int], None] | None]:
    """A function to call with the bytes just done, or ``None`` when nothing is to be shown.

    A terminal that goes away ends the bar, not the work.

    Args:
        label: what is being done.
        total: bytes in all, if that is known.
        stream: where the bar appears; it is removed at the end. By default it appears on standard
            error and stays there.
    """
    if not show or (stream is None and sys.stderr is None):
        yield None
        return
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        # tqdm would start a thread that refreshes idle bars, and would wait for ever if that thread
        # dies of a lack of memory. This bar checks the clock on each call.
        monitor_interval = 0

    bar: Any = None
    with suppress(OSError, ValueError):
        bar = Bar(
            total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000, miniters=1,
            file=stream, leave=stream is None,
        )  # fmt: skip
    lock = threading.Lock()

    def advance(count: int) -> None:
        # Shards that are written at the same time report from several threads.
        with lock, suppress(OSError, ValueError):
            if bar is not None:
                bar.update(count)

    try:
        yield advance
    finally:
        with suppress(OSError, ValueError):
            if bar is not None:
                bar.close()


@contextmanager
def progress_on(
    stream: IO[str] | None, label: str, total: int | None = None
) -> Iterator[Callable[[int], None]]:
    """A function to call with the bytes just done. It shows them on ``stream``, if there is one.

    A terminal gets a bar, any other stream a line every ten seconds.
    """
    show = stream is not None and stream.isatty()
    with progress_bar(label, total, show=show, stream=stream) as bar:
        done, last = 0, time.monotonic()

        def advance(count: int) -> None:
            nonlocal done, last
            done += count
            if bar is not None:
                bar(count)
            elif stream is not None and time.monotonic() - last >= _INTERVAL:
                last = time.monotonic()
                tell(stream, f"{label}: {human(done)}{f' of {human(total)}' if total else ''}")

        yield advance


def human(count: float) -> str:
    """A number of bytes for people to read.

    >>> human(999), human(221_341_000)
    ('999 B', '221.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def tell(stream: IO[str], text: str) -> None:
    """Show a line if the stream takes it. An error here does not stop the work."""
    with suppress(OSError, ValueError):
        print(printable(text), file=stream, flush=True)
