"""Strategies for whole valid checkpoints. Every reader must accept them.

A :class:`Ground` is a forgery without a lie, with the raw bytes of its records. ``plain`` draws the
parts of a state without tensors. This module draws the tags that refer to records. Like the forger
it is written from ``docs/format.md`` alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import strategies as st

from tests.hostile.forge import AUTO, SAVE_ID, Forgery, Record
from tests.hostile.spelling import ITEMSIZE
from tools.reliability.drawn.plain import CONTAINERS, LEAVES, container

Json = Any

FLOATS = ["float32", "float64", "bfloat16", "float16", "complex64", "complex128"]
#: The dtypes that this torch has.
_KNOWN = sorted(name for name in ITEMSIZE if hasattr(torch, name))
#: Common ones first, because a failure shrinks to the first.
_DTYPES = ["uint8", "float32", "bool", "int64", "bfloat16", *_KNOWN]
_NAMES = ["/w", "/h", "/mask", "/l", "/i", "/e", "", "/a~1b/~0", "/ü", "/x/0", "$storage/0"]
_MOST_DEPTH = 3
_MOST_BYTES = 96
_MOST_CHUNKS = 6

#: NumPy's spelling of the dtypes that it has, without the byte order.
_NUMPY = {
    "bool": "b1", "uint8": "u1", "int8": "i1", "uint16": "u2", "int16": "i2", "uint32": "u4",
    "int32": "i4", "uint64": "u8", "int64": "i8", "float16": "f2", "float32": "f4",
    "float64": "f8", "complex64": "c8", "complex128": "c16",
}  # fmt: skip
_MOMENTS = ["M8[ns]", "m8[s]", "M8[D]", "M8[25s]", "m8"]


@dataclass
class Ground:
    """A valid checkpoint while it is drawn.

    Attributes:
        forgery: its parts.
        raw: the bytes of each record by name.
        loose: names of the records that the state does not refer to.
        aliases: names of ``$tied`` and ``$view`` so far.
        placed: names of the records with a stride or a place in a storage. Only ``$tensor`` and
            ``$tied`` refer to them.
        storages: the number of shared storages so far.
    """

    forgery: Forgery
    raw: dict[str, bytes] = field(default_factory=dict)
    loose: set[str] = field(default_factory=set)
    aliases: int = 0
    placed: set[str] = field(default_factory=set)
    storages: int = 0

    def add(self, draw: st.DrawFn, dtype: str, shape: Sequence[int], raw: bytes) -> str:
        """Add a record. Returns its name."""
        free = [name for name in _NAMES if name not in self.raw]
        name = draw(st.sampled_from(free)) if free else f"/n{len(self.raw)}"
        record = draw(records(name, dtype, tuple(shape), raw, self.forgery.algorithm))
        self.forgery.records.append(record)
        self.raw[name] = raw
        return name

    def alias(self) -> str:
        """A new name for a tensor."""
        self.aliases += 1
        return f"/alias/{self.aliases}"

    def record(self, name: str) -> Record:
        """The record of that name."""
        return self.forgery[name]


# --- records ------------------------------------------------------------------------------------

shapes = st.one_of(
    st.lists(st.integers(1, 4), max_size=2),
    st.lists(st.integers(0, 3), max_size=4),
    st.sampled_from([[0], [2, 0, 3], [2**31, 0], [1] * 9, [40]]),
)


@st.composite
def raw_bytes(draw: st.DrawFn, dtype: str, size: int) -> bytes:
    """Bytes that a record of the dtype may hold."""
    if dtype == "bool":
        return bytes(draw(st.lists(st.integers(0, 1), min_size=size, max_size=size)))
    return draw(st.binary(min_size=size, max_size=size))


@st.composite
def records(
    draw: st.DrawFn, name: str, dtype: str, shape: Sequence[int], raw: bytes, algorithm: str
) -> Record:
    """A record of known bytes, in any codec."""
    item = ITEMSIZE[dtype]
    encoding = draw(st.sampled_from(["base64", "base64", "list"]))
    compression = filter_ = "none"
    if encoding == "base64":
        compression = draw(st.sampled_from(["none", "zstd"]))
        filter_ = draw(st.sampled_from(["none", "shuffle"]))
    elements = draw(st.sampled_from([1 << 20, 1, 2, 3, 5]))
    elements = max(elements, -(-len(raw) // (item * _MOST_CHUNKS)))
    record = Record.of(
        name, dtype, shape, raw,
        encoding=encoding, compression=compression, filter=filter_,
        chunk_bytes=elements * item, algorithm=algorithm, shard=draw(st.integers(0, 1)),
    )  # fmt: skip
    if draw(st.integers(0, 9)) == 9:
        record.members["device"] = "cpu"
    return record


def _new_tensor(draw: st.DrawFn, ground: Ground, dtypes: Sequence[str]) -> str:
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes)
    while math.prod(shape) * ITEMSIZE[dtype] > _MOST_BYTES:
        shape = shape[1:]
    raw = draw(raw_bytes(dtype, math.prod(shape) * ITEMSIZE[dtype]))
    return ground.add(draw, dtype, shape, raw)


def _tensor_of(
    draw: st.DrawFn, ground: Ground, dtype: str, shape: Sequence[int], numbers: Sequence[int]
) -> Json:
    """A reference to a new record of these integers."""
    raw = struct.pack(f"<{len(numbers)}{'i' if dtype == 'int32' else 'q'}", *numbers)
    return {"$tensor": ground.add(draw, dtype, shape, raw)}


def _some_tensor(draw: st.DrawFn, ground: Ground, dtypes: Sequence[str] = _DTYPES) -> str:
    """The name of a record of one of the dtypes, existing or new."""
    known: list[str] = [
        record.members["name"]
        for record in ground.forgery.records
        if record.members["dtype"] in dtypes and record.members["name"] not in ground.placed
    ]
    if draw(st.booleans()) and known:
        return draw(st.sampled_from(known))
    return _new_tensor(draw, ground, dtypes)


# --- references to records ----------------------------------------------------------------------


def _tensor(draw: st.DrawFn, ground: Ground) -> Json:
    return {"$tensor": _new_tensor(draw, ground, _DTYPES)}


def _tied(draw: st.DrawFn, ground: Ground) -> Json:
    if draw(st.booleans()) and ground.placed:
        name = draw(st.sampled_from(sorted(ground.placed)))
    else:
        name = _some_tensor(draw, ground)
    return {"$tied": {"name": ground.alias(), "of": name}}


def _turned(draw: st.DrawFn, ground: Ground) -> Json:
    """A dense tensor whose dimensions have another order in memory."""
    name = _new_tensor(draw, ground, _DTYPES)
    members = ground.record(name).members
    shape = members["shape"]
    stride, step = [0] * len(shape), 1
    for at in draw(st.permutations(range(len(shape)))):
        if shape[at] > 1:
            stride[at], step = step, step * shape[at]
        else:
            stride[at] = draw(st.integers(0, 3))  # means nothing
    members["stride"] = stride
    ground.placed.add(name)
    return {"$tensor": name}


def _pieces(draw: st.DrawFn, ground: Ground) -> Json:
    """Tensors that share a storage and no byte of it."""
    dtype = draw(st.sampled_from(_DTYPES))
    item = ITEMSIZE[dtype]
    names, places, end = [], [], 0
    for _ in range(draw(st.integers(1, 3))):
        count = draw(st.integers(1, 4))
        name = ground.add(draw, dtype, [count], draw(raw_bytes(dtype, count * item)))
        start = end + draw(st.integers(0, 2)) * item
        end = start + count * item
        names.append(name)
        places.append(start)
    size = end + draw(st.integers(0, 9))
    for name, start in zip(names, places):
        ground.record(name).members["storage"] = [ground.storages, start, size]
        ground.placed.add(name)
    ground.storages += 1
    return [{"$tensor": name} for name in draw(st.permutations(names))]


def _view(draw: st.DrawFn, ground: Ground) -> Json:
    name = _some_tensor(draw, ground)
    record = ground.record(name)
    # Any bytes are valid elements of every dtype except bool.
    of_bools = record.members["dtype"] == "bool"
    dtypes = [name for name in _KNOWN if of_bools or name != "bool"]
    dtype = draw(st.sampled_from([record.members["dtype"], *dtypes]))
    room = len(ground.raw[name]) // ITEMSIZE[dtype]
    offset = draw(st.integers(0, room))
    shape, stride = [], []
    left = room - offset - 1
    for _ in range(draw(st.integers(0, 3))):
        step = draw(st.integers(0, 4))
        size = draw(st.integers(0, 3 if step == 0 else 1 + max(left, 0) // step))
        left -= max(size - 1, 0) * step
        shape.append(size)
        stride.append(step)
    if left < 0 and 0 not in shape:  # not even one element fits, but an empty view does
        shape.append(0)
        stride.append(draw(st.sampled_from([0, 1, 2**62])))
    body = {"name": ground.alias(), "of": name, "dtype": dtype, "shape": shape, "stride": stride}
    return {"$view": body | {"offset": offset}}


def _dense(draw: st.DrawFn, ground: Ground, dtypes: Sequence[str]) -> Json:
    name = _some_tensor(draw, ground, dtypes)
    if draw(st.integers(0, 3)) == 3:
        return {"$tied": {"name": ground.alias(), "of": name}}
    return {"$tensor": name}


def _parameter(draw: st.DrawFn, ground: Ground) -> Json:
    kind = draw(st.sampled_from(["float", "any", "sparse", "quantized"]))
    if kind == "sparse":
        data = _sparse(draw, ground)
    elif kind == "quantized":
        data = _quantized(draw, ground)
    else:
        data = _dense(draw, ground, FLOATS if kind == "float" else _DTYPES)
    needs_grad = kind == "float" and draw(st.booleans())
    return {"$parameter": {"data": data, "requires_grad": needs_grad}}


def _requires_grad(draw: st.DrawFn, ground: Ground) -> Json:
    return {"$requires_grad": _dense(draw, ground, FLOATS)}


def _sparse(draw: st.DrawFn, ground: Ground) -> Json:
    layout = draw(st.sampled_from(["coo", "csr", "csc", "bsr", "bsc"]))
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    cells = [(row, column) for row in range(rows) for column in range(columns)]
    chosen = sorted(draw(st.sets(st.sampled_from(cells), max_size=4)))
    block = [2, 1] if layout.startswith("b") else []
    size = [rows * (block or [1])[0], columns * (block or [1, 1])[1]]
    dtype = draw(st.sampled_from(["float32", "float64", "int64", "complex64"]))
    shape = [len(chosen), *block]
    raw = draw(st.binary(min_size=(n := math.prod(shape) * ITEMSIZE[dtype]), max_size=n))
    body: Json = {"layout": layout, "shape": size}
    if layout == "coo":
        coalesced = draw(st.booleans())
        if not coalesced:
            chosen = draw(st.permutations(chosen))
        numbers = [cell[axis] for axis in (0, 1) for cell in chosen]
        body["indices"] = _tensor_of(draw, ground, "int64", [2, len(chosen)], numbers)
        body["values"] = {"$tensor": ground.add(draw, dtype, shape, raw)}
        return {"$sparse": body | {"coalesced": coalesced}}
    by_rows = layout.endswith("sr")
    if not by_rows:
        chosen = sorted((column, row) for row, column in chosen)
    starts = [
        sum(cell[0] < line for cell in chosen) for line in range((rows if by_rows else columns) + 1)
    ]
    index = draw(st.sampled_from(["int64", "int32"]))
    body["compressed"] = _tensor_of(draw, ground, index, [len(starts)], starts)
    body["plain"] = _tensor_of(draw, ground, index, [len(chosen)], [cell[1] for cell in chosen])
    body["values"] = {"$tensor": ground.add(draw, dtype, shape, raw)}
    return {"$sparse": body}


def _quantized(draw: st.DrawFn, ground: Ground) -> Json:
    dtype, stored = draw(
        st.sampled_from([("quint8", "uint8"), ("qint8", "int8"), ("qint32", "int32")])
    )
    shape = draw(st.lists(st.integers(1, 3), min_size=1, max_size=2))
    size = math.prod(shape) * ITEMSIZE[stored]
    raw = draw(st.binary(min_size=size, max_size=size))
    body: Json = {"dtype": dtype, "data": {"$tensor": ground.add(draw, stored, shape, raw)}}
    scheme = draw(st.sampled_from(["per_tensor_affine", "per_channel_affine", "_float_qparams"]))
    if scheme == "per_tensor_affine":
        scale = draw(st.sampled_from([0.5, 1.0, 0.1, 2]))
        return {"$quantized": body | {"scheme": scheme, "scale": scale, "zero_point": 3}}
    axis = draw(st.integers(0, len(shape) - 1))
    channels = shape[axis]
    if scheme == "per_channel_affine":
        scales, points = struct.pack(f"<{channels}d", *[0.5] * channels), "int64"
        zeros = struct.pack(f"<{channels}q", *range(channels))
        kinds = ["float64", points]
    else:
        scheme = "per_channel_affine_float_qparams"
        scales = zeros = struct.pack(f"<{channels}f", *[0.25] * channels)
        kinds = ["float32", "float32"]
    body["scale"] = {"$tensor": ground.add(draw, kinds[0], [channels], scales)}
    body["zero_point"] = {"$tensor": ground.add(draw, kinds[1], [channels], zeros)}
    return {"$quantized": body | {"scheme": scheme, "axis": axis}}


def _ndarray(draw: st.DrawFn, ground: Ground) -> Json:
    name = _some_tensor(draw, ground, sorted(_NUMPY))
    members = ground.record(name).members
    spelled = _NUMPY[members["dtype"]]
    if members["dtype"] == "int64":
        spelled = draw(st.sampled_from([spelled, *_MOMENTS]))
    order = "|" if spelled[1:] == "1" else draw(st.sampled_from("<>"))
    body = {"dtype": order + spelled, "shape": list(members["shape"]), "data": {"$tensor": name}}
    if len(members["shape"]) > 1 and draw(st.booleans()):
        body["order"] = "F"
    return {"$ndarray": body}


_REFERENCES: list[Callable[[st.DrawFn, Ground], Json]] = [
    _tensor, _tensor, _tied, _view, _view, _parameter, _requires_grad, _sparse, _quantized,
    _ndarray, _turned, _pieces,
]  # fmt: skip


# --- the whole ----------------------------------------------------------------------------------


def _node(draw: st.DrawFn, ground: Ground, depth: int) -> Json:
    kind = draw(st.sampled_from(["leaf", "reference", "reference", "container"]))
    if kind == "reference":
        return draw(st.sampled_from(_REFERENCES))(draw, ground)
    if kind == "leaf" or depth >= _MOST_DEPTH:
        return draw(LEAVES)
    nodes = [_node(draw, ground, depth + 1) for _ in range(draw(st.integers(0, 2)))]
    return container(draw, draw(st.sampled_from(CONTAINERS)), nodes)


def _referred(node: Json) -> Iterator[str]:
    """The names of the records that a valid state refers to."""
    if isinstance(node, dict):
        for key, value in node.items():
            if key == "$tensor" and len(node) == 1:
                yield value
            elif key in ("$tied", "$view") and len(node) == 1:
                yield value["of"]
            else:
                yield from _referred(value)
    elif isinstance(node, list):
        for value in node:
            yield from _referred(value)


_KEYS = st.sampled_from(["w", "model", "$x", "", "ä/~", "0"])


@st.composite
def ground(draw: st.DrawFn) -> Ground:
    """A sound checkpoint."""
    algorithm = draw(st.sampled_from(["xxh3_128", "xxh3_128", "sha256", "blake3"]))
    head = {"format": "jsonckpt.shard", "version": 1, "save_id": SAVE_ID, "checksum": algorithm}
    single = {
        "created_at": "2025-01-02T03:04:05Z", "created_by": "a test", "totals": AUTO,
        "metadata": {}, "state": {},
    }  # fmt: skip
    made = Ground(Forgery(head, single, []))
    keys = draw(st.lists(_KEYS, min_size=1, max_size=4, unique=True))
    state = {key: _node(draw, made, 0) for key in keys}
    if list(state) == ["$x"]:  # an object of one member that begins with $ would be a tag
        state["epoch"] = 3
    single["state"] = state
    single["metadata"] = draw(st.sampled_from([{}, {"run": 1, "$tuple": [2]}, {"$tensor": "/w"}]))
    if draw(st.integers(0, 4)) == 4:
        _new_tensor(draw, made, _DTYPES)
    made.loose = set(made.raw) - set(_referred(state))  # not every container holds all its nodes
    made.forgery.records.sort(key=lambda record: record.shard)
    return made
