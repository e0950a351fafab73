"""The checkpoints of a run in their order, and the newest that is whole.

A run that resumes from half a checkpoint, or starts again because none was found, costs more than a
check of each. So a damaged checkpoint is never returned, and never left out without a warning.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, overload

from ..errors import ArgumentError, CheckpointNotFoundError, JsonckptError, quote
from ..find.api import FoundCheckpoints, find
from ..find.convertible import NUMBER_LISTS, UNPACKED
from ..find.look import FoundCheckpoint, check_text, problem_of
from ..find.numbers import is_best, is_usual
from ..storage.path_arguments import is_url, path_text


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
    """The checkpoints directly in ``directory``, oldest first: a list to remove old ones from.

    They are found and ordered as by :func:`jsonckpt.find`: by the step in the state, else in the
    name (``step600``, ``iter_600``, ``checkpoint-600``, ``ckpt600``; ``-``, ``_``, ``=`` or nothing
    before the number), then by time. If some have no step, by epoch, then by step; a name without a
    step is the end of its epoch. Checkpoints without any number come first.

    A checkpoint that is not whole is left out with a ``RuntimeWarning`` that names it.

    Args:
        directory: where to look, a path or a URL (extra ``remote``). A directory that does not
            exist holds none; a bucket that does not exist is an error.
        pattern: as in ``Path.glob``; ``"**/checkpoint_*"`` looks below subdirectories, too. By
            default names that begin with ``checkpoint_``, or with ``checkpoint``, ``ckpt``,
            ``step``, ``global_step``, ``epoch``, ``iter`` or ``iteration`` and a number. So a copy
            such as ``best_model.json`` is not listed.
        storage_options: passed to fsspec for URLs.

    Returns:
        paths; of a URL, URLs.

    Raises:
        ArgumentError: ``directory`` is a file, or ``pattern`` is no relative glob.
        JsonckptError: a remote directory cannot be listed or read.
    """
    found = _found(directory, "*" if pattern is None else pattern, storage_options)
    if found is None:
        return []
    usual = [one for one in found if pattern is not None or is_usual(one.name)]
    _warn_of(found.unread, usual)
    return [one.path for one in reversed(usual) if one.valid]


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
    """The newest checkpoint below ``directory``, or ``None`` if there is none.

    It is the newest of :func:`jsonckpt.find`: at any depth and of any name, because upload sites
    rename directories. Of a URL, the directory itself and what is directly in it. All of its text
    around the payloads is read.

    A damaged one is passed over with a ``RuntimeWarning`` that names it. A copy that is kept for
    its score (``best_model.json``) is returned only if there is nothing else. If there are only
    files that must be converted first (lists of numbers), a warning names one.

    Args:
        directory, pattern, storage_options: as for :func:`checkpoints`.

    Raises:
        ArgumentError, JsonckptError: as :func:`checkpoints`.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as run:
    ...     for step in (500, 600):
    ...         path = f"{run}/checkpoint_step{step:06}.json"
    ...         _ = jsonckpt.save({"w": torch.ones(2), "step": step}, path)
    ...     newest = latest(run)
    >>> newest.name
    'checkpoint_step000600.json'
    """
    found = _found(directory, pattern, storage_options)
    if found is None:
        return None
    _warn_of(found.unread, found)
    for one in sorted(found.valid, key=lambda one: is_best(one.name)):
        try:
            check_text(one, storage_options)
        except JsonckptError as error:
            _warn(one.path, problem_of(error, one.path))
        else:
            return one.path
    old = [one for one in found.convertible if one.kind in (NUMBER_LISTS, UNPACKED)]
    if old:
        _warn(
            old[0].path, f"{old[0].kind}, not a checkpoint of jsonckpt; jsonckpt convert reads it"
        )
    return None


def _found(
    directory: str | Path, pattern: str | None, options: Mapping[str, Any] | None
) -> FoundCheckpoints | None:
    """What is below a directory; ``None`` if it does not exist.

    Raises:
        ArgumentError: an argument is not valid.
        JsonckptError: a remote directory cannot be listed or read.
    """
    text = path_text(directory, "directory")
    if not is_url(text) and os.path.isfile(text):
        raise ArgumentError(
            f"directory is {quote(text, 200)}, which is a file",
            hint="Give the directory that holds it; jsonckpt.load takes the file itself.",
        )
    if not is_url(text) and not os.path.lexists(text):
        return None
    try:
        return find(directory, pattern, storage_options=options)
    except CheckpointNotFoundError:
        if is_url(text):
            raise
        return None  # removed meanwhile


def _warn_of(unread: Iterable[str], found: Iterable[FoundCheckpoint]) -> None:
    for sentence in unread:
        place, _, reason = sentence.partition(": ")
        _warn(place, reason)
    for one in found:
        if one.torn:
            _warn(one.path, str(one.problem))


def _warn(place: object, reason: str) -> None:
    # The warning shows the line of the caller, outside of this module.
    level, frame = 1, sys._getframe()
    while frame.f_globals is globals() and frame.f_back is not None:
        level, frame = level + 1, frame.f_back
    warnings.warn(f"{place} is skipped: {reason}", RuntimeWarning, stacklevel=level)
