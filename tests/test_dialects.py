"""JSON that other programs write: each dialect literally, then what hostile text must come to."""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import base64
import gzip
import io
import json
import tempfile
import tracemalloc
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jsonckpt.convert import lifting
from jsonckpt.convert.compare import compare
from jsonckpt.convert.foreign import ForeignOptions, read_foreign
from jsonckpt.convert.legacy import write_legacy
from jsonckpt.convert.payloads import dtype_named
from jsonckpt.convert.pieces import over
from jsonckpt.errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError

DATA = Path(__file__).parent / "data"
FLOATS = [[1.5, -2.0], [0.25, 3.0]]
EXPECTED = torch.tensor(FLOATS)


def read(text: str | bytes, directory: Path, **options: Any) -> Any:
    source = io.BytesIO(text.encode() if isinstance(text, str) else text)
    return read_foreign(source, directory, ForeignOptions(**options))[0]


def b64(array: Any) -> str:
    return base64.b64encode(array).decode()


RAW = np.array(FLOATS, "<f4").tobytes()
DIALECTS = {
    "the guide": '{"data":[[1.5,-2.0],[0.25,3.0]],"shape":[2,2],"dtype":"torch.float32"}',
    "flat data": '{"data":[1.5,-2.0,0.25,3.0],"shape":[2,2],"dtype":"float32"}',
    "dtype first": '{"dtype":"float32","shape":[2,2],"data":[[1.5,-2.0],[0.25,3.0]]}',
    "no shape": '{"data":[[1.5,-2.0],[0.25,3.0]],"dtype":"torch.float32"}',
    "values": '{"values":[[1.5,-2.0],[0.25,3.0]],"shape":[2,2],"dtype":"torch.float32"}',
    "__tensor__ list": '{"__tensor__":true,"dtype":"torch.float32","data":[[1.5,-2.0],[0.25,3]]}',
    "__tensor__ base64": '{"__tensor__":true,"dtype":"<f4","shape":[2,2],"data":"%s"}' % b64(RAW),
    "_type": '{"_type":"tensor","data":[[1.5,-2],[0.25,3]],"dtype":"float32","shape":[2,2]}',
    "__type__": '{"__type__":"tensor","values":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "__type__ ndarray": '{"__type__":"ndarray","data":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "type": '{"type":"torch.Tensor","data":[[1.5,-2],[0.25,3]],"dtype":"torch.float32"}',
    "__torch_tensor__": '{"__torch_tensor__":true,"data":[[1.5,-2],[0.25,3]],"dtype":"float32"}',
    "__torch_tensor__ list": '{"__torch_tensor__":[[1.5,-2.0],[0.25,3.0]],"dtype":"float32"}',
    "__torch_tensor__ base64": '{"__torch_tensor__":"%s","dtype":"float32","shape":[2,2]}'
    % b64(RAW),
    "monty": '{"@module":"torch","@class":"Tensor","dtype":"torch.FloatTensor","size":[2,2],'
    '"data":[[1.5,-2.0],[0.25,3.0]]}',
    "monty numpy": '{"@module":"numpy","@class":"array","dtype":"float32","data":[[1.5,-2.0],'
    "[0.25,3.0]]}",
    "json-tricks": '{"__ndarray__":[[1.5,-2.0],[0.25,3.0]],"dtype":"float32","shape":[2,2],'
    '"Corder":true}',
    "json-tricks compact": '{"__ndarray__":"b64:%s","dtype":"float32","shape":[2,2]}' % b64(RAW),
    "json-tricks big-endian": '{"__ndarray__":"b64:P8AAAMAAAAA+gAAAQEAAAA==","dtype":"float32",'
    '"shape":[2,2],"Corder":true,"endian":"big"}',
    "json-tricks gzip": '{"__ndarray__":"b64.gz:%s","dtype":"float32","shape":[2,2]}'
    % b64(gzip.compress(RAW)),
    "json-numpy": '{"__numpy__":"AADAPwAAAMAAAIA+AABAQA==","dtype":"<f4","shape":[2,2]}',
    "json-numpy big-endian": '{"__numpy__":"P8AAAMAAAAA+gAAAQEAAAA==","dtype":">f4","shape":[2,2]}',
    "jsonpickle": '{"py/object":"numpy.ndarray","dtype":"float32",'
    '"values":[[1.5,-2.0],[0.25,3.0]]}',
    "jsonpickle binary": '{"py/object":"numpy.ndarray","values":"%s","shape":[2,2],'
    '"dtype":"float32","byteorder":"<"}' % b64(zlib.compress(RAW)),
    "jsonpickle column-major": '{"py/object":"numpy.ndarray","values":"%s","shape":[2,2],'
    '"dtype":"float32","byteorder":"<","order":"F"}'
    % b64(zlib.compress(np.array(FLOATS, "<f4").T.tobytes())),
}


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
        torch.float32: ["torch.float32", "float32", "float", "<f4", "f4", "torch.FloatTensor"],
        torch.float64: ["double", "numpy.float64", "<f8", "torch.cuda.DoubleTensor"],
        torch.bfloat16: ["bfloat16", "torch.BFloat16Tensor"],
        torch.int64: ["torch.long", "int64", "<i8", "torch.LongTensor"],
        torch.uint8: ["|u1", "u1", "torch.ByteTensor"],
        torch.bool: ["|b1", "?", "bool", "torch.BoolTensor"],
        torch.complex64: ["<c8", "torch.cfloat", "torch.ComplexFloatTensor"],
    }
    for dtype, names in spellings.items():
        for name in names:
            assert dtype_named(name)[0] == dtype, name
    for unknown in ["", "float31", "object", "|O", "<f3", "torch.qint8", "int4", None, 7]:
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


def guide(data: str, shape: str = "[2,2]", dtype: str = '"torch.float32"') -> str:
    return '{"w":{"data":%s,"shape":%s,"dtype":%s}}' % (data, shape, dtype)


LONG = ",".join(["1.25"] * 5000)
HOSTILE = {
    "deep objects": '{"a":' * 100_000,
    "deep arrays": "[" * 1_000_000,
    "deep data": guide("[" * 70 + "1" + "]" * 70),
    "5,000 digits": '{"a":%s}' % ("1" * 5000),
    "5,000 digits in data": guide("[[1,2],[3,%s]]" % ("1" * 5000)),
    "5,000,000 digits": '{"a":%s}' % ("1" * 5_000_000),
    "5,000,000 digits in data": guide("[[1,2],[3,%s]]" % ("1" * 5_000_000)),
    "huge exponent": '{"a":1e3000000}',
    "huge exponent in data": guide("[[1,2],[3,1e3000000]]"),
    "endless exponent": '{"a":1e99999999999999999999}',
    "too large for float32": guide("[[1,2],[3,1e39]]"),
    "too large for float64": guide("[[1,2],[3,1e309]]", dtype='"float64"'),
    "too large for int8": guide("[[1,2],[3,128]]", dtype='"int8"'),
    "too large for int64": guide("[[1,2],[3,9223372036854775808]]", dtype='"int64"'),
    "fraction in integers": guide("[[1,2],[3,0.5]]", dtype='"int64"'),
    "2 in bool": guide("[[0,1],[1,2]]", dtype='"bool"'),
    "true among numbers": guide("[[0,1],[1,true]]"),
    "null among numbers": guide("[[0,1],[1,null]]"),
    "null in long data": guide("[%s,null]" % LONG, "[5001]"),
    "text in long data": guide('[%s,"x"]' % LONG, "[5001]"),
    "object in long data": guide("[%s,{}]" % LONG, "[5001]"),
    "ragged": guide("[[1,2],[3]]"),
    "ragged depth": guide("[[1,2],3]"),
    "ragged long": guide("[[%s],[%s,1]]" % (LONG, LONG), "[2,5000]"),
    "ragged depth long": guide("[[%s],1]" % LONG, "[2,5000]"),
    "two numbers in one": guide("[[1,2],[3 4]]"),
    "no comma": guide("[[1,2][3,4]]"),
    "comma at the end": guide("[[1,2],[3,4],]"),
    "leading zero": guide("[[1,2],[3,04]]"),
    "plus": guide("[[1,2],[3,+4]]"),
    "NaN5": guide("[[1,2],[3,NaN5]]"),
    "1NaN": guide("[[1,2],[3,1NaN]]"),
    "shape too large": guide("[[1,2],[3,4]]", "[2,3]"),
    "shape 2^60": guide("[[1,2],[3,4]]", "[1152921504606846976]"),
    "shape 2^63": guide("[[1,2],[3,4]]", "[9223372036854775808]"),
    "shape with overflow": guide("[]", "[0,4611686018427387904,4611686018427387904]"),
    "negative shape": guide("[[1,2],[3,4]]", "[-2,-2]"),
    "shape of floats": '{"w":{"__tensor__":true,"data":[1],"shape":[1.0],"dtype":"float32"}}',
    "shape of text": '{"w":{"__tensor__":true,"data":[1],"shape":"[1]","dtype":"float32"}}',
    "too many dimensions": guide("[1]", str([1] * 65)),
    "transposed": guide("[[1,2],[3,4],[5,6]]", "[2,3]"),
    "unknown dtype": guide("[[1,2],[3,4]]", dtype='"float31"'),
    "dtype of a number": '{"w":{"__tensor__":true,"data":[1],"dtype":7}}',
    "data of text": guide('"abc"'),
    "data of null": '{"w":{"__tensor__":true,"data":null,"dtype":"float32"}}',
    "base64 too short": guide('"AAAA"'),
    "base64 too long": guide('"%s"' % ("AAAA" * 100)),
    "base64 for 2^60": guide('"AAAA"', "[1152921504606846976]"),
    "base64 damaged": guide('"AAAAAAAAAAAAAAAAAAAA*A=="'),
    "base64 long damaged": guide('"%s*"' % ("AAAA" * 30_000)),
    "base64 not text": guide('"\u00e9\u00e9"'),
    "base64 bool 2": guide('"AgA="', "[2]", '"bool"'),
    "bomb": '{"__ndarray__":"b64.gz:%s","dtype":"float32","shape":[4]}'
    % b64(gzip.compress(bytes(10_000_000))),
    "bomb of its own size": '{"__ndarray__":"b64.gz:%s","dtype":"uint8","shape":[99999999999]}'
    % b64(gzip.compress(bytes(1_000_000))),
    "gzip cut": '{"__ndarray__":"b64.gz:H4sIAAAAAAAA","dtype":"float32","shape":[4]}',
    "gzip damaged": '{"__ndarray__":"b64.gz:AAAAAAAA","dtype":"float32","shape":[4]}',
    "unknown prefix": '{"__ndarray__":"b65:AAAA","dtype":"float32","shape":[1]}',
    "duplicate name": '{"w":1,"w":2}',
    "duplicate tensor": '{"w":%s,"w":1}' % guide("[[1,2],[3,4]]"),
    "lone surrogate": '{"\\ud800":1}',
    "lone surrogate in long text": '{"a":%s,"t":"\\ud800%s"}'
    % (guide("[[1,2],[3,4]]"), "x" * 70_000),
    "truncated": guide("[[1,2],[3,4]]")[:-9],
    "truncated in data": '{"w":{"data":[[1,2],[3',
    "truncated in long data": '{"w":{"data":[' + LONG,
    "truncated in text": '{"w":"' + "x" * 100_000,
    "trailing": guide("[[1,2],[3,4]]") + "{}",
    "backslashes": '{"w":"' + "\\" * 5_000_000,
    "escaped quotes": '{"w":"' + '\\"' * 500_000,
    "empty": "",
    "blank": "  \n ",
    "no tensors": '{"epoch":3}',
    "only text": '"abc"',
    "not JSON": "{w: 1}",
    "long name": '{"%s":1}' % ("k" * 100_000),
    "NaN as a name": "{NaN:1}",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_is_refused(text: str, tmp_path: Path) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(JsonckptError) as caught:
            read(text, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(caught.value, FormatError | LimitError | IncompleteCheckpointError)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert peak < 80 << 20
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe{\x00}\x00", b'{"a\xff":1}', b'{"a":"\xed\xa0\x80"}', b'{"a":1}\x00']
)
def test_hostile_bytes_are_refused(raw: bytes, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        read(raw, tmp_path)


def test_a_byte_order_mark_is_forgiven(tmp_path: Path) -> None:
    assert torch.equal(
        read(b"\xef\xbb\xbf" + guide("[[1.5,-2],[0.25,3]]").encode(), tmp_path)["w"], EXPECTED
    )


@pytest.mark.parametrize("name", ["guide_checkpoint.json"])
def test_every_cut_of_a_text_is_noticed(name: str, tmp_path: Path) -> None:
    text = (DATA / name).read_bytes().rstrip()
    for cut in range(0, len(text), len(text) // 40):
        with pytest.raises((IncompleteCheckpointError, FormatError)):
            read(text[:cut], tmp_path)


def test_memory_stays_small(tmp_path: Path) -> None:
    """60 MB of text, most of it one tensor, without 24 MB of memory at any time."""
    row = b"[" + b", ".join([b"-0.012345678901234"] * 500) + b"],\n"
    rows = 6000
    total = len(row) * rows

    class Endless:
        def __init__(self) -> None:
            self.parts = self.text()

        def text(self) -> Iterator[bytes]:
            yield b'{"w":{"data":['
            for _ in range(rows // 20 - 1):
                yield row * 20
            yield (row * 20)[:-2]
            yield b'],"shape":[%d,500],"dtype":"torch.float32"},"epoch":1}' % rows

        def read(self, _: int) -> bytes:
            return next(self.parts, b"")

    tracemalloc.start()
    try:
        found, _ = read_foreign(Endless(), tmp_path, ForeignOptions())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert total > 55_000_000
    assert peak < 24 << 20
    assert found["w"].shape == (rows, 500)
    assert bool((found["w"] == torch.tensor(-0.012345678901234)).all())
    assert list(tmp_path.iterdir()) == []


numbers = st.one_of(
    st.floats(width=32, allow_nan=False), st.integers(-(2**24), 2**24), st.just(float("inf"))
)


@settings(max_examples=150, deadline=None)
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
    patch.setattr(lifting, "WINDOW", window)
    patch.setattr(lifting, "BLOCK", block)
    try:
        found = read(text, Path(tempfile.gettempdir()))
    finally:
        patch.undo()
    assert compare(expected, found["w"]).differences == []
    assert found["history"] == flat


@settings(max_examples=100, deadline=None)
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
    assert write_legacy(state, out.extend) == []
    found = read(bytes(out), Path(tempfile.gettempdir()))
    assert compare(state, found, exact_types=False).differences == []
    text = json.loads(out)
    assert text["model_state_dict"]["w"]["dtype"] == f"torch.{dtype}"
    assert text["model_state_dict"]["w"]["shape"] == shape
