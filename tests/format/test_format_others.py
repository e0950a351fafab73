"""What one program writes the other reads: through the second reader, and crafted by hand."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from tests import independent_reader
from tests.golden.elements import DTYPES as EVERY_DTYPE
from tests.golden.elements import NEWER_DTYPES
from tests.support import difference, examples
from tests.texts import HASHES, both_load, crafted, refused_by_all, single_text

DTYPES = [name for name in {**EVERY_DTYPE, **NEWER_DTYPES} if hasattr(torch, name)]


@settings(max_examples=examples(100))
@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.binary(max_size=200)), max_size=3),
    st.sampled_from([{}, {"filter": "shuffle"}, {"compression": "zstd"}, {"encoding": "list"}]),
    st.integers(1, 300),
    st.sampled_from(sorted(HASHES)),
)
def test_any_bits_of_any_dtype(
    elements: list[tuple[str, bytes]], codec: dict[str, Any], chunk_size: int, checksum: str
) -> None:
    value: list[torch.Tensor] = []
    for dtype, noise in elements:
        # Repeated, so that there is something to compress.
        raw = bytes(byte % 2 for byte in noise) if dtype == "bool" else noise * 3
        whole = len(raw) // getattr(torch, dtype).itemsize * getattr(torch, dtype).itemsize
        bits = torch.tensor(list(raw[:whole]), dtype=torch.uint8)
        value.append(bits.view(getattr(torch, dtype)))
    text = single_text(value, chunk_size=chunk_size, checksum=checksum, **codec)
    document, tensors = independent_reader.read_shard(text)
    found = independent_reader.resolve(document["state"], tensors)
    assert difference(value, found) is None
    assert difference(value, jsonckpt.load(io.BytesIO(text))) is None


@pytest.mark.parametrize(
    "place",
    [
        "head",
        "tail",
    ],
)
def test_a_feature_that_a_record_requires_is_refused_by_name(place: str, tmp_path: Path) -> None:
    known = crafted(["1"], "uint8", [1], [b"\1"], **{place: '"requires":[],'})
    assert both_load(known, tmp_path).tolist() == [1]
    text = crafted(["1"], "uint8", [1], [b"\1"], **{place: '"requires":["deltas"],'})
    (tmp_path / "r.json").write_bytes(text)
    for source in (tmp_path / "r.json", io.BytesIO(text)):
        with pytest.raises(jsonckpt.UnsupportedVersionError, match="deltas"):
            jsonckpt.load(source)
    with pytest.raises(ValueError, match="required"):
        independent_reader.load(tmp_path / "r.json")


def test_another_program_may_write_members_in_another_order(tmp_path: Path) -> None:
    raw = [b"\1\2\3", b"\4\5\6", b"\7"]
    text = crafted(["1,2,3", "4, 5 ,\t6", "7"], "uint8", [7], raw)
    assert both_load(text, tmp_path).tolist() == [1, 2, 3, 4, 5, 6, 7]


def test_members_of_a_record_that_nobody_knows_are_ignored(tmp_path: Path) -> None:
    text = crafted(["1"], "uint8", [1, 1], [b"\1"], '"a":{"b":[]},', '"c":[1,"x"],"d":null,')
    assert both_load(text, tmp_path).tolist() == [[1]]


def test_the_device_is_part_of_the_identity(tmp_path: Path) -> None:
    text = crafted(["1"], "uint8", [1], [b"\1"], '"device":"cuda:1",')
    assert jsonckpt.load(io.BytesIO(text), map_location="cpu").tolist() == [1]
    (tmp_path / "d.json").write_bytes(text)
    with jsonckpt.open(tmp_path / "d.json") as opened:
        assert opened[""].device == "cuda:1"
    assert independent_reader.load(tmp_path / "d.json").tolist() == [1]
    refused_by_all(text.replace(b'"device":"cuda:1",', b""), tmp_path)


#: Texts of one number, and the bits that they mean.
NUMBERS: list[Any] = [
    ("float32", "-0", 0x80000000),
    ("float32", "1", 0x3F800000),
    ("float32", "1E0", 0x3F800000),
    ("float32", "100000000000000000000e-20", 0x3F800000),
    ("float32", "1e-60", 0x00000000),
    ("float64", "-1e-400", 0x8000000000000000),
    ("float64", "9007199254740993", 0x4340000000000000),
    ("float64", "0.1000000000000000055511151231257827", 0x3FB999999999999A),
    ("float16", "65519.99", 0x7BFF),
    # By way of binary32, where this is the middle between two: the even one.
    ("float16", "1.0004882812500002", 0x3C00),
    ("float16", "1.0005", 0x3C01),
    ("bfloat16", "1.0039062500000002", 0x3F80),
    ("float8_e4m3fn", "463.9", 0x7E),
    ("float8_e4m3fnuz", "-0.002", 0x82),
    ("float8_e5m2", "60000", 0x7B),
    ("float8_e8m0fnu", "6e-39", 0x00),
    ("float8_e8m0fnu", "1.5", 0x80),
    ("float8_e8m0fnu", "3", 0x80),
    ("float8_e8m0fnu", "2.9999", 0x80),
    ("float8_e8m0fnu", "3.0001", 0x81),
    ("float8_e8m0fnu", "2e38", 0xFE),
    ("float16", '"0xfe00"', 0xFE00),
    ("float8_e5m2", '"-Infinity"', 0xFC),
    ("bool", "1", 1),
    ("int8", "-128", 0x80),
    ("int4", "255", 0xFF),
]


@pytest.mark.parametrize(("dtype", "text", "bits"), NUMBERS)
def test_what_numbers_mean(dtype: str, text: str, bits: int, tmp_path: Path) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    size = getattr(torch, dtype).itemsize
    raw = bits.to_bytes(size, "little")
    found = both_load(crafted([text], dtype, [1], [raw]), tmp_path)
    assert bytes(found.view(torch.uint8).tolist()) == raw


#: Texts of one number that mean nothing, with the size of an element.
NO_NUMBERS = [
    *[("float32", text, 4) for text in ("1e39", "NaN", "Infinity", '"inf"', '"0x7fc00000"')],
    *[("float32", text, 4) for text in ('"0x3f800000"', '"0x7fc"', '"0x7FC00001"', "null", "[1]")],
    *[("float32", text, 4) for text in ("true", "+1", ".5", "1.", "01", "", '"-NaN"')],
    ("float16", "65520", 2),
    ("bfloat16", "3.4e38", 2),
    ("float8_e4m3fn", '"Infinity"', 1),
    ("float8_e4m3fn", "464.1", 1),
    ("float8_e4m3fnuz", "-0.0", 1),
    ("float8_e4m3fnuz", "-0.0001", 1),
    ("float8_e8m0fnu", "0", 1),
    ("float8_e8m0fnu", "-1", 1),
    ("float8_e8m0fnu", "4e-39", 1),
    ("uint8", "256", 1),
    ("uint8", "-1", 1),
    ("uint8", "1.0", 1),
    ("uint8", '"1"', 1),
    ("int8", "128", 1),
    ("bool", "2", 1),
    ("bool", "true", 1),
    ("uint8", "1,2", 1),
]


@pytest.mark.parametrize(("dtype", "text", "size"), NO_NUMBERS)
def test_what_means_no_number(dtype: str, text: str, size: int, tmp_path: Path) -> None:
    if not hasattr(torch, dtype):
        pytest.skip(f"this torch has no {dtype}")
    (tmp_path / "n.json").write_bytes(crafted([text], dtype, [1], [bytes(size)]))
    with pytest.raises(jsonckpt.FormatError):
        jsonckpt.load(tmp_path / "n.json")
