"""The directory of a run behind a URL: its steps, small files in it, removal of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import ArgumentError, JsonckptError, quote
from ..format.filenames import SHARED_MARK, is_shard_name, is_single
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import shard_files
from ..format.model import MANIFEST_NAME
from ..save.target import own_files
from ..sharing.holders import shards_of_others
from .remote_files import RemoteEntry, RemoteFiles, manifests_beside, refuse_web


class RemoteRun:
    """A run's directory on a remote store.

    Args:
        url: of the directory. It need not exist yet.
        storage_options: for fsspec.

    Raises:
        JsonckptError: the URL cannot be opened, or a web server stands behind it.
    """

    def __init__(self, url: str, storage_options: Mapping[str, Any] | None = None) -> None:
        self._files = RemoteFiles(url, storage_options)
        self._options = storage_options
        refuse_web(self._files, "a run")

    def entries(self) -> list[RemoteEntry]:
        """What lies directly in it, by name; nothing if it does not exist yet.

        Raises:
            JsonckptError: it cannot be listed.
        """
        return self._files.entries()

    def path(self, name: str) -> str:
        """The URL of a child."""
        return self._files.child(name)

    def read(self, name: str, limit: int) -> bytes | None:
        """A small file; ``None`` if it does not exist.

        Raises:
            LimitError: it has more than ``limit`` bytes.
            JsonckptError: it cannot be read.
        """
        return self._files.read(name, limit)

    def write(self, name: str, data: bytes) -> None:
        """Write a small file in one step: a reader sees the old one or the new one.

        Raises:
            WriteError: it may or may not have been replaced.
        """
        self._files.make()
        self._files.write(name, data)

    def remove_step(self, name: str) -> None:
        """Remove a checkpoint: its manifest first, then the shards that it names.

        What else lies in its directory stays, and so do shards that steps beside it use. If the
        removal stops halfway, the rest are leftovers for :func:`jsonckpt.gc`.

        Raises:
            ArgumentError: ``name`` is not the name of a child.
            WriteError: the store refuses.
            JsonckptError: it shares shards, and a manifest beside it cannot be read.
        """
        if not name or "/" in name or name in (".", ".."):
            raise ArgumentError(f"{quote(name)} is not the name of a step")
        inside = RemoteFiles(self.path(name), self._options)
        manifest = inside.read(MANIFEST_NAME, DEFAULT_LIMITS.manifest_bytes or 1 << 26)
        if manifest is None:
            if is_single(name):
                self._files.remove([name])
            return
        try:
            shards = own_files(shard_files(manifest, DEFAULT_LIMITS))
        except JsonckptError:  # damaged: what looks like its shards
            shards = [entry.name for entry in inside.entries() if is_shard_name(entry.name)]
        shared = inside.read(SHARED_MARK, 1 << 16) is not None
        used: set[str] = set()
        if shared:
            for text in manifests_beside(inside, self._options, DEFAULT_LIMITS):
                used |= shards_of_others(shard_files(text, DEFAULT_LIMITS)).get(f"../{name}", set())
        inside.remove([MANIFEST_NAME])
        inside.remove(shard for shard in shards if shard not in used)
        if shared and not used:
            inside.remove([SHARED_MARK])
        self._files.remove_if_empty(name)
