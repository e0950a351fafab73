"""tensors.aliasing: what was not chosen, and records, views and tensors that lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.state.tree import OMIT
from jsonckpt._src.tensors.aliasing import StateReader
from tests.flat_states import view


def test_what_was_not_chosen_is_omitted() -> None:
    loaded = {"/a": torch.zeros(6), "/s/values": torch.zeros(1)}
    with pytest.raises(FormatError, match=r"state '/c/\$tensor': there is no record '/c'"):
        StateReader(loaded, {"/c"}).get("$tensor", "/c", "/c")
    reader = StateReader(loaded, {"/a", "/s/values"})
    tensor: Json = {"$tensor": "/b"}
    assert reader.get("$tensor", "/b", "/b") is OMIT
    assert reader.get("$parameter", {"data": tensor, "requires_grad": True}, "/b") is OMIT
    assert reader.get("$requires_grad", tensor, "/b") is OMIT
    assert reader.get("$view", view("/v", "/a", "float32", [1], [1], 0)["$view"], "/v") is OMIT
    assert reader.get_array(tensor, "/b") is OMIT
    sparse: Json = {
        "layout": "coo",
        "shape": [3],
        "indices": {"$tensor": "/s/indices"},
        "values": {"$tensor": "/s/values"},
        "coalesced": True,
    }
    assert reader.get("$sparse", sparse, "/s") is OMIT
    scale: dict[str, Json] = {"scale": 0.5, "zero_point": 0}
    one: Json = {"dtype": "qint8", "scheme": "per_tensor_affine", "data": tensor, **scale}
    assert reader.get("$quantized", one, "/q") is OMIT


def good_view(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"name": "/v", "of": "/a", "dtype": "float32"}
    return {**body, "shape": [2, 2], "stride": [3, 1], "offset": 1, **changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": 2}, r"state '/v/\$view': the view ends at byte 28 of a record of 24 bytes"),
        ({"offset": -1}, r"'/v/\$view/offset': expected an integer from 0 .*, found '-1'"),
        ({"offset": 1.0}, "offset"),
        ({"offset": True}, "offset"),
        ({"offset": 2**63}, "offset"),
        ({"stride": [3]}, "expected 2 integers"),
        ({"stride": [-3, 1]}, "stride"),
        ({"stride": [2**62, 1]}, "ends at byte"),
        ({"shape": [2**40, 2**40], "stride": [0, 0]}, "2\\^63 bytes"),
        ({"shape": [2, "2"]}, "shape"),
        ({"shape": None}, "shape"),
        ({"shape": [1] * 65, "stride": [0] * 65}, "at most 64"),
        ({"dtype": "float99"}, "dtype"),
        ({"dtype": "complex128"}, "ends at byte"),
        ({"of": "/gone"}, "there is no record '/gone'"),
        ({"of": 1}, "/of': expected a string"),
        ({"name": None}, "/name': expected a string"),
        ({"dtype": "bool", "shape": [24], "stride": [1], "offset": 0}, "neither 0 nor 1"),
        (
            {"dtype": "bool", "shape": [2**40, 2**20], "stride": [0, 0], "offset": 6},
            "neither 0 nor 1",
        ),
        ({"shape": [2**62, 2**62, 0], "stride": [0, 0, 0]}, "torch has no view"),
    ],
)
def test_views_that_lie(changes: dict[str, Any], message: str) -> None:
    reader = StateReader({"/a": torch.ones(6)}, {"/v", "/a"})
    with pytest.raises(FormatError, match=message):
        reader.get("$view", good_view(**changes), "/v")


def test_views_at_the_edges_of_what_is_allowed() -> None:
    reader = StateReader({"/a": torch.arange(6.0)}, {"/v", "/w", "/x", "/y"})
    assert reader.get("$view", good_view(), "/v").tolist() == [[1, 2], [4, 5]]
    huge = good_view(name="/w", shape=[2**60], stride=[0], offset=5)
    assert reader.get("$view", huge, "/w")[2**59] == 5
    empty = good_view(name="/x", shape=[0, 3], stride=[2**62, 2**62], offset=2**62)
    assert reader.get("$view", empty, "/x").shape == (0, 3)
    single = good_view(name="/y", shape=[1], stride=[2**63 - 1], offset=5)
    assert reader.get("$view", single, "/y").tolist() == [5]


def test_one_name_cannot_be_two_views() -> None:
    reader = StateReader({"/a": torch.ones(6)}, {"/v"})
    first = reader.get("$view", good_view(), "/v")
    assert reader.get("$view", good_view(comment="ignored"), "/u") is first
    with pytest.raises(FormatError, match="another view has the name '/v'"):
        reader.get("$view", good_view(offset=0), "/u")


LOADED = {
    "/f": torch.ones(3),
    "/i": torch.ones(3, dtype=torch.int64),
    "/i8": torch.ones(3, dtype=torch.int8),
    "/f64": torch.ones(3, dtype=torch.float64),
    "/bad": torch.tensor([[0, 99, 1]]),
    "/unsorted": torch.tensor([[2, 1, 0]]),
    "/row": torch.tensor([0, 1, 3]),
    "/col": torch.tensor([0, 1, 77]),
}


def ref(name: str) -> Json:
    return {"$tensor": name}


def coo(**changes: Any) -> Json:
    body = {"layout": "coo", "shape": [3], "indices": ref("/unsorted"), "values": ref("/f")}
    return {**body, "coalesced": False, **changes}


def csr(**changes: Any) -> Json:
    body = {"layout": "csr", "shape": [2, 3], "compressed": ref("/row"), "plain": ref("/i")}
    return {**body, "values": ref("/f"), **changes}


def per_tensor(**changes: Any) -> Json:
    body = {"dtype": "qint8", "scheme": "per_tensor_affine", "data": ref("/i8")}
    return {**body, "scale": 0.5, "zero_point": 0, **changes}


def per_channel(**changes: Any) -> Json:
    body = {"dtype": "qint8", "scheme": "per_channel_affine", "data": ref("/i8")}
    return {**body, "scale": ref("/f64"), "zero_point": ref("/i"), "axis": 0, **changes}


@pytest.mark.parametrize(
    ("tag", "body", "message"),
    [
        ("$tensor", 1, "expected a name"),
        ("$view", [], "expected an object"),
        ("$what", {}, "'\\$what' is not a tensor"),
        ("$parameter", [], "expected an object"),
        ("$parameter", {"data": ref("/f")}, "an object with the members data, requires_grad"),
        ("$parameter", {"data": ref("/f"), "requires_grad": 1}, "grad': expected true or false"),
        ("$parameter", {"data": ref("/i"), "requires_grad": True}, "int64 cannot require"),
        ("$parameter", {"requires_grad": True}, "an object with the members data, requires_grad"),
        ("$parameter", {"data": None, "requires_grad": True}, "expected a tensor"),
        ("$requires_grad", ref("/i"), "int64 cannot require"),
        ("$requires_grad", {"$requires_grad": ref("/f")}, "expected a dense tensor"),
        ("$requires_grad", {"a": 1, "b": 2}, "expected a tensor"),
        ("$sparse", "coo", "expected an object"),
        ("$sparse", coo(layout="dense"), "layout': expected one of coo, csr"),
        ("$sparse", coo(shape=[-1]), "shape"),
        ("$sparse", coo(shape=[2]), "torch cannot put the parts together"),
        ("$sparse", coo(shape=[2**62, 2**62]), "torch cannot"),
        ("$sparse", coo(indices=ref("/bad")), "torch cannot"),
        ("$sparse", coo(indices=ref("/f")), "torch cannot"),
        ("$sparse", coo(coalesced=True), "torch cannot.*coalesced"),
        ("$sparse", coo(coalesced=1), "coalesced': expected true or false"),
        ("$sparse", coo(values={"$sparse": {}}), "expected a dense tensor"),
        ("$sparse", coo(values=None), "expected a tensor"),
        ("$sparse", csr(plain=ref("/col")), "torch cannot"),
        ("$sparse", csr(compressed=ref("/col")), "torch cannot"),
        ("$sparse", csr(shape=[2]), "torch cannot"),
        ("$quantized", [], "expected an object"),
        ("$quantized", per_tensor(dtype="quint4x2"), "dtype': expected one of quint8"),
        ("$quantized", per_tensor(scheme="none"), "scheme': expected one of"),
        ("$quantized", per_tensor(data=ref("/f")), "expected a tensor of torch.int8"),
        ("$quantized", per_tensor(scale="1"), "scale': expected a number"),
        ("$quantized", per_tensor(scale=True), "scale': expected a number"),
        ("$quantized", per_tensor(scale={"$float": "x"}), "scale': expected a number"),
        ("$quantized", per_tensor(zero_point=2**31), "zero_point': expected an integer"),
        ("$quantized", per_channel(axis=1), "axis': expected one of 1 dimensions"),
        ("$quantized", per_channel(scale=ref("/f")), "scale': expected a tensor of torch.float64"),
        ("$quantized", per_channel(zero_point=ref("/unsorted")), "expected 3 channels"),
    ],
)
def test_tensors_that_lie(tag: str, body: Json, message: str) -> None:
    with pytest.raises(FormatError, match=f"state '/x.*{message}"):
        StateReader(LOADED, LOADED).get(tag, body, "/x")


def test_the_bodies_above_are_good_but_for_the_change() -> None:
    reader = StateReader({**LOADED, "/i": torch.tensor([0, 0, 1])}, LOADED)
    assert reader.get("$sparse", coo(), "/x").to_dense().tolist() == [1, 1, 1]
    assert reader.get("$sparse", csr(plain=ref("/i")), "/x").layout == torch.sparse_csr
    assert reader.get("$quantized", per_tensor(scale=2), "/x").q_scale() == 2
    assert reader.get("$quantized", per_channel(), "/x").q_per_channel_axis() == 0
