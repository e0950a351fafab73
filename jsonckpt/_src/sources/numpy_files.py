"""Reads files of NumPy, ``.npy`` and ``.npz``, without pickle.

An array becomes a tensor where torch has its dtype. Text and times stay NumPy arrays. A ``.npy`` is
mapped. The arrays of an archive are copied to a mapped temporary file, so that their checksums
are checked on the way.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
import torch

from ..errors import (
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    UnsupportedTypeError,
    quote,
)
from ..format.limits import DEFAULT_LIMITS, Limits, exceeds
from ..format.pointer import join
from ..json_stream.spooled import tensor_spool
from ..storage.spool import Spool
from ..tensors.pieces import PIECE, is_boolean, over

_MAGIC = b"\x93NUMPY"
#: The longest header. That of a structured array with thousands of fields is longer.
_MAX_HEADER = 1 << 16
#: More dimensions than this NumPy does not have.
_MAX_RANK = 64
_LONG = re.compile(r"(?<=\d)L\b")
_TENSORS: dict[str, torch.dtype] = {
    **{f"i{size}": getattr(torch, f"int{8 * size}") for size in (1, 2, 4, 8)},
    **{f"u{size}": getattr(torch, f"uint{8 * size}") for size in (1, 2, 4, 8)},
    **{f"f{size}": getattr(torch, f"float{8 * size}") for size in (2, 4, 8)},
    **{f"c{size}": getattr(torch, f"complex{8 * size}") for size in (8, 16)},
}
#: Kinds of dtypes that stay NumPy arrays: text, bytes, times.
_ARRAYS = "USMm"


@dataclass(frozen=True, slots=True)
class _Header:
    """What stands before the values of an array.

    Attributes:
        dtype, shape: of the array.
        fortran: True if the first index changes fastest in memory.
        length: the bytes of the header.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran: bool
    length: int

    @property
    def nbytes(self) -> int:
        """The bytes of the values."""
        return prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True)
class NumpyOptions:
    """How to read files of NumPy.

    Attributes:
        limits: on the number of arrays and their bytes.
        unsafe_pickle: read arrays of objects.
        chosen: whether a name will be converted. Others are read only where that is needed.
    """

    limits: Limits = DEFAULT_LIMITS
    unsafe_pickle: bool = False
    chosen: Callable[[str], bool] = lambda _: True


@dataclass(slots=True)
class _Reading:
    """What the arrays of a file share.

    Attributes:
        spool: memory for values that are not mapped.
        unsafe_pickle: read arrays of objects.
        chosen: whether a name will be converted.
        notes: what was changed, one line each.
    """

    spool: Spool
    unsafe_pickle: bool
    chosen: Callable[[str], bool]
    notes: list[str] = field(default_factory=list)


@contextmanager
def _reading(options: NumpyOptions, directory: Path) -> Iterator[_Reading]:
    with tensor_spool(directory) as spool:
        yield _Reading(spool, options.unsafe_pickle, options.chosen)


def load_npy(path: Path, options: NumpyOptions, directory: Path) -> tuple[Any, list[str]]:
    """The array in a ``.npy``, mapped, and notes.

    Raises:
        UnsupportedTypeError: an array of objects, or a dtype that no format of this package holds.
        FormatError, IncompleteCheckpointError: the file is refused.
    """
    size = path.stat().st_size
    with path.open("rb") as file, _reading(options, directory) as reading:
        header = _read_header(file)
        if header.dtype.hasobject:
            return _objects(file, reading), []
        _check_size(header, size)
        offset, dtype = header.length, _torch_dtype(header.dtype)
        if dtype is None or not header.dtype.isnative or offset % dtype.itemsize:
            return _copied(file, header, "", reading), reading.notes
        if not header.nbytes:
            return torch.empty(header.shape, dtype=dtype), []
        whole = torch.UntypedStorage.from_file(str(path), False, size)
        return _shaped(whole[offset:], dtype, header), []


def load_npz(path: Path, options: NumpyOptions, directory: Path) -> tuple[Any, list[str]]:
    """The arrays in a ``.npz`` by name, and notes.

    Raises:
        UnsupportedTypeError, FormatError, IncompleteCheckpointError: as :func:`load_npy`.
        LimitError: the archive decompresses to more than the limits allow.
    """
    state: dict[str, Any] = {}
    size = path.stat().st_size
    most = options.limits.total_bytes(size)
    with path.open("rb") as file, _damaged(), zipfile.ZipFile(file) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        if exceeds(len(entries), options.limits.tensors):
            raise LimitError(f"over {options.limits.tensors:,} arrays")
        total = sum(entry.file_size for entry in entries)
        if most is not None and total > most:
            raise LimitError(
                f"it claims {total:,} bytes of arrays in a file of {size:,}",
                hint="Pass --limit expansion=none if it is meant.",
            )
        with _reading(options, directory) as reading:
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename:
                    reading.notes.append(f"not an array, left out: {quote(name)}")
                    continue
                if name in state:
                    raise FormatError(f"two arrays are called {quote(name)}")
                state[name] = _member(archive, entry, name, reading)
    return state, reading.notes


def load_npy_directory(
    directory: Path, options: NumpyOptions, spool: Path
) -> tuple[Any, list[str]]:
    """The arrays of a ``.npz`` that was unpacked into a directory, and notes.

    Raises: as :func:`load_npy`.
    """
    state, notes = {}, []
    for file in sorted(directory.rglob("*.npy")):
        name = file.relative_to(directory).as_posix().removesuffix(".npy")
        try:
            state[name], more = load_npy(file, options, spool)
        except JsonckptError as error:
            raise error.at(file=file) from error.__cause__
        notes += [f"{name}: {note}" for note in more]
    return state, notes


def _member(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str, reading: _Reading) -> Any:
    try:
        with archive.open(entry) as file:
            header = _read_header(file)
            if header.dtype.hasobject:
                return _objects(file, reading)
            _check_size(header, entry.file_size)
            value = _copied(file, header, join("", name), reading)
            if file.read(1):  # reading to the end checks the checksum
                raise FormatError("more bytes than its header says")
            return value
    except JsonckptError as error:
        raise error.at(tensor=name) from error.__cause__


@contextmanager
def _damaged() -> Iterator[None]:
    try:
        yield
    except (JsonckptError, OSError):
        raise
    except EOFError as error:
        raise IncompleteCheckpointError("the archive ends too early") from error
    except Exception as error:
        # zipfile raises many types: BadZipFile, UnicodeDecodeError, NotImplementedError,
        # RuntimeError, zlib.error, …
        raise FormatError(f"a damaged ZIP archive ({quote(str(error))})") from error


def _read_header(file: IO[bytes]) -> _Header:
    """Read the header of an array.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: it is refused.
    """
    start = file.read(8)
    if not start.startswith(_MAGIC) or len(start) < 8:
        raise FormatError(f"not an array of NumPy; it begins with {quote(start)}")
    if start[6] not in (1, 2, 3):
        raise FormatError(f"version {start[6]}.{start[7]} of the format is not known")
    width = 2 if start[6] == 1 else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _MAX_HEADER:
        raise LimitError(f"a header of {length:,} bytes")
    raw = file.read(length)
    if len(raw) < length:
        raise IncompleteCheckpointError("the header ends too early", hint="Copy the file again.")
    text = raw.decode("utf-8" if start[6] == 3 else "latin-1", "replace")
    try:
        found = ast.literal_eval(_LONG.sub("", text.strip()))  # Python 2 wrote sizes as 3L
        dtype = np.lib.format.descr_to_dtype(found["descr"])
        shape, fortran = found["shape"], found["fortran_order"]
    except JsonckptError:
        raise
    except Exception as error:
        # What hostile text makes the two parsers raise is not documented.
        raise FormatError(f"the header is not one of NumPy: {quote(text.strip())}") from error
    if not isinstance(shape, tuple) or not all(type(n) is int and 0 <= n < 1 << 63 for n in shape):
        raise FormatError(f"a shape is a tuple of sizes, not {quote(shape)}")
    if len(shape) > _MAX_RANK or prod(max(n, 1) for n in shape) >= 1 << 63:
        raise LimitError(f"shape {quote(shape)} is too large")
    if dtype.itemsize == 0 and prod(shape):
        raise FormatError(f"values of dtype {dtype.str} without bytes")
    if type(fortran) is not bool:
        raise FormatError(f"fortran_order is True or False, not {quote(fortran)}")
    return _Header(dtype, shape, fortran, 8 + width + length)


def _check_size(header: _Header, size: int) -> None:
    wanted = header.length + header.nbytes
    if size < wanted:
        raise IncompleteCheckpointError(
            f"{size:,} bytes where shape {list(header.shape)} of {header.dtype} needs {wanted:,}",
            hint="It was cut off: copy it again.",
        )
    if size > wanted:
        raise FormatError(
            f"{size:,} bytes where shape {list(header.shape)} of {header.dtype} needs {wanted:,}"
        )


def _torch_dtype(dtype: np.dtype[Any]) -> torch.dtype | None:
    if dtype.kind == "b":
        return torch.bool
    return _TENSORS.get(f"{dtype.kind}{dtype.itemsize}") if dtype.kind in "iufc" else None


def _shaped(storage: torch.UntypedStorage, dtype: torch.dtype, header: _Header) -> torch.Tensor:
    """A tensor over the values of an array, in the order of the array's memory."""
    if not header.fortran:
        return _checked(over(storage, dtype, header.shape))
    return _checked(over(storage, dtype, header.shape[::-1])).permute(
        *reversed(range(len(header.shape)))
    )


def _checked(tensor: torch.Tensor) -> torch.Tensor:
    if tensor.dtype == torch.bool and not is_boolean(tensor):
        raise FormatError("a byte other than 0 and 1 in an array of bool")
    return tensor


def _copied(file: IO[bytes], header: _Header, name: str, reading: _Reading) -> Any:
    """Copy the values of an array from a file, in the byte order of this machine."""
    dtype = _torch_dtype(header.dtype)
    if header.dtype.names is None and dtype is None:
        _refuse_dtype(header.dtype, name, reading)
    storage = reading.spool.allocate(header.nbytes)
    memory = _memory(storage, header.nbytes)
    unit = header.dtype.itemsize or 1
    step = max(PIECE // unit, 1) * unit
    swap = not header.dtype.isnative and dtype is not None
    for start in range(0, header.nbytes, step):
        part = memory[start : min(start + step, header.nbytes)]
        _fill(file, part)
        if swap:
            part.view(header.dtype).byteswap(inplace=True)
    if dtype is not None:
        return _shaped(storage, dtype, header)
    order: Literal["C", "F"] = "F" if header.fortran else "C"
    array: np.ndarray[Any, Any] = np.ndarray(header.shape, header.dtype, memory, order=order)
    if header.dtype.names is None:
        return array
    reading.notes.append(f"{name or 'the array'} is structured: each field is an array of its own")
    return _fields(array, name, reading)


def _fill(file: IO[bytes], part: np.ndarray[Any, Any]) -> None:
    view, done = memoryview(part), 0  # type: ignore[arg-type]
    while done < len(view):
        data = file.read(len(view) - done)
        if not data:
            raise IncompleteCheckpointError("the values end too early", hint="Copy the file again.")
        view[done : done + len(data)] = data
        done += len(data)


def _fields(array: np.ndarray[Any, Any], name: str, reading: _Reading) -> Any:
    """The fields of a structured array, each as an array of its own."""
    if array.dtype.names is not None:
        return {key: _fields(array[key], join(name, key), reading) for key in array.dtype.names}
    dtype = _torch_dtype(array.dtype)
    native = array.dtype.newbyteorder("=")
    if dtype is None:
        _refuse_dtype(array.dtype, name, reading)
        return array.astype(native)
    storage = reading.spool.allocate(array.size * native.itemsize)
    tensor = over(storage, dtype, array.shape)
    target = _memory(storage, array.size * native.itemsize).view(native)
    np.copyto(target.reshape(array.shape), array)
    return _checked(tensor)


def _refuse_dtype(dtype: np.dtype[Any], name: str, reading: _Reading) -> None:
    """Refuse what no format of this package holds, unless it is left out anyway."""
    if dtype.kind in _ARRAYS or (name and not reading.chosen(name)):
        return
    if dtype.kind == "V":
        raise UnsupportedTypeError(
            f"dtype {dtype.str} says only that a value has {dtype.itemsize} bytes. NumPy writes "
            "this for types of other packages, such as bfloat16",
            hint="Save it as float32: array.astype('float32'); or leave it out with --exclude.",
        )
    raise UnsupportedTypeError(
        f"no tensor has dtype {dtype}",
        hint="Save it as float64: array.astype('float64'); or leave it out with --exclude.",
    )


def _objects(file: IO[bytes], reading: _Reading) -> Any:
    """An array of objects, with ``unsafe_pickle``. A dict or another single object is unwrapped."""
    if not reading.unsafe_pickle:
        raise UnsupportedTypeError(
            "an array of Python objects, which needs pickle, as numpy.save writes a dict",
            hint="Save a dict of arrays with numpy.savez(PATH, **arrays), or pass --unsafe-pickle "
            "if you trust whoever made it.",
        )
    file.seek(0)
    try:
        found = np.lib.format.read_array(file, allow_pickle=True)
    except Exception as error:  # pickle code raises anything
        raise FormatError(f"NumPy cannot read it ({quote(str(error))})") from error
    return found.item() if found.shape == () else found.tolist()


def _memory(storage: torch.UntypedStorage, nbytes: int) -> np.ndarray[Any, Any]:
    return over(storage, torch.uint8, (nbytes,)).numpy()
