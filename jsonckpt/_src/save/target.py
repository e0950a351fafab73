"""The interface of a place to save to: open files, then commit or abandon them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..errors import CheckpointExistsError, CheckpointNotFoundError, JsonckptError
from ..format.filenames import check_shard_name
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_FORMAT, MANIFEST_NAME, ShardFile
from ..parallel import CancelToken
from ..storage.protocols import Location, Output
from .plan import SavePlan, ShardPlan


class Target(ABC):
    """A place for one checkpoint.

    The order of calls is: ``check``, ``begin``, ``open`` and ``settle`` for each file, ``commit``,
    ``clean_up``.
    ``abandon`` follows an error in ``begin`` or later.

    Attributes:
        path: of the checkpoint, for the result.
        place: one name for each place, in whatever form its path was given; ``""`` for a file
            object.
        single: whether the checkpoint is one file.
        name: of the single file; ``""`` for a file object.
        concurrent: whether several files may be written at the same time.
        reader: the directory that gets the files which read the checkpoint without jsonckpt.
    """

    path = place = name = ""
    single = True
    concurrent = False
    reader: Path | None = None

    def check(self) -> None:  # noqa: B027 - a target may have nothing to check
        """Refuse to overwrite what must be kept, if that is known early."""

    @abstractmethod
    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Prepare the place."""

    @abstractmethod
    def open(self, shard: ShardPlan) -> Output:
        """Begin a file."""

    def settle(self, shard: ShardPlan, nbytes: int, seal: str) -> str:
        """A file is written. Returns its final name.

        Args:
            nbytes: its size.
        """
        del nbytes, seal
        return shard.name

    def notes(self) -> tuple[str, ...]:
        """What was not done as asked."""
        return ()

    def flush(self) -> None:  # noqa: B027 - files may be durable as soon as they are written
        """Make the files that are written durable, for another process that commits them."""

    def check_written(self, shards: Sequence[ShardFile]) -> None:  # noqa: B027 - as above
        """Check that the shards that other processes wrote are in this place.

        Raises:
            WriteError: one is not.
        """

    @abstractmethod
    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        """Make the checkpoint visible. Returns how durable it is, see :class:`SaveResult`.

        Args:
            manifest: of a directory.
            cancel: is closed right before the commit.
        """

    @abstractmethod
    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """Remove what was written, unless it may be committed. May add a hint to the error.

        Args:
            others: shards that other processes wrote. Those of the present manifest stay.
        """

    def leave(self) -> None:  # noqa: B027 - a place may have no directories
        """Remove directories that are empty and were missing: all processes of a save gave up."""

    def clean_up(self) -> None:  # noqa: B027 - a target may have nothing to clean up
        """Remove what was replaced, after the commit."""


def check_is_ours(location: Location) -> None:
    """Refuse to replace another program's manifest. Its first bytes tell.

    Raises:
        CheckpointExistsError: it is another program's.
    """
    try:
        with location.file(MANIFEST_NAME) as file:
            start = bytearray(min(file.size, 4096))
            file.read_range(0, memoryview(start))
    except JsonckptError:
        return
    if start and MANIFEST_FORMAT.encode() not in start:
        raise CheckpointExistsError(
            f"the {MANIFEST_NAME} in this directory is another program's",
            file=location.where(MANIFEST_NAME),
            hint="Choose another directory.",
        )


def present_rows(location: Location) -> list[ShardFile]:
    """The shards of the present manifest.

    Raises:
        JsonckptError: there is none, or it cannot be read.
    """
    return shard_files(location.manifest(DEFAULT_LIMITS.manifest_bytes), DEFAULT_LIMITS)


def replaced_rows(location: Location) -> list[ShardFile]:
    """The shards of the present manifest. An overwrite removes them at its end.

    For a damaged or unreadable manifest there are none. Its shards stay, so that ``recover`` can
    use them.
    """
    try:
        return present_rows(location)
    except (JsonckptError, OSError):
        return []


def own_files(rows: Iterable[ShardFile]) -> list[str]:
    """The names of those that lie in the directory of the manifest."""
    return [row.file for row in rows if not row.directory]


def unnamed_shards(location: Location, shards: Sequence[str]) -> list[str]:
    """Those shards that the present manifest does not name. If it cannot be read, none."""
    try:
        present = set(own_files(present_rows(location)))
    except CheckpointNotFoundError:
        present = set()
    except (JsonckptError, OSError):  # all of them may be in use
        return []
    return [check_shard_name(name) for name in shards if name not in present]
