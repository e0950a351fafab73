"""``CheckpointIO`` of Lightning for plain JSON, written at once or in the background."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import ArgumentError, FormatError, JsonckptError, quote
from ..load.api import load
from ..save.api import save, save_async
from ..save.background import PendingSave
from ..save.options import SaveOptions
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url, path_text
from .lightning_hparams import with_objects, without_objects
from .lightning_parts import CheckpointIO

#: Arguments of ``save`` that may be given to the plug-in.
_OPTIONS = (
    "encoding", "compression", "compression_level", "filter", "chunk_size", "checksum", "threads",
    "progress", "sync",
)  # fmt: skip
#: Strategies that write shards themselves, or read what the plug-in wrote with ``torch.load``.
_UNFIT = {"ModelParallelStrategy", "FSDPStrategy", "DeepSpeedStrategy", "XLAFSDPStrategy"}
#: Callers that cannot wait for a save later: SLURM restarts the job, or the plug-in is wrapped and
#: Lightning does not end it.
_AT_ONCE = {"_SignalConnector", "AsyncCheckpointIO"}
_OTHER_WAY = (
    "Save with torch.distributed.checkpoint and jsonckpt.integrations.dcp, or use "
    "DDPStrategy or SingleDeviceStrategy."
)


class JsonCheckpointIO(CheckpointIO):
    """Lightning's checkpoints as plain JSON: ``Trainer(plugins=[JsonCheckpointIO()])``.

    A checkpoint is one file under the name that Lightning gives it (``last.ckpt``), written
    atomically. ``jsonckpt.load``, ``inspect``, ``diff`` and all others read it. It holds what
    Lightning puts into a checkpoint, with all types. Pickles are neither written nor read.

    Hyper-parameters that are no plain values (functions, modules, enums that are not registered) do
    not stop a run: the file has a description of each in its place, and the first save warns, with
    the way out. A run that is resumed does not need them; :func:`load_from_checkpoint` does.

    Args:
        hparams: ``"warn"``, or ``"error"`` to refuse to save such hyper-parameters.
        storage_options: for fsspec, for URLs.
        options: ``encoding``, ``compression``, ``compression_level``, ``filter``, ``chunk_size``,
            ``checksum``, ``threads``, ``progress``, ``sync``, as for :func:`jsonckpt.save`.

    Raises:
        ArgumentError: an argument is not valid.
    """

    def __init__(
        self,
        *,
        hparams: str = "warn",
        storage_options: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> None:
        unknown = [name for name in options if name not in _OPTIONS]
        if unknown:
            raise ArgumentError(
                f"{type(self).__name__} does not take {quote(unknown[0])}",
                hint=f"It takes hparams, storage_options, {', '.join(_OPTIONS)}.",
            )
        if hparams not in ("warn", "error"):
            raise ArgumentError(f"hparams={quote(hparams)}; it may be 'warn' or 'error'")
        if SaveOptions.of(storage_options=storage_options, **options).compresses_files:
            raise ArgumentError(
                "encoding='list' with compression='zstd' compresses whole files, and Lightning "
                "names them .ckpt",
                hint="Leave one of the two out.",
            )
        super().__init__()
        self._hparams = hparams
        self._storage_options = storage_options
        self._options = options
        self._warned: set[str] = set()
        self._saved = False

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint of Lightning. Called by the trainer.

        Args:
            storage_options: for fsspec; ``None`` takes those of the plug-in.

        Raises:
            JsonckptError: as for :func:`jsonckpt.save`. What was at the path is still there.
        """
        self._write(save, checkpoint, path, storage_options)

    def _write(
        self,
        write: Any,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None,
    ) -> Any:
        if name := _unfit_caller():
            raise unfit_error(name, type(self).__name__)
        state, lost = without_objects(checkpoint)
        self._tell(lost)
        self._saved = True
        given = self._storage_options if storage_options is None else storage_options
        return write(state, path, single_file=True, storage_options=given, **self._options)

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Load a checkpoint. Called by the trainer.

        Args:
            map_location: as for :func:`jsonckpt.load`; ``None`` is the CPU, from where the trainer
                copies to its devices.
            weights_only: has no effect: nothing is unpickled.

        Raises:
            JsonckptError: as for :func:`jsonckpt.load`.
        """
        del weights_only
        where = "cpu" if map_location is None else map_location
        state: dict[str, Any] = load(path, where, storage_options=self._storage_options)
        if not isinstance(state, dict):
            raise FormatError("not a checkpoint of Lightning: it is no object", file=path)
        with_objects(state)
        return state

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint, if it is there. Called by the trainer.

        Raises:
            WriteError: the system refused.
        """
        text = path_text(path)
        if is_url(text):
            from ..storage.remote import filesystem

            requests, inside = filesystem(text, self._storage_options)
            fs = requests.fs
            with writing(text, remote=True):
                fs.invalidate_cache()
                if fs.exists(inside):
                    fs.rm(inside, recursive=True)
            return
        with writing(text), suppress(FileNotFoundError):
            if os.path.isdir(text) and not os.path.islink(text):
                shutil.rmtree(text)
            else:
                os.unlink(text)

    def teardown(self) -> None:
        """Called by the trainer at its end. Warns if the strategy has passed the plug-in over."""
        if (name := _unfit_caller()) and not self._saved:
            warnings.warn(
                f"{name} does not use {type(self).__name__}: checkpoints of this run, if any, are "
                f"not JSON. {_OTHER_WAY}",
                stacklevel=2,
            )

    def _tell(self, lost: Mapping[str, str]) -> None:
        """Say once what is not saved."""
        if lost and self._hparams == "error":
            place, description = next(iter(lost.items()))
            raise ArgumentError(
                f"the hyper-parameter {quote(place)} is {description}: no value of plain JSON",
                hint=_way_out(place),
            )
        new = {place: text for place, text in lost.items() if place not in self._warned}
        self._warned.update(new)
        for place, description in new.items():
            warnings.warn(
                f"the hyper-parameter {quote(place)} is not saved: it is {description}, and plain "
                f"JSON cannot hold that. {_way_out(place)}",
                stacklevel=4,
            )


class AsyncJsonCheckpointIO(JsonCheckpointIO):
    """:class:`JsonCheckpointIO` that writes in the background, with :func:`jsonckpt.save_async`.

    A save takes as long as a copy of the tensors. Tied weights stay tied, and the copy of the last
    save is used again. An old checkpoint is removed after the new one is written, never before:
    when the next save begins, and at the end of the run. The error of a save is raised by the next
    one, or at the end of the run; what should have been removed then stays.

    Only a run that trains is not held up. What is saved before or after ``fit``, after an error, or
    when SLURM is about to restart the job, is on the disk when ``trainer.save_checkpoint`` returns.

    Args:
        hparams, storage_options, options: as for :class:`JsonCheckpointIO`; ``threads`` is 1.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._pending: PendingSave[Any] | None = None
        self._to_remove: list[str | os.PathLike[str]] = []

    def __getstate__(self) -> dict[str, Any]:
        # A strategy that starts processes sends the plug-in to them.
        return {**vars(self), "_pending": None, "_to_remove": []}

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | os.PathLike[str],
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        """Copy a checkpoint of Lightning, and write it in the background.

        Raises:
            JsonckptError: the last save failed, or this one cannot begin.
        """
        self.finish()
        self._pending = self._write(save_async, checkpoint, path, storage_options)
        if _is_wanted_now():
            self.finish()

    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Any = "cpu",
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """As :meth:`JsonCheckpointIO.load_checkpoint`, after the save under way."""
        self.finish()
        return super().load_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Remove a checkpoint once the save under way is written."""
        self._to_remove.append(path)
        if self._pending is None or self._pending.done():
            self.finish()

    def teardown(self) -> None:
        """Wait for the last save. Called by the trainer at its end."""
        self.finish()
        super().teardown()

    def finish(self) -> None:
        """Wait for the save under way, then remove what it replaces.

        Raises:
            JsonckptError: the save failed. Nothing was removed.
        """
        pending, self._pending = self._pending, None
        old, self._to_remove = self._to_remove, []
        if pending is not None:
            pending.result()
        for path in old:
            super().remove_checkpoint(path)


def _way_out(place: str) -> str:
    name = place.split("/")[2] if place.count("/") > 1 else "…"
    return (
        f"Pass it again: load_from_checkpoint(cls, path, {name}=…). Classes and enums can be saved "
        "after jsonckpt.register(cls); self.save_hyperparameters(ignore=[…]) leaves it out."
    )


def unfit(strategy: object) -> str | None:
    """The name of a strategy whose checkpoints cannot be the plug-in's; ``None`` for others."""
    return next((base.__name__ for base in type(strategy).__mro__ if base.__name__ in _UNFIT), None)


def unfit_error(strategy: str, plugin: str) -> JsonckptError:
    """The error for such a strategy."""
    return JsonckptError(
        f"{strategy} does not work with {plugin}: it writes shards of its own, and reads what the "
        "plug-in writes with torch.load",
        hint=_OTHER_WAY,
    )


def _unfit_caller() -> str | None:
    """The strategy that called the plug-in, if it is such a one.

    Lightning does not tell a plug-in its strategy, and does not check it either.
    """
    found = (unfit(names.get("self")) for names in _callers())
    return next((name for name in found if name), None)


def _is_wanted_now() -> bool:
    """Whether the caller needs the file at once, or is in the background itself."""
    for names in _callers():
        owner = names.get("self")
        if type(owner).__name__ in _AT_ONCE:
            return True
        for one in (owner, names.get("trainer")):
            if any(base.__name__ == "Trainer" for base in type(one).__mro__):
                state = one.state  # type: ignore[union-attr]
                if state.fn != "fit" or state.status != "running":
                    return True
    return False


def _callers() -> list[Mapping[str, Any]]:
    """The variables of the functions that called the plug-in, the nearest first."""
    found: list[Mapping[str, Any]] = []
    frame = sys._getframe(2).f_back
    while frame is not None and len(found) < 6:
        found.append(frame.f_locals)
        frame = frame.f_back
    return found
