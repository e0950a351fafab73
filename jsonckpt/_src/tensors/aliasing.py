"""All tensors of a state: what is one record, what is a view of one, and the way back.

:class:`StateWriter` and :class:`StateReader` are the doors through which ``tree`` hands tensors
over when it writes and when it reads (``docs/format.md`` sections 6.2 and 6.4).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import JsonckptError, UnsupportedTypeError, quote
from ..format.json_text import Json
from ..format.limits import Copies
from ..state.checks import Body, malformed, single_member
from ..state.tree import OMIT, tensor_names
from .buffers import Source
from .composite import is_composite, join_quantized, join_sparse, split
from .memory import (
    borrow,
    dtype_name,
    is_wrapped,
    require_address,
    require_little_endian,
    require_memory,
    require_whole,
)
from .storages import Leaf, Shared, note_storages, shared_records, space_of
from .view import View

#: What torch itself sets on plain tensors: a ``torch.nn.Buffer`` says how its module saves it.
_TORCHS_OWN = frozenset({"persistent"})


class StateWriter:
    """Takes the tensors of one state while ``tree`` writes it; then says what to save.

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
        self._leaves: list[Leaf] = []
        self._known: dict[tuple[object, ...], Leaf] = {}
        self._sources: list[Source] | None = None

    def is_tensor(self, value: object) -> bool:
        """Whether :meth:`put` takes the value."""
        return isinstance(value, torch.Tensor)

    def put(self, value: torch.Tensor, name: str) -> Json:
        """Take a tensor of any kind; return its tagged JSON object.

        :meth:`sources` may still change the object from ``$tensor`` to ``$view``.

        Args:
            value: a tensor or ``torch.nn.Parameter``.
            name: its place, which becomes the record's name.

        Raises:
            UnsupportedTypeError: a tensor that the format cannot say.
        """
        try:
            _require_plain(value)
            if type(value) is torch.nn.Parameter:
                data = self._put_data(value.detach(), name)
                return {"$parameter": {"data": data, "requires_grad": value.requires_grad}}
            if value.requires_grad:
                return {"$requires_grad": self._put_data(value.detach(), name)}
            return self._put_data(value, name)
        except UnsupportedTypeError as error:
            raise error.at(tensor=name)  # noqa: B904, the same error with its place

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

        To be called when the whole state has been put: only now it is known who shares memory with
        whom. Changes the JSON objects that were handed out accordingly.
        """
        if self._sources is None:
            self._sources = self._plan()
        return self._sources

    def _put_data(self, tensor: torch.Tensor, name: str) -> dict[str, Json]:
        if is_composite(tensor):
            return split(tensor, lambda part, member: self._put_dense(part, f"{name}/{member}"))
        return self._put_dense(tensor, name)

    def _put_dense(self, tensor: torch.Tensor, name: str) -> dict[str, Json]:
        dtype_name(tensor)
        require_memory(tensor)
        if tensor.dim() > 64:
            raise UnsupportedTypeError(f"the tensor has {tensor.dim()} dimensions, at most 64 fit")
        start = _address(tensor)
        flat = tensor.is_cpu and tensor.is_contiguous()
        flat = flat and not tensor.is_conj() and not tensor.is_neg()
        key: tuple[object, ...] = (start, tensor.dtype, tensor.shape)
        if not flat:
            key = (*key, space_of(tensor), _steps(tensor), tensor.is_conj(), tensor.is_neg())
        leaf = self._known.get(key)
        if leaf is None:
            leaf = Leaf(name, tensor, start, flat=flat)
            self._leaves.append(leaf)
            if start:  # no two tensors without elements are one
                self._known[key] = leaf
        reference: dict[str, Json] = {"$tensor": name}
        if leaf.name != name:
            reference = {"$tied": {"name": name, "of": leaf.name}}
        leaf.references.append((name, reference))
        return reference

    def _plan(self) -> list[Source]:
        shared_by = shared_records(self._leaves)
        sources: list[Source] = []
        storages = 0
        pieces: list[tuple[Source, torch.Tensor]] = []
        for leaf in self._leaves:
            found = shared_by.get(leaf)
            if found is None or found.cover is leaf:
                sources.append(leaf.source())
                pieces.append((sources[-1], leaf.tensor))
                continue
            if found.record is not None and not found.name:
                found.name = f"$storage/{storages}"
                storages += 1
                sources.append(Source.of(found.name, found.record))
                pieces.append((sources[-1], found.record))
            for name, reference in leaf.references:
                reference.clear()
                reference["$view"] = _view(leaf, name, found).to_json()
        note_storages(pieces)
        return sources


class StateReader:
    """Gives ``tree`` the tensors of one state while it reads it.

    References to one record, or to one view, give the same object. So do parameters and other
    composite tensors that say the same of the same records.

    Args:
        loaded: the tensors of the records, row-major, by name.
        chosen: names of the records and views that are wanted; others are OMIT.
        copies: counts what is made beside the records' memory.

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
        self._seen: dict[View, torch.Tensor] = {}
        self._composites: dict[tuple[str, str], Any] = {}

    def get(self, tag: str, body: Json, place: str) -> Any:
        """The tensor that ``{tag: body}`` says, or :data:`OMIT`.

        Raises:
            FormatError: the body is not what its tag asks for.
        """
        if tag == "$tensor":
            return self._tensor(body, place)
        if tag == "$tied":
            return self._tied(body, place)
        if tag == "$view":
            return self._view(body, place)
        if not all(name in self._chosen for name, _, _ in tensor_names({tag: body})):
            return OMIT
        key = (tag, repr(_untied(body)))
        if key not in self._composites:
            self._composites[key] = self._composite(tag, body, place)
        return self._composites[key]

    def get_array(self, body: Json, place: str) -> Any:
        """The NumPy array that a ``$tensor``, ``$tied`` or ``$view`` says, or OMIT.

        It shares the tensor's memory, if that is on the CPU.
        """
        tensor = self._dense(body, place)
        if tensor is OMIT:
            return OMIT
        if tensor.is_meta:
            raise JsonckptError(
                "a NumPy array cannot be on the meta device",
                tensor=place,
                hint="Load this tensor to the CPU, or exclude it.",
            )
        if not tensor.is_cpu:
            self.charge(tensor.nbytes, place)
        try:
            return tensor.cpu().numpy()
        except TypeError as error:
            raise malformed(place, f"NumPy has no {tensor.dtype}") from error

    def _composite(self, tag: str, body: Json, place: str) -> Any:
        at = f"{place}/{tag}"

        def part(value: Json, member: str) -> Any:
            return self._dense(value, f"{at}/{member}")

        if tag == "$sparse":
            return join_sparse(body, part, at, self.charge)
        if tag == "$quantized":
            return join_quantized(body, part, at, self.charge)
        if tag == "$parameter":
            members = Body.of(body, at)
            requires_grad = members.boolean("requires_grad")
            data = self._data(members.value("data"), f"{at}/data")
        elif tag == "$requires_grad":
            requires_grad = True
            data = self._data(body, at)
        else:
            raise malformed(place, f"{quote(tag)} is not a tensor")
        if data is OMIT:
            return OMIT
        if requires_grad and not (data.is_floating_point() or data.is_complex()):
            raise malformed(at, f"a tensor of {data.dtype} cannot require gradients")
        if tag == "$parameter":
            return torch.nn.Parameter(data, requires_grad=requires_grad)
        # A new object: the same record may also be referred to without requires_grad.
        return data.detach().requires_grad_()

    def _data(self, value: Json, place: str) -> Any:
        """Anything but a parameter and a tensor with requires_grad."""
        tag, body = single_member(value, place)
        if tag in ("$sparse", "$quantized"):
            return self.get(tag, body, place)
        return self._dense(value, place)

    def _dense(self, value: Json, place: str) -> Any:
        tag, body = single_member(value, place)
        if tag == "$tensor":
            return self._tensor(body, place)
        if tag == "$tied":
            return self._tied(body, place)
        if tag == "$view":
            return self._view(body, place)
        raise malformed(place, f"expected a dense tensor, found {quote(tag)}")

    def _tensor(self, name: Json, place: str) -> Any:
        if type(name) is not str:
            raise malformed(f"{place}/$tensor", f"expected a name, found {quote(name)}")
        return self._record(name, f"{place}/$tensor") if name in self._chosen else OMIT

    def _tied(self, body: Json, place: str) -> Any:
        at = f"{place}/$tied"
        members = Body.of(body, at)
        name, record = members.text("name"), members.text("of")
        return self._record(record, at) if name in self._chosen else OMIT

    def _view(self, body: Json, place: str) -> Any:
        at = f"{place}/$view"
        view = View.from_json(body, at)
        if view.name not in self._chosen:
            return OMIT
        if view.name not in self._views:
            # What is seen in the same way at two places is one tensor, as it is where it is tied.
            same = replace(view, name="")
            if same not in self._seen:
                self._seen[same] = view.on(self._record(view.of, at), at, self.charge)
            self._views[view.name] = (view, self._seen[same])
        seen, tensor = self._views[view.name]
        if seen != view:
            raise malformed(at, f"another view is called {quote(view.name)}, too")
        return tensor

    def _record(self, name: str, place: str) -> torch.Tensor:
        try:
            return self._loaded[name]
        except KeyError:
            raise malformed(place, f"there is no record {quote(name)}") from None


def _untied(value: Json) -> Json:
    """A tensor's JSON without the names of tied places: equal for what is the same tensor."""
    if type(value) is not dict:
        return value
    if list(value) == ["$tied"] and type(value["$tied"]) is dict:
        return {"$tensor": value["$tied"].get("of")}
    return {key: _untied(item) for key, item in value.items()}


def _require_plain(value: torch.Tensor) -> None:
    """Refuse what is a tensor to Python but not memory with a shape."""
    kind = type(value)
    if isinstance(value, UninitializedTensorMixin):
        raise UnsupportedTypeError(
            f"a {kind.__name__} has no shape yet",
            hint="Run the module once, so that it learns its shapes, before saving.",
        )
    plain = kind is torch.Tensor or kind is torch.nn.Parameter
    own = vars(value)
    if own or not plain:  # next to no tensor has attributes, and there may be thousands
        require_whole(value)
    if not plain:
        raise UnsupportedTypeError(
            f"cannot write the tensor subclass {kind.__module__}.{kind.__qualname__}",
            hint=f"Call jsonckpt.register({kind.__name__}, ...) before saving, or save the plain"
            " tensors in it.",
        )
    attributes = [name for name in own if name[:1] != "_" and name not in _TORCHS_OWN]
    if attributes:
        raise UnsupportedTypeError(
            f"the tensor has the attribute {quote(attributes[0])}, which would be lost",
            hint="Save the attribute apart, and the tensor as tensor.detach(), which has none; a"
            " module's state_dict() does that.",
        )
    if is_wrapped(value):
        raise UnsupportedTypeError(
            "a tensor inside torch.func (vmap, grad, jvp) has no memory of its own",
            hint="Return it from the transformed function, and save what comes out.",
        )
    if value.is_nested or (value.layout != torch.strided and not is_composite(value)):
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise UnsupportedTypeError(
            f"cannot write a tensor of layout {layout}",
            hint="Save the list of its parts." if value.is_nested else "Save value.to_dense().",
        )
    if value.is_meta:
        raise UnsupportedTypeError(
            "a tensor on the meta device has no data", hint="Load or initialize it before saving."
        )


def _address(tensor: torch.Tensor) -> int:
    """Where the memory of a dense tensor begins.

    Raises:
        UnsupportedTypeError: it has none, though it has elements.
    """
    try:
        start = tensor.data_ptr()
    except RuntimeError as error:  # what modes of torch put around tensors
        raise UnsupportedTypeError(
            f"the tensor has no memory: {quote(str(error), 200)}",
            hint="Save the plain tensor.",
        ) from error
    if not start:
        require_address(tensor)
    return start


def _steps(tensor: torch.Tensor) -> tuple[int, ...] | None:
    """What of the strides means anything; ``None`` where the shape says it all."""
    if tensor.is_contiguous():
        return None
    return tuple([step for size, step in zip(tensor.shape, tensor.stride()) if size > 1])


def _view(leaf: Leaf, name: str, shared: Shared) -> View:
    return View(
        name=name,
        of=shared.name,
        dtype=dtype_name(leaf.tensor),
        shape=tuple(leaf.tensor.shape),
        stride=tuple(leaf.tensor.stride()),
        offset=(leaf.start - shared.base) // leaf.tensor.itemsize,
    )
