"""``load_into``: copies a checkpoint into existing tensors, without a second copy of the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import StateMismatchError
from ..format.json_text import collector_paused
from ..format.limits import Limits
from ..load.container import Container, read_consistent
from ..load.options import ReadOptions, TensorSelection
from ..load.restore import StateBuilder
from ..state.registry import default_rules
from ..state.selector import Selector
from ..state.tree import decode_state
from ..tensors.buffers import Target
from .aliases import resolve_aliases
from .matching import Match, check_target, match
from .placeholders import LEFT_OUT, PlaceholderReader, leaves_in, names_in
from .reader import IntoReader


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

    Torch's own modules and optimizers are filled in place. One that has its own
    ``load_state_dict``, ``_load_from_state_dict`` or hooks on them, or whose ``state_dict`` returns
    copies, is loaded by its ``load_state_dict``. That takes memory for a second copy of it.
    Optimizer state goes to parameters by name where both sides have ``param_names``, else by
    position. It must be of the same kind of optimizer and have the parameters' shapes.

    Tensors of the target may share memory where those of the checkpoint share it in the same way,
    or have equal values.

    Args:
        target: nested dicts and lists in the shape of the saved state, with tensors, modules,
            optimizers and objects with ``load_state_dict`` in them; or one of these alone. Values
            that are not tensors are replaced by the saved ones. Optimizer state keeps its saved
            dtype, and is created where the optimizer has none yet.
        strict: raise when the tensors of target and checkpoint differ; ``False`` copies what fits.
        include, exclude: as for :func:`jsonckpt.load`; a tensor that is left out is not missing.
            Each pattern must select a tensor of the checkpoint or of the target, with or without
            ``strict``.
        cast: allow another dtype in the target; values are converted.
        verify, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.

    Returns:
        a :class:`LoadResult`.

    Raises:
        StateMismatchError: with all names; nothing has been changed. Or a ``load_state_dict``
            refused its state: the objects before it have been loaded, no tensor has been filled.
        ArgumentError: the target cannot be filled.
        JsonckptError: damage was found during the copy. The target is then partly overwritten.

    >>> import tempfile, torch, jsonckpt
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"model": model.state_dict(), "epoch": 3}, directory)
    ...     state = {"model": torch.nn.Linear(2, 1), "epoch": 0}
    ...     jsonckpt.load_into(state, directory).loaded, state["epoch"]
    (('/model/weight', '/model/bias'), 3)
    """
    check_target(target)
    options = ReadOptions.of(
        verify=verify,
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    began = False

    def note_change() -> None:
        nonlocal began
        began = True

    selection = TensorSelection.of(include, exclude)

    def read(container: Container) -> LoadResult:
        with container.errors():
            return _load_into(target, container, selection, Match(cast, strict), note_change)

    # Tensors of two checkpoints must not end up in one target.
    return read_consistent(path, options, read, may_retry=lambda: not began)


def _load_into(
    target: Any,
    container: Container,
    selection: TensorSelection,
    plan: Match,
    on_write: Callable[[], None],
) -> LoadResult:
    """Match the whole state first, then load it."""
    builder = StateBuilder.of(container, selection)
    # Before any allocation: the limit on it depends on the true sizes of the files.
    builder.check_files(container)
    reader = IntoReader(container, builder.copies, on_write)
    placeholders = PlaceholderReader(
        container.manifest.by_name, selection.chosen, reader.read_records, reader.copies
    )
    value = decode_state(container.manifest.state, placeholders, rules=default_rules())
    with collector_paused():
        match(value, target, "", plan, None)
        # A pattern may also select what only the target has.
        builder.check_selectors(plan.missing)
        plan.missing = [name for name in plan.missing if selection.chosen(name)]
        if plan.is_empty and any(item is not LEFT_OUT for item in leaves_in(value)):
            plan.mismatched.append("/: nothing in the target matches anything in the checkpoint")
        copies = resolve_aliases(plan, reader.same_values)
        if plan.strict and (plan.missing or plan.unexpected or plan.mismatched):
            raise StateMismatchError(
                "the checkpoint and the target differ; nothing has been changed",
                missing=plan.missing,
                unexpected=plan.unexpected,
                mismatched=plan.mismatched,
                file=container.path,
                hint="Pass strict=False to copy what fits, include= or exclude= to choose, "
                "cast=True to convert dtypes.",
            )
        targets = [
            (copy, Target.into(copy.tensor, copy.source.dtype, copy.source.shape, cast=plan.cast))
            for copy in copies
        ]
    filled = {copy.source.name for copy in copies}
    filled |= {name for copy in copies for name, _ in copy.aliases}
    names = [source.name for source, _ in plan.in_place if source.name in filled]
    names += [*plan.allocated, *(name for one in plan.own_loaders for name in names_in(one.value))]
    reader.load_objects(plan)
    reader.load_tensors(plan, targets)
    return LoadResult(
        tuple(dict.fromkeys(names)),
        tuple(plan.missing),
        tuple(plan.unexpected),
        tuple(plan.mismatched),
    )
