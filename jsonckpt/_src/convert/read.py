"""Reads a checkpoint of any kind. The content says what it is, not the name."""

from __future__ import annotations

import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    UnsafePathError,
    counted,
    quote,
)
from ..format.limits import DEFAULT_LIMITS, Limits
from ..json_stream.spooled import tensor_spool
from ..load.api import load_selected
from ..load.checkpoint import open_checkpoint
from ..load.options import ReadOptions
from ..load.selection import TensorSelection
from ..progress import progress_on
from ..sources.directories import (
    find_unpacked,
    find_weights,
    is_unpacked_npz,
    kind_of_directory,
    notes_on_rest,
)
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
from ..state.selector import selector
from ..storage.missing import hint_for_missing
from ..storage.new_file import special_kind
from .compressed import Bounded, is_gzip, unpacker
from .options import OWN_FORMATS, ConvertOptions, Format
from .source import Source, look_at, size_on_disk

# The readers of pickles and of JSON are imported when they are needed: a command does not wait for
# the import of the other one.

_MANIFEST = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{[^{}\[\]]*"format"\s*:\s*"jsonckpt\.manifest"')


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
        from ..sources.torch_files import PickleOptions, load_torch_file

        return load_torch_file(path, directory, PickleOptions(unsafe=options.unsafe_pickle)), {}
    if to == "safetensors":
        found = load_safetensors(path)
        return found.tensors, found.metadata
    from ..foreign.read_json import read_foreign
    from ..foreign.values import ForeignOptions

    with path.open("rb") as file, progress_on(options.progress, "reading back") as advance:
        return read_foreign(file, directory, ForeignOptions(), advance)[0], {}


def _read_directory(path: Path, options: ConvertOptions, directory: Path) -> Source:
    if (path / "manifest.json").is_file():
        return _read_own(path, options, directory)
    unpacked = find_unpacked(path)
    if unpacked is not None:
        if (unpacked / "constants.pkl").is_file():
            raise SCRIPT.refuse().at(file=unpacked)
        from .pickle_files import read_unpacked

        return read_unpacked(unpacked, options, directory)
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
        return Source(state, "unpacked NumPy archive", size_on_disk(path), notes)
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


def _read_file(path: Path, options: ConvertOptions, directory: Path) -> Source:
    kind = kind_of(look_at(path))
    reader = _READERS.get(kind.name)
    if reader is None:
        raise kind.refuse()
    return reader(path, options, directory)


def _read_torch(path: Path, options: ConvertOptions, directory: Path) -> Source:
    from .pickle_files import read_torch

    return read_torch(path, options, directory)


def _read_json(path: Path, options: ConvertOptions, directory: Path) -> Source:
    from .json_files import read_json

    return read_json(path, options, directory)


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
    own = _MANIFEST.match(look_at(path).head)
    if own is None:
        return _read_own(path, options, directory)
    if path.name != "manifest.json":
        raise FormatError("a manifest under another name", hint="Call it manifest.json.")
    return _read_own(path.parent, options, directory)


def _read_own(path: Path, options: ConvertOptions, directory: Path) -> Source:
    state = _load_own(path, options, directory, options.limits)
    with open_checkpoint(path, limits=options.limits) as checkpoint:
        metadata = dict(checkpoint.metadata)
    return Source(state, "jsonckpt checkpoint", size_on_disk(path), metadata=metadata)


def _load_own(path: Path, options: ConvertOptions, directory: Path, limits: Limits) -> Any:
    show = options.progress is not None and options.progress.isatty()
    with tensor_spool(directory) as spool:
        selection = TensorSelection.of(allocate=spool.allocate)
        return load_selected(path, selection, ReadOptions.of(progress=show, limits=limits))


def _read_compressed(path: Path, options: ConvertOptions, directory: Path) -> Source:
    start = look_at(path).head
    unpack = unpacker(start, options.limits.zstd_window)
    with path.open("rb") as file, unpack(file) as text:
        head = Bounded(text, HEAD).read(HEAD)
    inner = kind_of(Look(path.with_suffix(""), head, 1 << 62))
    if inner is OWN and not is_gzip(start):
        return _read_own(path, options, directory)
    if inner is JSON:
        from .json_files import read_json

        return read_json(path, options, directory, unpack)
    tool, word = ("gunzip", "gzip") if is_gzip(start) else ("unzstd", "zstd")
    raise FormatError(
        f"compressed with {word}; inside is {_with_article(inner.name)}"
        + ("" if inner is OWN else ", not JSON"),
        hint=inner.advice or f"Unpack it first: {tool} -c PATH > NEW; then convert NEW.",
    )


def _with_article(name: str) -> str:
    return name if name.startswith(("a ", "an ", "text", "JSON")) else f"a {name}"


def _read_sharded(index: Path, options: ConvertOptions, directory: Path) -> Source:
    files, metadata = load_sharded(index)
    state: dict[str, Any] = {}
    notes: list[str] = []
    size = index.stat().st_size
    further: list[str] = []
    pickled = False
    for name in dict.fromkeys(files.values()):
        if not options.limits.follow and (index.parent / name).is_symlink():
            raise UnsafePathError(f"the shard {quote(name)} is a symbolic link", file=index)
        if kind_of(look_at(index.parent / name)) is SHARDED:
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
        pickled = pickled or shard.pickled
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
    return Source(whole, SHARDED.name, size, notes, metadata, parts, pickled)


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
