"""A directory whose shards are named by their content: what has not changed is not written again.

The commit is that of every directory. A shard that the old manifest names is compared while the new
one is encoded. If all bytes are equal, the old file stays. Otherwise the new one gets another name
until it is complete and durable, and then the name of its content.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ..errors import JsonckptError
from ..format.filenames import content_name, is_content_name
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import parse_manifest
from ..parallel import CancelToken
from ..storage.local import LocalFile, LocalLocation
from ..storage.lock import DirectoryLock
from ..storage.new_file import NewFile
from ..storage.os_errors import writing
from ..storage.protocols import Output
from .local_targets import DirectoryTarget
from .options import SaveOptions
from .outputs import ComparedOutput
from .plan import SavePlan, ShardPlan


class ContentTarget(DirectoryTarget):
    """A directory of shards that are named by their content.

    One save at a time uses such names in a directory. A second one, and one that finds the lock
    taken, gives its shards the names of an ordinary save.
    """

    def __init__(self, path: Path, options: SaveOptions, given: str) -> None:
        super().__init__(path, options, given)
        self._lock = DirectoryLock(path)
        self._alone = False
        #: Of the present manifest: file -> size and seal; tensor -> file.
        self._named: dict[str, tuple[int, str]] = {}
        self._holders: dict[str, str] = {}
        #: By the number of the shard.
        self._outputs: dict[int, tuple[ComparedOutput, LocalFile | None]] = {}
        #: Final names, with the number of the shard.
        self._taken: dict[str, int] = {}
        self._added: list[str] = []

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Make the directory, lock it, and look at the shards that are there."""
        super().begin(plan, cancel)
        self._alone = self._lock.take()
        if self._alone:
            self._read_manifest()

    def _read_manifest(self) -> None:
        try:
            text = LocalLocation(self._path).manifest(DEFAULT_LIMITS.manifest_bytes)
            manifest = parse_manifest(text, DEFAULT_LIMITS)
        except JsonckptError:  # none, or a damaged one: then every shard is written
            return
        self._named = {shard.file: (shard.bytes, shard.seal) for shard in manifest.shards}
        self._holders = {e.name: manifest.shards[e.shard].file for e in manifest.entries}

    def open(self, shard: ShardPlan) -> Output:
        """Begin a shard. Its name is not known yet."""

        def create() -> NewFile:
            # Nothing is sent to the disk early: this file may turn out not to be needed.
            file = NewFile(self._path / shard.name, mode=self._mode)
            self._files.append(file)
            file.create()
            return file

        old = self._old(self._holders.get(shard.first, ""))
        output = ComparedOutput(old, create)
        self._outputs[shard.number] = output, old
        return output

    def _old(self, name: str) -> LocalFile | None:
        """The file to compare with, if this save may keep it."""
        if not is_content_name(name):
            return None
        path = self._path / name
        try:
            if stat.S_IMODE(os.stat(path).st_mode) & 0o077 & ~self._mode.bits:
                return None  # more may read it than may read the new checkpoint
            return LocalFile(path)
        except (OSError, JsonckptError):  # the new file takes its place
            return None

    def settle(self, shard: ShardPlan, nbytes: int, seal: str) -> str:
        """Keep the old file, or give the new one its name."""
        output, old = self._outputs.pop(shard.number)
        name = content_name(
            shard.first, seal, nbytes, compressed=self._options.compresses_files
        )
        path = self._path / name
        # The first shard of a name has it. Only a forged checksum gives two the same.
        free = self._alone and self._taken.setdefault(name, shard.number) == shard.number
        if free and old is not None and output.file is None and Path(old.path) == path:
            if self._options.sync:  # the save that wrote it may not have done that
                with writing(path):
                    old.sync()
            old.close()
            return name
        file = output.begin()
        if old is not None:
            old.close()
        file.finish(sync=self._options.sync)
        # A file that the present manifest means otherwise must stay until the commit.
        if not free or self._named.get(name, (nbytes, seal)) != (nbytes, seal):
            return shard.name
        if not os.path.lexists(path):
            self._added.append(name)
        with writing(path):
            os.replace(file.path, path)
        return name

    def abandon(self, error: BaseException) -> None:
        """Remove what is new, unless it has been committed."""
        try:
            super().abandon(error)
        finally:
            self._lock.release()

    def _remove_new(self) -> None:
        if self._added:
            self._unlink_unnamed(self._added)
        super()._remove_new()

    def clean_up(self) -> None:
        """Remove the shards of the checkpoint that was replaced, but those that both name."""
        try:
            if self._alone:
                self._unlink_unnamed(self._replaced)
            else:
                super().clean_up()
        finally:
            self._lock.release()

    def notes(self) -> tuple[str, ...]:
        """Whether the bytes depend on more than the state."""
        if self._alone:
            return ()
        return ("another save was writing here: the shards of this one have random names",)
