"""Texts that :func:`encode` does not write: allowed spellings, and hostile ones."""

from __future__ import annotations

import re
import struct

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format import number_list
from jsonckpt._src.format.dtypes import DTYPES
from tests.list_reference import REALS, decode, reference, refuse, torch_values
from tests.support import examples

# Decimals that other writers use


@pytest.mark.parametrize("text", [b"1", b"1e0", b"1E+0", b"10e-1", b"0.1e1", b" 1.000 ", b"\t1"])
@pytest.mark.parametrize("dtype", REALS)
def test_other_spellings_of_one(dtype: str, text: bytes) -> None:
    size = DTYPES[dtype].itemsize
    assert decode(text, dtype, size) == decode(b"1.0", dtype, size)


def test_integer_tokens_beyond_64_bits_are_floats() -> None:
    text = b"100000000000000000000,1" + b"0" * 38 + b",-18446744073709551616"
    assert decode(text, "float64", 24) == struct.pack("<3d", 1e20, 1e38, -(2.0**64))
    assert decode(text, "float32", 12) == struct.pack("<3f", 1e20, 1e38, -(2.0**64))


@pytest.mark.parametrize("text", [b"-0,0,1.0", b"1.0,0,-0", b"0.0,-0 ,1e-0", b"-0.0,-0e5,-1e-999"])
def test_minus_zero_keeps_its_sign(text: bytes) -> None:
    numbers = [float(item) for item in text.split(b",")]
    assert decode(text, "float64", 24) == struct.pack("<3d", *numbers)


def test_numbers_of_64_characters() -> None:
    longest = b"0." + b"0" * 31 + b"1" * 31
    assert len(longest) == 64
    assert decode(longest, "float64", 8) == struct.pack("<d", float(longest))
    assert decode(b" " * 70 + b"7" + b" " * 70, "int8", 1) == b"\7"


def test_stand_in_may_be_a_number_too() -> None:
    number = number_list._STAND_IN_VALUE
    text = b'"NaN",%b,"Infinity"' % number_list._STAND_IN
    assert decode(text, "float64", 24)[8:] == struct.pack("<2d", number, float("inf"))


def test_quote_without_its_pair_beside_the_stand_in() -> None:
    refuse(b'3e-297 "NaN', "float64", 1, "item 0")


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float4_e2m1fn_x2", "int32"])
def test_ordinary_texts_are_read_fast(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_list, "_slow_floats", None)
    monkeypatch.setattr(number_list, "_slow_integers", None)
    raw = bytes(range(256)) * 2000
    for _ in range(3):
        assert decode(number_list.encode(raw, dtype), dtype, len(raw)) == raw


# Hostile texts


@pytest.fixture(params=[1 << 17, 70], ids=["one block", "small blocks"])
def _blocks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_list, "_BLOCK_CHARACTERS", request.param)


hostile = pytest.mark.usefixtures("_blocks")


@hostile
@pytest.mark.parametrize("dtype", ["float32", "int32", "float4_e2m1fn_x2"])
def test_too_few_numbers(dtype: str) -> None:
    refuse(b"1", dtype, 2, "holds 1 numbers, expected [24]")
    refuse(b"", dtype, 2, "holds 0 numbers, expected [24]")


@hostile
@pytest.mark.parametrize("dtype", ["float32", "int32", "bool"])
def test_too_many_numbers(dtype: str) -> None:
    refuse(b"1,1,1", dtype, 2, "more than the 2 numbers")
    refuse(b"1," * 500 + b"1", dtype, 500, "more than the 500 numbers")
    refuse(b"1", dtype, 0, "more than the 0 numbers")


@hostile
@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("bool", b"2"),
        ("bool", b"-1"),
        ("uint8", b"300"),
        ("uint8", b"256"),
        ("uint8", b"-1"),
        ("int8", b"128"),
        ("int8", b"-129"),
        ("uint16", b"65536"),
        ("bits16", b"-1"),
        ("uint4", b"256"),
        ("int32", b"2147483648"),
        ("uint64", b"18446744073709551616"),
        ("int64", b"9223372036854775808"),
        ("int64", b"-9223372036854775809"),
    ],
)
def test_integer_out_of_range(dtype: str, text: bytes) -> None:
    refuse(b"1," + text, dtype, 2, f"item 1 of the list is '{text.decode()}', expected")


@hostile
@pytest.mark.parametrize("text", [b"1.5", b"1.0", b"1e3", b"1E0", b"-0.0", b'"NaN"', b"0.0"])
@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "bits8"])
def test_float_token_for_an_integer(dtype: str, text: bytes) -> None:
    refuse(b"1,1," + text, dtype, 3, "item 2 of the list is .* expected an integer")


@hostile
@pytest.mark.parametrize(
    ("dtype", "text"),
    [
        ("float64", b"1e309"),
        ("float64", b"-1e400"),
        ("float32", b"1e39"),
        ("float32", b"-3.4028236e38"),
        ("complex64", b"1e39"),
        ("float16", b"65520"),
        ("bfloat16", b"3.4e38"),
        ("float8_e4m3fn", b"465"),
        ("float8_e4m3fn", b"-1e39"),
        ("float8_e5m2", b"61440"),
        ("float8_e4m3fnuz", b"248"),
        ("float8_e4m3fnuz", b"-0.0"),
        ("float8_e5m2fnuz", b"-1e-30"),
        ("float8_e8m0fnu", b"0.0"),
        ("float8_e8m0fnu", b"-1.0"),
        ("float8_e8m0fnu", b"3e38"),
        ("float8_e8m0fnu", b"4.4e-39"),
        ("float4_e2m1fn_x2", b"7.0"),
    ],
)
def test_number_that_the_dtype_lacks(dtype: str, text: bytes) -> None:
    pair = 2 if DTYPES[dtype].kind in ("complex", "packed") else 1
    refuse(b"1.0," * (2 * pair - 1) + text, dtype, 2, f"item {2 * pair - 1} of the list is")


@pytest.mark.parametrize(
    ("dtype", "text", "value"),
    [
        ("float16", b"65519.9", 65504.0),
        ("float8_e4m3fn", b"464", 448.0),
        ("float8_e5m2", b"61439", 57344.0),
        ("bfloat16", b"3.39e38", 3.3895313892515355e38),
        ("float8_e8m0fnu", b"4.41e-39", 2.0**-127),
    ],
)
def test_numbers_beyond_the_dtype_that_still_round_to_it(
    dtype: str, text: bytes, value: float
) -> None:
    raw = decode(text, dtype, DTYPES[dtype].itemsize)
    assert torch_values(dtype)[int.from_bytes(raw, "little")] == value


@hostile
@pytest.mark.parametrize(
    "token",
    [
        *b"nan Inf +Infinity \\u004eaN 1.0 0x 0x7FC00001 0x7fc00000 0x3f800000 0x7f800000".split(),
        *b"0xff800000 0x7f8000010 0x_7f8001 0x7fc0001 7fc00001 0x7fc0000g \xff\xfe NaN\x00".split(),
        b"",
        b" NaN",
        b"NaN ",
        b"N" * 100,
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "complex64"])
def test_bad_string(dtype: str, token: bytes) -> None:
    refuse(b'1.0,"%b"' % token, dtype, 2, "item 1 of the list is|longer than")


@hostile
@pytest.mark.parametrize(
    ("dtype", "token"),
    [
        ("float64", b"0x7ff8000000000000"),
        ("float64", b"0x7fc00001"),
        ("float16", b"0x7e00"),
        ("float8_e4m3fn", b"0x7f"),
        ("float8_e4m3fn", b"0xfe"),
        ("float8_e4m3fn", b"Infinity"),
        ("float8_e4m3fnuz", b"0x80"),
        ("float8_e5m2fnuz", b"-Infinity"),
        ("float8_e5m2", b"0x7c"),
        ("float8_e8m0fnu", b"0xff"),
        ("float4_e2m1fn_x2", b"NaN"),
        ("float4_e2m1fn_x2", b"0x0f"),
    ],
)
def test_string_that_the_dtype_lacks(dtype: str, token: bytes) -> None:
    refuse(b'1.0,"%b"' % token, dtype, 1, "item 1 of the list is")


@hostile
@pytest.mark.parametrize(
    "text",
    [
        *b"1, ,1 1,,1 1;1 01,1 +1,1 --1,1 0x1,1 1_0,1 \x00,1 1\x00,1".split(),
        *b", 1\xa0,1 \xef\xbb\xbf1,1 \xff,1 1/**/,1 1,1,, 1,1, '1',1 1,- 1,\\".split(),
        b"1 1",
        b"1\x0b,1",
        "١,1".encode(),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_odd_json(dtype: str, text: bytes) -> None:
    refuse(text, dtype, 2, "item|more than")


@hostile
@pytest.mark.parametrize("text", [b".5", b"5.", b"1.e1", b"1e", b"1e+", b"e1", b"-.5", b"1e1.5"])
def test_half_a_decimal(text: bytes) -> None:
    refuse(b"1," + text, "float32", 2, "item 1")


@hostile
@pytest.mark.parametrize("text", [b"null", b"true", b"false", b"NaN", b"Infinity", b"-Infinity"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_json_words(dtype: str, text: bytes) -> None:
    refuse(b"1," + text, dtype, 2, "item 1")


@hostile
@pytest.mark.parametrize(
    "text",
    b"""[1,1] [1],1 1,[1] 1],[1 1,1] ] [ 1,[] [[1,1]] "]",1 {},1 {"a":1},1 1,1],[1,1 1,1]// 1,"
    "NaN,1 1"NaN",1 1,"NaN"1 "NaN""NaN" 1,""NaN"" "[",1""".split(),
)
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_brackets_and_quotes(dtype: str, text: bytes) -> None:
    refuse(text, dtype, 2, "item|more than")


@hostile
@pytest.mark.parametrize("text", [b"1\n,1", b"1,\r\n1", b"1,1\n", b"\n1,1", b"1,1\r"])
@pytest.mark.parametrize("dtype", ["float32", "uint8", "bool"])
def test_line_break(dtype: str, text: bytes) -> None:
    refuse(text, dtype, 2, "item")


@hostile
@pytest.mark.parametrize(
    "text", [b"1" * 65, b"0." + b"0" * 63, b"1." + b"0" * 63, b"-" + b"0" * 64, b"1e-" + b"0" * 62]
)
@pytest.mark.parametrize("dtype", ["float64", "int64"])
def test_number_of_65_characters(dtype: str, text: bytes) -> None:
    assert len(text) == 65
    refuse(text, dtype, 1, "item 0 of the list is 65 characters long")
    refuse(b"1,1," + text + b",1", dtype, 4, "item 2 of the list is 65 characters long")


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool"])
@pytest.mark.parametrize("character", [b"1", b" ", b'"', b"[", b"-", b"\x00"])
def test_megabytes_of_one_character(dtype: str, character: bytes) -> None:
    refuse(character * (4 << 20), dtype, 1, "longer than|item 0")


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool"])
def test_megabytes_of_commas(dtype: str) -> None:
    refuse(b"," * (4 << 20), dtype, 1 << 20, "item 0")


@pytest.mark.parametrize("dtype", ["float64", "int64", "bool"])
@pytest.mark.parametrize("tail", [b",", b", ", b",\t", b",,1"])
def test_item_left_out_at_the_end_of_a_block(dtype: str, tail: bytes) -> None:
    count = number_list._BLOCK_CHARACTERS // 2
    text = b",".join([b"1"] * count)
    assert len(text) == number_list._BLOCK_CHARACTERS - 1
    assert len(decode(text + b",1", dtype, (count + 1) * DTYPES[dtype].itemsize))
    refuse(text + tail, dtype, count, f"item {count} of the list is ''")
    refuse(text + tail, dtype, count + 1, f"item {count} of the list is ''")


def test_message_shows_escaped_text() -> None:
    refuse(b"1,\x1b[31m", "uint8", 2, re.escape(r"item 1 of the list is '\x1b[31m'"))


def test_item_numbers_count_across_blocks() -> None:
    refuse(b"1.0," * 100_000 + b"x", "float32", 100_001, "item 100000 of the list is 'x'")


def test_unknown_dtype() -> None:
    with pytest.raises(FormatError, match="unknown dtype 'float31'"):
        number_list.encode(b"", "float31")
    refuse_out = memoryview(bytearray(1))
    with pytest.raises(FormatError, match="unknown dtype"):
        number_list.decode_into(b"", "float31", refuse_out)


def test_part_of_an_element() -> None:
    with pytest.raises(FormatError, match="7 bytes are not whole elements of float32"):
        number_list.encode(bytes(7), "float32")
    with pytest.raises(FormatError, match="6 bytes are not whole elements of complex32"):
        number_list.decode_into(b"1,1,1", "complex32", memoryview(bytearray(6)))


def test_bool_byte_that_is_neither_0_nor_1() -> None:
    with pytest.raises(FormatError, match=r"stored as the byte 7.*Repair"):
        number_list.encode(b"\0\1\7", "bool")


# Any bytes: exact data or a FormatError, as a reader says that is written for clarity alone


PIECES = st.sampled_from(
    [
        *b", , , 0 1 - -0 255 256 .5 .0 e3 E-2 e39 e309 +".split(),
        *b"] [ { } : null true NaN \\ \0 \xff".split(),
        *b'" "NaN" "Infinity" "-Infinity" "0x7fc00001" "0xff" 3e-297 18446744073709551615'.split(),
        *b"18446744073709551616 0.0 1.0,2.0 1,0,1 448.0 464 1e-999".split(),
        *(b" ", b"\t", b"\n", b"9" * 40),
    ]
)
FUZZED = ["float64", "float32", "bfloat16", "float8_e4m3fn", "float8_e5m2fnuz", "float8_e8m0fnu"]


@settings(max_examples=examples(1500))
@given(
    dtype=st.sampled_from([*FUZZED, "uint8", "int64", "bool"]),
    text=st.lists(PIECES, max_size=14).map(b"".join)
    | st.lists(PIECES, max_size=8).map(b",".join)
    | st.binary(max_size=12),
)
@example(dtype="float64", text=b'3e-297,"NaN"')
@example(dtype="float64", text=b"-0,1e-0")
def test_any_bytes_give_exact_data_or_a_format_error(dtype: str, text: bytes) -> None:
    count = text.count(b",") + 1 if text.strip(b" \t") else 0
    wanted = reference(text, dtype, count)
    out = bytearray(count * DTYPES[dtype].itemsize)
    try:
        number_list.decode_into(text, dtype, memoryview(out))
    except FormatError:
        assert wanted is None, "refused what is allowed"
    else:
        assert wanted is not None, "accepted what is not allowed"
        assert bytes(out) == wanted
