"""The schemas refuse what the specification forbids: they can fail."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import jsonckpt
from tests import schemas
from tests.schemas import problems, schema, validate_checkpoint, validate_text


def _saved(value: object, **options: Any) -> Any:
    stream = io.BytesIO()
    jsonckpt.save(value, stream, **options)
    return json.loads(stream.getvalue())


@pytest.fixture(scope="module")
def single() -> Any:
    return _saved({"w": torch.ones(3), "n": torch.arange(2)}, chunk_size=8)


@pytest.fixture(scope="module")
def listed() -> Any:
    return _saved({"w": torch.ones(3), "b": torch.tensor([True])}, encoding="list")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("c") / "c"
    jsonckpt.save({"w": torch.ones(3)}, path, checksum="sha256")
    return json.loads((path / "manifest.json").read_text())


@pytest.mark.parametrize("name", ["manifest", "shard"])
def test_the_schemas_are_schemas(name: str) -> None:
    jsonschema.Draft202012Validator.check_schema(schema(name))


@pytest.mark.parametrize("name", ["manifest", "shard"])
def test_every_reference_leads_somewhere(name: str) -> None:
    text = json.dumps(schema(name))
    for file, anchor in re.findall(r'"\$ref": "([^#"]*)#/\$defs/(\w+)"', text):
        target = schema(file.removesuffix(".schema.json")) if file else schema(name)
        assert anchor in target["$defs"]


def changed(document: Any, path: str, value: Any) -> Any:
    """A copy of a document with another value at a path such as ``tensors/0/name``."""
    result = copy.deepcopy(document)
    *parents, last = path.split("/")
    node = result
    for key in parents:
        node = node[int(key) if isinstance(node, list) else key]
    if value is KeyError:
        del node[last]
    elif isinstance(node, list):
        node[int(last)] = value
    else:
        node[last] = value
    return result


SUM = "0" * 32
SHARD_FAULTS = [
    ("format", "jsonckpt.other"),
    ("version", 2),
    ("version", True),
    ("save_id", "0" * 31),
    ("save_id", "A" * 32),
    ("checksum", "md5"),
    ("checksum", "sha256"),
    ("created_at", "2026-01-02 03:04:05"),
    ("created_by", None),
    ("totals", {"tensors": 1}),
    ("totals/bytes", -1),
    ("metadata", []),
    ("metadata", KeyError),
    ("created_at", KeyError),
    ("requires", ["x"]),
    ("requires", "x"),
    ("tensors", {}),
    ("tensors", KeyError),
    ("index", [[1, 2]]),
    ("index", [[1, 2, [[3]]]]),
    ("index/0/0", -1),
    ("index/0/0", "1"),
    ("seal", "xxh3_128:0"),
    ("seal", "sha256:" + "0" * 64),
    ("seal", KeyError),
    ("index", KeyError),
    ("index_offset", KeyError),
    ("index_offset", 1.5),
    ("tensors/0/name", "w"),
    ("tensors/0/name", "/a\n"),
    ("tensors/0/name", "/\x7f"),
    ("tensors/0/name", "/" + "k" * 1024),
    ("tensors/0/name", "$other/0"),
    ("tensors/0/dtype", "float31"),
    ("tensors/0/shape", [-1]),
    ("tensors/0/shape", [2**63]),
    ("tensors/0/shape", [1] * 65),
    ("tensors/0/shape", 3),
    ("tensors/0/device", ""),
    ("tensors/0/device", "cuda:x"),
    ("tensors/0/encoding", "hex"),
    ("tensors/0/encoding", "list"),
    ("tensors/0/compression", "gzip"),
    ("tensors/0/filter", None),
    ("tensors/0/chunk_bytes", 0),
    ("tensors/0/chunk_bytes", 6),
    ("tensors/1/chunk_bytes", 12),
    ("tensors/0/chunks/0", "AAA"),
    ("tensors/0/chunks/0", "AA="),
    ("tensors/0/chunks/0", "AB=="),
    ("tensors/0/chunks/0", "AA-_"),
    ("tensors/0/chunks/0", ""),
    ("tensors/0/chunks/0", [1.0]),
    ("tensors/0/xxh3_128", KeyError),
    ("tensors/0/xxh3_128/0", "0" * 31),
    ("tensors/0/sha256", []),
    ("tensors/0/digest", "0" * 64),
    ("tensors/0/digest", KeyError),
    ("tensors/0/requires", ["x"]),
]


@pytest.mark.parametrize(("path", "value"), SHARD_FAULTS)
def test_faults_of_a_single_file(single: Any, path: str, value: Any) -> None:
    assert not problems(single)
    assert problems(changed(single, path, value))


LIST_FAULTS = [
    ("tensors/0/compression", "zstd"),
    ("tensors/0/filter", "shuffle"),
    ("tensors/0/chunks/0", "AAAA"),
    ("tensors/0/chunks/0", []),
    ("tensors/0/chunks/0/0", "nan"),
    ("tensors/0/chunks/0/0", "0x7fc"),
    ("tensors/0/chunks/0/0", None),
    ("tensors/0/chunks/0/0", [1.0]),
    ("tensors/1/chunks/0/0", 2),
    ("tensors/1/chunks/0/0", True),
    ("tensors/1/chunks/0/0", "NaN"),
    ("tensors/1/dtype", "float8_e4m3fn?"),
]


@pytest.mark.parametrize(("path", "value"), LIST_FAULTS)
def test_faults_of_lists(listed: Any, path: str, value: Any) -> None:
    assert not problems(listed)
    assert problems(changed(listed, path, value))


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("uint8", 255, 256),
        ("int8", -128, -129),
        ("uint64", 2**64 - 1, 2**64),
        ("int64", -(2**63), 2**63),
        ("int4", 255, -1),
        ("bits16", 65535, 1.5),
        ("float64", "0x7ff0000000000001", "0x7fc00001"),
        ("float32", "-Infinity", "-NaN"),
        ("complex64", "0xffffffff", "0xffff"),
        ("float16", "0xfe01", "0XFE01"),
        ("float8_e5m2", "Infinity", "0x7"),
        ("float8_e4m3fn", "0xff", "Infinity"),
        ("float4_e2m1fn_x2", -6.0, "NaN"),
    ],
)
def test_elements_of_lists(listed: Any, dtype: str, good: Any, bad: Any) -> None:
    document = changed(listed, "tensors/0/dtype", dtype)
    document["tensors"][0]["chunk_bytes"] = 16
    document["tensors"][0]["chunks"] = [[good]]
    assert not problems(document)
    document["tensors"][0]["chunks"] = [[bad]]
    assert problems(document)


MANIFEST_FAULTS = [
    ("format", "jsonckpt.shard"),
    ("version", "1"),
    ("save_id", None),
    ("totals/shards", KeyError),
    ("totals/stored_bytes", 1.5),
    ("checksum", "xxh3_128"),
    ("metadata", None),
    ("state", KeyError),
    ("seal", KeyError),
    ("seal", "sha256:00"),
    ("seal", True),
    ("requires", ["x"]),
    ("shards/0/file", "shard-A.json"),
    ("shards/0/file", "../shard-0.json"),
    ("shards/0/file", "shard-.json"),
    ("shards/0/file", "shard-0.json.gz"),
    ("shards/0/bytes", -1),
    ("shards/0/text_bytes", KeyError),
    ("shards/0/seal", None),
    ("shards/0/seal", "xxh3_128:" + SUM),
    ("codecs/0/encoding", "list2"),
    ("codecs/0/chunk_bytes", "1"),
    ("codecs/0/filter", KeyError),
    ("tensors/0/name", "x"),
    ("tensors/0/shard", -1),
    ("tensors/0/codec", None),
    ("tensors/0/offset", KeyError),
    ("tensors/0/length", 2.5),
    ("tensors/0/chunks/0", [1, 2]),
    ("tensors/0/chunks/0/2", SUM),
    ("tensors/0/chunks/0/2", "g" * 64),
    ("tensors/0/device", "CPU"),
]


@pytest.mark.parametrize(("path", "value"), MANIFEST_FAULTS)
def test_faults_of_a_manifest(manifest: Any, path: str, value: Any) -> None:
    assert not problems(manifest)
    assert problems(changed(manifest, path, value))


def test_what_is_free_in_a_manifest(manifest: Any) -> None:
    free: list[tuple[str, Any]] = [
        ("seal", None),
        ("requires", []),
        ("later", {"a": [1]}),
        ("tensors/0/weight", 1),
        ("shards/0/colour", "red"),
        ("metadata", {"$tensor": 1, "$x": [{"$dict": 0}]}),
        ("tensors/0/device", "cuda:0"),
    ]
    for path, value in free:
        assert not problems(changed(manifest, path, value))


DENSE = {"$tensor": "/w"}
VIEW = {"name": "/v", "of": "/w", "dtype": "int8", "shape": [1], "stride": [1], "offset": 0}
QUANTIZED = {
    "dtype": "qint8",
    "scheme": "per_tensor_affine",
    "data": DENSE,
    "scale": 0.5,
    "zero_point": 0,
}
SPARSE = {"layout": "coo", "shape": [], "indices": DENSE, "values": DENSE}
ARRAY = {"dtype": "<f4", "shape": [2], "data": DENSE}

GOOD_VALUES: list[Any] = [
    {"$x": 1, "b": 2},
    {"a": {"$tuple": [1, {"b": None}]}},
    {"$my.Type": {"x": DENSE}},
    {"$sparse": {**SPARSE, "coalesced": True}},
    {"$quantized": QUANTIZED},
    {"$quantized": {**QUANTIZED, "scale": {"$float": "NaN"}}},
    {"$parameter": {"data": {"$quantized": QUANTIZED}, "requires_grad": False}},
    {"$ndarray": {**ARRAY, "data": {"$view": VIEW}, "order": "F"}},
    {"$ndarray": {"dtype": "<U1", "shape": [1], "data": [{"$str": "7aCA"}]}},
    {"$datetime": {"iso": "2026-01-02T03:04:05", "zone": "Europe/Paris", "fold": 1}},
    {"$tied": {"name": "/x", "of": "$storage/0", "unknown": 1}},
    {"$range": [0, {"$int": "-0xff"}, 1]},
    {"$counter": [[{"$tuple": []}, 1]]},
]


@pytest.mark.parametrize("value", GOOD_VALUES, ids=json.dumps)
def test_values_of_a_state(manifest: Any, value: Any) -> None:
    for nested in (value, [value], {"a": {"$dict": [[1, value]]}}):
        assert not problems(changed(manifest, "state", nested))


BAD_VALUES: list[Any] = [
    {"$": 1},
    {"$9": 1},
    {"$a b": 1},
    {"$tensor": "w"},
    {"$tensor": 1},
    {"$tensor": {"name": "/w"}},
    {"$tied": {"name": "/x"}},
    {"$tied": "/x"},
    {"$view": {**VIEW, "offset": -1}},
    {"$view": {**VIEW, "dtype": "f4"}},
    {"$view": {**VIEW, "stride": [-1]}},
    {"$parameter": DENSE},
    {"$parameter": {"data": DENSE, "requires_grad": 1}},
    {"$parameter": {"data": {"$requires_grad": DENSE}, "requires_grad": True}},
    {"$parameter": {"data": [1.0], "requires_grad": True}},
    {"$requires_grad": {"$parameter": {"data": DENSE, "requires_grad": True}}},
    {"$sparse": {"layout": "coo", "shape": [1], "indices": DENSE, "values": DENSE}},
    {"$sparse": {"layout": "csr", "shape": [1], "indices": DENSE, "values": DENSE}},
    {"$sparse": {"layout": "dense", "shape": [1], "values": DENSE}},
    {"$quantized": {**QUANTIZED, "dtype": "int8"}},
    {"$quantized": {**QUANTIZED, "scheme": "per_channel_affine"}},
    {"$quantized": {**QUANTIZED, "scale": DENSE}},
    {"$tuple": 1},
    {"$set": {}},
    {"$dict": {"a": 1}},
    {"$dict": [[1]]},
    {"$dict": [[1, 2, 3]]},
    {"$ordered_dict": {"a": 1}},
    {"$ordered_dict": {"items": {"$a": 1}}},
    {"$defaultdict": {"factory": "exec", "items": {}}},
    {"$defaultdict": {"items": {}}},
    {"$counter": {"$a": 1, "b": 2}},
    {"$deque": {"items": [], "maxlen": -1}},
    {"$deque": []},
    {"$int": 5},
    {"$int": "ff"},
    {"$int": "0xFF"},
    {"$float": 1.5},
    {"$float": "nan"},
    {"$float": "0x3ff0000000000000"},
    {"$complex": [1]},
    {"$complex": [1, "inf"]},
    {"$str": "é"},
    {"$bytes": "AAA"},
    {"$bytearray": [1]},
    {"$range": [1, 2]},
    {"$range": [1, 2, 1.5]},
    {"$slice": [1, 2]},
    {"$ellipsis": 0},
    {"$path": None},
    {"$pure_path": {"flavour": "mac", "path": "a"}},
    {"$datetime": "2026-01-02"},
    {"$datetime": {"iso": "2026-01-02T03:04:05", "fold": 2}},
    {"$datetime": {"iso": "2026-01-02T03:04:05+01:00", "zone": "Europe/Paris"}},
    {"$date": "2026-1-2"},
    {"$time": "1:00"},
    {"$timedelta": [0, 86400, 0]},
    {"$timedelta": [0, 0, -1]},
    {"$timezone": "UTC"},
    {"$zone": "../etc/passwd"},
    {"$decimal": 1.5},
    {"$decimal": "1,5"},
    {"$fraction": [1]},
    {"$uuid": "12345678123456781234567812345678"},
    {"$namespace": None},
    {"$simple_namespace": 1},
    {"$ndarray": {**ARRAY, "dtype": "float32"}},
    {"$ndarray": {**ARRAY, "dtype": "|O"}},
    {"$ndarray": {**ARRAY, "data": [1.0, 2.0]}},
    {"$ndarray": {**ARRAY, "order": "C"}},
    {"$ndarray": {"dtype": "<U1", "shape": [1], "data": DENSE}},
    {"$ndarray": {"dtype": "<U1", "shape": [1], "data": [1]}},
    {"$scalar": {"dtype": ">f4", "value": 1.0}},
    {"$scalar": {"dtype": "<f4", "value": "nan"}},
    {"$scalar": {"dtype": "<c8", "value": 1.0}},
    {"$scalar": {"dtype": "<i4", "value": 1.5}},
    {"$scalar": {"dtype": "|b1", "value": 1}},
    {"$scalar": {"dtype": "<M8[D]", "value": "2026-01-02"}},
    {"$scalar": {"dtype": "|S1", "value": 1}},
    {"$numpy_dtype": "f4"},
    {"$numpy_dtype": "<i3"},
    {"$dtype": "torch.float32"},
    {"$device": "CUDA"},
    {"$size": [1.5]},
    {"$layout": 1},
    {"$memory_format": None},
    {"$torch_version": 2.6},
]


@pytest.mark.parametrize("value", BAD_VALUES, ids=json.dumps)
def test_what_no_state_holds(manifest: Any, single: Any, value: Any) -> None:
    for document in (manifest, single):
        for nested in (value, [value], {"a": {"$tuple": [{"b": value, "c": 1}]}}):
            assert problems(changed(document, "state", nested)), nested


def test_every_tag_of_the_specification_stands_in_the_schema() -> None:
    text = (Path(schemas.__file__).parents[1] / "docs" / "format.md").read_text(encoding="utf-8")
    named = set(re.findall(r'`\{"\$([a-z_]+)"', text))
    known = {tag[1:] for tag in schema("manifest")["$defs"]["tagged"]["properties"]}
    assert named <= known
    assert known - named <= {"tied"}


def test_validating_can_fail(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_bytes()
    validate_text(text)
    (tmp_path / "d.json").write_bytes(text.replace(b'"float32"', b'"float33"'))
    with pytest.raises(AssertionError, match="float33"):
        validate_checkpoint(tmp_path / "d.json")


def test_only_a_part_of_a_large_file_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "SMALL", 1000)
    stream = io.BytesIO()
    jsonckpt.save({str(i): torch.arange(5000) for i in range(3)}, stream, encoding="list")
    validate_text(stream.getvalue())
    with pytest.raises(AssertionError):
        validate_text(stream.getvalue().replace(b"[0,1,2,", b"[0,1.5,2,"))


def test_saving_in_tests_validates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    strict = {"type": "object", "required": ["what no file has"]}
    validator = jsonschema.Draft202012Validator(strict)
    monkeypatch.setattr(schemas, "_validator", lambda _: validator)
    for target in (tmp_path / "c", tmp_path / "c.json", str(tmp_path / "c.json.zst"), io.BytesIO()):
        with pytest.raises(AssertionError, match="what no file has"):
            jsonckpt.save(None, target)
