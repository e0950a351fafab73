"""Hints for a path that leads to nothing: names that are near it, and checkpoints around it."""

from __future__ import annotations

import difflib
import os
import re
from itertools import islice
from pathlib import Path

from ..errors import printable
from ..format.filenames import is_part, is_single
from ..format.model import MANIFEST_NAME

#: Names that are compared, and names that a hint shows.
_MOST_COMPARED = 10_000
_SHOWN = 3
#: Names that are less alike than this are shown only where there are no more than are shown.
_LIKE = 0.5
#: Bytes at the beginning of a file in which a checkpoint names its format or its program.
_BEGINNING = 1000
#: Endings of checkpoints that ``convert`` reads.
_OTHERS = {".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".npz"}
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})")


def hint_for_missing(path: Path, *, others: bool = False) -> str | None:
    """What may be meant by a path that leads to nothing.

    Args:
        others: files of other programs, which ``convert`` reads, may be meant, too.
    """
    variable = _VARIABLE.search(str(path))
    if variable:
        return f"{printable(variable[0])} is not expanded here: pass os.path.expandvars(path)."
    above = path.parent
    if not os.path.isdir(above):
        return _missing_directory(above)
    there = checkpoints_in(above) + (_files_of_others(above) if others else [])
    found = _nearest(path.name, there)
    if not found:
        return None
    return f"The same directory has {', '.join(map(printable, found[:_SHOWN]))}."


def newest_hint(directory: Path) -> str | None:
    """The newest checkpoints in a directory that is none itself."""
    names = [name for name in checkpoints_in(directory) if _is_ours(directory / name)]
    if not names:
        if _files_of_others(directory):
            return "jsonckpt convert reads the checkpoints of other programs."
        return None
    shown = ", ".join(map(printable, names[:_SHOWN]))
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (
        f"It holds checkpoints, the newest first: {shown}{rest}. Give one of them; "
        "jsonckpt.find(directory) lists them."
    )


def checkpoints_in(directory: Path) -> list[str]:
    """The names of checkpoints in a directory, by their names only, the newest first."""
    found = []
    try:
        with os.scandir(directory) as entries:
            for entry in islice(entries, _MOST_COMPARED):
                if entry.name.startswith(".") or is_part(entry.name):
                    continue
                file = entry.path if is_single(entry.name) else f"{entry.path}/{MANIFEST_NAME}"
                if os.path.isfile(file):
                    found.append((-os.stat(file).st_mtime_ns, entry.name))
    except OSError:
        pass
    return [name for _, name in sorted(found)]


def _files_of_others(directory: Path) -> list[str]:
    """The names of files that ``convert`` reads, by their endings only."""
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in islice(entries, _MOST_COMPARED)]
    except OSError:
        return []
    return [name for name in names if os.path.splitext(name)[1] in _OTHERS]


def _is_ours(path: Path) -> bool:
    """Whether a file or directory names this package where it begins, or cannot be looked at."""
    file = path / MANIFEST_NAME if path.is_dir() else path
    try:
        with open(file, "rb") as opened:
            start = opened.read(_BEGINNING)
    except OSError:
        return True
    return b"jsonckpt" in start or file.suffix == ".zst"


def _nearest(wanted: str, names: list[str]) -> list[str]:
    """Names in the order of their likeness to one that is wanted, without those that are unlike."""
    matcher = difflib.SequenceMatcher(autojunk=False)
    matcher.set_seq2(_stem(wanted))

    def distance(name: str) -> float:
        matcher.set_seq1(_stem(name))
        return -matcher.ratio()

    distances = {name: distance(name) for name in sorted(names)}
    near = [name for name, far in distances.items() if -far >= _LIKE or len(distances) <= _SHOWN]
    return sorted(near, key=distances.__getitem__)


def _stem(name: str) -> str:
    stem, ending = os.path.splitext(name.removesuffix(".zst"))
    return stem if ending in {".json", *_OTHERS} else name


def _missing_directory(above: Path) -> str | None:
    """Which directory of a path is missing, and one with a near name."""
    missing = above
    while not os.path.isdir(missing.parent):
        if missing.parent == missing:  # the working directory is gone
            return None
        missing = missing.parent
    try:
        with os.scandir(missing.parent) as entries:
            beside = [entry.name for entry in islice(entries, _MOST_COMPARED) if entry.is_dir()]
    except OSError:
        beside = []
    near = difflib.get_close_matches(missing.name, beside, 1)
    meant = f"; {printable(missing.parent)} has {printable(near[0])}" if near else ""
    return f"There is no directory {printable(missing)}{meant}."
