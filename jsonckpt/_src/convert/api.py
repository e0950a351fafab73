"""Runs a conversion: read, select, write, and compare with the output read back."""

from __future__ import annotations

import inspect
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from ..errors import (
    ArgumentError,
    CheckpointExistsError,
    LimitError,
    StateMismatchError,
    counted,
    quote,
)
from ..format.filenames import check_single_name
from ..format.limits import checked_limits
from ..progress import human, tell
from ..shown import ShortRepr
from ..sources.safetensors_files import unpack_metadata
from ..storage.new_file import check_replaceable, mode_of, shared_bits
from ..storage.os_errors import writing
from ..storage.path_arguments import check_storage_options, check_target_name, is_url, path_text
from ..tensors.compare import Comparison, compare
from ..tensors.pieces import memory_of
from ..transfer.local_copies import LocalCopies
from .options import (
    FORMATS,
    OWN_FORMATS,
    ConvertArguments,
    ConvertOptions,
    Format,
    default_output,
    for_the_web,
    format_of,
    spool_directory,
)
from .read import read, read_back
from .select import named_tensors, select
from .source import Source
from .tally import Tally
from .write import Prepared, Written, flat_names, prepare, write

#: Without a terminal, a line announces the writing of this many bytes or more.
_LONG = 1_000_000_000
#: Characters of text for one element as a number, by item size, measured on trained weights.
_CHARACTERS = {1: 6, 2: 10, 4: 12.6, 8: 20}
_GUIDE_CHARACTERS = {1: 6, 2: 14, 4: 20.6, 8: 21}
#: The share of raw bytes that zstd leaves, by item size.
_COMPRESSED = {1: 0.9, 2: 0.68, 4: 0.83, 8: 0.9}
#: The share that it leaves of other text.
_COMPRESSED_TEXT = 0.35
#: What is compared in each format.
_EXACT = ("bit", "dtype", "shape", "stride", "key", "type")
_COMPARED: dict[Format, tuple[str, ...]] = {
    **dict.fromkeys(FORMATS, _EXACT),
    "safetensors": ("bit", "dtype", "shape", "name"),
    "legacy-json": ("number", "dtype", "shape", "key"),
}
#: Options -> whether a value has the right type, and that type in words.
if TYPE_CHECKING:
    from typing_extensions import Unpack  # typing has it since Python 3.11

_TYPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("to", lambda value: value is None or isinstance(value, str), "the name of a format"),
    ("include", lambda value: _all(value, str), "a sequence of names"),
    ("exclude", lambda value: _all(value, str), "a sequence of names"),
    ("dtype", lambda value: value is None or isinstance(value, str), "a name such as 'bfloat16'"),
    ("tie", lambda value: _all(value, tuple | list), "a sequence of pairs of names"),
    ("shapes", lambda value: isinstance(value, Mapping), "a dictionary of lists of sizes"),
    ("progress", lambda value: value is None or hasattr(value, "write"), "a text stream or None"),
)
#: Keys of the checkpoints that training scripts write.
_OF_SCRIPTS = frozenset({"model_state_dict", "optimizer_state_dict"})
Listed = list[tuple[str, str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True, repr=False)
class ConvertResult(ShortRepr):
    """The result of a conversion.

    Attributes:
        input, output: the paths; URLs as text.
        kind: the kind of the input, in words.
        to: the format of the output.
        input_bytes, output_bytes: sizes on disk. After a dry run, the second is an estimate.
        tensors: the name, dtype and shape of every tensor that was written. Tied ones count once.
        tensor_bytes: their raw size.
        left_out: names of values that the format cannot hold, and of tensors and whole optimizers
            that were not asked for.
        tensors_left_out: the number of tensors that were not asked for.
        notes: what was repaired, assumed or changed, and how a notebook reads the output.
        changed: the number of tensors that ``dtype`` changed.
        reader_files: with ``with_reader``: the paths of the files that read the output without
            jsonckpt.
        pin: for ``expected_digest=`` of a load, of a jsonckpt output with ``checksum="sha256"`` or
            ``"blake3"``.
        comparison: of the output with what was written, with ``test_load``.
        compared: what the comparison looked at, such as ``"bit"`` and ``"dtype"``.
        not_compared: what differs from the input, or was not looked at, one line each. It is empty
            where the output is the same as the input in everything that was compared.
        seconds: the time it took.
        dry_run: True if nothing was written.
    """

    input: Path | str
    output: Path | str
    kind: str
    to: Format
    input_bytes: int
    output_bytes: int
    tensors: Listed
    tensor_bytes: int
    seconds: float
    left_out: list[str] = field(default_factory=list)
    tensors_left_out: int = 0
    notes: list[str] = field(default_factory=list)
    changed: int = 0
    pin: str | None = None
    comparison: Comparison | None = None
    compared: tuple[str, ...] = field(default=(), repr=False)
    not_compared: list[str] = field(default_factory=list)
    dry_run: bool = False
    reader_files: list[str] = field(default_factory=list)

    @property
    def ratio(self) -> float:
        """The size of the output divided by the size of the input."""
        return self.output_bytes / self.input_bytes if self.input_bytes else 0.0


def convert(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    options: ConvertOptions | None = None,
    **changes: Unpack[ConvertArguments],
) -> ConvertResult:
    """Convert a checkpoint between ``.pt``, safetensors, jsonckpt and the JSON of other programs.

    It also reads files of NumPy and models of TensorFlow.js.

    Args:
        source: a checkpoint of any kind, which its content tells.
        output: where to write. The default is the name of the input with ``.json``.
        options: how to convert.
        **changes: single options, by their names in :class:`ConvertOptions`.

    Raises:
        StateMismatchError: with ``test_load``: what was read back differs from what was written.
        JsonckptError: the input cannot be read, or the output cannot be written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> torch.save({"w": torch.ones(2)}, folder / "best.pt")
    >>> convert(folder / "best.pt", to="safetensors", test_load=True).output.name
    'best.safetensors'
    """
    chosen = _chosen(options, dict(changes))
    place = _given(source, "source")
    target = None if output is None else _given(output, "output")
    result = run(place, target, chosen)
    if result.comparison is not None and result.comparison.differences:
        raise StateMismatchError(
            "what was read back differs from what was written",
            mismatched=result.comparison.differences,
            file=result.output,
        )
    return result


def _signature() -> inspect.Signature:
    """The signature of :func:`convert` with its options, as editors and notebooks show it."""
    shown = [*inspect.signature(convert).parameters.values()][:3]
    for option in fields(ConvertOptions):
        default = None if option.default is MISSING else option.default
        kind = inspect.Parameter.KEYWORD_ONLY
        shown.append(inspect.Parameter(option.name, kind, default=default, annotation=option.type))
    return inspect.Signature(shown, return_annotation="ConvertResult")


convert.__signature__ = _signature()  # type: ignore[attr-defined]


def _chosen(options: ConvertOptions | None, changes: dict[str, Any]) -> ConvertOptions:
    """The options of a call in Python, checked.

    Raises:
        ArgumentError: there is no such option, or its value is of another type.
    """
    if not isinstance(options, ConvertOptions | None):
        raise ArgumentError(
            f"options must be ConvertOptions(...) or None, not {quote(type(options).__name__)}",
            hint="Single options are passed by name: convert(source, output, to='pt').",
        )
    known = [option.name for option in fields(ConvertOptions)]
    unknown = [name for name in changes if name not in known]
    if unknown:
        raise ArgumentError(f"there is no option {quote(unknown[0])}; there are {', '.join(known)}")
    for name in ("include", "exclude"):
        if isinstance(changes.get(name), str):  # as in load
            changes[name] = (changes[name],)
    chosen = replace(options or ConvertOptions(), **changes)
    check_storage_options(chosen.storage_options)
    for name, is_right, expected in _TYPES:
        if not is_right(getattr(chosen, name)):
            found = quote(getattr(chosen, name))
            raise ArgumentError(f"{name} must be {expected}, not {found}")
    return chosen


def run(source: Path | str, output: Path | str | None, options: ConvertOptions) -> ConvertResult:
    """As :func:`convert`, but the result has the differences that ``test_load`` finds.

    Args:
        source, output: URLs are of type ``str``.
    """
    if isinstance(source, Path) and not isinstance(output, str):
        return _run(source, output, options)
    if output is None:
        raise ArgumentError("an output is needed where the input is a URL", file=str(source))
    near = options.spool if isinstance(output, str) else options.spool or output.absolute().parent
    with LocalCopies(options.storage_options, near) as copies:
        target = copies.target(output, overwrite=options.overwrite or options.dry_run)
        result = _run(copies.source(source), target, options)
        if not options.dry_run and not (result.comparison and result.comparison.differences):
            copies.publish()
    return replace(result, input=source, output=output)


def _run(source_path: Path, output: Path | None, options: ConvertOptions) -> ConvertResult:
    began = time.monotonic()
    options = for_the_web(options)
    output, to = _checked(source_path, output, options)
    directory = spool_directory(options.spool, output)
    shared = shared_bits(source_path)
    try:
        source = read(source_path, options, directory)
        selected = select(source.state, options, directory)
        if source.pickled:
            from .pickle_files import refuse

            refuse(selected.state, source_path, objects=to != "pt")
        prepared = prepare(selected.state, to, source.metadata, dry=options.dry_run)
        tensors, nbytes = _listed(selected.state)
        comparison: Comparison | None = None
        if options.dry_run:
            written = Written(_estimate(prepared, tensors, options))
        else:
            if nbytes >= _LONG and options.progress is not None and not options.progress.isatty():
                tell(options.progress, f"writing {output}: {human(nbytes)} of tensors")
            written = write(prepared, output, options, shared=shared)
            if options.test_load:
                comparison = _compared(prepared, *read_back(output, to, options, directory))
    except RecursionError as error:
        raise LimitError("the state is nested too deeply", file=source_path) from error
    left_out = selected.left_out + prepared.left_out
    dropped = source.metadata and (to not in OWN_FORMATS or source.metadata != prepared.metadata)
    return ConvertResult(
        input=source_path,
        output=output,
        kind=source.kind,
        to=to,
        input_bytes=source.nbytes,
        output_bytes=written.nbytes,
        tensors=tensors,
        tensor_bytes=nbytes,
        left_out=left_out,
        tensors_left_out=selected.tensors_left_out,
        notes=[
            *(*source.notes, *selected.notes, *prepared.notes, *written.notes),
            *_how_to_read(source, selected.state, to, options),
        ],
        changed=selected.changed,
        pin=written.pin,
        comparison=comparison,
        compared=_COMPARED[to],
        not_compared=[
            *([f"{counted(len(left_out), 'name')} left out"] if left_out else []),
            *_changed(selected.changed),
            *(["the metadata"] if dropped and to != "safetensors" else []),
            *(["what the format does not keep (see the notes)"] if prepared.lost else []),
            *(_skipped(comparison) if comparison is not None else []),
        ],
        seconds=time.monotonic() - began,
        dry_run=options.dry_run,
        reader_files=written.reader_files,
    )


def _changed(count: int) -> list[str]:
    if not count:
        return []
    words = "it" if count == 1 else "them"
    return [f"{counted(count, 'tensor')} with the input, since --dtype changed {words}"]


def _how_to_read(source: Source, state: Any, to: Format, options: ConvertOptions) -> list[str]:
    """How a notebook reads a single file, if the state is that of a training script.

    Notebooks that look for number lists find nothing in the file, and begin from scratch.
    """
    is_new = to == "json" and not source.kind.startswith("jsonckpt") and not options.dry_run
    if not (is_new and isinstance(state, dict) and _OF_SCRIPTS & state.keys()):
        return []
    if options.with_reader:
        return ["a notebook reads it with: from checkpoint_to_json import load_json_checkpoint"]
    return [
        "a notebook reads it with jsonckpt.load, or without jsonckpt after --with-reader; "
        "an unchanged notebook that reads number lists needs --to legacy-json"
    ]


def _skipped(comparison: Comparison) -> list[str]:
    names = comparison.skipped
    tally = Tally()
    for name in names:
        tally.add("values that have no equality", name)
    return tally.notes()


def _all(values: object, kind: Any) -> bool:
    is_list = isinstance(values, Sequence) and not isinstance(values, str | bytes)
    return is_list and all(isinstance(value, kind) for value in values)  # type: ignore[attr-defined]


def _given(path: str | os.PathLike[str], argument: str) -> Path | str:
    """A path; a URL as text."""
    text = path_text(path, argument)
    return text if is_url(text) else Path(text)


def _checked(source: Path, output: Path | None, options: ConvertOptions) -> tuple[Path, Format]:
    """The path and format of the output. Finds errors before the long work begins.

    Raises:
        JsonckptError: an option or a path is wrong.
    """
    if options.to is not None and options.to not in FORMATS:
        raise ArgumentError(f"to is {quote(options.to)}; it may be {', '.join(FORMATS)}")
    checked_limits(options.limits)
    with writing(output or source):
        output = output or default_output(source, options.to)
        os.path.abspath(output)  # fails where the working directory is gone
    to = options.to or format_of(output)
    with writing(output):
        if source.exists() and output.exists() and source.samefile(output):
            raise CheckpointExistsError(
                "is the input itself", file=output, hint="Name another --output."
            )
    with writing(output):
        mode = mode_of(output)  # os.path.isdir calls an error of the system no directory
    if to not in OWN_FORMATS or mode is None or not stat.S_ISDIR(mode):
        check_replaceable(output)
        if to in OWN_FORMATS:
            check_target_name(str(output), "output")
    if options.with_reader and to not in OWN_FORMATS:
        raise ArgumentError(f"with_reader (--with-reader) does not apply to {to}", file=output)
    if to != "dir":
        check_single_name(os.path.realpath(output))
        check_single_name(str(output))
    above = Path(os.path.realpath(source)).parents if options.delete_first else ()
    if Path(os.path.realpath(output)) in above:
        raise CheckpointExistsError(
            "holds the input, which delete_first would remove",
            file=output,
            hint="Name another --output.",
        )
    if os.path.lexists(output) and not options.overwrite and not options.dry_run:
        raise CheckpointExistsError(
            "exists already", file=output, hint="Pass overwrite=True (--overwrite) to replace it."
        )
    named = format_of(output)
    others_fit = to not in OWN_FORMATS and (named == "dir" or FORMATS[named] == FORMATS[to])
    if named != to and not others_fit:
        wanted = f"ends in {FORMATS[to]}" if FORMATS[to] else "has none of the known suffixes"
        raise ArgumentError(f"--to {to} needs an output whose name {wanted}", file=output)
    return output, to


def _listed(state: Any) -> tuple[Listed, int]:
    """Every tensor, and the number of their bytes. Tied tensors count once."""
    seen: set[object] = set()
    listed: Listed = []
    nbytes = 0
    with torch._C.DisableTorchFunctionSubclass():  # the functions of users' subclasses
        for name, tensor in named_tensors(state):
            place = memory_of(tensor) or object()
            if place not in seen:
                seen.add(place)
                # Lazy and nested tensors, which only a .pt holds, have no shape.
                shaped = not (isinstance(tensor, UninitializedTensorMixin) or tensor.is_nested)
                shape = tuple(tensor.shape) if shaped else ()
                listed.append((name, str(tensor.dtype).removeprefix("torch."), shape))
                nbytes += tensor.numel() * tensor.itemsize if shaped else 0
    return listed, nbytes


def _estimate(prepared: Prepared, tensors: Listed, options: ConvertOptions) -> int:
    """The approximate number of bytes of the output."""
    to = prepared.to
    total = 500.0 + len(str(prepared.metadata))
    if to != "safetensors":
        values = _size_of_values(prepared.state, 1.0 if to == "pt" else 4 / 3)
        total += values * (_COMPRESSED_TEXT if to == "json.zst" else 1)
    if to == "legacy-json":  # ties are written once each
        tensors = [
            (name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape))
            for name, tensor in named_tensors(prepared.state)
        ]
    for _, name, shape in tensors:
        dtype: torch.dtype = getattr(torch, name)
        itemsize, count = dtype.itemsize, prod(shape)
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


def _size_of_values(value: Any, growth: float) -> float:
    """About how many bytes values other than tensors take. ``growth`` is that of an array."""
    if isinstance(value, torch.Tensor):
        return 0.0
    if isinstance(value, np.ndarray):
        return 300 + value.nbytes * growth
    if isinstance(value, str | bytes):
        return 4.0 + len(value)
    if isinstance(value, Mapping):
        return sum(8 + len(str(key)) + _size_of_values(v, growth) for key, v in value.items())
    if isinstance(value, list | tuple):
        return sum(_size_of_values(item, growth) for item in value)
    return 8.0


def _compared(prepared: Prepared, found: Any, metadata: dict[str, Any]) -> Comparison:
    """Compare what was written with what was read back, as far as the format keeps it."""
    state, to = prepared.state, prepared.to
    if to == "legacy-json":
        return compare(state, found, exact_types=False, ignored=prepared.left_out)
    if to == "safetensors":
        tensors = {name: tensor.detach() for name, tensor in flat_names(state)[0].items()}
        order = {name: found[name] for name in tensors if name in found}
        # The format has no strides.
        result = compare(tensors, {**order, **found}, strides=False)
        expected = unpack_metadata(prepared.metadata, ties=tensors)
    else:
        result = compare(state, found)
        expected = prepared.metadata if to in OWN_FORMATS else {}
    if metadata != expected:
        result.differ("metadata", f"{quote(expected)} became {quote(metadata)}")
    return result
