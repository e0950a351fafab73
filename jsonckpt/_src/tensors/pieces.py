"""Handles tensors in pieces, without a second copy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from ..errors import FormatError, quote
from ..format.model import contiguous_stride

#: Bytes of one piece.
PIECE = 1 << 20


def over(
    storage: torch.UntypedStorage, dtype: torch.dtype, shape: Sequence[int], offset: int = 0
) -> torch.Tensor:
    """Make a contiguous tensor over existing memory.

    Args:
        storage: the memory.
        dtype, shape: of the tensor.
        offset: where it begins, in elements.

    Raises:
        FormatError: the shape is too large.
    """
    stride = contiguous_stride(shape)
    if shape and max(stride[0] * max(1, shape[0]), *shape) >= 1 << 63:
        raise FormatError(f"shape {quote(list(shape))} is too large")
    return torch.empty(0, dtype=dtype).set_(storage, offset, tuple(shape), stride)


def memory_of(tensor: torch.Tensor) -> tuple[object, ...] | None:
    """A key that is equal for tied tensors. ``None`` if tensors like this one cannot be tied."""
    plain = type(tensor) is torch.Tensor or type(tensor) is torch.nn.Parameter
    if not plain or tensor.is_nested or tensor.is_meta or tensor._is_zerotensor():
        return None
    if tensor.layout != torch.strided or tensor.is_quantized or not tensor.numel():
        return None
    start = tensor.untyped_storage().data_ptr()
    reading = (tensor.dtype, tensor.is_conj(), tensor.is_neg())
    return (start, tensor.storage_offset(), tensor.shape, tensor.stride(), *reading)


def plain(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor without its autograd history, as a strided tensor on the CPU."""
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def blocks(tensor: torch.Tensor, limit: int = PIECE) -> Iterator[torch.Tensor]:
    """The elements in row-major order as flat contiguous tensors of at most ``limit`` bytes.

    The cuts depend on dtype and shape, not on strides.

    >>> [block.tolist() for block in blocks(torch.arange(6.0).reshape(3, 2), 16)]
    [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0]]
    """
    nbytes = tensor.numel() * tensor.itemsize
    if nbytes <= limit:
        yield tensor.contiguous().reshape(-1)
        return
    row = nbytes // tensor.shape[0]
    if row > limit:
        for index in range(tensor.shape[0]):
            yield from blocks(tensor[index], limit)
        return
    rows = limit // row
    for start in range(0, tensor.shape[0], rows):
        yield tensor[start : start + rows].contiguous().reshape(-1)


def bits(block: torch.Tensor) -> torch.Tensor:
    """The bytes of a contiguous tensor, sharing its memory."""
    start = int(block.storage_offset()) * block.itemsize
    length = block.numel() * block.itemsize
    return over(block.untyped_storage(), torch.uint8, (length,), start)


def is_boolean(tensor: torch.Tensor) -> bool:
    """True if every byte of a tensor of bool is 0 or 1. Other bytes have no meaning in torch."""
    return all(int(bits(block).max()) <= 1 for block in blocks(tensor) if len(block))


def equal_blocks(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two contiguous tensors with the same number of bytes have the same bytes."""
    left, right = bits(a).numpy(), bits(b).numpy()
    if len(left) % 8 == 0 and not (left.ctypes.data | right.ctypes.data) % 8:
        left, right = left.view(np.uint64), right.view(np.uint64)
    # torch.equal starts its threads for every piece.
    return bool(np.array_equal(left, right))


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True if two strided tensors have the same dtype, shape and bits.

    >>> same_bits(torch.tensor([0.0]), torch.tensor([-0.0]))
    False
    >>> same_bits(torch.tensor([float("nan")]), torch.tensor([float("nan")]))
    True
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return all(equal_blocks(x, y) for x, y in zip(blocks(plain(a)), blocks(plain(b))))
