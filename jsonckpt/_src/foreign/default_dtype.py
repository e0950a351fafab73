"""The dtype of numbers whose dtype the text does not say."""

from __future__ import annotations

import torch

from ..errors import FormatError
from ..json_stream.number_array import Kind
from .parameter_names import holds_integers, part_of
from .survey import Array


def dtype_of_kinds(
    kinds: set[Kind], wanted: torch.dtype | None, floats: torch.dtype, *, is_complex: bool
) -> torch.dtype:
    """The dtype of numbers without one: ``wanted`` if it can hold them, or as torch would choose.

    Whole numbers beyond int64 become uint64, never floats.

    Raises:
        FormatError: they do not fit uint64, either.
    """
    if is_complex:
        return torch.complex128 if floats is torch.float64 else torch.complex64
    if kinds == {"bool"}:
        return torch.bool
    if "float" not in kinds and kinds & {"uint", "wide"}:
        if "wide" in kinds:
            raise FormatError(
                "whole numbers that neither int64 nor uint64 holds",
                hint="Give them a dtype: float64 keeps 53 bits of them.",
            )
        return torch.uint64
    if wanted is not None:
        return wanted
    return torch.int64 if kinds == {"int"} else floats


def dtype_of_array(
    key: str, array: Array, model_floats: bool, floats: torch.dtype
) -> torch.dtype | None:
    """The dtype of an array without one. ``None`` leaves it to the values."""
    if array.complex or array.bools:
        return None
    if array.floats:
        return floats
    part = part_of(key)
    single = not array.shape and (part.grade != "named" or part.role == "other")
    whole = holds_integers(key) or single
    return floats if model_floats and not whole else torch.int64
