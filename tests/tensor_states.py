"""Hypothesis strategies for states that hold tensors, and for the options to save them with.

States of everything else are in :mod:`tests.states`.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from hypothesis import strategies as st

__all__ = ["options", "pieces", "states", "tensors"]

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.complex64,
    torch.complex128,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.uint16,
    torch.uint32,
    torch.uint64,
    torch.bool,
]


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype with any bits, of rank 0 to 3."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(0, 5), max_size=3))
    if dtype is torch.bool:
        count = math.prod(shape)
        bits = draw(st.lists(st.booleans(), min_size=count, max_size=count))
        return torch.tensor(bits, dtype=torch.bool).reshape(shape)
    size = math.prod(shape) * dtype.itemsize
    raw = draw(st.binary(min_size=size, max_size=size))
    if not raw:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw), dtype=dtype).reshape(shape)


@st.composite
def layouts(draw: st.DrawFn) -> Any:
    """A tensor as programs hold it: plain, transposed, strided, a parameter, two that share."""
    tensor = draw(tensors())
    kind = draw(
        st.sampled_from(["plain", "plain", "turned", "step", "grad", "parameter", "tie", "view"])
    )
    if kind in ("turned", "grad", "parameter"):
        tensor = tensor.permute(draw(st.permutations(range(tensor.dim()))))
    if kind == "step" and tensor.dim():
        return tensor[::2]
    if kind == "grad" and tensor.dtype.is_floating_point:
        return tensor.requires_grad_()
    if kind == "parameter" and tensor.dtype.is_floating_point:
        return torch.nn.Parameter(tensor)
    if kind == "tie":
        return [tensor, {"again": tensor}]
    if kind == "view" and tensor.dim():
        return [tensor, tensor[1:]]
    return tensor


@st.composite
def pieces(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Some tensors of one storage: disjoint, interleaved, overlapping, expanded, empty, turned."""
    dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.float64, torch.complex64]))
    base = torch.arange(draw(st.integers(1, 60))).to(dtype)
    found = {}
    for number in range(draw(st.integers(1, 5))):
        rank = draw(st.integers(1, 3))
        size = draw(st.lists(st.integers(0, 4), min_size=rank, max_size=rank))
        step = draw(st.lists(st.integers(0, 6), min_size=rank, max_size=rank))
        if draw(st.booleans()):  # dense, in some order
            total = 1
            for dim in draw(st.permutations(range(rank))):
                step[dim], total = total, total * max(size[dim], 1)
        last = sum((n - 1) * s for n, s in zip(size, step, strict=True))
        if 0 not in size and last >= base.numel():
            size, step, last = [1] * rank, [1] * rank, 0
        start = draw(st.integers(0, base.numel() - 1 - (0 if 0 in size else last)))
        found[str(number)] = base.as_strided(size, step, start)
    return found


plain = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
    st.sampled_from([torch.float32, torch.device("cpu"), torch.Size([2, 3])]),
)
names = st.text(max_size=4) | st.sampled_from(["model", "a/b", "~", "$x", "w", "0"])
states = st.dictionaries(
    names,
    st.recursive(
        layouts() | layouts() | pieces() | plain,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(names | st.integers(0, 9), inner, max_size=3),
        ),
        max_leaves=6,
    ),
    max_size=4,
)


@st.composite
def options(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "encoding": draw(st.sampled_from(["base64", "list"])),
        "compression": draw(st.sampled_from([None, "zstd"])),
        "filter": draw(st.sampled_from(["auto", "none", "shuffle"])),
        "chunk_size": draw(st.sampled_from([1, 2, 7, 16, 100, "1MiB"])),
        "max_shard_size": draw(st.sampled_from([1, 64, 300, "5GB"])),
        "checksum": draw(st.sampled_from(["xxh3_128", "sha256"])),
        "threads": draw(st.sampled_from([1, 2])),
        "sync": False,
    }
