"""The memory of tensors: dtypes, strided views by hand, flat ranges, fresh and borrowed memory.

Everything here works for dtypes that torch can store but not compute with (``int4``, ``bits8``,
``float4_e2m1fn_x2``, …): bytes move as plain integers of the same size, the *carrier* dtype.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, JsonckptError, UnsupportedTypeError, quote
from ..format.dtypes import DTYPES
from ..format.model import MAX_SIZE, PLAIN, Layout, is_dense

#: Made without a detour: every torch can make and copy them.
_COMMON = {torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64}
_CARRIERS = {
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
#: ``(prefix, low, high)``, which stands for ``t[prefix][low:high]``.
Slab = tuple[tuple[int, ...], int, int]


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
            f"tensors of dtype {tensor.dtype} have no place in the format",
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


def carrier(dtype: torch.dtype) -> torch.dtype:
    """A dtype of the same size that torch can always copy bit for bit.

    >>> carrier(torch.bfloat16)
    torch.int16
    """
    return _CARRIERS[dtype.itemsize]


def require_little_endian() -> None:
    """The file is little-endian and memory is copied as it is.

    Raises:
        JsonckptError: this machine is big-endian.
    """
    if sys.byteorder != "little":
        raise JsonckptError(
            "this machine is big-endian; jsonckpt reads and writes tensors on little-endian only"
        )


def require_whole(value: torch.Tensor) -> None:
    """Refuse a tensor that is spread over processes, so that this one has a part of it.

    By names, since torch.distributed need not be there: ``DTensor`` and ``ShardedTensor``, what
    derives from one of them, and the flat parameters of FSDP, which are plain to Python.

    Raises:
        UnsupportedTypeError: with the way to the whole.
    """
    kind = type(value)
    parts = {"DTensor", "ShardedTensorBase"} & {base.__name__ for base in kind.__mro__}
    if parts or hasattr(value, "_is_flat_param"):
        what = "flat parameter of FSDP" if not parts else f"{kind.__module__}.{kind.__qualname__}"
        raise UnsupportedTypeError(
            f"cannot write a {what}: each process holds a part of it",
            hint="A part alone is no checkpoint. Gather the whole on every rank "
            "(value.full_tensor(), or get_model_state_dict with full_state_dict=True), then save "
            "it on one rank.",
        )


def require_memory(tensor: torch.Tensor) -> None:
    """Nothing may read or write through a tensor whose storage was taken away or made smaller.

    Raises:
        UnsupportedTypeError: the tensor reaches beyond its storage, as the parameters of a model
            do that an engine has sharded and freed.
    """
    count = tensor.numel()
    if count == 0:
        return
    if tensor.is_contiguous():
        last = count - 1
    else:
        last = sum((size - 1) * step for size, step in zip(tensor.shape, tensor.stride()))
    needed = (int(tensor.storage_offset()) + last + 1) * tensor.itemsize
    found = tensor.untyped_storage().nbytes()
    if found < needed:
        raise UnsupportedTypeError(
            f"the tensor needs {needed} bytes of memory, but its storage has {found}",
            hint="Its memory was freed; gather the full tensor first.",
        )


def require_address(tensor: torch.Tensor) -> None:
    """Nothing may read or write the memory of a tensor that only says that it has some.

    Raises:
        UnsupportedTypeError: the tensor has elements but no address (a ZeroTensor of autograd's,
            or what torch's function transforms put around tensors).
    """
    if tensor.numel() and (tensor.is_cpu or tensor._is_zerotensor()) and not tensor.data_ptr():
        raise UnsupportedTypeError(
            f"the tensor of {tensor.nbytes} bytes has no memory, as the zeros that autograd makes",
            hint="Give it memory with tensor.clone().",
        )


def is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether the tensor stands for one inside a function transform of torch."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Strides in elements of a row-major tensor of ``shape``.

    >>> contiguous_stride((2, 3, 4))
    (12, 4, 1)
    """
    steps: list[int] = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(size, 1)
    return tuple(reversed(steps))


def layout_of(tensor: torch.Tensor) -> Layout:
    """The strides of a dense tensor that is not row-major; of others nothing is to be kept.

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
    # By way of the carrier, because creating a complex32 tensor warns, and with an explicit
    # device, because the user may have changed torch's default.
    if dtype in _COMMON:
        blank = torch.empty(0, dtype=dtype, device=storage.device)
        return blank.set_(storage, offset, tuple(shape), tuple(stride))
    blank = torch.empty(0, dtype=carrier(dtype), device=storage.device)
    return blank.set_(storage, offset, tuple(shape), tuple(stride)).view(dtype)


def empty(count: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """An uninitialized 1-D tensor of ``count`` elements, for any dtype, without a warning."""
    return torch.empty(count, dtype=carrier(dtype), device=device).view(dtype)


def fresh_storage(nbytes: int, device: torch.device) -> torch.UntypedStorage:
    """Uninitialized memory.

    Raises:
        RuntimeError: torch's own, when the device does not exist or its memory does not suffice.
    """
    storage: torch.UntypedStorage = torch.UntypedStorage(  # type: ignore[no-untyped-call]
        nbytes, device=device
    )
    return storage


class _Alias:
    """Carries a NumPy array interface and keeps the memory's owner alive."""

    __slots__ = ("__array_interface__", "owner")

    def __init__(self, interface: dict[str, Any], owner: object) -> None:
        self.__array_interface__ = interface
        self.owner = owner


def borrow(memory: np.ndarray[Any, Any]) -> torch.Tensor:
    """A CPU tensor over the memory of a NumPy array, read-only or not, without a copy.

    ``torch.from_numpy`` alone warns about read-only memory. Whoever borrows only reads.
    """
    if not memory.flags.writeable:
        interface = dict(memory.__array_interface__)
        interface["data"] = (interface["data"][0], False)
        memory = np.asarray(_Alias(interface, memory))
    return torch.from_numpy(memory)


def borrow_range(address: int, nbytes: int, owner: object) -> torch.Tensor:
    """Bytes of the CPU's memory as a ``uint8`` tensor that keeps their ``owner`` alive."""
    interface = {"version": 3, "typestr": "|u1", "shape": (nbytes,), "data": (address, False)}
    return torch.from_numpy(np.asarray(_Alias(interface, owner)))


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


def slabs(shape: Sequence[int], start: int, stop: int) -> Iterator[Slab]:
    """A flat row-major range of elements as rectangular pieces, in order, at most ``2 × rank - 1``.

    Args:
        shape: of the tensor, at least one dimension, none of size 0.
        start, stop: the range of elements.

    >>> list(slabs((4, 3), 2, 10))
    [((0,), 2, 3), ((), 1, 3), ((3,), 0, 1)]
    """
    if start >= stop:
        return
    inner = math.prod(shape[1:])
    first, head = divmod(start, inner)
    last, tail = divmod(stop, inner)
    if first == last:
        yield from _below(first, shape, head, tail)
        return
    if head:
        yield from _below(first, shape, head, inner)
        first += 1
    if first < last:
        yield (), first, last
    if tail:
        yield from _below(last, shape, 0, tail)


def _below(index: int, shape: Sequence[int], start: int, stop: int) -> Iterator[Slab]:
    for prefix, low, high in slabs(shape[1:], start, stop):
        yield (index, *prefix), low, high


def flat_bytes(tensor: torch.Tensor, nbytes: int) -> torch.Tensor | None:
    """All bytes of a row-major contiguous tensor, as ``uint8`` on its device, without a copy."""
    if nbytes == 0:
        return torch.empty(0, dtype=torch.uint8, device=tensor.device)
    if not is_flat(tensor):
        return None
    start = int(tensor.storage_offset()) * tensor.itemsize
    return strided(tensor.untyped_storage(), torch.uint8, start, (nbytes,), (1,))


def is_flat(tensor: torch.Tensor) -> bool:
    """Whether the tensor's memory, front to back, is what it says."""
    return tensor.is_contiguous() and not tensor.is_conj() and not tensor.is_neg()


def few_dimensions(tensor: torch.Tensor, *, carried: bool = True) -> torch.Tensor:
    """The same memory in row-major order with as few dimensions as possible, outside autograd.

    With ``carried`` as the carrier dtype. Lazily conjugated or negated memory keeps its dtype, as
    only torch's own copy resolves it.
    """
    sizes, steps = collapse(tensor.shape, tensor.stride())
    offset = int(tensor.storage_offset())
    if tensor.is_conj() or tensor.is_neg():
        return tensor.detach().as_strided(sizes, steps, offset)
    dtype = carrier(tensor.dtype) if carried else tensor.dtype
    return strided(tensor.untyped_storage(), dtype, offset, sizes, steps)


def parts(
    view: torch.Tensor, first: int, flat: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Pairs of equal shape: pieces of ``view`` from element ``first`` on, their ``flat`` places."""
    done = 0
    for prefix, low, high in slabs(view.shape, first, first + flat.numel()):
        part = view
        for index in prefix:
            part = part.select(0, index)
        part = part.narrow(0, low, high - low)
        yield part, flat[done : done + part.numel()].view(part.shape)
        done += part.numel()
