"""The arguments of ``save`` that an adapter is given: checked before the training begins."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from ..errors import ArgumentError, quote
from ..save.api import save
from ..save.options import SaveOptions


def check_options(
    options: Mapping[str, Any], name: str, *, own: Collection[str] = ("single_file",)
) -> None:
    """Check arguments that are passed on to :func:`jsonckpt.save`.

    Args:
        name: who was given them.
        own: arguments of ``save`` that it decides itself.

    Raises:
        ArgumentError: one is not known, not for the caller, or not valid.

    >>> check_options({"compresion": "zstd"}, "JsonSaver")
    Traceback (most recent call last):
        ...
    jsonckpt.ArgumentError: JsonSaver does not take 'compresion'. It takes those of jsonckpt.save.
    """
    known = set(inspect.signature(save).parameters) - {"state", "path"}
    for one in options:
        if one in own:
            raise ArgumentError(f"{name} does not take {one}: it decides that itself")
        if one not in known:
            raise ArgumentError(
                f"{name} does not take {quote(one)}", hint="It takes those of jsonckpt.save."
            )
    SaveOptions.of(**{one: value for one, value in options.items() if one != "metadata"})
