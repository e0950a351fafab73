"""One conversion from beginning to end: read, choose, write, and read back."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import torch

from ..errors import (
    ArgumentError,
    CheckpointExistsError,
    FormatError,
    JsonckptError,
    StateMismatchError,
    quote,
)
from ..format.filenames import check_single_name
from ..format.limits import DEFAULT_LIMITS, Limits, checked_limits
from ..storage.new_file import shared_bits
from ..storage.os_errors import writing
from ..storage.path_arguments import is_url, path_text, without_query
from .compare import Comparison, compare
from .foreign import ForeignOptions, read_foreign
from .payloads import dtype_named
from .progress import Progress, human, tell
from .readback import compare_checkpoint
from .safetensorsfile import load_safetensors
from .selection import cast, choose, drop_optimizers, named_tensors
from .sources import ReadOptions, Source, read_source
from .spool import Spool, spool_directory
from .targets import FORMATS, Format, flat_names, format_of, write_target
from .torchfiles import load_torch_file

#: From so many bytes on, a line announces the writing where there is no terminal.
_LONG = 1_000_000_000
#: Characters of text for one element as a number, by item size: measured on trained weights.
_CHARACTERS = {1: 6, 2: 10, 4: 12.6, 8: 20}
_GUIDE_CHARACTERS = {1: 6, 2: 14, 4: 20.6, 8: 21}
#: What zstd leaves of raw bytes, by item size.
_COMPRESSED = {1: 0.9, 2: 0.68, 4: 0.83, 8: 0.9}


@dataclass(frozen=True, slots=True)
class ConvertOptions:
    """How to convert. The defaults change nothing of what is read.

    Attributes:
        to: the format; ``None`` goes by the output's suffix.
        encoding, compression, max_shard_size: as :func:`jsonckpt.save` has them; ``None`` leaves
            its defaults.
        include, exclude: names or globs of tensors.
        optimizer: keep the states of optimizers.
        dtype: of the model's floating-point tensors.
        overwrite: replace an output that exists.
        delete_first: remove it before the new one is written, as :func:`jsonckpt.save` does.
        dry_run: write nothing.
        test_load: read the output back and compare every bit.
        unsafe_pickle: let files that need it run pickle code.
        plain_lists, tie, shapes: for JSON of other programs, see
            :class:`ForeignOptions`.
        spool: the directory for temporary files; by default the output's.
        progress: where to show how far it is.
        limits: how large what is read may be.
    """

    to: Format | None = None
    encoding: str | None = None
    compression: str | None = None
    max_shard_size: str | int | None = None
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    optimizer: bool = True
    dtype: str | None = None
    overwrite: bool = False
    delete_first: bool = False
    dry_run: bool = False
    test_load: bool = False
    unsafe_pickle: bool = False
    plain_lists: bool = False
    tie: Sequence[tuple[str, str]] = ()
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    spool: str | os.PathLike[str] | None = None
    progress: IO[str] | None = None
    limits: Limits = DEFAULT_LIMITS


@dataclass(frozen=True, slots=True)
class ConvertResult:
    """What was done.

    Attributes:
        input, output: the paths.
        kind: what the input is, in words.
        to: the output's format.
        input_bytes, output_bytes: sizes on disk; of a dry run, the second is an estimate.
        tensors: every tensor that was written: name, dtype, shape; tied ones once.
        tensor_bytes: their raw size.
        left_out: names of what the format cannot hold, and of what was not asked for: tensors,
            and optimizers as a whole.
        tensors_left_out: how many tensors were not asked for.
        notes: what was mended, assumed or changed.
        comparison: of the output with what was read, if it was asked for.
        seconds: that it took.
        dry_run: whether nothing was written.
    """

    input: Path
    output: Path
    kind: str
    to: Format
    input_bytes: int
    output_bytes: int
    tensors: list[tuple[str, str, tuple[int, ...]]]
    tensor_bytes: int
    left_out: list[str]
    tensors_left_out: int
    notes: list[str]
    comparison: Comparison | None
    seconds: float
    dry_run: bool

    @property
    def ratio(self) -> float:
        """The output's size in terms of the input's."""
        return self.output_bytes / self.input_bytes if self.input_bytes else 0.0


def default_output(source: Path, to: Format | None) -> Path:
    """The output's path where none is given: the input's, with the suffix of the format.

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


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
    **changes: Any,
) -> ConvertResult:
    """Convert a checkpoint between ``.pt``, safetensors, jsonckpt and the JSON of other programs.

    Args:
        source: a checkpoint of any kind; its content says which.
        output: where to write; by default the input's name with ``.json``.
        options: how.
        **changes: single options, by the names in :class:`ConvertOptions`.

    Raises:
        StateMismatchError: with ``test_load``: what was read back is not what was written.
        JsonckptError: and what derives from it: it could not be read or written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> torch.save({"w": torch.ones(2)}, folder / "best.pt")
    >>> convert(folder / "best.pt", to="safetensors", test_load=True).output.name
    'best.safetensors'
    """
    options = options or ConvertOptions()
    if changes:
        known = {name: getattr(options, name) for name in ConvertOptions.__slots__}
        unknown = [name for name in changes if name not in known]
        if unknown:
            raise ArgumentError(
                f"there is no option {quote(unknown[0])}; there are {', '.join(known)}"
            )
        options = ConvertOptions(**{**known, **changes})
    place = _local(source, "source")
    target = None if output is None else _local(output, "output")
    result = run(place, target, options)
    if result.comparison is not None and result.comparison.differences:
        raise StateMismatchError(
            "what was read back differs from what was written",
            mismatched=result.comparison.differences,
            file=result.output,
        )
    return result


def _local(path: str | os.PathLike[str], argument: str = "path") -> Path:
    """A path on this machine.

    Raises:
        JsonckptError: it is a URL.
    """
    try:
        remote = is_url(path_text(path, argument))
    except ArgumentError:
        raise
    except JsonckptError:  # one that was a URL before pathlib took it
        remote = True
    if remote:
        raise JsonckptError(
            "this is a URL, and conversions work on local files",
            file=without_query(os.fspath(path)),
            hint="Copy the checkpoint here first, or load and save it.",
        )
    return Path(path)


def run(source_path: Path, output: Path | None, options: ConvertOptions) -> ConvertResult:
    """As :func:`convert`, but differences found by ``test_load`` are in the result, not raised."""
    began = time.monotonic()
    for path in (source_path, output or source_path):
        _local(path)
    if options.to is not None and options.to not in FORMATS:
        raise ArgumentError(f"to is {quote(options.to)}; it may be {', '.join(FORMATS)}")
    checked_limits(options.limits)
    with writing(output or source_path):
        output = output or default_output(source_path, options.to)
        os.path.abspath(output)  # fails where the working directory is gone
    to = options.to or format_of(output)
    _check_paths(source_path, output, to, options)
    spool = spool_directory(options.spool, output)
    shared = shared_bits(source_path)
    source = read_source(
        source_path,
        ReadOptions(
            spool,
            options.unsafe_pickle,
            options.plain_lists,
            options.tie,
            options.shapes,
            options.progress,
            options.limits,
        ),
    )
    notes = list(source.notes)
    state, left_out = _selected(source.state, options, spool, notes)
    tensors_left_out = _count(source.state) - _count(state) if left_out else 0
    tensors, nbytes = _listed(state)
    comparison: Comparison | None = None
    if options.dry_run:
        size = _estimate(state, to, options)
    else:
        if nbytes >= _LONG and options.progress is not None and not options.progress.isatty():
            tell(options.progress, f"writing {output}: {human(nbytes)} of tensors")
        written = write_target(
            state,
            output,
            to,
            overwrite=options.overwrite,
            save_options=_save_options(options, source),
            shared=shared,
            progress=options.progress,
        )
        size = written.nbytes
        left_out += written.left_out
        notes += written.notes
        if options.test_load:
            comparison = _read_back(state, output, to, spool, options, written.left_out)
    return ConvertResult(
        source_path,
        output,
        source.kind,
        to,
        source.nbytes,
        size,
        tensors,
        nbytes,
        left_out,
        tensors_left_out,
        notes,
        comparison,
        time.monotonic() - began,
        options.dry_run,
    )


def _check_paths(source: Path, output: Path, to: Format, options: ConvertOptions) -> None:
    """Find out before the long work what would make it useless."""
    with writing(output):
        if source.exists() and output.exists() and source.samefile(output):
            raise CheckpointExistsError(
                "is the input itself", file=output, hint="Name another --output."
            )
    if to != "dir":
        check_single_name(os.path.realpath(output))
        check_single_name(str(output))
    if options.delete_first and os.path.realpath(output) in map(
        str, Path(os.path.realpath(source)).parents
    ):
        raise CheckpointExistsError(
            "holds the input, which delete_first would remove",
            file=output,
            hint="Name another --output.",
        )
    if os.path.lexists(output) and not options.overwrite and not options.dry_run:
        raise CheckpointExistsError(
            "exists already", file=output, hint="Pass --overwrite to replace it."
        )
    named = format_of(output)
    if to in ("dir", "json", "json.zst") and named != to and not (to == "dir" and named == "dir"):
        wanted = f"ends in {FORMATS[to]}" if FORMATS[to] else "has none of the known suffixes"
        raise JsonckptError(f"--to {to} needs an output whose name {wanted}", file=output)


def _selected(
    state: Any, options: ConvertOptions, spool: Path, notes: list[str]
) -> tuple[Any, list[str]]:
    """The part of the state that was asked for, and the names of what was not."""
    left_out: list[str] = []
    if not options.optimizer:
        state, left_out = drop_optimizers(state)
        if not left_out:
            notes.append("no optimizer was found to leave out")
    state, unasked = choose(state, options.include, options.exclude)
    left_out += unasked
    if options.dtype is not None:
        dtype, _ = dtype_named(options.dtype)
        if not dtype.is_floating_point:
            raise FormatError(f"--dtype {options.dtype} is no floating-point dtype")
        with Spool(spool) as room:
            state, count = cast(state, dtype, room)
        notes.append(f"{count} tensors of the model are now {dtype}")
    return state, left_out


def _count(state: Any) -> int:
    return sum(1 for _ in named_tensors(state))


def _listed(state: Any) -> tuple[list[tuple[str, str, tuple[int, ...]]], int]:
    seen: set[tuple[object, ...]] = set()
    listed, nbytes = [], 0
    for name, tensor in named_tensors(state):
        if tensor.layout == torch.strided and not tensor.is_quantized and tensor.numel():
            place = (tensor.untyped_storage().data_ptr(), tensor.storage_offset())
            key = (*place, tensor.dtype, tuple(tensor.shape), tensor.stride())
            if key in seen:
                continue
            seen.add(key)
        listed.append((name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)))
        nbytes += tensor.numel() * tensor.itemsize
    return listed, nbytes


def _save_options(options: ConvertOptions, source: Source) -> dict[str, Any]:
    chosen = {
        "encoding": options.encoding,
        "compression": options.compression,
        "max_shard_size": options.max_shard_size,
        "delete_first": options.delete_first or None,
        "metadata": source.metadata or None,
    }
    return {name: value for name, value in chosen.items() if value is not None}


def _estimate(state: Any, to: Format, options: ConvertOptions) -> int:
    """About how many bytes the output would have."""
    total = 500.0
    for _, dtype, shape in _listed(state)[0]:
        itemsize = dtype_size(dtype)
        count = 1
        for size in shape:
            count *= size
        raw = count * itemsize
        if to == "legacy-json":
            total += 80 + count * _GUIDE_CHARACTERS.get(itemsize, 20)
        elif to in ("pt", "safetensors"):
            total += 200 + raw
        elif options.encoding == "list":
            total += 250 + count * _CHARACTERS.get(itemsize, 13)
        else:
            squeezed = options.compression not in (None, "none") or to == "json.zst"
            share = _COMPRESSED.get(itemsize, 0.9) if squeezed else 1.0
            text = raw * share * (1.0 if to == "json.zst" else 4 / 3)
            total += 400 + text + 60 * (raw / (1 << 20))
    return int(total)


def dtype_size(name: str) -> int:
    """Bytes of one element of the dtype of this name."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype.itemsize


def _read_back(
    state: Any,
    path: Path,
    to: Format,
    spool: Path,
    options: ConvertOptions,
    left_out: Sequence[str],
) -> Comparison:
    with Progress("comparing", None, options.progress) as progress:
        if to in ("dir", "json", "json.zst"):
            return compare_checkpoint(state, path, spool, progress.advance)
        if to == "pt":
            found = load_torch_file(path, spool, unsafe_pickle=options.unsafe_pickle)
            return compare(state, found)
        if to == "safetensors":
            tensors = {name: tensor.detach() for name, tensor in flat_names(state)[0].items()}
            loaded = load_safetensors(path)
            order = {name: loaded[name] for name in tensors if name in loaded}
            # The format has no strides.
            return compare(tensors, {**order, **loaded}, strides=False)
        with path.open("rb") as file:
            found, _ = read_foreign(file, spool, ForeignOptions(), progress.advance)
        return compare(state, found, exact_types=False, ignored=left_out)
