"""``verify``: reads all of a checkpoint and reports every problem."""

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
    counted,
    is_change_of_text,
    is_refusal,
    printable,
)
from ..format.checksums import digest_text, pin_of
from ..format.limits import Limits
from ..format.model import Entry, Header
from ..load.container import RETRIES, Container, Shard, open_container
from ..load.options import ReadOptions
from ..load.restore import StateBuilder
from ..load.selection import TensorSelection
from ..load.single_file import gather
from ..progress import human, progress_bar
from ..shown import ShortRepr
from ..storage.file_objects import is_file_object
from ..storage.file_source import FileSource
from ..storage.path_arguments import path_text, without_query
from .damaged_files import DamagedZstd
from .scan import LostTensor, scan
from .verify_deep import (
    check_state,
    leftover_notes,
    spelling_notes,
    state_notes,
    unsealed,
    unsealed_notes,
)


@dataclass(frozen=True, repr=False)
class VerifyReport(ShortRepr):
    """What :func:`verify` found. True in a boolean context when there are no problems.

    Attributes:
        path: the checkpoint.
        problems: the errors, each with its file, tensor and chunk.
        tensors, nbytes, files: how much was checked.
        notes: findings that are not damage: that no seal covers the text, and those of
            ``deep=True``.
        digest: of the whole checkpoint, as in ``SaveResult.digest``; ``None`` if it cannot be read,
            or nothing covers the whole.
        pin: the digest, if ``expected_digest=`` takes it, else ``None``.
    """

    path: str
    problems: tuple[JsonckptError, ...]
    tensors: int = 0
    nbytes: int = 0
    files: int = 0
    notes: tuple[str, ...] = ()
    digest: str | None = None
    pin: str | None = None

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            said = f"ok, {counted(self.tensors, 'tensor')}, {human(self.nbytes)} "
            said += f"in {counted(self.files, 'file')}"
        else:
            said = counted(len(self.problems), "problem")
        lines = [f"{printable(self.path)}: {said}"]
        lines += [f"  {problem}" for problem in self.problems]
        if self.ok and self.digest is not None:
            lines.append(f"  digest {digest_text(self.digest, self.pin)}")
        lines += [f"  note: {printable(note)}" for note in self.notes]
        return "\n".join(lines)


class _Nowhere:
    """A sink that keeps nothing. All data is decoded and checked in the reader's memory."""

    def window(self, start: int, stop: int) -> None:
        pass

    def write(self, start: int, data: memoryview) -> None:
        pass


def verify(
    path: str | os.PathLike[str] | Any,
    *,
    deep: bool = False,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> VerifyReport:
    """Read everything, allocate no tensor, report every problem.

    Every checksum, digest, seal and range is checked. Damage becomes a problem in the report, and
    the check continues after it. A checkpoint that cannot be opened is a problem, too.

    Args:
        path, threads, progress, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`. A binary file object is read forward to its end; its first
            problem ends the check.
        deep: also read each file forward, with the other reader; decode the state, with tensors
            without data; note leftovers of killed saves, tensors that the state does not use, and
            numbers that are not written in the shortest way.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        ArgumentError: ``expected_digest`` is not a digest, or ``deep`` is asked of a file object.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(3)}, directory)
    ...     bool(jsonckpt.verify(directory)), bool(jsonckpt.verify(directory, deep=True))
    (True, True)
    """
    options = ReadOptions.of(
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    if is_file_object(path, "readinto", "read"):
        if deep:
            raise ArgumentError("deep=True reads everything twice; a file object is read once")
        return _report_pipe(FileSource(path), options)
    name = without_query(path_text(path))
    for _ in range(RETRIES + 1):
        try:
            container = open_container(path, options)
            StateBuilder.of(container, TensorSelection.of())
        except (ArgumentError, CheckpointNotFoundError):
            raise
        except JsonckptError as error:
            return VerifyReport(name, (error.at(file=name),))
        report = _report(name, container, deep)
        # A save may have replaced the checkpoint during the check.
        if report or not container.was_replaced():
            break
    return report


def _report(name: str, container: Container, deep: bool) -> VerifyReport:
    manifest, options = container.manifest, container.options
    problems: list[JsonckptError] = []
    notes = unsealed_notes(container)
    files = 0 if container.single is not None else 1
    with progress_bar("verify", manifest.nbytes * (1 + deep), show=options.progress) as advance:
        for shard in container.shards():
            files += 1
            found = _in_shard(container, shard, advance)
            if deep and not found:
                found = _in_shard(container, shard, advance, forward_only=True)
                for entry in shard.entries:
                    notes += spelling_notes(container, entry, options.limits)
            problems += found
    if deep:
        try:
            check_state(container)
        except JsonckptError as error:
            problems.append(error.at(file=container.path))
        notes += [*state_notes(container), *leftover_notes(container)]
    digest = manifest.digest or None
    return VerifyReport(
        name,
        tuple(problems),
        len(manifest.entries),
        manifest.nbytes,
        files,
        tuple(notes),
        digest,
        pin_of(digest, manifest.checksum),
    )


def _report_pipe(source: FileSource, options: ReadOptions) -> VerifyReport:
    """The report on a single file that is read forward once."""
    with progress_bar("verify", None, show=options.progress) as advance:

        def open_sink(header: Header) -> _Nowhere:
            if advance is not None:
                advance(header.nbytes)
            return _Nowhere()

        try:
            manifest = gather(source, options, open_sink)
            builder = StateBuilder(manifest.state, TensorSelection.of())
            builder.check(manifest.tensors)
        except ArgumentError:
            raise
        except JsonckptError as error:
            return VerifyReport("-", (error.at(file="standard input"),))
    notes = () if manifest.sealed else (unsealed("standard input"),)
    digest = manifest.digest or None
    return VerifyReport(
        "-",
        (),
        len(manifest.entries),
        manifest.nbytes,
        1,
        notes,
        digest,
        pin_of(digest, manifest.checksum),
    )


def _in_shard(
    container: Container,
    shard: Shard,
    advance: Callable[[int], None] | None,
    *,
    forward_only: bool = False,
) -> list[JsonckptError]:
    """The problems of a shard: its damaged chunks, then the text around the payloads."""
    try:
        sinks = {entry.name: _Nowhere() for entry in shard.entries}
        shard.read(sinks, advance, forward_only=forward_only)
        shard.check_file()  # reading a compressed file does not check its size
    except JsonckptError as error:
        if forward_only or is_change_of_text(error) or not container.location.ranged(shard.name):
            return [error]
        if container.any_layout and not shard.is_ranged:
            return [error]
        if shard.is_ranged:
            found = [problem for entry in shard.entries for problem in _in_tensor(shard, entry)]
            return _once([*found, *_in_text(shard)]) or [error]
        if is_refusal(error):
            return [error]  # a few compressed bytes may hold too much text to read
        try:
            return _in_compressed(container, shard) or [error]
        except JsonckptError:  # it cannot be searched
            return [error]
    return []


def _in_tensor(shard: Shard, entry: Entry) -> list[JsonckptError]:
    """The damaged chunks of a tensor, or else the fault in its record."""
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
                    return [fault]  # a problem of the file, the same for all tensors
                problems.append(fault)
        if not problems and isinstance(error.__cause__, OSError):
            # The text around its chunks cannot be read.
            error.at(tensor=entry.name)
        return problems or [error]


def _in_text(shard: Shard) -> list[JsonckptError]:
    """The first fault in the text around the payloads."""
    try:
        shard.read(dict.fromkeys(entry.name for entry in shard.entries))
    except JsonckptError as error:
        return [error]
    return []


def _in_compressed(container: Container, shard: Shard) -> list[JsonckptError]:
    """The damaged tensors of a compressed shard, also those after a broken frame."""
    limits = container.options.limits
    with container.location.file(shard.name) as file:
        result = scan(DamagedZstd(file, window=limits.zstd_window), limits)
    intact = {record.header.name: record.checksums for record in result.found}
    lost = {item.name: item for item in result.lost}
    problems: list[JsonckptError] = []
    for entry in shard.entries:
        if intact.get(entry.name) != [checksum for _, _, checksum in entry.chunks]:
            item = lost.get(entry.name, LostTensor(entry.name, "it is not in the file"))
            problems.append(
                IntegrityError(
                    item.reason,
                    file=shard.path,
                    tensor=entry.name,
                    chunk=item.chunk,
                    hint="Take another copy; jsonckpt recover restores the other tensors.",
                )
            )
    return problems


def _once(problems: Sequence[JsonckptError]) -> list[JsonckptError]:
    """Each problem once. A problem of the file is left out if a tensor has the same problem."""
    of_tensors = {
        (problem.file, problem.message) for problem in problems if problem.tensor is not None
    }
    kept: dict[str, JsonckptError] = {}
    for problem in problems:
        if problem.tensor is not None or (problem.file, problem.message) not in of_tensors:
            kept.setdefault(str(problem), problem)
    return list(kept.values())
