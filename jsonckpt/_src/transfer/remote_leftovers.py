"""What killed saves left behind a URL: files that nobody names, and uploads that never ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..errors import CheckpointNotFoundError
from ..format.limits import Limits
from ..format.manifest import parse_manifest
from ..format.model import MANIFEST_NAME
from ..load.container import open_container
from ..load.options import ReadOptions
from ..remote.requests import result_of
from ..remote.upload import can_upload_in_parts
from ..storage.leftovers import is_of_save, is_temporary_of
from ..storage.os_errors import reading, writing
from ..storage.path_arguments import without_query
from .remote_files import RemoteEntry, RemoteFiles, not_named_beside, refuse_web


@dataclass(frozen=True)
class RemoteLeftovers:
    """What may be removed if it is old enough.

    Attributes:
        files: the directory of the leftovers.
        named: whether a manifest says what is needed; else all files of saves are listed.
        others: a name of something else in a directory without a manifest; ``""`` for none.
    """

    files: RemoteFiles
    entries: Sequence[RemoteEntry]
    named: bool
    others: str = ""


def remote_leftovers(
    url: str, storage_options: Mapping[str, Any] | None, limits: Limits
) -> RemoteLeftovers:
    """The leftovers in a checkpoint's directory behind a URL, or beside a single file.

    Raises:
        CheckpointNotFoundError: there is neither a checkpoint nor a leftover.
        JsonckptError: the checkpoint cannot be read. Its leftovers may be all that remains of it.
    """
    inside = RemoteFiles(url.removesuffix(f"/{MANIFEST_NAME}"), storage_options)
    refuse_web(inside, "gc")
    # Listed before the manifest is read, so it includes what a save commits in between.
    present = [entry for entry in inside.entries() if not entry.is_directory]
    manifest = inside.read(MANIFEST_NAME, limits.manifest_bytes or (1 << 62))
    if manifest is not None:
        named = parse_manifest(manifest, limits).own_files
        found = [e for e in present if is_of_save(e.name) and e.name not in named]
        left = _unused(inside, found, storage_options, limits)
        return RemoteLeftovers(inside, left, True)
    found = [entry for entry in present if is_of_save(entry.name)]
    if found:
        others = sorted(entry.name for entry in present if entry not in found)
        left = _unused(inside, found, storage_options, limits)
        return RemoteLeftovers(inside, left, False, (others or [""])[0])
    beside, name = RemoteFiles.beside(url, storage_options)
    around = beside.entries()
    temporaries = [entry for entry in around if is_temporary_of(entry.name, name)]
    if any(entry.name == name and not entry.is_directory for entry in around):
        open_container(url, ReadOptions(limits=limits, storage_options=storage_options))
    elif not temporaries:
        raise CheckpointNotFoundError("there is no checkpoint", file=without_query(url))
    return RemoteLeftovers(beside, temporaries, True)


def _unused(
    inside: RemoteFiles,
    found: Sequence[RemoteEntry],
    storage_options: Mapping[str, Any] | None,
    limits: Limits,
) -> list[RemoteEntry]:
    """Those files that no checkpoint beside this one names."""
    left = not_named_beside(inside, [entry.name for entry in found], storage_options, limits)
    return [entry for entry in found if entry.name in left]


def abort_uploads(files: RemoteFiles, before: float, *, dry_run: bool) -> int:
    """End uploads to S3 that a killed save left open, which cost money and are not listed.

    Args:
        before: only those that began before this time, in seconds.

    Returns:
        how many there are.

    Raises:
        JsonckptError: the store refuses.
    """
    requests, count = files.requests, 0
    if not can_upload_in_parts(requests):
        return 0
    fs = requests.fs
    bucket, prefix, _ = fs.split_path(files.path)
    with reading(without_query(files.url)):
        place = {"Bucket": bucket, "Prefix": f"{prefix}/"}
        try:
            answer = result_of(
                requests.start(lambda: fs._call_s3("list_multipart_uploads", **place))
            )
        except (FileNotFoundError, PermissionError, NotImplementedError):
            return 0  # a store that keeps no such list, or a key that may not read it
    for upload in answer.get("Uploads", []):
        key = str(upload["Key"])
        in_directory = is_of_save(key.removeprefix(f"{prefix}/"))
        if not in_directory or upload["Initiated"].timestamp() > before:
            continue
        count += 1
        if not dry_run:
            facts = {"Bucket": bucket, "Key": key, "UploadId": upload["UploadId"]}
            with writing(without_query(files.url), remote=True), suppress(FileNotFoundError):
                abort = partial(fs._call_s3, "abort_multipart_upload", **facts)
                result_of(requests.start(abort))
    return count
