"""The golden checkpoints: what each holds, and how it was saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from tests.golden.elements import DTYPES, NEWER_DTYPES, every_dtype, floats
from tests.golden.expected import (
    chunked,
    cut_in_regions,
    gpt2,
    in_regions,
    names,
    numpy_values,
    plain_values,
    random_states,
    shared,
    storages,
    strided,
    tensors,
    torch_values,
    zones,
)
from tests.golden.registered import registered
from tests.regions import Cut, save_in_regions


@dataclass(frozen=True)
class Case:
    """One golden checkpoint.

    Attributes:
        path: in ``v1``; a directory unless it ends in ``.json`` or ``.json.zst``.
        state: builds what it holds.
        options: how it was saved.
        codecs: the ``(encoding, compression, filter)`` that its records have, all of them.
        shards: how many a directory has.
        needs: what torch must have to hold the state.
        needs_zones: whether the time zones of the system are needed.
        needs_types: whether the reader must know registered types.
        cut: how its tensors are cut into regions.
    """

    path: str
    state: Callable[[], Any]
    options: dict[str, Any] = field(default_factory=dict)
    codecs: frozenset[str] = frozenset({"base64"})
    shards: int = 1
    needs: tuple[str, ...] = ()
    needs_zones: bool = False
    needs_types: bool = False
    cut: Cut | None = None

    def save(self, path: Path, **options: Any) -> None:
        """Save the state, some tensors in regions if the case says so."""
        if self.cut is None:
            jsonckpt.save(self.state(), path, **self.options, **options)
        else:
            save_in_regions(self.state(), path, self.cut, shuffle=3, **self.options, **options)


_METADATA = {"note": 'é " \\ \n $', "nested": {"$tensor": "/x", "list": [1, 2.5, None, True, {}]}}
_SHA = {"checksum": "sha256"}
_SMALL = {"chunk_size": 64}
_ZSTD = {"compression": "zstd"}
_LIST = {"encoding": "list"}
_NEWER = tuple(NEWER_DTYPES)

CASES = [
    Case("dtypes.json", lambda: every_dtype(DTYPES), {**_SMALL, **_SHA}),
    Case("dtypes-newer.json", lambda: every_dtype(NEWER_DTYPES), {**_SMALL, **_SHA}, needs=_NEWER),
    Case("dtypes-list.json", lambda: every_dtype(DTYPES), {**_LIST, **_SMALL}, frozenset({"list"})),
    Case(
        "dtypes-list-newer.json",
        lambda: every_dtype(NEWER_DTYPES),
        {**_LIST, **_SMALL},
        frozenset({"list"}),
        needs=_NEWER,
    ),
    Case("chunks.json", chunked, {"chunk_size": 100, "metadata": _METADATA}),
    Case(
        "chunks-shuffle.json",
        chunked,
        {"chunk_size": 1000, "filter": "shuffle"},
        frozenset({"base64 shuffle"}),
    ),
    Case(
        "chunks-zstd.json",
        chunked,
        {"chunk_size": 256, **_ZSTD, "filter": "none"},
        frozenset({"base64", "base64 zstd"}),
    ),
    Case(
        "chunks-zstd-shuffle",
        chunked,
        {"chunk_size": 512, **_ZSTD, **_SHA, "max_shard_size": 2500, "metadata": _METADATA},
        frozenset({"base64", "base64 zstd", "base64 zstd shuffle"}),
        shards=7,
    ),
    Case("chunks.json.zst", chunked, {"chunk_size": 400}),
    Case(
        "chunks-list.json.zst", chunked, {**_LIST, **_ZSTD, "chunk_size": 400}, frozenset({"list"})
    ),
    Case(
        "chunks-list-zstd",
        chunked,
        {**_LIST, **_ZSTD, **_SHA, "chunk_size": 400, "max_shard_size": 4000},
        frozenset({"list"}),
        shards=7,
    ),
    Case("plain.json", plain_values, {"metadata": _METADATA}, frozenset()),
    Case("plain", plain_values, _SHA, frozenset(), shards=0),
    Case("zones.json", zones, {}, frozenset(), needs_zones=True),
    Case("numpy.json", numpy_values, _SHA),
    Case("numpy-list", numpy_values, _LIST, frozenset({"list"})),
    Case("torch.json", torch_values, {}, frozenset()),
    Case("tensors.json", tensors),
    Case("tensors-list", tensors, {**_LIST, **_SHA}, frozenset({"list"})),
    Case("names.json", names, _SHA),
    Case("names", names),
    Case("shared.json", shared, _SHA),
    Case("shared", shared, {"chunk_size": 16, "max_shard_size": 3000}, shards=3),
    Case("strides.json", strided, {**_SHA, "chunk_size": 48}),
    Case("strides", strided, _LIST, frozenset({"list"})),
    Case("storages.json", storages, {**_SHA, "chunk_size": 48}),
    Case("storages", storages, {"max_shard_size": 1500}, shards=4),
    Case("random.json.zst", random_states, _SHA),
    Case(
        "random",
        random_states,
        _ZSTD,
        frozenset({"base64", "base64 zstd", "base64 zstd shuffle"}),
    ),
    Case("gpt2-adamw", gpt2, {**_ZSTD, **_SHA}, frozenset({"base64", "base64 zstd shuffle"})),
    Case("gpt2-adamw.json", gpt2, {"metadata": {"step": 12}}),
    Case("registered.json", registered, needs_types=True),
    Case("regions.json", in_regions, {**_SHA, "chunk_size": 64}, cut=cut_in_regions),
    Case(
        "regions",
        in_regions,
        {**_LIST, "chunk_size": 64, "max_shard_size": 6000},
        frozenset({"list"}),
        shards=6,
        cut=cut_in_regions,
    ),
    Case("root-tensor.json", lambda: floats(2, 3)),
    Case("root-tensor", lambda: torch.nn.Parameter(floats(5)), _LIST, frozenset({"list"})),
    Case("root-none.json", lambda: None, {}, frozenset()),
    Case("root-list", lambda: [floats(2), (floats(1), "x")]),
]
