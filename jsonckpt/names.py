"""Names of tensors (JSON Pointers, RFC 6901), how they are chosen, and names of shard files.

Pure text: nothing here opens a file.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Sequence

from jsonckpt.errors import ArgumentError, UnsafePathError, quote
from jsonckpt.facts import MANIFEST_NAME

__all__ = [
    "Selector",
    "check_shard_name",
    "check_single_name",
    "escape",
    "is_part",
    "is_shard_name",
    "is_single",
    "join",
    "path_text",
    "selector",
    "shard_name",
    "temporary_name",
    "temporary_stem",
    "unescape",
]

Selector = str | Sequence[str] | Callable[[str], bool]

_SHARD = re.compile(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?")
#: Characters, each of up to 4 bytes, that a temporary name keeps of the 255 bytes of a name.
_LONGEST_STEM = 50
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")


def escape(key: str) -> str:
    """A key as one segment of a JSON Pointer.

    ``~`` and ``/`` are escaped as RFC 6901 says; control characters and lone surrogates, which a
    name may not hold, are spelled ``\\uXXXX``.

    >>> escape("a/b~c")
    'a~1b~0c'
    """
    text = key.replace("~", "~0").replace("/", "~1")
    return _UNPRINTABLE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def unescape(segment: str) -> str:
    """The inverse of :func:`escape` for ``~0`` and ``~1``.

    >>> unescape("a~1b~0c")
    'a/b~c'
    """
    return segment.replace("~1", "/").replace("~0", "~")


def join(pointer: str, key: str) -> str:
    """The pointer of the member ``key`` below ``pointer``.

    >>> join("/model", "a/b")
    '/model/a~1b'
    """
    return f"{pointer}/{escape(key)}"


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


def selector(
    include: Selector | None, exclude: Selector | None
) -> tuple[Callable[[str], bool], Callable[[Iterable[str]], list[str]]]:
    """What ``include=`` and ``exclude=`` mean, as two functions.

    A selector is a name, a glob (``*``, ``?``, ``[…]``; ``*`` crosses ``/``), a sequence of these,
    or a callable on names. A plain name also selects everything below it.

    Returns:
        ``chosen(name)``, and ``unmatched(names)``: the plain names in ``include`` that select
        nothing of ``names``, which is nearly always a slip of the pen.

    >>> chosen, unmatched = selector(["/model/*", "/epoch"], "*.bias")
    >>> chosen("/model/w"), chosen("/model/w.bias"), chosen("/optimizer/0")
    (True, False, False)
    >>> unmatched(["/model/w"])
    ['/epoch']
    """
    included = _matcher(include) if include is not None else None
    excluded = _matcher(exclude) if exclude is not None else None

    def chosen(name: str) -> bool:
        if included is not None and not included(name):
            return False
        return excluded is None or not excluded(name)

    def unmatched(names: Iterable[str]) -> list[str]:
        if include is None or callable(include):
            return []
        patterns = [include] if isinstance(include, str) else list(include)
        plain = [pattern for pattern in patterns if not _is_glob(pattern)]
        known = set(names) if plain else set()
        missing = [pattern for pattern in plain if pattern not in known]
        return [p for p in missing if not any(name.startswith(f"{p}/") for name in known)]

    return chosen, unmatched


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matcher(select: Selector) -> Callable[[str], bool]:
    if callable(select):
        return select
    patterns = [select] if isinstance(select, str) else list(select)
    exact = set(patterns)
    below = tuple(f"{p.rstrip('/')}/" for p in patterns if not _is_glob(p))
    globs = [re.compile(fnmatch.translate(p)).match for p in patterns if _is_glob(p)]

    def matches(name: str) -> bool:
        return (
            name in exact
            or (bool(below) and name.startswith(below))
            or any(glob(name) is not None for glob in globs)
        )

    return matches


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


def path_text(value: object, argument: str = "path", also: str = "") -> str:
    """An argument that must be a path, as text.

    Args:
        argument: what the caller calls it.
        also: what else it may be, for the message.

    Raises:
        ArgumentError: it is no path, or no system has such a path.

    >>> path_text("run/c.json")
    'run/c.json'
    """
    if hasattr(value, "read") or hasattr(value, "write"):
        hint = "save, load and stream take file objects; here give the path of the checkpoint."
        raise ArgumentError(f"{argument} is a file object, expected a path", hint=hint)
    try:
        text = os.fspath(value)  # type: ignore[call-overload]
    except TypeError:
        text = None
    if not isinstance(text, str):
        kind = "bytes" if isinstance(text, bytes) else type(value).__name__
        raise ArgumentError(
            f"{argument} must be str or os.PathLike[str]{also}, not {quote(kind)}",
            hint="The order is save(state, path), load(path), load_into(target, path)."
            if argument == "path"
            else None,
        )
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise ArgumentError(f"{argument} {quote(text)} cannot be the name of a file") from error
    if "\0" in text:
        raise ArgumentError(f"{argument} {quote(text)} holds a NUL, which no path does")
    return text


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
