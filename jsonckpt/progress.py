"""What a person sees: tqdm where a bar is asked for, and text on any terminal."""

from __future__ import annotations

import io
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["progress_bar", "show_anything"]


def show_anything() -> None:
    """Let commands print names that the terminal's encoding lacks, escaped: it is never an error.

    Else a report would end in the middle, after the work has been done.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def progress_bar(
    label: str, total: int | None, *, show: bool
) -> Iterator[Callable[[int], None] | None]:
    """A function to call with the bytes just done, or ``None`` when nothing is to be shown."""
    if not show:
        yield None
        return
    from tqdm.auto import tqdm

    class Bar(tqdm):  # type: ignore[type-arg]
        # tqdm would start a thread that looks after bars which stand still, and wait for it
        # without end where it dies of a lack of memory. This one looks at the clock each time.
        monitor_interval = 0

    with Bar(
        total=total, desc=label, unit="B", unit_scale=True, unit_divisor=1000, miniters=1
    ) as bar:
        lock = threading.Lock()

        def advance(count: int) -> None:
            # Shards that are written side by side report from threads of their own.
            with lock:
                bar.update(count)

        yield advance
