"""Time that grows with the length of the text alone, wherever something strange stands in it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.forge import Forgery, Raw, good
from tests.hostile.runner import Child

#: Characters of the shortest text; the others are twice and four times as long.
SHORTEST = 32 << 10
#: Processor seconds that the longest of them, a small file, may take: it takes tenths of one.
MOST_SECONDS = 2.0

#: What is repeated, and what stands behind it once.
FAMILIES: dict[str, tuple[bytes, bytes]] = {
    "escaped_quotes": (b'\\"', b"+"),
    "backslashes": (b"\\", b"+"),
    "strings_of_a_backslash": (b'"\\\\",', b"+"),
    "quotes": (b'"', b"+1"),
    "pluses_in_strings": (b'"+",', b'"'),
    "open_arrays": (b"[", b""),
    "open_objects": (b'{"a":', b""),
    "nested_90_deep": (b"[" * 90 + b"]" * 90 + b",", b""),
    "digits": (b"7", b""),
    "long_numbers": (b"7" * 900 + b",", b""),
    "minuses": (b"-", b""),
    "commas": (b",", b""),
    "blanks": (b" ", b"+"),
    "tabs_and_braces": (b"{\t", b'"name":'),
    "controls": (b"\x01", b""),
    "line_feeds": (b"\n", b""),
    "short_lines": (b"[]\n", b""),
    "surrogates": (b"\\ud800", b""),
    "pairs": (b'"\\ud83d\\ude00",', b'"\\ud83d'),
    "almost_the_head's_end": (b'\n"tensors":[', b" "),
    "almost_a_chunk's_end": (b'"chunks":[ ', b""),
    "almost_a_record": (b'{"name" ', b'"chunks":[\n'),
    "heads_of_records": (b'{"name":"/a","chunks":[\n', b""),
    "tails_of_records": (b'],"digest":"0"}\n', b""),
    "almost_a_seal": (b',\n"seal":null} ', b"x"),
    "almost_a_trailer": (b',"seal":"a:0","index_offset": ', b""),
    "empty_objects": (b"{},", b""),
    "members": (b'"a":1,', b'"b":2'),
}
Place = Callable[[Forgery, bytes], object]


def _state(forgery: Forgery, text: bytes) -> None:
    forgery.state["x"] = Raw(text)


def _state_in_an_array(forgery: Forgery, text: bytes) -> None:
    forgery.state["x"] = Raw(b"[" + text + b"]")


def _head(forgery: Forgery, text: bytes) -> None:
    forgery.edit_head = lambda members: {**members, "more": Raw(text)}


def _record(forgery: Forgery, text: bytes) -> None:
    forgery["/w"].members["more"] = Raw(text)


def _record_in_a_string(forgery: Forgery, text: bytes) -> None:
    forgery["/w"].members["more"] = Raw(b'"' + text + b'"')


def _tail(forgery: Forgery, text: bytes) -> None:
    forgery["/w"].tail["more"] = Raw(text)


def _payload(forgery: Forgery, text: bytes) -> None:
    forgery["/l"].payloads[0] = text


def _index(forgery: Forgery, text: bytes) -> None:
    forgery.edit_index = lambda _: Raw(b"[" + text + b"]")


def _trailer(forgery: Forgery, text: bytes) -> None:
    forgery.edit_trailer = lambda line: line[:-2] + text + line[-2:]


def _manifest(forgery: Forgery, text: bytes) -> None:
    forgery.edit_manifest = lambda members: {**members, "more": Raw(text)}


def _behind_the_manifest(forgery: Forgery, text: bytes) -> None:
    forgery.edit_sealed = lambda sealed: sealed + text


#: Where it stands, in which form, and the ways in that come across it.
SINGLE = ("indexed", "streaming", "piped", "deep", "recover")
DIRECTORY = ("indexed", "streaming", "deep", "recover", "gc")
PLACES: dict[str, tuple[Place, bool, tuple[str, ...]]] = {
    "state": (_state, True, SINGLE),
    "state_in_an_array": (_state_in_an_array, True, SINGLE),
    "head": (_head, True, SINGLE),
    "record": (_record, True, SINGLE),
    "record_in_a_string": (_record_in_a_string, True, SINGLE),
    "tail": (_tail, True, SINGLE),
    "payload": (_payload, True, SINGLE),
    "index": (_index, True, SINGLE),
    "trailer": (_trailer, True, SINGLE),
    "manifest": (_manifest, False, DIRECTORY),
    "behind_the_manifest": (_behind_the_manifest, False, DIRECTORY),
}


def _write(place: str, family: str, length: int, directory: Path) -> Path:
    put, single, _ = PLACES[place]
    unit, end = FAMILIES[family]
    forgery = good()
    put(forgery, unit * (length // len(unit)) + end)
    directory.mkdir()
    if single:
        return forgery.write_single(directory / "run.json")
    return forgery.write_directory(directory / "run")


@pytest.mark.parametrize("place", PLACES)
def test_time_is_linear(place: str, child: Child, tmp_path: Path) -> None:
    for family in FAMILIES:
        paths = [
            _write(place, family, SHORTEST * factor, tmp_path / f"{family}{factor}")
            for factor in (1, 2, 4)
        ]
        for door in PLACES[place][2]:
            longest = child.ask(paths[2], door)
            known = not longest.error or "JsonckptError" in longest.error
            assert known, f"{family}, {door}: {longest}"
            assert longest.seconds < MOST_SECONDS, f"{family}, {door}: {longest.seconds:.1f} s"
            if longest.seconds < 0.2:
                continue  # what is quadratic takes longer, and so little cannot be compared
            shorter = [child.ask(path, door) for path in paths[:2]]
            for one, other in zip(shorter, [shorter[1], longest]):
                assert other.seconds < 3.5 * one.seconds + 0.1, (
                    f"{family}, {door}: {one.seconds:.2f} s, then {other.seconds:.2f} s"
                )
