"""Rules for what torch has beside tensors: dtypes, devices, sizes, layouts (section 6.2).

Names are looked up only in tables that are built here from torch's own constants.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch.torch_version import TorchVersion

from ..format.json_text import Json
from .checks import integers, refuse, text
from .numpy_types import NUMPY
from .python_types import PLAIN, write_text
from .tree import Decoder, Rules, Writer

_DEVICE = re.compile(r"[a-z][a-z0-9]{0,31}(:(0|[1-9]\d{0,4}))?", re.ASCII)


def _constants(kind: type) -> dict[str, Any]:
    """torch's constants of a type by the name that they print, aliases left out."""
    found = [value for value in vars(torch).values() if type(value) is kind]
    return {str(value).removeprefix("torch."): value for value in found}


def _constant_writer(tag: str) -> Writer:
    def write(value: object, *_: object) -> Json:
        return {tag: str(value).removeprefix("torch.")}

    return write


def _constant_reader(kind: type) -> Callable[[Json, Decoder, str], Any]:
    known = _constants(kind)

    def read(body: Json, _: Decoder, place: str) -> Any:
        if type(body) is not str or body not in known:
            refuse(place, f"the name of a {kind.__name__} that this torch has", body)
        return known[body]

    return read


def _write_device(value: torch.device, *_: object) -> Json:
    return {"$device": str(value)}


def _read_device(body: Json, _: Decoder, place: str) -> torch.device:
    if type(body) is not str or not _DEVICE.fullmatch(body):
        refuse(place, "a device such as 'cpu' or 'cuda:0'", body)
    try:
        device = torch.device(body)
    except (RuntimeError, ValueError) as error:
        refuse(place, "a device that this torch knows", body, error)
    if str(device) != body:  # an index that torch cut down to what it can hold
        refuse(place, "a device with a smaller index", body)
    return device


def _write_size(value: torch.Size, *_: object) -> Json:
    return {"$size": [int(size) for size in value]}


def _read_size(body: Json, _: Decoder, place: str) -> torch.Size:
    sizes = integers(body, place)
    if not all(-(2**63) <= size < 2**63 for size in sizes):
        refuse(place, "integers of 64 bits", body)
    return torch.Size(sizes)


def _write_version(value: TorchVersion, *_: object) -> Json:
    return {"$torch_version": write_text(str(value))}


def _read_version(body: Json, _: Decoder, place: str) -> TorchVersion:
    return TorchVersion(text(body, place))


def _hint(value: object) -> str | None:
    if isinstance(value, torch.nn.Module | torch.optim.Optimizer):
        return "Save its state_dict(), and call load_state_dict() after loading."
    if isinstance(value, torch.optim.lr_scheduler.LRScheduler | torch.amp.GradScaler):
        return "Save its state_dict(), and call load_state_dict() after loading."
    if isinstance(value, torch.Generator):
        return "Save its get_state(), a tensor, and call set_state() after loading."
    return None


#: The rules of this room.
TORCH = Rules(
    writers={
        torch.dtype: _constant_writer("$dtype"),
        torch.layout: _constant_writer("$layout"),
        torch.memory_format: _constant_writer("$memory_format"),
        torch.device: _write_device,
        torch.Size: _write_size,
        TorchVersion: _write_version,
    },
    readers={
        "$dtype": _constant_reader(torch.dtype),
        "$layout": _constant_reader(torch.layout),
        "$memory_format": _constant_reader(torch.memory_format),
        "$device": _read_device,
        "$size": _read_size,
        "$torch_version": _read_version,
    },
    hints=(_hint,),
)
#: All rules that need no registration. The hints that know most come first.
BUILTIN = TORCH + NUMPY + PLAIN
