"""``verify``: whether every byte of a checkpoint is as it was saved, and where not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jsonckpt.errors import JsonckptError
from jsonckpt.facts import Entry
from jsonckpt.limits import DEFAULT_LIMITS, Limits
from jsonckpt.opening import Container, open_container
from jsonckpt.progress import progress_bar
from jsonckpt.restoring import Loading, Wishes, thread_count

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True)
class VerifyReport:
    """What :func:`verify` found. True in a boolean context when there are no problems.

    Attributes:
        path: the checkpoint.
        problems: the errors, each with its file, tensor and chunk.
        tensors, nbytes, files: how much was read and checked.
    """

    path: str
    problems: tuple[JsonckptError, ...]
    tensors: int = 0
    nbytes: int = 0
    files: int = 0

    @property
    def ok(self) -> bool:
        """Whether everything is in order."""
        return not self.problems

    def __bool__(self) -> bool:
        return self.ok

    def __str__(self) -> str:
        if self.ok:
            return (
                f"{self.path}: ok, {self.tensors} tensors, {self.nbytes} bytes "
                f"in {self.files} file(s)"
            )
        lines = [f"{self.path}: {len(self.problems)} problem(s)"]
        return "\n".join([*lines, *(f"  {problem}" for problem in self.problems)])


class _Nowhere:
    """A sink that lets everything be decoded and checked, and keeps nothing."""

    def window(self, start: int, stop: int) -> None:
        """No memory of its own: the reader's scratch is used."""

    def write(self, start: int, data: memoryview) -> None:
        """Nothing to keep."""


def verify(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> VerifyReport:
    """Read everything, allocate no tensor, report every problem.

    Damage is an entry of the report; what cannot be opened at all is one, too.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(3)}, directory)
    ...     bool(jsonckpt.verify(directory))
    True
    """
    from jsonckpt.errors import CheckpointNotFoundError

    limits = limits or DEFAULT_LIMITS
    name = os.fspath(path)
    try:
        container = open_container(
            path, limits=limits, storage_options=storage_options, expected_digest=expected_digest
        )
        Loading(container.manifest.state, Wishes.of(None, None)).check(container.manifest.by_name)
    except CheckpointNotFoundError:
        raise
    except JsonckptError as error:
        return VerifyReport(name, (error.at(file=name),))
    problems: list[JsonckptError] = []
    files = 0
    with progress_bar("verify", container.manifest.nbytes, show=progress) as advance:
        for shard, entries in container.shards():
            files += 1
            try:
                container.read(
                    shard,
                    entries,
                    {entry.name: _Nowhere() for entry in entries},
                    limits=limits,
                    threads=thread_count(threads),
                    progress=advance,
                )
            except JsonckptError as error:
                problems += _each(container, shard, entries, limits) or [error]
    return VerifyReport(
        name,
        tuple(problems),
        len(container.manifest.entries),
        container.manifest.nbytes,
        files + (container.single is None),
    )


def _each(
    container: Container, shard: int, entries: Sequence[Entry], limits: Limits
) -> list[JsonckptError]:
    """The problems of a damaged shard, tensor by tensor."""
    problems = []
    if container.file_of(shard).endswith(".zst"):
        return []  # what lies behind the damage cannot be reached
    for entry in entries:
        try:
            container.read_part(entry, 0, entry.nbytes, _Nowhere(), limits=limits)
        except JsonckptError as error:
            problems.append(error)
            if error.tensor is None:  # the file itself: the same for all
                break
    return problems
