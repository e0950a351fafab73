"""A file of a checkpoint as lines of text that Git compares: no offsets, ids or times."""

from __future__ import annotations

from collections.abc import Iterator

from ..format.checksums import hexdigest
from ..format.json_text import Json, collector_paused, dump
from ..format.limits import DEFAULT_LIMITS
from ..format.manifest import parse_manifest
from ..format.model import Manifest, entries_of
from ..inspect.facts import TensorFacts, tensors_of
from ..inspect.plain_values import (
    is_tensor,
    kind_of,
    members_of,
    references_at,
    short,
    tag_of,
    text_of,
    without_references,
)
from ..load.container import open_container
from ..load.options import ReadOptions
from ..state.references import REFERENCE_TAGS
from .api import is_readable

_LONGEST = 400
_BEGINNING = 4096


def lines_of(path: str) -> Iterator[str]:
    """The lines of a directory, a single file, a ``manifest.json`` alone, or a shard alone.

    Git calls this with temporary copies of single files, whatever their names.

    Raises:
        JsonckptError: it is no file of a checkpoint, or damaged.
    """
    with collector_paused():
        if not is_readable(path):  # a directory, or an error
            yield from _lines(open_container(path, ReadOptions.of()).manifest)
            return
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING)
            if b'"jsonckpt.manifest"' in beginning:
                most = DEFAULT_LIMITS.manifest_bytes
                rest = file.read(-1 if most is None else most + 1 - len(beginning))
                yield from _lines(parse_manifest(beginning + rest, DEFAULT_LIMITS))
                return
        if b'"jsonckpt.shard"' in beginning and b'"state":' not in _head(path):
            yield "a shard: manifest.json says what it holds"
            return
        yield from _lines(open_container(path, ReadOptions.of()).manifest)


def _head(path: str) -> bytes:
    """The text before the records of a file, at most as long as a manifest may be."""
    head = bytearray()
    with open(path, "rb") as file:
        for line in file:
            head += line
            if line.startswith(b'"tensors":[') or len(head) > (DEFAULT_LIMITS.manifest_bytes or 0):
                break
    return bytes(head)


def _lines(manifest: Manifest) -> Iterator[str]:
    tensors = {tensor.name: tensor for tensor in tensors_of(manifest)}
    for key, value in manifest.metadata.items():
        yield f"metadata {key}: {text_of(value, _LONGEST)}"
    pending: list[tuple[str, Json]] = [("", manifest.state)]
    while pending:
        place, value = pending.pop()
        members = None if is_tensor(value) else members_of(value, place)
        if members is not None:
            below = [(member.path, member.value) for member in members]
            if not below:
                yield f"{place or '/'}: empty {kind_of(value)}"
            pending += reversed(below)
            continue
        names = references_at(value)
        for name in names:
            yield _tensor_line(tensors[name], manifest.checksum)
        if names and tag_of(value) not in REFERENCE_TAGS:  # a parameter, an array, a sparse tensor
            yield f"{place or '/'}: {short(dump(without_references(value)).decode(), _LONGEST)}"
        if not names:
            yield f"{place or '/'}: {text_of(value, _LONGEST)}"


def _tensor_line(tensor: TensorFacts, algorithm: str) -> str:
    sums = [chunk[2] for entry in entries_of(tensor.entry) for chunk in entry.chunks]
    if len(sums) == 1:
        text = sums[0]
    else:  # a checksum of the checksums
        text = f"of {len(sums)} chunks {hexdigest(algorithm, ''.join(sums).encode())}"
    shared = "" if tensor.kind == "tensor" else f", {tensor.kind} of {tensor.entry.name}"
    return f"{tensor.name}: {tensor.dtype} {list(tensor.shape)}, {algorithm} {text}{shared}"
