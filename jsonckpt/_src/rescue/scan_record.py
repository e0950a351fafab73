"""Reads one record of a damaged text, up to its end if that can be found. Pure.

A record is intact only if each chunk matches its checksum and the record matches its digest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from ..errors import FormatError, IntegrityError, JsonckptError, LimitError, is_refusal
from ..format import json_text
from ..format.checksums import ALGORITHMS, Hasher, hexdigest
from ..format.chunk_codec import ChunkCodec, longest_payload
from ..format.limits import Limits, exceeds
from ..format.model import Header, identity_lines
from ..format.validation import check_requires, is_hex, longest_tail
from ..shards.record_parser import parse_header
from .scan_lines import LineReader, record_header, record_start

_DECODER: Final = json.JSONDecoder()
_TAIL_OPENING: Final = b'{"chunks":['


class Spool(Protocol):
    """Keeps payloads that cannot be read a second time."""

    def tell(self) -> int: ...
    def write(self, data: bytes, /) -> None: ...
    def cut(self, length: int) -> None:
        """Forget what was written after ``length`` bytes."""


@dataclass(frozen=True)
class FoundRecord:
    """An intact record.

    ``chunks`` are ``(offset, length, checksum)`` of its payloads in the text, or in the spool.
    """

    header: Header
    algorithm: str
    chunks: tuple[tuple[int, int, str], ...]

    @property
    def checksums(self) -> list[str]:
        """The checksums of its chunks."""
        return [checksum for _, _, checksum in self.chunks]


@dataclass(frozen=True)
class _Tail:
    """The end of a record, confirmed by its digest: the line, and the checksums of the chunks."""

    line: bytes
    algorithm: str
    checksums: list[str]


class RecordScanner:
    """Reads records, one after the other.

    Args:
        size: bytes of the file, if they are known.
        spool: takes the payloads of intact records if the text cannot be read again.

    Attributes:
        algorithm: of the checksums, once the head of the file or a record has named it.
        skeleton: hashes the text around the payloads; ``None`` if some of that text is lost.
    """

    def __init__(
        self, lines: LineReader, limits: Limits, size: int | None, spool: Spool | None
    ) -> None:
        self.algorithm: str | None = None
        self.skeleton: Hasher | None = None
        self._lines = lines
        self._limits = limits
        self._size = size
        self._spool = spool
        self._coder = ChunkCodec(zstd_window=limits.zstd_window)
        self._scratch = bytearray()
        self._records = self._chunks = self._raw = 0

    def header(self, line: bytes) -> Header:
        """Read the line that opens a record.

        Raises:
            JsonckptError: it is damaged, over a limit, or asks for a feature that is not known.
        """
        header = parse_header(record_header(line, self._limits.depth or 1_000), self._limits)
        most_bytes = None if self._size is None else self._limits.total_bytes(self._size)
        for what, count, limit in (
            ("tensors", self._records + 1, self._limits.tensors),
            ("chunks", self._chunks + header.chunk_count, self._limits.most_chunks(self._size)),
            ("bytes", self._raw + header.nbytes, most_bytes),
        ):
            if exceeds(count, limit):
                raise LimitError(f"{count} {what} so far, the limit is {limit}", tensor=header.name)
        return header

    def body(self, header: Header, line: bytes) -> FoundRecord:
        """Read the rest of a record.

        Args:
            line: the line that opened it.

        Raises:
            JsonckptError: it is not intact, or asks for a feature that is not known.
        """
        spooled = self._spool.tell() if self._spool is not None else 0
        skeleton, self.skeleton = self.skeleton, None
        try:
            places, sums, fault = self._payloads(header)
            tail = self._tail(header, fault)
            if skeleton is not None:
                # The digest has confirmed the header and the tail, so the seal can be checked even
                # if payloads between them are damaged.
                empty = b"[]" if header.codec.encoding == "list" else b'""'
                skeleton.update(line)
                skeleton.update(
                    b",\n".join([empty] * header.chunk_count) + b"\n" * (header.chunk_count > 0)
                )
                skeleton.update(tail.line)
                self.skeleton = skeleton
            for chunk, (one, other) in enumerate(zip(sums[tail.algorithm], tail.checksums)):
                if one != other:
                    raise IntegrityError(f"the checksum is {one}, expected {other}", chunk=chunk)
            if fault is not None:
                raise fault
        except JsonckptError:
            if self._spool is not None:
                self._spool.cut(spooled)
            raise
        self._records += 1
        self._chunks += header.chunk_count
        self._raw += header.nbytes
        self.algorithm = tail.algorithm
        chunks = tuple((*place, item) for place, item in zip(places, tail.checksums))
        return FoundRecord(header, tail.algorithm, chunks)

    def _payloads(
        self, header: Header
    ) -> tuple[list[tuple[int, int]], dict[str, list[str]], JsonckptError | None]:
        """Read the lines of the chunks.

        Returns:
            the place of each payload; its checksum by each algorithm that may be in use; the first
            fault. After a fault the lists are incomplete.
        """
        places: list[tuple[int, int]] = []
        sums: dict[str, list[str]] = {name: [] for name in self._algorithms()}
        fault: JsonckptError | None = None
        for chunk in range(header.chunk_count):
            start = chunk * header.codec.chunk_bytes
            nbytes = min(header.codec.chunk_bytes, header.nbytes - start)
            longest = longest_payload(nbytes, header.codec, header.dtype)
            at, line, whole = self._lines.next(longest + 4)
            payload = (
                _payload(line, header, last=chunk == header.chunk_count - 1) if whole else None
            )
            if payload is None:
                if line:
                    self._lines.push(at, line)
                return places, sums, fault or FormatError(_what_is_broken(line), chunk=chunk)
            if fault is not None:
                continue
            raw = self._memory(nbytes)
            try:
                self._coder.decode_into(memoryview(payload), header.codec, header.dtype, raw)
            except JsonckptError as error:
                fault = error.at(chunk=chunk)
                continue
            for name, found in sums.items():
                found.append(hexdigest(name, raw))
            if self._spool is not None:
                places.append((self._spool.tell(), len(payload)))
                self._spool.write(payload)
            else:
                places.append((at + 1, len(payload)))
        return places, sums, fault

    def _tail(self, header: Header, fault: JsonckptError | None) -> _Tail:
        """Read the last line of a record, and confirm it by the record's digest.

        Args:
            fault: in the payloads. After it any line may be a part of a payload, and is skipped.
        """
        while True:
            at, line, whole = self._lines.next(longest_tail(header.chunk_count, "sha256"))
            ends = not line or record_start(line) == 0 or line.startswith(b'],"index":')
            try:
                if ends or not whole or not line.startswith(b"]"):
                    raise FormatError(_what_is_broken(line))
                value, length = _parse_tail(line)
                break
            except (ValueError, RecursionError) as error:
                if fault is not None and not ends:
                    continue
                if line:
                    self._lines.push(at, line)
                if fault is not None:
                    raise fault from error
                why = error.message if isinstance(error, JsonckptError) else "it is not JSON"
                raise FormatError(f"its last line is damaged: {why}") from error
        # If the line feed after the record is damaged, the next record is on the same line.
        rest = line[length:]
        start = record_start(rest)
        if start >= 0:
            self._lines.push(at + length + start, rest[start:])
            rest = b",\n"
        try:
            return _Tail(line[:length] + rest, *self._confirmed(header, value))
        except JsonckptError as error:
            if is_refusal(error):
                raise
            raise fault or error from error

    def _confirmed(self, header: Header, tail: Mapping[str, Any]) -> tuple[str, list[str]]:
        """The algorithm and the checksums that a tail states, if its digest confirms them."""
        check_requires(tail.get("requires", []))
        present = [name for name in ALGORITHMS if name in tail]
        if self.algorithm is None and len(present) == 1:
            ALGORITHMS[present[0]].start()  # an error if its package is missing
        if len(present) != 1 or present[0] not in self._algorithms():
            raise FormatError("its checksums are missing")
        algorithm = present[0]
        sums, digits = tail[algorithm], ALGORITHMS[algorithm].digits
        if (
            not isinstance(sums, list)
            or len(sums) != header.chunk_count
            or not all(is_hex(item, digits) for item in sums)
        ):
            raise FormatError(f"it has no {header.chunk_count} checksums")
        lines = identity_lines(header, sums)
        if tail.get("digest") != hexdigest(algorithm, lines):
            raise IntegrityError("its name, dtype, shape or checksums do not match its digest")
        return algorithm, sums

    def _algorithms(self) -> Sequence[str]:
        """The algorithms that may be in use: all installed ones, until one is known."""
        if self.algorithm is not None:
            return [self.algorithm]
        return [name for name in ALGORITHMS if _is_installed(name)]

    def _memory(self, nbytes: int) -> memoryview:
        if len(self._scratch) < nbytes:
            self._scratch = bytearray(nbytes)
        return memoryview(self._scratch)[:nbytes]


def _parse_tail(line: bytes) -> tuple[dict[str, Any], int]:
    """The members in the last line of a record, and the length of its part of the line."""
    text = (_TAIL_OPENING + line).decode("utf-8", "strict")
    _, end = _DECODER.raw_decode(text)
    record = text[:end].encode()
    value = json_text.parse(record, what="the end of the record")
    assert isinstance(value, dict)
    return value, len(record) - len(_TAIL_OPENING)


def _payload(line: bytes, header: Header, *, last: bool) -> bytes | None:
    """The payload in the line of a chunk; ``None`` if it is not such a line."""
    marks = b"[]" if header.codec.encoding == "list" else b'""'
    end = b"\n" if last else b",\n"
    stop = len(line) - len(end) - 1
    if stop < 1 or not line.endswith(end) or line[:1] != marks[:1] or line[stop] != marks[1]:
        return None
    return line[1:stop]


def _what_is_broken(line: bytes) -> str:
    if not line:
        return "the file ends before it"
    if not line.endswith(b"\n"):
        return "the file ends inside it"
    return "its lines are damaged"


def _is_installed(algorithm: str) -> bool:
    try:
        ALGORITHMS[algorithm].start()
    except JsonckptError:
        return False
    return True
