"""The ``list`` encoding: literal texts, every value of the small dtypes, buffers and threads."""

from __future__ import annotations

import decimal
import json
import random
import struct
import threading
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format import number_list, small_floats
from jsonckpt._src.format.dtypes import DTYPES
from tests.list_reference import (
    REALS,
    SMALL,
    all_patterns,
    decode,
    magnitudes,
    nearest,
    refuse,
    specials,
    torch_values,
)
from tests.support import examples
from tools import exhaustive_float32

# Literal texts

EXAMPLES = [
    ("bool", "000101", b"0,1,1"),
    ("uint8", "00ff07", b"0,255,7"),
    ("int8", "80ff7f", b"-128,-1,127"),
    ("uint16", "0100ffff", b"1,65535"),
    ("int16", "0080ff7f", b"-32768,32767"),
    ("uint32", "ffffffff", b"4294967295"),
    ("int32", "00000080", b"-2147483648"),
    ("uint64", "ffffffffffffffff0000000000000080", b"18446744073709551615,9223372036854775808"),
    ("int64", "0000000000000080ffffffffffffff7f", b"-9223372036854775808,9223372036854775807"),
    ("float64", struct.pack("<4d", 0.1, -0.0, 5e-324, 1.0).hex(), b"0.1,-0.0,5e-324,1.0"),
    ("float64", "000000000000f87f010000000000f07f", b'"NaN","0x7ff0000000000001"'),
    ("float64", "000000000000f0ff000000000000f8ff", b'"-Infinity","0xfff8000000000000"'),
    ("float32", struct.pack("<4f", 0.1, -2.5, 1e-45, 0.0).hex(), b"0.1,-2.5,1e-45,0.0"),
    ("float32", "0000c07f0000807f0000c0ff", b'"NaN","Infinity","0xffc00000"'),
    ("float16", "ff7b01000080007e007c017c", b'65500.0,6e-8,-0.0,"NaN","Infinity","0x7c01"'),
    ("bfloat16", "cd3d010080ffc0ffc07f", b'0.1,9e-41,"-Infinity","0xffc0","NaN"'),
    ("float8_e4m3fn", "7e01807fff", b'450.0,0.002,-0.0,"NaN","0xff"'),
    ("float8_e4m3fnuz", "7f0180", b'240.0,0.001,"NaN"'),
    ("float8_e5m2", "7bfc7e7d", b'60000.0,"-Infinity","NaN","0x7d"'),
    ("float8_e5m2fnuz", "7f0180", b'60000.0,0.000008,"NaN"'),
    ("float8_e8m0fnu", "7f80ff", b'1.0,2.0,"NaN"'),
    ("float4_e2m1fn_x2", "10f8", b"0.0,0.5,-0.0,-6.0"),
    ("complex32", "003c0080", b"1.0,-0.0"),
    ("complex64", struct.pack("<2f", 0.1, float("-inf")).hex(), b'0.1,"-Infinity"'),
    ("complex128", struct.pack("<2d", 0.1, -3.0).hex(), b"0.1,-3.0"),
    ("uint4", "0f00ff", b"15,0,255"),
    ("int3", "07ff", b"7,255"),
    ("bits8", "ff", b"255"),
    ("bits16", "0102", b"513"),
]


@pytest.mark.parametrize(("dtype", "raw", "text"), EXAMPLES)
def test_literal(dtype: str, raw: str, text: bytes) -> None:
    assert number_list.encode(bytes.fromhex(raw), dtype) == text
    assert decode(text, dtype, len(raw) // 2).hex() == raw


def test_literals_cover_every_kind_of_dtype() -> None:
    assert {DTYPES[dtype].real for dtype, _, _ in EXAMPLES} == {row.real for row in DTYPES.values()}


@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_decimal_that_rounds_twice(dtype: str) -> None:
    raw = struct.pack("<4I", 0x15AE43FD, 0x15AE43FE, 0x95AE43FD, 0x3F800000)
    text = b"7.0385307e-26,7.0385313e-26,-7.0385307e-26,1.0"
    assert number_list.encode(raw, dtype) == text
    assert decode(text, dtype, 16) == raw
    # Directly read as binary32 this would be the lower neighbour.
    assert decode(b"7.038531e-26,1", dtype, 8) == struct.pack("<2I", 0x15AE43FE, 0x3F800000)


@pytest.mark.parametrize("dtype", DTYPES)
def test_empty(dtype: str) -> None:
    assert number_list.encode(b"", dtype) == b""
    assert decode(b"", dtype, 0) == b""
    assert decode(b" \t", dtype, 0) == b""
    assert number_list.text_bound(0, dtype) == 0


# Every value of the dtypes of at most 16 bits


@pytest.mark.parametrize("dtype", [*SMALL, "float4_e2m1fn_x2", "complex32"])
def test_every_value_returns(dtype: str) -> None:
    raw = all_patterns("float16" if dtype == "complex32" else dtype).tobytes()
    text = number_list.encode(raw, dtype)
    assert decode(text, dtype, len(raw)) == raw
    assert len(text) <= number_list.text_bound(len(raw), dtype)


@pytest.mark.parametrize("dtype", REALS)
def test_every_string(dtype: str) -> None:
    size = DTYPES[dtype].itemsize
    raw = b"".join(pattern.to_bytes(size, "little") for pattern in specials(dtype).values())
    text = ",".join(f'"{string}"' for string in specials(dtype)).encode()
    assert number_list.encode(raw, dtype) == text
    assert decode(text, dtype, len(raw)) == raw


@pytest.mark.parametrize("dtype", SMALL)
def test_tables_say_what_torch_says(dtype: str) -> None:
    table = small_floats.small_float(dtype)
    np.testing.assert_array_equal(table.values, torch_values(dtype))
    assert (np.signbit(table.values) == np.signbit(torch_values(dtype)))[
        ~np.isnan(table.values)
    ].all()


def test_float4_values() -> None:
    text = number_list.encode(bytes(range(0, 256, 16)), "float4_e2m1fn_x2")
    assert json.loads(b"[%b]" % text)[1::2] == [
        *(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0),
        *(-0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0),
    ]


def digits_of(text: str) -> int:
    """How many significant digits a decimal has."""
    return len(decimal.Decimal(text).normalize().as_tuple().digits)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_decimal_is_the_shortest(dtype: str) -> None:
    items = number_list.encode(all_patterns(dtype).tobytes(), dtype).decode().split(",")
    values = torch_values(dtype)
    checked = 0
    for pattern, (text, value) in enumerate(zip(items, values.tolist())):
        if text[0] == '"':
            assert not np.isfinite(value)
            continue
        assert nearest(dtype, float(text)) == pattern, text
        digits = digits_of(text)
        if value < 0 or digits == 1:
            continue
        checked += 1
        for rounding in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING):
            context = decimal.Context(prec=digits - 1, rounding=rounding)
            shorter = context.create_decimal(decimal.Decimal(value))
            assert nearest(dtype, float(shorter)) != pattern, (text, shorter)
    assert checked >= {"float8_e8m0fnu": 0, "float8_e5m2": 25}.get(dtype, 40)


@pytest.mark.parametrize("dtype", SMALL)
def test_every_decimal_is_the_nearest_of_its_length(dtype: str) -> None:
    items = number_list.encode(all_patterns(dtype).tobytes(), dtype).decode().split(",")
    exact = decimal.Context(prec=400)
    for pattern, value in enumerate(torch_values(dtype).tolist()):
        if not np.isfinite(value) or value <= 0 or pattern % 7:
            continue
        number, written = decimal.Decimal(value), decimal.Decimal(items[pattern])
        for rounding in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING):
            context = decimal.Context(prec=digits_of(items[pattern]), rounding=rounding)
            other = context.create_decimal(number)
            if nearest(dtype, float(other)) == pattern:
                distance = exact.subtract(written, number).copy_abs()
                assert distance <= exact.subtract(other, number).copy_abs()


# Random values

ALL = sorted(DTYPES)


@st.composite
def raw_elements(draw: st.DrawFn, dtypes: list[str]) -> tuple[str, bytes]:
    dtype = draw(st.sampled_from(dtypes))
    row = DTYPES[dtype]
    raw = draw(st.binary(max_size=40 * row.itemsize))
    raw = raw[: len(raw) // row.itemsize * row.itemsize]
    if row.kind == "bool":
        raw = bytes(byte & 1 for byte in raw)
    return dtype, raw


@settings(max_examples=examples(400))
@given(raw_elements(ALL))
def test_round_trip(case: tuple[str, bytes]) -> None:
    dtype, raw = case
    text = number_list.encode(raw, dtype)
    assert decode(text, dtype, len(raw)) == raw
    assert len(text) <= number_list.text_bound(len(raw), dtype)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=50))
def test_text_means_the_same_to_another_parser(dtype: str, numbers: list[float]) -> None:
    with np.errstate(over="ignore"):
        array = np.array(numbers, dtype)
    array = array[np.isfinite(array)]
    read = json.loads(b"[%b]" % number_list.encode(array.tobytes(), dtype))
    np.testing.assert_array_equal(np.array(read, np.float64).astype(dtype), array)


@pytest.mark.parametrize("dtype", [*SMALL, "float32"])
@settings(max_examples=examples(150))
@given(number=st.floats(allow_nan=False, allow_infinity=False) | st.floats(-1000, 1000))
@example(number=-0.0)
@example(number=-1e-300)
def test_any_decimal_is_rounded_to_nearest_even(dtype: str, number: float) -> None:
    wanted = nearest(dtype, number)
    size = DTYPES[dtype].itemsize
    if wanted is None:
        refuse(repr(number).encode(), dtype, 1, "the dtype has")
    else:
        assert decode(repr(number).encode(), dtype, size) == wanted.to_bytes(size, "little")


@pytest.mark.parametrize("dtype", SMALL)
def test_midpoints_go_to_even(dtype: str) -> None:
    _, midpoints = magnitudes(dtype)
    size = DTYPES[dtype].itemsize
    for midpoint in midpoints[::7]:
        # A midpoint that binary32 lacks (between subnormals of bfloat16) is rounded twice.
        for number in (midpoint, float(np.nextafter(np.float32(midpoint), np.float32(np.inf)))):
            wanted = nearest(dtype, number)
            if wanted is not None:
                assert int.from_bytes(decode(repr(number).encode(), dtype, size), "little") == (
                    wanted
                )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_rounding_agrees_with_torch(dtype: str) -> None:
    rng = np.random.default_rng(7)
    numbers = rng.standard_normal(5000) * np.exp2(rng.integers(-20, 6, 5000))
    text = ",".join(map(repr, numbers.tolist())).encode()
    read = decode(text, dtype, len(numbers) * DTYPES[dtype].itemsize)
    wanted = torch.from_numpy(numbers.astype(np.float32)).to(getattr(torch, dtype))
    assert read == wanted.view(torch.uint8).numpy().tobytes()


def test_random_parts_of_all_float32() -> None:
    parts = 1 << 16
    chosen = random.sample(range(parts), 40)
    edges = [0, 0x15AE, 0x95AE, 0x7F80, 0x7FC0, 0x8000, 0xFF80, 0xFFFF]
    for part in [*edges, *chosen]:
        outcome = exhaustive_float32.check(*exhaustive_float32.part_range(part, parts))
        assert outcome.checked == 1 << 16
        assert not outcome.mismatches, f"part {part} of {parts}"
        assert outcome.longest < number_list.text_bound(4, "float32")


# Large texts, buffers, threads


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "int64", "uint8", "bool"])
def test_many_blocks(dtype: str) -> None:
    rng = np.random.default_rng(1)
    raw = rng.bytes(1 << 20)
    if dtype == "bool":
        raw = (np.frombuffer(raw, np.uint8) & 1).tobytes()
    text = number_list.encode(raw, dtype)
    assert len(text) > 3 * number_list._BLOCK_CHARACTERS
    assert decode(text, dtype, len(raw)) == raw
    assert decode(text.replace(b",", b" ,\t"), dtype, len(raw)) == raw


def test_unaligned_and_other_buffers() -> None:
    raw = np.arange(5, dtype="<f4").tobytes()
    text = b"0.0,1.0,2.0,3.0,4.0"
    assert number_list.encode(memoryview(b"x" + raw)[1:], "float32") == text
    assert number_list.encode(bytearray(raw), "float32") == text
    assert number_list.encode(np.arange(5, dtype="<f4").data, "float32") == text
    for source in (text, bytearray(text), memoryview(b"[" + text + b"]")[1:-1]):
        out = bytearray(21)
        number_list.decode_into(source, "float32", memoryview(out)[1:])
        assert out == b"\0" + raw


def test_tables_are_the_same_for_whichever_thread_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_floats, "_tables", {})
    built: list[str] = []
    build = small_floats._build

    def counting(row: Any) -> small_floats.SmallFloat:
        built.append(row.name)
        return build(row)

    monkeypatch.setattr(small_floats, "_build", counting)
    found: list[small_floats.SmallFloat] = []
    threads = [
        threading.Thread(target=lambda: found.append(small_floats.small_float("bfloat16")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(built) == {"bfloat16"}
    assert len(found) == 4
    assert len({id(table) for table in found}) == 1


def test_threads() -> None:
    rng = np.random.default_rng(3)
    problems: list[str] = []

    def work(dtype: str, raw: bytes) -> None:
        for _ in range(6):
            try:
                assert decode(number_list.encode(raw, dtype), dtype, len(raw)) == raw
                with pytest.raises(FormatError):
                    decode(b"1,nonsense", dtype, len(raw))
            except BaseException as error:
                problems.append(f"{dtype}: {error!r}")
                raise

    threads = [
        threading.Thread(target=work, args=(dtype, rng.bytes(40_000)))
        for dtype in ("float64", "float32", "bfloat16", "float8_e5m2", "int32", "uint64")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems


def test_parser_is_reused_and_replaced_after_a_refusal() -> None:
    number_list._parsers.clear()
    for _ in range(5):
        decode(b"1.0,2.0", "float32", 8)
        refuse(b"1.0,x", "float32", 2, "item 1 .* 'x'")
    assert len(number_list._parsers) <= 1
