"""Views of a record's memory, made from what a file says about them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from ..errors import quote
from ..format.dtypes import DTYPES
from ..format.json_text import Json
from ..state.checks import Body, malformed
from .buffers import byte_count
from .memory import contiguous_stride, strided, torch_dtype
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
    def from_json(cls, value: Json, place: str) -> View:
        """Read the body that stands at ``place``.

        Raises:
            FormatError: not the body of a view.
        """
        body = Body.of(value, place)
        view = cls(
            name=body.text("name"),
            of=body.text("of"),
            dtype=body.text("dtype", DTYPES),
            shape=tuple(body.sizes("shape")),
            stride=tuple(body.sizes("stride")),
            offset=body.integer("offset"),
        )
        if len(view.stride) != len(view.shape):
            body.refuse("stride", f"{len(view.shape)} integers")
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

    def check(self, nbytes: int, place: str) -> None:
        """Whether the view lies inside a record of ``nbytes`` raw bytes.

        Raises:
            FormatError: it does not, or has more bytes than there can be.
        """
        if byte_count(self.dtype, self.shape) == 0:
            if math.prod(size for size in self.shape if size) >= 2**63:
                raise malformed(place, f"torch has no view of shape {quote(self.shape)}")
            return
        steps = sum((size - 1) * step for size, step in zip(self.shape, self.stride))
        end = (self.offset + steps + 1) * DTYPES[self.dtype].itemsize
        if end > nbytes:
            raise malformed(place, f"the view ends at byte {end} of a record of {nbytes} bytes")

    def on(
        self, record: torch.Tensor, place: str, charge: Callable[[int, str], None]
    ) -> torch.Tensor:
        """The view, in the memory of ``record``.

        Args:
            charge: told of the bytes that are gone through, and of the place, beforehand.

        Raises:
            FormatError: it leads out of the record, or torch has no such tensor; the record is not
                contiguous, or not aligned for the view's dtype.
        """
        dtype = torch_dtype(self.dtype)
        stride, offset = self.stride, self.offset
        self.check(record.nbytes, place)
        if byte_count(self.dtype, self.shape) == 0:
            # Without elements they mean nothing, and could be beyond what torch can multiply.
            stride, offset = contiguous_stride(self.shape), 0
        start = int(record.storage_offset()) * record.itemsize
        if start % dtype.itemsize or not record.is_contiguous():
            raise malformed(place, "the record does not lie in memory as the view needs it")
        try:
            view = strided(
                record.untyped_storage(),
                dtype,
                start // dtype.itemsize + offset,
                self.shape,
                stride,
            )
        except (RuntimeError, TypeError, OverflowError) as error:
            raise malformed(place, f"torch has no view of shape {quote(self.shape)}") from error
        if dtype == torch.bool and record.dtype != torch.bool and not view.is_meta:
            _require_bools(view, place, charge)
        return view


def _require_bools(view: torch.Tensor, place: str, charge: Callable[[int, str], None]) -> None:
    """A bool of another byte than 0 or 1 is undefined behaviour in torch."""
    if view.numel() == 0:
        return
    seen = view.view(torch.uint8)
    region = Region.of(0, 1, seen.shape, seen.stride())
    if seen.numel() > region.stop:
        # Elements in one place, perhaps very many: look at each byte once, and at those between.
        start = int(seen.storage_offset())
        seen = strided(seen.untyped_storage(), torch.uint8, start, (region.stop,), (1,))
    charge(seen.numel(), place)
    if int(seen.max()) > 1:
        raise malformed(place, "a bool in the view is neither 0 nor 1")
