"""``load_into``: copies a checkpoint into existing tensors, without a second copy of the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import StateMismatchError
from ..format.json_text import collector_paused
from ..format.limits import Limits
from ..load.container import Container, read_consistent
from ..load.options import ReadOptions
from ..load.restore import StateBuilder
from ..load.selection import TensorSelection
from ..shown import ShortRepr
from ..state.registry import default_rules
from ..state.selector import Selector
from ..state.tree import decode_state
from ..tensors.buffers import Target
from .aliases import resolve_aliases, settle_ties
from .diagnosis import why_names_differ
from .matching import check_target, match
from .names import Prefixes
from .placeholders import LEFT_OUT, PlaceholderReader, leaves_in, names_in
from .plan import CHOOSE, Plan
from .reader import IntoReader


@dataclass(frozen=True, repr=False)
class LoadResult(ShortRepr):
    """What :func:`load_into` did.

    Attributes:
        loaded: names of the tensors that were filled.
        missing: names that the target has and the checkpoint lacks.
        unexpected: names that the checkpoint has and the target lacks.
        mismatched: ``"name: what differs"``; these were left as they were.
        renamed: names in the checkpoint that ``strip_prefix`` changed, with those in the target.
        kept: names of values that are no tensors, which the checkpoint lacks. They are as before.
        hint: what explains names that differ, such as a prefix; empty if nothing does.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    renamed: tuple[tuple[str, str], ...] = ()
    kept: tuple[str, ...] = ()
    hint: str = ""


def load_into(
    target: Any,
    path: str | os.PathLike[str],
    *,
    strict: bool = True,
    include: Selector | None = None,
    exclude: Selector | None = None,
    cast: bool = False,
    strip_prefix: str | Sequence[str] | None = None,
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
    or have equal values. A tied tensor that the checkpoint lacks is not missing if its memory is
    filled under another name. A tied one that the target lacks is not unexpected.

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
        strip_prefix: a prefix of the names in state dicts, or several, such as ``"module."``. Names
            of the checkpoint and of the target are compared without it, so it may be on either
            side. It is whole parts of a name, and is removed at the beginning as often as it is
            there; what torch's wrappers add (``module.``, ``_orig_mod.``) also in the middle. Names
            of parameters in optimizers are compared in the same way.
        verify, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.

    Returns:
        a :class:`LoadResult`.

    Raises:
        StateMismatchError: with all names; nothing has been changed. The hint says if they differ
            by a prefix, or lie in another place. Also if a ``strip_prefix`` is in no name, or gives
            two tensors one name. Or a ``load_state_dict`` refused its state: the objects before it
            have been loaded, no tensor has been filled.
        ArgumentError: the target cannot be filled.
        JsonckptError: damage was found during the copy. The target is then partly overwritten.

    >>> import tempfile, torch, jsonckpt
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"model": model.state_dict(), "epoch": 3}, directory)
    ...     state = {"model": torch.nn.Linear(2, 1), "epoch": 0}
    ...     jsonckpt.load_into(state, directory).loaded, state["epoch"]
    (('/model/weight', '/model/bias'), 3)

    The weights of a wrapped model in a plain one:

    >>> wrapped = torch.nn.DataParallel(model)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save(wrapped.state_dict(), directory)
    ...     jsonckpt.load_into(model, directory, strip_prefix="module.").renamed
    (('/module.weight', '/weight'), ('/module.bias', '/bias'))
    """
    options = ReadOptions.of(
        verify=verify,
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    selection = TensorSelection.of(include, exclude)
    settings = Settings(strict=strict, cast=cast, prefixes=Prefixes.of(strip_prefix).given)
    return fill(target, path, selection, settings, options)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a target is filled.

    Attributes:
        strict, cast, prefixes: as for :func:`load_into`.
        names: by the id of a module, what each of its names is in the checkpoint.
        ways_out: what to do about names that differ.
        check: is given the state of the checkpoint, with placeholders for its tensors, and the
            plan, to which it adds what else does not fit.
        before_filling: is called once each ``load_state_dict`` was called, and before any tensor
            is filled. It may raise.
    """

    strict: bool = True
    cast: bool = False
    prefixes: tuple[str, ...] = ()
    names: Mapping[int, Callable[[str], str]] = field(default_factory=dict)
    ways_out: str = CHOOSE
    check: Callable[[Any, Plan], None] | None = None
    before_filling: Callable[[], None] | None = None

    def plan(self) -> Plan:
        """A plan with nothing in it."""
        prefixes = Prefixes(self.prefixes)
        return Plan(self.cast, self.strict, self.ways_out, prefixes, self.names)


def fill(
    target: Any,
    path: str | os.PathLike[str],
    selection: TensorSelection,
    settings: Settings,
    options: ReadOptions,
) -> LoadResult:
    """:func:`load_into` with checked arguments.

    Raises:
        JsonckptError: as there.
    """
    check_target(target)
    began = False

    def note_change() -> None:
        nonlocal began
        began = True

    def read(container: Container) -> LoadResult:
        plan = settings.plan()
        with container.errors():
            return _load_into(target, container, selection, plan, settings, note_change)

    # Tensors of two checkpoints must not end up in one target.
    return read_consistent(path, options, read, may_retry=lambda: not began)


def _load_into(
    target: Any,
    container: Container,
    selection: TensorSelection,
    plan: Plan,
    settings: Settings,
    on_write: Callable[[], None],
) -> LoadResult:
    """Match the whole state first, then load it."""
    builder = StateBuilder.of(container, selection)
    # Before any allocation: the limit on it depends on the true sizes of the files.
    builder.check_files(container)
    reader = IntoReader(container, builder.copies, on_write)
    placeholders = PlaceholderReader(
        container.manifest.tensors, selection.chosen, reader.read_records, reader.copies
    )
    value = decode_state(container.manifest.state, placeholders, rules=default_rules())
    with collector_paused():
        match(value, target, "", plan, None)
        plan.prefixes.require_used()
        if settings.check is not None:
            settings.check(value, plan)
        # A pattern may also select what only the target has.
        builder.check_selectors(plan.missing)
        plan.missing = {n: tensor for n, tensor in plan.missing.items() if selection.chosen(n)}
        if plan.is_empty and any(item is not LEFT_OUT for item in leaves_in(value)):
            plan.differ("", "nothing in the target matches anything in the checkpoint", "empty")
        copies = resolve_aliases(plan, reader.same_values)
        tied = settle_ties(plan, copies) if plan.differs else []
        if plan.strict and plan.differs:
            raise StateMismatchError(
                "the checkpoint and the target differ; nothing has been changed",
                missing=list(plan.missing),
                unexpected=list(plan.unexpected),
                mismatched=plan.mismatched,
                file=container.path,
                hint=plan.ways_out(why_names_differ(value, target, plan)),
            )
        targets = [
            (copy, Target.into(copy.tensor, copy.source.dtype, copy.source.shape, cast=plan.cast))
            for copy in copies
        ]
    filled = {copy.source.name for copy in copies}
    filled |= {name for copy in copies for name, _ in copy.aliases}
    names = [source.name for source, _ in plan.in_place if source.name in filled]
    names += [*plan.allocated, *(name for one in plan.own_loaders for name in names_in(one.value))]
    try:
        reader.load_objects(plan)
    except StateMismatchError as error:
        error.hint = " ".join(filter(None, (why_names_differ(value, target, plan), error.hint)))
        raise
    if settings.before_filling is not None:
        settings.before_filling()
    reader.load_tensors(plan, targets)
    return LoadResult(
        loaded=tuple(dict.fromkeys([*names, *tied])),
        missing=tuple(plan.missing),
        unexpected=tuple(plan.unexpected),
        mismatched=tuple(plan.mismatched),
        renamed=tuple(plan.prefixes.renamed),
        kept=tuple(filter(selection.chosen, plan.kept)),
        hint=why_names_differ(value, target, plan) if plan.differs else "",
    )
