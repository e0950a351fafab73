"""Arrays of NumPy: every dtype and order, archives, and hostile files."""

from __future__ import annotations

import io
import struct
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import Limits
from jsonckpt._src.errors import (
    FormatError,
    IncompleteCheckpointError,
    JsonckptError,
    LimitError,
    UnsupportedTypeError,
)
from jsonckpt.convert import convert
from tests.convert.guide import files

TENSORS: dict[str, Any] = {
    "float32": np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4),
    "float16": np.array([0.1, -0.0, np.inf], np.float16),
    "float64": np.array([[1e300, np.nan]]),
    "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "fortran 3": np.asfortranarray(np.arange(24, dtype=np.int16).reshape(2, 3, 4)),
    "big-endian": np.arange(5, dtype=">f4"),
    "big-endian fortran": np.asfortranarray(np.arange(6, dtype=">i8").reshape(2, 3)),
    "bool": np.array([True, False]),
    "int8": np.array([-1], np.int8),
    "uint8": np.arange(3, dtype=np.uint8),
    "uint16": np.array([65535], np.uint16),
    "uint64": np.array([2**64 - 1], np.uint64),
    "complex64": np.array([1 - 2j], np.complex64),
    "complex128": np.array([1 - 2j], ">c16"),
    "scalar": np.array(7, np.int64),
    "empty": np.empty((0, 3), np.float32),
    "a/b.weight": np.ones(2, np.float32),
    "ключ": np.ones(1),
}
ARRAYS: dict[str, Any] = {
    "text": np.array(["a", "größe"]),
    "bytes": np.array([b"ab", b""]),
    "time": np.array(["2020-01-01", "NaT"], "M8[s]"),
    "delta": np.array([5], "m8[ms]"),
}


def same(array: Any, found: Any) -> None:
    if isinstance(found, torch.Tensor):
        found = found.numpy()
        assert found.dtype == array.dtype.newbyteorder("=")
        assert found.flags.f_contiguous == array.flags.f_contiguous
    assert found.shape == array.shape
    np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("name", [*TENSORS, *ARRAYS])
def test_npy(name: str, tmp_path: Path) -> None:
    array = {**TENSORS, **ARRAYS}[name]
    np.save(tmp_path / "x.npy", array)
    result = convert(tmp_path / "x.npy", tmp_path / "out.json", test_load=True)
    found = jsonckpt.load(tmp_path / "out.json")
    assert isinstance(found, torch.Tensor) == (name in TENSORS)
    same(array, found)
    assert result.kind == "NumPy array"
    assert files(tmp_path) == {"x.npy", "out.json"}


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz(write: Callable[..., None], tmp_path: Path) -> None:
    arrays = {**TENSORS, **ARRAYS}
    write(tmp_path / "x.pt", **arrays)
    (tmp_path / "x.pt.npz").rename(tmp_path / "x.pt")  # the content says what it is
    result = convert(tmp_path / "x.pt", tmp_path / "out.json", test_load=True)
    assert result.kind == "NumPy archive"
    found = jsonckpt.load(tmp_path / "out.json")
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        same(array, found[name])


def test_an_unpacked_archive(tmp_path: Path) -> None:
    arrays: dict[str, Any] = {"a/w": np.ones(2), "b": np.zeros(3)}
    np.savez(tmp_path / "x.npz", **arrays)
    with zipfile.ZipFile(tmp_path / "x.npz") as archive:
        archive.extractall(tmp_path / "x")
    convert(tmp_path / "x", tmp_path / "out.json")
    assert list(jsonckpt.load(tmp_path / "out.json")) == ["a/w", "b"]


@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_versions_and_old_headers(version: tuple[int, int], tmp_path: Path) -> None:
    with (tmp_path / "x.npy").open("wb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.lib.format.write_array(file, np.arange(3.0), version)
    convert(tmp_path / "x.npy", tmp_path / "out.json")
    assert jsonckpt.load(tmp_path / "out.json").tolist() == [0, 1, 2]


def raw(header: str, data: bytes = b"", version: int = 1) -> bytes:
    text = header.encode("latin-1")
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + size + text + data


def head(descr: str = "'<f4'", shape: str = "(2,)", fortran: str = "False") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}"


def test_a_header_of_python_2(tmp_path: Path) -> None:
    data = np.ones(2, np.float32).tobytes()
    (tmp_path / "x.npy").write_bytes(raw(head(shape="(2L,)"), data))
    convert(tmp_path / "x.npy", tmp_path / "out.json")
    assert jsonckpt.load(tmp_path / "out.json").tolist() == [1, 1]


def test_structured_arrays_are_split(tmp_path: Path) -> None:
    dtype = np.dtype([("pos", ">f4", (2,)), ("id", "i4"), ("in", [("flag", "?"), ("name", "U3")])])
    array = np.zeros(3, dtype)
    array["pos"] = np.arange(6).reshape(3, 2)
    array["id"] = [7, 8, 9]
    array["in"]["name"] = ["a", "b", "c"]
    np.savez(tmp_path / "x.npz", points=array)
    result = convert(tmp_path / "x.npz", tmp_path / "out.json")
    found = jsonckpt.load(tmp_path / "out.json")["points"]
    assert found["pos"].tolist() == [[0, 1], [2, 3], [4, 5]]
    assert found["id"].dtype == torch.int32
    assert found["in"]["flag"].tolist() == [False] * 3
    assert found["in"]["name"].tolist() == ["a", "b", "c"]
    assert result.notes == ["/points is structured: each field is an array of its own"]


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(2, "V2"), "bfloat16"),
        (np.zeros(2, np.longdouble), "float64"),
        (np.zeros(2, [("a", "V2")]), "bfloat16"),
    ],
)
def test_dtypes_that_nothing_holds(array: Any, words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", good=np.ones(1), odd=array)
    with pytest.raises(UnsupportedTypeError, match=words) as caught:
        convert(tmp_path / "x.npz", tmp_path / "out.json")
    assert caught.value.tensor == "odd"
    convert(tmp_path / "x.npz", tmp_path / "out.json", exclude=["odd*"])
    assert "good" in jsonckpt.load(tmp_path / "out.json")


def test_objects_need_pickle(tmp_path: Path) -> None:
    state = {"w": np.ones(2), "epoch": 3}
    np.save(tmp_path / "dict.npy", np.array(state, object), allow_pickle=True)
    np.savez(tmp_path / "dict.npz", state=np.array(state, object))
    for name in ("dict.npy", "dict.npz"):
        with pytest.raises(UnsupportedTypeError, match=r"numpy\.savez.*--unsafe-pickle"):
            convert(tmp_path / name, tmp_path / "out.json", overwrite=True)
        convert(tmp_path / name, tmp_path / "out.json", unsafe_pickle=True, overwrite=True)
        found = jsonckpt.load(tmp_path / "out.json")
        found = found.get("state", found)
        assert found["epoch"] == 3
        assert found["w"].tolist() == [1, 1]


HOSTILE: list[tuple[type[JsonckptError], str, bytes]] = [
    (
        IncompleteCheckpointError,
        "needs",
        raw(head(shape="(1 << 40,)".replace("1 << 40", "9" * 12))),
    ),
    (LimitError, "too large", raw(head(shape=f"({'9' * 18}, {'9' * 18})"))),
    (LimitError, "too large", raw(head(shape="(" + "1," * 100 + ")"))),
    (FormatError, "a tuple of sizes", raw(head(shape="(-1,)"))),
    (FormatError, "a tuple of sizes", raw(head(shape="[1]"))),
    (FormatError, "a tuple of sizes", raw(head(shape="(True,)"))),
    (FormatError, "fortran_order", raw(head(fortran="1"))),
    (FormatError, "not one of NumPy", raw(head(descr="'nonsense'"))),
    (FormatError, "not one of NumPy", raw("__import__('os')")),
    (FormatError, "not one of NumPy", raw("(" * 20_000)),
    (FormatError, "not one of NumPy", raw("[]")),
    (FormatError, "not one of NumPy", raw("{}")),
    (FormatError, "without bytes", raw(head(descr="'S0'", shape=f"({'9' * 12},)"))),
    (FormatError, "without bytes", raw(head(descr="'V0'", shape="(3,)"))),
    (FormatError, "other than 0 and 1", raw(head(descr="'|b1'"), b"\1\2")),
    (FormatError, "9 bytes|needs", raw(head(), b"." * 9)),
    (LimitError, "a header of", b"\x93NUMPY\2\0\xff\xff\xff\x7f"),
    (FormatError, "version 9", b"\x93NUMPY\x09\0\x10\0"),
]


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: f"{case[1][:12]} {len(case[2])}")
@pytest.mark.parametrize("packed", [False, True])
def test_hostile_arrays(case: Any, packed: bool, tmp_path: Path) -> None:
    kind, words, data = case
    source = tmp_path / "x"
    if packed:
        with zipfile.ZipFile(source, "w") as archive:
            archive.writestr("odd.npy", data)
    else:
        source.write_bytes(data)
    with pytest.raises(kind, match=words) as caught:
        convert(source, tmp_path / "out.json")
    assert caught.value.file == str(source)
    assert caught.value.tensor == ("odd" if packed else None)
    assert files(tmp_path) == {"x"}


def test_cut_off_anywhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, a=np.arange(20), b=np.asfortranarray(np.ones((2, 3))))
    for content in (raw(head(), b"." * 8), buffer.getvalue()):
        for length in range(0, len(content), 1 if len(content) < 200 else 5):
            (tmp_path / "x").write_bytes(content[:length])
            with pytest.raises(JsonckptError):
                convert(tmp_path / "x", tmp_path / "out.json")
    assert files(tmp_path) == {"x"}


def test_a_flipped_bit_in_an_archive_is_found(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", w=np.zeros(1000))
    content = bytearray((tmp_path / "x.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "x.npz").write_bytes(content)
    with pytest.raises(FormatError, match="CRC"):
        convert(tmp_path / "x.npz", tmp_path / "out.json")


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", w=np.zeros(10_000_000, np.uint8))
    with pytest.raises(LimitError, match="expansion=none"):
        convert(tmp_path / "x.npz", tmp_path / "out.pt", limits=Limits(total_floor=0, expansion=10))
    convert(tmp_path / "x.npz", tmp_path / "out.pt", limits=Limits(expansion=None))
    with pytest.raises(LimitError, match="over 0 arrays"):
        convert(tmp_path / "x.npz", tmp_path / "out.pt", overwrite=True, limits=Limits(tensors=0))


def test_strange_archives(tmp_path: Path) -> None:
    np.save(tmp_path / "one.npy", np.ones(1))
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.write(tmp_path / "one.npy", "a.npy")
        archive.writestr("notes.txt", "hello")
    result = convert(tmp_path / "x.npz", tmp_path / "out.json")
    assert result.notes == ["not an array, left out: 'notes.txt'"]
    with zipfile.ZipFile(tmp_path / "y.npz", "w") as archive:
        archive.write(tmp_path / "one.npy", "a.npy")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.write(tmp_path / "one.npy", "a.npy")
    with pytest.raises(FormatError, match="two arrays are called 'a'"):
        convert(tmp_path / "y.npz", tmp_path / "out.json", overwrite=True)
