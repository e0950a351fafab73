"""Reading a checkpoint of any kind: what it is, is told by its content, not by its name."""

from __future__ import annotations

import gzip
import re
import stat
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard

from ..errors import CheckpointNotFoundError, FormatError, JsonckptError, LimitError, quote
from ..format.limits import DEFAULT_LIMITS, Limits
from . import core
from .foreign import ForeignOptions, read_foreign
from .progress import Progress
from .safetensorsfile import load_safetensors, load_sharded
from .spool import Spool
from .torchfiles import find_unpacked, load_torch_file, load_unpacked

_OWN = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{\s*"format"\s*:\s*"jsonckpt\.(shard|manifest)"')
#: What Hugging Face calls the weights in a model's directory, in order of preference.
_HUB_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
_INDEX = re.compile(r".*\.(safetensors|bin)\.index\.json")


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How to read.

    Attributes:
        spool: the directory for temporary files.
        unsafe_pickle: let files that need it run pickle code.
        plain_lists, tie, shapes: see :class:`ForeignOptions`.
        progress: where to show how far it is.
        limits: how large a jsonckpt checkpoint, and what compressed data unfolds to, may be.
    """

    spool: Path
    unsafe_pickle: bool = False
    plain_lists: bool = False
    tie: Sequence[tuple[str, str]] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    progress: IO[str] | None = None
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class Source:
    """What was read.

    Attributes:
        state: the nested state; tensors are mapped files where that is possible.
        kind: what the input is, in words.
        nbytes: its size on disk.
        notes: what was mended or assumed.
        metadata: the user's metadata, of a jsonckpt checkpoint.
    """

    state: Any
    kind: str
    nbytes: int
    notes: list[str]
    metadata: dict[str, Any]


def size_on_disk(path: Path) -> int:
    """Bytes of a file, or of all files in a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def read_source(path: Path, options: ReadOptions) -> Source:
    """Read ``path``, whatever kind of checkpoint it is.

    Raises:
        CheckpointNotFoundError: there is nothing at ``path``.
        UnsupportedTypeError: it needs pickle.
        FormatError and the other errors of this package: it cannot be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            source = _read_directory(path, options)
        elif stat.S_ISREG(mode):
            source = _read_file(path, options)
        else:
            raise FormatError("neither a file nor a directory", file=path)
    except FileNotFoundError as error:
        if isinstance(error, JsonckptError):
            raise
        raise CheckpointNotFoundError("there is no such file or directory", file=path) from error
    except JsonckptError as error:
        raise error.at(file=path) from error.__cause__
    except OSError as error:
        raise FormatError(f"cannot be read ({error.strerror})", file=path) from error
    return source


def _read_directory(path: Path, options: ReadOptions) -> Source:
    if (path / "manifest.json").is_file():
        return _read_own(path, options)
    unpacked = find_unpacked(path)
    if unpacked is not None:
        state = load_unpacked(unpacked, options.spool, unsafe_pickle=options.unsafe_pickle)
        return Source(state, "unpacked PyTorch file", size_on_disk(unpacked), [], {})
    for name in _HUB_FILES:
        if (path / name).is_file():
            return _read_file(path / name, options)
    raise CheckpointNotFoundError(
        "this directory holds no checkpoint",
        file=path,
        hint="Expected manifest.json (jsonckpt), data.pkl (a .pt that was unpacked), "
        "model.safetensors or pytorch_model.bin.",
    )


def _read_file(path: Path, options: ReadOptions) -> Source:
    with path.open("rb") as file:
        head = file.read(4096)
    size = path.stat().st_size
    if not head:
        raise FormatError("the file is empty")
    if head[8:9] == b"{" and 2 <= int.from_bytes(head[:8], "little") <= size - 8:
        return Source(load_safetensors(path), "safetensors file", size, [], {})
    if head.startswith((b"PK\x03\x04", b"\x80")):
        state = load_torch_file(path, options.spool, unsafe_pickle=options.unsafe_pickle)
        return Source(state, "PyTorch file", size, [], {})
    if head.startswith(zstandard.FRAME_HEADER):
        return _read_compressed(path, options)
    if _INDEX.fullmatch(path.name):
        return _read_sharded(path, options)
    if (own := _OWN.match(head)) is not None:
        if own[1] == b"shard":
            return _read_own(path, options)
        if path.name != "manifest.json":
            raise FormatError("a manifest under another name", hint="Call it manifest.json.")
        return _read_own(path.parent, options)
    if head.startswith(b"\x1f\x8b"):
        return _read_json(path, options, gzip.open)
    if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"["):
        return _read_json(path, options, None)
    raise FormatError(
        f"a file of unknown kind; it begins with {quote(head[:12])}",
        hint="Known are files of torch.save, safetensors, jsonckpt and JSON.",
    )


def _read_own(path: Path, options: ReadOptions) -> Source:
    with Spool(options.spool) as spool:
        show = options.progress is not None and options.progress.isatty()
        state = core.load_checkpoint(
            path, allocate=spool.allocate, progress=show, limits=options.limits
        )
    metadata = core.metadata_of(path, options.limits)
    return Source(state, "jsonckpt checkpoint", size_on_disk(path), [], metadata)


def _read_compressed(path: Path, options: ReadOptions) -> Source:
    unpack = partial(_zstd, window=options.limits.zstd_window)
    with path.open("rb") as file, unpack(file) as text:
        try:
            head = text.read(4096)
        except zstandard.ZstdError as error:
            raise FormatError(f"damaged zstd data ({quote(str(error))})") from error
    if _OWN.match(head):
        return _read_own(path, options)
    return _read_json(path, options, unpack)


def _zstd(file: IO[bytes], window: int | None) -> Any:
    reader = zstandard.ZstdDecompressor(max_window_size=1 << 31 if window is None else window)
    return reader.stream_reader(file, read_across_frames=True)


class _Bounded:
    """Decompressed text, which may not be a thousand times its file."""

    def __init__(self, stream: Any, limit: int) -> None:
        self._stream = stream
        self._left = limit

    def read(self, size: int) -> bytes:
        try:
            data: bytes = self._stream.read(size)
        except (zstandard.ZstdError, zlib.error, EOFError, OSError, ValueError) as error:
            raise FormatError(f"damaged compressed data ({quote(str(error))})") from error
        self._left -= len(data)
        if self._left < 0:
            raise LimitError(
                "the compressed file unfolds to more than the limits allow",
                hint="Pass --limit expansion=none if it is meant.",
            )
        return data


def _read_json(
    path: Path, options: ReadOptions, unpack: Callable[[IO[bytes]], Any] | None
) -> Source:
    size = path.stat().st_size
    most = options.limits.total_bytes(size)
    limit = 1 << 62 if most is None else most
    load_pickle = None
    if options.unsafe_pickle:
        load_pickle = partial(load_torch_file, directory=options.spool, unsafe_pickle=True)
    foreign = ForeignOptions(
        options.plain_lists,
        options.tie,
        options.shapes,
        load_pickle=load_pickle,
        limit=limit,
        marks=options.limits.for_text(size).marks,
    )
    with path.open("rb") as file:
        if unpack is None:
            with Progress("reading", size, options.progress) as progress:
                state, notes = read_foreign(file, options.spool, foreign, progress.advance)
        else:
            with unpack(file) as stream, Progress("reading", None, options.progress) as progress:
                text = _Bounded(stream, limit)
                state, notes = read_foreign(text, options.spool, foreign, progress.advance)
    return Source(state, "JSON of another program", size, notes, {})


def _read_sharded(index: Path, options: ReadOptions) -> Source:
    files = load_sharded(index)
    state: dict[str, Any] = {}
    size = index.stat().st_size
    for name in dict.fromkeys(files.values()):
        shard = _read_file(index.parent / name, options)
        size += shard.nbytes
        if not isinstance(shard.state, dict):
            raise FormatError("a shard that is no state dict", file=index.parent / name)
        state.update(shard.state)
    missing = [name for name in files if name not in state]
    if missing:
        raise FormatError(f"tensor {quote(missing[0])} is in no shard")
    ordered = {name: state[name] for name in files}
    extra = {name: value for name, value in state.items() if name not in ordered}
    return Source({**ordered, **extra}, "sharded checkpoint", size, [], {})
