"""Starts :mod:`tests.hostile.child`, asks it, and starts it anew when a file has killed it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Child", "Outcome"]

#: A hang on a busy machine; the processor's own seconds are what tests compare.
_PATIENCE = 60.0
_ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What became of one file at one door.

    Attributes:
        error: names of the classes of what was raised, most special first; empty if nothing was.
        message: its text.
        value: ``repr`` of what was returned.
        seconds: processor time.
        growth: bytes that the resident memory grew by at its peak.
        events: what happened that must not.
    """

    error: tuple[str, ...]
    message: str
    value: str = ""
    seconds: float = 0.0
    growth: int = 0
    events: tuple[str, ...] = ()


class Child:
    """The process. Answers :meth:`ask` until :meth:`close`.

    Args:
        environment: added to this process's own.
    """

    def __init__(self, **environment: str) -> None:
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, path: Path, door: str, limits: dict[str, Any] | None = None) -> Outcome:
        """What becomes of a file; a crash and a hang are outcomes, too."""
        process = self._running()
        assert process.stdin is not None
        assert process.stdout is not None
        job = {"path": str(path), "door": door, "limits": limits}
        process.stdin.write(json.dumps(job).encode() + b"\n")
        process.stdin.flush()
        if not select.select([process.stdout], [], [], _PATIENCE)[0]:
            self.close()
            return Outcome(("Hang",), f"no answer within {_PATIENCE} s")
        line = process.stdout.readline()
        if not line:
            code = process.wait()
            self.close()
            return Outcome(("Crash",), f"the process ended with {code}")
        answer = json.loads(line)
        return Outcome(
            tuple(answer["error"] or ()),
            answer["message"],
            answer["value"],
            answer["seconds"],
            answer["growth"],
            tuple(answer["events"]),
        )

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-m", "tests.hostile.child"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                cwd=_ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"} | self._environment,
            )
        return self._process

    def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            for pipe in (self._process.stdin, self._process.stdout):
                if pipe is not None:
                    pipe.close()
            self._process = None
