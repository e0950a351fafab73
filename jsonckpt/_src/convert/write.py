"""Writes a state in any of the formats. A file appears only when it is whole."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PicklingError
from typing import IO, Any

import torch

from ..errors import CheckpointExistsError, JsonckptError, UnsupportedTypeError, WriteError, quote
from ..format.filenames import temporary_name
from ..format.pointer import unescape
from ..progress import progress_on
from ..save.api import save_privately
from ..save.write import SaveResult
from ..storage import commit
from ..storage.new_file import NewFile, check_replaceable, mode_for
from ..storage.os_errors import write_error, writing
from ..tensors.pieces import memory_of
from .number_list_json import write_number_lists
from .options import OWN_FORMATS, ConvertOptions, Format
from .safetensors_files import write_safetensors
from .select import children, named_tensors

#: Options that only the formats of this package have.
_OWN_OPTIONS = ("encoding", "compression", "max_shard_size")
_STATE_DICT_KEYS = frozenset({"model_state_dict", "state_dict", "model", "module", "weights"})


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        nbytes: the size on disk.
        left_out: names of values that the format cannot hold.
        notes: what was changed, one line each.
    """

    nbytes: int
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def write(
    state: Any,
    path: Path,
    to: Format,
    options: ConvertOptions,
    *,
    metadata: dict[str, Any] | None = None,
    shared: int = 0o077,
) -> Written:
    """Write ``state`` to ``path``.

    Args:
        state: what to write.
        path: a file, or a directory for ``"dir"``.
        to: the format.
        options: how to write it.
        metadata: of the user, for the formats of this package.
        shared: the most permissions that group and others may get.

    Raises:
        CheckpointExistsError: the path exists, and ``overwrite`` is not set.
        UnsupportedTypeError: the format cannot hold a tensor or a value.
        WriteError: the system refused.
    """
    if not options.overwrite and os.path.lexists(path):
        raise CheckpointExistsError(
            "exists already", file=path, hint="Pass overwrite=True (--overwrite) to replace it."
        )
    if to in OWN_FORMATS:
        saved = _save(state, path, options, metadata, shared)
        return Written(saved.stored_bytes, notes=list(saved.notes))
    left_out: list[str] = []
    notes: list[str] = []
    unused = [name for name in _OWN_OPTIONS if getattr(options, name) is not None]
    with _replacing(path, shared, exclusive=not options.overwrite) as (file, stream):
        if to == "pt":
            torch.save(state, file)
        elif to == "safetensors":
            tensors, shown, notes = _untied(state)
            left_out = list(_others(state, ""))
            write_safetensors(file, tensors, shown)
        else:
            with progress_on(options.progress, "writing") as advance:
                left_out = write_number_lists(state, lambda text: advance(file.write(text)))
            file.write(b"\n")
    notes += [f"{name} has no effect on {to}" for name in unused]
    return Written(stream.end, left_out, notes)


def _save(
    state: Any, path: Path, options: ConvertOptions, metadata: dict[str, Any] | None, shared: int
) -> SaveResult:
    """Write a jsonckpt checkpoint."""
    chosen = {
        "encoding": options.encoding,
        "compression": options.compression,
        "max_shard_size": options.max_shard_size,
        "metadata": metadata or None,
    }
    return save_privately(
        state,
        path,
        shared=shared,
        overwrite=options.overwrite,
        delete_first=options.delete_first,
        progress=options.progress is not None and options.progress.isatty(),
        **{name: value for name, value in chosen.items() if value is not None},  # type: ignore[arg-type]
    )


def flat_names(state: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every tensor of a state by a flat name, as safetensors needs it, and notes.

    A name is the keys on the way to the tensor, joined by dots. If all tensors are in one state
    dict, the names begin there: they are the names in the model.

    Raises:
        UnsupportedTypeError: two tensors would get the same name.

    >>> list(flat_names({"model": {"a.w": torch.ones(1)}, "epoch": 3})[0])
    ['a.w']
    """
    notes: list[str] = []
    root = state
    if isinstance(state, dict):
        holders = [key for key, value in state.items() if next(named_tensors(value), None)]
        only = holders[0] if len(holders) == 1 else None
        if only in _STATE_DICT_KEYS and isinstance(state[only], dict):
            root = state[only]
            notes.append(f"names begin below {quote(only)}")
    tensors: dict[str, torch.Tensor] = {}
    for pointer, tensor in named_tensors(root):
        name = ".".join(map(unescape, pointer[1:].split("/"))) if pointer else "tensor"
        if name in tensors or name == "__metadata__":
            raise UnsupportedTypeError(
                f"the flat name {quote(name)} is taken", tensor=pointer, hint="Leave one out."
            )
        tensors[name] = tensor
    return tensors, notes


def _untied(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    """Tensors, each once, metadata and notes, for safetensors.

    The metadata maps further names of a tied tensor to the name that is kept.
    """
    tensors, notes = flat_names(state)
    metadata = {"format": "pt"}
    first: dict[object, str] = {}
    for name, tensor in list(tensors.items()):
        place = memory_of(tensor)
        kept = name if place is None else first.setdefault(place, name)
        if kept != name:
            del tensors[name]
            metadata[name] = kept
            notes.append(f"tied: {name} is {kept}")
    if not tensors:
        raise UnsupportedTypeError("there is no tensor to write")
    return tensors, metadata, notes


def _others(state: Any, name: str) -> Iterator[str]:
    """The names of values without tensors."""
    if isinstance(state, torch.Tensor):
        return
    if next(named_tensors(state), None) is None:
        yield name or "/"
        return
    for key, value in children(state):
        yield from _others(value, f"{name}/{key}")


class _FileStream(io.RawIOBase):
    """A new file as a stream that is written from its beginning to its end."""

    def __init__(self, file: NewFile) -> None:
        super().__init__()
        self._file = file
        self.end = 0
        self.error: WriteError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        """Write all of it at the end."""
        if self.error is not None:
            # When a buffer is closed it writes again. That must not hide the first error.
            return len(data)
        try:
            self._file.write_at(self.end, [data])
        except WriteError as error:
            self.error = error
            raise
        self.end += len(data)
        return len(data)


@contextmanager
def _replacing(
    path: Path, shared: int, *, exclusive: bool
) -> Iterator[tuple[IO[bytes], _FileStream]]:
    """A new file. It replaces ``path`` when all is written, and is removed after an error.

    Directories on the way are made.
    """
    check_replaceable(path)
    with writing(path):
        target = Path(os.path.realpath(path))
    made: list[Path] = []
    # gc knows the name and removes the file if the process was killed.
    temporary = target.with_name(temporary_name(target.name, secrets.token_hex(6)))
    file = NewFile(temporary, early=True, mode=mode_for(target, shared))
    stream = _FileStream(file)
    try:
        commit.make_directory(target.parent, made, sync=True)
        file.create()
        with io.BufferedWriter(stream, buffer_size=1 << 20) as buffer:
            yield buffer, stream
            buffer.flush()
        if stream.error is not None:
            raise stream.error
        file.finish(sync=True)
        commit.commit(temporary, target, None, sync=True, exclusive=exclusive)
    except BaseException as error:
        file.abandon()
        commit.remove_directories(made)
        # torch raises its own error for a failed write.
        if stream.error is not None and isinstance(error, Exception):
            raise stream.error from stream.error.__cause__
        if isinstance(error, JsonckptError):
            raise
        if isinstance(error, TypeError | AttributeError | PicklingError) or str(error).startswith(
            "Cannot save"
        ):
            raise UnsupportedTypeError(f"torch.save refused: {quote(str(error), 200)}") from error
        if isinstance(error, OSError):
            raise write_error(error, path) from error
        if isinstance(error, RuntimeError):
            raise WriteError(f"cannot be written ({quote(str(error))})", file=path) from error
        raise
