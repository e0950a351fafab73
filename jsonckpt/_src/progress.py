"""Progress of a long operation: a bar on a terminal and in a notebook, else a line now and then."""

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

    A terminal or a notebook gets a bar, which is removed at the end. Any other stream, such as the
    log of a job, gets a line every ten seconds. A terminal that goes away ends the bar, not the
    work.

    Args:
        label: what is being done.
        total: bytes in all, if that is known.
        stream: where it appears; by default on standard error.
    """
    out = sys.stderr if stream is None else stream
    if not show or out is None:
        yield None
    elif _is_terminal(out) or (stream is None and "ipykernel" in sys.modules):
        with _bar(label, total, stream) as advance:
            yield advance
    else:
        began = time.monotonic()
        advance, done = _lines(label, total, out)
        try:
            yield advance
        finally:
            if stream is None:  # progress=True asks for a word even of what is quick
                tell(out, f"{label}: {human(done())} in {time.monotonic() - began:.1f} s")


def _is_terminal(stream: IO[str]) -> bool:
    try:
        return stream.isatty()
    except ValueError:  # it was closed
        return False


def _lines(
    label: str, total: int | None, stream: IO[str]
) -> tuple[Callable[[int], None], Callable[[], int]]:
    """A function that writes a line every ten seconds, and one that gives the bytes so far."""
    done, last, lock = 0, time.monotonic(), threading.Lock()

    def advance(count: int) -> None:
        nonlocal done, last
        with lock:
            done += count
            if time.monotonic() - last < _INTERVAL:
                return
            last = time.monotonic()
        tell(stream, f"{label}: {human(done)}{f' of {human(total)}' if total else ''}")

    return advance, lambda: done


@contextmanager
def _bar(label: str, total: int | None, stream: IO[str] | None) -> Iterator[Callable[[int], None]]:
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        # tqdm would start a thread that refreshes idle bars, and would wait for ever if that thread
        # dies of a lack of memory. This bar checks the clock on each call.
        monitor_interval = 0

    bar: Any = None
    with suppress(OSError, ValueError):
        bar = Bar(
            total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000, miniters=1,
            file=stream, leave=False,
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
    """:func:`progress_bar` on ``stream``; without one, nothing is shown."""
    with progress_bar(label, total, show=stream is not None, stream=stream) as advance:
        yield advance or (lambda _: None)


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
