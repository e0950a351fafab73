"""Sparse and quantized tensors: their dense parts, and back (``docs/format.md`` section 6.2)."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeAlias

import torch

from ..errors import JsonckptError, UnsupportedTypeError, quote
from ..format.json_text import Json
from ..state.checks import (
    boolean,
    float_json,
    integer_between,
    malformed,
    members,
    one_of,
    read_float,
    refuse,
    sizes,
)
from .memory import strided

#: ``dense(value, path)`` gives the dense tensor that a reference stands for.
ReadDense: TypeAlias = Callable[[Json, str], torch.Tensor]
#: ``charge(nbytes, path)`` counts memory before it is allocated, or scanned.
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


def is_composite(tensor: torch.Tensor) -> bool:
    """Whether :func:`split` takes the tensor."""
    return tensor.is_quantized or tensor.layout in _SPARSE


def split(tensor: torch.Tensor) -> tuple[str, dict[str, Any]]:
    """The tag of a sparse or quantized tensor, and its members: JSON, or dense tensors.

    Raises:
        UnsupportedTypeError: a quantized dtype or scheme that the format lacks.
    """
    return _split_quantized(tensor) if tensor.is_quantized else _split_sparse(tensor)


def _split_sparse(tensor: torch.Tensor) -> tuple[str, dict[str, Any]]:
    layout = _SPARSE[tensor.layout]
    body: dict[str, Any] = {"layout": layout, "shape": list(tensor.shape)}
    if layout == "coo":
        # The public accessors refuse tensors that are not coalesced, and these stay as they are.
        body |= {"indices": tensor._indices(), "values": tensor._values()}
        return "$sparse", body | {"coalesced": tensor.is_coalesced()}
    rows = layout in ("csr", "bsr")
    body["compressed"] = tensor.crow_indices() if rows else tensor.ccol_indices()
    body["plain"] = tensor.col_indices() if rows else tensor.row_indices()
    return "$sparse", body | {"values": tensor.values()}


def join_sparse(body: Json, dense: ReadDense, path: str, charge: Charge) -> torch.Tensor:
    """The tensor of a ``$sparse``.

    Raises:
        FormatError: not a sparse tensor, or indices outside of it.
        LimitError: to check the indices takes more than the limits allow.
        JsonckptError: torch has no such tensor on the device of the parts.
    """
    parts = members(body, path, "layout", "shape")
    layout = _SPARSE_LAYOUTS[one_of(*parts.at("layout"), _SPARSE_LAYOUTS)]
    shape = sizes(*parts.at("shape"))
    if layout == torch.sparse_coo:
        parts = members(body, path, "indices", "values", "coalesced")
        indices, values = dense(*parts.at("indices")), dense(*parts.at("values"))
        return _join_coo(indices, values, shape, boolean(*parts.at("coalesced")), path, charge)
    parts = members(body, path, "compressed", "plain", "values")
    compressed, plain = dense(*parts.at("compressed")), dense(*parts.at("plain"))
    values = dense(*parts.at("values"))
    if compressed.is_meta or plain.is_meta or values.is_meta:
        raise JsonckptError(
            f"torch has no {layout} tensors on the meta device",
            tensor=path,
            hint="Load to another device, or exclude this tensor.",
        )
    charge(compressed.nbytes + plain.nbytes, path)
    with _torch_refusals(path), _quiet():
        # Explicit checks: without them torch trusts the indices, and hostile ones make it crash.
        return torch.sparse_compressed_tensor(
            compressed, plain, values, shape, layout=layout, check_invariants=True
        )


def _join_coo(
    indices: torch.Tensor,
    values: torch.Tensor,
    shape: list[int],
    coalesced: bool,
    path: str,
    charge: Charge,
) -> torch.Tensor:
    # On the meta device there are no indices to check.
    check = not (indices.is_meta or values.is_meta)
    with _torch_refusals(path), _quiet():
        if check and _one_index(indices, values) and not coalesced:
            torch.sparse_coo_tensor(indices[:, :1], values[:1], shape, check_invariants=True)
            check = False
        if check:
            charge(indices.nbytes, path)
        # Explicit checks: without them torch trusts the indices, and hostile ones make it crash.
        return torch.sparse_coo_tensor(
            indices, values, shape, is_coalesced=coalesced, check_invariants=check
        )


def _one_index(indices: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether all entries have the same index in memory, so that a check of one is enough.

    This is true for an expanded view: a few bytes hold the indices of any number of entries.
    """
    if indices.dim() != 2 or not values.dim() or indices.stride(1) != 0:
        return False
    return 2 <= indices.shape[1] == values.shape[0]


def _split_quantized(tensor: torch.Tensor) -> tuple[str, dict[str, Any]]:
    scheme = str(tensor.qscheme()).removeprefix("torch.")
    if tensor.dtype not in _QUANTIZED or scheme not in (_PER_TENSOR, *_PER_CHANNEL):
        raise UnsupportedTypeError(
            f"the format cannot hold a quantized tensor of {tensor.dtype} with scheme {scheme}",
            hint="Save tensor.dequantize(), or its bytes and parameters.",
        )
    integers = strided(
        tensor.untyped_storage(),
        _QUANTIZED[tensor.dtype],
        int(tensor.storage_offset()),
        tensor.shape,
        tensor.stride(),
    )
    dtype = str(tensor.dtype).removeprefix("torch.")
    body: dict[str, Any] = {"dtype": dtype, "scheme": scheme, "data": integers}
    if scheme == _PER_TENSOR:
        scale = float_json(tensor.q_scale())
        body["scale"] = {"$float": scale} if type(scale) is str else scale
        return "$quantized", body | {"zero_point": tensor.q_zero_point()}
    body["scale"] = tensor.q_per_channel_scales()
    body["zero_point"] = tensor.q_per_channel_zero_points()
    return "$quantized", body | {"axis": tensor.q_per_channel_axis()}


def join_quantized(body: Json, dense: ReadDense, path: str, charge: Charge) -> torch.Tensor:
    """The tensor of a ``$quantized``.

    Raises:
        FormatError: not a quantized tensor.
        LimitError: its copy takes more than the limits allow.
    """
    parts = members(body, path, "dtype", "scheme", "data", "scale", "zero_point")
    dtype = _QUANTIZED_DTYPES[one_of(*parts.at("dtype"), _QUANTIZED_DTYPES)]
    scheme = one_of(*parts.at("scheme"), (_PER_TENSOR, *_PER_CHANNEL))
    data = _typed(dense(*parts.at("data")), _QUANTIZED[dtype], f"{path}/data")
    if scheme == _PER_TENSOR:
        scale = _read_scale(*parts.at("scale"))
        zero_point = integer_between(*parts.at("zero_point"), -(2**31), 2**31 - 1)
        with _torch_refusals(path), _quiet():
            blank = torch._empty_affine_quantized(
                (0,), scale=scale, zero_point=zero_point, dtype=dtype, device=data.device
            )
            return _on_memory(blank, data)
    parts = members(body, path, "scale", "zero_point", "axis")
    axis = integer_between(*parts.at("axis"))
    if axis >= data.dim():
        refuse(f"{path}/axis", f"one of {data.dim()} dimensions", axis)
    floats = scheme == "per_channel_affine_float_qparams"
    kinds = (torch.float32, torch.float32) if floats else (torch.float64, torch.int64)
    scales, zero_points = (
        _typed(dense(*parts.at(name)), kind, f"{path}/{name}")
        for name, kind in zip(("scale", "zero_point"), kinds)
    )
    for name, tensor in (("scale", scales), ("zero_point", zero_points)):
        if tuple(tensor.shape) != (data.shape[axis],):
            refuse(f"{path}/{name}", f"{data.shape[axis]} channels", list(tensor.shape))
    # torch copies all three, and those that are not contiguous twice.
    for tensor in (data, scales, zero_points):
        if not tensor.is_meta:
            charge(tensor.nbytes * (1 if tensor.is_contiguous() else 2), path)
    with _torch_refusals(path), _quiet():
        if data.is_meta:
            return torch._make_per_channel_quantized_tensor(data, scales, zero_points, axis)
        # Not made from the data: that would be a row-major copy.
        shape = [0 if dim != axis else data.shape[axis] for dim in range(data.dim())]
        blank = torch._empty_per_channel_affine_quantized(
            shape,
            scales=scales,
            zero_points=zero_points,
            axis=axis,
            dtype=dtype,
            device=data.device,
        )
        return _on_memory(blank, data)


def _on_memory(blank: torch.Tensor, data: torch.Tensor) -> torch.Tensor:
    """A quantized tensor, moved onto the memory of its integers."""
    return blank.set_(data.untyped_storage(), data.storage_offset(), data.shape, data.stride())


@contextmanager
def _quiet() -> Iterator[None]:
    """Without torch's warnings that sparse is in beta and quantized deprecated.

    The saved state holds such tensors. The program that loads it cannot change that.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="jsonckpt")
        warnings.filterwarnings("ignore", category=UserWarning, message="Sparse|torch.quantize")
        yield


@contextmanager
def _torch_refusals(path: str) -> Iterator[None]:
    """Turn torch's errors about the parts into errors in the file."""
    try:
        yield
    except JsonckptError:
        raise
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise malformed(
            path, f"torch cannot put the parts together: {quote(str(error), 200)}"
        ) from error


def _read_scale(value: Json, path: str) -> float:
    if type(value) is dict and list(value) == ["$float"] and type(value["$float"]) is str:
        return read_float(value["$float"], path)
    if type(value) is not float and type(value) is not int:
        refuse(path, "a number", value)
    return read_float(value, path)


def _typed(tensor: torch.Tensor, dtype: torch.dtype, path: str) -> torch.Tensor:
    if tensor.dtype != dtype:
        raise malformed(path, f"expected a tensor of {dtype}, found {tensor.dtype}")
    return tensor
