"""Refuses tensors that cannot be saved, or filled in place.

The format holds dense, sparse and quantized tensors that have memory of their own
(``docs/format.md`` section 6.2).
"""

from __future__ import annotations

import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import StateMismatchError, UnsupportedTypeError, quote
from .composite import is_composite
from .memory import empty

#: Attributes that torch itself sets: a ``torch.nn.Buffer`` says how its module saves it.
_TORCH_ATTRIBUTES = frozenset({"persistent"})
_CPU = torch.device("cpu")


def require_plain(value: torch.Tensor) -> None:
    """Refuse a tensor that is not just memory with a shape, such as a subclass.

    Raises:
        UnsupportedTypeError: the tensor cannot be saved.
    """
    kind = type(value)
    if isinstance(value, UninitializedTensorMixin):
        raise UnsupportedTypeError(
            f"a {kind.__name__} has no shape yet",
            hint="Run the module once, so that it learns its shapes, before saving.",
        )
    plain = kind is torch.Tensor or kind is torch.nn.Parameter
    own = vars(value)
    if own or not plain:  # hardly any tensor has attributes, and there may be thousands
        _require_whole(value)
    if not plain:
        raise UnsupportedTypeError(
            f"cannot write the tensor subclass {kind.__module__}.{kind.__qualname__}",
            hint=f"Call jsonckpt.register({kind.__name__}, ...) before saving, or save the plain"
            " tensors in it.",
        )
    attributes = [name for name in own if name[:1] != "_" and name not in _TORCH_ATTRIBUTES]
    if attributes:
        raise UnsupportedTypeError(
            f"the tensor has the attribute {quote(attributes[0])}, which would be lost",
            hint="Save the attribute separately, and the tensor as tensor.detach(), which has none;"
            " a module's state_dict() does that.",
        )
    if _is_wrapped(value):
        raise UnsupportedTypeError(
            "a tensor inside torch.func (vmap, grad, jvp) has no memory of its own",
            hint="Return it from the transformed function, and save what comes out.",
        )
    if value.is_nested or (value.layout != torch.strided and not is_composite(value)):
        layout = "nested" if value.is_nested else str(value.layout).removeprefix("torch.")
        raise UnsupportedTypeError(
            f"cannot write a tensor of layout {layout}",
            hint="Save the list of its parts." if value.is_nested else "Save value.to_dense().",
        )
    if value.is_meta:
        raise UnsupportedTypeError(
            "a tensor on the meta device has no data", hint="Load or initialize it before saving."
        )


def _require_whole(value: torch.Tensor) -> None:
    """Refuse a tensor if this process has only a part of it.

    Compares names of types, because torch.distributed may be missing: ``DTensor`` and
    ``ShardedTensor``, their subclasses, and the flat parameters of FSDP, whose type is plain.
    """
    kind = type(value)
    parts = {"DTensor", "ShardedTensorBase"} & {base.__name__ for base in kind.__mro__}
    if parts or hasattr(value, "_is_flat_param"):
        what = "flat parameter of FSDP" if not parts else f"{kind.__module__}.{kind.__qualname__}"
        raise UnsupportedTypeError(
            f"cannot write a {what}: each process holds a part of it",
            hint="A part is not a checkpoint. Save the parts of all ranks with "
            "jsonckpt.integrations.dcp.save. Or gather the whole on every rank "
            "(value.full_tensor(), or get_model_state_dict with full_state_dict=True), then save "
            "it on one rank.",
        )


def _is_wrapped(tensor: torch.Tensor) -> bool:
    """Whether the tensor belongs to a function transform of torch."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def require_memory(tensor: torch.Tensor) -> None:
    """Refuse a tensor that reaches beyond its storage.

    Engines that shard a model free the storage of its parameters.

    Raises:
        UnsupportedTypeError: it does.
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
    """Refuse a tensor that has elements but no address.

    Examples are the ZeroTensors of autograd, and tensors inside torch's function transforms.

    Raises:
        UnsupportedTypeError: it is one.
    """
    if tensor.numel() and (tensor.is_cpu or tensor._is_zerotensor()) and not tensor.data_ptr():
        raise UnsupportedTypeError(
            f"the tensor of {tensor.nbytes} bytes has no memory, like the zeros that autograd"
            " makes",
            hint="Give it memory with tensor.clone().",
        )


def address_of(tensor: torch.Tensor) -> int:
    """The address of the first element of a dense tensor.

    Raises:
        UnsupportedTypeError: it has elements but no memory.
    """
    try:
        start = tensor.data_ptr()
    except RuntimeError as error:  # a wrapper that a mode of torch puts around tensors
        raise UnsupportedTypeError(
            f"the tensor has no memory: {quote(str(error), 200)}",
            hint="Save the plain tensor.",
        ) from error
    if not start:
        require_address(tensor)
    return start


def require_fillable(tensor: torch.Tensor) -> None:
    """Refuse a tensor that cannot be filled in place.

    Raises:
        UnsupportedTypeError: it has no memory of its own, or is not dense.
    """
    if tensor.is_nested or _is_wrapped(tensor):
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


def require_cast(source: torch.dtype, target: torch.dtype) -> None:
    """Refuse to convert values of one dtype to another where torch cannot.

    Raises:
        StateMismatchError: it cannot.
    """
    possible = target.is_complex or not source.is_complex
    if possible:
        try:
            empty(1, target, _CPU).copy_(empty(1, source, _CPU))
        except RuntimeError:  # NotImplementedError is one
            possible = False
    if not possible:
        raise StateMismatchError(f"{source} in the checkpoint cannot be cast to {target}")
