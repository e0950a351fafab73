"""``load_from_checkpoint``: a module or data module of Lightning from plain JSON."""

from __future__ import annotations

import inspect
import os
import warnings
from collections.abc import Mapping
from typing import Any, TypeVar

import torch

from ..errors import ArgumentError, FormatError, StateMismatchError, full_name, quote
from ..load.api import load
from .lightning_hparams import lost_names, with_objects
from .lightning_parts import LightningDataModule, LightningModule, part

_Module = TypeVar("_Module")


def load_from_checkpoint(
    cls: type[_Module],
    path: str | os.PathLike[str],
    map_location: Any = None,
    hparams_file: str | os.PathLike[str] | None = None,
    strict: bool | None = None,
    weights_only: bool | None = None,
    *,
    storage_options: Mapping[str, Any] | None = None,
    **hparams: Any,
) -> _Module:
    """What ``cls.load_from_checkpoint(path, …)`` is for torch's files.

    Lightning's own method reads with ``torch.load`` only, whatever the plug-in.

    Args:
        cls: a ``LightningModule`` or a ``LightningDataModule``.
        map_location: as for :func:`jsonckpt.load`; ``None`` is the CPU.
        hparams_file: a ``.yaml`` or ``.csv`` with hyper-parameters that replace the saved ones.
        strict: whether the names of the weights must be equal; ``None``: as the module says.
        weights_only: has no effect: nothing is unpickled.
        storage_options: for fsspec, for URLs.
        hparams: arguments of the constructor. They replace saved hyper-parameters.

    Returns:
        the module, on the device of its weights.

    Raises:
        ArgumentError: ``cls`` is neither, or a hyper-parameter that was not saved is needed and
            not given.
        JsonckptError: as for :func:`jsonckpt.load`.
    """
    del weights_only
    if not (isinstance(cls, type) and issubclass(cls, (LightningModule, LightningDataModule))):
        raise ArgumentError(
            f"cls is {quote(cls)}, not a LightningModule or a LightningDataModule",
            hint="The order is load_from_checkpoint(cls, path).",
        )
    kind: Any = cls
    where = "cpu" if map_location is None else map_location
    checkpoint = load(path, where, storage_options=storage_options)
    is_module = issubclass(kind, LightningModule)
    if not isinstance(checkpoint, dict) or (is_module and "state_dict" not in checkpoint):
        raise FormatError(
            "not a checkpoint of Lightning: it has no state_dict",
            file=path,
            hint="jsonckpt.load_into(model, path) fills a module from other checkpoints.",
        )
    for place, expected in (("state_dict", is_module), (kind.CHECKPOINT_HYPER_PARAMS_KEY, True)):
        if expected and not isinstance(checkpoint.get(place, {}), Mapping):
            raise FormatError(f"not a checkpoint of Lightning: {place} is no object", file=path)
    lost = lost_names(with_objects(checkpoint), kind.CHECKPOINT_HYPER_PARAMS_KEY)
    _prepare(kind, checkpoint, lost, hparams_file, hparams, path)
    try:
        made = part("core.saving")._load_state(
            kind, checkpoint, **({"strict": strict} if is_module else {}), **hparams
        )
    except RuntimeError as error:
        if is_module and "state_dict" in str(error):
            raise StateMismatchError(
                f"the weights do not fit {full_name(kind)}: {error}", file=path
            ) from error
        raise
    if is_module:
        weights = (one for one in checkpoint["state_dict"].values() if torch.is_tensor(one))
        made = made.to(next(weights, torch.empty(0)).device)
    result: _Module = made
    return result


def _prepare(
    kind: Any,
    checkpoint: dict[str, Any],
    lost: Mapping[str, str],
    hparams_file: str | os.PathLike[str] | None,
    given: Mapping[str, Any],
    path: str | os.PathLike[str],
) -> None:
    """Put the hyper-parameters that the constructor gets into the checkpoint.

    Raises:
        ArgumentError: one that is needed was not saved.
    """
    place = kind.CHECKPOINT_HYPER_PARAMS_KEY
    if hparams_file is not None:
        checkpoint[place] = _from_file(hparams_file)
        checkpoint.pop(kind.CHECKPOINT_HYPER_PARAMS_TYPE, None)
        lost = {}
    saved = checkpoint.setdefault(place, {})
    lost = {name: text for name, text in lost.items() if name not in given}
    for name in lost:
        saved.pop(name, None)
    whole = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_NAME)  # one argument takes all of them
    parameters = inspect.signature(kind.__init__).parameters
    for name, description in lost.items():
        known = parameters.get(name)
        text = f"the hyper-parameter {quote(name)} was not saved: it was {description}"
        way_out = f"Pass it: load_from_checkpoint({kind.__name__}, path, {name}=…)."
        if known is not None and known.default is known.empty and whole not in parameters:
            raise ArgumentError(text, file=path, hint=way_out)
        warnings.warn(f"{text}, and is left out. {way_out}", stacklevel=3)
    saved.update(given)


def _from_file(hparams_file: str | os.PathLike[str]) -> Any:
    saving = part("core.saving")
    ending = os.path.splitext(os.fspath(hparams_file))[1].lower()
    if ending == ".csv":
        return saving.load_hparams_from_tags_csv(hparams_file)
    if ending in (".yml", ".yaml"):
        return saving.load_hparams_from_yaml(hparams_file)
    raise ArgumentError(
        f"hparams_file is {quote(os.fspath(hparams_file))}; it may be a .csv, .yml or .yaml"
    )
