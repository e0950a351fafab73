"""Older forms: Python 2, torch before 1.6, the tar file of torch 0.1, NumPy before 2."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt import ArgumentError, FormatError, IncompleteCheckpointError, UnsupportedTypeError
from tests.pickles.support import loaded, same

DATA = Path(__file__).parents[1] / "data" / "torch"

CAFE = b"(dp0\nS'caf\\xe9'\np1\nF0.5\ns."
RAW = "".join(f"\\x{byte:02x}" for byte in np.array([1.5, 200.25]).tobytes()).encode()
#: What NumPy wrote in Python 2: the values are a string.
ARRAY = (
    b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(I2\nt"
    b"cnumpy\ndtype\n(S'f8'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS'" + RAW + b"'\ntb."
)


def test_strings_of_python_2(tmp_path: Path) -> None:
    utf8 = CAFE.replace(b"\\xe9", b"\\xc3\\xa9")
    assert loaded(utf8, tmp_path) == {"café": 0.5}
    assert loaded(CAFE, tmp_path, encoding="latin1") == {"café": 0.5}
    assert loaded(CAFE, tmp_path, encoding="bytes") == {b"caf\xe9": 0.5}
    assert loaded(b"\x80\x02}U\x01aU\x02bcs.", tmp_path) == {"a": "bc"}
    with pytest.raises(UnsupportedTypeError, match=r"Python 2.*--pickle-encoding latin1"):
        loaded(CAFE, tmp_path)
    for name in ("nonsense", "zlib", "hex"):
        with pytest.raises(ArgumentError, match="pickle_encoding"):
            loaded(CAFE, tmp_path, encoding=name)


@pytest.mark.parametrize("encoding", ["utf-8", "latin1", "ascii", "bytes", "cp1252", "utf-16"])
def test_arrays_of_python_2_need_no_encoding(encoding: str, tmp_path: Path) -> None:
    found = loaded(ARRAY, tmp_path, encoding=encoding)
    assert found.tolist() == [1.5, 200.25]


def test_old_classes_of_python_2(tmp_path: Path) -> None:
    data = b"(iargparse\nNamespace\np0\n(dp1\nS'lr'\nF0.5\nsb."
    assert loaded(data, tmp_path).lr == 0.5
    data = b"ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR"
    data += b"(dS'a'\nI1\nsb."
    assert vars(loaded(data, tmp_path)) == {"a": 1}


@pytest.mark.parametrize("name", [path.name for path in DATA.glob("numpy_*")])
def test_numpy_before_2(name: str, tmp_path: Path) -> None:
    found = loaded((DATA / name).read_bytes(), tmp_path)
    expected = {
        "weight": torch.arange(6.0).reshape(2, 3),
        "array": np.arange(6, dtype="f4").reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big": np.arange(3, dtype=">i4" if name.endswith("5.pkl") else "<i4"),
        "scalar": np.float64(0.5),
        "flag": np.bool_(True),
        "dtype": np.dtype("f4"),
        "text": np.array(["ab", "c"]),
        "date": np.array(["2020-01-02"], "M8[D]"),
        "rng": ("MT19937", np.arange(4, dtype="u4"), 4, 0, 0.0),
    }
    if name.endswith(".pkl"):
        del expected["weight"]
    same(expected, found)


def test_a_stream_that_ends_like_an_empty_archive(tmp_path: Path) -> None:
    end = b"PK\x05\x06" + bytes(18)
    state = {"w": torch.frombuffer(bytearray(end), dtype=torch.uint8).clone()}
    file = io.BytesIO()
    torch.save(state, file, _use_new_zipfile_serialization=False)
    assert zipfile.is_zipfile(io.BytesIO(file.getvalue()))
    same(state, loaded(file.getvalue(), tmp_path))


class _Reference:
    """A value that is written as a persistent id."""

    def __init__(self, ident: Any) -> None:
        self.ident = ident


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> Any:
        return value.ident if isinstance(value, _Reference) else None


def tar_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:", format=tarfile.PAX_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


def old_tar() -> dict[str, bytes]:
    """The members of a file as torch 0.1 wrote it: storages, tensors, a pickle that names them."""
    values = np.arange(6, dtype="<f4").tobytes()
    storages = pickle.dumps(1, 2) + pickle.dumps((11, "cpu", torch.FloatStorage), 2)
    storages += struct.pack("<q", 6) + values + pickle.dumps([(12, 11, 2, 3)], 2)
    tensors = pickle.dumps(2, 2)
    for key, storage, sizes, steps in ((21, 11, (2, 3), (3, 1)), (22, 12, (3,), (1,))):
        tensors += pickle.dumps((key, storage, torch.FloatTensor), 2)
        tensors += struct.pack("<ii", len(sizes), 0)
        tensors += struct.pack(f"<{2 * len(sizes)}q", *sizes, *steps) + struct.pack("<q", 0)
    file = io.BytesIO()
    pickler = _Pickler(file, 2)
    pickler.dump({"w": _Reference("21"), "b": _Reference(22), "epoch": 3})
    info = pickle.dumps({"protocol_version": 1000, "little_endian": True}, 2)
    return {"sys_info": info, "storages": storages, "tensors": tensors, "pickle": file.getvalue()}


# torch.load unpacks it without a filter.
@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")
def test_the_tar_file_of_torch_0_1(tmp_path: Path) -> None:
    data = tar_of(**old_tar())
    found = loaded(data, tmp_path)
    assert found["w"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["b"].tolist() == [2, 3, 4]
    found["w"][0, 2] = 9
    assert found["b"][0] == 9
    same(torch.load(tmp_path / "state.pt", weights_only=False), loaded(data, tmp_path))


def test_other_tar_files(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match=r"a tar file, but not one of torch\.save"):
        loaded(tar_of(readme=b"hello"), tmp_path)
    members = old_tar()
    for name, wrong in (
        ("storages", members["storages"].replace(struct.pack("<q", 6), struct.pack("<q", 1 << 60))),
        ("storages", members["storages"].replace(struct.pack("<q", 6), struct.pack("<q", -1))),
        ("tensors", members["tensors"].replace(struct.pack("<q", 3), struct.pack("<q", 1 << 60))),
        (
            "tensors",
            members["tensors"].replace(struct.pack("<ii", 2, 0), struct.pack("<ii", -1, 0)),
        ),
        ("pickle", members["pickle"].replace(b"21", b"99")),
        ("pickle", members["pickle"].replace(b"21", b"x1")),
    ):
        assert wrong != members[name]
        with pytest.raises((FormatError, IncompleteCheckpointError)):
            loaded(tar_of(**{**members, name: wrong}), tmp_path)
    data = tar_of(**members)
    for end in range(300, len(data), 97):
        if end < data.rindex(b"epoch"):
            with pytest.raises((FormatError, IncompleteCheckpointError)):
                loaded(data[:end], tmp_path)


def variable(kind: bytes) -> bytes:
    storage = b"(Vstorage\nctorch\nFloatStorage\nV0\nVcpu\nI2\nNtQ"
    tensor = b"ctorch._utils\n_rebuild_tensor\n(" + storage + b"I0\n(I2\nt(I1\nttR"
    return kind + b"(" + tensor + b"tR(I01\nI00\nNtb."


@pytest.mark.parametrize(
    ("kind", "made"),
    [
        (b"ctorch.nn.parameter\nParameter\n", torch.nn.Parameter),
        (b"ctorch.autograd.variable\nVariable\n", torch.Tensor),
    ],
)
def test_variables_of_torch_0_x(kind: bytes, made: type, tmp_path: Path) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", variable(kind))
        archive.writestr("a/data/0", np.array([1, 2], "<f4").tobytes())
    found: Any = loaded(file.getvalue(), tmp_path)
    assert found.tolist() == [1, 2]
    assert found.requires_grad
    assert type(found) is made


def test_a_tensor_of_torch_0_x_that_is_built_later(tmp_path: Path) -> None:
    content = (
        b"\x80\x02ctorch\nFloatTensor\n)\x81((X\x07\0\0\0storagectorch\nFloatStorage\n"
        b"X\x01\0\0\x000X\x03\0\0\0cpuK\x02tQK\0K\x02\x85K\x01\x85tb."
    )
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", content)
        archive.writestr("a/data/0", np.array([1, 2], "<f4").tobytes())
    assert loaded(file.getvalue(), tmp_path).tolist() == [1, 2]


def test_an_archive_of_a_big_endian_machine(tmp_path: Path) -> None:
    file = io.BytesIO()
    torch.save({"w": torch.tensor([1.0, 2.0]), "b": torch.tensor([1, 2], dtype=torch.int16)}, file)
    swapped = io.BytesIO()
    with zipfile.ZipFile(file) as source, zipfile.ZipFile(swapped, "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name.endswith("byteorder"):
                content = b"big"
            elif "/data/" in name:
                kind = "f4" if len(content) == 8 else "i2"
                content = np.frombuffer(content, f"<{kind}").astype(f">{kind}").tobytes()
            target.writestr(name, content)
    found = loaded(swapped.getvalue(), tmp_path)
    assert found["w"].tolist() == [1, 2]
    assert found["b"].tolist() == [1, 2]


def test_more_than_one_pickle(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="bytes follow the first pickle"):
        loaded(pickle.dumps(1) + pickle.dumps(2), tmp_path)


def test_a_file_of_joblib(tmp_path: Path) -> None:
    data = b"\x80\x04cjoblib.numpy_pickle\nNumpyArrayWrapper\n)\x81\xff"
    with pytest.raises(FormatError, match=r"a file of joblib.*joblib\.load"):
        loaded(data, tmp_path)
