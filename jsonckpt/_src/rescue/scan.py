"""What is left of a damaged file of records: every record that is wholly intact, found forward.

The readers refuse a file at its first fault. Here a fault costs the record that it lies in: after
it, the search goes on at the next line that opens a record. A record counts as intact only when
each chunk has its checksum and the record its digest, so nothing that was not saved gets through.

Pure: bytes in, facts out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from ..errors import (
    FormatError,
    IntegrityError,
    JsonckptError,
    LimitError,
    UnsupportedVersionError,
    is_refusal,
    printable,
    quote,
)
from ..format import json_text
from ..format.checksums import ALGORITHMS, Hasher, hasher, hexdigest
from ..format.chunk_codec import ChunkCodec, longest_payload
from ..format.limits import Limits, exceeds, way_over
from ..format.model import SHARD_FORMAT, Header, identity_lines
from ..format.record_parser import parse_header
from ..format.shard_text import TRAILER_MAX
from ..format.validation import (
    LONGEST_LINE,
    check_header,
    check_requires,
    is_hex,
    known_versions,
    longest_tail,
)
from ..storage.protocols import ByteSource
from .scan_lines import LineReader, record_header, record_start

_TENSORS: Final = b'"tensors":[\n'
_HEAD: Final = re.compile(rb'\{[ \t]*"format"[ \t]*:')
_SEAL: Final = re.compile(
    rb',"seal":"([a-z0-9_]{1,16}:[0-9a-f]{1,128})","index_offset": *[0-9]+\}\n\Z'
)
_DECODER: Final = json.JSONDecoder()


@dataclass(frozen=True)
class Found:
    """An intact record.

    ``chunks`` are ``(offset, length, checksum)`` of its payloads in the text, or in the spool.
    """

    header: Header
    algorithm: str
    chunks: tuple[tuple[int, int, str], ...]


@dataclass(frozen=True)
class LostTensor:
    """A record that is not intact: its name as far as it could be read, and what is wrong.

    Attributes:
        name: the tensor; ``None`` where even the name is lost.
        reason: what was found.
        file: where it was looked for; ``""`` when it is in no file.
        chunk: the first chunk that is damaged, when it is a chunk.
    """

    name: str | None
    reason: str
    file: str = ""
    chunk: int | None = None

    def __str__(self) -> str:
        name = "a tensor without a name" if self.name is None else quote(self.name)
        chunk = f", chunk {self.chunk}" if self.chunk is not None else ""
        where = f" ({self.file})" if self.file else ""
        return printable(f"{name}{chunk}: {self.reason}{where}")


@dataclass
class Scan:
    """What a file still holds.

    Attributes:
        head: the members before the records, where they can be read.
        head_fault: why not, else ``""``.
        ended: whether the line that ends a file is there.
        sealed: whether the seal vouches for the head, and for what the records say of themselves.
        misread: whether the head says another version than the one that the seal vouches for.
        position: bytes of text that were read.
    """

    head: dict[str, Any] | None = None
    head_fault: str = "it is missing"
    ended: bool = False
    sealed: bool = False
    misread: bool = False
    position: int = 0
    found: list[Found] = field(default_factory=list)
    lost: list[LostTensor] = field(default_factory=list)


class Spool(Protocol):
    """Where payloads are kept that cannot be read a second time."""

    def tell(self) -> int: ...
    def write(self, data: bytes, /) -> int: ...
    def cut(self, length: int) -> None:
        """Forget what was written after ``length`` bytes."""


def scan(
    source: ByteSource,
    limits: Limits,
    *,
    spool: Spool | None = None,
    fault_in: Callable[[int, int], str] | None = None,
) -> Scan:
    """Find every intact record of a text.

    Args:
        source: a shard or a single file, or what is left of one.
        spool: takes the payloads of the intact records where the source cannot be read again.
        fault_in: says why a part of the text could not be read; ``""`` when it could.

    Raises:
        UnsupportedVersionError: it has a version, or requires a feature, that is not known.
        LimitError: it holds more than the limits allow.
        JsonckptError: the source itself cannot be read.
    """
    return _Scanner(source, limits, spool, fault_in).run()


class _Scanner:
    """One scan under way."""

    def __init__(
        self,
        source: ByteSource,
        limits: Limits,
        spool: Spool | None,
        fault_in: Callable[[int, int], str] | None,
    ) -> None:
        self._fault_in = fault_in
        self._lines = LineReader(source)
        self._limits = limits.for_text(source.size)
        self._spool = spool
        self._coder = ChunkCodec(zstd_window=limits.zstd_window)
        self._scratch = bytearray()
        self._algorithm: str | None = None
        self._chunks = 0
        self._raw = 0
        self._size = source.size
        #: Over the text around the payloads; ``None`` when some of it is not known.
        self._skeleton: Hasher | None = None
        self._scan = Scan()
        #: Why the version or a feature that the head asks for is not known.
        self._refusal: UnsupportedVersionError | None = None

    def run(self) -> Scan:
        # What a file of another version means nobody here knows: no part of it may be taken. But
        # where the seal fits a version that is known, the number was damaged.
        try:
            scan = self._run()
        except JsonckptError:
            if self._refusal is not None:
                raise self._refusal from None
            raise
        if self._refusal is not None and not scan.sealed:
            raise self._refusal
        scan.misread = self._refusal is not None
        return scan

    def _run(self) -> Scan:
        scan = self._scan
        head: bytearray | None = bytearray()
        over = False
        while True:
            # The head may have long lines, and so may the line that ends the file.
            long = head is not None or self._lines.first() == b"]"
            limit = self._head_limit() if long else LONGEST_LINE
            at, line, whole = self._lines.next(limit)
            if not line:
                break
            start = record_start(line)
            if start >= 0:
                head = None
                self._record(at + start, line[start:])
            elif head is not None and line == _TENSORS:
                if over:
                    self._head_is_over(head)
                self._read_head(bytes(head + line))
                head = None
            elif head is not None:
                # Where the line that ends a head is damaged, this may be tensors.
                if not over and whole and len(head) + len(line) <= self._head_limit():
                    head += line
                else:
                    scan.head_fault, over = "it is larger than the limits allow", True
            elif line[:1] == b"]":
                self._read_trailer(line)
        scan.position = self._lines.position
        if self._lines.given_up:
            reason = f"at byte {scan.position}: lines without end; what follows was not searched"
            scan.lost.append(LostTensor(None, reason))
        return scan

    def _read_trailer(self, line: bytes) -> None:
        seal = _SEAL.search(line, max(0, len(line) - TRAILER_MAX))
        if seal is None:
            return
        self._scan.ended = True
        if self._skeleton is not None:
            self._skeleton.update(line[: seal.start()])
            found = f"{self._algorithm}:{self._skeleton.hexdigest()}"
            self._scan.sealed = seal[1].decode() == found

    def _head_is_over(self, head: bytearray) -> None:
        limit = self._limits.manifest_bytes
        if not head or _HEAD.match(head):
            raise LimitError(
                f"the head is larger than the limit of {limit} bytes",
                hint=way_over("manifest_bytes", "None"),
            )

    def _head_limit(self) -> int:
        limit = self._limits.manifest_bytes
        return 1 << 40 if limit is None else limit

    def _read_head(self, text: bytes) -> None:
        try:
            self._take_head(text)
        except UnsupportedVersionError as error:
            for guess in known_versions(text):
                with suppress(JsonckptError):
                    self._take_head(guess)
                    self._refusal = error
                    return
            raise

    def _take_head(self, text: bytes) -> None:
        try:
            value = json_text.parse(
                text[: -len(_TENSORS)] + b'"tensors":null}',
                what="the head",
                max_depth=self._limits.depth or 1_000,
                max_number=self._limits.number_chars or 1 << 20,
                max_marks=self._limits.marks,
            )
            self._scan.head = check_header(value, SHARD_FORMAT)
        except JsonckptError as error:
            if is_refusal(error):
                raise
            self._scan.head_fault = str(error)
            return
        self._scan.head_fault = ""
        algorithm = self._scan.head.get("checksum")
        if isinstance(algorithm, str) and algorithm in ALGORITHMS:
            self._algorithm = algorithm
            self._skeleton = hasher(algorithm)
            self._skeleton.update(text)

    # --- records ----------------------------------------------------------------------------

    def _record(self, at: int, line: bytes) -> None:
        mark = self._spool.tell() if self._spool is not None else 0
        header: Header | None = None
        skeleton, self._skeleton = self._skeleton, None
        try:
            header = self._header(line)
            if skeleton is not None:
                skeleton.update(line)
            record = self._body(header, skeleton)
        except JsonckptError as error:
            if self._spool is not None:
                self._spool.cut(mark)
            # In a chunk, what asks for too much may as well be damage.
            if is_refusal(error) and error.chunk is None:
                raise
            name = header.name if header is not None else error.tensor
            unread = self._fault_in(at, self._lines.at) if self._fault_in is not None else ""
            why = unread or error.message
            reason = why if header is not None else f"at byte {at}: {why}"
            self._scan.lost.append(LostTensor(name, reason, chunk=error.chunk))
            return
        self._algorithm = record.algorithm
        self._scan.found.append(record)

    def _header(self, line: bytes) -> Header:
        header = parse_header(record_header(line, self._limits.depth or 1_000), self._limits)
        most = None if self._size is None else self._limits.total_bytes(self._size)
        for what, count, limit in (
            ("tensors", len(self._scan.found) + 1, self._limits.tensors),
            ("chunks", self._chunks + header.chunk_count, self._limits.most_chunks(self._size)),
            ("bytes", self._raw + header.nbytes, most),
        ):
            if exceeds(count, limit):
                raise LimitError(f"{count} {what} so far, the limit is {limit}", tensor=header.name)
        return header

    def _body(self, header: Header, skeleton: Hasher | None) -> Found:
        """The rest of a record. Reads to its end where that can be found, also behind a fault."""
        fault: JsonckptError | None = None
        places: list[tuple[int, int]] = []
        sums: dict[str, list[str]] = {name: [] for name in self._algorithms()}
        for chunk in range(header.chunk_count):
            start = chunk * header.codec.chunk_bytes
            nbytes = min(header.codec.chunk_bytes, header.nbytes - start)
            longest = longest_payload(nbytes, header.codec, header.dtype)
            at, line, whole = self._lines.next(longest + 4)
            last = chunk == header.chunk_count - 1
            payload = _payload(line, header, last=last) if whole else None
            if payload is None:
                if line:
                    self._lines.push(at, line)
                fault = fault or FormatError(_broken_line(line), chunk=chunk)
                break
            if fault is not None:
                continue
            try:
                out = self._memory(nbytes)
                self._coder.decode_into(memoryview(payload), header.codec, header.dtype, out)
            except JsonckptError as error:
                fault = error.at(chunk=chunk)
                continue
            for name, found in sums.items():
                found.append(hexdigest(name, out))
            if self._spool is not None:
                places.append((self._spool.tell(), len(payload)))
                self._spool.write(payload)
            else:
                places.append((at + 1, len(payload)))
        algorithm, expected, tail = self._tail(header, fault)
        if skeleton is not None:
            # The record's digest has confirmed its head and tail: with them the seal can be
            # checked, whatever became of the payloads between them.
            marks = b"[]" if header.codec.encoding == "list" else b'""'
            count = header.chunk_count
            skeleton.update(b",\n".join([marks] * count) + b"\n" * (count > 0))
            skeleton.update(tail)
            self._skeleton = skeleton
        for chunk, (one, other) in enumerate(zip(sums[algorithm], expected)):
            if one != other:
                raise IntegrityError(f"the checksum is {one}, expected {other}", chunk=chunk)
        if fault is not None:
            raise fault
        self._chunks += header.chunk_count
        self._raw += header.nbytes
        chunks = tuple((*place, item) for place, item in zip(places, expected))
        return Found(header, algorithm, chunks)

    def _tail(self, header: Header, fault: JsonckptError | None) -> tuple[str, list[str], bytes]:
        """The checksum algorithm and the checksums, which the record's digest confirms; the line.

        Behind a fault, lines that are no tail are what is left of the payloads.
        """
        opening = b'{"chunks":['
        while True:
            at, line, whole = self._lines.next(longest_tail(header.chunk_count, "sha256"))
            ends = not line or record_start(line) == 0 or line.startswith(b'],"index":')
            try:
                if ends or not whole or not line.startswith(b"]"):
                    raise FormatError(_broken_line(line))
                text = (opening + line).decode("utf-8", "strict")
                _, end = _DECODER.raw_decode(text)
                encoded = text[:end].encode()
                value = json_text.parse(encoded, what="the end of the record")
                break
            except (ValueError, RecursionError) as error:
                if fault is not None and not ends:
                    continue
                if line:
                    self._lines.push(at, line)
                if fault is not None:
                    raise fault from error
                raise FormatError(f"its last line is damaged: {_reason(error)}") from error
        # The line feed behind the record may be damaged, while the next record is not.
        behind = len(encoded) - len(opening)
        rest = line[behind:]
        start = record_start(rest)
        if start >= 0:
            self._lines.push(at + behind + start, rest[start:])
            rest = b",\n"
        assert isinstance(value, dict)
        try:
            return *self._confirmed(header, value), line[:behind] + rest
        except JsonckptError as error:
            if is_refusal(error):
                raise
            raise fault or error from error

    def _confirmed(self, header: Header, value: Mapping[str, Any]) -> tuple[str, list[str]]:
        check_requires(value.get("requires", []))
        present = [name for name in ALGORITHMS if name in value]
        if self._algorithm is None and len(present) == 1:
            ALGORITHMS[present[0]].start()  # says so when its package is missing
        if len(present) != 1 or present[0] not in self._algorithms():
            raise FormatError("its checksums are not there")
        algorithm = present[0]
        sums, digits = value[algorithm], ALGORITHMS[algorithm].digits
        if (
            not isinstance(sums, list)
            or len(sums) != header.chunk_count
            or not all(is_hex(item, digits) for item in sums)
        ):
            raise FormatError(f"it has no {header.chunk_count} checksums")
        if value.get("digest") != hexdigest(algorithm, identity_lines(header, sums)):
            raise IntegrityError("its name, dtype, shape or checksums do not match its digest")
        return algorithm, sums

    def _algorithms(self) -> Sequence[str]:
        """The checksums that may be in use: all, until the head or a record says which."""
        if self._algorithm is not None:
            return [self._algorithm]
        return [name for name in ALGORITHMS if _installed(name)]

    def _memory(self, nbytes: int) -> memoryview:
        if len(self._scratch) < nbytes:
            self._scratch = bytearray(nbytes)
        return memoryview(self._scratch)[:nbytes]


def _installed(algorithm: str) -> bool:
    try:
        ALGORITHMS[algorithm].start()
    except JsonckptError:
        return False
    return True


def _payload(line: bytes, header: Header, *, last: bool) -> bytes | None:
    """The payload in a chunk's line, or ``None`` when it is no such line."""
    marks = b"[]" if header.codec.encoding == "list" else b'""'
    end = b"\n" if last else b",\n"
    stop = len(line) - len(end) - 1
    if stop < 1 or not line.endswith(end) or line[:1] != marks[:1] or line[stop] != marks[1]:
        return None
    return line[1:stop]


def _broken_line(line: bytes) -> str:
    if not line:
        return "the file ends before it"
    if not line.endswith(b"\n"):
        return "the file ends inside it"
    return "its lines are damaged"


def _reason(error: BaseException) -> str:
    return error.message if isinstance(error, JsonckptError) else "it is not JSON"
