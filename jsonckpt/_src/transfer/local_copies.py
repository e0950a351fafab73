"""Local copies of what URLs name, for work that needs local files, and uploads of its results."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    JsonckptError,
    UnsafePathError,
    WriteError,
    quote,
)
from ..format.filenames import SHARED_MARK, is_shard_name
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_NAME
from ..save.target import check_is_ours, own_files, replaced_rows
from ..sharing.holders import shards_of_others
from ..storage.leftovers import is_temporary_of, is_unfinished_manifest
from ..storage.os_errors import reading, writing
from ..storage.path_arguments import is_url, without_query
from ..storage.remote import RemoteLocation, kind_of
from .remote_files import RemoteFiles

_STEP = 1 << 20
_INDEX_BYTES = 64 << 20


@dataclass
class LocalCopies:
    """Temporary local copies. They are removed at the end of the ``with`` statement.

    Args:
        directory: where they are made; ``None`` for the system's directory of temporary files.
    """

    storage_options: Mapping[str, Any] | None
    directory: str | os.PathLike[str] | None = None
    _temporary: list[tempfile.TemporaryDirectory[str]] = field(default_factory=list)
    _uploads: list[tuple[Path, str]] = field(default_factory=list)
    _urls: list[tuple[str, str]] = field(default_factory=list)

    def __enter__(self) -> LocalCopies:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, JsonckptError) and error.file is not None:
            error.file = self.shown(error.file)
        for one in self._temporary:
            with suppress(OSError):
                one.cleanup()

    def source(self, path: str | os.PathLike[str], *, leftovers: bool = False) -> Path:
        """What is at a path or URL, as a local path.

        Args:
            leftovers: also what killed saves left, and not only what a manifest names.

        Raises:
            CheckpointNotFoundError: nothing is there.
            JsonckptError: it cannot be downloaded.
        """
        text = os.fspath(path)
        if not is_url(text):
            return Path(text)
        place = self._new_place()
        beside, name = RemoteFiles.beside(text, self.storage_options)
        name, _, query = name.partition("?") if not beside.lists else (name, "", "")
        query = query and f"?{query}"
        inside = RemoteFiles(beside.child(name), self.storage_options)
        found = None if query else inside.read(MANIFEST_NAME, DEFAULT_LIMITS.manifest_bytes or 0)
        target = place / (name or "checkpoint")
        self._urls.append((str(target), without_query(text)))
        if found is not None or (not query and self._is_directory(beside, name)):
            target.mkdir()
            self._directory_of(inside, target, found, leftovers)
            return target
        location = RemoteLocation(beside.requests, beside.path, query)
        if leftovers and beside.lists:
            temporaries = [e for e in beside.entries() if is_temporary_of(e.name, name)]
            self._download(location, [(e.name, e.changed) for e in temporaries], place)
            if temporaries and self._kind(beside, name) is None:
                return target
        if self._kind(beside, name + query) is None:
            raise CheckpointNotFoundError("nothing is there", file=without_query(text))
        self._download(location, [(name, 0.0)], place)
        if name.endswith(".index.json"):
            parts = _parts_of(target)
            self._download(location, [(part, 0.0) for part in parts], place)
        return target

    def target(self, path: str | os.PathLike[str], *, overwrite: bool) -> Path:
        """Where to write what belongs at a path or URL. :meth:`publish` uploads it.

        Raises:
            CheckpointExistsError: something is there that must be kept.
        """
        text = os.fspath(path)
        if not is_url(text):
            return Path(text)
        beside, name = RemoteFiles.beside(text, self.storage_options)
        if not beside.lists:
            raise WriteError(
                "a web server takes no files",
                file=without_query(text),
                hint="Write to a local path, or to a store such as s3://.",
            )
        taken = self._kind(beside, name)
        inside = RemoteLocation(beside.requests, beside.full(name))
        if taken == "directory":
            check_is_ours(inside)
        if taken is not None and not overwrite:
            raise CheckpointExistsError(
                "exists already", file=text, hint="Pass overwrite=True (--overwrite) to replace it."
            )
        place = self._new_place() / name
        self._uploads.append((place, text))
        self._urls.append((str(place), without_query(text)))
        return place

    def publish(self) -> None:
        """Upload what was written. A manifest comes last, then what it replaced is removed.

        Raises:
            WriteError: the store refuses. The old checkpoint is whole.
        """
        for place, url in self._uploads:
            beside, name = RemoteFiles.beside(url, self.storage_options)
            if not place.is_dir():
                beside.make()
                beside.put(str(place), name, place.stat().st_size)
                continue
            inside = RemoteFiles(url, self.storage_options)
            old = own_files(replaced_rows(RemoteLocation(inside.requests, inside.path)))
            # Checkpoints beside it may use what it replaces.
            old = [] if inside.read(SHARED_MARK, 1 << 16) is not None else old
            inside.make()
            names = sorted(one for one in os.listdir(place) if one != MANIFEST_NAME)
            for one in names:
                inside.put(str(place / one), one, (place / one).stat().st_size)
            if (place / MANIFEST_NAME).exists():
                inside.write(MANIFEST_NAME, (place / MANIFEST_NAME).read_bytes())
            with suppress(WriteError):  # an orphan does no harm
                inside.remove(one for one in old if one not in names and is_shard_name(one))

    def shown(self, path: str) -> str:
        """A path for messages: the URL in place of its copy."""
        for local, url in self._urls:
            if path.startswith(local):
                return url + path[len(local) :]
        return path

    def _new_place(self) -> Path:
        directory = self.directory
        if directory is not None and not os.path.isdir(directory):
            directory = None
        with writing(directory or tempfile.gettempdir()):
            one = tempfile.TemporaryDirectory(prefix="jsonckpt-", dir=directory)
        self._temporary.append(one)
        return Path(one.name)

    def _kind(self, files: RemoteFiles, name: str) -> str | None:
        with reading(files.where(name)):
            files.requests.fs.invalidate_cache()
            return kind_of(files.requests, files.full(name))

    def _is_directory(self, beside: RemoteFiles, name: str) -> bool:
        return beside.lists and self._kind(beside, name) == "directory"

    def _directory_of(
        self, inside: RemoteFiles, target: Path, manifest: bytes | None, leftovers: bool
    ) -> None:
        """Download the files of a directory: what a manifest names, or all of them."""
        location = RemoteLocation(inside.requests, inside.path)
        rows = [] if manifest is None else shard_files(manifest, DEFAULT_LIMITS)
        if inside.lists:
            files = [entry for entry in inside.entries() if not entry.is_directory]
            wanted = [(entry.name, entry.changed) for entry in files]
            if manifest is not None:
                wanted = [one for one in wanted if _is_of_checkpoint(one[0], leftovers)]
        else:
            wanted = [(name, 0.0) for name in [MANIFEST_NAME, *own_files(rows)]]
        self._download(location, wanted, target)
        for other, names in shards_of_others(rows).items():
            beside = target.parent / other.removeprefix("../")
            beside.mkdir(exist_ok=True)
            self._download(location, [(name, 0.0) for name in sorted(names)], beside, f"{other}/")

    def _download(
        self,
        location: RemoteLocation,
        names: Iterable[tuple[str, float]],
        into: Path,
        where: str = "",
    ) -> None:
        for name, changed in names:
            if "/" in name or name in ("", ".", ".."):
                raise UnsafePathError(f"{quote(name)} is not the name of a file")
            block = bytearray(_STEP)
            with (
                location.raw(where + name) as source,
                writing(into),
                open(into / name, "wb") as file,
            ):
                while count := source.readinto(memoryview(block)):
                    file.write(memoryview(block)[:count])
            if changed:
                os.utime(into / name, (changed, changed))


def _is_of_checkpoint(name: str, leftovers: bool) -> bool:
    if name == MANIFEST_NAME or is_shard_name(name):
        return True
    return leftovers and is_unfinished_manifest(name)


def _parts_of(index: Path) -> list[str]:
    """The files that an index of safetensors or PyTorch names.

    Raises:
        UnsafePathError: a name is not that of a file beside it.
    """
    try:
        if index.stat().st_size > _INDEX_BYTES:
            return []
        names = set(json.loads(index.read_bytes())["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return []  # the conversion says what is wrong with it
    parts = [name for name in names if isinstance(name, str)]
    for name in parts:
        if "/" in name or "\\" in name or name.startswith("."):
            raise UnsafePathError(f"the index names {quote(name)}, which is not a part of it")
    return sorted(parts)
