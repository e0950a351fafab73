"""Reads models of TensorFlow.js: ``model.json`` with its shards, or with the weights inside.

The forms are that of ``model.save`` and the converter (``weightsManifest`` and binary shards), the
older ``weights_manifest.json``, and model artifacts written as one JSON text (``weightSpecs`` and
``weightData``). Weights that lie in one shard are mapped. Quantized ones become what TensorFlow.js
makes of them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from ..errors import FormatError, JsonckptError, LimitError, quote
from ..foreign.plain_json import read_plain
from ..format.limits import Limits, exceeds
from ..json_stream.spooled import new_tensor
from ..storage.spool import Spool
from ..tensors.pieces import blocks, is_boolean, over
from .shard_bytes import ShardBytes, open_shards

#: A file that mentions none of these is no model of TensorFlow.js.
_MENTIONS = re.compile(rb'"(?:weightsManifest|weightSpecs|modelTopology|paths)"\s*:')
#: The first bytes of a larger file have to mention one of these: its weights are inside.
_FIRST = re.compile(
    rb'"(?:generatedBy|convertedBy|modelTopology|weightsManifest|weightSpecs|weightData|'
    rb'trainingConfig|userDefinedMetadata)"\s*:'
)
#: Files up to this size are searched for the names above, wherever they stand.
_SEARCHED = 16 << 20
_BLOCK = 1 << 20
#: The most bytes of text in weights of dtype string.
_MOST_TEXT = 16 << 20
_KNOWN = frozenset(
    {
        "format", "generatedBy", "convertedBy", "modelTopology", "trainingConfig", "signature",
        "userDefinedMetadata", "modelInitializer", "initializerSignature",
    }
)  # fmt: skip
_DTYPES: Final[dict[str, torch.dtype]] = {
    "float32": torch.float32,
    "int32": torch.int32,
    "bool": torch.bool,
    "uint8": torch.uint8,
    "uint16": torch.uint16,
    "float16": torch.float16,
    "complex64": torch.complex64,
}
#: For each dtype of stored values, the dtypes of the weights.
_QUANTIZED: Final = {
    "uint8": ("float32", "int32"),
    "uint16": ("float32", "int32"),
    "float16": ("float32",),
}
#: Opens the JSON text from its beginning.
Opener = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True, slots=True)
class Model:
    """A model of TensorFlow.js.

    Attributes:
        state: the members of ``model.json``, with the tensors by name in ``weights``.
        nbytes: the bytes of the shards.
        notes: what was changed, one line each.
        parts: the names of the shards.
    """

    state: dict[str, Any]
    nbytes: int
    notes: list[str]
    parts: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Spec:
    """An entry of ``weights`` or ``weightSpecs``.

    Attributes:
        name, dtype, shape: of the weight.
        stored: the dtype of the bytes. It differs from ``dtype`` if the weight is quantized.
        scale, least: a stored integer ``q`` stands for ``q * scale + least``.
        optimizer: True for a weight of the optimizer.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    stored: str
    scale: float | None
    least: float | None
    optimizer: bool

    @property
    def nbytes(self) -> int:
        """The stored bytes. Those of strings are in the data."""
        return 0 if self.stored == "string" else prod(self.shape) * _DTYPES[self.stored].itemsize


def load_tensorflowjs(
    path: Path, opener: Opener, spool: Spool, directory: Path, limits: Limits
) -> Model | None:
    """Read a model, or return ``None`` if the JSON is something else.

    Args:
        path: the JSON file. Its shards are looked for beside it.
        opener: opens its text.
        spool: memory for weights that cannot be mapped.
        directory: for temporary files.
        limits: on the size of the model.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: the file, or a shard, is refused.
    """
    if not _mentions_weights(opener, path.stat().st_size):
        return None
    with opener() as text:
        root = read_plain(text, directory, spool, limits, binary=frozenset({"weightData"}))
    if isinstance(root, list) and root and all(map(_is_group, root)):
        return _read(path, {}, root, None, spool, limits)
    if not isinstance(root, dict):
        return None
    if _is_model(root):
        return _of_artifacts(path, root, spool, limits)
    inner = [key for key, value in root.items() if isinstance(value, dict) and _is_model(value)]
    if len(inner) != 1:
        _refuse_without_weights(root)
        return None
    model = _of_artifacts(path, root[inner[0]], spool, limits)
    return replace(model, state={**root, inner[0]: model.state})


def _mentions_weights(opener: Opener, size: int) -> bool:
    """A quick look, before the text is parsed."""
    tail = b""
    with opener() as text:
        read = 0
        while block := text.read(_BLOCK):
            if read == 0 and size > _SEARCHED and _FIRST.search(block[:4096]) is None:
                return False
            read += len(block)
            if _MENTIONS.search(tail + block):
                return True
            tail = block[-64:]
    return False


def _is_group(value: object) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("paths"), list)
        and isinstance(value.get("weights"), list)
    )


def _is_model(root: dict[str, Any]) -> bool:
    entries = root.get("weightsManifest", root.get("weightSpecs"))
    return isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)


def _refuse_without_weights(root: dict[str, Any]) -> None:
    if "modelTopology" in root and root.keys() <= _KNOWN:
        raise FormatError(
            "a model of TensorFlow.js without weights: it has neither weightsManifest nor "
            "weightSpecs",
            hint="Save it with model.save, which writes the weights, too.",
        )


def _of_artifacts(path: Path, root: dict[str, Any], spool: Spool, limits: Limits) -> Model:
    if "weightsManifest" in root:
        groups = root["weightsManifest"]
        for number, group in enumerate(groups):
            if not _is_group(group):
                raise FormatError(
                    f"group {number} of weightsManifest is no object with paths and weights"
                )
        return _read(path, root, groups, None, spool, limits)
    data = _inside(root.get("weightData"))
    groups = [{"weights": root["weightSpecs"]}]
    return _read(path, root, groups, data, spool, limits)


def _inside(data: Any) -> ShardBytes:
    """The weights inside the text, which :func:`read_plain` has decoded."""
    parts = data if isinstance(data, list) else [data]
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        lost = data is None or data in ({}, [], [{}])
        raise FormatError(
            "weightData holds no bytes: JSON.stringify writes an ArrayBuffer as {}"
            if lost
            else f"weightData is neither base64 nor an array of bytes, but {quote(data)}",
            hint="Write it as base64: Buffer.from(weightData).toString('base64')",
        )
    return ShardBytes.over("weightData", parts)


def _read(
    path: Path,
    root: dict[str, Any],
    groups: list[dict[str, Any]],
    inside: ShardBytes | None,
    spool: Spool,
    limits: Limits,
) -> Model:
    """Read the weights of all groups."""
    weights: dict[str, Any] = {}
    optimizer: dict[str, Any] = {}
    converted: dict[str, int] = {}
    nbytes = 0
    taken: set[str] = set()
    for group in groups:
        specs = [_spec(entry, limits) for entry in group["weights"]]
        if exceeds(len(weights) + len(optimizer) + len(specs), limits.tensors):
            raise LimitError(f"over {limits.tensors:,} weights")
        data = inside or open_shards(path, group["paths"], taken, limits)
        nbytes += 0 if inside else data.total
        least = sum(
            4 * prod(spec.shape) if spec.stored == "string" else spec.nbytes for spec in specs
        )
        exact = all(spec.stored != "string" for spec in specs)
        data.check(least, exact=exact)
        position = 0
        for spec in specs:
            target = optimizer if spec.optimizer else weights
            if spec.name in target:
                raise FormatError("the name stands twice in the manifest", tensor=spec.name)
            try:
                target[spec.name], position = _weight(spec, data, position, spool, limits)
            except JsonckptError as error:
                raise error.at(tensor=spec.name) from error.__cause__
            if spec.stored != spec.dtype or spec.scale is not None:
                form = f"from {spec.stored} to {spec.dtype}"
                converted[form] = converted.get(form, 0) + 1
        data.check(position, exact=True)
    notes = []
    if converted:
        forms = ", ".join(f"{count} {form}" for form, count in converted.items())
        notes.append(f"quantized weights are what TensorFlow.js makes of them: {forms}")
    return Model(_with_weights(root, weights, optimizer), nbytes, notes, frozenset(taken))


def _with_weights(
    root: dict[str, Any], weights: dict[str, Any], optimizer: dict[str, Any]
) -> dict[str, Any]:
    """The members of the text, and the weights in place of their description."""
    places = {"weightsManifest", "weightSpecs", "weightData"}
    others = {key: value for key, value in root.items() if key not in places}
    state: dict[str, Any] = {**others, "weights": weights}
    if optimizer:
        state["optimizer_weights"] = optimizer
    return state


def _spec(entry: Any, limits: Limits) -> _Spec:
    name = entry.get("name") if isinstance(entry, dict) else None
    if not isinstance(name, str):
        raise FormatError(f"an entry of the weights without a name: {quote(entry)}")
    try:
        return _checked_spec(name, entry, limits)
    except JsonckptError as error:
        raise error.at(tensor=name) from error.__cause__


def _checked_spec(name: str, entry: dict[str, Any], limits: Limits) -> _Spec:
    shape, quantization = entry.get("shape"), entry.get("quantization")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise FormatError(f"a shape is a list of sizes, not {quote(shape)}")
    if exceeds(len(shape), limits.rank) or prod(max(n, 1) for n in shape) >= 1 << 60:
        raise LimitError(f"shape {quote(shape)} is too large")
    dtype = entry.get("dtype")
    optimizer = entry.get("group") == "optimizer"
    if quantization is None:
        if not isinstance(dtype, str) or dtype not in (*_DTYPES, "string"):
            raise FormatError(f"unknown dtype {quote(dtype)}")
        return _Spec(name, dtype, tuple(shape), dtype, None, None, optimizer)
    if not isinstance(quantization, dict):
        raise FormatError(f"quantization is an object, not {quote(quantization)}")
    stored = quantization.get("dtype")
    dtype = dtype or quantization.get("original_dtype")
    if not isinstance(stored, str) or dtype not in _QUANTIZED.get(stored, ()):
        raise FormatError(f"quantization of {quote(dtype)} to {quote(stored)} is not known")
    scale, least = quantization.get("scale"), quantization.get("min")
    if stored == "float16":
        scale = least = None
    elif type(scale) not in (int, float) or type(least) not in (int, float):
        raise FormatError("quantization without scale and min")
    else:
        scale, least = _number(scale), _number(least)
    return _Spec(name, dtype, tuple(shape), stored, scale, least, optimizer)


def _number(value: Any) -> float:
    """A number as JavaScript reads it: one that is too large is infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def _weight(
    spec: _Spec, data: ShardBytes, position: int, spool: Spool, limits: Limits
) -> tuple[Any, int]:
    """A weight, and the position after it."""
    if spec.stored == "string":
        return _strings(spec, data, position, limits)
    dtype, end = _DTYPES[spec.stored], position + spec.nbytes
    tensor = over(data.storage(position, spec.nbytes, dtype.itemsize, spool), dtype, spec.shape)
    if dtype is torch.bool and not is_boolean(tensor):
        raise FormatError("a byte other than 0 and 1 in a bool")
    if spec.stored == spec.dtype and spec.scale is None:
        return tensor, end
    target = new_tensor(spool, _DTYPES[spec.dtype], spec.shape)
    flat, done = target.view(-1).numpy(), 0
    for block in blocks(tensor):
        flat[done : done + len(block)] = _dequantized(block.numpy(), spec)
        done += len(block)
    return target, end


def _dequantized(stored: npt.NDArray[Any], spec: _Spec) -> npt.NDArray[Any]:
    """The values as JavaScript computes them: in float64, then stored in the dtype."""
    if spec.scale is None or spec.least is None:
        return stored.astype(np.float32)
    with np.errstate(all="ignore"):
        values = stored.astype(np.float64) * spec.scale + spec.least
        if spec.dtype == "float32":
            return values.astype(np.float32)
        whole = np.floor(values)
        whole += values - whole >= 0.5  # Math.round: halves go up
        if not (np.abs(whole) < 2**31).all():
            raise FormatError("scale and min lead to numbers beyond int32")
        return whole.astype(np.int32)


def _strings(spec: _Spec, data: ShardBytes, position: int, limits: Limits) -> tuple[Any, int]:
    """A weight of strings, as a nested list of ``str``, or of ``bytes`` if they are no UTF-8."""
    count = prod(spec.shape)
    if exceeds(count, limits.marks):
        raise LimitError(f"over {limits.marks:,} strings")
    found: list[bytes] = []
    total = 0
    for _ in range(count):
        length = int.from_bytes(data.read(position, 4), "little")
        total += length
        if total > _MOST_TEXT:
            raise LimitError(f"over {_MOST_TEXT:,} bytes of text in one weight")
        found.append(data.read(position + 4, length))
        position += 4 + length
    flat: list[Any] = found
    with suppress(UnicodeDecodeError):
        flat = [text.decode() for text in found]
    if not spec.shape:
        return flat[0], position
    for size in reversed(spec.shape[1:]):
        flat = [flat[i : i + size] for i in range(0, len(flat), size)] if size else []
    return flat, position
