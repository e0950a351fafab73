"""``open``: a checkpoint as a mapping of names to tensors that are read on demand."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..boxes import box_of_index
from ..errors import ArgumentError, FormatError, JsonckptError, printable, quote
from ..format.dtypes import DTYPES
from ..format.json_text import collector_paused
from ..format.limits import Copies, Limits
from ..format.model import (
    PLAIN,
    Codec,
    Header,
    Manifest,
    Stored,
    element_count,
    entries_of,
    parts_of,
)
from ..state.references import references_in
from ..state.registry import default_rules
from ..state.selector import Selector, near_names
from ..state.torch_types import BUILTIN
from ..state.tree import decode_state
from ..tensors.aliasing import StateReader
from ..tensors.map_location import MapLocation
from ..tensors.memory import torch_dtype
from ..tensors.pieces import same_bits
from .allocation import allocate_target, new_target, parts_in_box, read_box, read_tensor
from .api import load_container
from .container import Container, open_container
from .notebook import children, html, overview
from .options import ReadOptions
from .restore import StateBuilder
from .selection import TensorSelection

#: Tags around a tensor, and tags of tensors that are made of several values.
_WRAPPERS = frozenset({"$parameter", "$requires_grad"})
_COMPOSED = frozenset({"$sparse", "$quantized"})


class TensorEntry:
    """A tensor of an open checkpoint, not read yet.

    Two entries are equal if their tensors are: same dtype, shape and bits. Their checksums decide
    where both have checksums of the same pieces. Otherwise both tensors are read.

    Attributes:
        name: its JSON Pointer.
        dtype, shape, nbytes: of the tensor; ``shape`` is a ``torch.Size``, ``nbytes`` raw bytes.
        device: the device that it was saved from.
    """

    def __init__(self, checkpoint: Checkpoint, name: str, entry: Stored, view: Any) -> None:
        self._checkpoint = checkpoint
        self._entry = entry
        self._view = view
        self.name = name
        self.device = entry.device
        self._dtype_name = entry.dtype if view is None else view["dtype"]
        self.shape = torch.Size(entry.shape if view is None else view["shape"])
        self.nbytes = element_count(self.shape) * DTYPES[self._dtype_name].itemsize

    @property
    def dtype(self) -> torch.dtype:
        """The dtype."""
        return torch_dtype(self._dtype_name)

    @property
    def codec(self) -> Codec:
        """How its chunks are encoded: those of its first record, if it is in several."""
        return self._entry.codec

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    def numel(self) -> int:
        """The number of elements, as ``torch.Tensor.numel``."""
        return element_count(self.shape)

    @property
    def checksums(self) -> tuple[str, ...]:
        """The checksum of each chunk of its records: ``"xxh3_128:…"``, of the raw bytes."""
        algorithm = self._checkpoint.manifest.checksum
        chunks = (chunk for entry in entries_of(self._entry) for chunk in entry.chunks)
        return tuple(f"{algorithm}:{checksum}" for _, _, checksum in chunks)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Read the whole tensor as an array.

        Raises:
            ArgumentError: NumPy has no such dtype, for example bfloat16 (a ``TypeError``, too).
        """
        try:
            array: np.ndarray[Any, Any] = self.load(map_location="cpu").numpy()
        except TypeError as error:
            wider = "complex64" if self.dtype.is_complex else "float32"
            raise self._wrong(
                f"NumPy has no {self._dtype_name}", f"Use .load().to(torch.{wider}).numpy()."
            ) from error
        return array

    def _wrong(self, message: str, hint: str | None = None) -> ArgumentError:
        return ArgumentError(message, file=self._checkpoint.path, tensor=self.name, hint=hint)

    def __array__(
        self, dtype: np.dtype[Any] | None = None, copy: bool | None = None
    ) -> np.ndarray[Any, Any]:
        """The tensor for ``np.asarray`` and ``torch.as_tensor``, in one read."""
        if copy is False:
            raise self._wrong("a tensor of a checkpoint is always copied from its file")
        array = self.numpy()
        return array if dtype is None else array.astype(dtype, copy=False)

    def __dlpack__(self, **options: Any) -> Any:
        """The tensor for ``torch.as_tensor`` and other libraries, in one read."""
        return self.load(map_location="cpu").__dlpack__(**options)

    def __dlpack_device__(self) -> Any:
        return torch.empty(0).__dlpack_device__()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TensorEntry):
            return NotImplemented
        if (self._dtype_name, self.shape) != (other._dtype_name, other.shape):
            return False
        one, two = self._identity(), other._identity()
        if one is not None and two is not None and one[:-1] == two[:-1]:
            return one[-1] == two[-1]
        return same_bits(self.load(map_location="cpu"), other.load(map_location="cpu"))

    def __hash__(self) -> int:
        return hash((self._dtype_name, self.shape))

    def _identity(self) -> tuple[str, list[object], tuple[str, ...]] | None:
        """What its checksums are of, and the checksums. ``None`` for a view of a record."""
        if self._view is not None:
            return None
        pieces: list[object] = []
        for part in parts_of(self._entry):
            chunks = part.entry.codec.chunk_bytes
            # One chunk holds everything, however large chunks may be.
            pieces.append((part.offset, chunks if part.entry.nbytes > chunks else 0))
        return self._checkpoint.manifest.checksum, pieces, self.checksums

    def load(self, map_location: MapLocation = None) -> torch.Tensor:
        """Read the whole tensor.

        Raises:
            JsonckptError: its bytes are not those that were saved.
        """
        return self._checkpoint._load(self._entry, self.name, self._view, map_location)

    def __getitem__(self, key: Any) -> torch.Tensor:
        """A part of the tensor, indexed like a tensor.

        For slices and integers, only the chunks that hold the part are read. Whatever follows
        another kind of index is applied afterwards.

        Raises:
            ArgumentError: there is no such part. It is an ``IndexError``, too.
            JsonckptError: its bytes are not those that were saved.
        """
        part, inside = self._read_for(key)
        try:
            return part[inside]
        except (IndexError, TypeError, ValueError) as error:
            raise self._no_part(str(error)) from error

    def _read_for(self, key: Any) -> tuple[torch.Tensor, Any]:
        """The box that an index needs, and the index into it."""
        try:
            needed = None if self._view is not None else box_of_index(key, self.shape)
        except (IndexError, TypeError, ValueError) as error:
            raise self._no_part(str(error)) from error
        if needed is None:
            return self.load(), key
        offset, size, inside = needed
        return self._checkpoint._load_box(self._entry, offset, size), inside

    def _no_part(self, message: str) -> NoPartError:
        return NoPartError(message, file=self._checkpoint.path, tensor=self.name)

    def __len__(self) -> int:
        if not self.shape:
            raise self._wrong("a tensor without dimensions has no len()")
        return self.shape[0]

    def __iter__(self) -> Iterator[torch.Tensor]:
        """The rows, after one read."""
        return iter(self.load())

    def __repr__(self) -> str:
        return f"TensorEntry({self.name!r}, {self.dtype}, {list(self.shape)})"


class NoPartError(ArgumentError, IndexError):
    """An index that a tensor does not have: a sequence raises an IndexError for it."""


class NoTensorError(ArgumentError, KeyError):
    """A name that no tensor has: a mapping raises a KeyError for it."""


class Checkpoint(Mapping[str, TensorEntry]):
    """An open checkpoint: names to :class:`TensorEntry`. A context manager.

    A name that no tensor has raises an :class:`ArgumentError` that is a ``KeyError``, too.

    Attributes:
        manifest: its manifest.
        metadata: the user's own JSON object.
    """

    def __init__(self, container: Container) -> None:
        self._container = container
        self.manifest: Manifest = container.manifest
        self.metadata: dict[str, Any] = container.manifest.metadata
        with container.errors():
            builder = StateBuilder.of(container, TensorSelection.of())
        self._state: Any = None
        self._entries: dict[str, tuple[Stored, Any]] = {}
        for reference in builder.references:
            view = reference.body if reference.tag == "$view" else None
            entry = self.manifest.tensors[reference.record]
            self._entries.setdefault(reference.name, (entry, view))

    @property
    def path(self) -> str:
        """The path that it was opened with."""
        return self._container.path

    def __getitem__(self, name: str) -> TensorEntry:
        try:
            entry, view = self._entries[name]
        except (KeyError, TypeError) as error:  # TypeError: what no mapping can hold
            raise self._no_tensor(name) from error
        return TensorEntry(self, name, entry, view)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._entries

    def get(self, name: Any, default: Any = None) -> Any:
        """The entry of a tensor, or ``default``. A missing name costs no search for near ones."""
        if name not in self:
            return default
        return self[name]

    def _no_tensor(self, name: object) -> NoTensorError:
        """The error for a name that no tensor has."""
        path = self._container.path
        if not isinstance(name, str):
            kind = quote(type(name).__name__)
            return NoTensorError(f"a tensor's name is a str such as '/w', not {kind}", file=path)
        inside = f"{'' if name.startswith('/') else '/'}{name.removesuffix('/')}"
        if inside in self._entries:
            slash = "" if name.startswith("/") else " A name begins with a slash."
            hint = f"Did you mean {quote(inside)}?{slash}"
        elif not name.strip("/"):
            hint = "The whole state is read by load(path) or .state()."
        elif any(other.startswith(f"{inside}/") for other in self._entries):
            inside = quote(inside)
            hint = (
                f"It holds tensors: .at({inside}) lists them, .load(include={inside}) reads them."
            )
        elif self._has(inside):
            hint = f"It is not a tensor: .at({quote(inside)}) gives it."
        else:
            hint = near_names(name, self._entries)
        return NoTensorError(f"there is no tensor {quote(name, 200)}", file=path, hint=hint)

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def at(self, place: str) -> Any:
        """What is at a place of the state: a value, or a part with entries for its tensors.

        Args:
            place: a JSON Pointer, such as ``"/optimizer/param_groups/0/lr"``. Keys that are
                integers are written as they are in the names of tensors.

        Raises:
            ArgumentError: nothing is there. It is a ``KeyError``, too.
        """
        if not isinstance(place, str):
            kind = quote(type(place).__name__)
            raise NoTensorError(f"a place is a str such as '/model', not {kind}", file=self.path)
        if self._state is None:
            self._state = self.state()
        found = self._state
        segments = place.lstrip("/").split("/") if place.strip("/") else []
        here = ""
        for segment in segments:
            inside = children(found, here)
            here = f"{here}/{segment}"
            if here not in inside:
                raise NoTensorError(
                    f"there is nothing at {quote(place, 200)}",
                    file=self._container.path,
                    hint=near_names(here, inside),
                )
            found = inside[here]
        return found

    def _has(self, place: str) -> bool:
        """Whether anything is at a place of the state, for a hint."""
        try:
            self.at(place)
        except JsonckptError:
            return False
        return True

    def _ipython_key_completions_(self) -> list[str]:
        return list(self._entries)

    def __repr__(self) -> str:
        return f"Checkpoint({printable(self.path)!r}, {overview(self, self.manifest)})"

    def _repr_html_(self) -> str:
        return html(self.path, self, self.manifest, self.at(""))

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Does nothing: no file is open between reads."""

    def state(self) -> Any:
        """The state, with a :class:`TensorEntry` in place of each tensor.

        A sparse or quantized tensor is a dictionary of its parts, with entries in it.
        Reads no tensors except those of NumPy arrays and of objects of registered classes
        (:func:`jsonckpt.register`): these hold real tensors, on the CPU.
        """
        with self._container.errors():
            rules = default_rules()
            # Only tags begin with "$" in a path: such keys are written in another way.
            registered = frozenset(rules.by_tag.keys() - BUILTIN.by_tag.keys())
            reader = _LazyReader(self, self._container.copies(), registered)
            return decode_state(self.manifest.state, reader, rules=rules)

    def load(
        self,
        map_location: MapLocation = None,
        *,
        include: Selector | None = None,
        exclude: Selector | None = None,
        progress: bool = False,
    ) -> Any:
        """The whole state, as :func:`jsonckpt.load` gives it."""
        selection = TensorSelection.of(include, exclude, map_location)
        return load_container(self._container, selection, progress=progress)

    def _load(
        self,
        entry: Stored,
        name: str,
        view: Any,
        map_location: MapLocation,
        copies: Copies | None = None,
    ) -> torch.Tensor:
        selection = TensorSelection.of(map_location=map_location)
        copies = copies or self._container.copies()
        with self._container.errors(name):
            self._container.check_files((each.shard for each in entries_of(entry)), copies)
            target = allocate_target(selection, entry)
            if target.needs_data:
                read_tensor(self._container, entry, target)
            tensor = selection.placement.relocate(target.finish(), entry.device)
            if view is None:
                return tensor
            reader = StateReader({entry.name: tensor}, {name}, copies)
            viewed: torch.Tensor = reader.get("$view", view, name)
            return viewed

    def _load_box(self, entry: Stored, offset: Sequence[int], size: Sequence[int]) -> torch.Tensor:
        box = Header(
            entry.name, entry.dtype, tuple(size), "cpu", entry.codec, entry.nbytes, layout=PLAIN
        )
        with self._container.errors(entry.name):
            parts = parts_in_box(entry, offset, size)
            self._container.check_files(part.entry.shard for part, _ in parts)
            tensor = new_target(box, torch.device("cpu")).finish()
            read_box(self._container, entry, offset, size, tensor)
            return tensor


class _LazyReader:
    """Gives the state entries for tensors, and real arrays.

    Objects of registered classes get real tensors: the functions of users work with them.
    """

    def __init__(self, checkpoint: Checkpoint, copies: Copies, registered: frozenset[str]) -> None:
        self.charge = copies.charge
        self._checkpoint = checkpoint
        self._real = StateReader(_Records(checkpoint, copies), checkpoint.keys(), copies)
        self._registered = registered

    def get(self, tag: str, body: Any, place: str) -> Any:
        if not self._registered.isdisjoint(place.split("/")):
            return self._real.get(tag, body, place)
        while tag in _WRAPPERS:
            inside = body.get("data", body) if isinstance(body, dict) else None
            if not isinstance(inside, dict) or len(inside) != 1:
                raise FormatError(f"{tag} at {place} holds no tensor")
            ((tag, body),) = inside.items()
        if tag in _COMPOSED and isinstance(body, dict):
            return {key: self._entry_of(part, part) for key, part in body.items()}
        entry = self._entry_of({tag: body}, None)
        if entry is None:
            raise FormatError(f"{tag} at {place} holds no tensor")
        return entry

    def _entry_of(self, value: Any, default: Any) -> Any:
        """The entry of the tensor that a part of the state refers to."""
        reference = next(references_in(value), None)
        return default if reference is None else self._checkpoint[reference.name]

    def get_array(self, body: Any, place: str) -> Any:
        return self._real.get_array(body, place)


class _Records(dict[str, torch.Tensor]):
    """Tensors of records, read when they are asked for. Each is read once, as in a load."""

    def __init__(self, checkpoint: Checkpoint, copies: Copies) -> None:
        super().__init__()
        self._checkpoint = checkpoint
        self._copies = copies

    def __missing__(self, record: str) -> torch.Tensor:
        entry = self._checkpoint.manifest.tensors[record]
        self[record] = self._checkpoint._load(entry, record, None, "cpu", self._copies)
        return self[record]


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    verify: bool = True,
    threads: int | None = None,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    expected_digest: str | None = None,
) -> Checkpoint:
    """Open a checkpoint without reading its tensors.

    Args:
        path, verify, threads, limits, storage_options, expected_digest: as for
            :func:`jsonckpt.load`.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.arange(12).reshape(4, 3)}, directory)
    ...     with jsonckpt.open(directory) as checkpoint:
    ...         list(checkpoint), checkpoint["/w"].shape, checkpoint["/w"][1:2]
    (['/w'], torch.Size([4, 3]), tensor([[3, 4, 5]]))
    """
    options = ReadOptions.of(
        verify=verify,
        threads=threads,
        limits=limits,
        storage_options=storage_options,
        expected_digest=expected_digest,
    )
    with collector_paused():  # a manifest has very many containers, and none of them is garbage
        return Checkpoint(open_container(path, options))
