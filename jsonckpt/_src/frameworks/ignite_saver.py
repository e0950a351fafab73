"""``JsonSaver``: what Ignite's ``Checkpoint`` writes, as plain JSON; and its way back."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.handlers import Checkpoint
from ignite.handlers.checkpoint import BaseSaveHandler

from ..errors import ArgumentError, CheckpointExistsError, FormatError, StateMismatchError, quote
from ..load.api import load
from ..save.api import save
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url, path_text
from ..training.optimizer import restore_optimizer
from .save_options import check_options

#: Arguments of ``save`` that the saver decides.
_OWN = ("single_file", "metadata", "overwrite", "delete_first", "storage_options")
_Base: Any = BaseSaveHandler
_Checkpoint: Any = Checkpoint


class JsonSaver(_Base):
    """``Checkpoint(to_save, JsonSaver("run"), …)``: each checkpoint is one file ``NAME.json``.

    Ignite names its files ``checkpoint_300.pt``; the ending becomes ``.json``. The text that Ignite
    gives with a checkpoint (name of the score, priority) is its metadata. Ignite removes the oldest
    checkpoint before it saves the next: here it is removed when the new one is written.

    Args:
        dirname: the directory, which is made if it does not exist; a local path.
        require_empty: refuse a directory with ``.json`` files in it, as ``DiskSaver`` does.
        save_on_rank: the rank that writes.
        options: as for :func:`jsonckpt.save`.

    Raises:
        CheckpointExistsError: there are checkpoints already.
        ArgumentError: an argument is not valid.
    """

    def __init__(
        self,
        dirname: str | os.PathLike[str],
        *,
        require_empty: bool = True,
        save_on_rank: int = 0,
        **options: Any,
    ) -> None:
        text = path_text(dirname, "dirname")
        if is_url(text):
            raise ArgumentError("dirname is a URL, and JsonSaver writes to local paths only")
        check_options(options, "JsonSaver", own=_OWN)
        self.dirname = Path(text).expanduser()
        self.save_on_rank = save_on_rank
        self.last_checkpoint: Path | None = None
        self._options = options
        self._to_remove: list[Path] = []
        if require_empty and self._writes and self.dirname.is_dir():
            there = sorted(self.dirname.glob("*.json"))
            if there:
                raise CheckpointExistsError(
                    f"there are files already, such as {quote(there[0].name)}",
                    file=self.dirname,
                    hint="Choose another directory, or pass require_empty=False.",
                )

    @property
    def _writes(self) -> bool:
        return bool(idist.get_rank() == self.save_on_rank)

    def path(self, filename: str) -> Path:
        """Where the checkpoint is that Ignite calls ``filename``.

        Raises:
            ArgumentError: that is outside of the directory.
        """
        text = path_text(filename, "filename")
        if os.path.isabs(text) or ".." in Path(text).parts:
            raise ArgumentError(f"filename {quote(text, 200)} leads out of {self.dirname}")
        return self.dirname / (filename.removesuffix(".pt").removesuffix(".json") + ".json")

    def __call__(
        self,
        checkpoint: Mapping[str, Any],
        filename: str,
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Save a checkpoint, then remove what it replaces. Called by Ignite.

        Raises:
            JsonckptError: as for :func:`jsonckpt.save`. Nothing was removed.
        """
        if not self._writes:
            return
        path = self.path(filename)
        about = {name: _plain(value) for name, value in (metadata or {}).items()}
        save(checkpoint, path, metadata=about, **self._options)
        self.last_checkpoint = path
        old, self._to_remove = self._to_remove, []
        for one in old:
            if one != path:
                with writing(one), suppress(FileNotFoundError):
                    one.unlink()

    def remove(self, filename: str) -> None:
        """Remove a checkpoint when the next one is written. Called by Ignite."""
        if self._writes:
            self._to_remove.append(self.path(filename))


def _plain(value: Any) -> Any:
    """A number of any library as a plain one: a score may be NumPy's."""
    return value.item() if hasattr(value, "item") else value


def load_objects(
    to_load: Mapping[str, Any],
    path: str | os.PathLike[str],
    map_location: Any = "cpu",
    *,
    storage_options: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> None:
    """``Checkpoint.load_objects`` from a checkpoint of plain JSON.

    Optimizers are restored as by :func:`jsonckpt.training.restore_optimizer`: their state keeps
    the dtype with which it was saved, and that of another kind of optimizer is refused.

    Args:
        to_load: the objects, by the names that they had in ``to_save``.
        path: such as ``saver.last_checkpoint``, or ``jsonckpt.training.latest("run")``.
        map_location: as for :func:`jsonckpt.load`.
        storage_options: for fsspec, for URLs.
        arguments: for ``load_state_dict`` of modules, such as ``strict=False``.

    Raises:
        ArgumentError: ``to_load`` is no dictionary of objects with ``load_state_dict``.
        StateMismatchError: an optimizer does not fit: nothing but other optimizers was changed. Or
            another object refused its state: those before it have theirs.
        JsonckptError: as for :func:`jsonckpt.load`.
    """
    if not isinstance(to_load, Mapping) or not all(
        hasattr(one, "load_state_dict") for one in to_load.values()
    ):
        raise ArgumentError("to_load must be a dictionary of objects that have load_state_dict")
    state = load(path, map_location, storage_options=storage_options)
    if not isinstance(state, dict):
        raise FormatError("not a checkpoint of Ignite: it is no object", file=path)
    optimizers = {
        name: one
        for name, one in to_load.items()
        if isinstance(one, torch.optim.Optimizer) and name in state
    }
    for name, one in optimizers.items():
        restore_optimizer(one, state[name])
    rest = {name: one for name, one in to_load.items() if name not in optimizers}
    if not rest:
        return
    try:
        _Checkpoint.load_objects(rest, state, **arguments)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise StateMismatchError(
            f"the checkpoint does not fit the objects: {type(error).__name__}: {error}", file=path
        ) from error
