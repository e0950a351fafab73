"""The memory of tensors: dtypes, strides, flat ranges, new and borrowed memory (section 4).

Everything here works for dtypes that torch can store but not compute with (``int4``, ``bits8``,
``float4_e2m1fn_x2``, …): :func:`raw_dtype` gives one of the same size that torch can copy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..boxes import flat_slices
from ..errors import FormatError, JsonckptError, UnsupportedTypeError, quote
from ..format.dtypes import DTYPES
from ..format.model import MAX_SIZE, PLAIN, Layout, contiguous_stride, is_dense

#: Every torch can make and copy these.
_COMMON = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64}
_RAW_DTYPES = {
    1: torch.uint8,
    2: torch.int16,
    4: torch.int32,
    8: torch.int64,
    16: torch.complex128,
}
_TORCH_DTYPES: dict[str, torch.dtype] = {
    name: found for name in DTYPES if isinstance(found := getattr(torch, name, None), torch.dtype)
}
_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


def dtype_name(tensor: torch.Tensor) -> str:
    """The format's name of the dtype of ``tensor``.

    Raises:
        UnsupportedTypeError: the format has no such dtype.

    >>> dtype_name(torch.ones(2, dtype=torch.bfloat16))
    'bfloat16'
    """
    try:
        return _NAMES[tensor.dtype]
    except KeyError:
        raise UnsupportedTypeError(
            f"the format cannot hold tensors of dtype {tensor.dtype}",
            hint="Convert the tensor to one of the dtypes of docs/format.md section 4.",
        ) from None


def torch_dtype(name: str) -> torch.dtype:
    """The dtype that the format calls ``name``.

    Raises:
        FormatError: the format has no such dtype, or this torch is too old for it.

    >>> torch_dtype("float32")
    torch.float32
    """
    found = _TORCH_DTYPES.get(name)
    if found is not None:
        return found
    if name in DTYPES:
        raise FormatError(
            f"dtype {quote(name)} does not exist in torch {torch.__version__}",
            hint="Use a newer torch to read this tensor.",
        )
    raise FormatError(f"unknown dtype {quote(name)}")


def raw_dtype(dtype: torch.dtype) -> torch.dtype:
    """A dtype of the same size that torch can copy bit for bit.

    >>> raw_dtype(torch.bfloat16)
    torch.int16
    """
    return _RAW_DTYPES[dtype.itemsize]


def require_little_endian() -> None:
    """Refuse big-endian machines: files are little-endian, and memory is copied as it is.

    Raises:
        JsonckptError: this machine is big-endian.
    """
    if sys.byteorder != "little":
        raise JsonckptError(
            "this machine is big-endian; jsonckpt reads and writes tensors on little-endian only"
        )


def layout_of(tensor: torch.Tensor) -> Layout:
    """The strides of a dense tensor that is not row-major; nothing for other tensors.

    >>> layout_of(torch.zeros(2, 3).t()).stride, layout_of(torch.zeros(6, 3)[::2]).stride
    ((1, 3), None)
    """
    shape, stride = tensor.shape, tensor.stride()
    if stride == contiguous_stride(shape) or not is_dense(shape, stride):
        return PLAIN
    return Layout(stride) if max(stride) * tensor.itemsize <= MAX_SIZE else PLAIN


def strided(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
) -> torch.Tensor:
    """A tensor over ``storage``; ``offset`` and ``stride`` count elements of ``dtype``.

    The bounds must have been checked by the caller: torch would silently grow the storage.
    """
    # Creating a complex32 tensor warns, hence the raw dtype. The device is explicit, because the
    # user may have changed torch's default.
    raw = dtype if dtype in _COMMON else raw_dtype(dtype)
    blank = torch.empty(0, dtype=raw, device=storage.device)
    tensor = blank.set_(storage, offset, tuple(shape), tuple(stride))
    return tensor if raw is dtype else tensor.view(dtype)


def empty(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialized 1-D tensor of ``count`` elements, for any dtype, without a warning."""
    return torch.empty(count, dtype=raw_dtype(dtype), device=device).view(dtype)


def fresh_storage(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    """Uninitialized memory.

    Raises:
        RuntimeError: torch's own, when the device does not exist or has too little memory.
    """
    storage: torch.UntypedStorage = torch.UntypedStorage(  # type: ignore[no-untyped-call]
        nbytes, device=device
    )
    return storage


class ArrayInterface:
    """Memory that NumPy can make an array of. Keeps the owner of the memory alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, owner: object, **interface: Any) -> None:
        self.__array_interface__ = {"version": 3, "typestr": "|u1", **interface}
        self.owner = owner


def borrow(memory: np.ndarray[Any, Any]) -> torch.Tensor:
    """A CPU tensor over the memory of a NumPy array, read-only or not, without a copy.

    ``torch.from_numpy`` alone warns about read-only memory. Callers only read.
    """
    if not memory.flags.writeable:
        interface = dict(memory.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        memory = np.asarray(ArrayInterface(memory, **interface))
    return torch.from_numpy(memory)


def borrow_range(address: int, nbytes: int, owner: object) -> torch.Tensor:
    """A range of CPU memory as a ``uint8`` tensor that keeps the ``owner`` alive."""
    memory = ArrayInterface(owner, shape=(nbytes,), data=(address, False))
    return torch.from_numpy(np.asarray(memory))


def collapse(shape: Sequence[int], stride: Sequence[int]) -> tuple[list[int], list[int]]:
    """The same elements in the same row-major order, with as few dimensions as possible.

    Row-major contiguous memory becomes one dimension of stride 1. No size may be 0.

    >>> collapse((4, 1, 3, 2), (12, 7, 2, 1))
    ([4, 6], [12, 1])
    >>> collapse((), ())
    ([1], [1])
    """
    sizes: list[int] = []
    steps: list[int] = []
    for size, step in zip(reversed(shape), reversed(stride)):
        if size == 1:
            continue
        if sizes and step == sizes[-1] * steps[-1]:
            sizes[-1] *= size
        else:
            sizes.append(size)
            steps.append(step)
    if not sizes:
        return [1], [1]
    return sizes[::-1], steps[::-1]


def narrowed(tensor: torch.Tensor, offset: Sequence[int], shape: Sequence[int]) -> torch.Tensor:
    """A box of a tensor, in its memory.

    >>> narrowed(torch.arange(6).view(2, 3), (0, 1), (2, 2))
    tensor([[1, 2],
            [4, 5]])
    """
    for dimension, (start, size) in enumerate(zip(offset, shape)):
        if size != tensor.shape[dimension]:
            tensor = tensor.narrow(dimension, start, size)
    return tensor


def flat_bytes(tensor: torch.Tensor, nbytes: int) -> torch.Tensor | None:
    """All bytes of a row-major contiguous tensor, as ``uint8`` on its device, without a copy."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    if not is_flat(tensor):
        return None
    start = int(tensor.storage_offset()) * tensor.itemsize
    return strided(tensor.untyped_storage(), torch.uint8, start, (nbytes,), (1,))


def is_flat(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory is its elements in row-major order."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def collapsed(tensor: torch.Tensor, *, raw: bool = True) -> torch.Tensor:
    """The same elements in row-major order, with as few dimensions as possible, outside autograd.

    Args:
        raw: whether the result has the raw dtype. Lazily conjugated or negated memory keeps its
            dtype: only torch's own copy resolves it.
    """
    sizes, steps = collapse(tensor.shape, tensor.stride())
    offset = int(tensor.storage_offset())
    if tensor.is_conj() or tensor.is_neg():
        return tensor.detach().as_strided(sizes, steps, offset)
    dtype = raw_dtype(tensor.dtype) if raw else tensor.dtype
    return strided(tensor.untyped_storage(), dtype, offset, sizes, steps)


def paired_slices(
    view: torch.Tensor, first: int, flat: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Slices of ``view`` from element ``first`` on, each with its part of ``flat`` in its shape."""
    done = 0
    for prefix, low, high in flat_slices(view.shape, first, first + flat.numel()):
        part = view
        for index in prefix:
            part = part.select(0, index)
        part = part.narrow(0, low, high - low)
        yield part, flat[done : done + part.numel()].view(part.shape)
        done += part.numel()
