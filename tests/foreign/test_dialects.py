"""JSON that other programs write: each dialect literally, and what is made of its values."""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import io
import json
import tempfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonckpt._src.convert.number_list_json import write_number_lists
from jsonckpt._src.errors import FormatError
from jsonckpt._src.foreign.facts import typed_array
from jsonckpt._src.foreign.payloads import dtype_named
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from jsonckpt._src.json_stream import lift_arrays, text_reader
from jsonckpt._src.tensors.compare import compare
from jsonckpt._src.tensors.pieces import over
from tests.convert.guide import DATA
from tests.foreign.dialects import DIALECTS, EXPECTED, b64, npy, read
from tests.support import examples


@pytest.mark.parametrize("text", DIALECTS.values(), ids=DIALECTS)
def test_every_dialect(text: str, tmp_path: Path) -> None:
    found = read('{"a":{"w":%s},"epoch":3}' % text, tmp_path)
    assert found["epoch"] == 3
    tensor = found["a"]["w"]
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, EXPECTED)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model", "weights"])
def test_plain_lists_in_a_state_dict(key: str, tmp_path: Path) -> None:
    found = read('{"%s":{"w":[[1.5,-2.0],[0.25,3.0]],"n":7},"lr":[0.1,1]}' % key, tmp_path)
    assert torch.equal(found[key]["w"], EXPECTED)
    assert torch.equal(found[key]["n"], torch.tensor(7))
    assert found["lr"] == [0.1, 1]


def test_plain_lists_at_the_top_only_when_asked(tmp_path: Path) -> None:
    text = '{"w":[[1.5,-2.0],[0.25,3.0]],"epoch":3}'
    with pytest.raises(FormatError, match="--plain-lists"):
        read(text, tmp_path)
    found = read(text, tmp_path, plain_lists=True)
    assert torch.equal(found["w"], EXPECTED)
    assert found["epoch"] == 3


def test_flattened_lists_take_their_shape_from_outside(tmp_path: Path) -> None:
    text = '{"state_dict":{"w":[1.5,-2.0,0.25,3.0],"b":[1.0]}}'
    assert read(text, tmp_path)["state_dict"]["w"].shape == (4,)
    assert torch.equal(read(text, tmp_path, shapes={"w": [2, 2]})["state_dict"]["w"], EXPECTED)
    with pytest.raises(FormatError, match="/state_dict/w"):
        read(text, tmp_path, shapes={"/state_dict/w": [3, 2]})


def test_complex_numbers(tmp_path: Path) -> None:
    monty = '{"@module":"torch","@class":"Tensor","dtype":"torch.ComplexFloatTensor","size":[2],'
    for text in (
        monty + '"data":[[1.0,3.0],[2.0,4.0]]}',
        '{"__ndarray__":[{"__complex__":[1.0,2.0]},{"__complex__":[3,4]}],"dtype":"complex64"}',
        '{"data":[[1,2],[3,4]],"dtype":"torch.complex64","shape":[2]}',
    ):
        found = read(text, tmp_path)
        assert torch.equal(found, torch.tensor([1 + 2j, 3 + 4j], dtype=torch.complex64)), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[true,false]", torch.tensor([True, False])),
        ("[1,0]", torch.tensor([1, 0])),
        ("[1,0.5]", torch.tensor([1.0, 0.5])),
        ("2", torch.tensor(2)),
        ("true", torch.tensor(True)),
        ("NaN", torch.tensor(float("nan"))),
        ("[]", torch.empty(0)),
        ("[[],[]]", torch.empty(2, 0)),
        ("[[NaN,-Infinity],[Infinity,-0.0]]", torch.tensor([[np.nan, -np.inf], [np.inf, -0.0]])),
    ],
)
def test_values_without_a_dtype_are_what_torch_makes_of_them(
    text: str, expected: torch.Tensor, tmp_path: Path
) -> None:
    found = read('{"type":"tensor","data":%s}' % text, tmp_path)
    assert compare(expected, found, exact_types=False).differences == []


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("torch.int64", [2**63 - 1, -(2**63)]),
        ("torch.uint64", [2**64 - 1, 0]),
        ("torch.uint8", [0, 255]),
        ("torch.float64", [0.1, 5e-324, 1.7976931348623157e308]),
        ("torch.bfloat16", [0.33203125, -1e38]),
        ("torch.float16", [65504, 6e-8]),
        ("torch.float8_e4m3fn", [0.5, 448]),
        ("torch.float8_e5m2", [0.5, 57344]),
        ("torch.bool", [True, False]),
    ],
)
@pytest.mark.parametrize("padding", [0, 3000], ids=["short", "long"])
def test_dtypes_are_kept(dtype: str, values: list[Any], padding: int, tmp_path: Path) -> None:
    values = values + values[:1] * padding
    text = json.dumps({"data": values, "shape": [len(values)], "dtype": dtype})
    found = read(text, tmp_path)
    name = dtype.removeprefix("torch.")
    assert found.dtype == getattr(torch, name)
    if found.dtype.is_floating_point:
        expected = torch.tensor(values, dtype=torch.float64).to(found.dtype)
    else:
        expected = torch.tensor(values, dtype=found.dtype)
    assert compare(expected, found).differences == []


def test_dtype_spellings() -> None:
    spellings = {
        torch.float32: [
            "torch.float32",
            "float32",
            "float",
            "<f4",
            "f4",
            "torch.FloatTensor",
            "F32",
        ],
        torch.float16: ["half", "F16", "<class 'numpy.float16'>", "dtype('float16')"],
        torch.int8: ["I8", "i1", "torch.int8"],
        torch.uint64: ["U64", "u8", "u64"],
        torch.float64: ["double", "numpy.float64", "<f8", "torch.cuda.DoubleTensor"],
        torch.bfloat16: ["bfloat16", "torch.BFloat16Tensor"],
        torch.int64: ["torch.long", "int64", "<i8", "i8", "I64", "torch.LongTensor"],
        torch.uint8: ["|u1", "u1", "torch.ByteTensor"],
        torch.bool: ["|b1", "?", "bool", "torch.BoolTensor"],
        torch.complex64: ["<c8", "torch.cfloat", "torch.ComplexFloatTensor"],
    }
    for dtype, names in spellings.items():
        for name in names:
            assert dtype_named(name)[0] == dtype, name
    for unknown in [
        "",
        "float31",
        "object",
        "|O",
        "<f3",
        "torch.qint8",
        "int4",
        "f16",
        "i128",
        None,
        7,
    ]:
        with pytest.raises(FormatError, match="unknown dtype"):
            dtype_named(unknown)


def test_the_guides_converter(tmp_path: Path) -> None:
    """Its JSON, made by the real program of the real checkpoint, gives the checkpoint again."""
    expected = torch.load(DATA / "guide_checkpoint.pt", weights_only=True)
    with (DATA / "guide_checkpoint.json").open("rb") as file:
        found, notes = read_foreign(file, tmp_path, ForeignOptions())
    assert compare(expected, found, exact_types=False).differences == []
    assert list(found["optimizer_state_dict"]["state"]) == list(
        expected["optimizer_state_dict"]["state"]
    )
    assert (
        found["optimizer_state_dict"]["param_groups"]
        == (expected["optimizer_state_dict"]["param_groups"])
    )
    model = found["model_state_dict"]
    assert model["lm_head.weight"] is model["transformer.wte.weight"]
    assert notes == ["tied again: lm_head.weight is transformer.wte.weight"]


def test_what_the_guide_reads_load_state_dict_takes(tmp_path: Path) -> None:
    with (DATA / "guide_checkpoint.json").open("rb") as file:
        found, _ = read_foreign(file, tmp_path, ForeignOptions())
    model = found["model_state_dict"]
    unique = {id(t): t for t in model.values()}.values()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(t.clone()) for t in unique])
    optimizer.load_state_dict(found["optimizer_state_dict"])
    restored = optimizer.state_dict()["state"][0]["exp_avg"]
    assert torch.equal(restored, found["optimizer_state_dict"]["state"][0]["exp_avg"])
    assert isinstance(optimizer.param_groups[0]["betas"], tuple)


def test_only_equal_weights_are_tied_again(tmp_path: Path) -> None:
    def pair(second: str) -> Any:
        tensor = '{"data":[%s],"shape":[1],"dtype":"float32"}'
        text = '{"wte.weight":%s,"lm_head.weight":%s,"x":%s}'
        return read(text % (tensor % "0.0", tensor % second, tensor % "0.0"), tmp_path)

    tied, untied = pair("0.0"), pair("-0.0")
    assert tied["wte.weight"] is tied["lm_head.weight"]
    assert tied["x"] is not tied["wte.weight"]
    assert untied["wte.weight"] is not untied["lm_head.weight"]
    text = json.dumps({k: {"data": [1.0], "dtype": "float32"} for k in ("a", "b")})
    named = read(text, tmp_path, tie=[("a", "b")])
    assert named["a"] is named["b"]


def test_ordinary_objects_stay_what_they_are(tmp_path: Path) -> None:
    ordinary = {
        "config": {"data": "corpus.txt", "shape": "round", "dtype": None, "values": [1, 2.5]},
        "args": {"type": "Adam", "data": [1, 2], "name": "x"},
        "schema": {"type": "array", "items": {}},
        "shapes": {"shape": [1, 2]},
        "betas": [0.9, 0.99],
        "vocab": {"\U0001f600": 0, "a\u00e9": 1},
        "history": [{"loss": 1.5}, {"loss": None}],
        "losses": [0.5, 1, 2.25] * 2000,
        "counts": list(range(5000)),
        "gaps": [0.5, None] * 3000,
        "text": 'long \\ text " \u00e9' * 9000,
        "big": 10**30,
    }
    tensor = {"data": [1.0], "shape": [1], "dtype": "torch.float32"}
    for ascii_only in (True, False):
        text = json.dumps({**ordinary, "w": tensor}, ensure_ascii=ascii_only)
        found = read(text, tmp_path)
        del found["w"]
        assert found == ordinary
        assert [type(x) for x in found["losses"][:3]] == [float, int, float]


@pytest.mark.parametrize(
    "thing",
    [
        {"dtype": "float32", "shape": [2, 3]},
        {"dtype": "float32", "data": "corpus.txt"},
        {"dtype": "int8", "data": "imagenet1kabcdef"},
        {
            "dtype": "float32",
            "data": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        {"dtype": "auto", "values": [1, 2]},
        {"dtype": "float32", "value": 0.5},
        {"dtype": "float32", "values": [[1, 2], [3]]},
        {"dtype": "float32", "data": [1.5, None]},
        {"shape": [2, 2], "data": [1, 2, 3]},
        {"shape": [2, 2], "array": [1, 2, 3], "dtype": "float32"},
        {"shape": [2, 2], "data": [1, 2, 3, 4], "dtype": "float32", "lr": 0.1},
        {"name": "w", "shape": [2, 2], "dtype": "float32", "data": [1, 2, 3]},
        {"name": "w", "shape": [2], "dtype": "float32", "data": "weights.bin"},
        {"type": "tensor", "shape": [1, 3], "dtype": "float32"},
        {"type": "array", "items": {"type": "number"}},
        {"type": "tensor", "elements": [1, 2]},
        {"type": "Buffer", "data": [1, 2]},
        {"0": 1.5, "1": 2},
        {"__tensor__": False, "data": [1]},
        {"__torch__": "2.5.1", "step": 3},
        {"__numpy__": 1, "step": 3},
        {"nd": [1, 2], "step": 3},
        {"type": "array", "data": [{"x": 1}]},
        {"kind": "array", "values": ["a", "b"]},
        {"type": "tensor", "dtype": "float32", "data": "weights.bin"},
        {"is_tensor": True, "data": ["a"]},
        {"kind": "scatter", "data": [[1, 2]]},
        {"data": [[1, 2], [3]], "values": [[1], [2, 3]]},
    ],
    ids=str,
)
def test_what_is_not_certainly_a_tensor_stays(thing: dict[str, Any], tmp_path: Path) -> None:
    text = json.dumps({"a": thing, "w": {"data": [1.0], "dtype": "float32"}})
    assert read(text, tmp_path)["a"] == thing


def test_values_under_an_unknown_key_are_named(tmp_path: Path) -> None:
    for text in (
        '{"w":{"__tensor__":true,"numbers":[1.5,2.5],"dtype":"float32"}}',
        '{"w":{"type":"tensor","shape":[2],"numbers":[1.5,2.5]}}',
        '{"w":{"__ndarray__":true,"numbers":{"0":1.5,"1":2.5}}}',
    ):
        with pytest.raises(FormatError, match=r"the key 'numbers' are not read; .*: data, values"):
            read(text, tmp_path)


def test_tensors_with_names_in_a_list_become_an_object(tmp_path: Path) -> None:
    tensor = '{"name":"%s","shape":[2],"dtype":"float32","data":[1.5,2.5]}'
    source = io.BytesIO(('{"layers":[%s,%s]}' % (tensor % "a.weight", tensor % "a.bias")).encode())
    found, notes = read_foreign(source, tmp_path, ForeignOptions())
    assert list(found["layers"]) == ["a.weight", "a.bias"]
    assert torch.equal(found["layers"]["a.bias"], torch.tensor([1.5, 2.5]))
    assert notes == ["the list /layers became an object: its tensors have names"]
    again = read('{"layers":[%s,%s]}' % (tensor % "a", tensor % "a"), tmp_path)
    assert [type(item) for item in again["layers"]] == [torch.Tensor, torch.Tensor]


def test_typed_arrays_of_javascript() -> None:
    assert typed_array({"0": 1.5, "1": 2, "2": -3}) == [1.5, 2, -3]
    assert typed_array({str(n): n for n in range(1000)}) == list(range(1000))
    for other in ({}, {"1": 1}, {"0": 1, "2": 2}, {"1": 1, "0": 0}, {"0": True}, {"0": "1"}, [1]):
        assert typed_array(other) is None


def test_base64_that_compression_and_bytes_may_both_explain(tmp_path: Path) -> None:
    """Bytes that begin like zlib data are the values, if they are as many as the shape says."""
    raw = b"x\x9c" + bytes(6)
    text = '{"__tensor__":true,"dtype":"uint8","shape":[8],"data":"%s"}' % b64(raw)
    assert bytes(read(text, tmp_path).tolist()) == raw


def test_long_base64_in_every_form(tmp_path: Path) -> None:
    values = torch.arange(40_000, dtype=torch.float32).reshape(200, 200) * -1.37
    raw = values.numpy().tobytes()
    plain = b64(raw)
    lines = "\\n".join(plain[i : i + 76] for i in range(0, len(plain), 76))
    for text in (
        plain,
        plain.rstrip("="),
        plain.replace("+", "-").replace("/", "_"),
        plain.replace("/", "\\/").replace("+", "\\u002b"),
        lines,
        "data:application/octet-stream;base64," + plain,
        b64(zlib.compress(raw, 9)),
        npy(values.numpy()),
    ):
        found = read(
            '{"__tensor__":true,"shape":[200,200],"dtype":"f4","data":"%s"}' % text, tmp_path
        )
        assert torch.equal(found, values), text[:40]
        named = '{"name":"w","shape":[200,200],"dtype":"f4","data":"%s"}'
        assert torch.equal(read(named % text, tmp_path), values), text[:40]


def test_bare_nan_outside_tensors(tmp_path: Path) -> None:
    text = '{"w":{"data":[1],"dtype":"float32"},"loss":NaN,"best":[-Infinity,Infinity],"s":"NaN"}'
    found = read(text, tmp_path)
    assert np.isnan(found["loss"])
    assert found["best"] == [-np.inf, np.inf]
    assert found["s"] == "NaN"


SUMMARIES = [
    '{"w":{"type":"torch.Tensor","shape":[2],"dtype":"torch.float32"}}',
    '{"w":{"type":"Tensor","shape":[2],"dtype":"torch.float32","mean":0.5}}',
    '{"w":{"shape":[2],"dtype":"torch.float32"}}',
    '{"w":{"__tensor__":true,"shape":[2],"dtype":"torch.float32"}}',
    '{"w":{"@module":"torch","@class":"Tensor","size":[2]}}',
]


@pytest.mark.parametrize("text", SUMMARIES)
def test_a_summary_has_no_values(text: str, tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no values"):
        read(text, tmp_path)


def test_embedded_pickle_is_refused_unless_wanted(tmp_path: Path) -> None:
    state: dict[str, Any] = {"a": torch.arange(5), "note": "x" * 100_000}
    buffer = io.BytesIO()
    torch.save(state, buffer)
    for content in (buffer.getvalue(), _legacy_bytes(state)):
        text = '{"epoch":3,"model":"%s"}' % b64(content)
        with pytest.raises(FormatError, match="--unsafe-pickle"):
            read(text, tmp_path)

        def load(path: Path) -> Any:
            return torch.load(path, weights_only=True)

        found = read(text, tmp_path, load_pickle=load)
        assert torch.equal(found["model"]["a"], state["a"])
    assert list(tmp_path.iterdir()) == []


def _legacy_bytes(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


numbers = st.one_of(
    st.floats(width=32, allow_nan=False), st.integers(-(2**24), 2**24), st.just(float("inf"))
)


@settings(max_examples=examples(150))
@given(
    shape=st.lists(st.integers(0, 5), max_size=4),
    indent=st.sampled_from([None, 1]),
    data=st.data(),
    window=st.sampled_from([64, 300, 1 << 20]),
    block=st.sampled_from([50, 1 << 22]),
)
def test_cutting_the_text_changes_nothing(
    shape: list[int], indent: int | None, data: Any, window: int, block: int
) -> None:
    count = int(np.prod(shape, dtype=int))
    flat = data.draw(st.lists(numbers, min_size=count, max_size=count))
    expected = torch.tensor(flat, dtype=torch.float32).reshape(shape)
    nested = np.array(flat, object).reshape(shape).tolist()
    text = json.dumps(
        {"w": {"data": nested, "shape": shape, "dtype": "torch.float32"}, "history": flat},
        indent=indent,
    )
    patch = pytest.MonkeyPatch()
    patch.setattr(lift_arrays, "WINDOW", window)
    patch.setattr(text_reader, "BLOCK", block)
    try:
        found = read(text, Path(tempfile.gettempdir()))
    finally:
        patch.undo()
    assert compare(expected, found["w"]).differences == []
    assert found["history"] == flat


@settings(max_examples=examples(100))
@given(
    dtype=st.sampled_from(
        ["float32", "float64", "float16", "bfloat16", "float8_e5m2", "int64", "uint8", "bool"]
    ),
    shape=st.lists(st.integers(0, 6), max_size=3),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_guides_dialect_there_and_back(dtype: str, shape: list[int], seed: int) -> None:
    kind = getattr(torch, dtype)
    count = int(np.prod(shape, dtype=int)) * kind.itemsize
    raw = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, count).astype(np.uint8))
    values = (raw % 2).bool() if dtype == "bool" else over(raw.untyped_storage(), kind, shape)
    state = {"model_state_dict": {"w": values.reshape(shape), "v": torch.ones(2)}, "step": 1}
    out = bytearray()
    assert write_number_lists(state, out.extend) == []
    found = read(bytes(out), Path(tempfile.gettempdir()))
    assert compare(state, found, exact_types=False).differences == []
    text = json.loads(out)
    assert text["model_state_dict"]["w"]["dtype"] == f"torch.{dtype}"
    assert text["model_state_dict"]["w"]["shape"] == shape
