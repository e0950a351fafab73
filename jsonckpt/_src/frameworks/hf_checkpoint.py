"""A ``checkpoint-N`` directory of the Hugging Face Trainer whose training state is plain JSON.

The directory is the Trainer's. Its subdirectory ``jsonckpt`` is a checkpoint of this package, and
is written last: weights, optimizer, schedule, scaler, random states and arguments, in one commit.
"""

from __future__ import annotations

import json
import os
import re
import stat
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import CheckpointNotFoundError, FormatError, IncompleteCheckpointError, JsonckptError
from ..find.look import FoundCheckpoint, check_text, problem_of
from ..load.api import load
from ..load_into.api import load_into
from ..storage.os_errors import read_error
from ..storage.path_arguments import path_text

#: The subdirectory that holds the training state.
SUBDIRECTORY = "jsonckpt"
#: The Trainer's own counters and logs.
TRAINER_STATE = "trainer_state.json"
#: One of these is in each checkpoint that the Trainer itself wrote.
_WEIGHTS = re.compile(
    r"(model|adapter_model|pytorch_model)[\w.-]*\.(safetensors|bin)(\.index\.json)?"
)
#: A longer text of counters and logs is none.
_MOST_BYTES = 256 << 20
_NAME = re.compile(r"checkpoint-(\d{1,18})")


def state_directory(checkpoint: str | os.PathLike[str]) -> Path:
    """Where the training state of a ``checkpoint-N`` is."""
    return Path(checkpoint) / SUBDIRECTORY


def has_json(checkpoint: str | os.PathLike[str] | None) -> bool:
    """Whether a ``checkpoint-N`` has its training state as JSON."""
    return checkpoint is not None and state_directory(checkpoint).is_dir()


def check_checkpoint(checkpoint: str | os.PathLike[str]) -> None:
    """Check that a ``checkpoint-N`` is whole. No tensor is read.

    Raises:
        JsonckptError: what is missing or damaged.
    """
    directory = Path(checkpoint)
    if not directory.is_dir():
        raise CheckpointNotFoundError("there is no such checkpoint", file=directory)
    if not _is_object(directory / TRAINER_STATE):
        raise IncompleteCheckpointError(
            f"{TRAINER_STATE} is missing or not whole",
            file=directory,
            hint="The save was interrupted: resume from the checkpoint before it.",
        )
    if has_json(directory):
        check_text(FoundCheckpoint(state_directory(directory), "directory", True), None)
    elif not any(_WEIGHTS.fullmatch(path.name) for path in directory.rglob("*")):
        raise IncompleteCheckpointError(
            f"neither {SUBDIRECTORY}/ nor weights of Hugging Face are in it",
            file=directory,
            hint="The save was interrupted: resume from the checkpoint before it.",
        )


def _is_object(path: Path) -> bool:
    """Whether a file is a whole JSON object. A pipe or a device is never read."""
    try:
        facts = path.stat()
        if not stat.S_ISREG(facts.st_mode) or facts.st_size > _MOST_BYTES:
            return False
        return isinstance(json.loads(path.read_bytes()), dict)
    except (OSError, ValueError, RecursionError):
        return False


def get_last_checkpoint(folder: str | os.PathLike[str]) -> str | None:
    """The ``checkpoint-N`` with the highest N that is whole, or ``None``.

    It takes the place of ``transformers.trainer_utils.get_last_checkpoint``, which takes the
    highest N even when the save of it was interrupted. One that is not whole is passed over with a
    ``RuntimeWarning`` that names it. Checkpoints of the stock Trainer count, too.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as run:
    ...     print(get_last_checkpoint(run))
    None
    """
    folder = path_text(folder, "folder")
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise read_error(error, os.fspath(folder), opening=True) from error
    steps = {int(match[1]): name for name in names if (match := _NAME.fullmatch(name))}
    for step in sorted(steps, reverse=True):
        path = os.path.join(folder, steps[step])
        if not os.path.isdir(path):
            continue
        try:
            check_checkpoint(path)
        except JsonckptError as error:
            warnings.warn(
                f"{path} is skipped: {problem_of(error, path)}", RuntimeWarning, stacklevel=2
            )
        else:
            return path
    return None


def trained_tensors(model: torch.nn.Module) -> Any:
    """What of a model its checkpoint holds: all of it, or without the frozen base of adapters.

    A model with adapters (PEFT) is its base, which does not change and is loaded from elsewhere,
    and little more. Its checkpoint has what can change: all parameters of adapters, all other
    parameters that are trained, and all buffers.

    Returns:
        the module itself, or a dictionary of its tensors by name.
    """
    adapters = getattr(model, "peft_config", None)
    if not isinstance(adapters, Mapping) or not adapters:
        return model
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))

    def is_kept(name: str) -> bool:
        if name in parameters:
            return parameters[name].requires_grad or not set(adapters).isdisjoint(name.split("."))
        return name in buffers

    return {name: tensor for name, tensor in model.state_dict().items() if is_kept(name)}


def load_weights(
    model: torch.nn.Module, checkpoint: str | os.PathLike[str], **options: Any
) -> None:
    """Load the weights of a ``checkpoint-N`` into a model, in place.

    Of a model with adapters (PEFT) the adapters are loaded. The base must have its weights.

    Args:
        model: built as the trained one was.
        checkpoint: the directory that the Trainer made, such as ``"run/checkpoint-500"``.
        options: keyword arguments of :func:`jsonckpt.load_into`.

    Raises:
        StateMismatchError: the names or shapes of model and checkpoint differ. Nothing is changed.
        JsonckptError: there is no checkpoint, or it is damaged.
    """
    if not has_json(path_text(checkpoint, "checkpoint")):
        raise CheckpointNotFoundError(
            f"there is no {SUBDIRECTORY}/ in it",
            file=os.fspath(checkpoint),
            hint="Give a checkpoint-N directory of JsonCheckpointTrainerMixin; from_pretrained "
            "loads those of the stock Trainer.",
        )
    options.setdefault("include", lambda name: name.startswith("/model/"))
    load_into({"model": trained_tensors(model)}, state_directory(checkpoint), **options)


def load_part(
    checkpoint: str | os.PathLike[str],
    part: str,
    place: Callable[[Any, str], Any] | str = "cpu",
) -> Any:
    """One member of the training state; ``None`` if it has none of this name.

    Args:
        place: the ``map_location``.

    Raises:
        JsonckptError: it cannot be read, or is none.
    """
    prefix = f"/{part}/"
    directory = state_directory(checkpoint)
    state = load(directory, place, include=lambda name: name.startswith(prefix))
    if not isinstance(state, dict):
        raise FormatError("not the training state of a Trainer: it is no object", file=directory)
    return state.get(part)


def fsync_files(directory: str | os.PathLike[str]) -> None:
    """Make the small files that others wrote into a directory safe against a power failure."""
    for entry in os.scandir(directory):
        if entry.is_file(follow_symlinks=False):
            with open(entry.path, "rb") as file:
                os.fsync(file.fileno())
