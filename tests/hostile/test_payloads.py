"""Payloads that are not the one encoding of their bytes: base64, zstd frames, lists, bools."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from pathlib import Path

import zstandard

from jsonckpt import FormatError, IntegrityError, LimitError
from tests.hostile.cases import Case, Cases, check
from tests.hostile.forge import Forgery, Record, zstd
from tests.hostile.runner import Child

CASES = Cases()

# --- base64 -------------------------------------------------------------------------------------


def _base64(name: str, change: Callable[[bytes], bytes], says: str = "base64|characters") -> None:
    """Another text in the place of ``AQAAAQ==``: the four bytes 1 0 0 1 of a bool tensor."""

    @CASES.add(FormatError, says, name=f"base64_{name}")
    def _(forgery: Forgery) -> None:
        record = forgery["/mask"]
        record.payloads[0] = change(record.payloads[0])


_base64("with_trailing_bits", lambda text: text[:-3] + b"R==", "trailing bits")
_base64("without_padding", lambda text: text.rstrip(b"="))
_base64("with_one_padding", lambda text: text[:-1])
_base64("with_three_paddings", lambda text: text + b"=")
_base64("with_padding_in_the_middle", lambda _: b"AQ==AAEQ")
_base64("with_padding_in_front", lambda text: b"==" + text[:-2])
_base64("of_padding", lambda text: b"=" * len(text))
_base64("with_a_line_break", lambda text: text[:4] + b"\n" + text[4:], "")
_base64("with_a_line_break_for_a_character", lambda text: text[:3] + b"\n" + text[4:], "")
_base64("with_carriage_return", lambda text: text[:3] + b"\r" + text[4:])
_base64("with_a_space", lambda text: text[:3] + b" " + text[4:])
_base64("with_a_tab_more", lambda text: text + b"\t")
_base64("in_the_url_alphabet", lambda text: b"-_" + text[2:])
_base64("with_a_nul", lambda text: text[:3] + b"\0" + text[4:])
_base64("with_a_byte_above_127", lambda text: text[:3] + b"\xff" + text[4:])
_base64("with_an_escape", lambda text: text[:2] + b"\\n" + text[4:])
_base64("with_an_escaped_slash", lambda text: b"\\/" + text[2:])
_base64("with_a_quote", lambda text: text[:3] + b'"' + text[4:])
_base64("with_a_backslash", lambda text: text[:3] + b"\\" + text[4:])
_base64("of_nothing", lambda _: b"")
_base64("of_more_bytes", lambda _: base64.b64encode(bytes(5)), "characters|bytes")
_base64("of_fewer_bytes", lambda _: base64.b64encode(bytes(3)), "characters|bytes")
_base64("of_many_more_bytes", lambda _: base64.b64encode(bytes(1 << 20)), "characters")
_base64("of_bytes_that_are_no_bool", lambda _: base64.b64encode(b"\1\0\2\1"), "bool")


@CASES.add(IntegrityError, "checksum")
def base64_of_other_bytes(forgery: Forgery) -> None:
    forgery["/mask"].payloads[0] = base64.b64encode(b"\1\0\1\1")


@CASES.add(FormatError, "bool", name="bool_byte_255_under_a_checksum_that_fits")
def bool_byte_255(forgery: Forgery) -> None:
    forgery["/mask"].fill(b"\1\0\xff\0\0\0")


@CASES.add(FormatError, "bool")
def bool_byte_2_in_a_shuffled_frame(forgery: Forgery) -> None:
    record = forgery["/mask"]
    record.members |= {"compression": "zstd", "filter": "shuffle"}
    record.fill(b"\1\0\2\0\0\0")


@CASES.add(FormatError, "neither 0 nor 1", blind=("verify", "load_into"))
def bool_byte_2_seen_through_a_view(forgery: Forgery) -> None:
    record = Record.of("/bytes", "uint8", [3], b"\0\1\2")
    forgery.records.insert(0, record)
    forgery.state["bytes"] = {"$tensor": "/bytes"}
    view = {"name": "/bools", "of": "/bytes", "dtype": "bool", "shape": [3], "stride": [1]}
    forgery.state["bools"] = {"$view": view | {"offset": 0}}


@CASES.add(IntegrityError, "checksum")
def checksum_of_other_bytes(forgery: Forgery) -> None:
    forgery["/w"].sums[1] = "ab" * 16


@CASES.add(IntegrityError, "checksum")
def checksums_swapped(forgery: Forgery) -> None:
    forgery["/w"].sums.reverse()


@CASES.add(IntegrityError, "checksum")
def payloads_swapped(forgery: Forgery) -> None:
    record = forgery["/w"]
    record.payloads = [record.payloads[1], record.payloads[0], record.payloads[2]]


@CASES.add(IntegrityError, "digest")
def digest_of_another_record(forgery: Forgery) -> None:
    forgery["/w"].digest = "ab" * 16


@CASES.add((FormatError, IntegrityError), "digest")
def digest_missing(forgery: Forgery) -> None:
    record = forgery["/w"]
    record.tail_line = forgery._tail(record).split(b',"digest"')[0] + b"}"


@CASES.add(FormatError, "checksums")
def checksums_missing(forgery: Forgery) -> None:
    record = forgery["/w"]
    digest = forgery._tail(record).split(b',"digest"')[1]
    record.tail_line = b'],"digest"' + digest


@CASES.add(FormatError, "checksums")
def checksums_of_two_algorithms(forgery: Forgery) -> None:
    forgery["/w"].tail["sha256"] = ["ab" * 32] * 3


@CASES.add(FormatError, "checksums|chunk")
def checksum_with_capitals(forgery: Forgery) -> None:
    record = forgery["/w"]
    record.sums = [item.upper() for item in record.sums]


@CASES.add(FormatError, "checksums|chunk", forms=("single",))
def one_checksum_too_few(forgery: Forgery) -> None:
    forgery["/w"].sums.pop()


@CASES.add(FormatError, "checksums|chunk")
def checksum_is_null(forgery: Forgery) -> None:
    forgery["/w"].sums[0] = None


# --- zstd frames --------------------------------------------------------------------------------

RAW = struct.pack("<16H", *([0x3F80, 0x4000, 0xC040] * 8)[:16])
SHUFFLED = RAW[0::2] + RAW[1::2]
_FRAME = zstd(SHUFFLED)
UNUSED_BIT = _FRAME[:4] + bytes([_FRAME[4] | 0x10]) + _FRAME[5:]


def _frame(
    name: str,
    make: Callable[[], bytes],
    says: str = "zstd",
    expects: tuple[type[FormatError] | type[LimitError], ...] = (FormatError,),
) -> None:
    """Another frame in the place of a shuffled chunk of 32 bytes."""

    @CASES.add(expects, says, name=f"frame_{name}")
    def _(forgery: Forgery) -> None:
        forgery["/h"].payloads[0] = base64.b64encode(make())


def _header(content: bytes, size: bytes, descriptor: int, window: bytes = b"") -> bytes:
    """A frame of one raw block under any header."""
    block = (len(content) << 3 | 1).to_bytes(3, "little") + content
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + size + block


def _unknown_size() -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(SHUFFLED)


def _dictionary() -> bytes:
    dictionary = zstandard.ZstdCompressionDict(SHUFFLED * 40)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(SHUFFLED)


def _with_dictionary_id() -> bytes:
    return _header(SHUFFLED, b"\x07" + bytes([32]), 0x21)


def _huge_window() -> bytes:
    parameters = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    return compressor.compress(SHUFFLED)


SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
#: Content size of 4 bytes, not single-segment, with a window descriptor.
_frame("of_a_bomb", lambda: zstd(bytes(1 << 24)), "zstd frame states 16777216|characters")
_frame("stating_more", lambda: _header(SHUFFLED, bytes([33]), 0x20))
_frame("stating_less", lambda: _header(SHUFFLED, bytes([31]), 0x20))
_frame("stating_a_terabyte", lambda: _header(SHUFFLED, (1 << 40).to_bytes(8, "little"), 0xE0))
_frame("stating_no_size", _unknown_size)
_frame("stating_32_but_holding_more", lambda: _header(SHUFFLED * 2, bytes([32]), 0x20))
_frame("stating_32_but_holding_less", lambda: _header(SHUFFLED[:16], bytes([32]), 0x20))
_frame("with_a_dictionary", _with_dictionary_id)
_frame("made_with_a_dictionary", _dictionary, "")
_frame("that_is_skippable", lambda: SKIPPABLE)
_frame("behind_a_skippable_one", lambda: SKIPPABLE + zstd(SHUFFLED))
_frame("before_a_skippable_one", lambda: zstd(SHUFFLED) + SKIPPABLE)
_frame("twice", lambda: zstd(SHUFFLED) * 2)
_frame("in_two_halves", lambda: zstd(SHUFFLED[:16]) + zstd(SHUFFLED[16:]))
_frame("with_an_unused_bit", lambda: UNUSED_BIT, "without meaning")
_frame("before_other_bytes", lambda: zstd(SHUFFLED) + b"more")
_frame("before_a_nul", lambda: zstd(SHUFFLED) + b"\0")
_frame("cut_off", lambda: zstd(SHUFFLED)[:-1])
_frame("cut_off_in_its_header", lambda: zstd(SHUFFLED)[:5])
_frame("of_nothing", lambda: b"", "")
_frame("of_raw_bytes", lambda: SHUFFLED)
_frame("of_gzip", lambda: b"\x1f\x8b\x08" + SHUFFLED)
_frame("with_reserved_bit", lambda: _header(SHUFFLED, bytes([32]), 0x28))
_frame("with_reserved_block", lambda: _header(SHUFFLED, bytes([32]), 0x20)[:-35] + b"\x07\1\0x")
_frame(
    "with_a_huge_window",
    lambda: _header(SHUFFLED, (32).to_bytes(4, "little"), 0x80, b"\xa0"),
    "window",
    (FormatError, LimitError),
)
_frame(
    "with_the_largest_window",
    lambda: _header(SHUFFLED, (32).to_bytes(4, "little"), 0x80, b"\xff"),
    "window|zstd",
    (FormatError, LimitError),
)
_frame("with_wrong_checksum", lambda: zstd(SHUFFLED, write_checksum=True)[:-4] + b"abcd")
_frame("of_many_blocks", lambda: _blocks(SHUFFLED), "characters|zstd")


def _blocks(content: bytes) -> bytes:
    """A frame of single bytes, each behind 300 empty blocks."""
    frame = b"\x28\xb5\x2f\xfd\x20" + bytes([len(content)])
    for byte in content:
        frame += bytes(3) * 300 + (1 << 3).to_bytes(3, "little") + bytes([byte])
    return frame + (1).to_bytes(3, "little")


# --- lists --------------------------------------------------------------------------------------


def _list(name: str, text: bytes, says: str = "list|item", record: str = "/l") -> None:
    """Another text for the list ``0.0,0.25`` of float32, or for ``-1,0,2^62`` of int64."""

    @CASES.add(FormatError, says, name=f"list_{name}")
    def _(forgery: Forgery) -> None:
        forgery[record].payloads[0] = text


_list("with_an_array", b"[0.0],0.25")
_list("that_is_an_array", b"[0.0,0.25]")
_list("with_an_object", b'{"a":0.0},0.25')
_list("with_null", b"null,0.25")
_list("with_true", b"true,0.25")
_list("with_a_number_in_quotes", b'"0.0",0.25')
_list("with_unknown_word", b'"nan",0.25')
_list("with_infinity_unquoted", b"Infinity,0.25")
_list("with_a_finite_pattern", b'"0x00000000",0.25')
_list("with_the_canonical_nan_as_pattern", b'"0x7fc00000",0.25')
_list("with_a_pattern_in_capitals", b'"0x7FC00001",0.25')
_list("with_a_short_pattern", b'"0x7fc1",0.25')
_list("with_an_infinite_pattern", b'"0x7f800000",0.25')
_list("with_a_number_too_few", b"0.0", "holds 1|expected 2")
_list("with_a_number_too_many", b"0.0,0.25,0.5", "more than|holds 3")
_list("with_no_number", b"")
_list("with_an_item_left_out", b"0.0,,0.25")
_list("with_a_comma_behind", b"0.0,0.25,")
_list("with_a_comma_in_front", b",0.0,0.25")
_list("with_a_semicolon", b"0.0;0.25")
_list("with_a_decimal_comma", b"0,0,0,25", "")
_list("with_a_line_break", b"0.0,\n0.25", "")
_list("with_a_comment", b"0.0,/**/0.25")
_list("over_float32", b"1e39,0.25")
_list("over_float64", b"1e400,0.25")
_list("with_a_million_digits", b"0." + b"1" * 1_000_000 + b",0.25", "characters")
_list("of_65_characters", b"0." + b"1" * 63 + b",0.25")
_list("of_spaces", b" " * 1000 + b"0.0,0.25", "characters")
_list("with_nul", b"0.0,\x000.25")
_list("with_an_integer_over_int64", b"9223372036854775808,0,4611686018427387904", record="/i")
_list("with_an_integer_under_int64", b"-9223372036854775809,0,0", record="/i")
_list("with_a_float_for_an_integer", b"-1.0,0,4611686018427387904", record="/i")
_list("with_an_exponent_for_an_integer", b"-1e0,0,4611686018427387904", record="/i")
_list("with_a_string_for_an_integer", b'"-1",0,4611686018427387904', record="/i")
_list("with_nan_for_an_integer", b'"NaN",0,4611686018427387904', record="/i")
_list("with_5000_digits_for_an_integer", b"7" * 5000 + b",0,1", "", record="/i")


@CASES.add(FormatError, "item|bool|0 to 1")
def list_of_bools_with_a_two(forgery: Forgery) -> None:
    record = forgery["/mask"]
    record.members["encoding"] = "list"
    record.payloads = [b"1,0,2,1", b"1,0"]


@CASES.add(FormatError, "item|bool")
def list_of_bools_with_true(forgery: Forgery) -> None:
    record = forgery["/mask"]
    record.members["encoding"] = "list"
    record.payloads = [b"1,0,0,true", b"1,0"]


@CASES.add(IntegrityError, "checksum")
def list_of_other_numbers(forgery: Forgery) -> None:
    forgery["/l"].payloads[0] = b"0.0,0.5"


@CASES.add(IntegrityError, "checksum")
def list_with_minus_zero(forgery: Forgery) -> None:
    forgery["/l"].payloads[0] = b"-0.0,0.25"


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
