"""``find``: the checkpoints below a directory, the newest whole one first."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from ..errors import ArgumentError, CheckpointNotFoundError, counted, quote
from ..format.filenames import is_single
from ..format.limits import Limits
from ..storage.missing import hint_for_missing
from ..storage.path_arguments import is_url, path_text
from .look import FoundCheckpoint, look_at, options_for
from .numbers import newest_first
from .walk import Place, Walk, is_ignored


@dataclass(frozen=True)
class FoundCheckpoints(Sequence[FoundCheckpoint]):
    """The checkpoints below a directory: the whole ones, the torn ones, then the convertible ones.

    Each part is sorted, the newest first.

    Attributes:
        root: where they were searched.
        items: all of them.
        unread: what could not be listed or opened, as sentences.
    """

    root: str
    items: tuple[FoundCheckpoint, ...]
    unread: tuple[str, ...] = ()

    @property
    def valid(self) -> tuple[FoundCheckpoint, ...]:
        """The whole checkpoints, the newest first."""
        return tuple(one for one in self.items if one.valid)

    @property
    def torn(self) -> tuple[FoundCheckpoint, ...]:
        """Checkpoints that are not whole. Each says its ``problem``."""
        return tuple(one for one in self.items if one.torn)

    @property
    def convertible(self) -> tuple[FoundCheckpoint, ...]:
        """Files of other programs, which :func:`jsonckpt.convert` reads."""
        return tuple(one for one in self.items if one.convertible)

    @property
    def newest(self) -> FoundCheckpoint | None:
        """The newest whole checkpoint; ``None`` if there is none."""
        return next(iter(self.valid), None)

    @overload
    def __getitem__(self, index: int) -> FoundCheckpoint: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FoundCheckpoint]: ...
    def __getitem__(self, index: int | slice) -> FoundCheckpoint | Sequence[FoundCheckpoint]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __repr__(self) -> str:
        parts = [counted(len(self.valid), "checkpoint")]
        parts += [f"{len(self.torn)} torn"] if self.torn else []
        parts += [f"{len(self.convertible)} convertible"] if self.convertible else []
        parts += [f"{len(self.unread)} unread"] if self.unread else []
        newest = self.newest
        if newest is not None:
            step = "" if newest.step is None else f" (step {newest.step})"
            parts.append(f"newest {newest.path}{step}")
        return f"<FoundCheckpoints below {self.root}: {', '.join(parts)}>"


def find(
    root: str | os.PathLike[str],
    pattern: str | None = None,
    *,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> FoundCheckpoints:
    """All checkpoints below a directory, at any depth, the newest whole one first.

    Directories and files are found, whatever their names are: a site gives an upload the name of
    its data set. Shards, hidden and temporary names, and the metadata of sites
    (``dataset-metadata.json``) are never listed. A checkpoint that is not whole comes after the
    whole ones and says its ``problem``; ``.newest`` passes it over. Files of other programs
    (``.pt``, ``.safetensors``, JSON with lists of numbers) come last, as ``.convertible``.

    No payload is read: a manifest must be valid and its shards must have their sizes; a file must
    have its head and its index. :func:`jsonckpt.verify` reads everything.

    The order is by step, then by the time of the save. Step and epoch come from the state
    (``global_step``, ``step``, ``epoch``, also below ``trainer`` and the like), then from the
    metadata, then from the name. Checkpoints without a step are sorted by epoch, if all have one.

    Args:
        root: a directory, or one checkpoint. Of a URL (extra ``remote``) only itself and what is
            directly in it, unless ``pattern`` says more.
        pattern: a glob relative to ``root`` that the paths must match, as in ``Path.glob``.
        limits: sizes above these are refused; ``None`` is ``jsonckpt.Limits()``.
        storage_options: passed to fsspec for URLs.

    Raises:
        CheckpointNotFoundError: there is no such directory.
        ArgumentError: ``pattern`` is no relative glob.
        JsonckptError: a remote directory cannot be listed or read.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as inputs:
    ...     for name, step in (("my-run", 500), ("my-run-2", 600)):
    ...         _ = jsonckpt.save({"w": torch.ones(2), "step": step}, f"{inputs}/{name}")
    ...     found = find(inputs)
    >>> [(one.name, one.step) for one in found]
    [('my-run-2', 600), ('my-run', 500)]
    >>> found.newest.path.name
    'my-run-2'
    """
    options = options_for(limits, storage_options)
    text = path_text(root, "root")
    if pattern is not None and not (
        isinstance(pattern, str) and pattern.lstrip("/") == pattern != ""
    ):
        raise ArgumentError(f"pattern must be a relative glob, not {quote(pattern)}")
    walk = Walk()
    places = (
        _remote(text, pattern, options.storage_options)
        if is_url(text)
        else _local(Path(text), pattern, walk)
    )
    looked = [look_at(place, options) for place in places]
    return FoundCheckpoints(text, ordered(filter(None, looked)), tuple(walk.unread))


def ordered(found: Iterable[FoundCheckpoint]) -> tuple[FoundCheckpoint, ...]:
    """The whole ones, the torn ones, the convertible ones, each the newest first."""
    items = list(found)
    groups = (
        [one for one in items if one.valid],
        [one for one in items if one.torn],
        [one for one in items if one.convertible],
    )
    return tuple(one for group in groups for one in newest_first(group))


def _local(root: Path, pattern: str | None, walk: Walk) -> Iterator[Place]:
    try:
        root.stat()
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "there is no such directory", file=root, hint=hint_for_missing(root)
        ) from error
    except OSError as error:  # for example a circle of links
        walk.unread.append(f"{root}: cannot open: {error.strerror}")
        return
    if pattern is not None:
        yield from walk.matching(root, pattern)
    elif root.is_dir():
        yield from walk.below(root)
    elif (place := walk.at(root)) is not None:
        yield place


def _remote(url: str, pattern: str | None, options: Mapping[str, Any] | None) -> Iterable[Place]:
    from ..storage.remote import listing

    entries = listing(url, pattern or "*", options)
    if pattern is None:
        yield Place(url, url.rstrip("/").rpartition("/")[2], True, 0.0)
    for found, is_directory, changed in entries:
        name = found.rstrip("/").rpartition("/")[2]
        # Lightning's names stand for files of others, too. Each costs a request.
        may_be = is_directory or is_single(name) or name.endswith(".ckpt") or pattern is not None
        if may_be and not is_ignored(name):
            yield Place(found, name, is_directory, changed)
