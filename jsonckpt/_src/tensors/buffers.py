"""Converts a tensor to little-endian bytes, and back (``docs/format.md`` section 4).

Contiguous CPU memory is not copied. Other memory is copied range by range. The extra memory is a
small multiple of the range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from ..errors import FormatError, JsonckptError, StateMismatchError, UnsupportedTypeError, quote
from ..format.dtypes import DTYPES
from ..format.model import PLAIN, Layout, contiguous_stride
from ..linux import populate
from .memory import (
    borrow,
    borrow_range,
    collapsed,
    dtype_name,
    empty,
    flat_bytes,
    fresh_storage,
    is_flat,
    layout_of,
    narrowed,
    paired_slices,
    require_little_endian,
    strided,
    torch_dtype,
)
from .supported import require_address, require_cast, require_fillable, require_memory

_CPU: Final = torch.device("cpu")
#: NumPy has these dtypes, too: it makes a view of them in a fifth of the time.
_NUMPY: Final = {torch.float32, torch.float64, torch.float16, torch.int64, torch.int32, torch.uint8}


def byte_count(dtype: str, shape: Sequence[int]) -> int:
    """Raw bytes of a tensor.

    Raises:
        FormatError: an unknown dtype, or more bytes than a 64-bit machine can address.

    >>> byte_count("float32", (2, 3))
    24
    """
    if dtype not in DTYPES:
        raise FormatError(f"unknown dtype {quote(dtype)}")
    nbytes = math.prod(shape) * DTYPES[dtype].itemsize
    if nbytes >= 2**63:
        raise FormatError(f"a tensor of shape {quote(list(shape))} would have more than 2^63 bytes")
    return nbytes


@dataclass(slots=True)  # not frozen: that takes three times as long, and there are thousands
class Source:
    """One record to be written.

    Attributes:
        name: of the record.
        dtype: its name in the format.
        shape: sizes.
        device: of the tensor, in torch's spelling (``cpu``, ``cuda:0``).
        nbytes: raw bytes.
        address: of the raw bytes, if they are row-major in CPU memory; else 0.
        layout: the strides of a dense tensor that is not row-major.

    >>> source = Source.of("/w", torch.arange(3, dtype=torch.int16))
    >>> bytes(source.read(2, 6))
    b'\\x01\\x00\\x02\\x00'
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    nbytes: int
    address: int = field(repr=False, compare=False)
    #: The tensor, or the owner of a flat copy at the address.
    _tensor: torch.Tensor = field(repr=False, compare=False)
    #: The bytes at the address, made by the first :meth:`read`.
    _memory: memoryview | None = field(default=None, repr=False, compare=False)
    layout: Layout = field(default=PLAIN, repr=False)

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Source:
        """The record of a dense tensor. It is kept alive and must not change.

        Raises:
            UnsupportedTypeError: a dtype that the format lacks, or memory that was freed.
        """
        require_little_endian()
        require_memory(tensor)
        require_address(tensor)
        return cls.of_checked(name, tensor)

    @classmethod
    def of_checked(cls, name: str, tensor: torch.Tensor, flat_at: int = 0) -> Source:
        """:meth:`of` without checks of the machine and of the tensor's memory.

        Args:
            flat_at: the address of the tensor, if it is known to be flat on the CPU.
        """
        shape, nbytes = tuple(tensor.shape), tensor.nbytes
        address = flat_at if nbytes else 0
        if nbytes and not address and tensor.is_cpu and is_flat(tensor):
            address = tensor.data_ptr()
        # Flat tensors have other strides than row-major ones in dimensions of one element only.
        layout = PLAIN if address and 1 not in shape else layout_of(tensor)
        device = "cpu" if address or tensor.is_cpu else str(tensor.device)
        return cls(name, dtype_name(tensor), shape, device, nbytes, address, tensor, None, layout)

    def read(self, start: int, stop: int) -> memoryview:
        """Raw row-major bytes ``[start, stop)``, read-only. Safe to call from several threads.

        Contiguous CPU memory is not copied.

        Args:
            start, stop: byte offsets, multiples of the item size, inside the record.
        """
        first, last = _elements(self.dtype, self.nbytes, start, stop)
        if self._memory is None and self.address:
            self._memory = self._bytes()
        if self._memory is not None:
            raw = self._memory[start:stop]
        else:
            raw = self._gathered(first, last).numpy().data
        if self.dtype == "bool" and int(np.frombuffer(raw, np.uint8).max(initial=0)) > 1:
            # torch takes any byte but 0 for True; in the file True is 1.
            raw = (np.frombuffer(raw, np.uint8) != 0).view(np.uint8).data
        return raw.toreadonly()

    def _gathered(self, first: int, last: int) -> torch.Tensor:
        """Elements that are not flat on the CPU, copied there as bytes."""
        flat = flat_bytes(self._tensor, self.nbytes)
        if flat is not None:
            itemsize = DTYPES[self.dtype].itemsize
            return flat[first * itemsize : last * itemsize].to(_CPU)
        view = collapsed(self._tensor)
        piece = empty(last - first, view.dtype, view.device)
        for part, copy in paired_slices(view, first, piece):
            if part.dim() == 2 and part.stride(0) == 1 < part.stride(1):
                # torch copies a transpose quickly, and transposes a copy quickly. Together that
                # takes a third of the time of both at once.
                part, copy = part.t().contiguous(), copy.t()
            copy.copy_(part)
        return piece.to(_CPU).view(torch.uint8)

    def _bytes(self) -> memoryview:
        tensor = self._tensor.detach()
        if tensor.dtype in _NUMPY and self.shape and tensor.data_ptr() == self.address:
            return tensor.numpy().data.cast("B")
        return borrow_range(self.address, self.nbytes, tensor).numpy().data

    def relocate(self, memory: torch.Tensor, address: int) -> None:
        """Read from a copy from now on, and release the tensor.

        Args:
            memory: the owner of the copy's memory, on the CPU.
            address: of the copy.
        """
        self._tensor, self.address, self._memory = memory, address, None

    @property
    def on_cuda(self) -> bool:
        """Whether pinned memory makes copies faster and asynchronous."""
        return self._tensor.is_cuda

    def copy_to(self, memory: np.ndarray[Any, Any], start: int, stop: int) -> None:
        """Copy the raw bytes ``[start, stop)`` to ``memory``. Safe to call from several threads.

        From a CUDA device the copy is asynchronous, in the device's current stream.

        Args:
            memory: as many ``uint8``, aligned for elements of any size.
            start, stop: as for :meth:`read`.
        """
        first, last = _elements(self.dtype, self.nbytes, start, stop)
        target = torch.from_numpy(memory)
        flat = flat_bytes(self._tensor, self.nbytes)
        if flat is not None:
            target.copy_(flat[start:stop], non_blocking=self.on_cuda)
            return
        view = collapsed(self._tensor)
        piece = target.view(view.dtype)
        if view.device.type != "cpu":
            piece = empty(last - first, view.dtype, view.device)
        for part, copy in paired_slices(view, first, piece):
            copy.copy_(part)
        if view.device.type != "cpu":
            target.copy_(piece.view(torch.uint8), non_blocking=self.on_cuda)


class Target:
    """A tensor that is filled with the raw bytes of a record.

    Made by :meth:`allocate` or :meth:`into`. :meth:`window` and :meth:`write` fill disjoint ranges
    in any order and from any thread. :meth:`finish` returns the tensor.

    Attributes:
        dtype: of the record, its name in the format.
        shape: sizes.
        nbytes: raw bytes of the record.
        needs_data: false if there is nothing to fill (device ``meta``).

    >>> target = Target.allocate("uint8", (2, 2), device=torch.device("cpu"))
    >>> target.window(0, 4)[:] = b"\\x00\\x01\\x02\\x03"
    >>> target.finish()
    tensor([[0, 1],
            [2, 3]], dtype=torch.uint8)
    """

    def __init__(self, tensor: torch.Tensor, dtype: str, shape: Sequence[int], nbytes: int) -> None:
        require_little_endian()
        self.dtype = dtype
        self.shape = tuple(shape)
        self.nbytes = nbytes
        self.needs_data = not tensor.is_meta
        self._tensor = tensor
        self._dtype = torch_dtype(dtype)
        self._windowed = False
        #: Whether autograd may track the tensor and has not been told of the change yet.
        self._watched = False
        #: Whether the memory is new: its pages are not mapped yet.
        self._fresh = False
        self._flat: torch.Tensor | None = None
        self._view: torch.Tensor | None = None
        self._memory: memoryview | None = None
        self._parts: list[Target] = []
        if not self.needs_data:
            return
        same = tensor.dtype == self._dtype
        self._flat = flat_bytes(tensor, self.nbytes) if same else None
        if self._flat is None:
            self._view = collapsed(tensor, raw=same)
        elif self._flat.device.type == "cpu":
            self._memory = self._flat.numpy().data

    @classmethod
    def allocate(
        cls,
        dtype: str,
        shape: Sequence[int],
        *,
        device: torch.device,
        allocate: Callable[[int], torch.UntypedStorage] | None = None,
        stride: Sequence[int] | None = None,
        place: tuple[torch.UntypedStorage, int] | None = None,
    ) -> Target:
        """A new dense tensor.

        Args:
            dtype, shape: of the record.
            device: of the tensor; ``meta`` gives a tensor without data.
            allocate: takes a number of bytes and returns a storage of at least that size; by
                default torch's allocator.
            stride: of the tensor, where it is not row-major.
            place: a storage on the device and the byte in it where the tensor begins; by default
                the tensor gets a storage of its own.

        Raises:
            FormatError: an unknown dtype, or a shape that torch cannot have.
            RuntimeError: torch's own, when the device or its memory is missing.
        """
        nbytes = byte_count(dtype, shape)
        kind = torch_dtype(dtype)
        start = 0
        if place is not None:
            storage, start = place
        elif allocate is not None and device.type != "meta":
            storage = allocate(nbytes)
            if storage.nbytes() < nbytes:
                raise JsonckptError(
                    f"allocate({nbytes}) returned a storage of {storage.nbytes()} bytes"
                )
        else:
            storage = fresh_storage(nbytes, device)
        try:
            steps = contiguous_stride(shape) if stride is None else stride
            tensor = strided(storage, kind, start // kind.itemsize, shape, steps)
        except (RuntimeError, TypeError, OverflowError) as error:
            # An empty tensor may have sizes whose product, without the 0, is beyond 64 bits.
            raise FormatError(f"torch has no tensor of shape {quote(list(shape))}") from error
        target = cls(tensor, dtype, shape, nbytes)
        target._fresh = allocate is None
        return target

    @classmethod
    def into(
        cls, tensor: torch.Tensor, dtype: str, shape: Sequence[int], *, cast: bool = False
    ) -> Target:
        """An existing tensor of any device and strides, to be filled in place.

        Args:
            tensor: the tensor, which may be a parameter.
            dtype, shape: of the record; the shape must be the tensor's.
            cast: allow a dtype that differs from the tensor's and convert the values.

        Raises:
            StateMismatchError: another shape, or another dtype without (possible) ``cast``.
            UnsupportedTypeError: not a dense tensor, or one without memory of its own.
        """
        _require_match(tensor, dtype, shape, cast=cast)
        target = cls(tensor, dtype, shape, byte_count(dtype, shape))
        target._watched = True
        return target

    def part(self, offset: Sequence[int], shape: Sequence[int]) -> Target:
        """A box of the tensor, to be filled with the raw bytes of a record of its own.

        :meth:`finish` of the tensor finishes its parts, too.

        Args:
            offset, shape: of the box, which lies in the tensor.
        """
        view = narrowed(self._tensor.detach(), offset, shape)
        part = Target(view, self.dtype, shape, byte_count(self.dtype, shape))
        part._watched, part._fresh = self._watched, self._fresh
        self._parts.append(part)
        return part

    @property
    def address(self) -> int:
        """The address of the tensor's memory."""
        return self._tensor.data_ptr()

    def window(self, start: int, stop: int) -> memoryview | None:
        """The memory of the raw bytes ``[start, stop)``, to be written to.

        ``None`` where :meth:`write` is needed: the tensor is not contiguous, not on the CPU, or of
        another dtype.
        """
        _elements(self.dtype, self.nbytes, start, stop)
        if self._memory is None:
            return None
        self._windowed = True
        self._announce()
        if self._fresh:
            populate(self.address + start, stop - start)
        return self._memory[start:stop]

    def write(self, start: int, data: memoryview | bytes | bytearray) -> None:
        """Copy the raw bytes of whole elements to byte ``start``. Safe in several threads.

        Takes a few times ``len(data)`` of extra memory where the bytes cannot be copied flat.

        Raises:
            FormatError: a ``bool`` byte that is neither 0 nor 1.
        """
        stop = start + memoryview(data).nbytes
        first, last = _elements(self.dtype, self.nbytes, start, stop)
        if first == last or not self.needs_data:
            return
        self._announce()
        raw = borrow(np.frombuffer(data, dtype=np.uint8))
        if self.dtype == "bool":
            _require_bool(raw)
        if self._flat is not None:
            self._flat[start:stop].copy_(raw)
            return
        assert self._view is not None
        # Elements need aligned memory, and bytes from a file rarely are aligned: hence a copy.
        piece = empty(last - first, self._dtype, _CPU)
        piece.view(torch.uint8).copy_(raw)
        piece = piece.to(self._view.device)
        if self._tensor.dtype == self._dtype:
            piece = piece.view(self._view.dtype)
        for part, memory in paired_slices(self._view, first, piece):
            part.copy_(memory)

    def finish(self) -> torch.Tensor:
        """The filled tensor; for :meth:`into` the object that was given.

        Raises:
            FormatError: a ``bool`` byte that is neither 0 nor 1.
        """
        if self.dtype == "bool" and self._windowed and self._flat is not None:
            _require_bool(self._flat)
        for part in self._parts:
            part.finish()
        return self._tensor

    def _announce(self) -> None:
        """Tell autograd that the values change, before the first byte does."""
        if self._watched:
            self._watched = False
            torch.autograd.graph.increment_version(self._tensor)


def _elements(dtype: str, nbytes: int, start: int, stop: int) -> tuple[int, int]:
    """A range of bytes as a range of elements."""
    itemsize = DTYPES[dtype].itemsize
    if not 0 <= start <= stop <= nbytes or start % itemsize or stop % itemsize:
        raise JsonckptError(
            f"bytes {start} to {stop} are not whole elements of {nbytes} bytes of {dtype}"
        )
    return start // itemsize, stop // itemsize


def _require_bool(raw: torch.Tensor) -> None:
    if raw.numel() and int(raw.max()) > 1:
        raise FormatError("a bool is neither 0 nor 1")


def _require_match(tensor: torch.Tensor, dtype: str, shape: Sequence[int], *, cast: bool) -> None:
    """Refuse to fill a tensor with a record; raises as :meth:`Target.into` does."""
    if tuple(shape) != tuple(tensor.shape):
        raise StateMismatchError(
            f"the checkpoint has shape {quote(list(shape))}, the target has {list(tensor.shape)}"
        )
    require_fillable(tensor)
    steps = zip(tensor.shape, tensor.stride())
    if tensor.numel() and any(step == 0 and size > 1 for size, step in steps):
        raise UnsupportedTypeError(
            "cannot fill an expanded tensor in place: several elements are one memory cell",
            hint="Give the target memory of its own with .clone().",
        )
    kind = torch_dtype(dtype)
    if kind == tensor.dtype:
        return
    if not cast:
        raise StateMismatchError(
            f"the checkpoint has dtype {quote(dtype)}, the target has {tensor.dtype}",
            hint="Convert the target, or allow casting.",
        )
    require_cast(kind, tensor.dtype)
