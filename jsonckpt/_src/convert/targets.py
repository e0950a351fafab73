"""Writing a state in any of the formats, so that nothing half-written is ever seen."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PicklingError
from typing import IO, Any, Literal

import torch

from ..errors import CheckpointExistsError, JsonckptError, UnsupportedTypeError, WriteError, quote
from ..format.filenames import temporary_name
from ..storage import commit
from ..storage.new_file import NewFile, mode_for
from ..storage.os_errors import write_error, writing
from . import core
from .legacy import write_legacy
from .progress import Progress
from .safetensorsfile import write_safetensors
from .selection import named_tensors

Format = Literal["dir", "json", "json.zst", "pt", "safetensors", "legacy-json"]
#: The formats, and the suffix of a default output name.
FORMATS: dict[Format, str] = {
    "dir": "",
    "json": ".json",
    "json.zst": ".json.zst",
    "pt": ".pt",
    "safetensors": ".safetensors",
    "legacy-json": ".json",
}
_TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
_STATE_DICT_KEYS = frozenset({"model_state_dict", "state_dict", "model", "module", "weights"})


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        nbytes: on disk.
        left_out: names of what the format cannot hold.
        notes: what is remarkable about it, one line each.
    """

    nbytes: int
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def format_of(path: Path) -> Format:
    """The format that an output's name asks for.

    >>> format_of(Path("a.json.zst")), format_of(Path("a.pth")), format_of(Path("run-3"))
    ('json.zst', 'pt', 'dir')
    """
    name = path.name.lower()
    if name.endswith(".json.zst"):
        return "json.zst"
    if name.endswith(".json"):
        return "json"
    if name.endswith(_TORCH_SUFFIXES):
        return "pt"
    return "safetensors" if name.endswith(".safetensors") else "dir"


def write_target(
    state: Any,
    path: Path,
    form: Format,
    *,
    overwrite: bool,
    save_options: dict[str, Any],
    shared: int = 0o077,
    progress: IO[str] | None = None,
) -> Written:
    """Write ``state`` to ``path``.

    Args:
        state: what to write.
        path: a file, or a directory for ``"dir"``.
        form: the format.
        overwrite: replace what lies there.
        save_options: for :func:`jsonckpt.save`, where that is what writes.
        shared: what group and others may be allowed at most.
        progress: where to show how far it is.

    Raises:
        CheckpointExistsError: something lies there, and ``overwrite`` is not set.
        UnsupportedTypeError: the format cannot hold a tensor or a value.
        WriteError: the system refused.
    """
    if not overwrite and os.path.lexists(path):
        raise CheckpointExistsError(
            "exists already", file=path, hint="Pass --overwrite to replace it."
        )
    if form in ("dir", "json", "json.zst"):
        show = progress is not None and progress.isatty()
        return Written(
            core.save_checkpoint(
                state, path, shared=shared, overwrite=overwrite, progress=show, **save_options
            )
        )
    with writing(path):
        if path.is_dir():
            raise CheckpointExistsError("is a directory", file=path, hint="Name a file.")
    left_out: list[str] = []
    notes: list[str] = []
    with _replacing(path, shared, exclusive=not overwrite) as (file, into):
        if form == "pt":
            torch.save(state, file)
        elif form == "safetensors":
            tensors, metadata, left_out, notes = _flattened(state)
            write_safetensors(file, tensors, metadata)
        else:
            with Progress("writing", None, progress) as shown:
                left_out = write_legacy(state, _counting(file.write, shown.advance))
            file.write(b"\n")
    return Written(into.end, left_out, notes)


def flat_names(state: Any) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Every tensor of a state by a flat name, as safetensors wants it.

    The keys on the way are joined by dots. When all tensors lie in one state dict, the names begin
    there, so that they are the model's own.

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
        steps = pointer[1:].split("/") if pointer else ["tensor"]
        name = ".".join(step.replace("~1", "/").replace("~0", "~") for step in steps)
        if name in tensors or name == "__metadata__":
            raise UnsupportedTypeError(
                f"the flat name {quote(name)} is taken", tensor=pointer, hint="Leave one out."
            )
        tensors[name] = tensor
    return tensors, notes


def _flattened(
    state: Any,
) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str], list[str]]:
    """Tensors, metadata, what is left out, and notes, for safetensors."""
    tensors, notes = flat_names(state)
    metadata = {"format": "pt"}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in list(tensors.items()):
        if tensor.layout != torch.strided or tensor.is_quantized or not tensor.numel():
            continue
        place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype)
        kept = first.setdefault((*place, tuple(tensor.shape), tensor.stride()), name)
        if kept != name:
            # One copy; the metadata say under which other names it goes.
            del tensors[name]
            metadata[name] = kept
            notes.append(f"tied: {name} is {kept}")
    if not tensors:
        raise UnsupportedTypeError("there is no tensor to write")
    return tensors, metadata, list(_others(state, "")), notes


def _others(state: Any, name: str) -> Iterator[str]:
    """The names of what is not a tensor."""
    if isinstance(state, torch.Tensor):
        return
    items: list[tuple[Any, Any]] = []
    if isinstance(state, dict):
        items = list(state.items())
    elif isinstance(state, list | tuple):
        items = list(enumerate(state))
    if not items or next(named_tensors(state), None) is None:
        yield name or "/"
        return
    for key, value in items:
        yield from _others(value, f"{name}/{key}")


def _counting(write: Callable[[bytes], object], advance: Callable[[int], None]) -> Any:
    def counted(data: bytes) -> None:
        write(data)
        advance(len(data))

    return counted


class _Into(io.RawIOBase):
    """A new file as a stream that is written forward."""

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
            # A buffer tries once more when it is closed; what failed stays failed.
            return len(data)
        try:
            self._file.write_at(self.end, [data])
        except WriteError as error:
            self.error = error
            raise
        self.end += len(data)
        return len(data)


@contextmanager
def _replacing(path: Path, shared: int, *, exclusive: bool) -> Iterator[tuple[IO[bytes], _Into]]:
    """A file that takes the place of ``path`` when all is written, and is gone when not."""
    with writing(path):
        target = Path(os.path.realpath(path))
    # A name that gc knows, should this be killed.
    temporary = target.with_name(temporary_name(target.name, secrets.token_hex(6)))
    file = NewFile(temporary, early=True, mode=mode_for(target, shared))
    into = _Into(file)
    try:
        file.create()
        with io.BufferedWriter(into, buffer_size=1 << 20) as buffer:
            yield buffer, into
            buffer.flush()
        if into.error is not None:
            raise into.error
        file.finish(sync=True)
        commit.commit(temporary, target, None, sync=True, exclusive=exclusive)
    except BaseException as error:
        file.abandon()
        # torch reports a failed write as an error of its own.
        if into.error is not None and isinstance(error, Exception):
            raise into.error from into.error.__cause__
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
