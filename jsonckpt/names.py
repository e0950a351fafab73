"""Names of tensors (JSON Pointers, RFC 6901), how they are chosen, and names of shard files.

Pure text: nothing here opens a file.
"""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice

from jsonckpt.errors import ArgumentError, JsonckptError, StateMismatchError, UnsafePathError, quote
from jsonckpt.facts import MANIFEST_NAME

__all__ = [
    "Selector",
    "Unmatched",
    "check_shard_name",
    "check_single_name",
    "check_storage_options",
    "escape",
    "is_part",
    "is_shard_name",
    "is_single",
    "is_url",
    "join",
    "path_text",
    "refuse_unmatched",
    "selector",
    "shard_name",
    "temporary_name",
    "temporary_stem",
    "unescape",
    "without_query",
]

Selector = str | Sequence[str] | Callable[[str], bool]

_SHARD = re.compile(r"shard-[0-9a-z-]{1,100}\.json(\.zst)?")
#: Characters, each of up to 4 bytes, that a temporary name keeps of the 255 bytes of a name.
_LONGEST_STEM = 50
#: A scheme, which a Windows drive is not, and one slash where a URL has two.
_LOST_SLASH = re.compile(r"(?:.*::)?([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")
#: Names among which the nearest are looked for; comparing takes about 10 µs each.
_MOST_COMPARED = 5_000
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


Unmatched = list[tuple[str, str]]


def selector(
    include: Selector | None, exclude: Selector | None
) -> tuple[Callable[[str], bool], Callable[..., Unmatched]]:
    """What ``include=`` and ``exclude=`` mean, as two functions.

    A selector is a name, a glob (``*``, ``?``, ``[…]``; ``*`` crosses ``/``), a sequence of these,
    or a callable on names. A plain name also selects everything below it. The slash that a name
    begins with may be left out.

    Returns:
        ``chosen(name)``, and ``unmatched(names, places=())``: the patterns that match nothing of
        ``names``, which is nearly always a slip of the pen, each as ``("include", pattern)`` or
        ``("exclude", pattern)``. ``places`` are there without being tensors: a pattern in
        ``exclude`` may match these, too. Callables are taken as they are.

    >>> chosen, unmatched = selector(["/model/*", "/epoch"], "*.bias")
    >>> chosen("/model/w"), chosen("/model/w.bias"), chosen("/optimizer/0")
    (True, False, False)
    >>> unmatched(["/model/w"])
    [('include', '/epoch'), ('exclude', '*.bias')]
    >>> selector("model/*", None)[0]("/model/w")
    True
    """
    included = _matcher(include) if include is not None else None
    excluded = _matcher(exclude) if exclude is not None else None

    def chosen(name: str) -> bool:
        if included is not None and not included(name):
            return False
        return excluded is None or not excluded(name)

    def unmatched(names: Iterable[str], places: Iterable[str] = ()) -> Unmatched:
        wanted = [("include", pattern) for pattern in _patterns(include)]
        wanted += [("exclude", pattern) for pattern in _patterns(exclude)]
        known = set(names) if wanted else set()
        beside = list(places) if wanted else []
        return [
            (argument, pattern)
            for argument, pattern in wanted
            # Looked up first, for a list of patterns may be as long as that of the names.
            if not (pattern in known or f"/{pattern}" in known)
            and not any(map(_matcher(pattern), known))
            and not (argument == "exclude" and any(map(_matcher(pattern), beside)))
        ]

    return chosen, unmatched


def refuse_unmatched(unmatched: Unmatched, names: Iterable[str], *, option: str = "") -> None:
    """Say which selector selects nothing, and what it may have meant.

    Args:
        unmatched: as :func:`selector` finds it.
        names: what there is.
        option: what stands before the argument's name on a command line.

    Raises:
        StateMismatchError: there is one.
    """
    if not unmatched:
        return
    argument, pattern = unmatched[0]
    known = list(islice(names, _MOST_COMPARED))
    above = {name[:end]: None for name in known for end in _ends(name)}
    candidates = [*above, *known][:_MOST_COMPARED]
    wanted = pattern if pattern.startswith("/") else f"/{pattern}"
    near = difflib.get_close_matches(wanted.rstrip("*").rstrip("/") or "/", candidates, 3, 0.6)
    if near:
        hint = f"Did you mean {' or '.join(quote(name) for name in near)}?"
    elif known:
        hint = f"There {'is' if len(known) == 1 else 'are'} {', '.join(map(quote, known[:3]))}"
        hint += ", …; " if len(known) > 3 else "; "
        hint += "a name is the path of keys to a tensor, /model/layer.weight for example."
    else:
        hint = "There are no tensors."
    raise StateMismatchError(
        f"{option}{argument} {quote(pattern, 200)} selects no tensor",
        missing=[pattern for _, pattern in unmatched],
        hint=hint,
    )


def _ends(name: str) -> Iterator[int]:
    """Where the names of the containers end that hold the tensor of this name."""
    at = name.find("/", 1)
    while at > 0:
        yield at
        at = name.find("/", at + 1)


def _patterns(select: Selector | None) -> list[str]:
    if select is None or callable(select):
        return []
    return [select] if isinstance(select, str) else list(select)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matcher(select: Selector) -> Callable[[str], bool]:
    if callable(select):
        return select
    # Names begin with a slash, but for the one of a state that is a tensor (which is empty) and
    # those of shared memory in a lone shard.
    patterns = _patterns(select)
    patterns += [f"/{pattern}" for pattern in patterns if pattern and pattern[0] != "/"]
    exact = set(patterns)
    below = tuple(f"{p.removesuffix('/')}/" for p in patterns if not _is_glob(p))
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


def is_url(path: str) -> bool:
    """Whether a path leads to a file system of fsspec.

    >>> is_url("s3://bucket/run"), is_url("runs/a.json")
    (True, False)
    """
    return "://" in path


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
        JsonckptError: ``pathlib`` has made one slash of a URL's two, which would be a directory.

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
    lost = _LOST_SLASH.match(text)
    if lost and not is_url(text):
        raise JsonckptError(
            f"{quote(text)} is a URL that has lost a slash, as pathlib.Path makes of it",
            hint=f"Pass a string that begins with {lost[1]}://; a directory of that name is "
            f"./{lost[1]}:",
        )
    if "\0" in text:
        raise ArgumentError(f"{argument} {quote(text)} holds a NUL, which no path does")
    return text


def check_storage_options(storage_options: object) -> None:
    """Whether the options for fsspec are a dictionary, or not given.

    Raises:
        ArgumentError: they are something else.
    """
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise ArgumentError(
            f"storage_options must be a dictionary, not {quote(type(storage_options).__name__)}"
        )


def without_query(url: str) -> str:
    """A URL for messages: the query of a web address may hold a secret.

    >>> without_query("https://x.org/c.json?token=abc"), without_query("s3://b/why?")
    ('https://x.org/c.json', 's3://b/why?')
    """
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url


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
