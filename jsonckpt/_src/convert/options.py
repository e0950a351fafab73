"""The options of a conversion, the output formats, and the place of temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Final, Literal, TypedDict

from ..errors import ArgumentError, WriteError, quote
from ..format.limits import DEFAULT_LIMITS, Limits
from ..storage.path_arguments import path_text

Format = Literal["dir", "json", "json.zst", "pt", "safetensors", "legacy-json"]
#: The formats, with the suffix of a default output name.
FORMATS: Final[dict[Format, str]] = {
    "dir": "",
    "json": ".json",
    "json.zst": ".json.zst",
    "pt": ".pt",
    "safetensors": ".safetensors",
    "legacy-json": ".json",
}
#: The formats of this package.
OWN_FORMATS: Final = ("dir", "json", "json.zst")
#: ``max_shard_size`` of ``for_web``: files that JSON tools open with their defaults. The lowest
#: limit is that of DuckDB, 16 MiB for an object. Strings of JavaScript engines end at 512 MiB.
WEB_SHARD_SIZE: Final = 16_000_000
#: The others, in words.
FORMAT_WORDS: Final[dict[Format, str]] = {
    "pt": "a .pt file",
    "safetensors": "a safetensors file",
    "legacy-json": "this dialect",
}


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert. The defaults convert the state unchanged.

    Attributes:
        to: the format. ``None`` chooses it by the suffix of the output.
        encoding, compression, max_shard_size, checksum, save_id: as in :func:`jsonckpt.save`.
            ``None`` means its default.
        for_web: write a directory of shards of at most :data:`WEB_SHARD_SIZE` bytes without
            compression, so that every JSON tool opens them.
        include, exclude: names or globs of tensors.
        optimizer: keep the states of optimizers.
        dtype: a new dtype for the floating-point tensors of models.
        dtype_of: with ``dtype``: names or globs of the tensors that get it, in place of those of
            models.
        overwrite: replace an output that exists.
        delete_first: remove it before the new one is written, as in :func:`jsonckpt.save`.
        with_reader: also write the files that read the output without jsonckpt, as in
            :func:`jsonckpt.save`.
        dry_run: write nothing.
        test_load: read the output back and compare every bit.
        unsafe_pickle: let files run pickle code if they need that.
        pickle_encoding: of the strings of Python 2 in pickles, or ``"bytes"``.
        state_dict: take the state dicts of pickled modules and optimizers.
        plain_lists, tensors, tie, shapes: for JSON of other programs, see :class:`ForeignOptions`.
        spool: the directory for temporary files. The default is that of the output.
        progress: where to show progress.
        limits: limits on the size of the input.
        storage_options: for fsspec. What is at a URL is downloaded first, and an output for a URL
            is written to a temporary file first.
    """

    to: Format | None = None
    encoding: str | None = None
    compression: str | None = None
    max_shard_size: str | int | None = None
    checksum: str | None = None
    for_web: bool = False
    save_id: str | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    optimizer: bool = True
    dtype: str | None = None
    dtype_of: Sequence[str] = ()
    overwrite: bool = False
    delete_first: bool = False
    with_reader: bool = False
    dry_run: bool = False
    test_load: bool = False
    unsafe_pickle: bool = False
    pickle_encoding: str = "utf-8"
    state_dict: bool = False
    plain_lists: bool = False
    tensors: Sequence[str] = ()
    tie: Sequence[tuple[str, str]] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    spool: str | os.PathLike[str] | None = None
    progress: IO[str] | None = None
    limits: Limits = DEFAULT_LIMITS
    storage_options: Mapping[str, Any] | None = None


class ConvertArguments(TypedDict, total=False):
    """The single options of :func:`jsonckpt.convert`, for type checkers: see the class above."""

    to: Format | None
    encoding: str | None
    compression: str | None
    max_shard_size: str | int | None
    checksum: str | None
    for_web: bool
    save_id: str | None
    include: Sequence[str]
    exclude: Sequence[str]
    optimizer: bool
    dtype: str | None
    dtype_of: Sequence[str]
    overwrite: bool
    delete_first: bool
    with_reader: bool
    dry_run: bool
    test_load: bool
    unsafe_pickle: bool
    pickle_encoding: str
    state_dict: bool
    plain_lists: bool
    tensors: Sequence[str]
    tie: Sequence[tuple[str, str]]
    shapes: Mapping[str, Sequence[int]]
    spool: str | os.PathLike[str] | None
    progress: IO[str] | None
    limits: Limits
    storage_options: Mapping[str, Any] | None


def format_of(path: Path) -> Format:
    """The format for the name of an output.

    >>> format_of(Path("a.json.zst")), format_of(Path("a.pth")), format_of(Path("run-3"))
    ('json.zst', 'pt', 'dir')
    """
    name = path.name.lower()
    if name.endswith(".json.zst"):
        return "json.zst"
    if name.endswith(".json"):
        return "json"
    if name.endswith((".pt", ".pth", ".bin", ".ckpt")):
        return "pt"
    return "safetensors" if name.endswith(".safetensors") else "dir"


def for_the_web(options: ConvertOptions) -> ConvertOptions:
    """The options with those that ``for_web`` stands for.

    Raises:
        ArgumentError: others do not fit to it.

    >>> for_the_web(ConvertOptions(for_web=True)).max_shard_size
    16000000
    """
    if not options.for_web:
        return options
    if options.to not in (None, "dir"):
        raise ArgumentError(f"for_web writes a directory, and to is {quote(options.to)}")
    for name in ("compression", "max_shard_size"):
        if getattr(options, name) is not None:
            raise ArgumentError(f"for_web sets {name} itself", hint=f"Leave for_web or {name} out.")
    return replace(options, to="dir", max_shard_size=WEB_SHARD_SIZE)


def default_output(source: Path, to: Format | None) -> Path:
    """The default path of the output: that of the input, with the suffix of the format.

    >>> default_output(Path("a/best.pt"), None).as_posix()
    'a/best.json'
    """
    if source.name in ("", ".."):
        source = source.resolve()
    name = source.name
    for suffix in (".safetensors.index.json", ".bin.index.json", ".json.zst", ".json.gz"):
        if name.endswith(suffix):
            return source.with_name(name[: -len(suffix)] + FORMATS[to or "json"])
    stem = name if source.is_dir() else source.stem
    return source.with_name(stem + FORMATS[to or "json"])


def spool_directory(chosen: str | os.PathLike[str] | None, output: Path) -> Path:
    """The directory for temporary files: ``chosen``, or that of the output, or of the system.

    Raises:
        WriteError: ``chosen`` is not a directory.
    """
    if chosen is not None:
        directory = Path(path_text(chosen, "spool"))
        if not directory.is_dir():
            raise WriteError("is not a directory", file=directory, hint="Choose another --spool.")
        return directory
    parent = output.absolute().parent
    if parent.is_dir() and os.access(parent, os.W_OK):
        return parent
    return Path(tempfile.gettempdir())
