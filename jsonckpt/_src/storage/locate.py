"""Finds the files of a checkpoint: a local directory, a single file, or a URL."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CheckpointNotFoundError, UnsafePathError
from ..format.model import MANIFEST_NAME
from .local import LocalLocation
from .missing import hint_for_missing
from .new_file import special_kind
from .path_arguments import check_storage_options, is_url, path_text
from .protocols import Location


def locate(
    path: str | os.PathLike[str],
    storage_options: Mapping[str, Any] | None,
    *,
    follow: bool,
) -> tuple[Location, str | None]:
    """The location of a checkpoint, and the name of its file if it is a single file.

    Args:
        follow: whether the files may be symbolic links.

    Raises:
        CheckpointNotFoundError: nothing is there.
        UnsafePathError: a FIFO, a socket or a device is there.
    """
    text = path_text(path)
    check_storage_options(storage_options)
    if is_url(text):
        from .remote import remote_location

        return remote_location(text, storage_options)
    return _local(Path(text), follow)


def _local(path: Path, follow: bool) -> tuple[LocalLocation, str | None]:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "there is no such file or directory", file=path, hint=hint_for_missing(path)
        ) from error
    except OSError as error:
        raise CheckpointNotFoundError(f"cannot open: {error.strerror}", file=path) from error
    if stat.S_ISDIR(mode):
        return LocalLocation(path, follow=follow), None
    if kind := special_kind(mode):
        special = UnsafePathError(
            f"{kind}, not a regular file",
            file=path,
            hint='A pipe can be read as a file object: jsonckpt.load(open(PATH, "rb")).',
        )
        special.is_foreign = True
        raise special
    if path.name == MANIFEST_NAME:
        return LocalLocation(path.parent, follow=follow), None
    return LocalLocation(path.parent, follow=follow), path.name
