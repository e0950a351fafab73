"""Local targets of a save: a directory, a file, a file object."""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, CheckpointExistsError, quote
from ..format import filenames
from ..format.model import MANIFEST_NAME
from ..parallel import CancelToken
from ..storage import commit
from ..storage.file_objects import check_file_object
from ..storage.local import LocalLocation
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
from .outputs import FileOutput, ObjectOutput
from .plan import SavePlan
from .target import Target, check_is_ours, named_shards


def local_target(path: Path, options: SaveOptions, given: str) -> Target:
    """The target for a local path.

    Args:
        given: the path as the caller gave it, for the result.
    """
    if filenames.is_single(path.name):
        return FileTarget(path, options, given)
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

    def open(self, name: str) -> Output:
        del name
        return ObjectOutput(self._stream)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        del manifest, cancel
        return "none"

    def abandon(self, error: BaseException) -> None:
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
        check_target_name(self.path)
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
        # Not of the save id: an edited file keeps it, and a killed edit must not bar the next one.
        name = filenames.temporary_name(self.name, secrets.token_hex(6))
        self._temporary = self._path.with_name(name)
        self._mode = mode_for(self._path, options.shared)
        self._space = DiskSpace(plan, compressed=self.name.endswith(".zst"))
        commit.make_directory(self._path.parent, self._made, sync=options.sync)
        cancel.check()
        self._space.delete_first(self._path, ())
        self._space.warn(self._path.parent)

    def open(self, name: str) -> Output:
        del name
        return self._open(self._temporary)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        del manifest
        options = self._options
        cancel.close()
        self._durable = commit.commit(
            self._temporary, self._path, None, sync=options.sync, exclusive=not options.overwrite
        )
        return self._durability()

    def abandon(self, error: BaseException) -> None:
        """After the commit no file has the temporary name, and no directory is empty."""
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
        self._replaced: list[Path] = []

    def check(self) -> None:
        """Refuse a file, a directory with other files, and a checkpoint that must be kept."""
        path = self._path
        with writing(path):
            mode = mode_of(path)
            if mode is None or not stat.S_ISDIR(mode):
                check_target_name(self.path)
            if mode is None:
                return
            if not stat.S_ISDIR(mode):
                kind = special_kind(mode) or "a file"
                raise CheckpointExistsError(
                    f"there is {kind} at this path, but a path without .json means a directory",
                    file=path,
                    hint="Choose another name, or one ending in .json for a single file."
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
            elif foreign := sorted(name for name in inside if not _may_be_ours(name)):
                raise CheckpointExistsError(
                    "the directory is not empty and is not a checkpoint "
                    f"(there is {quote(foreign[0])})",
                    file=path,
                    hint="Choose an empty or a new directory.",
                )

    def begin(self, plan: SavePlan, cancel: CancelToken) -> None:
        """Make the directory; with ``delete_first``, remove the old checkpoint."""
        options = self._options
        self._save_id = plan.snapshot.save_id
        # The new files get the permissions of the manifest that is replaced.
        self._mode = mode_for(self._manifest, options.shared)
        self._space = DiskSpace(plan, compressed=options.compresses_files)
        self._durable = commit.make_directory(self._path, self._made, sync=options.sync)
        cancel.check()
        self._space.delete_first(self._manifest, self._old_shards() if options.delete_first else [])
        self._space.warn(self._path)

    def open(self, name: str) -> Output:
        return self._open(self._path / name)

    def commit(self, manifest: bytes, cancel: CancelToken) -> str:
        """Write the manifest under another name, and rename it."""
        options = self._options
        self._text = manifest
        self._durable &= options.sync and commit.fsync_directory(self._path)
        if options.overwrite:
            self._replaced = self._old_shards()
        cancel.close()
        self._durable &= commit.commit(
            self._path / f".manifest-{self._save_id[:12]}.tmp",
            self._manifest,
            manifest,
            sync=options.sync,
            mode=self._mode,
            exclusive=not options.overwrite,
        )
        return self._durability()

    def abandon(self, error: BaseException) -> None:
        """Remove the shards, unless they have been committed.

        The commit may have happened before the error (a failed last fsync, a Ctrl-C).
        """
        if self._space is not None:
            self._space.explain(error)
        if not (self._text and commit.may_hold(self._manifest, self._text)):
            self._remove_new()

    def clean_up(self) -> None:
        """Remove the shards of the checkpoint that was replaced."""
        commit.unlink_all(self._replaced, threads=self._options.threads)

    def _old_shards(self) -> list[Path]:
        return [self._path / name for name in named_shards(LocalLocation(self._path))]


def _may_be_ours(name: str) -> bool:
    """Whether a file may be a leftover of a killed save."""
    return filenames.is_shard_name(name) or (
        name.startswith(".manifest-") and name.endswith(".tmp")
    )
