"""Reads a checkpoint of any kind. The content says what it is, not the name."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

from zstandard import FRAME_HEADER

from ..errors import (
    CheckpointNotFoundError,
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    quote,
)
from ..foreign.read_json import ForeignOptions, read_foreign
from ..foreign.scratch import tensor_spool
from ..format.limits import DEFAULT_LIMITS, Limits
from ..format.zstd import zstd
from ..load.api import load_selected
from ..load.checkpoint import open_checkpoint
from ..load.options import ReadOptions, TensorSelection
from ..progress import progress_on
from ..storage.missing import hint_for_missing
from ..storage.new_file import special_kind
from .options import OWN_FORMATS, ConvertOptions, Format
from .safetensors_files import load_safetensors, load_sharded
from .torch_files import find_unpacked, load_torch_file, load_unpacked

_OWN = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"format"\s*:\s*"jsonckpt\.(shard|manifest)"')
#: The names of the weights in a directory of Hugging Face, in order of preference.
_HUB_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_INDEX = re.compile(r".*\.(safetensors|bin)\.index\.json")


@dataclass(frozen=True, slots=True)
class Source:
    """What was read.

    Attributes:
        state: the nested state. Tensors are mapped files where possible.
        kind: the kind of the input, in words.
        nbytes: its size on disk.
        notes: what was repaired or assumed.
        metadata: of the user, in a jsonckpt checkpoint.
    """

    state: Any
    kind: str
    nbytes: int
    notes: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


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
            "there is no such file or directory", file=path, hint=hint_for_missing(path)
        ) from error
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror})", file=path) from error


def read_back(path: Path, to: Format, options: ConvertOptions, directory: Path) -> Any:
    """Load what was just written in a known format."""
    if to in OWN_FORMATS:
        return _load_own(path, options, directory, DEFAULT_LIMITS)
    if to == "pt":
        return load_torch_file(path, directory, unsafe_pickle=options.unsafe_pickle)
    if to == "safetensors":
        return load_safetensors(path)
    with path.open("rb") as file, progress_on(options.progress, "reading back") as advance:
        return read_foreign(file, directory, ForeignOptions(), advance)[0]


def _size_on_disk(path: Path) -> int:
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _read_directory(path: Path, options: ConvertOptions, directory: Path) -> Source:
    if (path / "manifest.json").is_file():
        return _read_own(path, options, directory)
    unpacked = find_unpacked(path)
    if unpacked is not None:
        state = load_unpacked(unpacked, directory, unsafe_pickle=options.unsafe_pickle)
        return Source(state, "unpacked PyTorch file", _size_on_disk(unpacked))
    for name in _HUB_FILES:
        if (path / name).is_file():
            return _read_file(path / name, options, directory)
    raise CheckpointNotFoundError(
        "this directory holds no checkpoint",
        file=path,
        hint="Expected manifest.json (jsonckpt), data.pkl (a .pt that was unpacked), "
        "model.safetensors or pytorch_model.bin.",
    )


def _read_file(path: Path, options: ConvertOptions, directory: Path) -> Source:
    with path.open("rb") as file:
        head = file.read(4096)
    size = path.stat().st_size
    if not head:
        raise FormatError("the file is empty")
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return Source(load_safetensors(path), "safetensors file", size)
    if head.startswith((b"PK\x03\x04", b"\x80")):
        state = load_torch_file(path, directory, unsafe_pickle=options.unsafe_pickle)
        return Source(state, "PyTorch file", size)
    if head.startswith(FRAME_HEADER):
        return _read_compressed(path, options, directory)
    if _INDEX.fullmatch(path.name):
        return _read_sharded(path, options, directory)
    if (own := _OWN.match(head)) is not None:
        if own[1] == b"shard":
            return _read_own(path, options, directory)
        if path.name != "manifest.json":
            raise FormatError("a manifest under another name", hint="Call it manifest.json.")
        return _read_own(path.parent, options, directory)
    if head.startswith(b"\x1f\x8b"):
        return _read_json(path, options, directory, gzip.open)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _read_json(path, options, directory, None)
    raise FormatError(
        f"a file of unknown kind; it begins with {quote(head[:12])}",
        hint="Known are files of torch.save, safetensors, jsonckpt and JSON.",
    )


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
    unpack = partial(_zstd, window=options.limits.zstd_window)
    with path.open("rb") as file, unpack(file) as text:
        head = _Bounded(text, 4096).read(4096)
    if _OWN.match(head):
        return _read_own(path, options, directory)
    return _read_json(path, options, directory, unpack)


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
    unpack: Callable[[IO[bytes]], Any] | None,
) -> Source:
    size = path.stat().st_size
    most = options.limits.total_bytes(size)
    load_pickle = partial(load_torch_file, directory=directory, unsafe_pickle=True)
    foreign = ForeignOptions(
        options.plain_lists,
        options.tie,
        options.shapes,
        load_pickle=load_pickle if options.unsafe_pickle else None,
        limit=1 << 62 if most is None else most,
        marks=options.limits.for_text(size).marks,
    )
    total = size if unpack is None else None
    with path.open("rb") as file, progress_on(options.progress, "reading", total) as advance:
        if unpack is None:
            state, notes = read_foreign(file, directory, foreign, advance)
        else:
            with unpack(file) as stream:
                text = _Bounded(stream, foreign.limit)
                state, notes = read_foreign(text, directory, foreign, advance)
    return Source(state, "JSON of another program", size, notes)


def _read_sharded(index: Path, options: ConvertOptions, directory: Path) -> Source:
    files = load_sharded(index)
    state: dict[str, Any] = {}
    size = index.stat().st_size
    for name in dict.fromkeys(files.values()):
        shard = _read_file(index.parent / name, options, directory)
        size += shard.nbytes
        if not isinstance(shard.state, dict):
            raise FormatError("the shard is not a state dict", file=index.parent / name)
        state.update(shard.state)
    missing = [name for name in files if name not in state]
    if missing:
        raise FormatError(f"tensor {quote(missing[0])} is in no shard")
    ordered = {name: state[name] for name in files}
    return Source({**ordered, **state}, "sharded checkpoint", size)
