"""``load_into``: copy a checkpoint into tensors that exist, without a second copy of the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jsonckpt.digests import check_expected
from jsonckpt.errors import JsonckptError, StateMismatchError
from jsonckpt.limits import DEFAULT_LIMITS, Limits
from jsonckpt.matching import Match, Slot, SlotDoor, match
from jsonckpt.names import Selector
from jsonckpt.opening import Container, read_steadily
from jsonckpt.progress import progress_bar
from jsonckpt.registry import default_rules
from jsonckpt.restoring import Loading, Wishes, new_target, thread_count
from jsonckpt.sharing import StateReader
from jsonckpt.tensors import Target
from jsonckpt.tree import decode_state

__all__ = ["LoadResult", "load_into"]


@dataclass(frozen=True)
class LoadResult:
    """What :func:`load_into` did.

    Attributes:
        loaded: names of the tensors that were filled.
        missing: names that the target has and the checkpoint lacks.
        unexpected: names that the checkpoint has and the target lacks.
        mismatched: ``"name: what differs"``; these were left as they were.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()


class _Fan:
    """One record that goes into several tensors."""

    def __init__(self, into: _Into, targets: list[Target]) -> None:
        self._into = into
        self._targets = targets

    def window(self, start: int, stop: int) -> memoryview | None:
        """Memory only when there is but one."""
        self._into.began = True
        return self._targets[0].window(start, stop) if len(self._targets) == 1 else None

    def write(self, start: int, data: memoryview) -> None:
        """Copy into each."""
        for target in self._targets:
            window = target.window(start, start + len(data))
            if window is None:
                target.write(start, data)
            else:
                window[:] = data


def load_into(
    target: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    include: Selector | None = None,
    exclude: Selector | None = None,
    cast: bool = False,
    verify: bool = True,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> LoadResult:
    """Copy a checkpoint into ``target`` in place, without a second copy of the state.

    Args:
        target: a nesting of dicts and lists shaped as the saved state, with tensors, modules,
            optimizers and objects with ``load_state_dict`` in it; or one of these alone. Values
            that are not tensors are replaced by the saved ones. Optimizer state keeps its saved
            dtype, and is created where the optimizer has none yet.
        strict: raise when the tensors of target and checkpoint differ; ``False`` copies what fits.
        include, exclude: as for :func:`jsonckpt.load`; what is left out is not missed.
        cast: allow another dtype in the target; values are converted.
        verify, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.

    Returns:
        a :class:`LoadResult`.

    Raises:
        StateMismatchError: with all names; nothing has been changed.
        JsonckptError: damage found while copying: the target is then partly overwritten.

    >>> import tempfile, torch, jsonckpt
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"model": model.state_dict(), "epoch": 3}, directory)
    ...     state = {"model": torch.nn.Linear(2, 1), "epoch": 0}
    ...     jsonckpt.load_into(state, directory).loaded, state["epoch"]
    (('/model/weight', '/model/bias'), 3)
    """
    limits = limits or DEFAULT_LIMITS
    check_expected(expected_digest, verify=verify)
    into = _Into(
        target, strict, Wishes.of(include, exclude), cast, verify, thread_count(threads), progress,
        limits,
    )  # fmt: skip
    return read_steadily(
        path,
        into.fill,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
        # Tensors of two checkpoints must not end up in one target.
        may_retry=lambda: not into.began,
    )


@dataclass
class _Into:
    """A target, and whether something has been written to it."""

    target: Any
    strict: bool
    wishes: Wishes
    cast: bool
    verify: bool
    threads: int
    progress: bool
    limits: Limits
    began: bool = False

    def fill(self, container: Container) -> LoadResult:
        return _fill(self, container)


def _fill(into: _Into, container: Container) -> LoadResult:
    target, strict, wishes, cast = into.target, into.strict, into.wishes, into.cast
    by_name = container.manifest.by_name

    def read_tensors(records: Iterable[str]) -> dict[str, torch.Tensor]:
        made = {}
        for record in records:
            entry = by_name[record]
            made[record] = new_target(record, entry.dtype, entry.shape, torch.device("cpu"))
        read(made)
        return {record: target.finish() for record, target in made.items()}

    def read(sinks: Mapping[str, Any], advance: Callable[[int], None] | None = None) -> None:
        for shard, entries in container.shards():
            container.read(
                shard,
                entries,
                sinks,
                limits=into.limits,
                threads=into.threads,
                verify=into.verify,
                progress=advance,
            )

    try:
        copies = container.copies(into.limits)
        loading = Loading(container.manifest.state, wishes, copies)
        loading.check(by_name)
        # Before anything is allocated: the limit on that rests on the files' true sizes.
        needed = (entry.shard for name, entry in by_name.items() if loading.wants(name))
        container.check_files(needed, copies)
        door = SlotDoor(container, wishes, read_tensors, copies)
        value = decode_state(container.manifest.state, door, rules=default_rules())
    except JsonckptError as error:
        error.at(file=container.path)
        raise
    plan = Match(cast)
    match(value, target, "", plan, None)
    plan.missing = [name for name in plan.missing if wishes.chosen(name)]
    if strict and (plan.missing or plan.unexpected or plan.mismatched):
        raise StateMismatchError(
            "the checkpoint and the target differ; nothing has been changed",
            missing=plan.missing,
            unexpected=plan.unexpected,
            mismatched=plan.mismatched,
            file=container.path,
            hint="Pass strict=False to copy what fits, include= or exclude= to choose, "
            "cast=True to convert dtypes.",
        )
    sinks: dict[str, list[Target]] = {}
    views: list[tuple[Slot, torch.Tensor | None]] = []
    made: dict[str, tuple[Slot, Target]] = {}
    bases: set[str] = set()
    for slot, tensor in plan.fills:
        if slot.view is None:
            filled = Target.into(tensor, slot.dtype, slot.shape, cast=cast)
            sinks.setdefault(slot.record, []).append(filled)
        else:
            views.append((slot, tensor))
            bases.add(slot.record)
    for name, (slot, device) in plan.fresh.items():
        if slot.view is None:
            fresh = new_target(name, slot.dtype, slot.shape, device)
            made[name] = slot, fresh
            sinks.setdefault(slot.record, []).append(fresh)
        else:
            views.append((slot, None))
            bases.add(slot.record)
    base_targets = {}
    for record in bases:
        entry = by_name[record]
        base_targets[record] = new_target(record, entry.dtype, entry.shape, torch.device("cpu"))
        sinks.setdefault(record, []).append(base_targets[record])
    total = sum(by_name[record].nbytes for record in sinks)
    with progress_bar("load", total, show=into.progress) as advance:
        read({record: _Fan(into, targets) for record, targets in sinks.items()}, advance)
    tensors = {name: target_.finish() for name, (_, target_) in made.items()}
    for targets in sinks.values():
        for target_ in targets:
            target_.finish()
    loaded_bases = {record: target_.finish() for record, target_ in base_targets.items()}
    for slot, tensor_ in views:
        viewed = StateReader(loaded_bases, {slot.name}, copies).get("$view", slot.view, slot.name)
        if tensor_ is None:
            device = plan.fresh[slot.name][1]
            if viewed.device != device:
                copies.charge(viewed.nbytes, slot.name)
            tensors[slot.name] = viewed.to(device)
        else:
            with torch.no_grad():
                tensor_.copy_(viewed)
    for action in plan.actions:
        action(tensors)
    return LoadResult(
        tuple(dict.fromkeys([*(slot.name for slot, _ in plan.fills), *plan.fresh])),
        tuple(plan.missing),
        tuple(plan.unexpected),
        tuple(plan.mismatched),
    )
