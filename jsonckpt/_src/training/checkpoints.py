"""Finds the checkpoints of a run, their order, and the newest that is whole.

A run that resumes from half a checkpoint, or starts again because none was found, costs more than a
check of each. So a damaged checkpoint is never returned, and never left out without a warning.
"""

from __future__ import annotations

import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    IntegrityError,
    JsonckptError,
    LimitError,
    quote,
)
from ..format.filenames import is_part, is_shard_name, is_single
from ..format.limits import DEFAULT_LIMITS
from ..format.model import MANIFEST_NAME, NO_TIME, SHARD_FORMAT
from ..load.api import load_container
from ..load.container import open_container
from ..load.options import ReadOptions
from ..load.selection import TensorSelection
from ..shards.shard_text import TRAILER_MAX, index_offset
from ..storage.locate import locate
from ..storage.path_arguments import is_url, path_text

_NUMBER = re.compile(
    r"(epoch|step|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d{1,18})(?!\d)", re.IGNORECASE
)
#: The names of checkpoints if the caller gives no pattern.
_USUAL = re.compile(
    r"checkpoint_|(checkpoint|ckpt|(global_?)?step|epoch|iter(ation)?)[-_=]?\d", re.IGNORECASE
)
#: Keys of a state that may hold the step.
_STEPS = ("step", "global_step", "iteration", "iter")
#: Errors about the checkpoint itself. Any other error means that a remote place could not be read.
_ABOUT_CHECKPOINT = (
    CheckpointNotFoundError, FormatError, IncompleteCheckpointError, IntegrityError, LimitError,
)  # fmt: skip


@dataclass
class _Candidate:
    """Something that may be a checkpoint.

    Attributes:
        place: the result: a path, or a URL as text.
        changed: the time of its last change.
        numbers: the known ``epoch`` and ``step``.
        saved: when it was saved; ``""`` until it has been read.
    """

    place: Any
    name: str
    changed: float
    numbers: dict[str, int]
    options: Mapping[str, Any] | None = field(repr=False)
    saved: str = ""


@overload
def checkpoints(
    directory: Path,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Path]: ...


@overload
def checkpoints(
    directory: str,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Any]: ...


def checkpoints(
    directory: str | Path,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> list[Any]:
    """The checkpoints below ``directory``, oldest first.

    A checkpoint is a ``.json`` or ``.json.zst`` file, or a directory that holds ``manifest.json``.
    Hidden names, temporary names and lone shards are ignored. A checkpoint that is not whole is
    left out with a ``RuntimeWarning`` that names it. The manifest must be valid and its shards must
    have their sizes; of a single file only the beginning and the end are checked
    (:func:`latest` reads all of the text around the payloads).

    The order is by numbers, because uploads change the times of files. A name may hold an epoch
    (``epoch3``) and a step (``step600``, ``iter_600``, ``checkpoint-600``, ``ckpt600``; ``-``,
    ``_``, ``=`` or nothing before the number):

    1. if all names have an epoch: by epoch, then by step. A name without a step is the end of its
       epoch, so ``…epoch1_step0040`` comes before ``…epoch1``;
    2. else, if all names have a step: by step;
    3. else, what a name lacks is read from ``state["epoch"]`` and ``state["step"]`` (or
       ``global_step``, ``iteration``, ``iter``), and rules 1 and 2 are tried again. Checkpoints
       without any number come first. The rest is ordered by the time of the save, which is in the
       checkpoint.

    Equal numbers are ordered by the time of the file, then by name.

    Args:
        directory: where to look, a path or a URL (extra ``remote``). A directory that does not
            exist holds none; a bucket that does not exist is an error.
        pattern: as in ``Path.glob``; ``"**/checkpoint_*"`` looks below subdirectories, too. By
            default names that begin with ``checkpoint_``, or with ``checkpoint``, ``ckpt``,
            ``step``, ``global_step``, ``epoch``, ``iter`` or ``iteration`` and a number.
        storage_options: passed to fsspec for URLs.

    Returns:
        paths; of a URL, URLs.

    Raises:
        ArgumentError: ``directory`` is a file, or ``pattern`` is no relative glob.
        JsonckptError: a remote directory cannot be listed or read.
    """
    found = _candidates(directory, pattern, storage_options)
    whole = [one for one in _usual(found, pattern) if _is_usable(one, _check_briefly)]
    return [one.place for one in _ordered(whole)]


@overload
def latest(
    directory: Path,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Path | None: ...


@overload
def latest(
    directory: str,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Any: ...


def latest(
    directory: str | Path,
    pattern: str | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """The newest of :func:`checkpoints`, or ``None`` if there is none.

    A damaged one is skipped with a ``RuntimeWarning`` that names it, and the one before it is
    returned. If no name is that of a run's checkpoint and no ``pattern`` is given, ``directory``
    itself is returned if it is a checkpoint, else the newest of its subdirectories that are
    checkpoints: upload sites rename directories.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for name in ("epoch1_step0040", "epoch1", "epoch2_step0060", "epoch2_step0080.tmp"):
    ...         _ = jsonckpt.save({"w": torch.ones(1)}, f"{run}/checkpoint_{name}.json")
    ...     newest = latest(run)
    >>> newest.name
    'checkpoint_epoch2_step0060.json'
    """
    listed = _candidates(directory, pattern, storage_options)
    found = _usual(listed, pattern)
    if not found and pattern is None:
        text = path_text(directory)
        itself = _Candidate(text if is_url(text) else Path(text), text, 0, {}, storage_options)
        found = [itself] if _has_manifest(itself) else list(filter(_has_manifest, listed))
    for one in reversed(_ordered(found)):
        if _is_usable(one, _check_text):
            return one.place
    return None


# --- listing --------------------------------------------------------------------------------------


def _candidates(
    directory: str | Path, pattern: str | None, options: Mapping[str, Any] | None
) -> list[_Candidate]:
    text = path_text(directory, "directory")
    if pattern is not None and not (
        isinstance(pattern, str) and pattern.lstrip("/") == pattern != ""
    ):
        raise ArgumentError(f"pattern must be a relative glob, not {quote(pattern)}")
    shown = pattern or "*"
    entries = _remote(text, shown, options) if is_url(text) else _local(Path(text), shown)
    return [
        _Candidate(place, name, changed, _numbers(name), options)
        for place, name, changed in entries
    ]


def _usual(found: list[_Candidate], pattern: str | None) -> list[_Candidate]:
    """All if the caller gave a pattern, else those with a usual name."""
    return [one for one in found if pattern is not None or _USUAL.match(one.name)]


def _is_ignored(name: str) -> bool:
    return name.startswith(".") or ".tmp" in name or name.endswith("~") or is_part(name)


def _local(directory: Path, pattern: str) -> Iterator[tuple[Any, str, float]]:
    if not _can_open(directory):
        return
    if not os.path.isdir(directory):
        raise ArgumentError(
            f"directory is {quote(str(directory), 200)}, which is a file",
            hint="Give the directory that holds it; jsonckpt.load takes the file itself.",
        )
    try:
        found = list(directory.glob(pattern))
    except ValueError as error:  # "**x", for example
        raise ArgumentError(f"pattern is {quote(pattern)}: {error}") from error
    for path in found:
        if _is_ignored(path.name) or not _can_open(path):
            continue
        try:
            if path.is_dir():
                inside = [other.name for other in path.iterdir()]
                if MANIFEST_NAME in inside:
                    yield path, path.name, (path / MANIFEST_NAME).stat().st_mtime_ns
                elif any(map(is_shard_name, inside)):
                    _warn(path, f"there are shards but no {MANIFEST_NAME}: a save did not finish")
            elif path.is_file() and is_single(path.name):
                yield path, path.name, path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # removed meanwhile


def _can_open(path: Path) -> bool:
    """Whether something exists. If the system refuses access, this warns."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:  # for example a circle of links
        _warn(path, f"cannot open: {error.strerror}")
        return False
    return True


def _remote(
    url: str, pattern: str, options: Mapping[str, Any] | None
) -> Iterator[tuple[Any, str, float]]:
    from ..storage.remote import listing

    for found, is_directory, changed in listing(url, pattern, options):
        name = found.rstrip("/").rpartition("/")[2]
        if (is_directory or is_single(name)) and not _is_ignored(name):
            yield found, name, changed


def _has_manifest(one: _Candidate) -> bool:
    """Whether it is a directory with a manifest, valid or not."""
    try:
        place, name = locate(one.place, one.options, follow=True)
        if name is not None:
            return False
        with place.file(MANIFEST_NAME):
            return True
    except (CheckpointNotFoundError, IncompleteCheckpointError):
        return False


# --- order ----------------------------------------------------------------------------------------


def _numbers(name: str) -> dict[str, int]:
    """The epoch and the step in a name. ``step5`` counts before ``checkpoint7``."""
    found: dict[str, int] = {}
    pairs = [(key.lower(), int(number)) for key, number in _NUMBER.findall(name)]
    for key, number in sorted(pairs, key=lambda pair: pair[0] not in ("epoch", "step")):
        found.setdefault("epoch" if key == "epoch" else "step", number)
    return found


def _ordered(found: Sequence[_Candidate]) -> list[_Candidate]:
    key = _common_key(found)
    if key is not None:
        return sorted(found, key=key)
    found = [one for one in found if _is_usable(one, _read_numbers)]
    bare = sorted((one for one in found if not one.numbers), key=_by_time)
    rest = [one for one in found if one.numbers]
    return [*bare, *sorted(rest, key=_common_key(rest) or _by_time)]


def _by_time(one: _Candidate) -> tuple[Any, ...]:
    return one.saved, one.changed, one.name


def _common_key(found: Sequence[_Candidate]) -> Callable[[_Candidate], tuple[Any, ...]] | None:
    """A sort key that all candidates have; ``None`` if there is none."""
    if all("epoch" in one.numbers for one in found):
        end = float("inf")
        return lambda one: (
            one.numbers["epoch"], one.numbers.get("step", end), one.changed, one.name
        )  # fmt: skip
    if all("step" in one.numbers for one in found):
        return lambda one: (one.numbers["step"], one.changed, one.name)
    return None


def _read_numbers(one: _Candidate) -> None:
    """Take the numbers that its name lacks from its state.

    Raises:
        JsonckptError: it is not whole, or cannot be read.
    """
    container = open_container(one.place, ReadOptions(storage_options=one.options))
    one.saved = container.manifest.created_at
    if one.saved == NO_TIME:  # a save by content
        one.saved = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(one.changed // 1_000_000_000))
    try:
        state = load_container(container, TensorSelection.of((), None, "cpu"))
    except JsonckptError:  # for example a type that is not registered yet
        state = container.manifest.state
    if isinstance(state, Mapping):
        step = next((state[key] for key in _STEPS if key in state), None)
        for key, number in (("epoch", state.get("epoch")), ("step", step)):
            if type(number) is int:
                one.numbers.setdefault(key, number)


# --- checks ---------------------------------------------------------------------------------------


def _is_usable(one: _Candidate, check: Callable[[_Candidate], None]) -> bool:
    """Whether ``check`` raises no error. Warns about an error.

    Raises:
        JsonckptError: a remote place cannot be read. It must not look like an empty one.
    """
    try:
        check(one)
    except CheckpointNotFoundError:
        return False  # removed meanwhile, or a directory of something else
    except JsonckptError as error:
        if is_url(str(one.place)) and not isinstance(error, _ABOUT_CHECKPOINT):
            raise
        _warn(one.place, error.message if error.file == str(one.place) else str(error))
        return False
    return True


def _warn(place: object, reason: str) -> None:
    # The warning shows the line of the caller, outside of this module.
    level, frame = 1, sys._getframe()
    while frame.f_globals is globals() and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{place} is skipped: {reason}", RuntimeWarning, stacklevel=level)


def _check_text(one: _Candidate) -> None:
    """Read all of the text around the payloads, and the sizes of the shards.

    Raises:
        JsonckptError: it is not whole, or cannot be read.
    """
    container = open_container(one.place, ReadOptions(storage_options=one.options))
    container.check_files(range(len(container.manifest.shards)))


def _check_briefly(one: _Candidate) -> None:
    """Like :func:`_check_text`, but reads only the beginning and the end of a single file.

    Raises:
        JsonckptError: it is not whole, or cannot be read.
    """
    place, name = locate(one.place, one.options, follow=DEFAULT_LIMITS.follow)
    if name is None:
        _check_text(one)
        return
    start = bytearray(256)
    if name.endswith(".zst"):
        with place.stream(name, zstd_window=DEFAULT_LIMITS.zstd_window) as stream:
            del start[stream.readinto(memoryview(start)) :]
        end = None
    else:
        with place.file(name) as file:
            size = file.size
            start, end = bytearray(min(256, size)), bytearray(min(TRAILER_MAX, size))
            file.read_range(0, memoryview(start))
            file.read_range(size - len(end), memoryview(end))
    if SHARD_FORMAT.encode() not in start:
        raise FormatError("not a jsonckpt checkpoint", file=place.where(name))
    if end is not None:
        offset = index_offset(bytes(end))
        if offset is None:
            _check_text(one)  # it may have been edited, else this says what is wrong
        elif offset >= size:
            raise IncompleteCheckpointError("its text ends too early", file=place.where(name))
