"""``get_value`` and ``export``: one value or tensor of a checkpoint, without torch."""

from __future__ import annotations

import math
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from ..errors import (
    ArgumentError,
    CheckpointExistsError,
    FormatError,
    LimitError,
    StateMismatchError,
    counted,
    quote,
)
from ..format.dtypes import DTYPES
from ..format.filenames import temporary_name
from ..format.json_text import Json, dump, dump_pretty
from ..format.limits import Limits, exceeds, way_over
from ..format.model import Stored, contiguous_stride, is_size
from ..inspect.plain_values import NoTensors, tag_of
from ..load.options import ReadOptions
from ..state.references import Reference, has_references, references_in
from ..state.selector import near_names
from ..state.tree import decode_state
from ..storage import commit
from ..storage.new_file import NewFile, mode_for, shared_bits
from ..storage.path_arguments import is_url
from ..storage.spool import SpoolFile
from .numbers import converted, numpy_dtype
from .places import value_at
from .records import Opened
from .tensor_text import json_pieces, npy_header, number_sizes, text_pieces, tokens
from .values import readable, rules_for
from .write import local

_BLOCK = 1 << 20
#: A tensor of more numbers is not printed.
MOST_PRINTED = 1_000
_FULL = "Free some space, or set TMPDIR to a directory with room for the tensor."


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """A tensor of a state: a record, or a view of one.

    Attributes:
        entry: the record that holds it.
        view: ``(stride, offset)`` in elements of ``dtype``, of a view.
        array: NumPy's dtype, where the state says another one than the record's.
    """

    name: str
    entry: Stored
    dtype: str
    shape: tuple[int, ...]
    view: tuple[tuple[int, ...], int] | None = None
    array: str | None = None


def find_tensor(opened: Opened, name: str) -> TensorPlace | None:
    """The tensor of a name; ``None`` if no tensor has it.

    Raises:
        FormatError: the state refers to a record that is missing.
    """
    by_name = opened.by_name
    wanted = {name, f"/{name}"}
    found = next((r for r in references_in(opened.state) if r.name in wanted), None)
    if found is None:
        entry = by_name.get(name)
        return None if entry is None else TensorPlace(name, entry, entry.dtype, entry.shape)
    return _place_of(found, opened)


def _place_of(reference: Reference, opened: Opened) -> TensorPlace:
    entry = opened.by_name.get(reference.record)
    if entry is None:
        raise StateMismatchError(
            f"{quote(reference.name, 200)} is in the record {quote(reference.record, 200)}, "
            "which is missing"
        )
    if reference.tag != "$view":
        return TensorPlace(reference.name, entry, entry.dtype, entry.shape)
    body = reference.body
    dtype, offset = body.get("dtype"), body.get("offset")
    shape, stride = body.get("shape"), body.get("stride")
    if type(shape) is list and type(stride) is list and type(dtype) is str:
        place = TensorPlace(reference.name, entry, dtype, tuple(shape), (tuple(stride), offset))
        if _is_inside(place):
            return place
    raise FormatError(f"the view {quote(reference.name, 200)} is not inside its record")


def _is_inside(place: TensorPlace) -> bool:
    """Whether a view lies inside its record."""
    assert place.view is not None
    stride, offset = place.view
    sizes = [*place.shape, *stride, offset]
    if place.dtype not in DTYPES or not all(map(is_size, sizes)):
        return False
    if len(stride) != len(place.shape):
        return False
    last = offset + sum((n - 1) * step for n, step in zip(place.shape, stride))
    return 0 in place.shape or (last + 1) * DTYPES[place.dtype].itemsize <= place.entry.nbytes


@dataclass(frozen=True, slots=True)
class TensorReading:
    """Some rows of a tensor, read block by block.

    Attributes:
        shape: of these rows.
    """

    opened: Opened
    place: TensorPlace
    shape: tuple[int, ...]
    first: int

    @classmethod
    def of(cls, opened: Opened, place: TensorPlace, rows: slice | None) -> TensorReading:
        """The rows of a tensor; all of them for ``None``.

        Raises:
            ArgumentError: rows of a number, or every second row.
            LimitError: a view repeats its record more often than the limits allow.
        """
        if rows is None:
            return cls(opened, place, place.shape, 0)._checked()
        if not place.shape:
            raise ArgumentError(f"{quote(place.name, 200)} is one number and has no rows")
        first, last, step = rows.indices(place.shape[0])
        if step != 1:
            raise ArgumentError("rows are given as FIRST:LAST, without a step")
        return cls(opened, place, (max(0, last - first), *place.shape[1:]), first)._checked()

    def _checked(self) -> TensorReading:
        nbytes = self.count * DTYPES[self.place.dtype].itemsize
        container = self.opened.container
        most = container.options.limits.total_bytes(container.first_bytes)
        if nbytes > self.place.entry.nbytes and exceeds(nbytes, most):
            raise LimitError(
                f"a view of {counted(self.place.entry.nbytes, 'byte')} would be "
                f"{counted(nbytes, 'byte')}, the limit is {most}",
                tensor=self.place.name,
                hint=way_over("total_floor"),
            )
        return self

    @property
    def count(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def blocks(self) -> Iterator[memoryview]:
        """The raw row-major bytes, in blocks of whole elements."""
        if not self.count:
            return
        place, itemsize = self.place, DTYPES[self.place.dtype].itemsize
        stride, offset = place.view or (contiguous_stride(place.shape), 0)
        start = offset + (self.first * stride[0] if place.shape else 0)
        steps = zip(self.shape, stride, contiguous_stride(self.shape))
        if all(step == flat for size, step, flat in steps if size > 1):
            yield from self._flat(start * itemsize, self.count * itemsize)
        else:
            yield from self._strided(start, stride, itemsize)

    def _flat(self, start: int, length: int) -> Iterator[memoryview]:
        entry = self.place.entry
        size, stop = entry.codec.chunk_bytes, start + length
        itemsize = DTYPES[self.place.dtype].itemsize
        while start < stop:
            # To the end of a chunk, but in whole elements of the view.
            end = min(stop, (start // size + 1) * size)
            end += -(end - start) % itemsize
            yield self.opened.read(entry, start, end)
            start = end

    def _strided(self, start: int, stride: tuple[int, ...], itemsize: int) -> Iterator[memoryview]:
        """Elements that are not in order: gathered from a temporary file."""
        last = start + sum((n - 1) * step for n, step in zip(self.shape, stride))
        with SpoolFile(Path(tempfile.gettempdir()), _FULL) as spool:
            for block in self._flat(start * itemsize, (last + 1 - start) * itemsize):
                spool.write(block)
            memory = np.frombuffer(spool.mapped(), f"|V{itemsize}")
            view = np.lib.stride_tricks.as_strided(
                memory, self.shape, [step * itemsize for step in stride], writeable=False
            )
            for part in _parts(view):
                yield memoryview(part.tobytes())


def _parts(view: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """A view in pieces of about a block, in order."""
    if view.nbytes <= _BLOCK:
        yield view
        return
    if view.ndim == 1:
        step = max(1, _BLOCK // view.itemsize)
        for at in range(0, len(view), step):
            yield view[at : at + step]
        return
    for row in view:
        yield from _parts(row)


def _array_dtype(opened: Opened, name: str) -> str | None:
    """NumPy's dtype of an array of the state, where the record has another: dates."""
    try:
        value = value_at(opened.state, name)
    except StateMismatchError:
        return None
    if tag_of(value) != "$ndarray":
        return None
    body: Any = value["$ndarray"]  # type: ignore[call-overload, index]
    dtype = body.get("dtype") if type(body) is dict else None
    is_date = type(dtype) is str and dtype[1:2] in ("M", "m") and dtype[2:3] == "8"
    return np.dtype(dtype).newbyteorder("<").str if is_date else None


def get_value(
    path: str | os.PathLike[str],
    name: str,
    *,
    rows: slice | None = None,
    as_dtype: str | None = None,
    limits: Limits | None = None,
) -> Any:
    """One value of a checkpoint's state; a tensor as a NumPy array.

    Args:
        path: as for :func:`jsonckpt.load`.
        name: the place: ``/optimizer/param_groups/0/lr``.
        rows: only these rows of a tensor.
        as_dtype: ``"float32"`` or ``"float64"`` for dtypes that NumPy lacks (bfloat16, float8):
            their values are exact in it. ``"bits"`` for unsigned integers of the same bytes.
        limits: as for :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: nothing is at ``name``; the hint names what is near.
        ArgumentError: NumPy lacks the dtype; or there are tensors inside what is at ``name``.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"w": torch.ones(2, 2), "lr": 0.1}, directory + "/c.json")
    ...     jsonckpt.edit.get_value(directory + "/c.json", "/lr")
    ...     jsonckpt.edit.get_value(directory + "/c.json", "/w", rows=slice(0, 1))
    0.1
    array([[1., 1.]], dtype=float32)
    """
    with ExitStack() as stack:
        opened = Opened(path, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            place = find_tensor(opened, name)
            if place is not None:
                return _array(TensorReading.of(opened, place, rows), as_dtype)
            value = look_up(opened, name)
            _check_plain(name, value, rows)
            return decode_state(value, NoTensors(), rules=rules_for(value))


def look_up(opened: Opened, name: str) -> Json:
    """The JSON at a place.

    Raises:
        StateMismatchError: nothing is there.
    """
    state = opened.state
    try:
        return value_at(state, name)
    except StateMismatchError as error:
        if error.hint and "Did you mean" in error.hint:
            raise
        names = [reference.name for reference in references_in(state)]
        raise StateMismatchError(error.message, hint=near_names(name, names)) from None


def _check_plain(name: str, value: Json, rows: slice | None) -> None:
    if rows is not None:
        raise ArgumentError(f"{quote(name, 200)} is no tensor and has no rows")
    if has_references(value):
        raise ArgumentError(
            f"{quote(name, 200)} holds tensors",
            hint="Name one of them, or load them all: jsonckpt.load(path, include=name).",
        )


def _array(reading: TensorReading, as_dtype: str | None) -> NDArray[Any]:
    place = reading.place
    dtype = _array_dtype(reading.opened, place.name) if as_dtype is None else None
    target = dtype or numpy_dtype(place.dtype, as_dtype, place.name)
    shape = _bits_shape(reading, target)
    try:
        result = np.empty(shape, target)
    except ValueError as error:
        raise ArgumentError(
            f"NumPy has no array of shape {quote(list(shape))}: {error}", tensor=place.name
        ) from error
    flat, at = result.reshape(-1), 0
    for block in reading.blocks():
        part = np.frombuffer(block, dtype) if dtype else converted(block, place.dtype, target)
        flat[at : at + len(part)] = part
        at += len(part)
    return result


def _bits_shape(reading: TensorReading, target: str) -> tuple[int, ...]:
    """The shape in NumPy: the bits of a complex number are two integers."""
    is_pair = DTYPES[reading.place.dtype].kind == "complex" and target[1] == "u"
    return (*reading.shape, 2) if is_pair else reading.shape


def npy_pieces(reading: TensorReading, as_dtype: str | None) -> Iterator[memoryview | bytes]:
    """The bytes of an ``.npy`` file."""
    place = reading.place
    dtype = _array_dtype(reading.opened, place.name) if as_dtype is None else None
    target = dtype or numpy_dtype(place.dtype, as_dtype, place.name)
    yield npy_header(target, _bits_shape(reading, target))
    for block in reading.blocks():
        yield block if dtype else converted(block, place.dtype, target).tobytes()


def tensor_json(reading: TensorReading) -> Iterator[str]:
    """A tensor as nested JSON arrays."""
    dtype = reading.place.dtype
    return json_pieces(tokens(reading.blocks(), dtype), number_sizes(dtype, reading.shape))


def export(
    path: str | os.PathLike[str],
    name: str,
    output: str | os.PathLike[str] | BinaryIO,
    *,
    rows: slice | None = None,
    as_dtype: str | None = None,
    raw: bool = False,
    overwrite: bool = False,
    limits: Limits | None = None,
) -> int:
    """Write one value or tensor of a checkpoint to a file, in bounded memory.

    Args:
        path, name, rows, as_dtype, limits: as for :func:`get_value`.
        output: a name that ends in ``.npy``, ``.json`` or ``.txt``; or a binary file object, which
            gets ``.npy`` bytes of a tensor and the JSON of anything else.
        raw: write values as the checkpoint has them, with tags.
        overwrite: replace a file at ``output``.

    Returns:
        the number of bytes written.

    Raises:
        CheckpointExistsError: ``output`` exists.
        StateMismatchError, ArgumentError: as for :func:`get_value`.
        WriteError: the system refused; nothing is left.
    """
    with ExitStack() as stack:
        opened = Opened(path, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            is_path = isinstance(output, str | os.PathLike)
            target = Path(local(output, "output")) if is_path else None  # type: ignore[arg-type]
            kind = _kind(target)
            pieces = _pieces(opened, name, kind, rows=rows, as_dtype=as_dtype, raw=raw)
            if target is None:
                return _write_object(output, pieces)
            return _write_file(opened, target, pieces, overwrite=overwrite)


def _kind(target: Path | None) -> str:
    if target is None:
        return "-"
    if target.suffix not in (".npy", ".json", ".txt"):
        raise ArgumentError(
            f"output {quote(str(target))} says no format",
            hint="End its name in .npy, .json or .txt.",
        )
    return target.suffix


def _pieces(
    opened: Opened, name: str, kind: str, *, rows: slice | None, as_dtype: str | None, raw: bool
) -> Iterable[memoryview | bytes]:
    """What is written for a place in a format."""
    place = None if raw else find_tensor(opened, name)
    if place is None:
        value = look_up(opened, name)
        if kind == ".npy":
            raise ArgumentError(
                f"{quote(name, 200)} is no tensor, and .npy files hold tensors",
                hint="Write it as .json.",
            )
        if rows is not None:
            raise ArgumentError(f"{quote(name, 200)} is no tensor and has no rows")
        shown = value if raw else readable(value)
        if kind == ".txt" and type(shown) is str:
            return [shown.encode("utf-8", "surrogatepass") + b"\n"]
        return [(dump(shown) if kind == ".txt" else dump_pretty(shown)) + b"\n"]
    reading = TensorReading.of(opened, place, rows)
    if kind in ("-", ".npy"):
        return npy_pieces(reading, as_dtype)
    if as_dtype is not None:
        raise ArgumentError("--as is for .npy: the numbers of a text are exact without it")
    if kind == ".json":
        return _encoded(tensor_json(reading), "\n")
    dtype = reading.place.dtype
    lines = text_pieces(tokens(reading.blocks(), dtype), number_sizes(dtype, reading.shape))
    return _encoded(lines, "")


def _encoded(pieces: Iterable[str], end: str) -> Iterator[bytes]:
    """Text in blocks."""
    held: list[str] = []
    for number, piece in enumerate(pieces):
        held.append(piece)
        if number % 65_536 == 0:
            yield "".join(held).encode()
            held.clear()
    yield ("".join(held) + end).encode()


def _write_object(output: Any, pieces: Iterable[memoryview | bytes]) -> int:
    count = 0
    for piece in pieces:
        output.write(piece)
        count += len(piece)
    output.flush()
    return count


def _write_file(
    opened: Opened, target: Path, pieces: Iterable[memoryview | bytes], *, overwrite: bool
) -> int:
    if not overwrite and os.path.lexists(target):
        raise CheckpointExistsError(
            "the file exists", file=target, hint="Pass overwrite=True to replace it."
        )
    # Who may not read the checkpoint may not read its parts.
    shared = 0o077 if is_url(opened.path) else shared_bits(opened.local_path())
    temporary = target.with_name(temporary_name(target.name, secrets.token_hex(6)))
    file = NewFile(temporary, mode=mode_for(target, shared))
    try:
        file.create()
        at = 0
        for piece in pieces:
            file.write_at(at, [piece])
            at += len(piece)
        file.finish(sync=True)
        opened.check_unchanged()
        commit.commit(temporary, target, None, sync=True, exclusive=not overwrite)
    except BaseException:
        file.abandon()
        raise
    return at
