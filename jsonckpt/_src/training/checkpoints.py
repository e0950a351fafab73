"""The checkpoints of a run: which there are, in which order, and the newest that is whole.

What is returned is never damaged: a run that resumes from half a checkpoint, or that begins anew
because nothing was found, costs more than a look at each.
"""

from __future__ import annotations

import re
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
from ..format import filenames
from ..format.limits import DEFAULT_LIMITS
from ..format.model import MANIFEST_NAME, SHARD_FORMAT
from ..format.shard_text import TRAILER_MAX, index_offset
from ..load.api import load_container
from ..load.container import open_container
from ..load.options import ReadOptions, TensorSelection
from ..storage import path_arguments
from ..storage.locate import locate

_NUMBER = re.compile(
    r"(epoch|step|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d{1,18})(?!\d)", re.IGNORECASE
)
#: What names of a run's checkpoints look like where the caller does not say.
_USUAL = re.compile(
    r"checkpoint_|(checkpoint|ckpt|(global_?)?step|epoch|iter(ation)?)[-_=]?\d", re.IGNORECASE
)
#: Where a state says how far the run was.
_STEPS = ("step", "global_step", "iteration", "iter")
#: Errors that say what a checkpoint is like; any other says that it cannot be looked at now.
_VERDICTS = (
    CheckpointNotFoundError, FormatError, IncompleteCheckpointError, IntegrityError, LimitError,
)  # fmt: skip


@dataclass
class _Found:
    """What may be a checkpoint. ``place`` is what is returned: a path, or the text of a URL."""

    place: Any
    name: str
    changed: float
    numbers: dict[str, int]
    saved: str = ""
    options: Mapping[str, Any] | None = field(default=None, repr=False)


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
    Hidden and temporary names and lone shards are not looked at. What is no whole checkpoint is
    left out with a ``RuntimeWarning`` that names it: the manifest must be valid and its shards
    there in their sizes; of a single file the beginning and the end are looked at (:func:`latest`
    reads all of the text around the payloads).

    The order is by numbers, since times of files do not survive an upload. A name may hold an epoch
    (``epoch3``) and a step (``step600``, ``iter_600``, ``checkpoint-600``, ``ckpt600``; ``-``,
    ``_``, ``=`` or nothing before the number):

    1. where all names have an epoch: by epoch, then step; a name without a step is the end of its
       epoch, so ``…epoch1_step0040`` comes before ``…epoch1``;
    2. else where all names have a step: by step;
    3. else what a name lacks is read from ``state["epoch"]`` and ``state["step"]`` (or
       ``global_step``, ``iteration``, ``iter``), and 1 and 2 are tried again; those that have no
       number at all come first, and what cannot be compared otherwise goes by the time at
       which it was saved, which the checkpoint itself says.

    Equal numbers go by the time of the file, then by name.

    Args:
        directory: where to look, a path or a URL (extra ``remote``); one that does not exist
            holds none. A bucket that does not exist is an error.
        pattern: as in ``Path.glob``; ``"**/checkpoint_*"`` looks below subdirectories, too. By
            default names that begin with ``checkpoint_``, or with ``checkpoint``, ``ckpt``,
            ``step``, ``global_step``, ``epoch``, ``iter`` or ``iteration`` and a number.
        storage_options: passed to fsspec for URLs.

    Returns:
        paths; of a URL, URLs.

    Raises:
        JsonckptError: a remote directory cannot be listed or read.
    """
    found = [one for one in _candidates(directory, pattern, storage_options) if _is_whole(one)]
    return [one.place for one in _ordered(found)]


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
    """The newest of :func:`checkpoints`, or ``None`` where there is none.

    A damaged one is passed over with a ``RuntimeWarning`` that names it, and the one before is
    taken. Where no name is that of a run's checkpoint and no ``pattern`` is given, ``directory``
    itself is taken if it is a checkpoint, else the newest of its subdirectories that are: sites
    that keep uploads give a directory a name of their own.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for name in ("epoch1_step0040", "epoch1", "epoch2_step0060", "epoch2_step0080.tmp"):
    ...         _ = jsonckpt.save({"w": torch.ones(1)}, f"{run}/checkpoint_{name}.json")
    ...     newest = latest(run)
    >>> newest.name
    'checkpoint_epoch2_step0060.json'
    """
    found = _candidates(directory, pattern, storage_options)
    if not found and pattern is None:
        found = [*_itself(directory, storage_options)] or [
            one for one in _candidates(directory, "*", storage_options) if _is_directory(one)
        ]
    for one in reversed(_ordered(found)):
        if _is_whole(one, deep=True):
            return one.place
    return None


def _candidates(
    directory: str | Path, pattern: str | None, options: Mapping[str, Any] | None
) -> list[_Found]:
    text = path_arguments.path_text(directory, "directory")
    if pattern is not None and not (
        isinstance(pattern, str) and pattern.lstrip("/") == pattern != ""
    ):
        raise ArgumentError(f"pattern must be a relative glob, not {quote(pattern)}")
    shown = pattern or "*"
    entries = (
        _remote(text, shown, options) if path_arguments.is_url(text) else _local(Path(text), shown)
    )
    return [
        _Found(place, name, changed, _numbers(name), options=options)
        for place, name, changed in entries
        if not (name.startswith(".") or ".tmp" in name or name.endswith("~"))
        and not (filenames.is_shard_name(name) or name == MANIFEST_NAME)
        and (pattern is not None or _USUAL.match(name))
    ]


def _local(directory: Path, pattern: str) -> Iterator[tuple[Any, str, float]]:
    for path in directory.glob(pattern):
        try:
            if path.is_dir():
                inside = [other.name for other in path.iterdir()]
                if MANIFEST_NAME in inside:
                    yield path, path.name, (path / MANIFEST_NAME).stat().st_mtime_ns
                elif any(map(filenames.is_shard_name, inside)):
                    _warn(path, f"there are shards but no {MANIFEST_NAME}: a save did not finish")
            elif path.is_file() and filenames.is_single(path.name):
                yield path, path.name, path.stat().st_mtime_ns
        except FileNotFoundError:
            continue  # removed meanwhile


def _remote(
    url: str, pattern: str, options: Mapping[str, Any] | None
) -> Iterator[tuple[Any, str, float]]:
    from ..storage.remote import listing

    for found, is_directory, changed in listing(url, pattern, options):
        name = found.rstrip("/").rpartition("/")[2]
        if is_directory or filenames.is_single(name):
            yield found, name, changed


def _itself(directory: str | Path, options: Mapping[str, Any] | None) -> Iterator[_Found]:
    """The directory, where it is a checkpoint."""
    text = path_arguments.path_text(directory)
    place = text if path_arguments.is_url(text) else Path(text)
    one = _Found(place, text, 0, {}, options=options)
    if _is_directory(one):
        yield one


def _is_directory(one: _Found) -> bool:
    """Whether there is a directory with a manifest; what is in it is another question."""
    try:
        place, name = locate(one.place, one.options, follow=True)
        if name is not None:
            return False
        with place.file(MANIFEST_NAME):
            return True
    except (CheckpointNotFoundError, IncompleteCheckpointError):
        return False


def _numbers(name: str) -> dict[str, int]:
    found: dict[str, int] = {}
    pairs = [(key.lower(), int(number)) for key, number in _NUMBER.findall(name)]
    for key, number in sorted(pairs, key=lambda pair: pair[0] not in ("epoch", "step")):
        found.setdefault("epoch" if key == "epoch" else "step", number)
    return found


def _ordered(found: Sequence[_Found]) -> list[_Found]:
    key = _common_key(found)
    if key is not None:
        return sorted(found, key=key)
    found = [one for one in found if _read_numbers(one)]
    bare = sorted((one for one in found if not one.numbers), key=_by_time)
    rest = [one for one in found if one.numbers]
    return [*bare, *sorted(rest, key=_common_key(rest) or _by_time)]


def _by_time(one: _Found) -> tuple[Any, ...]:
    return (one.saved, one.changed, one.name)


def _common_key(found: Sequence[_Found]) -> Callable[[_Found], tuple[Any, ...]] | None:
    """What all can be compared by."""
    if all("epoch" in one.numbers for one in found):
        return lambda one: (
            one.numbers["epoch"],
            one.numbers.get("step", float("inf")),
            one.changed,
            one.name,
        )
    if all("step" in one.numbers for one in found):
        return lambda one: (one.numbers["step"], one.changed, one.name)
    return None


def _read_numbers(one: _Found) -> bool:
    """Complete the numbers of a name from the state; ``False`` when it is no whole checkpoint."""

    def read() -> None:
        container = open_container(one.place, ReadOptions(storage_options=one.options))
        one.saved = container.manifest.created_at
        try:
            state = load_container(container, TensorSelection.of((), None, "cpu"))
        except JsonckptError:  # a type that is not registered yet, for example
            state = container.manifest.state
        if isinstance(state, Mapping):
            said = {"epoch": state.get("epoch")}
            said["step"] = next((state[key] for key in _STEPS if key in state), None)
            read = {key: number for key, number in said.items() if type(number) is int}
            one.numbers = {**read, **one.numbers}

    return _passes(one, read)


def _is_whole(one: _Found, *, deep: bool = False) -> bool:
    return _passes(one, lambda: _look(one, deep))


def _passes(one: _Found, look: Callable[[], None]) -> bool:
    """Whether ``look`` finds nothing wrong; what it finds is said.

    Raises:
        JsonckptError: a remote place cannot be read: it must not be taken for an empty one.
    """
    try:
        look()
    except CheckpointNotFoundError:
        return False  # a directory of something else, or removed meanwhile
    except JsonckptError as error:
        if path_arguments.is_url(str(one.place)) and not isinstance(error, _VERDICTS):
            raise
        _warn(one.place, error.message if error.file == str(one.place) else str(error))
        return False
    return True


def _warn(place: object, reason: str) -> None:
    warnings.warn(f"{place} is passed over: {reason}", RuntimeWarning, stacklevel=_outside())


def _outside() -> int:
    """How many frames are those of this module, so that a warning shows the caller's line."""
    import sys

    depth, frame = 1, sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__") == __name__:
        depth, frame = depth + 1, frame.f_back  # type: ignore[assignment]
    return depth


def _look(one: _Found, deep: bool) -> None:
    """Whether a checkpoint is whole.

    Raises:
        JsonckptError: it is not, or cannot be read.
    """
    limits = DEFAULT_LIMITS
    place, name = locate(one.place, one.options, follow=limits.follow)
    if deep or name is None:
        options = ReadOptions(limits=limits, storage_options=one.options)
        container = open_container(one.place, options)
        container.check_files(range(len(container.manifest.shards)))
        return
    marker = SHARD_FORMAT.encode()
    if name.endswith(".zst"):
        with place.stream(name, zstd_window=limits.zstd_window) as stream:
            start = bytearray(256)
            if marker not in start[: stream.readinto(memoryview(start))]:
                raise FormatError("this is no checkpoint", file=place.where(name))
        return
    with place.file(name) as file:
        start, end = bytearray(min(256, file.size)), bytearray(min(TRAILER_MAX, file.size))
        file.read_range(0, memoryview(start))
        file.read_range(file.size - len(end), memoryview(end))
        if marker not in start:
            raise FormatError("this is no checkpoint", file=place.where(name))
        offset = index_offset(bytes(end))
        if offset is None or offset >= file.size:
            raise IncompleteCheckpointError("its text ends too early", file=place.where(name))
