"""``get_value`` and ``export``: values and tensors, without torch."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import edit
from tests.two_states import KINDS, files

BASE = torch.randn(40, 30, generator=torch.Generator().manual_seed(0))
LACKING = {"bfloat16": "float32", "complex32": "float32", "float8_e4m3fn": "float32",
           "float8_e5m2": "float64"}  # fmt: skip
TENSORS: dict[str, Any] = {
    str(dtype).removeprefix("torch."): (BASE[:5, :7] * 3).to(dtype)
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int8,
                  torch.uint16, torch.int64, torch.bool, torch.complex64, torch.complex128,
                  torch.float8_e4m3fn, torch.float8_e5m2)
}  # fmt: skip
TENSORS |= {
    "base": BASE,
    "turned": BASE.t(),
    "step": BASE[3:9, ::2],
    "column": BASE[:, 4],
    "tied": BASE,
    "expanded": torch.ones(1, 3).expand(1000, 3),
    "zero": torch.tensor(3.5),
    "empty": torch.zeros(2, 0),
    "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
    "parameter": torch.nn.Parameter(torch.ones(2, 2)),
    "special": torch.tensor([math.nan, math.inf, -0.0]),
}
ARRAYS: dict[str, Any] = {
    "dates": np.array([["2020-01-01", "NaT"]], "M8[D]"),
    "big": np.arange(4, dtype=">f4"),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
}
STATE = {
    **TENSORS, **ARRAYS, "plain": {0: {"a": (1, 2.5)}, "path": Path("x")}, "nan": math.nan,
    "text": np.array(["a", "é"]), "lr": 1e-4, "dtype": torch.float16,
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("get") / request.param
    jsonckpt.save(STATE, made, chunk_size=52)
    return made


def array_of(name: str) -> Any:
    value = STATE[name]
    if isinstance(value, np.ndarray):
        return value.astype(value.dtype.newbyteorder("<"))
    value = value.detach()
    if name in LACKING:
        wide = {"float32": torch.float32, "float64": torch.float64}[LACKING[name]]
        value = value.to(torch.complex64 if value.is_complex() else wide)
    return value.numpy()


@pytest.mark.parametrize("name", [*TENSORS, *ARRAYS])
def test_arrays(path: Path, name: str) -> None:
    expected = array_of(name)
    found = edit.get_value(path, f"/{name}", as_dtype=LACKING.get(name))
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected)
    assert found.tobytes() == np.ascontiguousarray(expected).tobytes()
    pipe = io.BytesIO()
    size = edit.export(path, name, pipe, as_dtype=LACKING.get(name))
    assert size == len(pipe.getvalue())
    pipe.seek(0)
    again = np.load(pipe)
    assert (again.dtype, again.shape) == (expected.dtype, expected.shape)
    assert again.tobytes() == found.tobytes()


@pytest.mark.parametrize("name", ["base", "turned", "step", "tied", "expanded", "permuted"])
@pytest.mark.parametrize("rows", [slice(0, 2), slice(-2, None), slice(3, 1), slice(0, 10**9)])
def test_rows(path: Path, name: str, rows: slice) -> None:
    np.testing.assert_array_equal(
        edit.get_value(path, name, rows=rows), TENSORS[name].numpy()[rows]
    )


def test_bits(path: Path) -> None:
    found = edit.get_value(path, "/bfloat16", as_dtype="bits")
    assert found.dtype == np.dtype("<u2")
    np.testing.assert_array_equal(found.view(np.int16), TENSORS["bfloat16"].view(torch.int16))
    assert edit.get_value(path, "/complex64", as_dtype="bits").shape == (5, 7, 2)


def test_plain_values(path: Path) -> None:
    assert edit.get_value(path, "/plain") == {0: {"a": (1, 2.5)}, "path": Path("x")}
    assert edit.get_value(path, "plain/0/a") == (1, 2.5)
    assert edit.get_value(path, "/lr") == 1e-4
    assert math.isnan(edit.get_value(path, "/nan"))
    assert edit.get_value(path, "/text").tolist() == ["a", "é"]
    assert edit.get_value(path, "/dtype") is torch.float16


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("/bfloat16", {}, "NumPy has no such dtype"),
        ("/float64", {"as_dtype": "float32"}, "does not hold all its values"),
        ("/int8", {"as_dtype": "float32"}, "does not hold all its values"),
        ("/base", {"as_dtype": "int8"}, "may be float32"),
        ("/bas", {}, "Did you mean '/base'"),
        ("/zero", {"rows": slice(0, 1)}, "has no rows"),
        ("/lr", {"rows": slice(0, 1)}, "no rows"),
        ("/base", {"rows": slice(0, 9, 2)}, "without a step"),
        ("/", {}, "holds tensors"),
        ("", {}, "holds tensors"),
        ("/plain/0/a/7", {}, "nothing at"),
        ("\0", {}, "nothing at"),
    ],
)
def test_refusals(path: Path, name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(jsonckpt.JsonckptError, match=message):
        edit.get_value(path, name, **arguments)


def test_files(path: Path, tmp_path: Path) -> None:
    npy, text, out = tmp_path / "x.npy", tmp_path / "x.txt", tmp_path / "x.json"
    edit.export(path, "turned", npy)
    np.testing.assert_array_equal(np.load(npy), BASE.t().numpy())
    edit.export(path, "step", text)
    np.testing.assert_array_equal(np.loadtxt(text, dtype=np.float32), BASE[3:9, ::2].numpy())
    edit.export(path, "permuted", out)
    assert json.loads(out.read_text()) == TENSORS["permuted"].tolist()
    with pytest.raises(jsonckpt.CheckpointExistsError):
        edit.export(path, "/plain", out)
    edit.export(path, "/plain", out, overwrite=True)
    assert json.loads(out.read_text()) == {"0": {"a": [1, 2.5]}, "path": "x"}
    edit.export(path, "/plain", out, overwrite=True, raw=True)
    assert "$dict" in json.loads(out.read_text())
    edit.export(path, "/special", out, overwrite=True)
    assert json.loads(out.read_text()) == ["NaN", "Infinity", -0.0]
    edit.export(path, "/complex64", out, overwrite=True, rows=slice(0, 1))
    first = TENSORS["complex64"][0]
    parts = np.array(json.loads(out.read_text()), np.float32)[0]
    np.testing.assert_array_equal(parts, torch.view_as_real(first).numpy())
    edit.export(path, "/bool", out, overwrite=True)
    assert json.loads(out.read_text()) == TENSORS["bool"].tolist()
    for wrong in ("x.pt", "x"):
        with pytest.raises(jsonckpt.ArgumentError):
            edit.export(path, "step", tmp_path / wrong)
    with pytest.raises(jsonckpt.ArgumentError, match="no tensor"):
        edit.export(path, "/lr", tmp_path / "y.npy")
    assert files(tmp_path) == ["x.json", "x.npy", "x.txt"]


def test_a_private_checkpoint_gives_private_files(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path)
    os.chmod(path, 0o600)
    edit.export(path, "base", tmp_path / "x.npy")
    assert os.stat(tmp_path / "x.npy").st_mode & 0o077 == 0


def test_damage_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes().replace(b'"AAAA', b'"BAAA', 1))
    with pytest.raises(jsonckpt.IntegrityError, match="chunk 0"):
        edit.get_value(path, "w")
    with pytest.raises(jsonckpt.IntegrityError):
        edit.export(path, "w", tmp_path / "x.npy")
    assert files(tmp_path) == ["c.json"]


@pytest.mark.parametrize(
    "view",
    [
        {"shape": [5], "stride": [1], "offset": 8},
        {"shape": [1 << 40], "stride": [0], "offset": 0},
        {"shape": [1 << 62, 1 << 62], "stride": [0, 0], "offset": 0},
        {"shape": [2], "stride": [-1], "offset": 0},
        {"shape": [2], "stride": [1, 1], "offset": 0},
        {"shape": ["a"], "stride": [1], "offset": 0},
        {"dtype": "nope", "shape": [1], "stride": [1], "offset": 0},
        {"shape": 3, "stride": [1], "offset": 0},
        {},
    ],
)
def test_hostile_views(view: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save({"w": torch.zeros(10), "v": 0}, path)
    manifest = path / "manifest.json"
    document = json.loads(manifest.read_text())
    document["seal"] = None
    body = {"name": "/v", "of": "/w", "dtype": "float32", **view}
    document["state"]["v"] = {"$view": body}
    manifest.write_text(json.dumps(document))
    with pytest.raises(jsonckpt.JsonckptError):
        edit.get_value(path, "/v")
    with pytest.raises(jsonckpt.JsonckptError):
        edit.export(path, "/v", io.BytesIO())


@pytest.mark.parametrize(
    "state",
    [
        {"x": {"$tied": 3}},
        {"x": {"$tensor": 3}},
        {"x": {"$tensor": "/missing"}},
        {"x": {"$dict": [[1]]}},
        {"x": {"$dict": 3}},
        {"x": {"$ordered_dict": []}},
        {"x": {"$ordered_dict": {"items": 3}}},
        {"x": {"$scalar": 3}},
        {"x": {"$ndarray": {"dtype": "M8[", "shape": [1], "data": {"$tensor": "/w"}}}},
        {"x": {"$unknown": {"y": [{"$tied": {"name": "/x/y", "of": "/none"}}]}}},
        {"x": {"$view": []}},
        [1],
        None,
        {"$tensor": "/w"},
    ],
)
def test_hostile_states(state: Any, tmp_path: Path) -> None:
    """Nothing but errors of this package, whatever is asked for."""
    path = tmp_path / "c"
    jsonckpt.save({"w": torch.zeros(10)}, path)
    manifest = path / "manifest.json"
    document = json.loads(manifest.read_text()) | {"seal": None, "state": state}
    manifest.write_text(json.dumps(document))
    refused = 0
    calls: list[Callable[[], object]] = [
        lambda: edit.get_value(path, "/x"),
        lambda: edit.export(path, "/x", io.BytesIO()),
        lambda: edit.set_value(path, "/x", 1),
        lambda: edit.set_value(path, "/x/y", 1, create=True),
        lambda: edit.rename(path, tmp_path / "r.json", replace=("x", "y")),
        lambda: edit.split(path, tmp_path / "p", by="top-level"),
        lambda: edit.split(path, tmp_path / "q.json", include="/x"),
        lambda: edit.merge([path, path], tmp_path / "m.json"),
        lambda: edit.average([path, path], tmp_path / "a.json"),
    ]
    for call in calls:
        try:
            call()
        except jsonckpt.JsonckptError:
            refused += 1
    assert refused
