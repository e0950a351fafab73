"""A shard or a single file in any layout: what a JSON tool made of it (format section 3.3).

:class:`AnyLayoutScanner` reads the text forward once. It finds the payloads by their place in the
tree (``tensors[i].chunks[j]``), notes their byte ranges and keeps the rest, which is small. That
rest is parsed strictly. The payloads are checked when they are decoded, as in every other file.

Pure: bytes in, facts out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from ..errors import CUT_OFF, FormatError, IncompleteCheckpointError, LimitError, quote
from ..format import json_text
from ..format.chunk_codec import longest_payload, payload_too_long
from ..format.limits import Limits, check_beside, exceeds, way_over
from ..format.model import SHARD_FORMAT, Header
from ..format.validation import check_header, kind, no_checkpoint
from .head_parser import HEAD_END_PATTERN
from .record_parser import Record, parse_header, tail_sums

_TOKEN: Final = re.compile(rb'"[^"]*"?|[\[\]{}]')
_FORMAT: Final = SHARD_FORMAT.encode()
_LIST_TOKEN: Final = re.compile(rb'["\[\]{}]')
_OTHERS: Final = (b'"', b"[", b"{", b"}")
#: No key that counts here is longer.
_KEY: Final = 16
#: How many brackets are open around the members of the file, a record, its members, its chunks.
_MEMBERS, _RECORDS, _RECORD, _CHUNKS = 1, 2, 3, 4
#: How much longer than a writer's a payload may be: base64 with each character escaped, and a list
#: with each number on a line of its own, indented.
_LONGER: Final = {"base64": 6, "list": 16}
_WHITE: Final = b" \t\r\n"
#: Far longer than any number or string in a payload.
_LONG_ITEM: Final = 1_000
_SEAL_IS_NULL: Final = re.compile(rb'"seal"[ \t\r\n]{0,100}:[ \t\r\n]{0,100}null')


@dataclass(slots=True)
class FoundPayloads:
    """The ranges of one record in a text.

    Attributes:
        start, stop: of the record, from ``{`` to ``}``.
        chunks: ``(offset, length)`` of each payload.
    """

    start: int
    stop: int
    chunks: list[tuple[int, int]]


class AnyLayoutScanner:
    """Reads a whole text: :meth:`push` its pieces, of any size, then :meth:`finish`.

    Args:
        most_chunks: more payloads are refused.

    Attributes:
        found: the ranges of the records, in order.
        position: bytes of text so far.
        is_laid_out: whether it has the line of a writer that begins the records.
        is_unsealed: whether it seems to have a seal of null.
    """

    def __init__(self, limits: Limits, most_chunks: int | None) -> None:
        self.found: list[FoundPayloads] = []
        self.position = 0
        self.is_laid_out = self.is_unsealed = False
        self._limits = limits
        self._most_chunks = most_chunks
        self._rest = bytearray()
        self._held = b""
        self._depth = self._marks = self._chunks = 0
        self._in_tensors = self._in_chunks = False
        #: The beginning of the last string. At a bracket that opens, it is the bracket's key.
        self._key = b""
        #: What the last piece ended in.
        self._in_string = self._in_payload = self._in_list = False
        self._payload_at = 0

    def explains(self, error: Exception) -> bool:
        """Whether an error of this scanner says better than another reader's what is wrong.

        That depends on what the text so far seems to be.
        """
        unsealed = self.is_unsealed or _SEAL_IS_NULL.search(self._rest) is not None
        return unsealed or (isinstance(error, LimitError) and _FORMAT in self._rest)

    def push(self, text: bytes) -> None:
        """Read the next piece.

        Raises:
            FormatError, LimitError: it breaks a rule.
        """
        text = self._held + text
        odd = (len(text) - len(text.rstrip(b"\\"))) % 2  # what it escapes comes with the next piece
        text, self._held = (text[:-1], text[-1:]) if odd else (text, b"")
        plain = json_text.without_escapes(text)  # each quote begins or ends a string
        at = kept = 0
        try:
            while at < len(plain):
                if self._in_payload:
                    at, kept = self._payload(plain, at)
                elif self._in_string:
                    at = self._string(plain, at)
                else:
                    at, kept = self._structure(text, plain, at, kept)
        except (FormatError, LimitError):
            self._rest += text  # for `explains`
            raise
        self._keep(text[kept:])
        self.position += len(text)

    def finish(self) -> dict[str, Any]:
        """The members of the file. In the records, payloads are empty strings and arrays.

        Raises:
            FormatError, LimitError: the text is not JSON, not of this format, or over a limit.
            IncompleteCheckpointError: it ends too early.
        """
        if self._depth or self._in_string or self._held or not self._rest.strip():
            raise IncompleteCheckpointError(
                f"the text ends after {self.position} bytes, inside the JSON", hint=CUT_OFF
            )
        text = bytes(self._rest)
        self._rest.clear()
        self.is_laid_out = HEAD_END_PATTERN.search(text) is not None
        self.is_unsealed = _SEAL_IS_NULL.search(text) is not None
        if _FORMAT not in text:  # before the parse, which takes more memory
            raise no_checkpoint(text)
        value = json_text.parse(
            text,
            what="the text without its payloads",
            max_depth=self._limits.depth or 1_000,
            max_number=self._limits.number_chars or 1 << 20,
            max_marks=self._limits.marks,
        )
        members = check_header(value, SHARD_FORMAT)
        records = members.get("tensors")
        if not isinstance(records, list) or len(records) != len(self.found):
            raise FormatError(f"tensors: expected an array of objects, found {kind(records)}")
        return members

    def _structure(self, text: bytes, plain: bytes, at: int, kept: int) -> tuple[int, int]:
        """Read brackets and strings up to the end of the piece, or to a payload that it ends in.

        Returns:
            where to read on, and the beginning of the text that is not kept yet.
        """
        for token in _TOKEN.finditer(plain, at):
            begin, stop = token.span()
            mark = plain[begin]
            self._marks += 1
            if mark in b"]}":
                self._close(self.position + stop)
            elif self._in_chunks and self._depth == _CHUNKS and mark in b'"[':
                self._keep(text[kept : begin + 1])
                self._begin_payload(begin + 1, is_list=mark == 0x5B)
                if mark == 0x5B or stop - begin < 2 or plain[stop - 1] != 0x22:
                    return begin + 1, len(plain)
                self._end_payload(stop - 1)
                kept = stop - 1
            elif mark == 0x22:
                self._key = plain[begin + 1 : min(stop, begin + 1 + _KEY)]
                self._in_string = stop - begin < 2 or plain[stop - 1] != 0x22
            else:
                self._open(self.position + begin)
        if exceeds(self._marks, self._limits.marks):
            raise LimitError(
                f"over {self._limits.marks} brackets and strings", hint=way_over("marks", "None")
            )
        return len(plain), kept

    def _string(self, plain: bytes, at: int) -> int:
        """Read on in a string that began in an earlier piece."""
        stop = plain.find(b'"', at)
        self._in_string = stop < 0
        end = len(plain) if stop < 0 else stop + 1
        self._key = (self._key + plain[at : min(end, at + _KEY)])[:_KEY]
        return end

    def _payload(self, plain: bytes, at: int) -> tuple[int, int]:
        """Read on in a payload, up to the mark that ends it or the end of the piece."""
        stop = self._list_end(plain, at) if self._in_list else plain.find(b'"', at)
        if stop < 0:
            return len(plain), len(plain)
        self._end_payload(stop)
        return stop + 1, stop

    def _list_end(self, plain: bytes, at: int) -> int:
        """Where the array of numbers ends; -1 if that is in a later piece."""
        stop = plain.find(b"]", at)
        end = len(plain) if stop < 0 else stop
        if not self._in_string and all(plain.find(mark, at, end) < 0 for mark in _OTHERS):
            return stop  # by far the most frequent case, and ten times as fast
        while True:
            if self._in_string:
                at = plain.find(b'"', at) + 1
                if not at:
                    return -1
                self._in_string = False
            token = _LIST_TOKEN.search(plain, at)
            if token is None:
                return -1
            if token[0] == b"]":
                return token.start()
            if token[0] != b'"':
                place = f"tensors[{len(self.found) - 1}], chunk {len(self.found[-1].chunks)}"
                raise FormatError(f"{place}: a bracket in the list of numbers")
            self._in_string, at = True, token.end()

    def _begin_payload(self, at: int, *, is_list: bool) -> None:
        self._chunks += 1
        if exceeds(self._chunks, self._most_chunks):
            raise LimitError(f"over {self._most_chunks} chunks", hint=way_over("chunks", "None"))
        self._payload_at = self.position + at
        self._in_payload, self._in_list = True, is_list

    def _end_payload(self, at: int) -> None:
        start = self._payload_at
        self.found[-1].chunks.append((start, self.position + at - start))
        self._in_payload = False

    def _open(self, position: int) -> None:
        if self._depth == _MEMBERS:
            self._in_tensors = self._key == b'tensors"'
        elif self._depth == _RECORDS and self._in_tensors:
            if exceeds(len(self.found) + 1, self._limits.tensors):
                raise LimitError(f"over {self._limits.tensors} tensors", hint=way_over("tensors"))
            self.found.append(FoundPayloads(position, position, []))
        elif self._depth == _RECORD and self._in_tensors:
            self._in_chunks = self._key == b'chunks"'
        self._depth += 1
        if exceeds(self._depth, self._limits.depth):
            raise LimitError(
                f"nested deeper than {self._limits.depth} levels", hint=way_over("depth")
            )

    def _close(self, position: int) -> None:
        self._depth -= 1
        if self._depth < 0:
            raise FormatError(f"a bracket too many at byte {position - 1}")
        if self._depth == _RECORD:
            self._in_chunks = False
        elif self._depth == _RECORDS and self._in_tensors:
            self.found[-1].stop = position
        elif self._depth == _MEMBERS:
            self._in_tensors = False

    def _keep(self, text: bytes) -> None:
        self._rest += text
        check_beside(len(self._rest), self._limits)


def record_of(item: object, found: FoundPayloads, limits: Limits, algorithm: str) -> Record:
    """One record of such a file, with the ranges of its payloads.

    Args:
        item: its members, from :meth:`AnyLayoutScanner.finish`.

    Raises:
        FormatError, LimitError: a member is wrong, or the payloads are not those of the shape.
        IntegrityError: it does not match its digest.
    """
    if not isinstance(item, dict):
        raise FormatError(f"tensors: expected an object, found {kind(item)}")
    header = parse_header(item, limits)
    empty: Any = [] if header.codec.encoding == "list" else ""
    chunks = item.get("chunks")
    if len(found.chunks) != header.chunk_count or chunks != [empty] * header.chunk_count:
        raise FormatError(
            f"chunks is not an array of {header.chunk_count} {kind(empty).partition(' ')[2]}s, "
            f"as encoding and shape ask for",
            tensor=header.name,
        )
    sums = tail_sums(header, item, algorithm)
    for chunk, (_, length) in enumerate(found.chunks):
        longest = longest_spelling(header, chunk)
        if length > longest:
            raise payload_too_long(longest).at(tensor=header.name, chunk=chunk)
    rows = tuple([(*place, checksum) for place, checksum in zip(found.chunks, sums)])
    return Record(header, found.start, found.stop - found.start, rows)


def longest_spelling(header: Header, chunk: int) -> int:
    """The most bytes of a payload in any spelling."""
    start, stop = header.raw_range(chunk)
    encoding = header.codec.encoding
    return _LONGER[encoding] * longest_payload(stop - start, header.codec, header.dtype)


def plain_payload(pieces: Iterator[bytes], header: Header, chunk: int) -> bytes | bytearray:
    """A payload as a writer of this format spells it: no escapes, no line feeds.

    Args:
        pieces: the payload as it is in the file.

    Raises:
        FormatError: it is longer than any payload of its size.
    """
    start, stop = header.raw_range(chunk)
    longest = longest_payload(stop - start, header.codec, header.dtype)
    make: Callable[[bytes], tuple[bytes, bytes]]
    make = _packed if header.codec.encoding == "list" else _unescaped
    out, rest = bytearray(), b""
    for piece in pieces:
        done, rest = make(rest + piece)
        out += done
        if len(out) + len(rest) > longest + len(piece):
            raise payload_too_long(longest)
    return out + (rest.strip(_WHITE) if header.codec.encoding == "list" else rest)


def _packed(text: bytes) -> tuple[bytes, bytes]:
    """Numbers without white space around the commas, and what follows the last comma."""
    *items, rest = text.split(b",")
    # Within an item, white space stays: it is an error, and the decoder finds it.
    packed = b"".join([item.strip(_WHITE) + b"," for item in items])
    more = b" " if rest[-1:].strip(_WHITE) == b"" else b""
    rest = rest.strip(_WHITE) + more
    if len(rest) > _LONG_ITEM:
        raise FormatError(f"an item of over {_LONG_ITEM} characters in a list of numbers")
    return packed, rest


def _unescaped(text: bytes) -> tuple[bytes, bytes]:
    """Characters without escapes, and the beginning of an escape that the text ends in."""
    if b"\\" not in text:
        return text, b""
    last = text.rfind(b"\\", -6)
    whole = last < 0 or text[last + 1 : last + 2] not in (b"", b"u") or len(text) - last >= 6
    done, rest = (text, b"") if whole else (text[:last], text[last:])
    try:
        return json.loads((b'"' + done + b'"').decode("ascii")).encode("ascii"), rest
    except ValueError as error:
        raise FormatError(f"damaged base64 text: {quote(str(error))}") from error
