"""The additional checks of ``verify(deep=True)``: it decodes the state, and adds notes.

The state is decoded with tensors on the meta device, which have no data.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import JsonckptError, counted, quote
from ..format import number_list
from ..format.chunk_codec import ChunkCodec
from ..format.json_text import Json
from ..format.limits import Limits
from ..format.model import MANIFEST_NAME, Entry
from ..load.allocation import allocate_target
from ..load.container import Container
from ..load.selection import TensorSelection
from ..state.checks import malformed
from ..state.references import references_in
from ..state.torch_types import BUILTIN
from ..state.tree import OMIT, Decoder, Rule, Rules, decode_state
from ..storage.leftovers import orphans, single_temporaries
from ..storage.local import LocalLocation
from ..tensors.aliasing import StateReader

#: Decoding may copy an array of another byte order or column order. At most this many bytes of
#: distinct arrays are made. Further arrays are not checked.
_LARGEST_ARRAY = 16 << 20


def check_state(container: Container) -> None:
    """Decode the state, with tensors of the right dtype and shape but no data.

    Registered types are not called: verifying runs no code of the user.

    Raises:
        FormatError, LimitError: it cannot be decoded.
    """
    manifest = container.manifest
    names = {reference.name for reference in references_in(manifest.state)}
    without_data = TensorSelection.of(map_location="meta")
    shapes = {
        name: allocate_target(without_data, entry).finish()
        for name, entry in manifest.tensors.items()
    }
    rules = Rules({}, _RulesOrUnknown(BUILTIN.by_tag))
    copies = container.copies()
    copies.on_disk += sum(shard.bytes for shard in manifest.shards)
    decode_state(manifest.state, _MetaReader(StateReader(shapes, names, copies)), rules=rules)


class _RulesOrUnknown(dict[str, Rule]):
    """The built-in rules. Any other tag counts as a registered type: its value is decoded."""

    def get(self, tag: str, default: Any = None) -> Any:
        return super().get(tag, default or Rule(tag, (), lambda *_: None, _read_unknown))


def _read_unknown(body: Json, decoder: Decoder, path: str) -> Any:
    decoder.read(body, path)
    return OMIT


class _MetaReader:
    """Gives the state tensors without data."""

    def __init__(self, reader: StateReader) -> None:
        self.charge = reader.charge
        self._reader = reader
        self._arrays: dict[tuple[object, ...], Any] = {}
        self._left = _LARGEST_ARRAY

    def get(self, tag: str, body: Json, place: str) -> Any:
        """The tensor; left out if torch has none of its kind without data."""
        inner = body.get("data") if tag == "$parameter" and type(body) is dict else body
        kinds = {tag, *inner} if type(inner) is dict else {tag}
        if kinds & {"$sparse", "$quantized"}:
            return OMIT
        return self._reader.get(tag, body, place)

    def get_array(self, body: Json, place: str) -> Any:
        """An array of zeros of the right dtype and shape. It takes no memory."""
        [(tag, inner)] = [(tag, inner) for _, tag, inner in references_in(body)] or [("", None)]
        if not tag:
            return OMIT
        tensor = self._reader.get(tag, inner, place)
        try:
            if tensor.dtype is torch.complex32:  # torch warns about it
                raise TypeError("NumPy has no complex32")
            dtype = torch.empty(0, dtype=tensor.dtype, device="cpu").numpy().dtype
        except TypeError as error:
            raise malformed(place, f"NumPy has no {tensor.dtype}") from error
        key = (dtype, tensor.shape)
        if key not in self._arrays:
            array = np.broadcast_to(np.zeros((), dtype), tuple(tensor.shape))
            if array.nbytes > self._left:
                return OMIT
            self._left -= array.nbytes
            self._arrays[key] = array
        return self._arrays[key]


def state_notes(container: Container) -> Iterator[str]:
    """A note on tensors that the state does not use."""
    manifest = container.manifest
    needed = {reference.record for reference in references_in(manifest.state)}
    needed |= {entry.name for whole in manifest.wholes.values() for entry in whole.entries}
    unneeded = [name for name in manifest.by_name if name not in needed]
    if unneeded:
        yield f"{counted(len(unneeded), 'tensor')} not used by the state, e.g. {quote(unneeded[0])}"


def unsealed_notes(container: Container) -> list[str]:
    """A note if the seal is null: then no checksum covers the state."""
    return [] if container.manifest.sealed else [unsealed(container.single or MANIFEST_NAME)]


def unsealed(name: str) -> str:
    """What to say of a file that has no seal."""
    return f"{name} was edited by hand: its seal is null"


def leftover_notes(container: Container) -> Iterator[str]:
    """Files that killed saves left beside a local checkpoint."""
    if not isinstance(container.location, LocalLocation):
        return
    directory = Path(container.location.directory)
    if container.single is None:
        found = orphans(directory, container.manifest.own_files)
        found += single_temporaries(directory)
    else:
        found = single_temporaries(directory / container.single)
    if found:
        names = ", ".join(file.path.name for file in found[:3])
        yield f"{counted(len(found), 'leftover')} of killed saves ({names}): see jsonckpt gc"


def spelling_notes(container: Container, entry: Entry, limits: Limits) -> Iterator[str]:
    """A note on number lists that are not written as this package writes them."""
    name = container.shard_of(entry).name
    if entry.codec.encoding != "list" or name.endswith(".zst") or container.any_layout:
        return
    coder = ChunkCodec(zstd_window=limits.zstd_window)
    other = 0
    try:
        with container.location.file(name) as file:
            for chunk, (offset, length, _) in enumerate(entry.chunks):
                payload = bytearray(length)
                file.read_range(offset, memoryview(payload))
                start, stop = entry.raw_range(chunk)
                raw = memoryview(bytearray(stop - start))
                coder.decode_into(memoryview(payload), entry.codec, entry.dtype, raw)
                other += number_list.encode(raw, entry.dtype) != payload
    except JsonckptError:
        return  # this is damage, and has been reported
    if other:
        yield (
            f"tensor {quote(entry.name)}: {counted(other, 'chunk')} with numbers that are not in "
            "their shortest spelling"
        )
