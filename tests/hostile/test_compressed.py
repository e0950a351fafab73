"""Whole files that are no proper zstd, or too much of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import zstandard

from jsonckpt import FormatError, IncompleteCheckpointError, IntegrityError, LimitError
from tests.hostile.cases import Case, Cases, check
from tests.hostile.forge import Forgery, zstd
from tests.hostile.runner import Child

CASES = Cases()
FORMS = ("zst", "directory_zst")
SKIPPABLE = b"\x50\x2a\x4d\x18" + (4).to_bytes(4, "little") + b"skip"
CUT_OFF = (IncompleteCheckpointError, FormatError)


def _file(
    name: str,
    edit: Callable[[bytes], bytes],
    says: str = "zstd",
    expects: tuple[type[Exception], ...] = (FormatError,),
) -> None:
    """Another file: ``edit`` gets the good compressed one."""

    @CASES.add(expects, says, forms=FORMS, name=name)  # type: ignore[arg-type]
    def _(forgery: Forgery) -> None:
        forgery.edit_file = edit


def _text(
    name: str,
    compress: Callable[[bytes], bytes],
    says: str = "zstd",
    expects: tuple[type[Exception], ...] = (FormatError,),
    growth: int = 64 << 20,
) -> None:
    """The good text, or another, compressed in another way."""

    @CASES.add(expects, says, forms=FORMS, name=name, growth=growth)  # type: ignore[arg-type]
    def _(forgery: Forgery) -> None:
        forgery.compress = compress


_file("not_compressed", lambda data: zstandard.decompress(data))
_file("gzip", lambda data: b"\x1f\x8b\x08\0" + data)
_file("empty", lambda _: b"", "", CUT_OFF)
_file("one_byte", lambda data: data[:1], "", CUT_OFF)
_file("magic_alone", lambda data: data[:4], "", CUT_OFF)
_file("header_alone", lambda data: data[:8], "", CUT_OFF)
_file("cut_in_half", lambda data: data[: len(data) // 2], "", CUT_OFF)
_file("last_byte_missing", lambda data: data[:-1], "", CUT_OFF)
_file("skippable_frame_in_front", lambda data: SKIPPABLE + data)
_file("skippable_frame_behind", lambda data: data + SKIPPABLE)
_file("frame_twice", lambda data: data * 2, "")
_file("bytes_behind", lambda data: data + b"more", "", CUT_OFF)
_file("many_bytes_behind", lambda data: data + b"more" * 100)
_file("nul_behind", lambda data: data + b"\0", "", CUT_OFF)
_file("damaged_magic", lambda data: b"\x29" + data[1:])
_file("damaged_block", lambda data: data[:20] + bytes(8) + data[28:], "",
      (FormatError, IntegrityError, IncompleteCheckpointError))  # fmt: skip
_file("unused_bit", lambda data: data[:4] + bytes([data[4] | 0x10]) + data[5:], "without meaning")
_file("other_legacy_format", lambda data: b"\x27\xb5\x2f\xfd" + data[4:])


def _with_size(data: bytes, size: int) -> bytes:
    """A frame of raw blocks that states a size."""
    frame = b"\x28\xb5\x2f\xfd\xe0" + size.to_bytes(8, "little")
    return frame + (len(data) << 3 | 1).to_bytes(3, "little") + data


def _with_window(data: bytes, window: int) -> bytes:
    frame = b"\x28\xb5\x2f\xfd\x00" + bytes([window])
    return frame + (len(data) << 3 | 1).to_bytes(3, "little") + data


def _dictionary(data: bytes) -> bytes:
    dictionary = zstandard.ZstdCompressionDict(b'{"format":"jsonckpt.shard"' * 40)
    return zstandard.ZstdCompressor(dict_data=dictionary).compress(data)


def _dictionary_id(data: bytes) -> bytes:
    frame = b"\x28\xb5\x2f\xfd\x01\x58\x07"
    return frame + (len(data) << 3 | 1).to_bytes(3, "little") + data


_text("states_a_byte_more", lambda text: _with_size(text, len(text) + 1), "", CUT_OFF)
_text("states_a_byte_less", lambda text: _with_size(text, len(text) - 1), "", CUT_OFF)
_text("states_a_terabyte", lambda text: _with_size(text, 1 << 40), "window", (LimitError,))
_text("window_of_terabytes", lambda text: _with_window(text, 0xFF), "window", (LimitError,))
_text("window_of_128_mib", lambda text: _with_window(text, 17 << 3), "window", (LimitError,))
_text("names_a_dictionary", _dictionary_id, "dictionary")
_text("made_with_a_dictionary", _dictionary, "", (FormatError, IntegrityError))

# --- bombs: small files of large text -----------------------------------------------------------

#: The longest head or trailer that is taken has 64 MiB, and is held a few times.
HEAD = 512 << 20
#: Any other line is much shorter.
LINE = 32 << 20
BOTH = (FormatError, LimitError)


def _bomb(name: str, text: Callable[[bytes], bytes], says: str = "", growth: int = HEAD) -> None:
    _text(f"bomb_{name}", lambda good: zstd(text(good)), says, BOTH, growth)


_bomb("of_nuls", lambda _: bytes(80 << 20))
_bomb("of_spaces", lambda _: b" " * (80 << 20))
_bomb("of_line_feeds", lambda _: b"\n" * (80 << 20))
_bomb("of_a_string_in_the_head", lambda text: text.replace(b":", b':"' + b"a" * (80 << 20), 1))
_bomb("of_lines_in_the_head", lambda text: text.replace(b",\n", b",\n" + b"\n" * (80 << 20), 1))
_bomb("of_arrays_in_the_head", lambda text: text.replace(b":", b":" + b"[" * (50 << 20), 1))
_bomb(
    "before_a_record",
    lambda text: text.replace(b"\n{", b"\n" + b" " * (80 << 20) + b"{", 1),
    "",
    LINE,
)
_bomb(
    "in_a_record",
    lambda text: text.replace(b'\n{"name"', b"\n{" + b" " * (80 << 20) + b'"name"', 1),
    "",
    LINE,
)
_bomb(
    "in_a_payload",
    lambda text: text.replace(b'[\n"', b'[\n"' + b"A" * (40 << 20), 1),
    "chara",
    LINE,
)
_bomb(
    "in_a_list", lambda text: text.replace(b"[\n[", b"[\n[" + b"0," * (20 << 20), 1), "chara", LINE
)
_bomb("in_a_tail", lambda text: text.replace(b"\n],", b"\n]," + b" " * (80 << 20), 1), "", LINE)
_bomb("in_the_trailer", lambda text: text.replace(b',"seal"', b" " * (80 << 20) + b',"seal"', 1))
_bomb("behind_the_trailer", lambda text: text + b" " * (80 << 20))
_bomb("of_lines_behind_the_trailer", lambda text: text + b"\n" * (80 << 20))
_bomb(
    "of_digits_in_a_record",
    lambda text: text.replace(b'\n{"name"', b'\n{"a":' + _digits(), 1),
    "",
    LINE,
)


def _digits() -> bytes:
    return b"[" + b",".join([b"1" * 900] * 70_000) + b'],"name"'


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
