"""``load`` and ``stream``: read the state or the tensors of a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import ArgumentError, JsonckptError, is_change_of_text, is_refusal
from ..format.json_text import BRIEF, collector_paused
from ..format.limits import Limits
from ..progress import progress_bar
from ..state.selector import Selector
from ..storage.file_objects import is_file_object
from ..storage.file_source import FileSource
from ..storage.locate import locate
from ..storage.path_arguments import path_text
from ..tensors.map_location import MapLocation
from .allocation import Filling, allocate_targets
from .container import Container, open_container, read_consistent
from .forward import ForwardReader
from .options import ReadOptions
from .restore import StateBuilder
from .selection import TensorSelection


def load(
    path: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    weights_only: bool | None = True,
    verify: bool = True,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> Any:
    """Read a checkpoint: the state as it was given to :func:`jsonckpt.save`.

    Args:
        path: a directory, a ``.json`` or ``.json.zst`` file, a URL (extra ``remote``), or a binary
            file object (a pipe), which is read forward.
        map_location: as in ``torch.load``: ``None`` (back to the device it was saved from), a
            device or its name, a dict of names, or a callable on ``(storage, location)``.
        include, exclude: names, globs (``"/model_state_dict/*"``), sequences of these, or a
            callable on names. Tensors that are not selected are left out of the tree. The first
            slash of a name is optional. Each pattern must select something.
        weights_only: as in ``torch.load``; ``True`` or ``None``, since nothing is ever unpickled.
        verify: compare the checksums of all data. Everything else is always checked.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        limits: sizes above these are refused; ``None`` is ``jsonckpt.Limits()``.
        storage_options: passed to fsspec for URLs.
        expected_digest: the ``digest`` of a save with ``checksum="sha256"`` or ``"blake3"``.
            Any other checkpoint is refused before a tensor is read. A file object has its seal at
            the end and is refused before a tensor is returned.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, FormatError, IntegrityError, LimitError:
            see :class:`jsonckpt.JsonckptError`; no tensor is returned in any of these cases.
        StateMismatchError: a pattern in ``include`` or ``exclude`` selects nothing.
        ArgumentError: ``weights_only=False``, or an ``expected_digest`` that cannot pin a
            checkpoint.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"a": torch.arange(3), "b": torch.zeros(2)}, directory + "/c.json")
    ...     jsonckpt.load(directory + "/c.json", exclude="/b")
    {'a': tensor([0, 1, 2])}
    """
    if weights_only is not None and not weights_only:
        raise ArgumentError(
            "weights_only=False asks for unpickling, which jsonckpt never does; leave it out"
        )
    options = ReadOptions.of(
        verify=verify,
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    return load_selected(path, TensorSelection.of(include, exclude, map_location), options)


def load_selected(
    path: str | os.PathLike[str] | Any, selection: TensorSelection, options: ReadOptions
) -> Any:
    """:func:`load`, with the arguments as two objects."""
    if is_file_object(path, "readinto", "read"):
        return ForwardReader(selection, options).load(FileSource(path))
    return read_consistent(path, options, lambda container: load_container(container, selection))


def load_container(
    container: Container, selection: TensorSelection, *, progress: bool | None = None
) -> Any:
    """The state of an opened checkpoint.

    Args:
        progress: replaces the ``progress`` of the container's options.
    """
    show = container.options.progress if progress is None else progress
    is_small = container.manifest.nbytes < BRIEF
    with container.errors(), collector_paused() if is_small else nullcontext():
        by_name = container.manifest.by_name
        tensors = container.manifest.tensors
        builder = StateBuilder.of(container, selection)
        builder.check_selectors()
        builder.check_files(container)
        wanted = [stored for name, stored in tensors.items() if builder.wants(name)]
        filling = Filling(wanted, allocate_targets(selection, wanted))
        sinks = filling.sinks
        if builder.wants_all:
            # The whole file is read. The text of records that the state does not use is checked,
            # too, as in the forward reader.
            sinks |= dict.fromkeys(name for name in by_name if name not in filling.records)
        total = sum(by_name[name].nbytes for name in sinks)
        with progress_bar("load", total, show=show) as advance:
            for shard in container.shards():
                shard.read(sinks, advance)
                for entry in shard.entries:
                    filled = filling.done(entry.name)
                    if filled is not None:
                        stored, target = filled
                        tensor = selection.placement.relocate(target.finish(), stored.device)
                        builder.keep(stored.name, tensor)
        return builder.finish()


def stream(
    source: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read forward only, tensor by tensor: ``(name, tensor)`` as they come.

    Each tensor is fully checked before it is yielded. Damage to the rest of the file raises an
    error when it is reached. It needs memory for one tensor and a few chunks.

    Args:
        source: a path or URL as for :func:`load`, or a binary file object, seekable or not
            (``sys.stdin.buffer``), or a single shard of a directory.
        map_location, include, exclude, verify, limits, storage_options: as for :func:`load`.
        expected_digest: as for :func:`load`. A path is checked before anything is yielded. The
            seal of a file object comes last, so an :class:`~jsonckpt.IntegrityError` may follow
            all tensors: trust none of them before the end.

    >>> import io, torch, jsonckpt
    >>> pipe = io.BytesIO()
    >>> _ = jsonckpt.save({"w": torch.ones(2)}, pipe)
    >>> list(jsonckpt.stream(io.BytesIO(pipe.getvalue())))
    [('/w', tensor([1., 1.]))]
    """
    options = ReadOptions.of(
        verify=verify,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    reader = ForwardReader(TensorSelection.of(include, exclude, map_location), options)
    if is_file_object(source, "readinto", "read"):
        yield from reader.tensors(FileSource(source, "source"))
        return
    path_text(source, "source")
    location, name = locate(source, storage_options, follow=options.limits.follow)
    if name is None or expected_digest is not None:
        container = open_container(source, options)
        with container.errors():
            yield from reader.tensors_in(container)
        return
    begun = False
    try:
        with location.stream(name, zstd_window=options.limits.zstd_window) as opened:
            for named in reader.tensors(opened):
                begun = True
                yield named
        return
    except JsonckptError as error:
        error.at(file=location.where(name))
        if begun or is_refusal(error):
            raise
        container = _in_any_layout(source, options, error)
    with container.errors():
        yield from reader.again().tensors_in(container)


def _in_any_layout(
    path: str | os.PathLike[str], options: ReadOptions, error: JsonckptError
) -> Container:
    """A file that could not be read forward once, opened so that it is read twice.

    Raises:
        JsonckptError: ``error``, or what is wrong with a file that a JSON tool wrote again.
    """
    try:
        container = open_container(path, options)
    except JsonckptError as other:
        if is_change_of_text(error):
            raise other from other.__cause__
        raise error from error.__cause__
    if not container.any_layout:
        raise error from error.__cause__
    return container
