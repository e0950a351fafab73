"""Names of the files of a checkpoint. Pure text: nothing here opens a file."""

from __future__ import annotations

import hashlib
import os
import re

from ..errors import ArgumentError, UnsafePathError, quote
from .model import MANIFEST_NAME

_SHARD = re.compile(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?")
#: Characters, each of up to 4 bytes, that a temporary name keeps of the 255 bytes of a name.
_LONGEST_STEM = 50


def shard_name(save_id: str, number: int, *, compressed: bool) -> str:
    """The file name of a shard: unique to the save, so that no save writes over another's file.

    >>> shard_name("3f9c2a7e61b04d5c8a7f00c1d2e3f405", 1, compressed=False)
    'shard-3f9c2a7e61b0-00001.json'
    """
    return f"shard-{save_id[:12]}-{number:05d}.json{'.zst' if compressed else ''}"


def is_shard_name(name: str) -> bool:
    """Whether a shard may be called so: a plain file beside the manifest, nothing that leads away.

    >>> is_shard_name("shard-0123456789ab-00001.json"), is_shard_name("shard-/../x.json")
    (True, False)
    """
    return _SHARD.fullmatch(name) is not None


def check_shard_name(name: str) -> str:
    """``name`` itself, when it is safe to open beside the manifest.

    Raises:
        UnsafePathError: it could lead elsewhere (``../x``, an absolute path, a device, …).
    """
    if not is_shard_name(name):
        raise UnsafePathError(
            f"unsafe shard file name {quote(name)}",
            hint="Shards are plain files shard-*.json beside the manifest; do not trust this.",
        )
    return name


def temporary_name(name: str, token: str) -> str:
    """What a single file is called until it is complete.

    >>> temporary_name("run.json", "0123456789ab")
    '.run.json.0123456789ab.tmp'
    """
    return f".{temporary_stem(name)}.{token}.tmp"


def is_single(path: str) -> bool:
    """Whether a path names a single-file checkpoint.

    >>> is_single("a.json"), is_single("b.json.zst"), is_single("run/checkpoint")
    (True, True, False)
    """
    return path.endswith((".json", ".json.zst"))


def is_part(name: str) -> bool:
    """Whether a name belongs to a part of a directory checkpoint, so that no single file has it.

    >>> is_part("manifest.json"), is_part("shard-0123456789ab-00001.json"), is_part("a.json")
    (True, True, False)
    """
    return name == MANIFEST_NAME or is_shard_name(name)


def check_single_name(path: str) -> None:
    """Refuse to write a single file under a name that belongs to a part of a directory.

    Raises:
        ArgumentError: it would take the place of a manifest or a shard.
    """
    name = os.path.basename(path)
    if is_part(name):
        raise ArgumentError(
            f"{name} is the name of a part of a directory checkpoint, not of a single file",
            file=path,
            hint="Give the directory that it lies in, or choose another name.",
        )


def temporary_stem(name: str) -> str:
    """The part of a single file's name that its temporary file has: one name's alone.

    A name may have 255 bytes, so that of a long one the beginning and the ending are kept, and in
    place of the rest a hash of all of it. The result is then longer than any name that is kept
    whole, so that it cannot be one.

    >>> temporary_stem("run.json")
    'run.json'
    """
    if len(name) <= _LONGEST_STEM:
        return name
    ending = next((end for end in (".json.zst", ".json") if name.endswith(end)), "")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: _LONGEST_STEM - len(digest) - len(ending)]}-{digest}{ending}"
