"""What a person sees of a long conversion: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import time
from contextlib import suppress
from types import TracebackType
from typing import IO, Any

from tqdm import tqdm

from ..errors import printable

#: Seconds between two lines where there is no terminal.
_INTERVAL = 10.0


def human(count: float) -> str:
    """A number of bytes as people write it.

    >>> human(999), human(221_341_000)
    ('999 B', '221.3 MB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def tell(stream: IO[str], text: str) -> None:
    """Show a line, if it can be shown: nothing that is done depends on it."""
    with suppress(OSError, ValueError):
        print(printable(text), file=stream, flush=True)


class _Bar(tqdm):  # type: ignore[type-arg]
    # No thread that looks after bars which stand still: this one looks at the clock each time.
    monitor_interval = 0


class Progress:
    """Counts bytes.

    Args:
        what: the present activity, such as ``"reading"``.
        total: bytes in all, or ``None``.
        stream: where to show it; ``None`` shows nothing.
    """

    def __init__(self, what: str, total: int | None, stream: IO[str] | None) -> None:
        self._what = what
        self._total = total
        self._stream = stream
        self._bar: tqdm[Any] | None = None
        self._count = 0
        self._next = time.monotonic() + _INTERVAL
        if stream is not None and stream.isatty():
            with suppress(OSError, ValueError):
                self._bar = _Bar(
                    total=total,
                    desc=what,
                    unit="B",
                    unit_scale=True,
                    file=stream,
                    leave=False,
                    miniters=1,
                )

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.close()

    def advance(self, count: int) -> None:
        """``count`` more bytes are done."""
        self._count += count
        if self._bar is not None:
            with suppress(OSError, ValueError):
                self._bar.update(count)
        elif self._stream is not None and time.monotonic() >= self._next:
            self._next = time.monotonic() + _INTERVAL
            of = f" of {human(self._total)}" if self._total else ""
            tell(self._stream, f"{self._what}: {human(self._count)}{of}")
