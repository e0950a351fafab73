"""Makes tensors and torch's plain values from what a pickle says of them.

A tensor is checked against its storage before it is made. So none reaches beyond it, and none
makes it larger.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any, Final

import torch

from .machine import Constructor
from .values import Global, Storage, Unread, typed, unfit

_LARGEST: Final = 1 << 62
_FLAGS: Final = ("conj", "neg")
_LAYOUTS: Final = {
    str(layout): layout
    for layout in (
        torch.strided,
        torch.sparse_coo,
        torch.sparse_csr,
        torch.sparse_csc,
        torch.sparse_bsr,
        torch.sparse_bsc,
    )
}
_QSCHEMES: Final = (
    torch.per_tensor_affine,
    torch.per_tensor_symmetric,
    torch.per_channel_affine,
    torch.per_channel_symmetric,
    torch.per_channel_affine_float_qparams,
)
DTYPES: Final[dict[str, torch.dtype]] = {
    f"torch.{name}": value for name, value in vars(torch).items() if isinstance(value, torch.dtype)
}
#: The dtypes of the classes of storages and of tensors of torch 0.x: ``FloatStorage``.
_CLASSES: Final[dict[str, torch.dtype]] = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QUInt8": torch.quint8,
    "QInt32": torch.qint32,
    "QUInt4x2": torch.quint4x2,
    "QUInt2x4": torch.quint2x4,
    "Untyped": torch.uint8,
}
_PARAMETER: Final = "torch.nn.parameter.Parameter"


def untyped_storage(nbytes: int) -> torch.UntypedStorage:
    """Memory that is not set."""
    return torch.UntypedStorage(nbytes)  # type: ignore[no-untyped-call]


def storage_dtype(kind: Any) -> torch.dtype:
    """The dtype for a class of storages.

    Raises:
        FormatError: it is none.
    """
    if type(kind) is Global and kind.name.endswith("Storage") and kind.module.startswith("torch"):
        found = _CLASSES.get(kind.name.removesuffix("Storage"))
        if found is not None:
            return found
    raise unfit("a storage of unknown kind")


def _tensor_dtype(name: str) -> torch.dtype | None:
    module, _, kind = name.rpartition(".")
    if module in ("torch", "torch.cuda") and kind.endswith("Tensor"):
        return _CLASSES.get(kind.removesuffix("Tensor"))
    return None


def strided(
    storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """A tensor over a storage.

    Raises:
        FormatError: it does not lie within the storage.
    """
    typed(storage, Storage, "the storage of a tensor")
    dtype = typed(dtype or storage.dtype, torch.dtype, "a dtype")
    sizes, strides = _sizes(size), _sizes(stride)
    typed(offset, int, "an offset")
    last = offset + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    end = (last + 1 if all(sizes) else offset) * dtype.itemsize
    if offset < 0 or end > storage.untyped.nbytes() or prod(max(n, 1) for n in sizes) >= _LARGEST:
        raise unfit(
            f"a tensor of {list(sizes)} {dtype} needs {end} bytes of a storage of "
            f"{storage.untyped.nbytes()}"
        )
    return torch.empty((0,), dtype=dtype).set_(storage.untyped, offset, sizes, strides)


def _sizes(value: Any) -> tuple[int, ...]:
    sizes = tuple(typed(value, (tuple, list, torch.Size), "a shape"))
    if len(sizes) > 64 or any(type(n) is not int or not 0 <= n < _LARGEST for n in sizes):
        raise unfit("a shape that no tensor has")
    return sizes


def _finished(tensor: torch.Tensor, gradient: Any, metadata: Any = None) -> torch.Tensor:
    typed(gradient, bool, "requires_grad")
    if metadata:
        flags = {name: True for name in _FLAGS if metadata.get(name) is True}
        torch._utils.set_tensor_metadata(tensor, flags)  # type: ignore[no-untyped-call]
    return tensor.requires_grad_(gradient)


def _rebuilt(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any = False,
    _hooks: Any = None,
    metadata: Any = None,
) -> torch.Tensor:
    # The hooks are code. They belong to a program, not to a state.
    return _finished(_of_storage(storage, offset, size, stride), gradient, metadata)


def _of_storage(storage: Any, offset: Any, size: Any, stride: Any) -> torch.Tensor:
    if isinstance(storage, Storage) and storage.dtype in _QUANTIZED:
        raise unfit("a quantized tensor without its scale")
    return strided(storage, offset, size, stride)


def _rebuilt_as(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    gradient: Any,
    _hooks: Any,
    dtype: Any,
    metadata: Any = None,
) -> torch.Tensor:
    if dtype in _QUANTIZED:
        raise unfit("a quantized tensor without its scale")
    return _finished(strided(storage, offset, size, stride, dtype), gradient, metadata)


_QUANTIZED: Final = (torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4)
#: Elements in a byte, where they are more than one.
_PACKED: Final = {torch.quint4x2: 2, torch.quint2x4: 4}


def _quantized(
    storage: Any, offset: Any, size: Any, stride: Any, how: Any, gradient: Any, _hooks: Any
) -> torch.Tensor:
    typed(storage, Storage, "the storage of a tensor")
    sizes = _sizes(size)
    room = storage.untyped.nbytes() * _PACKED.get(storage.dtype, 1)
    if storage.dtype not in _QUANTIZED or prod(sizes) > room:
        raise unfit("a quantized tensor that is larger than its storage")
    if storage.dtype not in _PACKED:
        strided(storage, offset, size, stride)
    elif typed(offset, int, "an offset") != 0 or _sizes(stride) != _contiguous(sizes):
        # torch would enlarge the storage for what lies beyond it.
        raise unfit("a quantized tensor within the bytes of another, or with gaps")
    tensor = _empty_quantized(sizes, typed(how, tuple, "a quantizer"), storage.dtype)
    return _finished(tensor.set_(storage.untyped, offset, sizes, _sizes(stride)), gradient)


def _contiguous(sizes: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(prod(max(n, 1) for n in sizes[place + 1 :]) for place in range(len(sizes)))


def _empty_quantized(
    sizes: tuple[int, ...], how: tuple[Any, ...], dtype: torch.dtype
) -> torch.Tensor:
    scheme, scale, zero, *axis = how
    if scheme is torch.per_tensor_affine:
        return torch._empty_affine_quantized(
            sizes,
            scale=float(typed(scale, (float, int), "a scale")),
            zero_point=typed(zero, int, "a zero point"),
            dtype=dtype,
        )
    if scheme not in (torch.per_channel_affine, torch.per_channel_affine_float_qparams):
        raise unfit("a quantizer of unknown kind")
    place = typed(axis[0], int, "an axis")
    wanted = sizes[place] if 0 <= place < len(sizes) else -1
    whole = scheme is torch.per_channel_affine
    kinds = (torch.float64, torch.int64) if whole else (torch.float32, torch.float32)
    scales, zeros = (
        torch.as_tensor(each, dtype=kind) for each, kind in zip((scale, zero), kinds, strict=True)
    )
    if scales.shape != (wanted,) or zeros.shape != (wanted,):
        raise unfit(f"a quantizer with {len(scales)} values where {wanted} are needed")
    return torch._empty_per_channel_affine_quantized(
        sizes, scales=scales, zero_points=zeros, axis=place, dtype=dtype
    )


def _tensor(value: Any) -> torch.Tensor:
    if not isinstance(value, torch.Tensor):
        raise unfit(f"{type(value).__name__} instead of a tensor")
    return value


def _filled(value: Any) -> torch.Tensor:
    """A plain tensor that has as much memory as elements, so that a copy has no more."""
    tensor = _tensor(value)
    if tensor.layout != torch.strided or tensor.is_meta:
        raise unfit("a sparse tensor, or one without memory, where values are needed")
    if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise unfit("a tensor that repeats its elements where values are needed")
    return tensor


def _sparse(layout: Any, data: Any) -> torch.Tensor:
    parts = typed(data, tuple, "the parts of a sparse tensor")
    if layout is torch.sparse_coo:
        indices, values, size, *coalesced = parts
        return torch.sparse_coo_tensor(
            _filled(indices),
            _filled(values),
            _sizes(size),
            check_invariants=False,
            is_coalesced=coalesced[0] if coalesced else None,
        )
    compressed, plain, values, size = parts
    return torch.sparse_compressed_tensor(
        _filled(compressed),
        _filled(plain),
        _filled(values),
        _sizes(size),
        layout=layout,
        check_invariants=False,
    )


def checked(tensor: torch.Tensor) -> None:
    """Check the indices of a sparse tensor. Its storages are read when the pickle is.

    Raises:
        FormatError: they reach beyond its shape.
    """
    try:
        if tensor.layout is torch.sparse_coo:
            torch.sparse_coo_tensor(
                tensor._indices(), tensor._values(), tensor.size(), check_invariants=True
            )
        else:
            rows = tensor.layout in (torch.sparse_csr, torch.sparse_bsr)
            torch.sparse_compressed_tensor(
                tensor.crow_indices() if rows else tensor.ccol_indices(),
                tensor.col_indices() if rows else tensor.row_indices(),
                tensor.values(),
                tensor.size(),
                layout=tensor.layout,
                check_invariants=True,
            )
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        raise unfit("a sparse tensor whose indices do not fit its shape") from error


def _parameter(data: Any = None, gradient: Any = True, _hooks: Any = None) -> Any:
    if data is None:
        return Unread(_PARAMETER)
    return torch.nn.Parameter(_tensor(data).detach(), typed(gradient, bool, "requires_grad"))


def _parameter_with_state(data: Any, gradient: Any, _hooks: Any, state: Any) -> Any:
    return _with_attributes(_parameter(data, gradient), state)


def _with_attributes(tensor: torch.Tensor, state: Any) -> torch.Tensor:
    """Set a program's own attributes. Those of tensors stay as they are."""
    parts = state if type(state) is tuple else (state,)
    for part in parts:
        for name, value in (part or {}).items():
            if not hasattr(torch.nn.Parameter, typed(name, str, "a name")) and name[:1] != "_":
                setattr(tensor, name, value)
    return tensor


def _of_type(function: Any, kind: Any, args: Any, state: Any) -> Any:
    """A tensor with attributes, or of a class of its own, which is not made."""
    name = kind.dotted if type(kind) is Global else "an unknown name"
    maker = CONSTRUCTORS.get(function.dotted) if type(function) is Global else None
    if maker is None or name not in ("torch.Tensor", "torch._tensor.Tensor", *_PARAMETERS):
        return Unread(name, (function, kind, args, state))
    made = maker(*typed(args, tuple, "arguments"))
    if name in _PARAMETERS and not isinstance(made, torch.nn.Parameter):
        made = torch.nn.Parameter(made.detach(), made.requires_grad)
    return _with_attributes(made, state)


def _from_cpu(data: Any, dtype: Any, _device: Any, gradient: Any) -> torch.Tensor:
    source = data if isinstance(data, torch.Tensor) else torch.from_numpy(data.copy())
    _filled(source)
    return source.to(typed(dtype, torch.dtype, "a dtype")).requires_grad_(gradient)


def _meta(dtype: Any, size: Any, stride: Any, gradient: Any) -> torch.Tensor:
    dtype = typed(dtype, torch.dtype, "a dtype")
    sizes = _sizes(size)
    if prod(max(n, 1) for n in sizes) >= _LARGEST:
        raise unfit("a shape that no tensor has")
    tensor = torch.empty_strided(sizes, _sizes(stride), dtype=dtype, device="meta")
    return tensor.requires_grad_(typed(gradient, bool, "requires_grad"))


def _layout(name: Any) -> torch.layout:
    return _LAYOUTS[typed(name, str, "a layout")]


def _device(kind: Any, index: Any = None) -> torch.device:
    typed(index, (int, type(None)), "an index")
    typed(kind, str, "a device")
    return torch.device(kind) if index is None else torch.device(kind, index)


def _built_variable(target: Any, state: Any) -> Any:
    """Complete a tensor of torch 0.x, a Variable, or a Parameter."""
    parts = typed(state, tuple, "the state of a tensor")
    if len(parts) == 4:
        dtype = _tensor_dtype(target.name) if isinstance(target, Unread) else target.dtype
        return strided(parts[0], parts[1], parts[2], parts[3], dtype)
    if len(parts) == 5:
        data, _, _, gradient, _ = parts
        return _parameter(data, gradient) if isinstance(target, Unread) else target
    return target.requires_grad_(typed(parts[0], bool, "requires_grad"))


def _empty(name: str) -> Constructor:
    return lambda: Unread(name)


_PARAMETERS: Final = (_PARAMETER, "torch.nn.Parameter")
CONSTANTS: Final[dict[str, Any]] = {**DTYPES, **{str(scheme): scheme for scheme in _QSCHEMES}}
CONSTRUCTORS: Final[dict[str, Constructor]] = {
    "torch._utils._rebuild_tensor": lambda *args: _of_storage(*args),
    "torch._utils._rebuild_tensor_v2": _rebuilt,
    "torch._utils._rebuild_tensor_v3": _rebuilt_as,
    "torch._utils._rebuild_qtensor": _quantized,
    "torch._utils._rebuild_sparse_tensor": _sparse,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter_with_state,
    "torch._utils._rebuild_device_tensor_from_numpy": _from_cpu,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _from_cpu,
    "torch._utils._rebuild_xla_tensor": _from_cpu,
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch._tensor._rebuild_from_type": _of_type,
    "torch.autograd.variable.Variable": lambda data: _tensor(data),
    **dict.fromkeys(_PARAMETERS, _parameter),
    "torch.serialization._get_layout": _layout,
    "torch.Size": lambda *args: torch.Size(_sizes(args[0]) if args else ()),
    "torch.device": _device,
    **{
        f"torch.{prefix}{kind}Tensor": _empty(f"torch.{kind}Tensor")
        for kind in _CLASSES
        for prefix in ("", "cuda.")
    },
}
BUILDERS: Final[dict[str, Callable[[Any, Any], Any]]] = {
    **dict.fromkeys((*_PARAMETERS, "torch.Tensor", "torch._tensor.Tensor"), _built_variable),
    **{f"torch.{kind}Tensor": _built_variable for kind in _CLASSES},
}
