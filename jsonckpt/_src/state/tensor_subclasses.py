"""Tensor subclasses that torch can take apart: their dense parts, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

_Functions: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]
_FIELDS = ("tensors", "context", "shape", "stride", "requires_grad")


def can_be_taken_apart(cls: type) -> bool:
    """Whether a class is a tensor subclass with torch's two methods for that."""
    methods = ("__tensor_flatten__", "__tensor_unflatten__")
    return issubclass(cls, torch.Tensor) and all(hasattr(cls, name) for name in methods)


def subclass_rule(cls: Any) -> _Functions:
    """How tensors of a class are written and read.

    They are a dictionary of the tensors in them, of what else the class needs (``context``), and of
    the shape, strides and ``requires_grad`` of the whole.
    """

    def to_json(value: Any) -> dict[str, Any]:
        names, context = value.__tensor_flatten__()
        return {
            "tensors": {name: getattr(value, name) for name in names},
            "context": context,
            "shape": value.shape,
            "stride": list(value.stride()),
            "requires_grad": value.requires_grad,
        }

    def from_json(value: Any) -> Any:
        if type(value) is not dict or value.keys() != set(_FIELDS):
            raise ValueError(f"expected the fields {', '.join(_FIELDS)}")
        tensors, shape, stride = value["tensors"], value["shape"], value["stride"]
        if type(tensors) is not dict or not all(
            isinstance(item, torch.Tensor) for item in tensors.values()
        ):
            raise ValueError("its tensors are not a dictionary of tensors")
        if type(shape) is not torch.Size or not _are_strides(stride, len(shape)):
            raise ValueError("its shape or stride is malformed")
        if type(value["requires_grad"]) is not bool:
            raise ValueError("requires_grad is not true or false")
        made = cls.__tensor_unflatten__(tensors, value["context"], shape, tuple(stride))
        names, context = made.__tensor_flatten__()
        if set(names) != tensors.keys() or not _same(context, value["context"]):
            raise ValueError(f"{cls.__name__} has other parts")
        if (made.shape, list(made.stride())) != (shape, stride):
            raise ValueError(f"its parts make a tensor of shape {list(made.shape)}")
        if len({tensor.device for tensor in tensors.values()}) > 1:
            raise ValueError("its parts are on several devices")
        return made.requires_grad_() if value["requires_grad"] else made

    return to_json, from_json


def copied(value: torch.Tensor) -> Any:
    """A tensor of any kind, in new memory. Few subclasses have a ``clone`` of their own."""
    kind: Any = type(value)
    if kind in (torch.Tensor, torch.nn.Parameter) or not can_be_taken_apart(kind):
        return value.detach().clone()
    names, context = value.__tensor_flatten__()  # type: ignore[attr-defined]
    tensors = {name: copied(getattr(value, name)) for name in names}
    return kind.__tensor_unflatten__(tensors, context, value.shape, value.stride())


def _are_strides(value: Any, count: int) -> bool:
    return type(value) is list and len(value) == count and all(type(one) is int for one in value)


def _same(one: Any, two: Any) -> bool:
    try:
        return bool(one == two)
    except Exception:
        return one is two  # objects that do not compare, such as tensors
