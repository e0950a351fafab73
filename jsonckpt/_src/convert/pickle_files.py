"""Reads files of ``torch.save`` and other pickles, and refuses what only they can hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..pickles.unread import check, refuse_unread
from ..sources.torch_files import PickleOptions, load_torch_file, load_unpacked, pickle_kind
from .options import ConvertOptions
from .source import Source, look_at, size_on_disk
from .state_dicts import refuse_objects, state_dicts


def read_torch(path: Path, options: ConvertOptions, directory: Path) -> Source:
    """Read a file."""
    state = load_torch_file(path, directory, _pickle_options(options))
    look = look_at(path)
    return _of_pickle(state, pickle_kind(look.head), look.size, options)


def read_unpacked(path: Path, options: ConvertOptions, directory: Path) -> Source:
    """Read a directory that is an unpacked file of ``torch.save``."""
    state = load_unpacked(path, directory, _pickle_options(options))
    return _of_pickle(state, "unpacked PyTorch file", size_on_disk(path), options)


def refuse(state: Any, file: Path, *, objects: bool) -> None:
    """Refuse parts that were not made.

    Args:
        objects: also modules, optimizers and the like.

    Raises:
        UnsupportedTypeError: there is one.
    """
    refuse_unread(state, file)
    if objects:
        refuse_objects(state, file)


def _pickle_options(options: ConvertOptions) -> PickleOptions:
    return PickleOptions(
        options.unsafe_pickle, options.pickle_encoding, partial=True, limits=options.limits
    )


def _of_pickle(state: Any, kind: str, size: int, options: ConvertOptions) -> Source:
    notes: list[str] = []
    if options.state_dict:
        state, notes = state_dicts(state)
        if not options.unsafe_pickle:  # what was taken from objects was not looked at before
            check(state, options.limits.total_bytes(size))
    return Source(state, kind, size, notes, pickled=True)
