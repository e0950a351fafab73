"""``load`` and ``stream``: from a checkpoint back to the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch

from ..errors import ArgumentError, JsonckptError
from ..format.checksums import check_expected
from ..format.json_text import BRIEF, collector_paused
from ..format.limits import Limits, checked_limits
from ..parallel import thread_count
from ..progress import progress_bar
from ..state.selector import Selector
from ..storage.locate import locate
from ..tensors.buffers import Target
from ..tensors.map_location import MapLocation
from .container import Container, open_container, read_steadily
from .forward import Forward, as_source, is_file_object
from .restore import Allocate, LoadOptions, StateBuilder, allocate_targets


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
    """Read a checkpoint back: the state as it was given to :func:`jsonckpt.save`.

    Args:
        path: a directory, a ``.json`` or ``.json.zst`` file, a URL (extra ``remote``), or a binary
            file object (a pipe), which is read forward.
        map_location: as in ``torch.load``: ``None`` (back to the device it was saved from), a
            device or its name, a dict of names, or a callable on ``(storage, location)``.
        include, exclude: names, globs (``"/model_state_dict/*"``), sequences of these, or a
            callable on names. A tensor that is left out is left out of the tree, too. The slash
            that names begin with may be left out. Each pattern must select something.
        weights_only: accepted for ``torch.load``'s sake (``None``, too); nothing is ever
            unpickled.
        verify: compare the checksums of all data. Everything else is always checked.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        limits: what is too large; ``None`` is ``jsonckpt.Limits()``.
        storage_options: passed to fsspec for URLs.
        expected_digest: the ``digest`` of a save with ``checksum="sha256"`` or ``"blake3"``:
            anything else is refused before a tensor is read (a file object, whose seal stands at
            its end, before a tensor is returned).

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, FormatError, IntegrityError, LimitError:
            see :mod:`jsonckpt.errors`; no tensor is returned in any of these cases.
        StateMismatchError: a pattern in ``include`` or ``exclude`` selects nothing.
        ArgumentError: ``weights_only=False``; an ``expected_digest`` that pins nothing.

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
    return _load(
        path,
        map_location,
        include=include,
        exclude=exclude,
        verify=verify,
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )


def _load(
    path: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    verify: bool = True,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
    allocate: Allocate | None = None,
    streaming: bool = False,
) -> Any:
    """:func:`load` with what only this package asks for.

    Args:
        allocate: makes the storage of a CPU tensor from its bytes, in a mapped file for example.
        streaming: use the forward-only reader although the ranges are known.
    """
    limits = checked_limits(limits)
    check_expected(expected_digest, verify=verify)
    options = LoadOptions.of(include, exclude, map_location, allocate)
    if is_file_object(path):
        forward = Forward(options, limits, verify, expected_digest, whole=True)
        with progress_bar("load", None, show=progress) as advance:
            return _load_forward(path, forward, advance)

    def read(container: Container) -> Any:
        return load_container(
            container,
            options,
            limits=limits,
            threads=threads,
            verify=verify,
            progress=progress,
            streaming=streaming,
        )

    return read_steadily(
        path,
        read,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )


def load_container(
    container: Container,
    options: LoadOptions,
    *,
    limits: Limits,
    threads: int | None,
    verify: bool = True,
    progress: bool = False,
    streaming: bool = False,
) -> Any:
    """The state of an opened checkpoint."""
    brief = container.manifest.nbytes < BRIEF
    try:
        with collector_paused() if brief else nullcontext():
            return _load_container(
                container,
                options,
                limits=limits,
                threads=thread_count(threads),
                verify=verify,
                progress=progress,
                streaming=streaming,
            )
    except JsonckptError as error:
        error.at(file=container.path)
        raise


def _load_container(
    container: Container,
    options: LoadOptions,
    *,
    limits: Limits,
    threads: int,
    verify: bool,
    progress: bool,
    streaming: bool,
) -> Any:
    by_name = container.manifest.by_name
    copies = container.copies(limits)
    loading = StateBuilder(container.manifest.state, options, copies)
    loading.check(by_name)
    loading.check_selectors()
    loading.check_files(container)
    targets = allocate_targets(
        options, [entry for name, entry in by_name.items() if loading.wants(name)]
    )
    sinks: dict[str, Target | None] = {
        name: target for name, target in targets.items() if target.needs_data
    }
    if loading.wants_all:
        # Records that the state does not need are part of the file that is asked for: their text
        # is checked, too, as the forward reader does.
        sinks |= dict.fromkeys(name for name in by_name if not loading.wants(name))
    total = sum(by_name[name].nbytes for name in sinks)
    with progress_bar("load", total, show=progress) as advance:
        for shard, entries in container.shards():
            container.read(
                shard,
                entries,
                sinks,
                limits=limits,
                threads=threads,
                verify=verify,
                streaming=streaming,
                progress=advance,
            )
            for entry in entries:
                target = targets.pop(entry.name, None)
                if target is not None:
                    tensor = options.placement.relocate(target.finish(), entry.device)
                    loading.keep(entry.name, tensor)
    return loading.finish()


def _load_forward(stream: Any, forward: Forward, advance: Callable[[int], None] | None) -> Any:
    for record in forward.records(as_source(stream)):
        for _ in forward.close(record, keep=True):
            pass
        if advance is not None:
            advance(record.header.nbytes)
    assert forward.loading is not None
    return forward.loading.finish()


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

    Each tensor has been checked wholly when it is yielded; whether the file is whole is known at
    its end, where an error is raised otherwise. Memory is one tensor and a few chunks.

    Args:
        source: a path or URL as for :func:`load`, or a binary file object, seekable or not
            (``sys.stdin.buffer``). A lone shard can be read, too.
        map_location, include, exclude, verify, limits, storage_options: as for :func:`load`.
        expected_digest: as for :func:`load`. Of a path nothing is yielded that is not pinned; of a
            file object the seal comes last, so an :class:`~jsonckpt.IntegrityError` may come after
            all tensors: trust none of them before the end.

    >>> import io, torch, jsonckpt
    >>> pipe = io.BytesIO()
    >>> _ = jsonckpt.save({"w": torch.ones(2)}, pipe)
    >>> list(jsonckpt.stream(io.BytesIO(pipe.getvalue())))
    [('/w', tensor([1., 1.]))]
    """
    limits = checked_limits(limits)
    check_expected(expected_digest, verify=verify)
    forward = Forward(
        LoadOptions.of(include, exclude, map_location), limits, verify, expected_digest
    )
    if is_file_object(source):
        yield from forward.tensors(as_source(source))
        return
    place, name = locate(source, storage_options, follow=limits.follow)
    if name is not None and expected_digest is None:
        try:
            with place.stream(name, zstd_window=limits.zstd_window) as opened:
                yield from forward.tensors(opened)
        except JsonckptError as error:
            error.at(file=place.where(name))
            raise
        return
    container = open_container(
        source, limits=limits, storage_options=storage_options, expected_digest=expected_digest
    )
    try:
        yield from forward.container(container)
    except JsonckptError as error:
        error.at(file=container.path)
        container.explain(error)
        raise
