"""tensors.aliasing: sparse and quantized tensors, and what cannot be written."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.distributed.fsdp._flat_param import FlatParameter

from jsonckpt._src.errors import JsonckptError, UnsupportedTypeError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.tensors.aliasing import StateWriter
from tests.flat_states import read, records, tied, write


def round_trip(**values: torch.Tensor) -> dict[str, Any]:
    return read(*write({f"/{name}": value for name, value in values.items()}))


def body(tagged: Json) -> dict[str, Any]:
    assert isinstance(tagged, dict)
    [inner] = tagged.values()
    assert isinstance(inner, dict)
    return inner


# --- sparse and quantized tensors -----------------------------------------------------------


def test_sparse_coo_keeps_order_duplicates_and_flag() -> None:
    indices = torch.tensor([[1, 0, 1], [2, 0, 2]])
    sparse = torch.sparse_coo_tensor(
        indices, torch.tensor([1.0, 2.0, 3.0]), (2, 3), check_invariants=True
    )
    leaf = sparse.detach().requires_grad_()
    state, sources = write({"/s": sparse, "/c": sparse.coalesce(), "/g": leaf})
    assert state["/s"] == {
        "$sparse": {
            "layout": "coo",
            "shape": [2, 3],
            "indices": {"$tensor": "/s/indices"},
            "values": {"$tensor": "/s/values"},
            "coalesced": False,
        }
    }
    parts = {"indices": tied("/g/indices", "/s/indices"), "values": tied("/g/values", "/s/values")}
    assert state["/g"] == {"$requires_grad": {"$sparse": {**body(state["/s"]), **parts}}}
    assert records(sources)[:2] == [
        ("/s/indices", "int64", (2, 3)),
        ("/s/values", "float32", (3,)),
    ]
    loaded = read(state, sources)
    assert not loaded["/s"].is_coalesced()
    assert loaded["/s"]._indices().tolist() == indices.tolist()
    assert loaded["/s"]._values().tolist() == [1, 2, 3]
    assert loaded["/c"].is_coalesced()
    assert loaded["/c"].values().tolist() == [2, 4]
    assert loaded["/g"].requires_grad


@pytest.mark.filterwarnings("ignore:Sparse")  # from the conversion in this test
@pytest.mark.parametrize("layout", ["csr", "csc", "bsr", "bsc"])
def test_sparse_compressed(layout: str) -> None:
    dense = torch.tensor([[0.0, 1.0, 0.0, 2.0], [3.0, 0.0, 0.0, 0.0]])
    block = (1, 2) if layout.startswith("b") else None
    kind: torch.layout = getattr(torch, f"sparse_{layout}")
    sparse = dense.to_sparse(layout=kind, blocksize=block)
    state, sources = write({"/s": torch.nn.Parameter(sparse)})
    assert state["/s"] == {
        "$parameter": {
            "data": {
                "$sparse": {
                    "layout": layout,
                    "shape": [2, 4],
                    "compressed": {"$tensor": "/s/compressed"},
                    "plain": {"$tensor": "/s/plain"},
                    "values": {"$tensor": "/s/values"},
                }
            },
            "requires_grad": True,
        }
    }
    loaded = read(state, sources)["/s"]
    assert loaded.layout == kind
    assert torch.equal(loaded.detach().to_dense(), dense)
    assert type(loaded) is torch.nn.Parameter


def test_sparse_on_meta() -> None:
    sparse = torch.eye(3).to_sparse()
    state, sources = write({"/s": sparse})
    loaded = read(state, sources, torch.device("meta"))["/s"]
    assert loaded.is_meta
    assert loaded.layout == torch.sparse_coo
    assert loaded.shape == (3, 3)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_sparse_compressed_on_meta_is_refused_clearly() -> None:
    state, sources = write({"/s": torch.eye(3).to_sparse_csr()})
    with pytest.raises(JsonckptError, match=r"no torch\.sparse_csr tensors on the meta device"):
        read(state, sources, torch.device("meta"))


def quantize(kind: str) -> torch.Tensor:
    values = torch.linspace(-3, 3, 12).view(3, 4)
    if kind in ("quint8", "qint8", "qint32"):
        return torch.quantize_per_tensor(values, 0.1, 3, getattr(torch, kind))
    scales = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    points = torch.tensor([1, 2, 3])
    if kind == "per_channel":
        return torch.quantize_per_channel(values, scales, points, 0, torch.qint8)
    dtype = torch.quint4x2 if kind == "quint4x2" else torch.quint8
    return torch.quantize_per_channel(values, scales.float(), points.float(), 0, dtype)


quantized = pytest.mark.filterwarnings("ignore:torch.quantize")  # from making them


@quantized
def test_quantized_per_tensor_is_said_literally_and_shares_memory() -> None:
    tensor = quantize("quint8")
    state, sources = write({"/q": tensor, "/tied": tensor})
    assert state["/q"] == {
        "$quantized": {
            "dtype": "quint8",
            "scheme": "per_tensor_affine",
            "data": {"$tensor": "/q/data"},
            "scale": 0.1,
            "zero_point": 3,
        }
    }
    tied_data = {"data": tied("/tied/data", "/q/data")}
    assert state["/tied"] == {"$quantized": {**body(state["/q"]), **tied_data}}
    assert records(sources) == [("/q/data", "uint8", (3, 4))]
    loaded = read(state, sources)
    assert loaded["/q"] is loaded["/tied"]


@quantized
@pytest.mark.parametrize("kind", ["quint8", "qint8", "qint32", "per_channel", "float_qparams"])
def test_quantized_round_trip(kind: str) -> None:
    tensor = quantize(kind)
    for one in (tensor, tensor.t() if tensor.qscheme() == torch.per_tensor_affine else tensor):
        loaded = round_trip(q=one)["/q"]
        assert (loaded.dtype, loaded.qscheme()) == (one.dtype, one.qscheme())
        assert torch.equal(loaded.int_repr(), one.int_repr())
        assert torch.equal(loaded.dequantize(), one.dequantize())


@quantized
def test_quantized_per_channel_is_said_literally() -> None:
    state, sources = write({"/q": quantize("per_channel")})
    assert state["/q"] == {
        "$quantized": {
            "dtype": "qint8",
            "scheme": "per_channel_affine",
            "data": {"$tensor": "/q/data"},
            "scale": {"$tensor": "/q/scale"},
            "zero_point": {"$tensor": "/q/zero_point"},
            "axis": 0,
        }
    }
    assert records(sources) == [
        ("/q/data", "int8", (3, 4)),
        ("/q/scale", "float64", (3,)),
        ("/q/zero_point", "int64", (3,)),
    ]


@quantized
def test_quantized_with_a_scale_that_is_not_finite() -> None:
    tensor = torch.quantize_per_tensor(torch.zeros(2), float("inf"), 0, torch.qint32)
    state, sources = write({"/q": tensor})
    body = state["/q"]
    assert isinstance(body, dict)
    assert isinstance(body["$quantized"], dict)
    assert body["$quantized"]["scale"] == {"$float": "Infinity"}
    assert read(state, sources)["/q"].q_scale() == float("inf")


@quantized
def test_packed_quantized_dtypes_are_refused() -> None:
    with pytest.raises(UnsupportedTypeError, match=r"tensor '/q'.*quint4x2.*dequantize"):
        write({"/q": quantize("quint4x2")})


# --- what cannot be written -----------------------------------------------------------------


class Subclass(torch.Tensor):
    pass


def freed() -> torch.Tensor:
    tensor = torch.zeros(4)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_that_cannot_be_written_say_why() -> None:
    cases: dict[str, Any] = {
        r"meta device has no data": torch.zeros(2, device="meta"),
        r"test_aliasing_forms\.Subclass\. Call jsonckpt\.register\(Subclass": torch.zeros(
            2
        ).as_subclass(Subclass),
        r"UninitializedParameter has no shape": torch.nn.UninitializedParameter(),
        r"UninitializedBuffer has no shape": torch.nn.UninitializedBuffer(),
        r"layout nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        r"layout _mkldnn\. Save value\.to_dense": torch.ones(2).to_mkldnn(),
        r"65 dimensions": torch.zeros((1,) * 65),
        r"needs 16 bytes of memory, but its storage has 0": freed(),
    }
    for message, tensor in cases.items():
        with pytest.raises(UnsupportedTypeError, match=rf"tensor '/x': .*{message}"):
            StateWriter().put(tensor, "/x")


def test_a_part_of_a_spread_tensor_is_not_written() -> None:
    """What one rank holds looks whole to it; the way out must not lead to saving that."""
    dtensor = type("DTensor", (torch.Tensor,), {})
    below = type("AsyncDTensor", (dtensor,), {})
    sharded = type("ShardedTensorBase", (torch.Tensor,), {})
    flat = FlatParameter(torch.ones(3))  # type: ignore[no-untyped-call]
    spread: list[Any] = [*(torch.ones(2).as_subclass(k) for k in (dtensor, below, sharded)), flat]
    for tensor in spread:
        with pytest.raises(UnsupportedTypeError, match="holds a part of it") as caught:
            StateWriter().put(tensor, "/x")
        hint = caught.value.hint or ""
        assert "full_tensor()" in hint
        assert "save it on one rank" in hint
        assert "to_local" not in str(caught.value)
