"""Tensors that consist of tensors: parameters, sparse and quantized ones, apart and together.

Pure shapes: where the dense parts go to and come from is passed in.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch

from ..errors import JsonckptError, UnsupportedTypeError, quote
from ..format.json_text import Json
from ..state.checks import Body, malformed, single_member
from ..state.tree import OMIT
from .memory import strided

#: ``put(tensor, member)`` takes a dense part.
Put: TypeAlias = Callable[[torch.Tensor, str], Json]
#: ``part(value, member)`` gives a dense part, or OMIT.
Part: TypeAlias = Callable[[Json, str], Any]
#: ``charge(nbytes, place)`` counts memory that is about to be made, or gone through.
Charge: TypeAlias = Callable[[int, str], None]
_SPARSE: Final[dict[torch.layout, str]] = {
    torch.sparse_coo: "coo",
    torch.sparse_csr: "csr",
    torch.sparse_csc: "csc",
    torch.sparse_bsr: "bsr",
    torch.sparse_bsc: "bsc",
}
_SPARSE_LAYOUTS: Final = {name: layout for layout, name in _SPARSE.items()}
#: Quantized dtypes and the integers that they are stored as. The 4-bit and 2-bit ones pack
#: several elements into a byte and torch offers no way to build them from their bytes.
_QUANTIZED: Final = {
    torch.quint8: torch.uint8,
    torch.qint8: torch.int8,
    torch.qint32: torch.int32,
}
_QUANTIZED_DTYPES: Final = {str(dtype).removeprefix("torch."): dtype for dtype in _QUANTIZED}
_PER_TENSOR: Final = "per_tensor_affine"
_PER_CHANNEL: Final = ("per_channel_affine", "per_channel_affine_float_qparams")
_NOT_FINITE: Final = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def is_composite(tensor: torch.Tensor) -> bool:
    """Whether :func:`split` takes the tensor."""
    return tensor.is_quantized or tensor.layout in _SPARSE


def split(tensor: torch.Tensor, put: Put) -> dict[str, Json]:
    """The tagged object of a sparse or quantized tensor, whose dense parts go to ``put``.

    Raises:
        UnsupportedTypeError: a quantized dtype or scheme without a place in the format.
    """
    return _split_quantized(tensor, put) if tensor.is_quantized else _split_sparse(tensor, put)


def _split_sparse(tensor: torch.Tensor, put: Put) -> dict[str, Json]:
    layout = _SPARSE[tensor.layout]
    if layout == "coo":
        # The public accessors refuse tensors that are not coalesced, and these stay as they are.
        parts = {"indices": tensor._indices(), "values": tensor._values()}
    else:
        rows = layout in ("csr", "bsr")
        parts = {
            "compressed": tensor.crow_indices() if rows else tensor.ccol_indices(),
            "plain": tensor.col_indices() if rows else tensor.row_indices(),
            "values": tensor.values(),
        }
    body: dict[str, Json] = {"layout": layout, "shape": list(tensor.shape)}
    for member, part in parts.items():
        body[member] = put(part, member)
    if layout == "coo":
        body["coalesced"] = tensor.is_coalesced()
    return {"$sparse": body}


def join_sparse(body: Json, part: Part, place: str, charge: Charge) -> Any:
    """The inverse of :func:`split` for ``$sparse``, or OMIT when a part was left out.

    Raises:
        FormatError: not a sparse tensor, or indices that lead out of it.
        LimitError: to check the indices takes more than the limits allow.
        JsonckptError: torch has no such tensor on the device of the parts.
    """
    members = Body.of(body, place)
    layout = _SPARSE_LAYOUTS[members.text("layout", _SPARSE_LAYOUTS)]
    shape = members.sizes("shape")
    coo = layout == torch.sparse_coo
    names = ("indices", "values") if coo else ("compressed", "plain", "values")
    parts = [part(members.value(member), member) for member in names]
    coalesced = members.boolean("coalesced") if coo else False
    if any(found is OMIT for found in parts):
        return OMIT
    # Nobody can check indices that are not there, and nobody can follow them either.
    check = not any(found.is_meta for found in parts)
    if not check and not coo:
        raise JsonckptError(
            f"torch has no {layout} tensors on the meta device",
            tensor=place,
            hint="Load to another device, or exclude this tensor.",
        )
    with _torch_refusals(place), _quiet():
        # Explicit checks: without them torch believes the indices, and hostile ones make it crash.
        if coo:
            if check and _check_at_one_place(parts[0], parts[1], shape, coalesced):
                check = False
            if check:
                charge(parts[0].nbytes, place)
            return torch.sparse_coo_tensor(
                parts[0], parts[1], shape, is_coalesced=coalesced, check_invariants=check
            )
        charge(parts[0].nbytes + parts[1].nbytes, place)
        return torch.sparse_compressed_tensor(
            parts[0], parts[1], parts[2], shape, layout=layout, check_invariants=True
        )


def _check_at_one_place(
    indices: torch.Tensor, values: torch.Tensor, shape: list[int], coalesced: bool
) -> bool:
    """Check the indices where all entries lie at one place of the tensor: one stands for all.

    So is an expanded view, which may have any number of entries in a few bytes.

    Returns:
        Whether this is so; else nothing was checked.
    """
    if indices.dim() != 2 or not values.dim() or indices.stride(1) != 0 or coalesced:
        return False
    if indices.shape[1] < 2 or indices.shape[1] != values.shape[0]:
        return False
    torch.sparse_coo_tensor(indices[:, :1], values[:1], shape, check_invariants=True)
    return True


def _split_quantized(tensor: torch.Tensor, put: Put) -> dict[str, Json]:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    if tensor.dtype not in _QUANTIZED or scheme not in (_PER_TENSOR, *_PER_CHANNEL):
        raise UnsupportedTypeError(
            f"a quantized tensor of {tensor.dtype} and scheme {scheme} has no place in the format",
            hint="Save tensor.dequantize(), or its bytes and parameters.",
        )
    integers = strided(
        tensor.untyped_storage(),
        _QUANTIZED[tensor.dtype],
        int(tensor.storage_offset()),
        tensor.shape,
        tensor.stride(),
    )
    body: dict[str, Json] = {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "scheme": scheme,
        "data": put(integers, "data"),
    }
    if scheme == _PER_TENSOR:
        body["scale"] = _float_json(tensor.q_scale())
        body["zero_point"] = tensor.q_zero_point()
    else:
        body["scale"] = put(tensor.q_per_channel_scales(), "scale")
        body["zero_point"] = put(tensor.q_per_channel_zero_points(), "zero_point")
        body["axis"] = tensor.q_per_channel_axis()
    return {"$quantized": body}


def join_quantized(body: Json, part: Part, place: str, charge: Charge) -> Any:
    """The inverse of :func:`split` for ``$quantized``, or OMIT when a part was left out.

    Raises:
        FormatError: not a quantized tensor.
        LimitError: its copy takes more than the limits allow.
    """
    members = Body.of(body, place)
    dtype = _QUANTIZED_DTYPES[members.text("dtype", _QUANTIZED_DTYPES)]
    scheme = members.text("scheme", (_PER_TENSOR, *_PER_CHANNEL))
    data = part(members.value("data"), "data")
    if data is not OMIT:
        _expect_dtype(data, _QUANTIZED[dtype], f"{place}/data")
    if scheme == _PER_TENSOR:
        scale = _float(members.value("scale"), f"{place}/scale")
        zero_point = members.integer("zero_point", -(2**31), 2**31 - 1)
        if data is OMIT:
            return OMIT
        with _torch_refusals(place), _quiet():
            blank = torch._empty_affine_quantized(
                (0,), scale=scale, zero_point=zero_point, dtype=dtype, device=data.device
            )
            return blank.set_(
                data.untyped_storage(), data.storage_offset(), data.shape, data.stride()
            )
    channels = {member: part(members.value(member), member) for member in ("scale", "zero_point")}
    axis = members.integer("axis")
    if data is OMIT or any(found is OMIT for found in channels.values()):
        return OMIT
    if axis >= data.dim():
        members.refuse("axis", f"one of {data.dim()} dimensions")
    floats = scheme == "per_channel_affine_float_qparams"
    expected = (torch.float32, torch.float32) if floats else (torch.float64, torch.int64)
    for (member, tensor), kind in zip(channels.items(), expected):
        _expect_dtype(tensor, kind, f"{place}/{member}")
        if tuple(tensor.shape) != (data.shape[axis],):
            members.refuse(member, f"{data.shape[axis]} channels")
    # torch copies all three, and what is not contiguous once more on the way.
    for tensor in (data, *channels.values()):
        if not tensor.is_meta:
            charge(tensor.nbytes * (1 if tensor.is_contiguous() else 2), place)
    with _torch_refusals(place), _quiet():
        if data.is_meta:
            return torch._make_per_channel_quantized_tensor(
                data, channels["scale"], channels["zero_point"], axis
            )
        # Not made of the data, for that would be a row-major copy.
        sizes = [0 if dim != axis else data.shape[axis] for dim in range(data.dim())]
        blank = torch._empty_per_channel_affine_quantized(
            sizes,
            scales=channels["scale"],
            zero_points=channels["zero_point"],
            axis=axis,
            dtype=dtype,
            device=data.device,
        )
        return blank.set_(data.untyped_storage(), data.storage_offset(), data.shape, data.stride())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that sparse is in beta and that quantized is deprecated.

    The user did not choose either here: the file has them because the saved state had.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="jsonckpt")
        warnings.filterwarnings("ignore", category=UserWarning, message="Sparse|torch.quantize")
        yield


@contextmanager
def _torch_refusals(place: str) -> Iterator[None]:
    """What torch finds wrong with the parts is wrong in the file."""
    try:
        yield
    except JsonckptError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise malformed(
            place, f"torch cannot put the parts together: {quote(str(error), 200)}"
        ) from error


def _float_json(value: float) -> Json:
    if math.isfinite(value):
        return value
    return {"$float": "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}


def _float(value: Json, place: str) -> float:
    if type(value) is float:
        return value
    if type(value) is int and -(2**53) <= value <= 2**53:
        return float(value)
    if type(value) is dict:
        tag, text = single_member(value, place)
        if tag == "$float" and type(text) is str and text in _NOT_FINITE:
            return _NOT_FINITE[text]
    raise malformed(place, f"expected a number, found {quote(value)}")


def _expect_dtype(tensor: torch.Tensor, dtype: torch.dtype, place: str) -> None:
    if tensor.dtype != dtype:
        raise malformed(place, f"expected a tensor of {dtype}, found {tensor.dtype}")
