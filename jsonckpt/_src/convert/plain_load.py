"""Looks into a new ``.pt``: what plain ``torch.load`` refuses in it, and whether it reads back."""

from __future__ import annotations

import re
import warnings
from contextlib import suppress
from pathlib import Path

import torch

from ..errors import JsonckptError, UnsupportedTypeError, listed, quote
from ..sources.torch_files import load_torch_file

_NAMED = re.compile(r"GLOBAL ([\w.<>]+) was not an allowed global")
_SHOWN = 10


def plain_load_notes(path: Path, *, unsafe_pickle: bool) -> list[str]:
    """What ``torch.load(path, weights_only=True)`` refuses in a file, in words for a note.

    The file is really loaded, with mapped tensors. No code from it runs.

    Args:
        unsafe_pickle: accept a file that this package reads only with ``--unsafe-pickle``.

    Raises:
        UnsupportedTypeError: this package could not read the file back.
    """
    with warnings.catch_warnings():
        # Warnings are about sparse and quantized tensors, which the state has already.
        warnings.simplefilter("ignore")
        try:
            torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            return []
        except Exception as error:  # the unpickler raises anything
            refused = error
        what = _refused_types(path, refused)
        note = (
            f"plain torch.load refuses this file: {what}; load it with weights_only=False, or "
            "allow the types first by torch.serialization.add_safe_globals([...])"
        )
        try:
            load_torch_file(path, path.parent)
        except JsonckptError as error:
            if not unsafe_pickle:
                raise UnsupportedTypeError(
                    f"a .pt of this state could not be read back without pickle: {what}",
                    hint="Leave it out with --exclude, write a jsonckpt checkpoint, or pass "
                    "--unsafe-pickle to write the file all the same.",
                ) from error
            note += "; this package reads it only with --unsafe-pickle"
        return [note]


def _refused_types(path: Path, error: Exception) -> str:
    """The types that a file needs and ``torch.load`` does not allow, or what it says."""
    lister = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    names: list[str] = _NAMED.findall(str(error))
    if lister is not None:
        with suppress(Exception):  # it reads fewer kinds of values than the unpickler
            names = sorted(set(lister(path)))
    if names:
        return f"it has {listed(names, _SHOWN)}"
    reason = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0]
    return f"it says {quote(reason, 120)}"
