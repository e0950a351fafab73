"""Reads and writes the safetensors format: a JSON header, then the bytes of the tensors.

Reading maps the file, writing streams it. The ``safetensors`` package is not needed.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import FormatError, IncompleteCheckpointError, LimitError, UnsupportedTypeError, quote
from ..format.json_text import is_text
from ..tensors.pieces import bits, blocks, is_boolean, over, plain

#: The limit of the format.
MAX_HEADER = 100_000_000
#: What is written under ``format``: the tensors are those of PyTorch.
_FORMAT = {"format": "pt"}
#: The key of ``__metadata__`` that holds, as one JSON object, what is not a string or has a key
#: that the file needs for itself.
JSON_KEY = "jsonckpt.metadata"
_EXCLUDE = "Leave it out with --exclude."
#: What an index says of its own shards. It is true of no other file.
_INDEX_KEYS = ("total_size", "total_parameters")
_CODES: dict[str, str] = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "C64": "complex64",
    "F4": "float4_e2m1fn_x2",
}
_DTYPES: dict[str, torch.dtype] = {
    code: getattr(torch, name) for code, name in _CODES.items() if hasattr(torch, name)
}
_NAMES = {dtype: code for code, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class _Entry:
    """What the header says of a tensor: dtype, shape, and the place of its bytes in the data."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int


def _read_header(path: Path) -> tuple[dict[str, _Entry], dict[str, str], int]:
    """Read the header of a safetensors file and check that it covers every data byte once.

    Returns:
        The entries by name, the metadata, and the position of the first data byte.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: the header is refused.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise IncompleteCheckpointError(
                f"the file has {size:,} bytes, its header alone {length:,}", file=path
            )
        if length > MAX_HEADER:
            raise LimitError(f"a header of {length:,} bytes", file=path)
        text = file.read(length)
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"the header is not JSON ({quote(str(error))})", file=path) from error
    if not isinstance(header, dict):
        raise FormatError("the header is not an object", file=path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError("__metadata__ is not an object of strings", file=path)
    end = 0
    entries = {}
    for name, value in header.items():
        try:
            entries[name] = _parse_entry(value)
        except FormatError as error:
            raise error.at(file=path, tensor=name) from error.__cause__
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].start, item[1].stop)):
        nbytes = prod(entry.shape) * entry.dtype.itemsize
        if entry.start != end or entry.stop - entry.start != nbytes:
            raise FormatError(
                f"bytes {entry.start:,} to {entry.stop:,} do not fit dtype, shape and the tensor "
                "before",
                file=path,
                tensor=name,
            )
        end = entry.stop
    if end != size - 8 - length:
        message = f"{size - 8 - length:,} bytes of data where the header says {end:,}"
        kind = IncompleteCheckpointError if end > size - 8 - length else FormatError
        raise kind(message, file=path)
    return entries, metadata, 8 + length


def _parse_entry(entry: Any) -> _Entry:
    span = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(span, list) or len(span) != 2 or not all(type(x) is int for x in span):
        raise FormatError("an entry without data_offsets")
    if not 0 <= span[0] <= span[1] < 1 << 63:
        raise FormatError(f"data_offsets {quote(span)} outside the file")
    code, shape = entry.get("dtype"), entry.get("shape")
    dtype = _DTYPES.get(code) if isinstance(code, str) else None
    if dtype is None:
        raise FormatError(f"unknown dtype {quote(code)}")
    if not isinstance(shape, list) or not all(type(x) is int and 0 <= x < 1 << 63 for x in shape):
        raise FormatError(f"a shape is a list of sizes, not {quote(shape)}")
    if code == "F4":
        if not shape or shape[-1] % 2:
            raise FormatError("an odd number of 4-bit values")
        shape = [*shape[:-1], shape[-1] // 2]
    return _Entry(dtype, tuple(shape), *span)


def pack_metadata(
    metadata: Mapping[str, Any], ties: Mapping[str, str], names: Container[str] = ()
) -> dict[str, str]:
    """The ``__metadata__`` of a file, which may hold only strings.

    Args:
        metadata: the user's own JSON object.
        ties: further names of tied tensors, and the name that is kept.
        names: those of the tensors: a pair such as ``{"b": "w"}`` would read as a tie with ``w``.

    >>> pack_metadata({"run": "a", "step": 3}, {"b": "w"})
    {'format': 'pt', 'run': 'a', 'jsonckpt.metadata': '{"step":3}', 'b': 'w'}
    """
    taken = {*_FORMAT, JSON_KEY, *ties}
    plain = {
        key: value
        for key, value in metadata.items()
        if isinstance(value, str) and key not in taken and value not in names
    }
    others = {key: value for key, value in metadata.items() if key not in plain}
    packed = {JSON_KEY: json.dumps(others, separators=(",", ":"))} if others else {}
    return {**_FORMAT, **plain, **packed, **ties}


def unpack_metadata(written: Mapping[str, str], ties: Container[str] = ()) -> dict[str, Any]:
    """The user's part of a ``__metadata__``: the reverse of :func:`pack_metadata`.

    Args:
        ties: names that are ties, and not of the user.

    >>> unpack_metadata({"format": "pt", "run": "a", "jsonckpt.metadata": '{"step":3}'})
    {'run': 'a', 'step': 3}
    """
    found: dict[str, Any] = {
        key: value
        for key, value in written.items()
        if _FORMAT.get(key) != value and key not in ties
    }
    try:
        others = json.loads(found.get(JSON_KEY, "null"), object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        others = None
    if isinstance(others, dict):  # else it is another program's
        del found[JSON_KEY]
        found.update(others)
    return found


@dataclass(frozen=True, slots=True)
class SafetensorsFile:
    """What a file holds.

    Attributes:
        tensors: by name, mapped.
        metadata: of the user.
        ties: further names of tied tensors, and the name that is kept.
    """

    tensors: dict[str, torch.Tensor]
    metadata: dict[str, Any]
    ties: dict[str, str]


def load_safetensors(path: Path) -> SafetensorsFile:
    """The content of a file, mapped. Tied tensors that the metadata names are tied again.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: the file is refused.
    """
    entries, metadata, start = _read_header(path)
    tensors: dict[str, torch.Tensor] = {}
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    for name, entry in entries.items():
        if entry.start == entry.stop:
            # Without bytes, it would have the address of the next tensor and look tied to it.
            tensors[name] = over(torch.empty(0).untyped_storage(), entry.dtype, entry.shape)
            continue
        storage = whole[start + entry.start : start + entry.stop]
        if (start + entry.start) % entry.dtype.itemsize:
            storage = storage.clone()
        tensors[name] = over(storage, entry.dtype, entry.shape)
        if entry.dtype is torch.bool and not is_boolean(tensors[name]):
            raise FormatError("a byte other than 0 and 1 in a bool", file=path, tensor=name)
    ties = {name: kept for name, kept in metadata.items() if name not in entries}
    ties = {name: kept for name, kept in ties.items() if kept in entries}
    tensors |= {name: tensors[kept] for name, kept in ties.items()}
    return SafetensorsFile(tensors, unpack_metadata(metadata, ties), ties)


def load_sharded(index: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """The file of each tensor, from an index ``*.index.json``, and the user's metadata in it.

    Raises:
        FormatError: it is not an index, or it names a file in another directory.
        IncompleteCheckpointError: a file is missing.
    """
    try:
        content = json.loads(index.read_text("utf-8"), object_pairs_hook=_unique)
        files = {str(key): str(value) for key, value in content["weight_map"].items()}
        metadata = dict(content.get("metadata") or {})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FormatError(f"not an index of shards ({quote(str(error))})", file=index) from error
    if not files:
        raise FormatError("the index names no tensor", file=index)
    missing = []
    for name in dict.fromkeys(files.values()):
        if Path(name).name != name or name in ("", ".", ".."):
            raise FormatError(f"the shard {quote(name)} does not lie beside its index", file=index)
        if not (index.parent / name).is_file():
            missing.append(name)
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise IncompleteCheckpointError(
            f"the shard {quote(missing[0])} is missing{more}",
            file=index,
            hint="Copy it beside its index.",
        )
    return files, {key: value for key, value in metadata.items() if key not in _INDEX_KEYS}


def write_safetensors(
    file: IO[bytes], tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write the tensors, piece by piece.

    Raises:
        UnsupportedTypeError: the format has no such dtype or layout.
    """
    spans: dict[str, list[int]] = {}
    end = 0
    # Larger items first, so that every tensor is aligned.
    order = sorted(tensors, key=lambda name: -tensors[name].itemsize)
    for name in order:
        start, end = end, end + tensors[name].numel() * tensors[name].itemsize
        spans[name] = [start, end]
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    for name, tensor in tensors.items():
        code, shape = describe(tensor, name)
        header[name] = {"dtype": code, "shape": shape, "data_offsets": spans[name]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        for block in blocks(plain(tensors[name])):
            file.write(bits(block).numpy().data)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one object")
    return found


def describe(tensor: torch.Tensor, name: str) -> tuple[str, list[int]]:
    """The format's dtype and shape. In packed dtypes the format counts single values.

    Raises:
        UnsupportedTypeError: the format has no such dtype, layout or name.
    """
    if not is_text(name):
        raise UnsupportedTypeError(
            "safetensors cannot hold a name with a lone surrogate", tensor=name, hint=_EXCLUDE
        )
    code, shape = _NAMES.get(tensor.dtype), list(tensor.shape)
    packed = code == "F4"
    plain_layout = tensor.layout == torch.strided and not tensor.is_quantized
    if code is None or not plain_layout or (packed and not shape):
        kind = f"layout {tensor.layout}" if code and not plain_layout else f"{tensor.dtype}"
        raise UnsupportedTypeError(f"safetensors cannot hold {kind}", tensor=name, hint=_EXCLUDE)
    return code, [*shape[:-1], shape[-1] * 2] if packed else shape
