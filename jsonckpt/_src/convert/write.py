"""Writes a state in any of the formats. A file appears only when it is whole."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import (
    CheckpointExistsError,
    JsonckptError,
    UnsupportedTypeError,
    WriteError,
    printable,
    quote,
)
from ..format.filenames import temporary_name
from ..format.pointer import join
from ..progress import progress_on
from ..save.api import save_privately
from ..save.reader_limits import require_json
from ..save.snapshot import take_snapshot
from ..sources.safetensors_files import describe, pack_metadata, write_safetensors
from ..storage import commit
from ..storage.new_file import NewFile, check_replaceable, mode_for
from ..storage.os_errors import write_error, writing
from ..tensors.pieces import memory_of
from ..tensors.supported import require_address, require_memory, require_plain
from .number_list_json import NumberLists, note_lost_forms
from .options import FORMAT_WORDS, OWN_FORMATS, ConvertOptions, Format
from .plain_load import plain_load_notes
from .select import children, named_tensors
from .tally import Tally

#: Options that only the formats of this package have.
_OWN_OPTIONS = ("encoding", "compression", "max_shard_size", "checksum", "save_id")
_STATE_DICT_KEYS = frozenset({"model_state_dict", "state_dict", "model", "module", "weights"})


@dataclass(frozen=True, slots=True)
class Prepared:
    """What will be written, checked: nothing in it is refused later.

    Attributes:
        left_out: names of values that the format cannot hold.
        lost: what the format does not keep of the rest, one line each.
        notes: these lines, and what else is changed.
    """

    state: Any
    to: Format
    metadata: dict[str, Any]
    left_out: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    lists: NumberLists | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """What was written.

    Attributes:
        nbytes: the size on disk.
        pin: for ``expected_digest``, of a jsonckpt checkpoint that can be pinned.
        notes: what was found in the result, one line each.
        reader_files: the paths of the files that read it without jsonckpt.
    """

    nbytes: int
    pin: str | None = None
    notes: list[str] = field(default_factory=list)
    reader_files: list[str] = field(default_factory=list)


def prepare(state: Any, to: Format, metadata: dict[str, Any], *, dry: bool = False) -> Prepared:
    """Check what will be written, and say what the format does not keep.

    Args:
        state: what to write.
        to: the format.
        metadata: of the user.
        dry: nothing will be written. Otherwise a save checks the state itself.

    Raises:
        UnsupportedTypeError: the format cannot hold a tensor or a value.
        JsonckptError: the format cannot hold the metadata.
    """
    if to in OWN_FORMATS:
        kept = {key: value for key, value in metadata.items() if _is_json({key: value})}
        notes = [
            f"the metadata {quote(key)} is left out: it is no JSON that a checkpoint holds"
            for key in metadata.keys() - kept.keys()
        ]
        if dry:
            take_snapshot(state, kept)
        return Prepared(state, to, kept, notes=notes)
    notes = []
    if metadata and to != "safetensors":
        keys = ", ".join(map(printable, [*metadata][:5])) + (", …" if len(metadata) > 5 else "")
        notes.append(f"the metadata is left out ({keys}): {FORMAT_WORDS[to]} has no place for it")
    for name, tensor in named_tensors(state):
        try:
            _require_writable(tensor, to)
        except UnsupportedTypeError as error:
            raise error.at(tensor=name)  # noqa: B904, the same error with its name
    if to == "pt":
        return Prepared(state, to, metadata, notes=notes)
    if next(named_tensors(state), None) is None:
        raise UnsupportedTypeError("there is no tensor to write")
    if to == "legacy-json":
        lists = NumberLists(state)
        lost = lists.changes.notes()
        return Prepared(state, to, metadata, lists.left_out, lost, notes + lost, lists=lists)
    tensors, ties, notes = _untied(state)
    tally = Tally()
    for name, tensor in tensors.items():
        describe(tensor, name)
        note_lost_forms(tensor, name, tally)
    packed = pack_metadata(metadata, ties, tensors)
    lost = tally.notes()
    return Prepared(state, to, dict(packed), [*_others(state, "")], lost, notes + lost, tensors)


def _is_json(metadata: dict[str, Any]) -> bool:
    """Whether a checkpoint can hold this. Other files also hold NaN and lone surrogates."""
    try:
        require_json(metadata, "metadata")
    except UnsupportedTypeError:
        return False
    return True


def _require_writable(tensor: torch.Tensor, to: Format) -> None:
    """Refuse, in the words of a save, a tensor that is not just memory with a shape.

    A ``.pt`` holds special tensors, too, but no plain one without its memory.
    """
    if to != "pt":
        require_plain(tensor)
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter) and not tensor.is_nested
    if plain and tensor.layout == torch.strided and not (tensor.is_quantized or tensor.is_meta):
        require_memory(tensor)
        require_address(tensor)


def write(
    prepared: Prepared, path: Path, options: ConvertOptions, *, shared: int = 0o077
) -> Written:
    """Write what was prepared to ``path``.

    Args:
        path: a file, or a directory for ``"dir"``.
        options: how to write it.
        shared: the most permissions that group and others may get.

    Raises:
        CheckpointExistsError: the path exists, and ``overwrite`` is not set.
        UnsupportedTypeError: the format cannot hold a tensor or a value, or this package could not
            read it back.
        WriteError: the system refused.
    """
    if not options.overwrite and os.path.lexists(path):
        raise CheckpointExistsError(
            "exists already", file=path, hint="Pass overwrite=True (--overwrite) to replace it."
        )
    if prepared.to in OWN_FORMATS:
        return _save(prepared.state, path, options, prepared.metadata, shared)
    notes = [
        f"{name} has no effect on {prepared.to}"
        for name in _OWN_OPTIONS
        if getattr(options, name) is not None
    ]
    with _replacing(path, shared, exclusive=not options.overwrite) as (file, stream, temporary):
        if prepared.to == "pt":
            _torch_save(prepared.state, file, stream)
            file.flush()
            if stream.error is None:
                notes += plain_load_notes(temporary, unsafe_pickle=options.unsafe_pickle)
        elif prepared.to == "safetensors":
            write_safetensors(file, prepared.tensors, prepared.metadata)
        else:
            assert prepared.lists is not None
            with progress_on(options.progress, "writing") as advance:
                prepared.lists.write(lambda text: advance(file.write(text)))
            file.write(b"\n")
    return Written(stream.end, notes=notes)


def _save(
    state: Any, path: Path, options: ConvertOptions, metadata: dict[str, Any], shared: int
) -> Written:
    """Write a jsonckpt checkpoint."""
    chosen = {
        "encoding": options.encoding,
        "compression": options.compression,
        "max_shard_size": options.max_shard_size,
        "checksum": options.checksum,
        "save_id": options.save_id,
        "metadata": metadata or None,
    }
    saved = save_privately(
        state,
        path,
        shared=shared,
        overwrite=options.overwrite,
        delete_first=options.delete_first,
        with_reader=options.with_reader,
        progress=options.progress is not None and options.progress.isatty(),
        **{name: value for name, value in chosen.items() if value is not None},  # type: ignore[arg-type]
    )
    return Written(saved.stored_bytes, saved.pin, list(saved.notes), list(saved.reader_files))


def _torch_save(state: Any, file: IO[bytes], stream: _FileStream) -> None:
    try:
        torch.save(state, file)
    except JsonckptError:
        raise
    except Exception as error:
        # The objects of the state raise anything, and torch its own error for a failed write.
        if stream.error is not None or isinstance(error, MemoryError | OSError | RecursionError):
            raise
        raise UnsupportedTypeError(
            f"torch.save refused: {quote(str(error), 200)}",
            tensor=next(filter(None, map(_refused, named_tensors(state))), None),
            hint="Leave out what it names with --exclude, or save plain tensors.",
        ) from error


def _refused(item: tuple[str, torch.Tensor]) -> str | None:
    """The name of a special tensor that torch.save refuses, to say where the error is."""
    name, tensor = item
    if type(tensor) in (torch.Tensor, torch.nn.Parameter):
        return None
    try:
        torch.save(tensor, io.BytesIO())
    except Exception:
        return name
    return None


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
            notes.append(f"the names in the file leave out their first part, {quote(only)}")
    tensors: dict[str, torch.Tensor] = {}
    for pointer, name, tensor in _flat(root, "", ""):
        if name in tensors or name == "__metadata__":
            raise UnsupportedTypeError(
                f"the flat name {quote(name)} is taken", tensor=pointer, hint="Leave one out."
            )
        tensors[name] = tensor
    return tensors, notes


def _flat(value: Any, pointer: str, name: str) -> Iterator[tuple[str, str, torch.Tensor]]:
    """Every tensor, with its JSON Pointer and its flat name."""
    if isinstance(value, torch.Tensor):
        yield pointer, name or "tensor", value
    for key, child in children(value):
        yield from _flat(child, join(pointer, str(key)), f"{name}.{key}" if pointer else str(key))


def _untied(state: Any) -> tuple[dict[str, torch.Tensor], dict[str, str], list[str]]:
    """Tensors, each once, the further names of tied ones with the name that is kept, and notes."""
    tensors, notes = flat_names(state)
    ties: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in list(tensors.items()):
        place = memory_of(tensor)
        kept = name if place is None else first.setdefault(place, name)
        if kept != name:
            del tensors[name]
            ties[name] = kept
            notes.append(f"tied: {name} is {kept}")
    return tensors, ties, notes


def _others(state: Any, name: str) -> Iterator[str]:
    """The names of values without tensors."""
    if isinstance(state, torch.Tensor):
        return
    if next(named_tensors(state), None) is None:
        yield name or "/"
        return
    for key, value in children(state):
        yield from _others(value, join(name, str(key)))


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
) -> Iterator[tuple[IO[bytes], _FileStream, Path]]:
    """A new file, and its name until it replaces ``path``. It is removed after an error.

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
            yield buffer, stream, temporary
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
        if isinstance(error, OSError):
            raise write_error(error, path) from error
        if isinstance(error, RuntimeError):
            raise WriteError(f"cannot be written ({quote(str(error))})", file=path) from error
        raise
