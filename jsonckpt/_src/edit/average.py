"""``average``: the weighted mean of the float tensors of several checkpoints."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import ArgumentError, StateMismatchError, counted, printable, quote
from ..format.json_text import Json
from ..format.limits import Limits
from ..format.model import Stored, entries_of, parts_of
from ..inspect.plain_values import tag_of
from ..load.options import ReadOptions
from ..save.plan import RecordPlan
from ..state.references import references_in
from ..state.selector import Selector, near_names, refuse_unmatched, selector
from .numbers import from_float64, is_float, to_float64
from .records import Opened, StoredRecord
from .write import Draft, WriteOptions, check_out, local, write_draft

#: A read of more bytes is done piece by piece: binary64 takes up to eight times as many.
_PIECE = 1 << 20


@dataclass(frozen=True, repr=False)
class AverageResult:
    """What :func:`average` wrote.

    Attributes:
        path: of the new checkpoint.
        inputs: the checkpoints, with their ``weights``, which add up to 1.
        averaged: names of the tensors whose mean was taken, or which are equal in all inputs.
        copied: names of the tensors that are from the last input.
        digest: as in :class:`jsonckpt.SaveResult`.
    """

    path: str
    inputs: tuple[str, ...]
    weights: tuple[float, ...]
    averaged: tuple[str, ...]
    copied: tuple[str, ...]
    digest: str

    def __repr__(self) -> str:
        return f"<AverageResult {self.path!r}: mean of {len(self.inputs)} checkpoints>"

    def __str__(self) -> str:
        lines = [
            f"{printable(self.path)}: mean of {counted(len(self.averaged), 'tensor')} of "
            f"{counted(len(self.inputs), 'checkpoint')}"
        ]
        lines += [
            f"  {weight:.6g} x {printable(path)}" for path, weight in zip(self.inputs, self.weights)
        ]
        if self.copied:
            names = ", ".join(map(quote, self.copied[:3])) + (", …" if len(self.copied) > 3 else "")
            lines.append(
                f"note: {counted(len(self.copied), 'tensor')} from {printable(self.inputs[-1])} "
                f"as {'it is' if len(self.copied) == 1 else 'they are'}: {names}"
            )
        lines.append(f"note: all plain values are those of {printable(self.inputs[-1])}")
        return "\n".join(lines)


def average(
    inputs: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    weights: Sequence[float] | None = None,
    include: Selector | None = None,
    exclude: Selector | None = None,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> AverageResult:
    """The mean of the float and complex tensors of several checkpoints, chunk by chunk.

    Values are added in binary64 and rounded once to the dtype of the tensor. A tensor whose
    checksums are equal in all inputs is copied. Integers, parts of sparse and quantized tensors,
    memory that views read in several dtypes, and all plain values are those of the last input. Ties
    stay ties.

    Args:
        inputs: two checkpoints or more, with tensors of the same names, shapes and dtypes.
        out: the new checkpoint.
        weights: a number for each input; only their ratios count. ``None`` weighs all equally.
        include, exclude: names or patterns of the tensors to average, as for
            :func:`jsonckpt.load`. The others are those of the last input.
        overwrite: replace a checkpoint at ``out``.
        threads, limits, sync: as for :func:`jsonckpt.save` and :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: a tensor is missing, or differs in shape or dtype; it names both.
        ArgumentError: the weights do not fit.
        FormatError: a result is outside of what its dtype can hold.
        JsonckptError: an input cannot be read, or the output not written.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     paths = [f"{directory}/{number}.json" for number in range(2)]
    ...     for number, path in enumerate(paths):
    ...         _ = jsonckpt.save({"w": torch.full((2,), float(number)), "step": number}, path)
    ...     _ = jsonckpt.edit.average(paths, directory + "/mean.json", weights=[1, 3])
    ...     jsonckpt.load(directory + "/mean.json")
    {'w': tensor([0.7500, 0.7500]), 'step': 1}
    """
    shares = _shares(weights, len(inputs))
    target = local(out, "out")
    options = WriteOptions(overwrite=overwrite, threads=threads, sync=sync)
    check_out(target, options)
    with ExitStack() as stack:
        opened = [Opened(path, ReadOptions.of(limits=limits), stack) for path in inputs]
        last = opened[-1]
        averaged = _averaged_names(opened, include, exclude)
        plans = {}
        for name in averaged:
            entries = [entry for one in opened if (entry := _entry_of(one, name)) is not None]
            if not _equal(opened, entries):
                mean = _Mean(StoredRecord.of(last, entries[-1]), opened, entries, shares)
                plans[name] = RecordPlan(mean, entries[-1].codec, entries[-1].nbytes)
        draft = Draft(
            inputs=opened,
            state=last.state,
            metadata=last.manifest.metadata,
            records=[StoredRecord.of(last, entry) for entry in last.records],
            plans=plans,
        )
        saved = write_draft(draft, target, options)
    chosen = set(averaged)
    copied = [entry.name for entry in last.records if entry.name not in chosen]
    return AverageResult(
        target,
        tuple(one.path for one in opened),
        tuple(shares),
        tuple(averaged),
        tuple(copied),
        saved.digest,
    )


def _shares(weights: Sequence[float] | None, count: int) -> list[float]:
    """The weights, which add up to 1."""
    if count < 2:
        raise ArgumentError("average takes two checkpoints or more")
    if weights is None:
        return [1 / count] * count
    if len(weights) != count:
        raise ArgumentError(f"{counted(len(weights), 'weight')} for {count} checkpoints")
    if not all(isinstance(w, int | float) and math.isfinite(w) for w in weights):
        raise ArgumentError(f"weights must be finite numbers, not {quote(list(weights))}")
    total = math.fsum(weights)
    if not total > 0:
        raise ArgumentError(f"the weights add up to {total}, expected a positive sum")
    return [weight / total for weight in weights]


def _averaged_names(
    opened: Sequence[Opened], include: Selector | None, exclude: Selector | None
) -> list[str]:
    """The records to average.

    Raises:
        StateMismatchError: one is not in all checkpoints, or not alike in all.
    """
    last = opened[-1]
    places, unusual = _references(last)
    chosen, unmatched = selector(include, exclude)
    known = [name for names in places.values() for name in names]
    refuse_unmatched(unmatched(known), known)
    names = [
        entry.name
        for entry in last.records
        if is_float(entry.dtype)
        and entry.name not in unusual
        and any(map(chosen, places.get(entry.name, [entry.name])))
    ]
    for one in opened[:-1]:
        for name in names:
            _check_alike(last, one, name)
        strange = _references(one)[1]
        for entry in one.records:
            if is_float(entry.dtype) and chosen(entry.name) and _entry_of(last, entry.name) is None:
                raise _missing(last, one, entry.name)
            if entry.name in strange and entry.name in names:
                raise StateMismatchError(
                    f"{quote(entry.name, 200)} is part of a sparse or quantized tensor in "
                    f"{printable(one.path)}, and a tensor of its own in {printable(last.path)}"
                )
    return names


def _references(opened: Opened) -> tuple[dict[str, list[str]], set[str]]:
    """The places of each record, and the records of which no mean is taken."""
    places: dict[str, list[str]] = {}
    unusual: set[str] = set()
    with opened.container.errors():
        references = list(references_in(opened.state))
    for reference in references:
        record = opened.by_name.get(reference.record)
        if record is None:
            continue
        places.setdefault(record.name, []).append(reference.name)
        if reference.tag == "$view" and reference.body.get("dtype") != record.dtype:
            unusual.add(record.name)
    pending: list[Json] = [opened.state]
    while pending:
        value = pending.pop()
        if tag_of(value) in ("$sparse", "$quantized"):
            unusual.update(reference.record for reference in references_in(value))
        elif type(value) is dict:
            pending.extend(value.values())
        elif type(value) is list:
            pending.extend(value)
    return places, unusual


def _check_alike(last: Opened, one: Opened, name: str) -> None:
    expected, found = last.by_name[name], _entry_of(one, name)
    if found is None:
        raise _missing(one, last, name)
    for what, mine, theirs in (
        ("shape", list(expected.shape), list(found.shape)),
        ("dtype", expected.dtype, found.dtype),
    ):
        if mine != theirs:
            raise StateMismatchError(
                f"{quote(name, 200)} has {what} {theirs} in {printable(one.path)} and {mine} in "
                f"{printable(last.path)}",
                hint="Leave it out with exclude= (--exclude): it is then that of the last one.",
            )


def _entry_of(opened: Opened, name: str) -> Stored | None:
    """The record of a tensor, also if another place of the tensor comes first and names it."""
    by_name = opened.by_name
    if name in by_name:
        return by_name[name]
    return by_name.get(opened.ties.get(name, ""))


def _missing(where: Opened, there: Opened, name: str) -> StateMismatchError:
    return StateMismatchError(
        f"{printable(where.path)} has no tensor {quote(name, 200)}, which is in "
        f"{printable(there.path)}",
        hint=near_names(name, where.by_name),
    )


def _equal(opened: Sequence[Opened], entries: Sequence[Stored]) -> bool:
    """Whether a tensor is the same in all checkpoints, by its checksums."""
    facts = {
        (
            one.manifest.checksum,
            tuple((part.offset, part.entry.codec.chunk_bytes) for part in parts_of(entry)),
            tuple(checksum for each in entries_of(entry) for _, _, checksum in each.chunks),
        )
        for one, entry in zip(opened, entries)
    }
    return len(facts) == 1


@dataclass(slots=True)
class _Mean:
    """A record whose bytes are the mean of several others, as a source for a save."""

    record: StoredRecord
    opened: Sequence[Opened]
    entries: Sequence[Stored]
    shares: Sequence[float]

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def dtype(self) -> str:
        return self.record.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.record.shape

    @property
    def nbytes(self) -> int:
        return self.record.nbytes

    @property
    def device(self) -> str:
        return self.record.device

    @property
    def layout(self) -> Any:
        return self.record.layout

    def read(self, start: int, stop: int) -> memoryview:
        """The raw bytes ``[start, stop)`` of the mean."""
        if stop - start <= _PIECE:
            return self._mean(start, stop)
        out = bytearray(stop - start)
        for at in range(start, stop, _PIECE):
            end = min(stop, at + _PIECE)
            out[at - start : end - start] = self._mean(at, end)
        return memoryview(out)

    def _mean(self, start: int, stop: int) -> memoryview:
        total: np.ndarray[Any, np.dtype[np.float64]] | None = None
        equal = len(set(self.shares)) == 1
        with np.errstate(invalid="ignore", over="ignore"):
            for one, entry, share in zip(self.opened, self.entries, self.shares):
                if not share:  # also an infinity counts for nothing then
                    continue
                with one.container.errors(entry.name):
                    values = to_float64(one.read(entry, start, stop), entry.dtype)
                part = values if equal else values * share
                total = part if total is None else total + part
            assert total is not None
            mean = total / len(self.shares) if equal else total
        return from_float64(mean, self.dtype).data
