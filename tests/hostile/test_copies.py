"""What reading a state makes beside its records counts against the limits before it is made.

Each input is some hundred bytes beside one record that compresses to nothing.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests.hostile.cases import MOST_SECONDS
from tests.hostile.forge import Forgery, Record, good
from tests.hostile.runner import Child

MIB = 1 << 20
#: Doors that make the whole state.
WHOLE = ("indexed", "streaming", "state", "load_into")
#: Smaller than the defaults, so that copies up to the limit do not take long.
LIMITS = {"total_floor": 128 * MIB, "expansion": 1}
#: The record, as much of copies, and what the copy that passes the limit needs on its way.
MOST = 256 * MIB


def _view(name: str, dtype: str, shape: list[int], stride: list[int], offset: int = 0) -> Any:
    return {
        "$view": {
            "name": name, "of": "/big", "dtype": dtype, "shape": shape, "stride": stride,
            "offset": offset,
        }
    }  # fmt: skip


def _big(mib: int = 16) -> Forgery:
    """A checkpoint with one more record of zeros, of chunks that stand for 1 MiB in 100 bytes."""
    forgery = good()
    record = Record.of(
        "/big", "uint8", [mib * MIB], bytes(mib * MIB), compression="zstd", chunk_bytes=16 * MIB
    )
    forgery.records.append(record)
    forgery.state["big"] = {"$tensor": "/big"}
    return forgery


def _array(dtype: str, shape: list[int], data: Any, **order: str) -> Any:
    return {"$ndarray": {"dtype": dtype, "shape": shape, "data": data, **order}}


def _views_in_big_endian() -> Any:
    """300 views of one record, each a little shorter than the one before it."""
    n = 4 * MIB
    return [_array(">f4", [n - i], _view(f"/v{i}", "float32", [n - i], [1])) for i in range(300)]


def _views_in_column_major_order() -> Any:
    n = 2 * MIB
    return [
        _array("<f4", [n - i, 2], _view(f"/v{i}", "float32", [n - i, 2], [2, 1]), order="F")
        for i in range(300)
    ]


def _expanded_in_big_endian() -> Any:
    return _array(">f4", [2**29], _view("/v", "float32", [2**29], [0]))


def _expanded_in_column_major_order() -> Any:
    return _array("<f4", [2**29, 2], _view("/v", "float32", [2**29, 2], [0, 0]), order="F")


def _quantized(data: Any, scale: Any, zero_point: Any) -> Any:
    body = {"dtype": "qint8", "scheme": "per_channel_affine", "data": data, "scale": scale}
    return {"$quantized": {**body, "zero_point": zero_point, "axis": 0}}


def _quantized_with_expanded_scales() -> Any:
    n = 2**28
    return _quantized(
        _view("/d", "int8", [n], [0]),
        _view("/s", "float64", [n], [0]),
        _view("/z", "int64", [n], [0]),
    )


def _quantized_of_expanded_data() -> Any:
    n = 2**30
    return _quantized(
        _view("/d", "int8", [1, n], [0, 0]),
        _view("/s", "float64", [1], [1]),
        _view("/z", "int64", [1], [1]),
    )


def _many_quantized() -> Any:
    n = 16 * MIB
    return [
        _quantized(
            _view(f"/d{i}", "int8", [1, n - i], [n, 1]),
            _view(f"/s{i}", "float64", [1], [1]),
            _view(f"/z{i}", "int64", [1], [1]),
        )
        for i in range(200)
    ]


def _sparse(indices: Any, values: Any, coalesced: bool) -> Any:
    body = {"layout": "coo", "shape": [9], "indices": indices, "values": values}
    return {"$sparse": {**body, "coalesced": coalesced}}


def _coalesced_of_expanded_indices() -> Any:
    n = 2**28
    return _sparse(_view("/in", "int64", [1, n], [0, 0]), _view("/x", "float32", [n], [0]), True)


def _many_sparse() -> Any:
    n = 2 * MIB
    return [
        _sparse(
            _view(f"/i{i}", "int64", [1, n - i], [0, 1]),
            _view(f"/x{i}", "float32", [n - i], [1]),
            False,
        )
        for i in range(200)
    ]


def _csr_of_expanded_columns() -> Any:
    n = 2**28
    body = {"layout": "csr", "shape": [1, 9], "compressed": _view("/c", "int64", [2], [1])}
    body |= {"plain": _view("/in", "int64", [n], [0]), "values": _view("/x", "float32", [n], [0])}
    return {"$sparse": body}


def _bools_of_one_record() -> Any:
    return [_view(f"/b{i}", "bool", [16 * MIB - i], [1]) for i in range(300)]


def _arrays_of_wide_text() -> Any:
    return [_array(f"<U{15_000_000 + i}", [1], ["a"]) for i in range(300)]


REFUSED: list[Callable[[], Any]] = [
    _views_in_big_endian,
    _views_in_column_major_order,
    _expanded_in_big_endian,
    _expanded_in_column_major_order,
    _quantized_with_expanded_scales,
    _quantized_of_expanded_data,
    _many_quantized,
    _coalesced_of_expanded_indices,
    _many_sparse,
    _csr_of_expanded_columns,
    _bools_of_one_record,
    _arrays_of_wide_text,
]


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__.strip("_"))
def test_too_much_is_refused(make: Callable[[], Any], child: Child, tmp_path: Path) -> None:
    forgery = _big()
    forgery.state["x"] = make()
    path = forgery.write_single(tmp_path / "run.json.zst")
    # Tensors are not made by ``state``, and only what the target asks for by ``load_into``.
    arrays = "$ndarray" in str(forgery.state["x"])
    for door in (*WHOLE, "deep"):
        outcome = child.ask(path, door, LIMITS)
        assert outcome.seconds < MOST_SECONDS, f"{door} took {outcome.seconds:.1f} s"
        assert outcome.growth < MOST, f"{door} took {outcome.growth >> 20} MiB"
        if door in ("indexed", "streaming") or (arrays and door != "deep"):
            assert outcome.error[:1] == ("LimitError",), f"{door}: {outcome}"
            assert "total_floor" in outcome.message
            assert "/x" in outcome.message
        else:
            assert not outcome.error or "JsonckptError" in outcome.error, f"{door}: {outcome}"


def test_the_defaults_refuse_it_too(child: Child, tmp_path: Path) -> None:
    forgery = _big(64)
    n = 16 * MIB
    forgery.state["x"] = [
        _array(">f4", [n - i], _view(f"/v{i}", "float32", [n - i], [1])) for i in range(300)
    ]
    path = forgery.write_single(tmp_path / "run.json.zst")
    outcome = child.ask(path, "indexed")
    assert outcome.error[:1] == ("LimitError",), outcome
    assert outcome.growth < 1300 * MIB, f"{outcome.growth >> 20} MiB"


def _expanded_indices() -> Any:
    n = 2**28
    return _sparse(_view("/in", "int64", [1, n], [0, 0]), _view("/x", "float32", [n], [0]), False)


@pytest.mark.parametrize("dtype", [">f4", "<f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_references_of_one_record_share_one_copy(
    dtype: str, order: str, child: Child, tmp_path: Path
) -> None:
    forgery = good()
    raw = bytes(32 * MIB)
    forgery.records.append(
        Record.of("/big", "float32", [4 * MIB, 2], raw, compression="zstd", chunk_bytes=16 * MIB)
    )
    tied = {"$tied": {"name": "/t", "of": "/big"}}
    asked = {"order": "F"} if order == "F" else {}
    array = _array(dtype, [4 * MIB, 2], tied, **asked)
    forgery.state["x"] = [array] * 300
    path = forgery.write_single(tmp_path / "run.json.zst")
    for door in WHOLE:
        outcome = child.ask(path, door)
        assert not outcome.error, f"{door}: {outcome}"
        assert outcome.growth < 256 * MIB, f"{door} took {outcome.growth >> 20} MiB"


def test_expanded_indices_are_checked_once(child: Child, tmp_path: Path) -> None:
    forgery = _big()
    forgery.state["x"] = _expanded_indices()
    path = forgery.write_single(tmp_path / "run.json.zst")
    for door in ("indexed", "streaming"):
        outcome = child.ask(path, door)
        assert not outcome.error, f"{door}: {outcome}"
        assert outcome.seconds < 2, f"{door} took {outcome.seconds:.1f} s"
        assert outcome.growth < 256 * MIB, f"{door} took {outcome.growth >> 20} MiB"
    forgery.state["x"]["$sparse"]["shape"] = [0]
    outcome = child.ask(forgery.write_single(tmp_path / "run.json.zst"), "indexed")
    assert outcome.error[:1] == ("FormatError",), outcome


def test_what_was_saved_never_meets_the_limit(tmp_path: Path) -> None:
    """Arrays that are copied on their way back, as large as all tensors may be."""
    square = np.arange(8_000, dtype="<f4").reshape(80, 100)
    big = square.astype(">f4").T
    scales = torch.rand(80, dtype=torch.float64) + 1
    zeros = torch.zeros(80, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of quantization
        made = torch.quantize_per_channel(torch.from_numpy(square), scales, zeros, 0, torch.qint8)
    state = {
        "columns": [np.asfortranarray(square)] * 3,
        "big": big,
        "quantized": {"one": made, "two": made},
    }
    for name in ("c", "c.json", "c.json.zst"):
        path = tmp_path / name
        jsonckpt.save(state, path)
        with jsonckpt.open(path) as checkpoint:
            limits = jsonckpt.Limits(total_floor=checkpoint.manifest.nbytes, expansion=0)
        with jsonckpt.open(path, limits=limits) as checkpoint:
            both = jsonckpt.load(path, limits=limits), checkpoint.state()
        for loaded in both:
            assert loaded["big"].dtype == big.dtype
            assert loaded["big"].flags.f_contiguous == big.flags.f_contiguous
            assert np.array_equal(loaded["big"], big)
            for array in loaded["columns"]:
                assert array.flags.f_contiguous
                assert np.array_equal(array, square)
        assert torch.equal(
            jsonckpt.load(path, limits=limits)["quantized"]["two"].int_repr(), made.int_repr()
        )


def test_shared_arrays_still_share(tmp_path: Path) -> None:
    array = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    jsonckpt.save({"a": array, "b": array}, tmp_path / "c")
    with jsonckpt.open(tmp_path / "c") as checkpoint:
        states = [jsonckpt.load(tmp_path / "c"), checkpoint.state()]
    for state in states:
        assert json.dumps(state["a"].tolist()) == json.dumps(array.tolist())
        assert state["a"].flags.f_contiguous
