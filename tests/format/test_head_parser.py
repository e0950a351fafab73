"""The head of a shard in pieces of any length, and read a second time."""

from __future__ import annotations

import pytest

from jsonckpt._src.errors import FormatError, IntegrityError
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.shards.head_parser import HeadParser
from jsonckpt._src.shards.incremental import IncrementalReader
from jsonckpt._src.shards.shard_text import shard_head

STATE = b'{"a":[1,2.5],\n"b":"\xc3\xa9"}'
HEAD = shard_head("0" * 32, "sha256", {"metadata": b"{}", "state": STATE})


def pushed(head: bytes, step: int, known: tuple[str, str] | None = None) -> HeadParser:
    json = IncrementalReader(DEFAULT_LIMITS)
    parser = HeadParser(DEFAULT_LIMITS, json, known)
    behind = None
    for start in range(0, len(head), step):
        assert behind is None
        behind = parser.push(head[start : start + step])
    assert behind == b""
    return parser


@pytest.mark.parametrize("step", [1, 2, 7, 64, 10_000])
def test_pieces(step: int) -> None:
    parser = pushed(HEAD, step)
    assert parser.members["state"] == {"a": [1, 2.5], "b": "é"}
    assert parser.digest == pushed(HEAD, len(HEAD)).digest
    assert pushed(HEAD, step, ("sha256", parser.digest)).digest == parser.digest


def test_a_head_that_changes_between_two_readings() -> None:
    known = ("sha256", pushed(HEAD, 64).digest)
    with pytest.raises(IntegrityError, match="not what it was when the file was opened"):
        pushed(HEAD.replace(b"2.5", b"2.6"), 64, known)


def test_records_do_not_begin_inside_a_member() -> None:
    with pytest.raises(FormatError, match="does not end where the tensors begin"):
        pushed(HEAD.replace(b'"b":', b'"tensors":[\n'), 64)


def test_another_file_is_refused_before_it_is_read_whole() -> None:
    parser = HeadParser(DEFAULT_LIMITS, IncrementalReader(DEFAULT_LIMITS))
    with pytest.raises(FormatError, match="not a jsonckpt checkpoint"):
        parser.push(b'{"a":[' + b"1,\n" * 10_000)
