"""Local targets of a save: a directory, a file, a file object."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, CheckpointExistsError, JsonckptError, WriteError, quote
from ..format import filenames
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME, ShardFile
from ..parallel import CancelToken
from ..sharing.holders import files_in_use, is_marked, remove_unused, shards_of_others
from ..standalone.export import FILES
from ..storage import commit
from ..storage.file_objects import check_file_object
from ..storage.local import LocalFile, LocalLocation
from ..storage.lock import DirectoryLock
from ..storage.new_file import (
    Mode,
    NewFile,
    check_replaceable,
    mode_for,
    mode_of,
    special_kind,
)
from ..storage.os_errors import writing
from ..storage.path_arguments import check_target_name
from ..storage.protocols import Output
from .disk_space import DiskSpace
from .options import SaveOptions
from .outputs import ComparedOutput, FileOutput, ObjectOutput
from .plan import SavePlan, ShardPlan
from .target import Target, check_is_ours, own_files, present_rows, replaced_rows

#: Seconds until a file that another machine wrote must be seen here.
_SHOWN_AFTER = 10.0

#: The way out for a name that is refused.
ANY_NAME = "single_file=True writes one file under any name. "


def local_target(path: Path, options: SaveOptions, given: str) -> Target:
    """The target for a local path.

    Args:
        given: the path as the caller gave it, for the result.
    """
    if options.is_single(path.name):
        return FileTarget(path, options, given)
    if options.by_content:
        return ContentTarget(path, options, given)
    return DirectoryTarget(path, options, given)


class StreamTarget(Target):
    """A binary file object, which gets the text of a single file. It has no commit."""

    def __init__(self, stream: Any, options: SaveOptions) -> None:
        check_file_object(stream, "wb")
        self._stream = stream
        self._options = options

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        del plan, cancel
        if self._options.compresses_files:
            raise ArgumentError(
                "a file object gets plain text: pass compression=None with encoding='list'"
            )

    def open(self, shard: ShardPlan) -> Output:
        del shard
        return ObjectOutput(self._stream)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        del manifest, cancel
        return "none"

    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """What was written cannot be taken back."""


class _LocalTarget(Target):
    """The common part of local files and directories."""

    concurrent = True

    def __init__(self, path: Path, options: SaveOptions, given: str) -> None:
        self._path = path
        self._options = options
        self.path, self.name = given, path.name
        with writing(path):  # fails if the working directory does not exist any more
            self.place = os.path.abspath(path)
        self._space: DiskSpace | None = None
        self._mode = Mode()
        self._durable = options.sync
        self._made: list[Path] = []
        self._files: list[NewFile] = []

    def _open(self, path: Path) -> Output:
        file = NewFile(path, early=self._options.sync, mode=self._mode)
        self._files.append(file)
        file.create()
        return FileOutput(file, sync=self._options.sync)

    def _remove_new(self) -> None:
        for file in self._files:
            file.abandon()
        commit.remove_directories(self._made)

    def _durability(self) -> str:
        if not self._options.sync:
            return "none"
        return "synced" if self._durable else "best-effort"


class FileTarget(_LocalTarget):
    """A single file. It is written under another name in the same directory, then renamed."""

    def check(self) -> None:
        """Refuse a name that a file must not have, and what must not be replaced."""
        path = self._path
        if self._options.single_file is None:
            check_target_name(self.path, also=ANY_NAME)
        with writing(path):
            filenames.check_single_name(str(path))
            mode = check_replaceable(path)
            if path.is_symlink():
                filenames.check_single_name(os.path.realpath(path))
            if not self._options.overwrite and mode is not None:
                raise CheckpointExistsError(
                    "the file exists", file=path, hint="Pass overwrite=True to replace it."
                )

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Make the directory above it; with ``delete_first``, remove the old file."""
        options = self._options
        with writing(self._path):
            self._path = Path(os.path.realpath(self._path))
        self.name = self._path.name
        filenames.check_single_name(str(self._path))
        name = filenames.temporary_name(self.name, plan.snapshot.token)
        self._temporary = self._path.with_name(name)
        self._mode = mode_for(self._path, options.shared)
        self._space = DiskSpace(plan, size_known=not self.name.endswith(".zst"))
        commit.make_directory(self._path.parent, self._made, sync=options.sync)
        cancel.check()
        self._space.delete_first(self._path)
        self._space.warn(self._path.parent)

    def open(self, shard: ShardPlan) -> Output:
        del shard
        return self._open(self._temporary)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        del manifest
        options = self._options
        cancel.close()
        self._durable = commit.commit(
            self._temporary, self._path, None, sync=options.sync, exclusive=not options.overwrite
        )
        return self._durability()

    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """After the commit no file has the temporary name, and no directory is empty."""
        del others
        if self._space is not None:
            self._space.explain(error)
        self._remove_new()


class DirectoryTarget(_LocalTarget):
    """A directory of shards. The manifest is written last and makes it a checkpoint."""

    single = False

    def __init__(self, path: Path, options: SaveOptions, given: str) -> None:
        super().__init__(path, options, given)
        self._manifest = path / MANIFEST_NAME
        self._text = b""
        self._replaced: list[ShardFile] = []
        self._missing: list[Path] = []

    def check(self) -> None:
        """Refuse a file, a directory with other files, and a checkpoint that must be kept."""
        path = self._path
        with writing(path):
            mode = mode_of(path)
            if self._options.single_file is None and not (mode and stat.S_ISDIR(mode)):
                check_target_name(self.path, also=ANY_NAME)
            if mode is None:
                self._missing = commit.missing_directories(path)
                return
            if not stat.S_ISDIR(mode):
                kind = special_kind(mode) or "a file"
                raise CheckpointExistsError(
                    f"there is {kind} at this path, but a path without .json means a directory",
                    file=path,
                    hint="Choose another name, or one ending in .json for a single file, or pass "
                    "single_file=True."
                    if kind == "a file"
                    else 'save can write into it as a single file: pass open(PATH, "wb").',
                )
            inside = os.listdir(path)
            if MANIFEST_NAME in inside:
                if not self._options.overwrite:
                    raise CheckpointExistsError(
                        "there is a checkpoint",
                        file=path,
                        hint="Pass overwrite=True to replace it.",
                    )
                check_is_ours(LocalLocation(path))
            elif foreign := sorted(
                name for name in inside if not (_may_be_ours(name) or name in FILES)
            ):
                raise CheckpointExistsError(
                    "the directory is not empty and is not a checkpoint "
                    f"(there is {quote(foreign[0])})",
                    file=path,
                    hint="Choose an empty or a new directory.",
                )

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Make the directory; with ``delete_first``, remove the old checkpoint."""
        options = self._options
        self._token = plan.snapshot.token
        # The new files get the permissions of the manifest that is replaced.
        self._mode = mode_for(self._manifest, options.shared)
        # A save by content may keep most of the files.
        known = not (options.compresses_files or options.by_content)
        self._space = DiskSpace(plan, size_known=known)
        # Other ranks may be about to write into what this one has made.
        made = self._made if plan.snapshot.rank is None else []
        self._durable = commit.make_directory(self._path, made, sync=options.sync)
        cancel.check()
        old = replaced_rows(LocalLocation(self._path)) if options.delete_first else []
        self._space.delete_first(self._manifest, lambda: self._unlink(old))
        self._space.warn(self._path)

    def open(self, shard: ShardPlan) -> Output:
        return self._open(self._path / shard.name)

    def flush(self) -> None:
        """Make the names of the shards durable."""
        self._durable &= self._options.sync and commit.fsync_directory(self._path)

    def check_written(self, shards: Sequence[ShardFile]) -> None:
        """Check that each shard is here and has its size.

        A network file system may show a file of another machine a little later.
        """
        end = time.monotonic() + _SHOWN_AFTER
        for shard in shards:
            path = self._path / shard.file
            while (found := _size_of(path)) != shard.bytes and time.monotonic() < end:
                time.sleep(0.05)
            if found != shard.bytes:
                what = "is not in" if found is None else f"has {found} instead of {shard.bytes}"
                place = "the directory" if found is None else "bytes in the directory"
                raise WriteError(
                    f"a shard that another process wrote {what} {place} that this process sees",
                    file=path,
                    hint="All ranks must write to one file system that all of them see.",
                )

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        """Write the manifest under another name, and rename it."""
        options = self._options
        self._text = manifest
        self._durable &= options.sync and commit.fsync_directory(self._path)
        if options.overwrite:
            self._replaced = replaced_rows(LocalLocation(self._path))
        cancel.close()
        self._durable &= commit.commit(
            self._path / f".manifest-{self._token}.tmp",
            self._manifest,
            manifest,
            sync=options.sync,
            mode=self._mode,
            exclusive=not options.overwrite,
        )
        return self._durability()

    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """Remove the shards, unless they have been committed.

        The commit may have happened before the error (a failed last fsync, a Ctrl-C).
        """
        if self._space is not None:
            self._space.explain(error)
        if not (self._text and commit.may_hold(self._manifest, self._text)):
            # What a process says that it wrote may be of the old checkpoint.
            self._unlink_unnamed([filenames.check_shard_name(name) for name in others])
            self._remove_new()

    def leave(self) -> None:
        """Remove what was not there before and is empty."""
        commit.remove_directories(self._missing)

    def clean_up(self) -> None:
        """Remove the shards of the checkpoint that was replaced."""
        self._unlink(self._replaced)

    def _unlink(self, rows: Sequence[ShardFile]) -> None:
        """Remove shards that no manifest names any more.

        Another save may be about to use those that are named by their content, and those that
        checkpoints beside this one use. It holds the lock.
        """
        for other, files in shards_of_others(rows).items():
            remove_unused(self._path / other, files)
        shards = own_files(rows)
        ours = [name for name in shards if not filenames.is_content_name(name)]
        with DirectoryLock(self._path) as alone:
            if is_marked(self._path):
                shards = ours = self._not_shared(shards) if alone else []
            if alone and len(ours) < len(shards):
                self._unlink_unnamed(shards)
                return
            commit.unlink_all([self._path / name for name in ours], threads=self._options.threads)

    def _not_shared(self, shards: Sequence[str]) -> list[str]:
        """Those that no checkpoint beside this one uses. The caller holds the lock."""
        used = files_in_use(self._path)
        return [] if used is None else [name for name in shards if name not in used]

    def _unlink_unnamed(self, shards: Sequence[str]) -> None:
        """Remove those that the present manifest does not name. The caller holds the lock.

        If it cannot be read, all of them may be in use.
        """
        present: set[str] = set()
        try:
            if mode_of(self._manifest) is not None:
                present.update(own_files(present_rows(LocalLocation(self._path))))
        except (JsonckptError, OSError):
            return
        paths = [self._path / name for name in shards if name not in present]
        commit.unlink_all(paths, threads=self._options.threads)


class ContentTarget(DirectoryTarget):
    """A directory whose shards are named by their content. What has not changed stays.

    A shard that the old manifest names is compared while the new one is encoded. If all bytes are
    equal, the old file stays. Otherwise the new one gets another name until it is complete and
    durable, and then the name of its content. The commit is that of every directory.

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
        except (JsonckptError, OSError):  # none, or a damaged one: then every shard is written
            return
        shards = manifest.shards
        self._named = {s.file: (s.bytes, s.seal) for s in shards if not s.directory}
        own = [entry for entry in manifest.entries if not shards[entry.shard].directory]
        self._holders = {entry.name: shards[entry.shard].file for entry in own}

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
        if not filenames.is_content_name(name):
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
        output, old = self._outputs[shard.number]
        zst = self._options.compresses_files
        name = filenames.content_name(shard.first, seal, nbytes, compressed=zst)
        path = self._path / name
        # The first shard of a name has it. Only a forged checksum gives two the same.
        free = self._alone and self._taken.setdefault(name, shard.number) == shard.number
        if free and old is not None and output.file is None and Path(old.path) == path:
            if self._options.sync:  # the save that wrote it may not have done that
                with writing(path):
                    old.sync()
        else:
            file = output.begin()
            file.finish(sync=self._options.sync)
            # A file that the present manifest means otherwise must stay until the commit.
            if not free or self._named.get(name, (nbytes, seal)) != (nbytes, seal):
                name = shard.name
            else:
                self._rename(file.path, path)
        self._close(shard.number)
        return name

    def _rename(self, new: Path, path: Path) -> None:
        if not os.path.lexists(path):
            self._added.append(path.name)
        with writing(new):
            inode = os.stat(new).st_ino
        commit.replace(new, path, is_ours=lambda: commit.is_ours(path, inode))

    def _close(self, number: int) -> None:
        _, old = self._outputs.pop(number)
        if old is not None:
            with suppress(OSError):  # nothing was written to it
                old.close()

    def abandon(self, error: BaseException, others: Sequence[str] = ()) -> None:
        """Remove what is new, unless it has been committed."""
        for number in list(self._outputs):
            self._close(number)
        try:
            super().abandon(error, others)
        finally:
            self._lock.release()

    def _remove_new(self) -> None:
        if self._added:
            self._unlink_unnamed(self._added)
        super()._remove_new()

    def clean_up(self) -> None:
        """Remove the shards of the checkpoint that was replaced, but those that both name."""
        try:
            own = {*self._taken, *(file.path.name for file in self._files)}
            self._replaced = [row for row in self._replaced if row.file not in own]
            if self._alone:
                names = own_files(self._replaced)
                if is_marked(self._path):
                    names = self._not_shared(names)
                paths = [self._path / name for name in names]
                commit.unlink_all(paths, threads=self._options.threads)
            else:
                super().clean_up()
        finally:
            self._lock.release()

    def notes(self) -> tuple[str, ...]:
        """Whether the bytes depend on more than the state."""
        if self._alone:
            return ()
        return ("another save was writing here: the shards of this one have random names",)


def _size_of(path: Path) -> int | None:
    """The size of a file, or ``None`` if there is none."""
    with suppress(OSError):
        return os.stat(path).st_size
    return None


def _may_be_ours(name: str) -> bool:
    """Whether a file may be a leftover of a killed save."""
    unfinished = name.startswith(".manifest-") and name.endswith(".tmp")
    return filenames.is_shard_name(name) or name == filenames.SHARED_MARK or unfinished
