"""Where a loaded tensor goes: the meaning of ``map_location``, as in ``torch.load``."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..errors import ArgumentError, FormatError, JsonckptError, quote
from .memory import strided

Relocate = Callable[[torch.UntypedStorage, str], Any]
MapLocation = str | torch.device | Mapping[Any, Any] | Relocate | None
# torch keeps a device's number in one signed byte and lets larger ones wrap around.
_DEVICE = re.compile(r"[a-z]{1,32}(:(\d{1,2}|1[01]\d|12[0-7]))?")


def placement(map_location: MapLocation) -> Placement:
    """The meaning of ``map_location``.

    Args:
        map_location: ``None`` (each tensor back to the device that it was saved on), a device
            or its name (all there), a mapping from saved to new devices (others stay), or a
            callable ``(storage, saved) -> storage or None`` that gets the tensor's memory on the
            CPU and returns where it shall be (``None``: back to the saved device).

    Raises:
        ArgumentError: something else; of a string that is no device also a RuntimeError, as
            torch's own.

    >>> placement({"cuda:0": "cpu"}).device_for("cuda:0")
    device(type='cpu')
    """
    if map_location is None:
        return Placement({}, None, None)
    if isinstance(map_location, str | torch.device):
        return Placement({}, _device(map_location), None)
    if isinstance(map_location, Mapping):
        table = {str(saved): _device(new) for saved, new in map_location.items()}
        return Placement(table, None, None)
    if callable(map_location):
        return Placement({}, None, map_location)
    raise ArgumentError(
        f"map_location is a {type(map_location).__name__}",
        hint="Pass None, a device, a mapping of devices, or a callable.",
    )


class _NoDeviceError(ArgumentError, RuntimeError):
    """A text that names no device, which torch answers with a RuntimeError."""


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
        # torch lets numbers that are too large wrap around.
        device = torch.device(named) if _DEVICE.fullmatch(named) else None
        reason = ""
    except RuntimeError as error:
        device, reason = None, f" ({str(error).partition(chr(10))[0][:200]})"
    if device is None:
        raise _NoDeviceError(
            f"map_location is {quote(named)}, which is no device{reason}",
            hint="Name devices as 'cpu' or 'cuda:0'.",
        )
    return device


class Placement:
    """Made by :func:`placement`."""

    __slots__ = ("_everywhere", "_relocate", "_table")

    def __init__(
        self,
        table: Mapping[str, torch.device],
        everywhere: torch.device | None,
        relocate: Relocate | None,
    ) -> None:
        self._table = table
        self._everywhere = everywhere
        self._relocate = relocate

    def device_for(self, saved: str) -> torch.device:
        """The device to load a tensor to that was saved on ``saved``.

        Raises:
            FormatError: ``saved`` is no device.
            JsonckptError: ``saved`` is where it would go, and this machine has no such device.
        """
        if self._everywhere is not None:
            return self._everywhere
        if self._relocate is not None:
            return torch.device("cpu")
        mapped = self._table.get(saved)
        return _existing_device(saved) if mapped is None else mapped

    @property
    def relocates(self) -> bool:
        """Whether a callable moves each tensor by itself."""
        return self._relocate is not None

    def relocate(self, tensor: torch.Tensor, saved: str) -> torch.Tensor:
        """The loaded tensor where a callable wants it; the same tensor when there is no callable.

        Args:
            tensor: dense, from the start of its own storage.
            saved: the device that it was saved on.

        Raises:
            JsonckptError: the callable returned something that cannot hold the tensor.
        """
        if self._relocate is None:
            return tensor
        storage = tensor.untyped_storage()
        moved = self._relocate(storage, saved)
        if moved is None:
            return tensor.to(_existing_device(saved))
        if not isinstance(moved, torch.UntypedStorage):
            raise JsonckptError(
                f"map_location returned a {type(moved).__name__}, expected a storage or None"
            )
        if moved is storage:
            return tensor
        if moved.nbytes() < tensor.nbytes:
            raise JsonckptError(
                f"map_location returned a storage of {moved.nbytes()} bytes "
                f"for a tensor of {tensor.nbytes}"
            )
        return strided(moved, tensor.dtype, 0, tensor.shape, tensor.stride())


def _existing_device(saved: str) -> torch.device:
    """The device called ``saved`` in a file, if this machine has it."""
    if not _DEVICE.fullmatch(saved):
        raise FormatError(f"{quote(saved)} is not a device")
    try:
        device = torch.device(saved)
    except RuntimeError as error:
        raise FormatError(f"{quote(saved)} is not a device") from error
    if device.type == "cpu":
        return device
    if device.type == "meta":
        raise FormatError("a tensor cannot have been saved on the meta device: it has no data")
    try:
        module: Any = torch.get_device_module(device.type)
    except RuntimeError:  # torch was built without it
        module = None
    way_out = "Pass map_location='cpu', or another device that exists here."
    if module is None or not module.is_available():
        raise JsonckptError(
            f"the tensor was saved on {saved}, but torch.{device.type}.is_available() is False",
            hint=way_out,
        )
    if device.index is not None and device.index >= module.device_count():
        raise JsonckptError(
            f"the tensor was saved on {saved}, but there are {module.device_count()} such devices",
            hint=way_out,
        )
    return device
