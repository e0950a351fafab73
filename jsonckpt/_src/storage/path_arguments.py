"""Checks the paths and options that a caller passes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from ..errors import ArgumentError, JsonckptError, quote

#: A scheme (but not a Windows drive) with one slash instead of the two of a URL.
_LOST_SLASH = re.compile(r"(?:.*::)?([A-Za-z][A-Za-z0-9+.-]+):/(?!/)")


def is_url(path: str) -> bool:
    """Whether a path names a file system of fsspec.

    >>> is_url("s3://bucket/run"), is_url("runs/a.json")
    (True, False)
    """
    return "://" in path


def path_text(value: object, argument: str = "path", also: str = "") -> str:
    """An argument that must be a path, as text.

    Args:
        argument: its name, for messages.
        also: other types that it may have, for messages.

    Raises:
        ArgumentError: it cannot be a path.
        JsonckptError: it is a URL that lost a slash in ``pathlib``.

    >>> path_text("run/c.json")
    'run/c.json'
    """
    if hasattr(value, "read") or hasattr(value, "write"):
        hint = "save, load and stream take file objects; give the path of the checkpoint here."
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
            f"{quote(text)} is a URL that has lost a slash, which pathlib.Path does",
            hint=f"Pass a string that begins with {lost[1]}://; a directory of that name is "
            f"./{lost[1]}:",
        )
    if "\0" in text:
        raise ArgumentError(f"{argument} {quote(text)} contains a NUL, which no path can")
    return text


def check_storage_options(storage_options: object) -> None:
    """Check that the options for fsspec are a dictionary, or ``None``.

    Raises:
        ArgumentError: they are something else.
    """
    if storage_options is not None and not isinstance(storage_options, Mapping):
        raise ArgumentError(
            f"storage_options must be a dictionary, not {quote(type(storage_options).__name__)}"
        )


def without_query(url: str) -> str:
    """A URL for messages, without the query of a web address, which may hold a secret.

    >>> without_query("https://x.org/c.json?token=abc"), without_query("s3://b/why?")
    ('https://x.org/c.json', 's3://b/why?')
    """
    return url.partition("?")[0] if url.startswith(("http://", "https://")) else url
