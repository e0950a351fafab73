"""``verify``: whether every byte of a checkpoint is as it was saved, and where not."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import (
    ArgumentError,
    CheckpointNotFoundError,
    IntegrityError,
    JsonckptError,
    is_refusal,
    printable,
)
from ..format.limits import Limits
from ..format.model import Entry
from ..load.container import RETRIES, Container, Shard, open_container
from ..load.options import ReadOptions, TensorSelection
from ..load.restore import StateBuilder
from ..progress import progress_bar
from ..storage.path_arguments import path_text, without_query
from .damaged_files import DamagedZstd
from .scan import scan
from .verify_deep import check_state, leftover_notes, spelling_notes, state_notes


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found. True in a boolean context when there are no problems.

    Attributes:
        path: the checkpoint.
        problems: the errors, each with its file, tensor and chunk.
        tensors, nbytes, files: how much was read and checked.
        notes: what is no damage but worth knowing, with ``deep=True``.
    """

    path: str
    problems: tuple[JsonckptError, ...]
    tensors: int = 0
    nbytes: int = 0
    files: int = 0
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether everything is in order."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        path = printable(self.path)
        if self.ok:
            first = (
                f"{path}: ok, {self.tensors} tensors, {self.nbytes} bytes in {self.files} file(s)"
            )
        else:
            first = f"{path}: {len(self.problems)} problem(s)"
        problems = [f"  {problem}" for problem in self.problems]
        return "\n".join([first, *problems, *(f"  note: {printable(note)}" for note in self.notes)])


class _Nowhere:
    """A sink that lets everything be decoded and checked, and keeps nothing."""

    def window(self, start: int, stop: int) -> None:
        """No memory of its own: the reader's scratch is used."""

    def write(self, start: int, data: memoryview) -> None:
        """Nothing to keep."""


def verify(
    path: str | os.PathLike[str],
    *,
    deep: bool = False,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> VerifyReport:
    """Read everything, allocate no tensor, report every problem.

    Every checksum, digest, seal and range is checked. Damage is an entry of the report, and the
    search goes on behind it; what cannot be opened at all is one, too.

    Args:
        path, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.
        deep: read each file forward as well, with the other reader; decode the state, with
            tensors that have a shape but no data; note leftovers of killed saves, edits by hand,
            tensors that nothing uses, and numbers that are not spelled in the shortest way.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        ArgumentError: an ``expected_digest`` that pins nothing.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(3)}, directory)
    ...     bool(jsonckpt.verify(directory)), bool(jsonckpt.verify(directory, deep=True))
    (True, True)
    """
    path_text(path)
    options = ReadOptions.of(
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    for _ in range(RETRIES + 1):
        report, replaced = _verify(path, deep, options)
        if report or not replaced:
            break
    return report


def _verify(
    path: str | os.PathLike[str], deep: bool, options: ReadOptions
) -> tuple[VerifyReport, bool]:
    """The report, and whether a save has replaced the checkpoint meanwhile."""
    name = without_query(path_text(path))
    try:
        container = open_container(path, options)
        StateBuilder.of(container, TensorSelection.of())
    except (ArgumentError, CheckpointNotFoundError):
        raise
    except JsonckptError as error:
        return VerifyReport(name, (error.at(file=name),)), False
    problems: list[JsonckptError] = []
    notes: list[str] = []
    files = 0
    total = container.manifest.nbytes * (2 if deep else 1)
    with progress_bar("verify", total, show=options.progress) as advance:
        for shard in container.shards():
            files += 1
            found = _problems(container, shard, advance)
            if deep and not found:
                found = _problems(container, shard, advance, forward_only=True)
                for entry in shard.entries:
                    notes += spelling_notes(container, entry, options.limits)
            problems += found
    if deep:
        try:
            check_state(container)
        except JsonckptError as error:
            problems.append(error.at(file=container.path))
        notes += [*state_notes(container), *leftover_notes(container)]
    report = VerifyReport(
        name,
        tuple(problems),
        len(container.manifest.entries),
        container.manifest.nbytes,
        files + (container.single is None),
        tuple(notes),
    )
    return report, container.was_replaced()


def _problems(
    container: Container,
    shard: Shard,
    advance: Callable[[int], None] | None,
    *,
    forward_only: bool = False,
) -> list[JsonckptError]:
    """What is wrong with a shard: each damaged chunk, then the text around the payloads."""
    try:
        sinks = {entry.name: _Nowhere() for entry in shard.entries}
        shard.read(sinks, advance, forward_only=forward_only)
        shard.check_file()  # reading a compressed file says nothing of its size
    except JsonckptError as error:
        if forward_only or not container.location.ranged(shard.name):
            return [error]
        if shard.name.endswith(".zst"):
            if is_refusal(error):
                return [error]  # a few bytes may unfold to more than there is time to read
            try:
                return _in_frames(container, shard) or [error]
            except JsonckptError:  # it cannot be searched
                return [error]
        problems = []
        for entry in shard.entries:
            problems += _in_tensor(shard, entry)
        return _once([*problems, *_beside(shard)]) or [error]
    return []


def _once(problems: Sequence[JsonckptError]) -> list[JsonckptError]:
    """Each problem once; one of the file not at all where a tensor says the same of it."""
    said = {(problem.file, problem.message) for problem in problems if problem.tensor is not None}
    kept: dict[str, JsonckptError] = {}
    for problem in problems:
        if problem.tensor is not None or (problem.file, problem.message) not in said:
            kept.setdefault(str(problem), problem)
    return list(kept.values())


def _in_tensor(shard: Shard, entry: Entry) -> list[JsonckptError]:
    """The damaged chunks of a tensor, or else what its record says wrongly."""
    try:
        shard.read_part(entry, 0, entry.nbytes, _Nowhere())
        return []
    except JsonckptError as error:
        problems: list[JsonckptError] = []
        for chunk in range(len(entry.chunks)):
            try:
                shard.check_chunk(entry, chunk)
            except JsonckptError as fault:
                if fault.tensor is None:
                    return [fault]  # the file itself: the same for all
                problems.append(fault)
        if not problems and isinstance(error.__cause__, OSError):
            # The text around its chunks cannot be read.
            error.at(tensor=entry.name)
        return problems or [error]


def _beside(shard: Shard) -> list[JsonckptError]:
    """What is wrong with the text around the payloads."""
    try:
        shard.read(dict.fromkeys(entry.name for entry in shard.entries))
    except JsonckptError as error:
        return [error]
    return []


def _in_frames(container: Container, shard: Shard) -> list[JsonckptError]:
    """The damaged tensors of a compressed shard, also those behind a frame that is broken."""
    limits = container.options.limits
    with container.location.file(shard.name) as file:
        found = scan(DamagedZstd(file, window=limits.zstd_window), limits)
    intact = {record.header.name: [chunk[2] for chunk in record.chunks] for record in found.found}
    lost = {item.name: item for item in found.lost}
    problems: list[JsonckptError] = []
    for entry in shard.entries:
        if intact.get(entry.name) != [chunk[2] for chunk in entry.chunks]:
            item = lost.get(entry.name)
            reason = item.reason if item is not None else "it is not in the file"
            problems.append(
                IntegrityError(
                    reason,
                    file=shard.path,
                    tensor=entry.name,
                    chunk=item.chunk if item is not None else None,
                    hint="Take another copy; jsonckpt recover restores the other tensors.",
                )
            )
    return problems
