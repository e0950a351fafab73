"""The facts of a checkpoint: a pure function of its manifest. torch is not needed.

Call :func:`facts_of` with a manifest that was opened and checked::

    container = open_container(path, ReadOptions.of())          # load.container
    facts = facts_of(container.manifest, path=container.path)

or ``inspect.api.inspect(path)``, which adds what the files say (sizes, digest). Then:

- ``facts.tensors``: one :class:`TensorFacts` for each place of the state that holds a tensor, ties
  and views included, in the order of the state. ``entry`` is the record that has its bytes.
- ``facts.state``: epoch, step, rates, schedule, history, RNG … as :class:`StateFact`, each with the
  path in the state.
- ``facts.groups()``, ``facts.groups(2)``: elements and bytes by prefixes of the names.
- ``facts.manifest.state``: the JSON of the state; ``plain_values`` and ``tree`` read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..errors import FormatError, counted, quote
from ..format.dtypes import DTYPES
from ..format.model import Manifest, Stored, contiguous_stride, element_count, entries_of
from ..progress import human
from ..state.checks import integer_between, members, one_of, sizes
from ..state.references import OWN_TAGS, Reference, references_in
from .state_facts import StateFact, facts_of_state

_SEGMENT = re.compile(r"[/.][^/.]+")


@dataclass(frozen=True, slots=True)
class TensorFacts:
    """A tensor of a state.

    Attributes:
        name: its JSON Pointer.
        dtype, shape: of the tensor; ``dtype`` without ``torch.``
        numel: number of elements.
        nbytes: raw bytes.
        stored_bytes: of its text; 0 if another place has it.
        kind: ``"tensor"``, ``"tied"`` (the same memory as another one) or ``"view"``.
        entry: the record that holds its bytes, or several that are put together.
        owns: whether it is the first place with this record: sums count it once.
        stride, offset: of a view in the record, in elements of ``dtype``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    numel: int
    nbytes: int
    stored_bytes: int
    kind: str
    entry: Stored = field(repr=False)
    owns: bool = True
    stride: tuple[int, ...] | None = None
    offset: int = 0

    def steps(self) -> list[int]:
        """The strides of the tensor that is loaded, where a dimension has two elements or more."""
        stride = self.entry.layout.stride if self.kind != "view" else self.stride
        pairs = zip(self.shape, stride or contiguous_stride(self.shape))
        return [step for size, step in pairs if size > 1] if self.numel else []

    @property
    def is_row_major(self) -> bool:
        """Whether its elements lie one after another in its record."""
        return (
            self.kind != "view"
            or self.steps()
            == [step for size, step in zip(self.shape, contiguous_stride(self.shape)) if size > 1]
            or not self.numel
        )


@dataclass(frozen=True, slots=True)
class Group:
    """Tensors whose names begin alike. Memory that several places share counts once.

    Attributes:
        name: the beginning of the names.
        tensors: number of places, ties and views included.
        numel, nbytes, stored_bytes: elements, raw bytes, bytes of text.
    """

    name: str
    tensors: int
    numel: int
    nbytes: int
    stored_bytes: int


@dataclass(frozen=True, repr=False)
class Inspection:
    """What a checkpoint holds.

    Attributes:
        path: as it was given; ``"-"`` for a pipe.
        kind: ``"directory"``, ``"file"`` or ``"pipe"``.
        save_id, created_at, created_by, checksum, metadata: as they were saved.
        sealed: whether a seal covers the text; ``False`` after an edit by hand.
        digest: of the whole: ``SaveResult.digest``. ``None`` if nothing covers the whole.
        pin: the digest, if ``expected_digest=`` takes it, else ``None``.
        files, file_bytes: number of files, and their bytes on disk.
        tensors: in the order of the state.
        state: epoch, step, learning rates, schedule, history, RNG and the other plain values.
        manifest: the manifest, with the JSON of the whole state.
    """

    path: str
    kind: str
    save_id: str
    created_at: str
    created_by: str
    checksum: str
    metadata: dict[str, Any]
    sealed: bool
    digest: str | None
    pin: str | None
    files: int
    file_bytes: int
    tensors: tuple[TensorFacts, ...]
    state: tuple[StateFact, ...]
    manifest: Manifest

    @property
    def nbytes(self) -> int:
        """Raw bytes of all tensors, shared memory once."""
        return self.manifest.nbytes

    @cached_property
    def stored_bytes(self) -> int:
        """Bytes of the text of all tensors."""
        return self.manifest.totals()["stored_bytes"]

    @property
    def numel(self) -> int:
        """Elements of all tensors, shared memory once."""
        return sum(group.numel for group in self.dtypes())

    @property
    def ratio(self) -> float | None:
        """Bytes on disk for each raw byte, if both are known."""
        return self.file_bytes / self.nbytes if self.nbytes and self.file_bytes else None

    def groups(self, depth: int = 1) -> list[Group]:
        """Elements and bytes by the first ``depth`` parts of the names, in their order."""
        return groups_of(self.tensors, depth)

    def codecs(self) -> list[Group]:
        """Elements and bytes by encoding, such as ``"base64, zstd, shuffle"``."""
        return _sums((_codec_text(t.entry), t) for t in self.tensors if t.owns)

    def dtypes(self) -> list[Group]:
        """Elements and bytes by dtype."""
        return _sums((t.entry.dtype, t) for t in self.tensors if t.owns)

    def count(self, kind: str) -> int:
        """Number of tensors of a kind: ``"tensor"``, ``"tied"`` or ``"view"``."""
        return sum(tensor.kind == kind for tensor in self.tensors)

    def __repr__(self) -> str:
        return (
            f"Inspection({self.path!r}, {counted(len(self.tensors), 'tensor')}, "
            f"{human(self.nbytes)})"
        )


def facts_of(
    manifest: Manifest,
    *,
    path: str = "",
    kind: str = "directory",
    files: int | None = None,
    file_bytes: int = 0,
    digest: str | None = None,
    pin: str | None = None,
) -> Inspection:
    """The facts of a manifest. What it does not say (sizes on disk, digest) comes as arguments.

    Raises:
        FormatError: the state refers to a record that does not exist, or contradicts itself.
    """
    return Inspection(
        path=path,
        kind=kind,
        save_id=manifest.save_id,
        created_at=manifest.created_at,
        created_by=manifest.created_by,
        checksum=manifest.checksum,
        metadata=manifest.metadata,
        sealed=manifest.sealed,
        digest=digest,
        pin=pin,
        files=len(manifest.shards) + 1 if files is None else files,
        file_bytes=file_bytes,
        tensors=tensors_of(manifest),
        state=tuple(facts_of_state(manifest.state)),
        manifest=manifest,
    )


def tensors_of(manifest: Manifest) -> tuple[TensorFacts, ...]:
    """The tensors of a state, one for each place.

    Raises:
        FormatError: as :func:`facts_of`.
    """
    found: dict[str, TensorFacts] = {}
    bodies: dict[str, Any] = {}
    owned: set[str] = set()
    for reference in references_in(manifest.state):
        if bodies.setdefault(reference.name, reference.body) != reference.body:
            raise FormatError(f"the state contradicts itself on the tensor {quote(reference.name)}")
        record = reference.record
        entry = manifest.tensors.get(record)
        if entry is None:
            raise FormatError(
                f"the state refers to the tensor {quote(record)}, which does not exist"
            )
        if reference.name not in found:
            found[reference.name] = _facts(reference, entry, record not in owned)
            owned.add(record)
    return tuple(found.values())


def _facts(reference: Reference, entry: Stored, owns: bool) -> TensorFacts:
    name, tag, body = reference
    dtype, shape, kind = entry.dtype, entry.shape, "tensor" if tag in OWN_TAGS else tag[1:]
    stride, offset = None, 0
    if tag == "$view":
        parts = members(body, f"{name}/$view", "dtype", "shape", "stride", "offset")
        dtype = one_of(*parts.at("dtype"), DTYPES)
        shape, stride = tuple(sizes(*parts.at("shape"))), tuple(sizes(*parts.at("stride")))
        offset = integer_between(*parts.at("offset"))
        if len(stride) != len(shape):
            raise FormatError("a view has as many strides as sizes", tensor=name)
    numel = element_count(shape)
    nbytes = numel * DTYPES[dtype].itemsize
    chunks = (chunk for each in entries_of(entry) for chunk in each.chunks) if owns else ()
    stored = sum(chunk[1] for chunk in chunks)
    return TensorFacts(name, dtype, shape, numel, nbytes, stored, kind, entry, owns, stride, offset)


def groups_of(tensors: Iterable[TensorFacts], depth: int = 1) -> list[Group]:
    """Sums by the first ``depth`` parts of the names. ``/`` and ``.`` separate parts.

    The last part is the tensor's own and makes no group, unless it is the only one.
    """
    return _sums((group_name(tensor.name, depth), tensor) for tensor in tensors)


def group_name(name: str, depth: int) -> str:
    """The group of a name.

    >>> group_name("/model/layers.0.weight", 1), group_name("/model/layers.0.weight", 3)
    ('/model', '/model/layers.0')
    >>> group_name("/model/layers.0.weight", 9), group_name("/w", 2)
    ('/model/layers.0', '/w')
    """
    ends = [match.end() for match in _SEGMENT.finditer(name)]
    if not ends:
        return name
    return name[: ends[max(0, min(depth, len(ends) - 1) - 1)]]


def _sums(pairs: Iterable[tuple[str, TensorFacts]]) -> list[Group]:
    sums: dict[str, list[int]] = {}
    for name, tensor in pairs:
        row = sums.setdefault(name, [0, 0, 0, 0])
        row[0] += 1
        if tensor.owns:  # a record counts once: a view of it may be smaller or larger
            row[1] += tensor.entry.nbytes // DTYPES[tensor.entry.dtype].itemsize
            row[2] += tensor.entry.nbytes
            row[3] += tensor.stored_bytes
    return [Group(name, *row) for name, row in sums.items()]


def _codec_text(entry: Stored) -> str:
    codec = entry.codec
    parts = [codec.encoding, codec.compression, codec.filter]
    return ", ".join(part for part in parts if part != "none")
