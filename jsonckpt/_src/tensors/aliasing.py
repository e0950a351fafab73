"""Tensors that share memory: records, ties and views, and back (``docs/format.md`` 6.4).

On save :class:`StateWriter` takes the tensors from the walk over the state. It writes references to
records, and makes the records. On load :class:`StateReader` turns references into tensors.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch

from ..errors import JsonckptError, UnsupportedTypeError, quote
from ..format.json_text import Json
from ..format.limits import Copies
from ..state.checks import boolean, malformed, members, single_member, string
from ..state.references import REFERENCE_TAGS, references_in
from ..state.tree import OMIT
from .buffers import Source
from .composite import is_composite, join_quantized, join_sparse, split
from .memory import borrow, dtype_name, require_little_endian
from .storages import DistinctTensor, SharedRecord, address_space, note_storages, shared_records
from .supported import address_of, require_memory, require_plain
from .view import View


class StateWriter:
    """Writes the tensors of one state, then makes their records. A :class:`TensorWriter`.

    Nothing is copied: the tensors must not change before the last source has been read.

    >>> writer, w = StateWriter(), torch.zeros(2, 3)
    >>> first, again, row = writer.put(w, "/a"), writer.put(w, "/b"), writer.put(w[1], "/c")
    >>> [(source.name, source.shape) for source in writer.sources()]
    [('/a', (2, 3))]
    >>> again
    {'$tied': {'name': '/b', 'of': '/a'}}
    >>> row["$view"]["of"], row["$view"]["offset"]
    ('/a', 3)
    """

    def __init__(self) -> None:
        require_little_endian()
        self._tensors: list[DistinctTensor] = []
        self._known: dict[tuple[object, ...], DistinctTensor] = {}
        self._sources: list[Source] | None = None

    def is_tensor(self, value: object) -> bool:
        """Whether :meth:`put` takes the value."""
        return isinstance(value, torch.Tensor)

    def put(self, value: torch.Tensor, name: str) -> Json:
        """Take a tensor of any kind; return its tagged JSON object.

        :meth:`sources` may still change the object from ``$tensor`` to ``$view``.

        Args:
            value: a tensor or ``torch.nn.Parameter``.
            name: its path in the state, which becomes the record's name.

        Raises:
            UnsupportedTypeError: a tensor that the format cannot hold.
        """
        try:
            require_plain(value)
            if type(value) is torch.nn.Parameter:
                data = self._put_data(value.detach(), name)
                return {"$parameter": {"data": data, "requires_grad": value.requires_grad}}
            if value.requires_grad:
                return {"$requires_grad": self._put_data(value.detach(), name)}
            return self._put_data(value, name)
        except UnsupportedTypeError as error:
            raise error.at(tensor=name)  # noqa: B904, the same error with its name

    def put_array(self, array: np.ndarray[Any, Any], name: str) -> Json:
        """Take a little-endian NumPy array; return a reference to its tensor. Nothing is copied.

        Raises:
            UnsupportedTypeError: a dtype or strides that torch does not have.
        """
        try:
            tensor = borrow(array)
        except (TypeError, ValueError) as error:
            raise UnsupportedTypeError(
                f"torch cannot take a NumPy array of dtype {array.dtype}: {quote(str(error), 200)}",
                tensor=name,
                hint="Convert the array.",
            ) from error
        return self._put_dense(tensor, name)

    def sources(self) -> list[Source]:
        """The records to be written, in order of first appearance in the state.

        Call it after the whole state has been put: only then all shared memory is known. It changes
        the JSON objects that :meth:`put` returned.
        """
        if self._sources is None:
            self._sources = self._make_sources()
        return self._sources

    def _put_data(self, tensor: torch.Tensor, name: str) -> dict[str, Json]:
        if not is_composite(tensor):
            return self._put_dense(tensor, name)
        tag, parts = split(tensor)
        body = {
            member: self._put_dense(part, f"{name}/{member}")
            if isinstance(part, torch.Tensor)
            else part
            for member, part in parts.items()
        }
        return {tag: body}

    def _put_dense(self, tensor: torch.Tensor, name: str) -> dict[str, Json]:
        dtype_name(tensor)
        require_memory(tensor)
        if tensor.dim() > 64:
            raise UnsupportedTypeError(f"the tensor has {tensor.dim()} dimensions, the limit is 64")
        start = address_of(tensor)
        flat = tensor.is_cpu and tensor.is_contiguous()
        flat = flat and not tensor.is_conj() and not tensor.is_neg()
        key: tuple[object, ...] = (start, tensor.dtype, tensor.shape)
        if not flat:
            space = address_space(tensor)
            key = (*key, space, _steps(tensor), tensor.is_conj(), tensor.is_neg())
        distinct = self._known.get(key)
        if distinct is None:
            distinct = DistinctTensor(name, tensor, start, flat=flat)
            self._tensors.append(distinct)
            if start:  # tensors without elements share no memory
                self._known[key] = distinct
        reference: dict[str, Json] = {"$tensor": name}
        if distinct.name != name:
            reference = {"$tied": {"name": name, "of": distinct.name}}
        distinct.references.append((name, reference))
        return reference

    def _make_sources(self) -> list[Source]:
        shared_by = shared_records(self._tensors)
        records: list[tuple[Source, torch.Tensor]] = []
        storages = 0
        for distinct in self._tensors:
            shared = shared_by.get(distinct)
            if shared is None or shared.owner is distinct:
                records.append((distinct.source(), distinct.tensor))
                continue
            if shared.memory is not None and not shared.name:
                shared.name = f"$storage/{storages}"
                storages += 1
                records.append((Source.of(shared.name, shared.memory), shared.memory))
            for name, reference in distinct.references:
                reference.clear()
                reference["$view"] = _view(distinct, name, shared).to_json()
        note_storages(records)
        return [source for source, _ in records]


def _steps(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """The strides that are written; ``None`` for row-major tensors."""
    if tensor.is_contiguous():
        return None
    return tuple([step for size, step in zip(tensor.shape, tensor.stride()) if size > 1])


def _view(distinct: DistinctTensor, name: str, shared: SharedRecord) -> View:
    tensor = distinct.tensor
    return View(
        name=name,
        of=shared.name,
        dtype=dtype_name(tensor),
        shape=tuple(tensor.shape),
        stride=tuple(tensor.stride()),
        offset=(distinct.start - shared.base) // tensor.itemsize,
    )


class StateReader:
    """Reads the tensors of one state. A :class:`TensorReader`.

    References to one record, or to one view, give the same object. So do composite tensors and
    parameters with equal JSON.

    Args:
        loaded: the tensors of the records, row-major, by name.
        chosen: names of the tensors that are wanted; others are OMIT.
        copies: counts what is allocated beside the records' memory.

    >>> reader = StateReader({"/w": torch.arange(6)}, {"/w", "/v"})
    >>> body = {"name": "/v", "of": "/w", "dtype": "int64", "offset": 1}
    >>> body.update(shape=[2], stride=[3])
    >>> reader.get("$view", body, "/v")
    tensor([1, 4])
    """

    def __init__(
        self,
        loaded: Mapping[str, torch.Tensor],
        chosen: Collection[str],
        copies: Copies | None = None,
    ) -> None:
        self._loaded = loaded
        self.charge = (copies or Copies()).charge
        self._chosen = frozenset(chosen)
        self._views: dict[str, tuple[View, torch.Tensor]] = {}
        self._seen: dict[tuple[object, ...], torch.Tensor] = {}
        self._composites: dict[tuple[str, str], Any] = {}

    def get(self, tag: str, body: Json, path: str) -> Any:
        """The tensor of ``{tag: body}``, or :data:`OMIT`.

        Raises:
            FormatError: the body does not follow the format.
        """
        if tag in REFERENCE_TAGS:
            return self._reference(tag, body, path)
        if not all(name in self._chosen for name, _, _ in references_in({tag: body})):
            return OMIT
        key = (tag, repr(_untied(body)))
        if key not in self._composites:
            self._composites[key] = self._composite(tag, body, path)
        return self._composites[key]

    def get_array(self, body: Json, path: str) -> Any:
        """The NumPy array of a ``$tensor``, ``$tied`` or ``$view``, or OMIT.

        It shares the tensor's memory, if that is on the CPU.
        """
        tensor = self._dense(body, path)
        if tensor is OMIT:
            return OMIT
        if tensor.is_meta:
            raise JsonckptError(
                "a NumPy array cannot be on the meta device",
                tensor=path,
                hint="Load this tensor to the CPU, or exclude it.",
            )
        if not tensor.is_cpu:
            self.charge(tensor.nbytes, path)
        try:
            return tensor.cpu().numpy()
        except TypeError as error:
            raise malformed(path, f"NumPy has no {tensor.dtype}") from error

    def _composite(self, tag: str, body: Json, path: str) -> Any:
        """A tensor with all its parts chosen."""
        at = f"{path}/{tag}"
        if tag == "$sparse":
            return join_sparse(body, self._dense, at, self.charge)
        if tag == "$quantized":
            return join_quantized(body, self._dense, at, self.charge)
        if tag == "$parameter":
            parts = members(body, at, "data", "requires_grad")
            requires_grad = boolean(*parts.at("requires_grad"))
            data = self._data(*parts.at("data"))
        elif tag == "$requires_grad":
            requires_grad = True
            data = self._data(body, at)
        else:
            raise malformed(path, f"{quote(tag)} is not a tensor")
        if requires_grad and not (data.is_floating_point() or data.is_complex()):
            raise malformed(at, f"a tensor of {data.dtype} cannot require gradients")
        if tag == "$parameter":
            return torch.nn.Parameter(data, requires_grad=requires_grad)
        # A new object: another reference to the record may not require gradients.
        return data.detach().requires_grad_()

    def _data(self, value: Json, path: str) -> Any:
        """A dense, sparse or quantized tensor."""
        tag, body = single_member(value, path)
        if tag in ("$sparse", "$quantized"):
            return self.get(tag, body, path)
        return self._dense(value, path)

    def _dense(self, value: Json, path: str) -> Any:
        tag, body = single_member(value, path)
        if tag not in REFERENCE_TAGS:
            raise malformed(path, f"expected a dense tensor, found {quote(tag)}")
        return self._reference(tag, body, path)

    def _reference(self, tag: str, body: Json, path: str) -> Any:
        at = f"{path}/{tag}"
        if tag == "$view":
            return self._view(View.from_json(body, at), at)
        if tag == "$tied":
            parts = members(body, at, "name", "of")
            name, record = string(*parts.at("name")), string(*parts.at("of"))
        elif tag == "$regions":
            name = record = string(*members(body, at, "name").at("name"))
        elif type(body) is str:
            name = record = body
        else:
            raise malformed(at, f"expected a name, found {quote(body)}")
        return self._record(record, at) if name in self._chosen else OMIT

    def _view(self, view: View, path: str) -> Any:
        if view.name not in self._chosen:
            return OMIT
        if view.name not in self._views:
            # Views that differ only in their names are one tensor, like tied tensors.
            same = (view.of, view.dtype, view.shape, view.stride, view.offset)
            if same not in self._seen:
                self._seen[same] = view.on(self._record(view.of, path), path, self.charge)
            self._views[view.name] = (view, self._seen[same])
        seen, tensor = self._views[view.name]
        if seen != view:
            raise malformed(path, f"another view has the name {quote(view.name)}, too")
        return tensor

    def _record(self, name: str, path: str) -> torch.Tensor:
        try:
            return self._loaded[name]
        except KeyError:
            raise malformed(path, f"there is no record {quote(name)}") from None


def _untied(value: Json) -> Json:
    """The JSON of a tensor without the names of tied ones: equal where the tensor is the same."""
    if type(value) is not dict:
        return value
    if list(value) == ["$tied"] and type(value["$tied"]) is dict:
        return {"$tensor": value["$tied"].get("of")}
    if list(value) == ["$regions"] and type(value["$regions"]) is dict:
        return {"$tensor": value["$regions"].get("name")}
    return {key: _untied(item) for key, item in value.items()}
