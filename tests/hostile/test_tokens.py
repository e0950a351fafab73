"""What is no JSON, or JSON that the format does not allow, at every place where a value stands."""

from __future__ import annotations

import codecs
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jsonckpt import FormatError, IncompleteCheckpointError, IntegrityError, LimitError
from tests.hostile.cases import PLAIN, Case, Cases, check, write
from tests.hostile.forge import Forgery, Raw, good
from tests.hostile.runner import Child

CASES = Cases()
REFUSED = (FormatError, LimitError)
#: A file of 20 MiB is held a few times while its manifest is read.
LARGE = 128 << 20

TOKENS: dict[str, bytes] = {
    "integer_of_5000_digits": b"7" * 5_000,
    "integer_of_a_million_digits": b"7" * 1_000_000,
    "negative_integer_of_5000_digits": b"-" + b"7" * 5_000,
    "float_of_5000_digits": b"0." + b"7" * 5_000,
    "exponent_of_5000_digits": b"1e" + b"7" * 5_000,
    "nan": b"NaN",
    "infinity": b"Infinity",
    "minus_infinity": b"-Infinity",
    "1e400": b"1e400",
    "exponent_of_millions": b"1e3000000",
    "plus_one": b"+1",
    "leading_zero": b"01",
    "trailing_point": b"1.",
    "leading_point": b".5",
    "hexadecimal": b"0x10",
    "underscore": b"1_000",
    "two_minuses": b"--1",
    "minus_alone": b"-",
    "digits_of_another_script": "１２".encode(),
    "python_true": b"True",
    "capital_null": b"NULL",
    "undefined": b"undefined",
    "single_quotes": b"'a'",
    "no_value": b"",
    "two_values": b"1 2",
    "comment": b"/* 1 */ 1",
    "trailing_comma": b"[1,]",
    "missing_comma": b"[1 2]",
    "unclosed_array": b"[1",
    "unclosed_object": b'{"a":1',
    "unclosed_string": b'"a',
    "wrong_bracket": b"[1}",
    "lone_high_surrogate": b'"\\ud800"',
    "lone_low_surrogate": b'"\\uDC00"',
    "swapped_surrogates": b'"\\udc00\\ud800"',
    "high_surrogate_twice": b'"\\ud800\\ud800\\udc00"',
    "lone_surrogate_behind_a_backslash": b'"\\\\\\ud800"',
    "encoded_surrogate": b'"\xed\xa0\x80"',
    "byte_ff": b'"\xff"',
    "overlong_slash": b'"\xc0\xaf"',
    "cut_off_utf8": b'"\xe2\x82"',
    "beyond_unicode": b'"\xf4\x90\x80\x80"',
    "raw_nul": b'"a\0b"',
    "raw_tab": b'"a\tb"',
    "raw_escape": b'"a\x1b[31mb"',
    "nul_outside_strings": b"\0",
    "form_feed_outside_strings": b"\x0c1",
    "bad_escape": b'"\\x41"',
    "short_escape": b'"\\u12"',
    "nested_arrays": b"[" * 100_000 + b"]" * 100_000,
    "nested_objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "nested_arrays_left_open": b"[" * 100_000,
    "duplicate_member": b'{"a":1,"a":1}',
    "duplicate_member_by_escape": b'{"a":1,"\\u0061":1}',
    "duplicate_member_deep_down": b'[{"b":[{"a":1,"a":1}]}]',
}


def _manifest(*path: Any) -> Callable[[Forgery, Raw], None]:
    """A place in the manifest."""

    def put(forgery: Forgery, token: Raw) -> None:
        def edit(manifest: Any) -> None:
            place = manifest
            for step in path[:-1]:
                place = place[step]
            place[path[-1]] = token

        forgery.edit_manifest = edit

    return put


def _head(*path: Any) -> Callable[[Forgery, Raw], None]:
    """A place in the head of a shard or single file."""

    def put(forgery: Forgery, token: Raw) -> None:
        def edit(head: Any) -> None:
            place = head
            for step in path[:-1]:
                place[step] = dict(place[step])
                place = place[step]
            place[path[-1]] = token

        forgery.edit_head = edit

    return put


def _record_name(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].members["name"] = token


def _record_shape(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].members["shape"][0] = token


def _record_chunk_bytes(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].members["chunk_bytes"] = token


def _record_member(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].members["padding"] = token


def _tail_member(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].tail["padding"] = token


def _tail_checksum(forgery: Forgery, token: Raw) -> None:
    record = forgery["/w"]
    record.digest = "ab" * 16
    record.sums[0] = token


def _tail_digest(forgery: Forgery, token: Raw) -> None:
    forgery["/w"].digest = token


def _index(forgery: Forgery, token: Raw) -> None:
    def edit(rows: list[Any]) -> None:
        rows[0][2][0][0] = token

    forgery.edit_index = edit


def _list_item(forgery: Forgery, token: Raw) -> None:
    forgery["/l"].payloads[0] = b"0.0," + token


DIRECTORY, SINGLE = ("directory",), ("single",)
Place = tuple[tuple[str, ...], Callable[[Forgery, Raw], None]]
PLACES: dict[str, Place] = {
    "manifest_version": (DIRECTORY, _manifest("version")),
    "manifest_totals": (DIRECTORY, _manifest("totals", "bytes")),
    "manifest_shard": (DIRECTORY, _manifest("shards", 0, "bytes")),
    "manifest_codec": (DIRECTORY, _manifest("codecs", 0, "chunk_bytes")),
    "manifest_shape": (DIRECTORY, _manifest("tensors", 0, "shape", 0)),
    "manifest_offset": (DIRECTORY, _manifest("tensors", 0, "offset")),
    "manifest_chunk": (DIRECTORY, _manifest("tensors", 0, "chunks", 0, 1)),
    "manifest_state": (DIRECTORY, _manifest("state", "epoch")),
    "manifest_metadata": (DIRECTORY, _manifest("metadata", "run")),
    "manifest_unknown_member": (DIRECTORY, _manifest("padding")),
    "head_version": (PLAIN, _head("version")),
    "head_unknown_member": (PLAIN, _head("padding")),
    "head_totals": (SINGLE, _head("totals", "bytes")),
    "head_state": (SINGLE, _head("state", "epoch")),
    "head_metadata": (SINGLE, _head("metadata", "run")),
    "record_name": (SINGLE, _record_name),
    "record_shape": (SINGLE, _record_shape),
    "record_chunk_bytes": (SINGLE, _record_chunk_bytes),
    "record_unknown_member": (PLAIN, _record_member),
    "tail_unknown_member": (PLAIN, _tail_member),
    "tail_checksum": (SINGLE, _tail_checksum),
    "tail_digest": (SINGLE, _tail_digest),
    "index": (PLAIN, _index),
    "list": (PLAIN, _list_item),
}
#: What stands in a member of a record that is ignored, is ignored: it is a JSON number.
ALLOWED = {
    ("1e400", "record_unknown_member"),
    ("1e400", "tail_unknown_member"),
    ("exponent_of_millions", "record_unknown_member"),
    ("exponent_of_millions", "tail_unknown_member"),
}
OTHER_DOORS = ("stream", "verify", "open", "load_into")


def _add(token_name: str, place_name: str) -> None:
    forms, put = PLACES[place_name]
    token = Raw(TOKENS[token_name])
    name = f"{token_name}-in-{place_name}"
    # Another value of the right syntax is another digest.
    expects = (*REFUSED, IntegrityError) if place_name == "tail_digest" else REFUSED

    @CASES.add(expects, "", forms=forms, name=name, blind=OTHER_DOORS)
    def _(forgery: Forgery) -> None:
        put(forgery, token)


for _token in TOKENS:
    for _place in PLACES:
        if (_token, _place) not in ALLOWED:
            _add(_token, _place)


# --- whole files --------------------------------------------------------------------------------


def _encoded(name: str, encode: Callable[[bytes], bytes]) -> None:
    @CASES.add((FormatError, IncompleteCheckpointError), "", forms=SINGLE, name=f"file_{name}")
    def _(forgery: Forgery) -> None:
        forgery.edit_shard = encode

    @CASES.add(FormatError, "", forms=DIRECTORY, name=f"manifest_{name}", growth=LARGE)
    def _(forgery: Forgery) -> None:
        forgery.edit_sealed = encode

    @CASES.add((FormatError, IncompleteCheckpointError), "", forms=DIRECTORY, name=f"shard_{name}")
    def _(forgery: Forgery) -> None:
        forgery.edit_shard = encode


_encoded("with_byte_order_mark", lambda text: codecs.BOM_UTF8 + text)
_encoded("in_utf16", lambda text: text.decode().encode("utf-16"))
_encoded("in_utf16_without_mark", lambda text: text.decode().encode("utf-16-le"))
_encoded("in_utf32", lambda text: text.decode().encode("utf-32"))
_encoded("with_a_nul_in_front", lambda text: b"\0" + text)
_encoded("in_an_array", lambda text: b"[" + text + b"]")
_encoded("twice", lambda text: text + text)
_encoded("with_crlf", lambda text: text.replace(b"\n", b"\r\n"))
_encoded("with_text_in_front", lambda text: b"data = " + text)
_encoded("of_line_feeds", lambda _: b"\n" * (20 << 20))
_encoded("of_spaces", lambda _: b" " * (20 << 20))
_encoded("of_nuls", lambda text: bytes(len(text)))


def test_ijson_without_its_c_backend(tmp_path: Path) -> None:
    """The same verdicts where ijson could not be compiled and reads in Python."""
    child = Child(IJSON_BACKEND="python")
    try:
        for case in CASES:
            if case.forms == PLAIN and "_member" in case.name:
                directory = tmp_path / case.name
                directory.mkdir()
                forgery = good()
                case.edit(forgery)
                outcome = child.ask(write(forgery, "single", directory), "piped")
                assert {"FormatError", "LimitError"} & set(outcome.error), (case.name, outcome)
    finally:
        child.close()


@CASES.parameters()
def test_refused(case: Case, form: str, child: Child, tmp_path: Path) -> None:
    check(case, form, child, tmp_path)
