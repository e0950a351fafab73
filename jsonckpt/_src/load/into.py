"""``load_into``: copy a checkpoint into tensors that exist, without a second copy of the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch

from ..errors import JsonckptError, StateMismatchError
from ..format.checksums import check_expected
from ..format.json_text import collector_paused
from ..format.limits import Copies, Limits, checked_limits
from ..format.model import Entry
from ..parallel import thread_count
from ..progress import progress_bar
from ..state.registry import default_rules
from ..state.selector import Selector
from ..state.tree import decode_state
from ..tensors.aliasing import StateReader
from ..tensors.buffers import Source, Target, byte_count
from .container import Container, read_steadily
from .into_aliases import Fill, apart, flat_start
from .matching import Match, check_target, match
from .placeholders import LEFT_OUT, Placeholder, PlaceholderReader, leaves_in, placeholders_in
from .restore import LoadOptions, StateBuilder, new_target

_CPU: Final = torch.device("cpu")
#: Bytes that are compared or copied at a time.
_STEP: Final = 4 * 2**20


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

    Modules and optimizers are filled in place where they are torch's own. One that has its own
    ``load_state_dict``, ``_load_from_state_dict`` or hooks on them, or whose ``state_dict`` returns
    copies, is loaded by its ``load_state_dict``; that takes memory for a second copy of it.
    Optimizer state goes to parameters by name where both sides have ``param_names``, else by
    position, and must be of the same kind of optimizer and of the parameters' shapes.

    Tensors of the target may share memory where the checkpoint's do in the same way, or has equal
    values for it.

    Args:
        target: a nesting of dicts and lists shaped as the saved state, with tensors, modules,
            optimizers and objects with ``load_state_dict`` in it; or one of these alone. Values
            that are not tensors are replaced by the saved ones. Optimizer state keeps its saved
            dtype, and is created where the optimizer has none yet.
        strict: raise when the tensors of target and checkpoint differ; ``False`` copies what fits.
        include, exclude: as for :func:`jsonckpt.load`; what is left out is not missed. A pattern
            must select a tensor of the checkpoint or of the target, whatever ``strict`` says.
        cast: allow another dtype in the target; values are converted.
        verify, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.

    Returns:
        a :class:`LoadResult`.

    Raises:
        StateMismatchError: with all names; nothing has been changed. Or a ``load_state_dict``
            refused its state: the objects before it have been loaded, no tensor has been filled.
        ArgumentError: the target is nothing that can be filled.
        JsonckptError: damage found while copying: the target is then partly overwritten.

    >>> import tempfile, torch, jsonckpt
    >>> model = torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"model": model.state_dict(), "epoch": 3}, directory)
    ...     state = {"model": torch.nn.Linear(2, 1), "epoch": 0}
    ...     jsonckpt.load_into(state, directory).loaded, state["epoch"]
    (('/model/weight', '/model/bias'), 3)
    """
    check_target(target)
    limits = checked_limits(limits)
    check_expected(expected_digest, verify=verify)
    into = _Into(
        target,
        strict,
        LoadOptions.of(include, exclude),
        cast,
        verify,
        thread_count(threads),
        progress,
        limits,
    )
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
    options: LoadOptions
    cast: bool
    verify: bool
    threads: int
    progress: bool
    limits: Limits
    began: bool = False

    def fill(self, container: Container) -> LoadResult:
        """Match the whole state first, then load it."""
        reader = _Reader(self, container)
        plan = Match(self.cast, self.strict)
        loading, value = self._state(container, reader)
        with collector_paused():
            try:
                match(value, self.target, "", plan, None)
                # A pattern may also be there for what the target alone has.
                loading.check_selectors(plan.missing)
            except JsonckptError as error:
                error.at(file=container.path)
                raise
            plan.missing = [name for name in plan.missing if self.options.chosen(name)]
            if plan.is_idle and not _is_empty(value):
                plan.mismatched.append("/: nothing in the target takes anything of the checkpoint")
            fills = apart(plan, reader.same_values)
            if self.strict and (plan.missing or plan.unexpected or plan.mismatched):
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
                (fill, Target.into(fill.tensor, fill.slot.dtype, fill.slot.shape, cast=self.cast))
                for fill in fills
            ]
        filled = {fill.slot.name for fill in fills}
        filled |= {name for fill in fills for name, _ in fill.echoes}
        names = [slot.name for slot, _ in plan.fills if slot.name in filled]
        names += [
            *plan.fresh,
            *(slot.name for one in plan.objects for slot in placeholders_in(one.value)),
        ]
        reader.load_objects(plan)
        reader.load_tensors(plan, targets)
        return LoadResult(
            tuple(dict.fromkeys(names)),
            tuple(plan.missing),
            tuple(plan.unexpected),
            tuple(plan.mismatched),
        )

    def _state(self, container: Container, reader: _Reader) -> tuple[StateBuilder, Any]:
        """What is asked for, and the checkpoint's state, with slots in the place of its tensors."""
        by_name, state = container.manifest.by_name, container.manifest.state
        try:
            loading = StateBuilder(state, self.options, reader.copies)
            loading.check(by_name)
            # Before anything is allocated: the limit on that rests on the files' true sizes.
            loading.check_files(container)
            door = PlaceholderReader(container, self.options, reader.read_records, reader.copies)
            return loading, decode_state(state, door, rules=default_rules())
        except JsonckptError as error:
            error.at(file=container.path)
            raise


def _is_empty(value: Any) -> bool:
    return all(item is LEFT_OUT for item in leaves_in(value))


class _Reader:
    """Reads what a plan asks for."""

    def __init__(self, into: _Into, container: Container) -> None:
        self._into = into
        self._container = container
        self._by_name = container.manifest.by_name
        self.copies = container.copies(into.limits)

    def read(
        self, routes: Mapping[str, list[_Route]], advance: Callable[[int], None] | None = None
    ) -> None:
        """Read the records that have routes."""
        with collector_paused():
            sinks = {record: _Fan(self._into, found) for record, found in routes.items()}
        for shard, entries in self._container.shards():
            self._container.read(
                shard,
                entries,
                sinks,
                limits=self._into.limits,
                threads=self._into.threads,
                verify=self._into.verify,
                progress=advance,
            )

    def read_records(self, records: Iterable[str]) -> dict[str, torch.Tensor]:
        """Whole records, in memory of their own."""
        made = {record: self._new(record, _CPU) for record in records}
        self.read({record: [_Route(target)] for record, target in made.items()})
        return {record: target.finish() for record, target in made.items()}

    def load_objects(self, plan: Match) -> None:
        """Call each ``load_state_dict``. Before any other tensor is filled, because it may fail."""
        if not plan.objects:
            return
        wanted = {
            slot.name: (slot, _CPU) for one in plan.objects for slot in placeholders_in(one.value)
        }
        fresh = _Fresh(wanted, self._new, self.copies)
        self._show(fresh.routes)
        tensors = fresh.tensors()
        self._into.began = True
        for one in plan.objects:
            try:
                one.load(tensors, plan)
            except JsonckptError as error:
                error.at(file=self._container.path)
                raise

    def load_tensors(self, plan: Match, targets: list[tuple[Fill, Target]]) -> None:
        """Fill the tensors that exist, make the others, and put them where they belong."""
        with collector_paused():
            fresh = _Fresh(plan.fresh, self._new, self.copies)
            routes = fresh.routes
            later = []
            for fill, target in targets:
                for _, other in fill.echoes:
                    torch.autograd.graph.increment_version(other)
                start = fill.start_in(self._by_name[fill.slot.record])
                if start is None:
                    later.append((fill.slot, target))
                else:
                    routes.setdefault(fill.slot.record, []).append(
                        _Route(target, start, fills=True)
                    )
            bases = {slot.record: self._new(slot.record, _CPU) for slot, _ in later}
            for record, base in bases.items():
                routes.setdefault(record, []).append(_Route(base))
        self._show(routes)
        for _, target in targets:
            target.finish()
        tensors = fresh.tensors()
        door = StateReader(
            {record: base.finish() for record, base in bases.items()},
            {slot.name for slot, _ in later},
            self.copies,
        )
        for slot, target in later:
            assert slot.view is not None
            self._into.began = True
            _copy(door.get("$view", slot.view.to_json(), slot.name), target)
            target.finish()
        self._into.began = self._into.began or bool(plan.actions)
        for action in plan.actions:
            try:
                action(tensors)
            except JsonckptError as error:
                error.at(file=self._container.path)
                raise

    def same_values(self, one: Placeholder, two: Placeholder, dtype: torch.dtype) -> bool:
        """Whether two slots have the same values, bit for bit, in a target of ``dtype``.

        What the manifest says of their chunks decides; only what it cannot tell is read.
        """
        if one.source() == two.source():
            return True
        first, second = self._by_name[one.record], self._by_name[two.record]
        alike = one.dtype == two.dtype
        whole = one.view is None and two.view is None
        if alike and whole and first.codec.chunk_bytes == second.codec.chunk_bytes:
            return [sum_ for _, _, sum_ in first.chunks] == [sum_ for _, _, sum_ in second.chunks]
        starts = flat_start(one), flat_start(two)
        if alike and starts[0] is not None and starts[1] is not None:
            return self._same_bytes((first, starts[0]), (second, starts[1]), one)
        tensors = []
        for slot in (one, two):
            door = StateReader(self.read_records([slot.record]), {slot.name}, self.copies)
            tensors.append(door.get(slot.tag, slot.body, slot.name).detach().to(dtype))
        raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        return torch.equal(*raw)

    def _same_bytes(
        self, one: tuple[Entry, int], two: tuple[Entry, int], slot: Placeholder
    ) -> bool:
        """Compare a few chunks at a time."""
        nbytes = byte_count(slot.dtype, slot.shape)
        step = max(_STEP, one[0].codec.chunk_bytes, two[0].codec.chunk_bytes)
        if any(self._container.file_of(entry.shard).endswith(".zst") for entry, _ in (one, two)):
            step = nbytes  # each part would have the file read from its beginning
        for done in range(0, nbytes, step):
            count = min(step, nbytes - done)
            pieces = []
            for entry, start in (one, two):
                piece = Target.allocate("uint8", (count,), device=_CPU)
                self._container.read_part(
                    entry,
                    start + done,
                    start + done + count,
                    piece,
                    limits=self._into.limits,
                    verify=self._into.verify,
                )
                pieces.append(piece.finish())
            if not torch.equal(*pieces):
                return False
        return True

    def _new(self, record: str, device: torch.device) -> Target:
        entry = self._by_name[record]
        return new_target(record, entry.dtype, entry.shape, device, stride=entry.layout.stride)

    def _show(self, routes: Mapping[str, list[_Route]]) -> None:
        total = sum(self._by_name[record].nbytes for record in routes)
        with progress_bar("load", total, show=self._into.progress) as advance:
            self.read(routes, advance)


def _copy(tensor: torch.Tensor, target: Target) -> None:
    """Values that lie in memory into a target of any dtype and strides."""
    source = Source.of("", tensor)
    step = _STEP // 16 * 16  # whole elements of every dtype
    for start in range(0, source.nbytes, step):
        stop = min(start + step, source.nbytes)
        target.write(start, source.read(start, stop))


class _Fresh:
    """Tensors to be read into memory of their own.

    One record is read once for each device, so that what shares memory in the checkpoint shares it
    here.
    """

    def __init__(
        self,
        wanted: Mapping[str, tuple[Placeholder, torch.device]],
        new: Callable[[str, torch.device], Target],
        copies: Copies,
    ) -> None:
        self._copies = copies
        self._wanted = wanted
        self._targets: dict[torch.device, dict[str, Target]] = {}
        self.routes: dict[str, list[_Route]] = {}
        for slot, device in wanted.values():
            records = self._targets.setdefault(device, {})
            if slot.record not in records:
                records[slot.record] = target = new(slot.record, device)
                if target.needs_data:
                    self.routes.setdefault(slot.record, []).append(_Route(target))

    def tensors(self) -> dict[str, torch.Tensor]:
        """By name, once everything has been read."""
        doors = {
            device: StateReader(
                {record: target.finish() for record, target in records.items()},
                self._wanted,
                self._copies,
            )
            for device, records in self._targets.items()
        }
        return {
            name: doors[device].get(slot.tag, slot.body, name)
            for name, (slot, device) in self._wanted.items()
        }


@dataclass(slots=True)
class _Route:
    """Where a record's bytes go: to a target that is all of it, or a piece from ``start`` on."""

    target: Target
    start: int = 0
    fills: bool = False

    @property
    def stop(self) -> int:
        return self.start + self.target.nbytes


class _Fan:
    """One record, and everything that takes bytes of it."""

    def __init__(self, into: _Into, routes: list[_Route]) -> None:
        self._into = into
        self._routes = routes
        self._fills = any(route.fills for route in routes)
        self._only = routes[0].target if len(routes) == 1 else None
        self._start, self._stop = routes[0].start, routes[0].stop

    def window(self, start: int, stop: int) -> memoryview | None:
        """Memory only where there is but one."""
        if self._fills:
            self._into.began = True
        if self._only is None or start < self._start or stop > self._stop:
            return None
        return self._only.window(start - self._start, stop - self._start)

    def write(self, start: int, data: memoryview) -> None:
        """Copy into each what is its own."""
        self._into.began = self._into.began or self._fills
        for route in self._routes:
            first, last = max(start, route.start), min(start + len(data), route.stop)
            if first >= last:
                continue
            piece = data[first - start : last - start]
            window = route.target.window(first - route.start, last - route.start)
            if window is None:
                route.target.write(first - route.start, piece)
            else:
                window[:] = piece
