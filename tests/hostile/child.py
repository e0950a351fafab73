"""Loads hostile files in a process of its own, so that a crash of a native parser is seen.

Reads one JSON object a line from standard input (``path``, ``door``, ``limits``) and answers each
with one line: what was raised or returned, how long it took, how much memory it took, and what was
done meanwhile that a reader never does. The address space is limited to 2 GiB more than Python
and torch take.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.inspect import overview
from jsonckpt._src.inspect.tree import tree_lines
from tests import readers

EXTRA_BYTES = 2 << 30

#: Audit events that no reader may cause. Imports and opening files are looked at more closely.
FORBIDDEN = (
    "pickle.", "marshal.", "exec", "compile", "code.__new__", "subprocess.", "os.system", "os.exec",
    "os.spawn", "os.posix_spawn", "os.fork", "os.forkpty", "socket.", "shutil.", "os.remove",
    "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
    "os.putenv", "ctypes.dlopen", "webbrowser.", "urllib.", "ftplib.", "import",
)  # fmt: skip


#: What recover makes has this in its name; it may write there, and read back what it wrote.
RESCUED = "-rescued"

#: The C library that is loaded already, and the checksum that may be installed.
ALLOWED = (("ctypes.dlopen", None), ("import", "blake3"))


class Watch:
    """Notes what happens between :meth:`begin` and :meth:`end`."""

    def __init__(self) -> None:
        self._seen: list[str] | None = None
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._seen is None:
            return
        if event == "open":
            flags = arguments[2]
            if RESCUED in str(arguments[0]):
                return
            if os.path.isdir(arguments[0]):
                return  # Linux opens a temporary file without a name through its directory
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
                self._seen.append(f"opens {arguments[0]!r} for writing")
        elif event.startswith(
            ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.chmod")
        ) and (RESCUED in str(arguments[0])):
            return
        elif event.startswith(FORBIDDEN) and (event, *arguments[:1]) not in ALLOWED:
            self._seen.append(f"{event} {arguments[:1]!r}"[:200])

    def begin(self) -> None:
        self._seen = []

    def end(self) -> list[str]:
        seen, self._seen = self._seen or [], None
        return seen


def _stream(path: str, **options: Any) -> Any:
    return dict(jsonckpt.stream(path, **options))


def _verify(path: str, **options: Any) -> Any:
    report = jsonckpt.verify(path, **options)
    str(report)
    if not report:
        raise report.problems[0]
    return None


def _open(path: str, **options: Any) -> Any:
    with jsonckpt.open(path, **options) as checkpoint:
        checkpoint.state()
        repr(list(checkpoint.values()))
        for entry in checkpoint.values():
            entry.load()
        return checkpoint.load()


def _state(path: str, **options: Any) -> Any:
    with jsonckpt.open(path, **options) as checkpoint:
        return checkpoint.state()


def _load_into(path: str, **options: Any) -> Any:
    target: dict[str, Any] = {name: torch.zeros(3, 4) for name in ("w", "tied")}
    target |= {
        "row": torch.zeros(4),
        "mask": torch.zeros(6, dtype=torch.bool),
        "h": torch.zeros(24, dtype=torch.bfloat16),
        "l": torch.zeros(5),
        "i": torch.zeros(3, dtype=torch.int64),
        "e": torch.zeros(0, 3),
        "epoch": 0,
    }
    jsonckpt.load_into(target, path, strict=False, **options)
    return None


def _deep(path: str, **options: Any) -> Any:
    return _verify(path, deep=True, **options)


def _recover(path: str, **options: Any) -> Any:
    """What is left of it, in a directory, which needs no file that is written a second time."""
    return str(jsonckpt.recover(path, path + RESCUED, **options))


def _gc(path: str, **options: Any) -> Any:
    return str(jsonckpt.gc(path, older_than=0, dry_run=True, **options))


def _look(path: str, **options: Any) -> Any:
    """What says what is there, without loading it."""
    found = jsonckpt.find(path, **options)
    repr(list(found))
    facts = jsonckpt.inspect(path, **options)
    list(tree_lines(facts, 9))
    list(overview.state_rows(facts.state))
    assert not jsonckpt.diff(path, path, **options), "it differs from itself"
    return jsonckpt.report(path, **options)


DOORS: dict[str, Callable[..., Any]] = {
    **readers.READERS,
    "stream": _stream,
    "verify": _verify,
    "open": _open,
    "state": _state,
    "load_into": _load_into,
    "deep": _deep,
    "recover": _recover,
    "gc": _gc,
    "look": _look,
}


#: What is done with a checkpoint that is damaged.
RESCUE = ("deep", "recover", "gc", "look")


def _status(field: str) -> int:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith(field))


def _answer(job: dict[str, Any], watch: Watch) -> dict[str, Any]:
    limits = job.get("limits")
    options = {} if limits is None else {"limits": jsonckpt.Limits(**limits)}
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")
    before = _status("VmRSS:")
    answer: dict[str, Any] = {"error": None, "message": "", "value": ""}
    began, began_wall = time.process_time(), time.perf_counter()
    watch.begin()
    try:
        value = DOORS[job["door"]](job["path"], **options)
    except BaseException as error:
        events = watch.end()
        answer["error"] = [kind.__name__ for kind in type(error).__mro__]
        answer["message"] = str(error)
    else:
        events = watch.end()
        answer["value"] = type(value).__name__
    answer["seconds"] = time.process_time() - began
    answer["wall"] = time.perf_counter() - began_wall
    answer["growth"] = max(0, _status("VmHWM:") - before)
    answer["events"] = events
    return answer


def main() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)
    with contextlib.suppress(ImportError):
        importlib.import_module("blake3")  # an extra, which a load may import
    with tempfile.TemporaryDirectory() as directory:
        # What is imported late is imported now, and codecs have made their tables.
        state = {"w": torch.ones(300), "b": torch.ones(3, dtype=torch.bool)}
        for name in ("directory", "single.json", "single.json.zst"):
            rescued = f"{directory}/{name}{RESCUED}"
            for encoding, compression in (("base64", None), ("base64", "zstd"), ("list", None)):
                jsonckpt.save(
                    state, f"{directory}/{name}", encoding=encoding, compression=compression
                )
                for door, call in DOORS.items():
                    if door != "piped" or name.endswith("json"):
                        call(f"{directory}/{name}")
                shutil.rmtree(rescued)
            # What looks into damage is imported late, too.
            damaged = f"{directory}/{name}"
            files = os.listdir(damaged) if os.path.isdir(damaged) else [""]
            for file in files:
                at = os.path.join(damaged, file) if file else damaged
                os.truncate(at, os.path.getsize(at) - 20)
            for door in RESCUE:
                with contextlib.suppress(jsonckpt.JsonckptError):
                    DOORS[door](damaged)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize:") + EXTRA_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    watch = Watch()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line), watch)), file=answers)


if __name__ == "__main__":
    main()
