"""One tensor to little-endian bytes, and bytes into one tensor, on any device.

Contiguous memory of the CPU is handed out as it is. Whatever lies elsewhere or otherwise
is copied range by range, so that extra memory is a small multiple of the range, never the tensor.
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
from ..format.model import PLAIN, Layout
from ..linux import populate
from .memory import (
    borrow,
    borrow_range,
    contiguous_stride,
    dtype_name,
    empty,
    few_dimensions,
    flat_bytes,
    fresh_storage,
    is_flat,
    is_wrapped,
    layout_of,
    parts,
    require_address,
    require_little_endian,
    require_memory,
    strided,
    torch_dtype,
)

_CPU: Final = torch.device("cpu")
#: What NumPy has, too: its view of them is made in a fifth of the time.
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


@dataclass(slots=True)  # frozen, making one takes three times as long, and there are thousands
class Source:
    """One record to be written.

    Attributes:
        name: of the record.
        dtype: its name in the format.
        shape: sizes.
        device: where the tensor lies, in torch's spelling (``cpu``, ``cuda:0``).
        nbytes: raw bytes.
        address: where they lie, row-major, in memory of the CPU; 0 if they do not.
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
    #: The tensor; of a copy that lies flat at the address, what keeps its memory.
    _tensor: torch.Tensor = field(repr=False, compare=False)
    #: What :meth:`read` takes from: made at its first call.
    _memory: memoryview | None = field(default=None, repr=False, compare=False)
    layout: Layout = field(default=PLAIN, repr=False)

    @classmethod
    def of(cls, name: str, tensor: torch.Tensor) -> Source:
        """The record of a dense tensor, which is kept alive and must not change meanwhile.

        Raises:
            UnsupportedTypeError: a dtype that the format lacks, or memory that was freed.
        """
        require_little_endian()
        require_memory(tensor)
        require_address(tensor)
        return cls.of_checked(name, tensor)

    @classmethod
    def of_checked(cls, name: str, tensor: torch.Tensor) -> Source:
        """:meth:`of`, where the machine and the tensor's memory have been checked before."""
        dtype, shape, nbytes = dtype_name(tensor), tuple(tensor.shape), tensor.nbytes
        layout = layout_of(tensor)
        if tensor.is_cpu:
            address = tensor.data_ptr() if nbytes and is_flat(tensor) else 0
            return cls(name, dtype, shape, "cpu", nbytes, address, tensor, None, layout)
        return cls(name, dtype, shape, str(tensor.device), nbytes, 0, tensor, None, layout)

    @classmethod
    def of_flat(cls, name: str, tensor: torch.Tensor, address: int, nbytes: int) -> Source:
        """As :meth:`of_checked` for a tensor known to lie flat at an address of the CPU."""
        shape, dtype = tuple(tensor.shape), dtype_name(tensor)
        if not nbytes:
            return cls(name, dtype, shape, "cpu", 0, 0, tensor, None, layout_of(tensor))
        # Flat memory has other strides than row-major ones only where a dimension has one element.
        layout = layout_of(tensor) if 1 in shape else PLAIN
        return cls(name, dtype, shape, "cpu", nbytes, address, tensor, None, layout)

    def read(self, start: int, stop: int) -> memoryview:
        """Raw row-major bytes ``[start, stop)``, read-only. Safe to call from several threads.

        Contiguous memory of the CPU is not copied.

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
        """Elements that do not lie flat on the CPU, as bytes there."""
        flat = flat_bytes(self._tensor, self.nbytes)
        if flat is not None:
            itemsize = DTYPES[self.dtype].itemsize
            return flat[first * itemsize : last * itemsize].to(_CPU)
        view = few_dimensions(self._tensor)
        piece = empty(last - first, view.dtype, view.device)
        for part, place in parts(view, first, piece):
            if part.dim() == 2 and part.stride(0) == 1 < part.stride(1):
                # A copy of a transpose, transposed: each takes torch's quick way, a third of the
                # time that torch needs for both at once.
                part, place = part.t().contiguous(), place.t()
            place.copy_(part)
        return piece.to(_CPU).view(torch.uint8)

    def _bytes(self) -> memoryview:
        tensor = self._tensor.detach()
        if tensor.dtype in _NUMPY and self.shape and tensor.data_ptr() == self.address:
            return tensor.numpy().data.cast("B")
        return borrow_range(self.address, self.nbytes, tensor).numpy().data

    def relocate(self, memory: torch.Tensor, address: int) -> None:
        """From now on read from a copy, and let go of the tensor.

        Args:
            memory: what keeps the copy's memory, on the CPU.
            address: where the copy begins.
        """
        self._tensor, self.address, self._memory = memory, address, None

    @property
    def on_cuda(self) -> bool:
        """Whether pinned memory makes copies of it faster, and lets them run side by side."""
        return self._tensor.is_cuda

    def copy_to(self, memory: np.ndarray[Any, Any], start: int, stop: int) -> None:
        """Copy the raw bytes ``[start, stop)`` to ``memory``. Safe to call from several threads.

        From a CUDA device the copy is only begun, in the device's current stream.

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
        view = few_dimensions(self._tensor)
        piece = target.view(view.dtype)
        if view.device.type != "cpu":
            piece = empty(last - first, view.dtype, view.device)
        for part, place in parts(view, first, piece):
            place.copy_(part)
        if view.device.type != "cpu":
            target.copy_(piece.view(torch.uint8), non_blocking=self.on_cuda)


class Target:
    """One tensor being filled with the raw bytes of a record.

    Made by :meth:`allocate` or :meth:`into`, filled through :meth:`window` or :meth:`write` in
    any order and from any thread (ranges disjoint), and handed over by :meth:`finish`.

    Attributes:
        dtype: of the record, its name in the format.
        shape: sizes.
        nbytes: raw bytes of the record.
        needs_data: false where there is nothing to fill (device ``meta``).

    >>> target = Target.allocate("uint8", (2, 2), device=torch.device("cpu"))
    >>> target.window(0, 4)[:] = b"\\x00\\x01\\x02\\x03"
    >>> target.finish()
    tensor([[0, 1],
            [2, 3]], dtype=torch.uint8)
    """

    __slots__ = (
        "_dtype",
        "_flat",
        "_fresh",
        "_memory",
        "_tensor",
        "_view",
        "_watched",
        "_windowed",
        "dtype",
        "nbytes",
        "needs_data",
        "shape",
    )

    def __init__(self, tensor: torch.Tensor, dtype: str, shape: Sequence[int], nbytes: int) -> None:
        require_little_endian()
        self.dtype = dtype
        self.shape = tuple(shape)
        self.nbytes = nbytes
        self.needs_data = not tensor.is_meta
        self._tensor = tensor
        self._dtype = torch_dtype(dtype)
        self._windowed = False
        #: Whether autograd may know the tensor, and has not been told yet.
        self._watched = False
        self._flat: torch.Tensor | None = None
        self._view: torch.Tensor | None = None
        self._memory: memoryview | None = None
        self._fresh = False
        if not self.needs_data:
            return
        same = tensor.dtype == self._dtype
        self._flat = flat_bytes(tensor, self.nbytes) if same else None
        if self._flat is None:
            self._view = few_dimensions(tensor, carried=same)
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
            device: where it shall lie; ``meta`` gives a tensor without data.
            allocate: where memory comes from (``nbytes`` to a storage of at least that size)
                instead of torch's allocator.
            stride: of the tensor, where it is not row-major.
            place: a storage on the device, and the byte in it where the tensor begins; else it gets
                one of its own.

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
        """An existing tensor, to be filled in place: any device, any strides, a parameter or not.

        Args:
            tensor: the tensor to fill.
            dtype, shape: of the record; the shape must be the tensor's.
            cast: allow a dtype that differs from the tensor's and convert the values.

        Raises:
            StateMismatchError: another shape, or another dtype without (possible) ``cast``.
            UnsupportedTypeError: not a dense tensor, or one without memory of its own.
        """
        if tuple(shape) != tuple(tensor.shape):
            raise StateMismatchError(
                f"the checkpoint has shape {quote(list(shape))}, "
                f"the target has {list(tensor.shape)}"
            )
        require_fillable(tensor)
        steps = zip(tensor.shape, tensor.stride())
        if tensor.numel() and any(step == 0 and size > 1 for size, step in steps):
            raise UnsupportedTypeError(
                "cannot fill an expanded tensor in place: several elements are one memory cell",
                hint="Give the target memory of its own with .clone().",
            )
        kind = torch_dtype(dtype)
        if kind != tensor.dtype:
            if not cast:
                raise StateMismatchError(
                    f"the checkpoint has dtype {quote(dtype)}, the target has {tensor.dtype}",
                    hint="Convert the target, or allow casting.",
                )
            _require_cast(kind, tensor.dtype)
        target = cls(tensor, dtype, shape, byte_count(dtype, shape))
        target._watched = True
        return target

    @property
    def address(self) -> int:
        """Where the tensor's memory begins."""
        return self._tensor.data_ptr()

    def window(self, start: int, stop: int) -> memoryview | None:
        """Writable memory of the raw bytes ``[start, stop)``, where the tensor has such memory.

        ``None`` for tensors that are not contiguous, not on the CPU or of another dtype: these take
        :meth:`write`.
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
        """Copy raw bytes into place. Safe to call from several threads for disjoint ranges.

        Needs up to a few times ``len(data)`` of extra memory where the bytes cannot be copied flat.

        Args:
            start: byte offset in the record, a multiple of the item size.
            data: whole elements.

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
        # Typed elements need aligned memory, which bytes from a file rarely are: hence a copy.
        piece = empty(last - first, self._dtype, _CPU)
        piece.view(torch.uint8).copy_(raw)
        piece = piece.to(self._view.device)
        if self._tensor.dtype == self._dtype:
            piece = piece.view(self._view.dtype)
        for part, memory in parts(self._view, first, piece):
            part.copy_(memory)

    def finish(self) -> torch.Tensor:
        """The filled tensor; for :meth:`into` the very object that was given.

        Raises:
            FormatError: a ``bool`` byte that is neither 0 nor 1.
        """
        if self.dtype == "bool" and self._windowed and self._flat is not None:
            _require_bool(self._flat)
        return self._tensor

    def _announce(self) -> None:
        """Let autograd notice that saved values change, before the first byte of them does."""
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


def require_fillable(tensor: torch.Tensor) -> None:
    """Refuse a target that has no memory of its own.

    Raises:
        UnsupportedTypeError: it has none, or is no dense tensor.
    """
    if tensor.is_nested or is_wrapped(tensor):
        raise UnsupportedTypeError(
            f"cannot fill a {type(tensor).__name__} that is nested or wrapped by a transform",
            hint="Load it instead of loading into it.",
        )
    plain = tensor.detach()
    if type(plain) is not torch.Tensor or plain.layout != torch.strided or plain.is_quantized:
        raise UnsupportedTypeError(
            f"cannot fill a {type(tensor).__name__} of layout {tensor.layout} in place",
            hint="Load it instead of loading into it.",
        )
    if plain.is_meta:
        raise UnsupportedTypeError(
            "cannot fill a tensor on the meta device: it has no memory",
            hint="Give it memory first, for instance with module.to_empty(device='cpu').",
        )
    require_memory(plain)
    require_address(plain)


def _require_cast(source: torch.dtype, target: torch.dtype) -> None:
    possible = target.is_complex or not source.is_complex
    if possible:
        try:
            empty(1, target, _CPU).copy_(empty(1, source, _CPU))
        except RuntimeError:  # NotImplementedError is one
            possible = False
    if not possible:
        raise StateMismatchError(f"{source} in the checkpoint cannot be cast to {target}")
