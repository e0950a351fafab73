"""Hostile files of other programs: each is refused in little time, by an error of this package."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from jsonckpt import JsonckptError, LimitError, Limits, UnsafePathError
from jsonckpt._src.convert.api import convert
from jsonckpt._src.convert.options import ConvertOptions
from jsonckpt._src.convert.read import read
from jsonckpt._src.pickles.values import Unread
from tests.pickles.test_hostile import archive as packed
from tests.pickles.test_hostile import memo, tensor, text


def module(
    parameters: bytes = b"}", buffers: bytes = b"}", modules: bytes = b"}", more: bytes = b""
) -> bytes:
    """A pickled module whose class is not imported."""
    return (
        b"ctorch.nn.modules.module\nModule\n)\x81}("
        + text("_parameters")
        + parameters
        + text("_buffers")
        + buffers
        + text("_modules")
        + modules
        + more
        + b"ub"
    )


def optimizer(groups: bytes) -> bytes:
    return (
        b"ctorch.optim\nAdam\n)\x81}("
        + text("state")
        + b"}"
        + text("param_groups")
        + groups
        + b"ub"
    )


def _doubling_modules() -> bytes:
    many = b"}(" + b"".join(text(f"p{n}") + b"K\x01" for n in range(5_000)) + b"u"
    data = module(parameters=many) + b"q\0"
    for _ in range(18):
        data += module(modules=b"}(" + text("a") + b"h\0" + text("b") + b"h\0u") + b"q\0"
    return data


DOUBLING = b"]q\0" + b"".join(b"](" + memo(n) * 2 + b"eq" + bytes([n + 1]) for n in range(100))
OBJECTS = {
    "a list in itself": module(buffers=b"}" + text("a") + b"]q\0h\0as"),
    "doubling lists": module(buffers=b"}(" + text("a") + DOUBLING[:-2] + b"u"),
    "doubling modules": _doubling_modules(),
    "a module in itself": b"ctorch.nn\nModule\n)\x81q\0}("
    + text("_parameters")
    + b"}"
    + text("_buffers")
    + b"}"
    + text("_modules")
    + b"}"
    + text("a")
    + b"h\0sub",
    "a group that is a number": optimizer(b"](K\x05e"),
    "parameters that are a number": optimizer(b"](}" + text("params") + b"K\x05se"),
    "a group without parameters": optimizer(b"](}e"),
    "a scheduler in itself": b"ctorch.optim.lr_scheduler\nStepLR\n)\x81}"
    + text("a")
    + b"]q\0h\0asb",
}


@pytest.mark.parametrize("name", OBJECTS)
def test_objects_whose_state_dict_is_taken(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"\x80\x04" + OBJECTS[name] + b".")
    with pytest.raises(JsonckptError):
        convert(path, to="json", state_dict=True)


def test_a_set_of_buffers_that_is_none(tmp_path: Path) -> None:
    """What names the buffers that are not saved can be anything."""
    path = tmp_path / "m.pt"
    one = b"}" + text("a") + tensor(b"K\0", b"K\x01\x85", b"K\x01\x85") + b"s"
    hidden = text("_non_persistent_buffers_set") + b"K\x05"
    path.write_bytes(packed(b"\x80\x04" + module(buffers=one, more=hidden) + b"."))
    state = read(path, ConvertOptions(state_dict=True), tmp_path).state
    assert not isinstance(state, Unread)
    assert list(state) == ["a"]


def test_an_expanded_tensor_is_not_written_out(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    torch.save({"w": torch.ones(1).expand(1 << 40)}, path)
    with pytest.raises(LimitError, match=r"over .* bytes where all elements are written"):
        convert(path, to="safetensors")
    small = tmp_path / "s.pt"
    torch.save({"w": torch.ones(1).expand(1 << 10)}, small)
    assert convert(small, to="json", test_load=True).tensors == [("/w", "float32", (1 << 10,))]


def _index(path: Path, *shards: str) -> None:
    weights = {str(number): name for number, name in enumerate(shards)}
    path.write_text(json.dumps({"weight_map": weights}))


def test_an_index_of_indexes(tmp_path: Path) -> None:
    """Thirty files that each name two others are a billion files to read."""
    name = "{}{}.safetensors.index.json"
    for level in range(30):
        for side in "ab":
            below = [name.format(other, level + 1) for other in "ab"]
            _index(tmp_path / name.format(side, level), *below)
    for side in "ab":
        _index(tmp_path / name.format(side, 30), "model.safetensors")
    with pytest.raises(JsonckptError, match="is an index itself"):
        convert(tmp_path / "a0.safetensors.index.json", tmp_path / "out.json")
    _index(tmp_path / "own.safetensors.index.json", "own.safetensors.index.json")
    with pytest.raises(JsonckptError, match="is an index itself"):
        convert(tmp_path / "own.safetensors.index.json", tmp_path / "out.json")


def _tensorflowjs(directory: Path, weight: dict[str, Any], data: bytes) -> Path:
    (directory / "w.bin").write_bytes(data)
    groups = [{"paths": ["w.bin"], "weights": [{"name": "a", **weight}]}]
    (directory / "model.json").write_text(json.dumps({"weightsManifest": groups}))
    return directory / "model.json"


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("member", ["scale", "min"])
def test_a_number_beyond_float64_is_infinite_as_in_javascript(
    member: str, sign: int, tmp_path: Path
) -> None:
    quantization = {"dtype": "uint8", "scale": 1, "min": 0, member: sign * 10**400}
    weight = {"shape": [2], "dtype": "float32", "quantization": quantization}
    model = _tensorflowjs(tmp_path, weight, b"\1\2")
    found = read(model, ConvertOptions(), tmp_path).state["weights"]["a"]
    assert found.tolist() == [sign * float("inf")] * 2
    weight["dtype"] = "int32"
    with pytest.raises(JsonckptError, match="beyond int32"):
        read(_tensorflowjs(tmp_path, weight, b"\1\2"), ConvertOptions(), tmp_path)


def test_strings_longer_than_a_window(tmp_path: Path) -> None:
    texts = [b"a" * n for n in (0, 1, 70_000, 3, 65_532, 65_536, 2)] + [b"b"] * 30_000
    data = b"".join(struct.pack("<I", len(each)) + each for each in texts)
    weight = {"shape": [len(texts)], "dtype": "string"}
    state = read(_tensorflowjs(tmp_path, weight, data), ConvertOptions(), tmp_path).state
    assert state["weights"]["a"] == [each.decode() for each in texts]


def header(descr: str, shape: str) -> str:
    return f"{{'descr':{descr},'fortran_order':False,'shape':{shape}}}"


HEADERS = {
    "minus": "-" * 60_000 + "1",
    "plus": "1+" * 30_000 + "1",
    "lists": "[" * 60_000,
    "tuples": "(" * 60_000,
    "digits": "9" * 60_000,
    "dictionaries": "{1:" * 20_000,
    "a huge size": header("'<f8'", f"({'9' * 4_000},)"),
    "no element of many": header("'<f8'", f"(0,{1 << 62},4)"),
    "a huge item": header("'<V999999999999'", "(5,)"),
    "a huge field": header("[('a','<f8',(1000000,1000000))]", "(5,)"),
    "nested fields": header("[('a'," * 80 + "[('b','<f8')]" + ")]" * 80, "(5,)"),
    "a unit of time": header("'<M8[99999999999s]'", "(5,)"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_headers_of_numpy(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    raw = HEADERS[name].encode()
    path.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(raw)) + raw)
    with pytest.raises(JsonckptError):
        convert(path, to="json")


def test_shards_that_are_links(tmp_path: Path) -> None:
    """Download caches make such links: only who asks for it gets them refused."""
    convert(packed_tensor(tmp_path), tmp_path / "blob.safetensors")
    (tmp_path / "model.safetensors").symlink_to(tmp_path / "blob.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "model.safetensors"}}))
    assert convert(index, tmp_path / "out.json").tensors == [("/w", "float32", (2,))]
    with pytest.raises(UnsafePathError, match="symbolic link"):
        convert(index, tmp_path / "two.json", limits=Limits(links=0))


def packed_tensor(directory: Path) -> Path:
    torch.save({"w": torch.ones(2)}, directory / "w.pt")
    return directory / "w.pt"
