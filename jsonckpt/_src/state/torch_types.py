"""Rules for torch's dtypes, devices, sizes and layouts (``docs/format.md`` section 6.2).

Names are looked up only in tables built here from torch's own constants.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import torch
from torch.torch_version import TorchVersion

from ..format.json_text import Json
from .checks import integers, refuse, text
from .numpy_types import NUMPY
from .python_types import PLAIN, write_text
from .tree import Rule, Rules

_DEVICE = re.compile(r"[a-z][a-z0-9]{0,31}(:(0|[1-9]\d{0,4}))?", re.ASCII)


def _constant_name(value: object) -> str:
    return str(value).removeprefix("torch.")


def _constants(kind: type) -> dict[str, Any]:
    """torch's constants of a type by their printed names, without aliases."""
    return {_constant_name(value): value for value in vars(torch).values() if type(value) is kind}


def _read_constant(known: dict[str, Any], kind: type, body: Json, path: str) -> Any:
    if type(body) is not str or body not in known:
        refuse(path, f"the name of a {kind.__name__} that this torch has", body)
    return known[body]


def _constant_rule(tag: str, kind: type) -> Rule:
    known = _constants(kind)
    return Rule.simple(tag, kind, _constant_name, partial(_read_constant, known, kind))


def _read_device(body: Json, path: str) -> torch.device:
    if type(body) is not str or not _DEVICE.fullmatch(body):
        refuse(path, "a device such as 'cpu' or 'cuda:0'", body)
    try:
        device = torch.device(body)
    except (RuntimeError, ValueError) as error:
        refuse(path, "a device that this torch knows", body, error)
    if str(device) != body:  # an index that torch cut down to what it can hold
        refuse(path, "a device with a smaller index", body)
    return device


def _read_size(body: Json, path: str) -> torch.Size:
    sizes = integers(body, path)
    if not all(-(2**63) <= size < 2**63 for size in sizes):
        refuse(path, "integers of 64 bits", body)
    return torch.Size(sizes)


def _hint(value: object) -> str | None:
    with_state_dict = (
        torch.nn.Module,
        torch.optim.Optimizer,
        torch.optim.lr_scheduler.LRScheduler,
        torch.amp.GradScaler,
    )
    if isinstance(value, with_state_dict):
        return "Save its state_dict(), and call load_state_dict() after loading."
    if isinstance(value, torch.Generator):
        return "Save its get_state(), a tensor, and call set_state() after loading."
    if callable(getattr(type(value), "load_state_dict", None)):
        return "Save its state_dict(), and call load_state_dict() after loading."
    return None


#: torch's types other than tensors.
TORCH = Rules.of(
    [
        _constant_rule("$dtype", torch.dtype),
        _constant_rule("$layout", torch.layout),
        _constant_rule("$memory_format", torch.memory_format),
        Rule.simple("$device", torch.device, str, _read_device),
        Rule.simple("$size", torch.Size, lambda value: [*map(int, value)], _read_size),
        Rule.simple(
            "$torch_version",
            TorchVersion,
            lambda value: write_text(str(value)),
            lambda body, path: TorchVersion(text(body, path)),
        ),
    ],
    _hint,
)
#: All rules that need no registration. The rules with the most specific hints come first.
BUILTIN = TORCH + NUMPY + PLAIN
