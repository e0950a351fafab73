"""Recognises tensors in the JSON of other programs, by tables of names and rules for dialects.

A rule gets one JSON object and returns the payload of the tensor in it. JSON also loses integer
keys, tuples and the identity of tied weights. They are restored here where that is certain.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any, Literal

import torch

from ..errors import FormatError, LimitError, quote
from ..json_stream.encoded import NPY_HEAD, encoded, head_of
from ..json_stream.scratch import Numbers, Ragged, Text
from ..tensors.pieces import same_bits
from .facts import (
    BYTE_ORDER_KEYS,
    DTYPE_KEYS,
    ENCODING_KEYS,
    PAYLOAD_KEYS,
    SHAPE_KEYS,
    bytes_of,
    dtype_name,
    is_dtype,
    is_index,
    is_integer,
    order_of,
    payload_key,
    shape_said,
    typed_array,
)
from .payloads import Payload, dtype_named, parse_shape
from .tensor_values import shape_of

NO_VALUES = (
    "no values: this holds only the type, shape and dtype of a tensor; it is a summary, "
    "not a checkpoint"
)
#: Marks that are true, the name of a type, or the values themselves.
_FLAGS = (
    *("__tensor__", "__torch_tensor__", "__pytorch_tensor__", "__torch__", "__ndarray__"),
    *("__numpy__", "__numpy_array__", "__nparray__", "__np__", "__array__", "__is_tensor__"),
    *("_is_tensor", "is_tensor", "isTensor", "nd"),
)
_TYPE_KEYS = (
    *("_type", "__type__", "type", "__class__", "class", "_class", "class_name", "$type", "kind"),
)
#: The last part of the names of types that are tensors wherever they stand.
_TENSOR_TYPES = frozenset({"tensor", "ndarray", "parameter", "eagertensor"})
#: Names that other things have, too: an object needs the facts of a tensor beside them.
_WEAK_TYPES = frozenset({"tensor", "array", "Array", "Parameter", "parameter"})
#: Keys that other things than types of values have, too.
_WEAK_KEYS = frozenset({"type", "class", "kind", "class_name"})
_TYPE_NAME = re.compile(r"(?:<class ')?([A-Za-z0-9_.]{1,80})(?:'>)?")
_TENSOR_OF_TYPE = re.compile(r"(?:torch\.)?(?:cuda\.)?([A-Za-z0-9]{3,14})Tensor")
_TYPED_ARRAYS = {
    "Float32Array": "float32", "Float64Array": "float64", "Float16Array": "float16",
    "Int8Array": "int8", "Int16Array": "int16", "Int32Array": "int32", "Uint8Array": "uint8",
    "Uint16Array": "uint16", "Uint32Array": "uint32", "BigInt64Array": "int64",
    "BigUint64Array": "uint64", "Uint8ClampedArray": "uint8",
}  # fmt: skip
#: Of these it is certain even without a shape or without a dtype.
_USUAL_PAYLOADS = frozenset({"data", "values", "bdata"})
_NAME_KEYS = ("name", "key", "path")
_FACTS = frozenset(
    {"device", "requires_grad", "trainable", "numel", "nbytes", "stride", "strides", "layout"}
    | {"is_leaf", "ndim", "Corder", "fortran_order", "is_parameter", "writeable"}
    | {*DTYPE_KEYS, *SHAPE_KEYS, *BYTE_ORDER_KEYS, *ENCODING_KEYS, *_TYPE_KEYS, *_FLAGS}
)
_INTERESTING = frozenset(
    {*_FLAGS, *_TYPE_KEYS, *PAYLOAD_KEYS, *DTYPE_KEYS, "@class", "w", "weights"}
)
_ONNX_TYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64",
    9: "bool", 10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64",
    15: "complex128", 16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz",
    19: "float8_e5m2", 20: "float8_e5m2fnuz",
}  # fmt: skip
_ONNX_NAMES = {"FLOAT": 1, "UINT8": 2, "INT8": 3, "UINT16": 4, "INT16": 5, "INT32": 6, "INT64": 7}
_ONNX_NAMES |= {"BOOL": 9, "FLOAT16": 10, "DOUBLE": 11, "UINT32": 12, "UINT64": 13}
_ONNX_NAMES |= {"COMPLEX64": 14, "COMPLEX128": 15, "BFLOAT16": 16}
_ONNX_VALUES = ("floatData", "doubleData", "int32Data", "int64Data", "uint64Data")
#: The members with the sizes, in the order of the values, and the member with the values.
_JAVASCRIPT = (
    (("rows", "columns"), "weights"),
    (("sy", "sx", "depth"), "w"),
    (("n", "d"), "w"),
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
    if _INTERESTING.isdisjoint(thing):
        return None
    for rule in (_monty, _keras, _onnx, _javascript, _marked, _plain):
        payload = rule(thing)
        if payload is not None:
            return payload
    return None


def by_name(items: Sequence[Any], names: dict[int, str]) -> dict[str, Any] | None:
    """The tensors of a list by the names that stood beside their values.

    Returns:
        ``None`` if an item is no tensor, has no name, or has the name of another one.
    """
    found = {names.get(id(item), ""): item for item in items if isinstance(item, torch.Tensor)}
    return found if len(found) == len(items) and "" not in found else None


def _marked(thing: dict[str, Any]) -> Payload | None:
    """Objects with ``__tensor__``, ``__ndarray__`` and the like, or the name of a type."""
    for mark in _FLAGS:
        inside = thing.get(mark, False)
        if inside is False or inside is None:
            continue
        strong = mark.startswith("__")
        if inside is True or (isinstance(inside, str) and payload_key(thing) is not None):
            named = inside if isinstance(inside, str) and is_dtype(inside) else None
            return _certain(_generic(thing, _MISSING, dtype=named, strong=strong), strong=strong)
        # A version or a count may stand under such a name.
        bare = isinstance(inside, str | int | float) and dtype_name(thing) is None
        prefixed = isinstance(inside, str) and inside.startswith((NPY_HEAD, "b64"))
        if strong and (prefixed or not bare):
            return _generic(thing, inside)
    for key in _TYPE_KEYS:
        kind = thing.get(key)
        if not isinstance(kind, str) or (match := _TYPE_NAME.fullmatch(kind)) is None:
            continue
        name = match[1]
        last = name.rsplit(".", 1)[-1].lower()
        if name in _TYPED_ARRAYS:
            return _generic(thing, _MISSING, dtype=_TYPED_ARRAYS[name])
        if _TENSOR_OF_TYPE.fullmatch(name) is not None and is_dtype(name):
            return _generic(thing, _MISSING, dtype=name)
        if name in _WEAK_TYPES and (key in _WEAK_KEYS or last not in _TENSOR_TYPES):
            return _certain(_generic(thing, _MISSING, strong=False), strong=False)
        if last in _TENSOR_TYPES or name in ("np.array", "numpy.array", "jax.Array"):
            return _generic(thing, _MISSING)
    return None


def _certain(payload: Payload | None, *, strong: bool) -> Payload | None:
    """The payload, if the mark is ``strong`` or the values fit."""
    return payload if payload is None or strong or _fits(payload) else None


def _plain(thing: dict[str, Any]) -> Payload | None:
    """``{data, shape, dtype}``, as the converter of the Kaggle guide and many others write it.

    Nothing marks such an object as a tensor. So it needs the members of a tensor and no others, and
    values that fit. With the usual names and all three facts, values that do not fit are an error.
    """
    key = payload_key(thing)
    if key is None or not all(
        name == key or name in _FACTS or (name in _NAME_KEYS and isinstance(value, str))
        for name, value in thing.items()
    ):
        return None
    dtype, shape = dtype_name(thing), shape_said(thing)
    typed, sized = isinstance(dtype, str), isinstance(shape, list)
    if (
        not (typed or sized)
        or (dtype is not None and not typed)
        or (shape is not None and not sized)
    ):
        return None
    try:
        payload = _generic(thing, thing[key])
    except FormatError:
        return None
    if payload is None or isinstance(payload.values, torch.Tensor):
        return payload
    if not isinstance(payload.values, list | int | float | complex | Numbers | Ragged | str | Text):
        return None
    if key in _USUAL_PAYLOADS and typed and sized and "name" not in thing:
        return payload
    if typed and not is_dtype(dtype):
        return None
    if key not in _USUAL_PAYLOADS and not sized:
        return None
    return payload if _fits(payload) else None


def _fits(payload: Payload) -> bool:
    """True if the values are as many as shape and dtype say."""
    values = payload.values
    if isinstance(values, torch.Tensor):
        return True
    try:
        shape = None if payload.shape is None else parse_shape(payload.shape)
    except (FormatError, LimitError):
        return False
    if payload.form != "bytes" and not isinstance(values, str | Text):
        found = shape_of(values)
        if found is None or shape is None:
            return found is not None
        return found == shape or (len(found) <= 1 and prod(found) == prod(shape))
    if payload.dtype is None:
        return False
    itemsize = dtype_named(payload.dtype)[0].itemsize
    if payload.form == "bytes":
        count = prod(shape_of(values) or (0,))
        return shape is not None and count == prod(shape) * itemsize
    return _fits_base64(values, shape, itemsize, payload)


def _fits_base64(
    text: str | Text, shape: tuple[int, ...] | None, itemsize: int, payload: Payload
) -> bool:
    head = head_of(text)
    length = text.stretch.length if isinstance(text, Text) else len("".join(text.split()))
    if re.fullmatch(r"[A-Za-z0-9+/=_\-\s\\]*", head) is None:
        return False
    if payload.compressed or head.startswith(NPY_HEAD):
        return True
    if shape is None:
        # A word or a checksum may look like base64. Padding or a great length is certain.
        padding = text.count("=") if isinstance(text, str) else 0
        whole = length % 4 == 0 and (length // 4 * 3 - padding) % itemsize == 0
        return length > 128 or (padding > 0 and whole)
    nbytes = prod(shape) * itemsize
    if payload.form == "hex":
        return length == 2 * nbytes
    # Line breaks, escaped or not, make the text longer.
    return -(-nbytes * 4 // 3) <= length <= (nbytes + 2) // 3 * 4 * 1.1 + 2 or (
        shape != () and head.startswith(("H4sI", "eJ", "eN", "eA", "eF"))
    )


def _generic(
    thing: dict[str, Any], values: Any, *, dtype: str | None = None, strong: bool = True
) -> Payload | None:
    """The payload of an object that is a tensor. ``None`` if it is not ``strong`` and lacks one.

    Raises:
        FormatError: it has no values, or they stand under an unknown name.
    """
    named = dtype_name(thing)
    shape = shape_said(thing)
    facts = named is not None or shape is not None or dtype is not None
    if values is _MISSING:
        key = payload_key(thing)
        if key is None or not (strong or facts or key in _USUAL_PAYLOADS):
            _refuse_without_values(thing, strong=strong, facts=facts)
            return None
        values = thing[key]
    if named is not None and not isinstance(named, str):
        raise FormatError(f"a dtype is a name, not {quote(named)}")
    values, is_bytes = bytes_of(values)
    form: Literal["base64", "hex", "bytes"] | None = None
    compressed = None
    if is_bytes and isinstance(values, list | Numbers):
        form = "bytes"
    if isinstance(values, str | Text):
        said = next((thing[key] for key in ENCODING_KEYS if isinstance(thing.get(key), str)), None)
        values, form, compressed = encoded(values, said)
    order, endian = order_of(thing)
    return Payload(
        values,
        dtype if named is None else named,
        shape,
        order=order,
        byteorder=endian,
        form=form,
        compressed=compressed,
        requires_grad=thing.get("requires_grad") is True,
        name=next((thing[key] for key in _NAME_KEYS if isinstance(thing.get(key), str)), None),
    )


def _refuse_without_values(thing: dict[str, Any], *, strong: bool, facts: bool) -> None:
    """What becomes of an object with a mark and no values that are known."""
    unknown = [
        key
        for key, value in thing.items()
        if key not in _FACTS
        and (isinstance(value, list | Numbers | Ragged | Text) or typed_array(value) is not None)
    ]
    if unknown and (strong or facts):
        raise FormatError(
            f"values under the key {quote(unknown[0])} are not read; these keys are: "
            + ", ".join(PAYLOAD_KEYS[:12]),
            hint="Rename the key, or take the object out.",
        )
    if strong and facts:
        raise FormatError(NO_VALUES)


def _monty(thing: dict[str, Any]) -> Payload | None:
    kind = (thing.get("@module"), thing.get("@class"))
    if kind not in (("torch", "Tensor"), ("numpy", "array")):
        return None
    if "data" not in thing:
        raise FormatError(NO_VALUES)
    dtype = dtype_name(thing)
    split = isinstance(dtype, str) and "complex" in dtype.lower()
    return Payload(thing["data"], dtype, shape_said(thing), split=split)


def _keras(thing: dict[str, Any]) -> Payload | None:
    """``{"class_name": "__numpy__", "config": {"value": ..., "dtype": ...}}``."""
    inside = thing.get("config")
    if thing.get("class_name") not in ("__numpy__", "__tensor__") or not isinstance(inside, dict):
        return None
    if "value" not in inside:
        raise FormatError(NO_VALUES)
    return Payload(inside["value"], dtype_name(inside))


def _onnx(thing: dict[str, Any]) -> Payload | None:
    """A TensorProto of ONNX, as protobuf writes it in JSON."""
    kind = thing.get("dataType", thing.get("data_type"))
    kind = _ONNX_NAMES.get(kind, 0) if isinstance(kind, str) else kind
    if type(kind) is not int or kind not in _ONNX_TYPES:
        return None
    camel = {re.sub("_([a-z])", lambda match: match[1].upper(), key): key for key in thing}
    if "externalData" in camel:
        raise FormatError("the values of this ONNX tensor lie in another file")
    dtype, shape = _ONNX_TYPES[kind], thing.get("dims", [])
    name = thing["name"] if isinstance(thing.get("name"), str) else None
    if isinstance(shape, list):
        shape = [int(size) if is_index(size) else size for size in shape]
    if "rawData" in camel:
        return Payload(thing[camel["rawData"]], dtype, shape, form="base64", name=name)
    key = next((key for key in _ONNX_VALUES if key in camel), None)
    if key is None:
        return None
    values = thing[camel[key]]
    if isinstance(values, list):
        values = [int(value) if is_integer(value) else value for value in values]
    # int32Data holds the bits of the floating point numbers that have at most 16 bits.
    bits = key == "int32Data" and "float" in dtype
    return Payload(values, dtype, shape, form="bits" if bits else None, name=name)


def _javascript(thing: dict[str, Any]) -> Payload | None:
    """A matrix of brain.js or recurrent.js, or a volume of ConvNetJS."""
    for sizes, values in _JAVASCRIPT:
        if thing.keys() == {*sizes, values}:
            shape = [thing[size] for size in sizes]
            numbers, _ = bytes_of(thing[values])
            positive = all(type(size) is int and size > 0 for size in shape)
            if positive and shape_of(numbers) == (prod(shape),):
                return Payload(numbers, shape=shape, floats=True)
    return None


def looks_like_summary(thing: object) -> bool:
    """True if this may be the shape and dtype of a tensor, without the values."""
    if not isinstance(thing, dict) or "shape" not in thing or not set(thing) <= _FACTS:
        return False
    try:
        parse_shape(thing["shape"])
    except (FormatError, LimitError):
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
        if all(is_index(key) for key in state):
            tree["state"] = {int(key): value for key, value in state.items()}
        for group in groups:
            if isinstance(group, dict) and isinstance(group.get("betas"), list):
                group["betas"] = tuple(group["betas"])
        return
    for value in tree.values():
        mend_optimizers(value)


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
