"""JSON that other programs write: what hostile, cut and endless text must come to."""

# ruff: noqa: UP031 - JSON is full of braces, so str.format and f-strings would be unreadable.

from __future__ import annotations

import gzip
import json
import random
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt._src.errors import FormatError, IncompleteCheckpointError, JsonckptError, LimitError
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from tests.convert.guide import DATA
from tests.foreign.dialects import DIALECTS, EXPECTED, b64, npy, read
from tests.support import slow


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
    "shape of text": '{"w":{"__tensor__":true,"data":[1],"shape":"[1.0]","dtype":"float32"}}',
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
    "gzip bomb that is not said": '{"__tensor__":true,"data":"%s","dtype":"float32","shape":[4]}'
    % b64(gzip.compress(bytes(10_000_000))),
    "unknown encoding": '{"__tensor__":true,"data":"AAAA","dtype":"int8","encoding":"zstd"}',
    "unknown order": '{"__tensor__":true,"data":[1],"dtype":"int8","order":"Z"}',
    "hex of odd length": '{"__tensor__":true,"data":"abc","dtype":"int8","encoding":"hex"}',
    "hex that is none": '{"__tensor__":true,"data":"xy","dtype":"int8","encoding":"hex"}',
    "hex for 2^60": '{"__tensor__":true,"data":"00","dtype":"int8","encoding":"hex","shape":[%d]}'
    % 2**60,
    "a byte of 256": '{"shape":[1],"dtype":"int8","__tensor__":{"type":"Buffer","data":[256]}}',
    "bytes for 2^60": '{"shape":[%d],"dtype":"int8","__tensor__":{"type":"Buffer","data":[1]}}'
    % 2**60,
    "typed array with a gap": '{"__tensor__":true,"data":{"0":1,"2":1},"dtype":"int8"}',
    "typed array of text": '{"__tensor__":true,"data":{"0":"1"},"dtype":"int8"}',
    "npy of objects": '{"w":"%s"}' % npy(np.array([None, "a"], object)),
    "npy of records": '{"w":"%s"}' % npy(np.zeros(2, [("a", "f4")])),
    "npy of text": '{"w":"%s"}' % npy(np.array(["a"])),
    "npy cut": '{"w":"%s"}' % npy(np.arange(99.0))[:300],
    "npy head cut": '{"w":"%s"}' % npy(np.arange(99.0))[:40],
    "npy head alone": '{"w":"k05VTVBZ"}',
    "npy of 2^60": '{"w":"%s"}'
    % b64(
        b"\x93NUMPY\x01\x00\x48\x00"
        + b"{'descr':'<f8','fortran_order':False,'shape':(1152921504606846976,)}".ljust(72)
    ),
    "npy with a head of 4 GiB": '{"w":"%s"}' % b64(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}"),
    "npy with a deep head": '{"w":"%s"}' % b64(b"\x93NUMPY\x01\x00\x10\x27" + b"(" * 10_000),
    "npy with another head": '{"w":"%s"}' % b64(b"\x93NUMPY\x01\x00\x02\x00[]"),
    "npy of another dtype": '{"__tensor__":true,"b64":"%s","dtype":"int8"}' % npy(np.arange(9.0)),
    "ONNX elsewhere": '{"dims":["1"],"dataType":1,"name":"w","externalData":[{"key":"location"}]}',
    "ONNX with other dims": '{"dims":"9","dataType":1,"floatData":[1.5]}',
    "ONNX of 2^60": '{"dims":["%d"],"dataType":1,"rawData":"AAAA"}' % 2**60,
    "ONNX bits": '{"dims":["1"],"dataType":10,"int32Data":[65536]}',
    "Keras without values": '{"class_name":"__numpy__","config":{"dtype":"float32"}}',
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


ODD: tuple[Any, ...] = (
    None, True, 7, -1, 2**70, 1e300, "", "x", "9" * 30, "AAAA", [], [[]], [1, [2]], {}, {"0": 1},
    [None], ["1"], {"py/id": 0}, {"type": "Buffer", "data": "x"}, "b64:", "data:;base64,",
)  # fmt: skip


def changed(thing: Any) -> Iterator[Any]:
    """The object with one member of another kind, or without it, on every level."""
    for key, value in thing.items() if isinstance(thing, dict) else ():
        yield {name: item for name, item in thing.items() if name != key}
        yield from ({**thing, key: odd} for odd in ODD)
        yield from ({**thing, key: inner} for inner in changed(value))


@pytest.mark.parametrize("count", [400, slow(100_000)])
def test_changed_members_give_only_our_errors(count: int, tmp_path: Path) -> None:
    cases = [case for text in DIALECTS.values() for case in changed(json.loads(text))]
    random.Random(7).shuffle(cases)
    refused = 0
    for case in cases[:count]:
        try:
            read(json.dumps({"w": case, "v": {"data": [1], "dtype": "int8"}}), tmp_path)
        except JsonckptError:
            refused += 1
    assert 0 < refused < len(cases)


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


def test_every_cut_of_every_dialect_is_noticed(tmp_path: Path) -> None:
    for text in DIALECTS.values():
        for cut in range(1, len(text), 1 + len(text) // 12):
            with pytest.raises(JsonckptError):
                read('{"w":' + text[:cut], tmp_path)


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
