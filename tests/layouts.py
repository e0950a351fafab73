"""Tensors of random bytes in every dtype and layout, and their bytes by a slow, other way."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch

from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.format.model import contiguous_stride
from jsonckpt._src.tensors.memory import strided, torch_dtype

__all__ = ["CPU", "KNOWN", "LAYOUTS", "contiguous", "plain_bytes"]

CPU = torch.device("cpu")
KNOWN = [name for name in DTYPES if isinstance(getattr(torch, name, None), torch.dtype)]


def random_storage(count: int, dtype: str, seed: int = 0) -> torch.UntypedStorage:
    raw = random.Random(seed).randbytes(count * DTYPES[dtype].itemsize)
    if dtype == "bool":
        raw = bytes(byte & 1 for byte in raw)
    return torch.frombuffer(bytearray(raw), dtype=torch.uint8).untyped_storage()


def contiguous(dtype: str, *shape: int) -> torch.Tensor:
    count = 1
    for size in shape:
        count *= size
    return strided(
        random_storage(count, dtype), torch_dtype(dtype), 0, shape, contiguous_stride(shape)
    )


LAYOUTS: dict[str, Callable[[str], torch.Tensor]] = {
    "contiguous": lambda d: contiguous(d, 3, 4, 5),
    "transposed": lambda d: contiguous(d, 6, 7).t(),
    "permuted": lambda d: contiguous(d, 3, 4, 5).permute(2, 0, 1),
    "sliced": lambda d: contiguous(d, 9, 10)[1::2, 2:9:3],
    "expanded": lambda d: contiguous(d, 3, 1, 4)[:, :, 1:].expand(3, 5, 3),
    "scalar": lambda d: contiguous(d, 4)[2],
    "empty": lambda d: contiguous(d, 3, 4)[:, 2:2],
    "channels_last": lambda d: contiguous(d, 2, 4, 5, 3).permute(0, 3, 1, 2),
    "rank_64": lambda d: contiguous(d, 2, 3).t().reshape((1,) * 60 + (3, 1, 2, 1)),
}


def plain_bytes(tensor: torch.Tensor) -> bytes:
    """The row-major bytes by another way: element by element through Python lists."""
    size = tensor.itemsize
    whole = strided(
        tensor.untyped_storage(), torch.uint8, 0, (tensor.untyped_storage().nbytes(),), (1,)
    )
    raw = bytes(whole.tolist())
    places = [int(tensor.storage_offset())]
    for length, step in zip(tensor.shape, tensor.stride()):
        places = [place + i * step for place in places for i in range(length)]
    return b"".join(raw[place * size : (place + 1) * size] for place in places)
