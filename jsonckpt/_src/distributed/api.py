"""``save``, ``load`` and ``async_save`` of distributed states, with our storage and planners."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

from ..errors import JsonckptError
from .planners import JsonLoadPlanner, JsonSavePlanner
from .reader import JsonStorageReader
from .writer import JsonStorageWriter

#: torch's own background save of this process, and the group of its messages.
_pending: Future[Any] | None = None
_ALONE = "torch.distributed is disabled"
_groups: dict[int, dist.ProcessGroup] = {}


def save(
    state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    **options: Any,
) -> None:
    """Save a distributed state as one JSON checkpoint. All ranks call it.

    It is ``torch.distributed.checkpoint.save`` with :class:`JsonStorageWriter` and
    :class:`JsonSavePlanner`. Without an initialized process group, this process saves alone.

    Args:
        state_dict: nested; objects with ``state_dict()`` at its top are asked for theirs.
        path: a directory, or a URL of one.
        process_group: of the ranks that save; ``None`` is the default group.
        no_dist: this process saves alone.
        options: of :class:`JsonStorageWriter`.

    Raises:
        JsonckptError: on every rank, if one fails; the message says which one. The checkpoint that
            was at ``path`` is whole.
    """
    writer = JsonStorageWriter(path, **options)
    with _alone(no_dist) as alone, _failures(alone, writer):
        state_dict_saver.save(
            dict(state_dict),
            storage_writer=writer,
            planner=JsonSavePlanner(),
            process_group=process_group,
            no_dist=alone,
        )


def load(
    state_dict: dict[str, Any],
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    allow_partial_load: bool = False,
    cast: bool = False,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    **options: Any,
) -> None:
    """Load a JSON checkpoint into a distributed state, in place. All ranks call it.

    It is ``torch.distributed.checkpoint.load`` with :class:`JsonStorageReader` and
    :class:`JsonLoadPlanner`. The checkpoint may be of any number of ranks, or one of
    :func:`jsonckpt.save`.

    Args:
        state_dict: as for :func:`save`. Tensors are filled in place, other values are replaced.
        path: a directory, a file or a URL.
        strict, allow_partial_load, cast: as for :class:`JsonLoadPlanner`.
        process_group, no_dist: as for :func:`save`.
        options: of :class:`JsonStorageReader`.

    Raises:
        StateMismatchError: names are missing or unexpected, or shapes or dtypes differ.
        JsonckptError: on every rank, if one fails; the message says which one.
    """
    planner = JsonLoadPlanner(strict=strict, allow_partial_load=allow_partial_load, cast=cast)
    with _alone(no_dist) as alone, _failures(alone):
        state_dict_loader.load(
            state_dict,
            storage_reader=JsonStorageReader(path, **options),
            planner=planner,
            process_group=process_group,
            no_dist=alone,
        )


def async_save(
    state_dict: Mapping[str, Any],
    path: str | os.PathLike[str],
    *,
    process_group: dist.ProcessGroup | None = None,
    no_dist: bool = False,
    async_checkpointer_type: Any = None,
    async_stager: Any = None,
    **options: Any,
) -> Any:
    """Copy a distributed state, return, and save the copy in the background. All ranks call it.

    It is ``torch.distributed.checkpoint.async_save`` with :class:`JsonStorageWriter` and
    :class:`JsonSavePlanner`. One save runs at a time: a second call first waits for the last one.

    Args:
        state_dict, path, no_dist: as for :func:`save`.
        process_group: of the messages in the background. Nothing else may use it meanwhile.
            ``None`` makes a group with gloo for them, once.
        async_checkpointer_type, async_stager: as torch has them.
        options: of :class:`JsonStorageWriter`. ``threads`` is 1, which leaves the other processors
            to the training.

    Returns:
        what torch returns: a future whose ``result()`` waits and raises the error of the save
        (torch's ``CheckpointException``, with the error of each rank in ``failures``). With a
        stager of your own it may be an ``AsyncSaveResponse``.
    """
    global _pending
    if _pending is not None:
        _pending.exception()
        _pending = None
    others: dict[str, Any] = {}
    if async_checkpointer_type is not None:
        others["async_checkpointer_type"] = async_checkpointer_type
    if async_stager is not None:
        others["async_stager"] = async_stager
    writer = JsonStorageWriter(path, **{"threads": 1, **options})
    alone = _is_alone(no_dist)
    if alone:  # the warning comes from a thread, later
        warnings.filterwarnings("ignore", _ALONE, UserWarning)
    response = state_dict_saver.async_save(
        dict(state_dict),
        storage_writer=writer,
        planner=JsonSavePlanner(),
        process_group=None if alone else process_group or _own_group(),
        no_dist=alone,
        **others,
    )
    pending: Future[Any] = getattr(response, "upload_completion", response)  # type: ignore[arg-type]
    pending.add_done_callback(lambda future: _clean_up(writer, future.exception()))
    _pending = pending
    return response


def _clean_up(writer: JsonStorageWriter, error: BaseException | None) -> None:
    """Remove what a background save wrote before it failed on some rank."""
    if isinstance(error, CheckpointException):
        writer.abandon_after({rank: cause for rank, (cause, _) in error.failures.items()})


def _own_group() -> dist.ProcessGroup:
    """A group for the messages of background saves, so that those of the training are apart."""
    default = id(dist.group.WORLD)
    if default not in _groups:
        _groups.clear()
        _groups[default] = dist.new_group(backend="gloo")
    return _groups[default]


def _is_alone(no_dist: bool) -> bool:
    return no_dist or not dist.is_initialized()


@contextmanager
def _alone(no_dist: bool) -> Iterator[bool]:
    """Whether this process is alone. torch warns of that, here it is meant."""
    if not _is_alone(no_dist):
        yield False
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", _ALONE, UserWarning)
        yield True


@contextmanager
def _failures(alone: bool, writer: JsonStorageWriter | None = None) -> Iterator[None]:
    """Raise the error of the rank that failed, with its number, instead of torch's exception."""
    try:
        yield
    except CheckpointException as error:
        failures = sorted(error.failures.items())
        if writer is not None:
            writer.abandon_after({rank: cause for rank, (cause, _) in failures})
        rank, (cause, _) = failures[0]
        if not isinstance(cause, JsonckptError):
            raise
        if alone:
            raise cause from None
        others = [str(other) for other, _ in failures[1:]]
        also = f" (also ranks {', '.join(others)})" if others else ""
        cause.message = f"rank {rank}{also}: {cause.message}"
        raise cause from None
