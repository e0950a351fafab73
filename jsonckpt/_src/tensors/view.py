"""Views of the memory of a record (``docs/format.md`` sections 6.2 and 6.4)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import quote
from ..format.dtypes import DTYPES
from ..format.json_text import Json
from ..format.model import contiguous_stride
from ..state.checks import integer_between, malformed, members, one_of, refuse, sizes, string
from .buffers import byte_count
from .memory import strided, torch_dtype
from .overlap import Region


@dataclass(frozen=True, slots=True)
class View:
    """The value of a ``$view``.

    Attributes:
        name: of the view.
        of: name of the record.
        dtype: its name in the format.
        shape: sizes.
        stride, offset: in elements of ``dtype``.
    """

    name: str
    of: str
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def from_json(cls, value: Json, path: str) -> View:
        """Read the body of a ``$view`` at ``path``.

        Raises:
            FormatError: not the body of a view.
        """
        parts = members(value, path, "name", "of", "dtype", "shape", "stride", "offset")
        view = cls(
            name=string(*parts.at("name")),
            of=string(*parts.at("of")),
            dtype=one_of(*parts.at("dtype"), DTYPES),
            shape=tuple(sizes(*parts.at("shape"))),
            stride=tuple(sizes(*parts.at("stride"))),
            offset=integer_between(*parts.at("offset")),
        )
        if len(view.stride) != len(view.shape):
            refuse(f"{path}/stride", f"{len(view.shape)} integers", parts.values["stride"])
        return view

    def to_json(self) -> dict[str, Json]:
        """The body of the ``$view``."""
        return {
            "name": self.name,
            "of": self.of,
            "dtype": self.dtype,
            "shape": list(self.shape),
            "stride": list(self.stride),
            "offset": self.offset,
        }

    def check(self, nbytes: int, path: str) -> None:
        """Refuse a view that leaves a record of ``nbytes`` raw bytes.

        Raises:
            FormatError: the view leaves the record, or has more bytes than memory can have.
        """
        if byte_count(self.dtype, self.shape) == 0:
            if math.prod(size for size in self.shape if size) >= 2**63:
                raise malformed(path, f"torch has no view of shape {quote(self.shape)}")
            return
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        end = (self.offset + steps + 1) * DTYPES[self.dtype].itemsize
        if end > nbytes:
            raise malformed(path, f"the view ends at byte {end} of a record of {nbytes} bytes")

    def on(
        self, record: torch.Tensor, path: str, charge: Callable[[int, str], None]
    ) -> torch.Tensor:
        """The view, in the memory of ``record``.

        Args:
            charge: counts bytes before they are scanned.

        Raises:
            FormatError: the view leaves the record; torch has no such tensor; the record is not
                contiguous, or not aligned for the view's dtype.
        """
        dtype = torch_dtype(self.dtype)
        stride, offset = self.stride, self.offset
        self.check(record.nbytes, path)
        if byte_count(self.dtype, self.shape) == 0:
            # Without elements these have no meaning, and might overflow in torch.
            stride, offset = contiguous_stride(self.shape), 0
        start = int(record.storage_offset()) * record.itemsize
        if start % dtype.itemsize or not record.is_contiguous():
            raise malformed(path, "the memory of the record is not laid out as the view needs it")
        try:
            view = strided(
                record.untyped_storage(),
                dtype,
                start // dtype.itemsize + offset,
                self.shape,
                stride,
            )
        except (RuntimeError, TypeError, OverflowError) as error:
            raise malformed(path, f"torch has no view of shape {quote(self.shape)}") from error
        if dtype == torch.bool and record.dtype != torch.bool and not view.is_meta:
            _require_bools(view, path, charge)
        return view


def _require_bools(view: torch.Tensor, path: str, charge: Callable[[int, str], None]) -> None:
    """A bool of another byte than 0 or 1 is undefined behaviour in torch."""
    if view.numel() == 0:
        return
    seen = view.view(torch.uint8)
    region = Region.of(0, 1, seen.shape, seen.stride())
    if seen.numel() > region.stop:
        # Elements overlap, and there may be very many: scan each byte of the whole range once.
        start = int(seen.storage_offset())
        seen = strided(seen.untyped_storage(), torch.uint8, start, (region.stop,), (1,))
    charge(seen.numel(), path)
    if int(seen.max()) > 1:
        raise malformed(path, "a bool in the view is neither 0 nor 1")
