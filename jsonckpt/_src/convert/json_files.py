"""Reads JSON of other programs from a file: plain, or compressed with gzip or zstd."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..errors import FormatError
from ..foreign.payloads import dtype_named
from ..foreign.read_json import read_foreign
from ..foreign.values import ForeignOptions
from ..json_stream.spooled import tensor_spool
from ..progress import progress_on
from ..sources.kinds import JSON
from ..sources.tensorflowjs import load_tensorflowjs
from .compressed import Bounded, Unpack
from .options import ConvertOptions
from .source import Source

_SEVERAL = (
    "More than one JSON text is in it: if each line is one (JSON Lines), convert one line, such as "
    "the last: tail -n 1 PATH > last.json"
)


def read_json(
    path: Path,
    options: ConvertOptions,
    directory: Path,
    unpack: Unpack | None = None,
) -> Source:
    """Read a file.

    Args:
        unpack: decompresses it.

    Raises:
        JsonckptError: it cannot be read.
    """
    size = path.stat().st_size
    most = options.limits.total_bytes(size)
    limit = 1 << 62 if most is None else most

    @contextmanager
    def opened() -> Iterator[Any]:
        with path.open("rb") as file:
            if unpack is None:
                yield file
            else:
                with unpack(file) as stream:
                    yield Bounded(stream, limit)

    limits = options.limits.for_text(size)
    with tensor_spool(directory) as spool:
        model = load_tensorflowjs(path, opened, spool, directory, limits)
    if model is not None:
        whole, parts = size + model.nbytes, model.parts
        return Source(model.state, "TensorFlow.js model", whole, model.notes, parts=parts)
    foreign = ForeignOptions(
        options.plain_lists,
        options.tie,
        options.shapes,
        tensors=options.tensors,
        floats=_float_dtype(options.dtype),
        load_pickle=partial(_load_pickle, options=options, directory=directory),
        limit=limit,
        marks=limits.marks,
    )
    total = size if unpack is None else None
    with opened() as text, progress_on(options.progress, "reading", total) as advance:
        try:
            state, notes = read_foreign(text, directory, foreign, advance)
        except FormatError as error:
            hint = _SEVERAL if "trailing garbage" in error.message else None
            raise error.at(hint=hint) from error.__cause__
    return Source(state, JSON.name, size, notes)


def _load_pickle(path: Path, options: ConvertOptions, directory: Path) -> Any:
    """The state in a file of ``torch.save`` that the text embeds as base64."""
    from ..sources.torch_files import PickleOptions, load_torch_file

    chosen = PickleOptions(options.unsafe_pickle, options.pickle_encoding, limits=options.limits)
    return load_torch_file(path, directory, chosen)


def _float_dtype(wanted: str | None) -> torch.dtype:
    """The dtype of floats whose dtype the text does not say. ``wanted`` may keep more digits."""
    dtype = torch.float32 if wanted is None else dtype_named(wanted)[0]
    return torch.float64 if dtype is torch.float64 else torch.float32
