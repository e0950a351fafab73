"""Reads a checkpoint of any kind. The content says what it is, not the name."""

from __future__ import annotations

import gzip
import re
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    UnsafePathError,
    counted,
    quote,
)
from ..foreign.payloads import dtype_named
from ..foreign.read_json import read_foreign
from ..foreign.tensor_values import tensor_spool
from ..foreign.values import ForeignOptions
from ..format.limits import DEFAULT_LIMITS, Limits
from ..format.zstd import zstd
from ..load.api import load_selected
from ..load.checkpoint import open_checkpoint
from ..load.options import ReadOptions, TensorSelection
from ..pickles.unread import check
from ..progress import progress_on
from ..sources.directories import find_weights, is_unpacked_npz, kind_of_directory, notes_on_rest
from ..sources.kinds import (
    COMPRESSED,
    HEAD,
    JSON,
    NPY,
    NPZ,
    OWN,
    SAFETENSORS,
    SCRIPT,
    SHARDED,
    TORCH,
    Look,
    kind_of,
)
from ..sources.numpy_files import NumpyOptions, load_npy, load_npy_directory, load_npz
from ..sources.safetensors_files import load_safetensors, load_sharded
from ..sources.tensorflowjs import load_tensorflowjs
from ..sources.torch_files import (
    PickleOptions,
    find_unpacked,
    load_torch_file,
    load_unpacked,
    pickle_kind,
)
from ..state.selector import selector
from ..storage.missing import hint_for_missing
from ..storage.new_file import special_kind
from .options import OWN_FORMATS, ConvertOptions, Format
from .state_dicts import state_dicts

_MANIFEST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{[^{}\[\]]*"format"\s*:\s*"jsonckpt\.manifest"')

_SEVERAL = (
    "More than one JSON text is in it: if each line is one (JSON Lines), convert one line, such as "
    "the last: tail -n 1 PATH > last.json"
)


@dataclass(frozen=True, slots=True)
class Source:
    """What was read.

    Attributes:
        state: the nested state. Tensors are mapped files where possible.
        kind: the kind of the input, in words.
        nbytes: its size on disk.
        notes: what was repaired or assumed.
        metadata: of the user, in a jsonckpt checkpoint or a safetensors file.
        parts: names of further files that were read, beside the one that names them.
    """

    state: Any
    kind: str
    nbytes: int
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)
    parts: frozenset[str] = frozenset()


def read(path: Path, options: ConvertOptions, directory: Path) -> Source:
    """Read a checkpoint of any kind.

    Args:
        directory: for temporary files.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        UnsupportedTypeError: it needs pickle.
        JsonckptError: it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return _read_directory(path, options, directory)
        if stat.S_ISREG(mode):
            return _read_file(path, options, directory)
        raise FormatError(
            f"neither a file nor a directory: {special_kind(mode) or 'a special file'}",
            file=path,
            hint="Copy what comes out of it to a file, and convert that.",
        )
    except JsonckptError as error:
        raise error.at(file=path) from error.__cause__
    except FileNotFoundError as error:
        raise CheckpointNotFoundError(
            "there is no such file or directory",
            file=path,
            hint=hint_for_missing(path, others=True),
        ) from error
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror})", file=path) from error


def read_back(
    path: Path, to: Format, options: ConvertOptions, directory: Path
) -> tuple[Any, dict[str, Any]]:
    """The state and the user's metadata in what was just written in a known format."""
    if to in OWN_FORMATS:
        state = _load_own(path, options, directory, DEFAULT_LIMITS)
        with open_checkpoint(path, limits=DEFAULT_LIMITS) as checkpoint:
            return state, dict(checkpoint.metadata)
    if to == "pt":
        return load_torch_file(path, directory, PickleOptions(unsafe=options.unsafe_pickle)), {}
    if to == "safetensors":
        found = load_safetensors(path)
        return found.tensors, found.metadata
    with path.open("rb") as file, progress_on(options.progress, "reading back") as advance:
        return read_foreign(file, directory, ForeignOptions(), advance)[0], {}


def _size_on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _read_directory(path: Path, options: ConvertOptions, directory: Path) -> Source:
    if (path / "manifest.json").is_file():
        return _read_own(path, options, directory)
    unpacked = find_unpacked(path)
    if unpacked is not None:
        if (unpacked / "constants.pkl").is_file():
            raise SCRIPT.refuse().at(file=unpacked)
        state = load_unpacked(unpacked, directory, _pickle_options(options))
        return _of_pickle(state, "unpacked PyTorch file", _size_on_disk(unpacked), options)
    weights = find_weights(path)
    if weights is not None:
        source = _inside(weights, options, directory)
        source.notes[:0] = notes_on_rest(path, weights, source.parts)
        return source
    kind = kind_of_directory(path)
    if kind is not None:
        raise kind.refuse()
    if is_unpacked_npz(path):
        state, notes = load_npy_directory(path, _numpy_options(options), directory)
        return Source(state, "unpacked NumPy archive", _size_on_disk(path), notes)
    raise CheckpointNotFoundError(
        "this directory holds no checkpoint",
        file=path,
        hint="Expected manifest.json (jsonckpt), data.pkl (a .pt that was unpacked), "
        "model.safetensors, pytorch_model.bin or model.json (TensorFlow.js).",
    )


def _inside(path: Path, options: ConvertOptions, directory: Path) -> Source:
    """Read a file of the directory that was given. Errors name the file."""
    try:
        return _read_file(path, options, directory)
    except JsonckptError as error:
        raise error.at(file=path) from error.__cause__


def _look(path: Path) -> Look:
    with path.open("rb") as file:
        head = file.read(HEAD)
    members: tuple[str, ...] = ()
    if head.startswith(b"PK\x03\x04"):
        # Its reader reports an archive that cannot be opened.
        with suppress(Exception), path.open("rb") as file, zipfile.ZipFile(file) as archive:
            members = tuple(archive.namelist())
    return Look(path, head, path.stat().st_size, members)


def _read_file(path: Path, options: ConvertOptions, directory: Path) -> Source:
    kind = kind_of(_look(path))
    reader = _READERS.get(kind.name)
    if reader is None:
        raise kind.refuse()
    return reader(path, options, directory)


def _read_torch(path: Path, options: ConvertOptions, directory: Path) -> Source:
    state = load_torch_file(path, directory, _pickle_options(options))
    look = _look(path)
    return _of_pickle(state, pickle_kind(look.head), look.size, options)


def _read_safetensors(path: Path, _: ConvertOptions, __: Path) -> Source:
    found = load_safetensors(path)
    notes = [f"tied: {name} is {kept}" for name, kept in found.ties.items()]
    return Source(found.tensors, SAFETENSORS.name, path.stat().st_size, notes, found.metadata)


def _numpy_options(options: ConvertOptions) -> NumpyOptions:
    chosen, _ = selector(list(options.include) or None, list(options.exclude) or None)
    return NumpyOptions(options.limits, options.unsafe_pickle, chosen)


def _read_npy(path: Path, options: ConvertOptions, directory: Path) -> Source:
    state, notes = load_npy(path, _numpy_options(options), directory)
    return Source(state, NPY.name, path.stat().st_size, notes)


def _read_npz(path: Path, options: ConvertOptions, directory: Path) -> Source:
    state, notes = load_npz(path, _numpy_options(options), directory)
    return Source(state, NPZ.name, path.stat().st_size, notes)


def _read_own_file(path: Path, options: ConvertOptions, directory: Path) -> Source:
    own = _MANIFEST.match(_look(path).head)
    if own is None:
        return _read_own(path, options, directory)
    if path.name != "manifest.json":
        raise FormatError("a manifest under another name", hint="Call it manifest.json.")
    return _read_own(path.parent, options, directory)


def _pickle_options(options: ConvertOptions) -> PickleOptions:
    return PickleOptions(
        options.unsafe_pickle, options.pickle_encoding, partial=True, limits=options.limits
    )


def _of_pickle(state: Any, kind: str, size: int, options: ConvertOptions) -> Source:
    notes: list[str] = []
    if options.state_dict:
        state, notes = state_dicts(state)
        if not options.unsafe_pickle:  # what was taken from objects was not looked at before
            check(state, options.limits.total_bytes(size))
    return Source(state, kind, size, notes)


def _read_own(path: Path, options: ConvertOptions, directory: Path) -> Source:
    state = _load_own(path, options, directory, options.limits)
    with open_checkpoint(path, limits=options.limits) as checkpoint:
        metadata = dict(checkpoint.metadata)
    return Source(state, "jsonckpt checkpoint", _size_on_disk(path), metadata=metadata)


def _load_own(path: Path, options: ConvertOptions, directory: Path, limits: Limits) -> Any:
    show = options.progress is not None and options.progress.isatty()
    with tensor_spool(directory) as spool:
        selection = TensorSelection.of(allocate=spool.allocate)
        return load_selected(path, selection, ReadOptions.of(progress=show, limits=limits))


def _read_compressed(path: Path, options: ConvertOptions, directory: Path) -> Source:
    gzipped = _look(path).head.startswith(b"\x1f\x8b")
    unpack = gzip.open if gzipped else partial(_zstd, window=options.limits.zstd_window)
    with path.open("rb") as file, unpack(file) as text:
        head = _Bounded(text, HEAD).read(HEAD)
    inner = kind_of(Look(path.with_suffix(""), head, 1 << 62))
    if inner is OWN and not gzipped:
        return _read_own(path, options, directory)
    if inner is JSON:
        return _read_json(path, options, directory, unpack)
    tool, word = ("gunzip", "gzip") if gzipped else ("unzstd", "zstd")
    raise FormatError(
        f"compressed with {word}; inside is {_with_article(inner.name)}"
        + ("" if inner is OWN else ", not JSON"),
        hint=inner.advice or f"Unpack it first: {tool} -c PATH > NEW; then convert NEW.",
    )


def _with_article(name: str) -> str:
    return name if name.startswith(("a ", "an ", "text", "JSON")) else f"a {name}"


def _zstd(file: IO[bytes], window: int | None) -> Any:
    # Other programs write skippable frames, which a checkpoint of this package may not have.
    log = 31 if window is None else min(max(window.bit_length() - 1, 10), 31)
    return zstd.ZstdFile(file, options={int(zstd.DecompressionParameter.window_log_max): log})


class _Bounded:
    """Decompressed text, up to a limit."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except EOFError as error:
            raise IncompleteCheckpointError(
                "the compressed data ends too early", hint="It was cut off: copy it again."
            ) from error
        except (zstd.ZstdError, zlib.error, OSError, ValueError) as error:
            raise FormatError(f"damaged compressed data ({quote(str(error))})") from error
        self._left -= len(data)
        if self._left < 0:
            raise LimitError(
                "the compressed file decompresses to more than the limits allow",
                hint="Pass --limit expansion=none if it is meant.",
            )
        return data


def _read_json(
    path: Path,
    options: ConvertOptions,
    directory: Path,
    unpack: Callable[[IO[bytes]], Any] | None = None,
) -> Source:
    size = path.stat().st_size
    most = options.limits.total_bytes(size)
    limit = 1 << 62 if most is None else most

    @contextmanager
    def opened() -> Iterator[Any]:
        with path.open("rb") as file:
            if unpack is None:
                yield file
            else:
                with unpack(file) as stream:
                    yield _Bounded(stream, limit)

    limits = options.limits.for_text(size)
    with tensor_spool(directory) as spool:
        model = load_tensorflowjs(path, opened, spool, directory, limits)
    if model is not None:
        whole, parts = size + model.nbytes, model.parts
        return Source(model.state, "TensorFlow.js model", whole, model.notes, parts=parts)
    unsafe = PickleOptions(unsafe=True, encoding=options.pickle_encoding)
    load_pickle = partial(load_torch_file, directory=directory, options=unsafe)
    foreign = ForeignOptions(
        options.plain_lists,
        options.tie,
        options.shapes,
        tensors=options.tensors,
        floats=_float_dtype(options.dtype),
        load_pickle=load_pickle if options.unsafe_pickle else None,
        limit=limit,
        marks=limits.marks,
    )
    total = size if unpack is None else None
    with opened() as text, progress_on(options.progress, "reading", total) as advance:
        try:
            state, notes = read_foreign(text, directory, foreign, advance)
        except FormatError as error:
            hint = _SEVERAL if "trailing garbage" in error.message else None
            raise error.at(hint=hint) from error.__cause__
    return Source(state, JSON.name, size, notes)


def _float_dtype(wanted: str | None) -> torch.dtype:
    """The dtype of floats whose dtype the text does not say. ``wanted`` may keep more digits."""
    dtype = torch.float32 if wanted is None else dtype_named(wanted)[0]
    return torch.float64 if dtype is torch.float64 else torch.float32


def _read_sharded(index: Path, options: ConvertOptions, directory: Path) -> Source:
    files, metadata = load_sharded(index)
    state: dict[str, Any] = {}
    notes: list[str] = []
    size = index.stat().st_size
    further: list[str] = []
    for name in dict.fromkeys(files.values()):
        if not options.limits.follow and (index.parent / name).is_symlink():
            raise UnsafePathError(f"the shard {quote(name)} is a symbolic link", file=index)
        if kind_of(_look(index.parent / name)) is SHARDED:
            raise FormatError(f"the shard {quote(name)} is an index itself", file=index)
        shard = _inside(index.parent / name, options, directory)
        size += shard.nbytes
        if not isinstance(shard.state, dict):
            raise FormatError("the shard is not a state dict", file=index.parent / name)
        for key, tensor in shard.state.items():
            if files.get(key, name) == name:
                further += [] if key in files else [key]
                state[key] = tensor
        notes += shard.notes
        for key, value in shard.metadata.items():
            if metadata.setdefault(key, value) != value:
                notes.append(f"the metadata {quote(key)} of {name} differs from what came first")
    missing = [name for name in files if name not in state]
    if missing:
        more = f", and so are {len(missing) - 1} more" if len(missing) > 1 else ""
        raise IncompleteCheckpointError(
            f"tensor {quote(missing[0])} is missing in its shard {quote(files[missing[0]])}{more}",
            hint="Take the index and the shards of one save.",
        )
    if further:
        names = ", ".join(further[:3]) + (", …" if len(further) > 3 else "")
        notes.append(
            f"in the shards, but not in the index: {counted(len(further), 'tensor')} ({names})"
        )
    ordered = {name: state[name] for name in files}
    whole, parts = {**ordered, **state}, frozenset(files.values())
    return Source(whole, SHARDED.name, size, notes, metadata, parts)


#: The readers of what :func:`kind_of` finds, by the name of the kind.
_READERS: dict[str, Callable[[Path, ConvertOptions, Path], Source]] = {
    TORCH.name: _read_torch,
    SAFETENSORS.name: _read_safetensors,
    NPY.name: _read_npy,
    NPZ.name: _read_npz,
    COMPRESSED.name: _read_compressed,
    SHARDED.name: _read_sharded,
    OWN.name: _read_own_file,
    JSON.name: _read_json,
}
