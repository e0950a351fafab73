"""``torch.save`` and ``torch.load`` over plain JSON: their arguments in their order."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from ..errors import ArgumentError, listed
from ..load.api import load as load_checkpoint
from ..save.api import save as save_checkpoint
from ..storage.file_objects import is_file_object
from ..tensors.map_location import MapLocation

#: Arguments of ``torch.save`` that say how the zip file is written. Here there is none.
_ZIP_ARGUMENTS = ("_use_new_zipfile_serialization", "_disable_byteorder_record")
#: What torch's ``load`` passes on to the unpickler.
_UNPICKLING = ("encoding", "errors", "fix_imports", "buffers")
_NO_PICKLE = "Leave it out: jsonckpt writes no pickle, and reads none."


def save(
    obj: object,
    f: str | os.PathLike[str] | Any,
    pickle_module: None = None,
    pickle_protocol: int | None = None,
    **options: Any,
) -> None:
    """``torch.save(obj, f)``, but the file is a JSON checkpoint. It is replaced in one step.

    Args:
        obj: what :func:`jsonckpt.save` takes: nested dicts, lists, tensors, numbers, ….
        f: a path of any name (``model.pt``), which becomes one file, or a binary file object.
        pickle_module: ``None``; anything else is refused.
        pickle_protocol: ignored. So are the arguments about torch's zip file.
        options: keyword arguments of :func:`jsonckpt.save`, such as ``compression="zstd"``.

    Raises:
        ArgumentError: ``pickle_module`` is given, or an argument that neither function has.
        UnsupportedTypeError: a value that no rule covers, such as a whole module. Save its
            ``state_dict()``.
        WriteError: the system refused. What was at the path before is untouched.

    >>> import os, tempfile, torch
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     save({"w": torch.ones(2)}, directory + "/model.pt")
    ...     load(directory + "/model.pt"), os.path.isfile(directory + "/model.pt")
    ({'w': tensor([1., 1.])}, True)
    """
    del pickle_protocol
    _no_pickle_module(pickle_module)
    for name in _ZIP_ARGUMENTS:
        options.pop(name, None)
    if not is_file_object(f, "write"):
        options.setdefault("single_file", True)
    _known("save", options, save_checkpoint)
    save_checkpoint(obj, f, **options)


def load(
    f: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    pickle_module: None = None,
    *,
    weights_only: bool | None = None,
    mmap: bool | None = None,
    **options: Any,
) -> Any:
    """``torch.load(f)`` for what :func:`save` wrote, and for any other checkpoint of jsonckpt.

    Args:
        f: a path of any name, also a directory that :func:`jsonckpt.save` wrote, or a binary file
            object.
        map_location: as in ``torch.load``.
        pickle_module: ``None``; anything else is refused.
        weights_only: ``None`` or ``True``. ``False`` is refused, because nothing is unpickled.
        mmap: accepted for paths. The tensors are read, not mapped; no second copy is made.
        options: keyword arguments of :func:`jsonckpt.load`, such as ``include="/model/*"``.

    Raises:
        ArgumentError: an argument asks for unpickling, or neither function has it.
        FormatError: the file is none of jsonckpt. Of a real ``.pt`` file the message says how it is
            converted.
        JsonckptError: as for :func:`jsonckpt.load`.
    """
    _no_pickle_module(pickle_module)
    pickled = [name for name in _UNPICKLING if name in options]
    if pickled:
        raise ArgumentError(f"{listed(pickled, 5)} tells torch how to unpickle", hint=_NO_PICKLE)
    if mmap and is_file_object(f, "readinto", "read"):
        raise ArgumentError("mmap=True needs a path, and f is a file object")
    _known("load", options, load_checkpoint)
    return load_checkpoint(f, map_location, weights_only=weights_only, **options)


def _known(name: str, options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    unknown = sorted(set(options) - set(inspect.signature(function).parameters))
    if unknown:
        raise ArgumentError(f"neither torch.{name} nor jsonckpt.{name} has {listed(unknown, 5)}")


def _no_pickle_module(module: object) -> None:
    if module is not None:
        raise ArgumentError("pickle_module is given", hint=_NO_PICKLE)
