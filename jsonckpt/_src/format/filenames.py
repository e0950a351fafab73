"""Names of the files of a checkpoint, and the rows of a manifest that hold them. Pure: no I/O."""

from __future__ import annotations

import hashlib
import os
import re

from ..errors import ArgumentError, FormatError, UnsafePathError, quote
from .model import MANIFEST_NAME, SHARED_SHARDS, ShardFile, is_size

#: A file that says that checkpoints in other directories use shards of this one.
SHARED_MARK = ".shared-shards"
_SHARD = re.compile(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?")
_CONTENT = re.compile(r"shard-[0-9a-z][0-9a-z-]{0,39}-[0-9a-f]{32}\.json(\.zst)?")
#: A directory beside that of the manifest. No separator of any system, no control character.
_SIBLING = re.compile(r"\.\./(?!\.*\Z)[^/\\\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,100}")
_NOT_IN_STEM = re.compile(r"[^0-9a-z]+")
#: Characters of a tensor's name that the name of its shard keeps.
_LONGEST_PART = 40
#: Characters of a name that its temporary name keeps. A character may have 4 bytes, a name 255.
_LONGEST_STEM = 50
#: The first bytes of a zstd frame (RFC 8878 section 3.1.1).
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def shard_name(save_id: str, number: int, *, compressed: bool, rank: int | None = None) -> str:
    """The file name of a shard. It is unique to the save: no save overwrites another's file.

    Args:
        rank: of the process that writes it, where several write one checkpoint.

    >>> shard_name("3f9c2a7e61b04d5c8a7f00c1d2e3f405", 1, compressed=False)
    'shard-3f9c2a7e61b0-00001.json'
    >>> shard_name("3f9c2a7e61b04d5c8a7f00c1d2e3f405", 1, compressed=False, rank=3)
    'shard-3f9c2a7e61b0-r00003-00001.json'
    """
    writer = "" if rank is None else f"-r{rank:05d}"
    return f"shard-{save_id[:12]}{writer}-{number:05d}.json{'.zst' if compressed else ''}"


def content_name(tensor: str, seal: str, nbytes: int, *, compressed: bool) -> str:
    """The file name of a shard by its content. Its first tensor's name is for people.

    The seal covers everything but the compressed bytes of payloads. Files with the same seal and
    the same size stand in for each other: a manifest that fits one fits the other.

    >>> content_name("/model/head.weight", "xxh3_128:00ff", 700, compressed=False)
    'shard-model-head-weight-320fe925e364c6dc6498b074eb41e7e0.json'
    """
    part = _NOT_IN_STEM.sub("-", tensor.lower()).strip("-")[:_LONGEST_PART].rstrip("-")
    digest = hashlib.sha256(f"{seal} {nbytes}".encode()).hexdigest()[:32]
    return f"shard-{part or 'tensor'}-{digest}.json{'.zst' if compressed else ''}"


def is_content_name(name: str) -> bool:
    """Whether a shard is named by its content. Several saves may share its file.

    >>> is_content_name("shard-head-320fe925e364c6dc6498b074eb41e7e0.json")
    True
    >>> is_content_name("shard-3f9c2a7e61b0-00001.json")
    False
    """
    return _CONTENT.fullmatch(name) is not None


def is_shard_name(name: str) -> bool:
    """Whether a shard may have this name: a plain file in the directory of the manifest.

    >>> is_shard_name("shard-0123456789ab-00001.json"), is_shard_name("shard-/../x.json")
    (True, False)
    """
    return _SHARD.fullmatch(name) is not None


def check_shard_name(name: str) -> str:
    """``name`` itself, if it is safe to open in the directory of the manifest.

    Raises:
        UnsafePathError: it may lead elsewhere (``../x``, an absolute path, a device, …).
    """
    if not is_shard_name(name):
        raise UnsafePathError(
            f"unsafe shard file name {quote(name)}",
            hint="Shards are plain files shard-*.json beside the manifest; do not trust this.",
        )
    return name


def is_sibling(directory: str) -> bool:
    """Whether shards of a manifest may lie here: in a directory beside that of the manifest.

    >>> is_sibling("../step-500"), is_sibling("../.."), is_sibling("step-500"), is_sibling("../a/b")
    (True, False, False, False)
    """
    return _SIBLING.fullmatch(directory) is not None


def parse_shard_row(item: object, checksum: str, *, shared: bool) -> ShardFile:
    """A row of the member ``shards`` of a manifest.

    Args:
        checksum: the algorithm of its seal.
        shared: whether the manifest requires the feature ``shared_shards``.

    Raises:
        FormatError, UnsafePathError: a member is wrong; the message names it.
    """
    # Who only looks at names, such as ``jsonckpt --help``, need not wait for NumPy.
    from .validation import check_save_id, kind

    if not isinstance(item, dict):
        raise FormatError(f"expected an object, found {kind(item)}")
    file, size, text_size = item.get("file"), item.get("bytes"), item.get("text_bytes")
    if not isinstance(file, str):
        raise FormatError(f"file: expected a string, found {kind(file)}")
    check_shard_name(file)
    if not is_size(size) or not is_size(text_size):
        raise FormatError("bytes and text_bytes must be integers from 0 to 2^63-1")
    if not file.endswith(".zst") and size != text_size:
        raise FormatError(f"bytes is {size} but text_bytes is {text_size}")
    seal = item.get("seal")
    if not isinstance(seal, str) or not seal.startswith(f"{checksum}:") or len(seal) > 200:
        raise FormatError(f"seal: expected {checksum}:HEX, found {quote(seal)}")
    others = [member for member in ("save_id", "directory") if member in item]
    if others and not shared:
        raise FormatError(f"a member {others[0]} needs {quote(SHARED_SHARDS)} in requires")
    directory = item.get("directory", "")
    if "directory" in item and not isinstance(directory, str):
        raise FormatError(f"directory: expected a string, found {kind(directory)}")
    if "directory" in item and not is_sibling(directory):
        raise UnsafePathError(
            f"unsafe directory {quote(directory)} of a shard",
            hint="It may only be ../NAME, beside this checkpoint; do not trust this.",
        )
    save_id = check_save_id(item["save_id"]) if "save_id" in item else ""
    return ShardFile(file, size, text_size, seal, save_id, directory)


def temporary_name(name: str, token: str) -> str:
    """The name of a single file until it is complete.

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


def zstd_by_name(path: str) -> bool | None:
    """Whether the name of a file says that it is compressed; ``None`` if its content says it.

    >>> zstd_by_name("b.json.zst"), zstd_by_name("a.json"), zstd_by_name("last.ckpt")
    (True, False, None)
    """
    return True if path.endswith(".zst") else False if path.endswith(".json") else None


def is_part(name: str) -> bool:
    """Whether a name is reserved for the files of a directory checkpoint.

    >>> is_part("manifest.json"), is_part("shard-0123456789ab-00001.json"), is_part("a.json")
    (True, True, False)
    """
    return name == MANIFEST_NAME or is_shard_name(name)


def check_single_name(path: str) -> None:
    """Check that a single file does not have the name of a manifest or a shard.

    Raises:
        ArgumentError: it has.
    """
    name = os.path.basename(path)
    if is_part(name):
        raise ArgumentError(
            f"{name} is the name of a part of a directory checkpoint, not of a single file",
            file=path,
            hint="Give the directory that it lies in, or choose another name.",
        )


def temporary_stem(name: str) -> str:
    """The part of a temporary name that says which single file it belongs to.

    A long name is shortened: its beginning and its ending stay, and a hash of the whole name
    replaces the rest. The result is longer than any name that is kept whole, so it is never one.

    >>> temporary_stem("run.json")
    'run.json'
    """
    if len(name) <= _LONGEST_STEM:
        return name
    ending = next((end for end in (".json.zst", ".json") if name.endswith(end)), "")
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12]
    return f"{name[: _LONGEST_STEM - len(digest) - len(ending)]}-{digest}{ending}"
