"""The devices of loaded tensors: the meaning of ``map_location``, as in ``torch.load``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..errors import ArgumentError, FormatError, JsonckptError, quote
from .memory import strided

Relocate = Callable[[torch.UntypedStorage, str], Any]
MapLocation = str | torch.device | Mapping[Any, Any] | Relocate | None
# torch keeps the index of a device in one signed byte, and larger ones wrap around.
_DEVICE = re.compile(r"[a-z]{1,32}(:(\d{1,2}|1[01]\d|12[0-7]))?")
_WAY_OUT = "Pass map_location='cpu' to load on the CPU, or another device that exists here."


def placement(map_location: MapLocation) -> Placement:
    """The meaning of ``map_location``.

    Args:
        map_location: ``None`` (each tensor goes to the device that it was saved on), a device or
            its name (all tensors go there), a mapping from saved to new devices (other tensors go
            to the saved one), or a callable ``(storage, saved) -> storage or None`` that takes a
            tensor's storage on the CPU and moves it (``None``: to the saved device).

    Raises:
        ArgumentError: something else, or a device that this machine does not have. For a device it
            is also a RuntimeError, as in torch. (A mapping may name devices that no tensor needs.)

    >>> placement({"cuda:0": "cpu"}).device_for("cuda:0")
    device(type='cpu')
    """
    if map_location is None:
        return Placement()
    if isinstance(map_location, str | torch.device):
        device = _device(map_location)
        _require(device)
        return Placement(everywhere=device)
    if isinstance(map_location, Mapping):
        return Placement({str(saved): _device(new) for saved, new in map_location.items()})
    if callable(map_location):
        return Placement(move=map_location)
    raise ArgumentError(
        f"map_location is a {type(map_location).__name__}",
        hint="Pass None, a device, a mapping of devices, or a callable.",
    )


class NoDeviceError(ArgumentError, RuntimeError):
    """What is not a device, or not here: torch raises a RuntimeError for it."""


def _device(named: object) -> torch.device:
    """A device of the argument ``map_location``."""
    if isinstance(named, torch.device):
        return named
    if not isinstance(named, str):
        raise ArgumentError(
            f"map_location names {quote(named)} as a device",
            hint="Name devices as 'cpu' or 'cuda:0', or pass torch.device(...).",
        )
    try:
        # torch accepts an index that is too large: it wraps around.
        device = torch.device(named) if _DEVICE.fullmatch(named) else None
        reason = ""
    except RuntimeError as error:
        device, reason = None, f" ({str(error).partition(chr(10))[0][:200]})"
    if device is None:
        raise NoDeviceError(
            f"map_location is {quote(named)}, which is not a device{reason}",
            hint="Name devices as 'cpu' or 'cuda:0'.",
        )
    return device


def _require(device: torch.device) -> None:
    """Check that a device of the argument ``map_location`` is here."""
    lack = _lack(device)
    if lack is not None:
        raise NoDeviceError(
            f"map_location is {quote(str(device))}, but {lack}",
            hint=_WAY_OUT,
        )


@dataclass(frozen=True, slots=True)
class Placement:
    """The meaning of a ``map_location``, made by :func:`placement`. At most one member is set."""

    table: Mapping[str, torch.device] = field(default_factory=dict)
    everywhere: torch.device | None = None
    move: Relocate | None = None

    def device_for(self, saved: str) -> torch.device:
        """The device for a tensor that was saved on the device ``saved``.

        Raises:
            FormatError: ``saved`` is not a device.
            JsonckptError: the tensor goes to a device that this machine does not have.
        """
        if self.everywhere is not None:
            return self.everywhere
        if self.move is not None:
            return torch.device("cpu")
        mapped = self.table.get(saved)
        if mapped is None:
            return _existing_device(saved)
        _require(mapped)
        return mapped

    @property
    def relocates(self) -> bool:
        """Whether a callable moves each tensor."""
        return self.move is not None

    def relocate(self, tensor: torch.Tensor, saved: str) -> torch.Tensor:
        """A loaded tensor after the callable moved it; the same tensor when there is no callable.

        Args:
            tensor: dense, at the start of its own storage.
            saved: the device that it was saved on.

        Raises:
            ArgumentError: the callable returned something that cannot hold the tensor.
        """
        if self.move is None:
            return tensor
        storage = tensor.untyped_storage()
        moved = self.move(storage, saved)
        if moved is None:
            return tensor.to(_existing_device(saved))
        if not isinstance(moved, torch.UntypedStorage):
            raise ArgumentError(
                f"map_location returned {quote(type(moved).__name__)}, expected a storage or None",
                hint="Return storage, storage.cuda() or None; a device is passed without a "
                "callable.",
            )
        if moved is storage:
            return tensor
        if moved.nbytes() < tensor.nbytes:
            raise ArgumentError(
                f"map_location returned a storage of {moved.nbytes()} bytes "
                f"for a tensor of {tensor.nbytes}",
                hint="Return the storage itself, or all of it on another device.",
            )
        return strided(moved, tensor.dtype, 0, tensor.shape, tensor.stride())


def _existing_device(saved: str) -> torch.device:
    """The device that a file calls ``saved``."""
    if not _DEVICE.fullmatch(saved):
        raise FormatError(f"{quote(saved)} is not a device")
    try:
        device = torch.device(saved)
    except RuntimeError as error:
        raise FormatError(f"{quote(saved)} is not a device") from error
    if device.type == "meta":
        raise FormatError("a tensor cannot have been saved on the meta device: it has no data")
    lack = _lack(device)
    if lack is not None:
        raise JsonckptError(f"the tensor was saved on {saved}, but {lack}", hint=_WAY_OUT)
    return device


def _lack(device: torch.device) -> str | None:
    """Why a device is not here; ``None`` if it is. Sets up no device that is there."""
    if device.type in ("cpu", "meta"):
        return None
    try:
        module: Any = torch.get_device_module(device.type)
    except RuntimeError:
        # torch was built without it, or a package brings it in another way.
        try:
            torch.empty(0, device=device)
        except Exception:
            return f"this torch has no device {device.type}"
        return None
    count = module.device_count()
    is_available = getattr(module, "is_available", lambda: count > 0)
    if not is_available():
        return f"torch.{device.type}.is_available() is False"
    if device.index is not None and device.index >= count:
        plural = "one such device" if count == 1 else f"{count} such devices"
        return f"there {'is' if count == 1 else 'are'} {plural}"
    return None
