"""``jsonckpt.inspect``: opens a checkpoint and gives its facts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from ..format.checksums import pin_of
from ..format.json_text import collector_paused
from ..format.limits import Limits
from ..load.container import Container, open_container
from ..load.options import ReadOptions
from ..load.single_file import gather
from ..storage.file_objects import is_file_object
from ..storage.file_source import FileSource
from .facts import Inspection, facts_of


def inspect(
    path: str | os.PathLike[str] | Any,
    *,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> Inspection:
    """The facts of a checkpoint, without reading tensors and without importing torch.

    Args:
        path: as for :func:`jsonckpt.load`; a binary file object is read forward to its end.
        limits, storage_options, expected_digest: as for :func:`jsonckpt.load`.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        JsonckptError: it is not a whole checkpoint.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(2, 3), "epoch": 3}, directory + "/c.json")
    ...     facts = jsonckpt.inspect(directory + "/c.json")
    >>> facts.tensors[0].name, facts.tensors[0].shape, facts.numel, facts.nbytes
    ('/w', (2, 3), 6, 24)
    >>> [(fact.what, fact.path, fact.value) for fact in facts.state]
    [('epoch', '/epoch', 3)]
    """
    options = ReadOptions.of(
        limits=limits, storage_options=storage_options, expected_digest=expected_digest
    )
    with collector_paused():  # a manifest has very many containers, and none of them is garbage
        if is_file_object(path, "readinto", "read"):
            return inspect_pipe(FileSource(path), options)
        return inspect_container(open_container(path, options))


def inspect_container(container: Container) -> Inspection:
    """The facts of an opened checkpoint.

    Raises:
        FormatError: the state does not fit the records.
    """
    manifest = container.manifest
    single = container.single is not None
    with container.errors():
        return facts_of(
            manifest,
            path=container.path,
            kind="file" if single else "directory",
            files=1 if single else None,
            file_bytes=container.first_bytes + sum(shard.bytes for shard in manifest.shards),
            digest=manifest.digest or None,
            pin=pin_of(manifest.digest, manifest.checksum),
        )


def inspect_pipe(source: FileSource, options: ReadOptions) -> Inspection:
    """The facts of a single file that is read forward, to its end.

    Raises:
        JsonckptError: it is not a whole checkpoint.
    """
    manifest = gather(source, options)
    return facts_of(
        manifest,
        path="-",
        kind="pipe",
        files=1,
        file_bytes=source.position,
        digest=manifest.digest or None,
        pin=pin_of(manifest.digest, manifest.checksum),
    )
