"""Recognises tensors in the JSON of other programs, with one rule for each dialect.

A rule gets one JSON object and returns the payload of the tensor in it. JSON also loses integer
keys, tuples and the identity of tied weights. They are restored here where that is certain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from ..errors import FormatError, quote
from ..tensors.pieces import same_bits
from .scratch import Numbers, Text
from .tensor_values import Payload, parse_shape

NO_VALUES = (
    "no values: this holds only the type, shape and dtype of a tensor; it is a summary, "
    "not a checkpoint"
)
_TENSOR_TYPES = frozenset(
    {"tensor", "Tensor", "torch.Tensor", "torch.tensor", "ndarray", "numpy.ndarray", "np.ndarray"}
    | {"torch.nn.Parameter", "torch.nn.parameter.Parameter", "Parameter", "array"}
)
_TYPE_KEYS = ("_type", "__type__", "type", "__class__")
_PAYLOAD_KEYS = ("data", "values")
_FACTS = frozenset(
    {"dtype", "shape", "size", "device", "requires_grad", "numel", "nbytes", "stride", "layout"}
    | {"is_leaf", "encoding", "order", "byteorder", "endian"}
    | {"type", "_type", "__type__", "__class__", "__tensor__", "__torch_tensor__"}
)
#: Embedding and output weights that are the same tensor in common models.
TIED_PAIRS = (
    ("transformer.wte.weight", "lm_head.weight"),
    ("wte.weight", "lm_head.weight"),
    ("model.embed_tokens.weight", "lm_head.weight"),
    ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    ("gpt_neox.embed_in.weight", "embed_out.weight"),
    ("shared.weight", "encoder.embed_tokens.weight"),
    ("shared.weight", "decoder.embed_tokens.weight"),
    ("shared.weight", "lm_head.weight"),
    ("bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"),
    ("roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
)
_MISSING: Any = object()


def recognise(thing: dict[str, Any]) -> Payload | None:
    """The payload of the tensor in a JSON object, or ``None`` if the object is not a tensor.

    Raises:
        FormatError: a tensor without values, or in an unknown form.

    >>> recognise({"data": [1.0, 2.0], "shape": [2], "dtype": "torch.float32"}).values
    [1.0, 2.0]
    >>> recognise({"lr": 0.1}) is None
    True
    """
    for rule in (_monty, _json_tricks, _json_numpy, _jsonpickle, _marked, _plain):
        payload = rule(thing)
        if payload is not None:
            return payload
    return None


def _marked(thing: dict[str, Any]) -> Payload | None:
    """Objects with ``__tensor__``, ``__torch_tensor__``, or the name of a type."""
    for mark in ("__tensor__", "__torch_tensor__"):
        if mark in thing and thing[mark] is not False:
            inside = thing[mark]
            return _generic(thing, inside if inside is not True else _MISSING)
    for key in _TYPE_KEYS:
        kind = thing.get(key)
        if isinstance(kind, str) and kind in _TENSOR_TYPES:
            return _generic(thing, _MISSING, named=kind not in ("array", "Parameter"))
    return None


def _plain(thing: dict[str, Any]) -> Payload | None:
    """``{data, shape, dtype}``, as the converter of the Kaggle guide and many others write it."""
    values = _payload(thing)
    if values is _MISSING or not ("dtype" in thing or "shape" in thing):
        return None
    if not isinstance(values, list | int | float | complex | Numbers | str | Text):
        return None
    dtype, shape = thing.get("dtype"), thing.get("shape")
    typed = isinstance(dtype, str)
    sized = isinstance(shape, list) and all(type(size) is int for size in shape)
    # Nothing marks this object as a tensor. So it needs all members of a tensor and no others.
    if ("dtype" in thing and not typed) or ("shape" in thing and not sized):
        return None
    if isinstance(values, str | Text) and not typed:
        return None
    if not set(thing) <= _FACTS | set(_PAYLOAD_KEYS):
        return None
    return _generic(thing, values)


def _generic(thing: dict[str, Any], values: Any, *, named: bool = True) -> Payload | None:
    if values is _MISSING:
        values = _payload(thing)
    if values is _MISSING:
        if named and ("shape" in thing or "dtype" in thing):
            raise FormatError(NO_VALUES)
        return None
    return Payload(
        values,
        _dtype(thing),
        thing.get("shape", thing.get("size")),
        order="F" if thing.get("order") == "F" else "C",
        byteorder=">" if thing.get("byteorder", thing.get("endian")) in (">", "big") else "<",
        requires_grad=thing.get("requires_grad") is True,
    )


def _monty(thing: dict[str, Any]) -> Payload | None:
    kind = (thing.get("@module"), thing.get("@class"))
    if kind not in (("torch", "Tensor"), ("numpy", "array")):
        return None
    if "data" not in thing:
        raise FormatError(NO_VALUES)
    dtype = _dtype(thing)
    split = dtype is not None and "complex" in dtype.lower()
    return Payload(thing["data"], dtype, thing.get("size", thing.get("shape")), split=split)


def _json_tricks(thing: dict[str, Any]) -> Payload | None:
    if "__ndarray__" not in thing:
        return None
    values, compressed = thing["__ndarray__"], False
    if isinstance(values, str | Text):
        head = _head(values)
        prefix = head[: head.find(":") + 1]
        if prefix not in ("", "b64:", "b64.gz:"):
            raise FormatError(f"array data in the unknown encoding {quote(prefix)}")
        values = values[len(prefix) :] if isinstance(values, str) else values.after(len(prefix))
        compressed = prefix == "b64.gz:"
    return Payload(
        values,
        _dtype(thing),
        thing.get("shape"),
        byteorder=">" if thing.get("endian") == "big" else "<",
        compressed=compressed,
    )


def _json_numpy(thing: dict[str, Any]) -> Payload | None:
    if "__numpy__" not in thing:
        return None
    return Payload(thing["__numpy__"], _dtype(thing), thing.get("shape"))


def _jsonpickle(thing: dict[str, Any]) -> Payload | None:
    if thing.get("py/object") != "numpy.ndarray":
        return None
    if "values" not in thing:
        raise FormatError(
            "a jsonpickle array that refers to another one", hint="Write copies of the arrays."
        )
    values = thing["values"]
    return Payload(
        values,
        _dtype(thing),
        thing.get("shape"),
        order="F" if thing.get("order") == "F" else "C",
        byteorder=">" if thing.get("byteorder") == ">" else "<",
        # jsonpickle compresses with zlib by default. That begins with "eJ" in base64.
        compressed=isinstance(values, str | Text) and _head(values).startswith("eJ"),
    )


def _head(text: str | Text) -> str:
    return text.head if isinstance(text, Text) else text[:16]


def _payload(thing: dict[str, Any]) -> Any:
    for key in _PAYLOAD_KEYS:
        if key in thing:
            return thing[key]
    return _MISSING


def _dtype(thing: dict[str, Any]) -> str | None:
    dtype = thing.get("dtype")
    if dtype is not None and not isinstance(dtype, str):
        raise FormatError(f"a dtype is a name, not {quote(dtype)}")
    return dtype


def looks_like_summary(thing: object) -> bool:
    """True if this may be the shape and dtype of a tensor, without the values."""
    if not isinstance(thing, dict) or "shape" not in thing or not set(thing) <= _FACTS:
        return False
    try:
        parse_shape(thing["shape"])
    except FormatError:
        return False
    return True


def mend_optimizers(tree: object) -> None:
    """Restore the integer keys and the tuples of optimizer states, in place.

    An object with a ``state`` and a list of ``param_groups`` is an optimizer state. JSON turns the
    numbers of its parameters into strings, and its ``betas`` into lists.
    """
    if isinstance(tree, list):
        for item in tree:
            if type(item) in (dict, list) and item:
                mend_optimizers(item)
    if not isinstance(tree, dict):
        return
    groups, state = tree.get("param_groups"), tree.get("state")
    if isinstance(groups, list) and isinstance(state, dict):
        if all(_is_index(key) for key in state):
            tree["state"] = {int(key): value for key, value in state.items()}
        for group in groups:
            if isinstance(group, dict) and isinstance(group.get("betas"), list):
                group["betas"] = tuple(group["betas"])
        return
    for value in tree.values():
        mend_optimizers(value)


def _is_index(key: str) -> bool:
    return key.isascii() and key.isdigit() and len(key) < 19 and str(int(key)) == key


def retie(tree: object, wanted: Sequence[tuple[str, str]] = ()) -> Iterator[tuple[str, str]]:
    """Tie two tensors that are tied in the model and have the same bits, in place.

    Args:
        tree: the state.
        wanted: more pairs of keys, besides :data:`TIED_PAIRS`.

    Yields:
        Each pair of keys that is tied now. The tensor of the first one is kept.

    >>> state = {"wte.weight": torch.ones(2), "lm_head.weight": torch.ones(2)}
    >>> list(retie(state)), state["wte.weight"] is state["lm_head.weight"]
    ([('wte.weight', 'lm_head.weight')], True)
    """
    pairs = [
        (prefix + first, prefix + second)
        for first, second in [*TIED_PAIRS, *wanted]
        for prefix in ("", "module.", "_orig_mod.", "model.")
    ]
    for thing in _objects(tree):
        if sum(isinstance(value, torch.Tensor) for value in thing.values()) < 2:
            continue
        for first, second in pairs:
            kept, other = thing.get(first), thing.get(second)
            if not isinstance(kept, torch.Tensor) or not isinstance(other, torch.Tensor):
                continue
            if kept is not other and same_bits(kept, other):
                thing[second] = kept
                yield first, second


def _objects(tree: object) -> Iterator[dict[str, Any]]:
    """Every object that is not empty. Outer ones come first."""
    pending = [tree]
    while pending:
        thing = pending.pop()
        if isinstance(thing, dict):
            yield thing
        elif not isinstance(thing, list):
            continue
        inner = thing.values() if isinstance(thing, dict) else thing
        pending += reversed([item for item in inner if type(item) in (dict, list) and item])
