"""``save``: state, leaves, plan, shards, manifest, commit."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonckpt import plan
from jsonckpt.contents import Options, check_options, encode
from jsonckpt.destinations import (
    check_container,
    check_target,
    is_single,
    save_directory,
    save_file,
    save_remote,
    save_stream,
)
from jsonckpt.jsontext import collector_paused
from jsonckpt.pipeline import default_threads

__all__ = ["SaveResult", "save"]

#: Writing so many bytes takes about a second; for longer the process gets its collector back.
_BRIEF = 1 << 30


@dataclass(frozen=True, kw_only=True)
class SaveResult:
    """What :func:`save` did.

    Attributes:
        path: where the checkpoint lies (``""`` when it was written to a file object).
        save_id: 32 hexadecimal digits, in every file of this save.
        digest: ``"sha256:…"`` of the manifest; of a single file its seal. It pins every byte when
            the checkpoint was saved with ``checksum="sha256"``.
        tensors: number of records.
        nbytes: raw bytes of all tensors.
        stored_bytes: bytes written.
        files: names of the files, the manifest last.
        seconds: how long it took.
        durability: ``"synced"``; ``"best-effort"`` where the file system cannot fsync a directory;
            ``"none"`` with ``sync=False`` or a file object.
    """

    path: str
    save_id: str
    digest: str
    tensors: int
    nbytes: int
    stored_bytes: int
    files: tuple[str, ...]
    seconds: float
    durability: str


def save(
    state: object,
    path: str | os.PathLike[str] | Any,
    *,
    encoding: str = "base64",
    compression: str | None = None,
    compression_level: int | None = None,
    filter: str = "auto",
    chunk_size: int | str = "1MiB",
    max_shard_size: int | str = "5GB",
    checksum: str = "xxh3_128",
    metadata: Mapping[str, Any] | None = None,
    overwrite: bool = True,
    threads: int | None = None,
    progress: bool = False,
    storage_options: Mapping[str, Any] | None = None,
    sync: bool = True,
) -> SaveResult:
    """Write ``state`` as a JSON checkpoint, atomically.

    Args:
        state: any nesting of dicts, lists, tuples, … with tensors in it; ``docs/format.md`` section
            6 lists the types. Values and types come back exactly.
        path: a path ending in ``.json`` or ``.json.zst`` is one file, any other a directory. A
            binary file object (a pipe, say) gets the text of a single file.
        encoding: ``"base64"``, or ``"list"`` for number lists that a person can read.
        compression: ``"zstd"`` or ``None``. With ``list`` it compresses whole files and needs a
            directory or a ``.json.zst``.
        compression_level: zstd level; ``None`` takes what measured best on weights.
        filter: ``"auto"`` (byte shuffle where it helps), ``"none"`` or ``"shuffle"``.
        chunk_size: raw bytes of a chunk, at most 64 MiB: the unit of memory and of partial reads.
        max_shard_size: a new file begins before it is exceeded; one tensor is never split over
        files.
        checksum: ``"xxh3_128"`` (fast), or ``"sha256"``/``"blake3"`` to pin every byte by the
        digest.
        metadata: your own plain JSON object, read with ``jsonckpt.open(path).metadata``.
        overwrite: ``False`` refuses when a checkpoint is already there.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        storage_options: for paths such as ``s3://…`` (extra ``remote``): passed to fsspec.
        sync: ``False`` skips the fsyncs (not the order of steps): after a power failure the
            checkpoint may be lost, after a killed process it is not.

    Returns:
        a :class:`SaveResult`.

    Raises:
        UnsupportedTypeError: a value that no rule covers; nothing has been written.
        CheckpointExistsError: what lies at ``path`` must not be overwritten.
        LimitError: readers would refuse the result.
        WriteError: the system refused; what was at ``path`` before is untouched.
        DurabilityUncertainError: written and visible, but the last fsync failed.
        ValueError, TypeError: options that do not exist.

    >>> import tempfile, torch, jsonckpt
    >>> directory = tempfile.TemporaryDirectory()
    >>> result = jsonckpt.save({"w": torch.ones(2, 3), "epoch": 1}, directory.name + "/ckpt")
    >>> result.tensors, result.nbytes
    (1, 24)
    >>> jsonckpt.load(result.path)["epoch"]
    1
    >>> directory.cleanup()
    """
    began = time.perf_counter()
    options = Options(
        encoding=encoding,
        compression=compression or "none",
        level=compression_level,
        filter=filter,
        chunk_bytes=plan.parse_size(chunk_size, "chunk_size"),
        max_shard_size=plan.parse_size(max_shard_size, "max_shard_size"),
        checksum=checksum,
        threads=default_threads() if threads is None else threads,
        sync=sync,
        progress=progress,
    )
    check_options(options, compression_level)
    target: Path | None = None
    remote = False
    if not hasattr(path, "write"):
        text_path = os.fspath(path)
        if not isinstance(text_path, str):
            raise TypeError("path must be str or os.PathLike[str], or a binary file object")
        remote = "://" in text_path
        target = None if remote else Path(text_path)
        check_container(text_path, options)
        if target is not None:
            check_target(target, overwrite=overwrite)
    with ExitStack() as brief:
        # No garbage is made here; the collector would look through all tensors of the state.
        brief.enter_context(collector_paused())
        contents = encode(state, metadata, options)
        if contents.nbytes > _BRIEF:
            brief.close()
        if remote:
            result = save_remote(contents, text_path, options, overwrite, storage_options)
        elif target is None:
            result = save_stream(contents, path, options)
        elif is_single(target.name):
            result = save_file(contents, target, options)
        else:
            result = save_directory(contents, target, options)
        facts: dict[str, Any] = {
            "save_id": contents.save_id,
            "tensors": len(contents.sources),
            "nbytes": contents.nbytes,
        }
        del contents  # before the collector is back
    return SaveResult(**facts, seconds=time.perf_counter() - began, **result)
