"""The golden states written anew: what this release makes of them, byte for byte.

``python -m tests.golden.fresh`` says which files differ from what is recorded. Then either the
change is a mistake, or it belongs into ``CHANGELOG.md``: write the line there first, and record it
with ``python -m tests.golden.fresh --record 'that line'``.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import sys
import tempfile
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import zstandard

from jsonckpt._src.format.zstd import ZSTD_VERSION
from jsonckpt._src.save import snapshot
from tests.golden.cases import CASES, Case

RECORDED = Path(__file__).parent / "fresh.sha256.json"
CHANGELOG = Path(__file__).parents[2] / "CHANGELOG.md"
_SAVE_ID = "5ca1ab1e" * 4
_NOW = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


class _Clock(datetime.datetime):
    """The time that all fresh files were made at."""

    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return _NOW.astimezone(tz)


def zstd_version() -> str:
    """What makes the frames: they may differ between versions of it."""
    own = ".".join(map(str, zstandard.ZSTD_VERSION))
    return f"{zstandard.__version__} {own}, {ZSTD_VERSION}"


def needs_zstd(case: Case) -> bool:
    """Whether a case's bytes depend on the version of zstd."""
    return case.options.get("compression") == "zstd" or case.path.endswith(".zst")


def _save_id() -> str:
    return _SAVE_ID


def _created_by() -> str:
    return "jsonckpt"


def write(case: Case, folder: Path) -> dict[str, str]:
    """Save a golden state; each file's SHA-256 by name. The same state gives the same bytes."""
    with ExitStack() as stack:
        patch = mock.patch.multiple(snapshot, new_save_id=_save_id, created_by=_created_by)
        stack.enter_context(patch)
        stack.enter_context(mock.patch.object(snapshot, "datetime", _Clock))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        path = folder / case.path
        case.save(path, sync=False)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def can_be_made(case: Case) -> bool:
    """Whether this torch has what the state needs."""
    return all(hasattr(torch, name) for name in case.needs)


def main(arguments: list[str]) -> None:
    """Compare, or record."""
    with tempfile.TemporaryDirectory() as folder:
        made = {case.path: write(case, Path(folder)) for case in CASES if can_be_made(case)}
    known = json.loads(RECORDED.read_text()) if RECORDED.exists() else {"files": {}}
    files = {**known["files"], **made}
    changed = [path for path in files if files[path] != known["files"].get(path)]
    print("\n".join(f"differs: {path}" for path in changed) or "nothing differs")
    if arguments[:1] != ["--record"]:
        return
    [note] = arguments[1:]
    if not note.strip() or note not in CHANGELOG.read_text(encoding="utf-8"):
        raise SystemExit(f"refused: CHANGELOG.md has no such line: {note!r}")
    if changed and note == known.get("note"):
        raise SystemExit(f"refused: that line tells of an earlier change: {note!r}")
    record = {"note": note, "zstd": zstd_version(), "files": files}
    RECORDED.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
