"""Harmless values come back as Python's own unpickler gives them, in every protocol and form."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import fractions
import io
import pathlib
import pickle
import types
import uuid
import zoneinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt._src.tensors.compare import compare
from tests.pickles.support import loaded, same


def tied() -> list[torch.Tensor]:
    weight = torch.arange(4.0)
    return [weight, weight, weight[1:3]]


def state_dict() -> Any:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).state_dict()


def optimizer_state() -> Any:
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


VALUES: dict[str, Any] = {
    "plain": [
        None,
        True,
        False,
        0,
        -1,
        255,
        65536,
        -(1 << 31),
        1 << 200,
        -(1 << 200),
        0.5,
        "é\ud800",
    ],
    "floats": [float("inf"), -float("inf"), 1e-320, -0.0],
    "bytes": [b"", b"\x00\xff" * 200, bytearray(b""), bytearray(b"a\xff")],
    "containers": {"a": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)], 1: {}, (1, "b"): {"c": []}},
    "shared": (lambda one: [one, one, {"again": one}])([1, 2]),
    "sets": [set(), {1, "a"}, frozenset(), frozenset({2, (3,)})],
    "complex": [1 + 2j, complex(-0.0, float("inf"))],
    "ranges": [range(3), range(1, 9, 2), slice(1, None), slice(None, 2, 3), ...],
    "ordered": collections.OrderedDict(b=1, a=2),
    "default": collections.defaultdict(list, {"a": [1]}),
    "default_none": collections.defaultdict(None, {"a": 1}),
    "counter": collections.Counter("aab"),
    "queues": [collections.deque([1, 2]), collections.deque([1], maxlen=3)],
    "namespaces": [
        argparse.Namespace(lr=0.1, path=pathlib.Path("a/b")),
        types.SimpleNamespace(a=1, b=types.SimpleNamespace()),
    ],
    "paths": [pathlib.PurePosixPath("/a/b"), pathlib.PureWindowsPath("c:/a"), pathlib.Path("x")],
    "times": [
        datetime.date(2020, 2, 29),
        datetime.datetime(2020, 2, 29, 1, 2, 3, 456789, fold=1),
        datetime.datetime(2020, 2, 29, tzinfo=datetime.timezone.utc),
        datetime.datetime(2020, 2, 29, tzinfo=zoneinfo.ZoneInfo("UTC")),
        datetime.time(23, 59, 58, 7, fold=1),
        datetime.timedelta(days=-1, seconds=2, microseconds=3),
        datetime.timezone(datetime.timedelta(hours=2)),
        zoneinfo.ZoneInfo("UTC"),
    ],
    "numbers": [decimal.Decimal("1.50"), fractions.Fraction(-1, 3)],
    "uuid": [uuid.UUID(int=5), uuid.uuid4()],
    "arrays": [
        np.arange(6, dtype=np.float32).reshape(2, 3),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(3, dtype=">i4"),
        np.array(5, np.uint16),
        np.zeros((0, 3), np.float16),
        np.array([True]),
        np.array([1 + 2j]),
        np.array(["ab", "c"]),
        np.array([b"ab", b"c"]),
        np.array(["2020-01-02"], "M8[D]"),
        np.array([25], "m8[25s]"),
    ],
    "scalars": [np.float32(1.5), np.int64(-3), np.bool_(True), np.str_("a"), np.datetime64("2020")],
    "dtypes": [np.dtype("f4"), np.dtype(">i8"), np.dtype("U3"), np.dtype("M8[ns]")],
    "numpy_rng": np.random.RandomState(3).get_state(),
    "bit_generator": np.random.default_rng(3).bit_generator.state,
    "torch": [torch.Size([2, 3]), torch.device("cuda", 1), torch.device("cpu"), torch.bfloat16],
    "torch_rng": torch.get_rng_state(),
    "layouts": [torch.strided, torch.sparse_coo, torch.sparse_csr],
    "tensors": [
        torch.arange(6).reshape(2, 3).t(),
        torch.ones(1, 1).expand(3, 4),
        torch.empty(0, 4),
        torch.tensor(2.5, dtype=torch.bfloat16),
        torch.tensor([1 + 2j]).conj(),
        torch.tensor([True]),
        torch.ones(2, requires_grad=True),
        torch.tensor([1, 2], dtype=torch.uint16),
        torch.ones(3).to(torch.float8_e4m3fn),
    ],
    "tied": tied(),
    "parameter": [torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2), False)],
    "sparse": [torch.eye(3).to_sparse(), torch.eye(3).to_sparse().coalesce()],
    "state_dict": state_dict(),
    "optimizer": optimizer_state(),
}


def as_zip(value: Any, protocol: int) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol)
    return file.getvalue()


def as_stream(value: Any, protocol: int) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, pickle_protocol=protocol, _use_new_zipfile_serialization=False)
    return file.getvalue()


FORMS = [
    *((pickle.dumps, protocol) for protocol in range(6)),
    *((form, protocol) for form in (as_zip, as_stream) for protocol in (2, 3, 4, 5)),
]


def written_by_others(data: bytes) -> Any:
    """What torch or Python loads. (NumPy turns the bytes of arrays into this machine's order.)"""
    try:
        return torch.load(io.BytesIO(data), weights_only=False)
    except Exception:
        return pickle.loads(data)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form[0].__name__}-{form[1]}")
def test_harmless_values_come_back(form: Any, tmp_path: Path) -> None:
    for name, value in VALUES.items():
        data = form[0](value, form[1])
        try:
            found = loaded(data, tmp_path)
        except Exception as error:
            raise AssertionError(name) from error
        # torch itself cannot load what it wrote of float8 in its older forms.
        own = form[0] is not as_zip and name == "tensors"
        expected = value if own else written_by_others(data)
        assert compare(expected, found).differences == [], name
        assert type(expected) is type(found), name


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantized_tensors_come_back(tmp_path: Path) -> None:
    scales, zeros = torch.tensor([0.1, 0.2]), torch.tensor([0, 1])
    value = [
        torch.quantize_per_tensor(torch.ones(3), 0.1, 2, torch.qint8),
        torch.quantize_per_channel(torch.ones(2, 3), scales, zeros, 0, torch.quint8),
    ]
    for data in (as_zip(value, 2), as_stream(value, 4), pickle.dumps(value, 5)):
        same(value, loaded(data, tmp_path))


@pytest.mark.filterwarnings("ignore:Sparse")
def test_compressed_rows_come_back(tmp_path: Path) -> None:
    eye = torch.eye(3)
    for value in (eye.to_sparse_csr(), eye.to_sparse_csc(), eye.to_sparse_bsr((1, 1))):
        found = loaded(as_zip({"w": value}, 2), tmp_path)["w"]
        assert found.layout == value.layout
        assert torch.equal(found.to_dense(), eye)


def test_tied_tensors_stay_tied(tmp_path: Path) -> None:
    for form in (as_zip, as_stream):
        first, second, part = loaded(form(tied(), 2), tmp_path)
        first[1] = 9
        assert second[1] == 9
        assert part[0] == 9


def test_the_metadata_of_a_state_dict_is_kept(tmp_path: Path) -> None:
    value = state_dict()
    assert loaded(as_zip(value, 2), tmp_path)._metadata == value._metadata


def test_what_is_mapped_does_not_reach_the_file(tmp_path: Path) -> None:
    data = as_zip({"w": torch.zeros(1000)}, 2)
    loaded(data, tmp_path)["w"].fill_(1)
    assert (tmp_path / "state.pt").read_bytes() == data


def test_a_windows_path_becomes_a_pure_one(tmp_path: Path) -> None:
    data = b"cpathlib\nWindowsPath\n(S'c:\\\\\\\\'\nS'a'\ntR."
    assert loaded(data, tmp_path) == pathlib.PureWindowsPath("c:\\a")


def test_the_version_of_torch_is_a_text(tmp_path: Path) -> None:
    for protocol in range(6):
        found = loaded(pickle.dumps({"torch": torch.__version__}, protocol), tmp_path)
        assert found == {"torch": str(torch.__version__)}
        assert type(found["torch"]) is str
