"""Finds every intact record of a damaged text, reading it forward once. Pure.

The readers refuse a file at its first fault. Here a fault costs only its record: the scan continues
at the next line that opens a record.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from ..errors import (
    JsonckptError,
    LimitError,
    UnsupportedVersionError,
    is_refusal,
    printable,
    quote,
)
from ..format import json_text
from ..format.checksums import ALGORITHMS, hasher
from ..format.limits import Limits, way_over
from ..format.model import SHARD_FORMAT, Header
from ..format.validation import LONGEST_LINE, check_header, known_versions
from ..shards.shard_text import TRAILER_MAX, index_offset
from ..storage.protocols import ByteSource
from .scan_lines import LineReader, record_start
from .scan_record import FoundRecord, RecordScanner, Spool

_TENSORS: Final = b'"tensors":[\n'
_HEAD: Final = re.compile(rb'\{[ \t]*"format"[ \t]*:')
_SEAL: Final = re.compile(
    rb',"seal":"([a-z0-9_]{1,16}:[0-9a-f]{1,128})","index_offset": *[0-9]+\}\n\Z'
)
_NO_LIMIT: Final = 1 << 40


@dataclass(frozen=True)
class LostTensor:
    """A tensor that is not intact, and why.

    Attributes:
        name: the tensor; ``None`` if even the name is lost.
        reason: what was found.
        file: where it was searched; ``""`` if it is in no file.
        chunk: the first damaged chunk, if it is a chunk.
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
class ScanResult:
    """What is left of a damaged text.

    Attributes:
        head: the members before the records, if they can be read.
        head_fault: why they cannot be read; else ``""``.
        ended: whether the last line of the file was found.
        sealed: whether the seal matches the head and the records.
        wrong_version: whether the head states a different version than the seal matches.
        rewritten: whether a JSON tool wrote the text again, so that no seal can match.
        position: bytes of text that were read.
        found, lost: the intact records, and the others.
    """

    head: dict[str, Any] | None = None
    head_fault: str = "it is missing"
    ended: bool = False
    sealed: bool = False
    wrong_version: bool = False
    rewritten: bool = False
    position: int = 0
    found: list[FoundRecord] = field(default_factory=list)
    lost: list[LostTensor] = field(default_factory=list)


def scan(
    source: ByteSource,
    limits: Limits,
    *,
    spool: Spool | None = None,
    fault_in: Callable[[int, int], str] | None = None,
) -> ScanResult:
    """Find every intact record of a text.

    Args:
        source: a shard or a single file, or what is left of one.
        spool: takes the payloads of the intact records if the source cannot be read again.
        fault_in: says why a part of the text could not be read; ``""`` if it could.

    Raises:
        UnsupportedVersionError: it has a version, or requires a feature, that is not known.
        LimitError: it holds more than the limits allow.
        JsonckptError: the source itself cannot be read.
    """
    scanner = _Scanner(source, limits, spool, fault_in)
    # Nothing may be taken from a file of an unknown version. But if the seal matches a known
    # version, the file is of that version and the number is damaged.
    try:
        scanner.run()
    except JsonckptError:
        if scanner.unknown_version is not None:
            raise scanner.unknown_version from None
        raise
    if scanner.unknown_version is not None:
        if not scanner.result.sealed:
            raise scanner.unknown_version
        scanner.result.wrong_version = True
    return scanner.result


class _Scanner:
    """One scan: the head of the file, its records, its end."""

    def __init__(
        self,
        source: ByteSource,
        limits: Limits,
        spool: Spool | None,
        fault_in: Callable[[int, int], str] | None,
    ) -> None:
        self.result = ScanResult()
        #: The error from the head, if the head is valid in a known version.
        self.unknown_version: UnsupportedVersionError | None = None
        self._fault_in = fault_in
        self._lines = LineReader(source)
        self._limits = limits.for_text(source.size)
        self._records = RecordScanner(self._lines, self._limits, source.size, spool)

    def run(self) -> None:
        """Read all of the text."""
        result, most = self.result, self._limits.manifest_bytes
        longest_head = _NO_LIMIT if most is None else most
        head: bytearray | None = bytearray()
        too_long = False
        while True:
            # Only the lines of the head and the last line of the file may be long.
            long = head is not None or self._lines.first() == b"]"
            at, line, whole = self._lines.next(longest_head if long else LONGEST_LINE)
            if not line:
                break
            start = record_start(line)
            if start >= 0:
                head = None
                self._record(at + start, line[start:])
            elif head is not None and line == _TENSORS:
                if not too_long:
                    self._read_head(bytes(head + line))
                elif not head or _HEAD.match(head):
                    raise LimitError(
                        f"the head is larger than the limit of {most} bytes",
                        hint=way_over("manifest_bytes", "None"),
                    )
                head = None
            elif head is not None:
                # If the line that ends the head is damaged, this may be a tensor.
                if not too_long and whole and len(head) + len(line) <= longest_head:
                    head += line
                else:
                    result.head_fault, too_long = "it is larger than the limits allow", True
            elif line[:1] == b"]":
                self._read_end(at, line)
        result.position = self._lines.position
        if self._lines.gave_up:
            reason = f"at byte {result.position}: too many short lines; the rest was not searched"
            result.lost.append(LostTensor(None, reason))

    def _read_head(self, text: bytes) -> None:
        try:
            self._take_head(text)
        except UnsupportedVersionError as error:
            for guess in known_versions(text):
                with suppress(JsonckptError):
                    self._take_head(guess)
                    self.unknown_version = error
                    return
            raise

    def _take_head(self, text: bytes) -> None:
        result = self.result
        try:
            value = json_text.parse(
                text[: -len(_TENSORS)] + b'"tensors":null}',
                what="the head",
                max_depth=self._limits.depth or 1_000,
                max_number=self._limits.number_chars or 1 << 20,
                max_marks=self._limits.marks,
            )
            result.head = check_header(value, SHARD_FORMAT)
        except JsonckptError as error:
            if is_refusal(error):
                raise
            result.head_fault = str(error)
            return
        result.head_fault = ""
        algorithm = result.head.get("checksum")
        if isinstance(algorithm, str) and algorithm in ALGORITHMS:
            self._records.algorithm = algorithm
            self._records.skeleton = hasher(algorithm)
            self._records.skeleton.update(text)

    def _record(self, at: int, line: bytes) -> None:
        header: Header | None = None
        try:
            header = self._records.header(line)
            self.result.found.append(self._records.body(header, line))
        except JsonckptError as error:
            # A chunk that is over a limit may be damaged.
            if is_refusal(error) and error.chunk is None:
                raise
            if header is None:
                self._records.skeleton = None
            unread = self._fault_in(at, self._lines.next_at) if self._fault_in is not None else ""
            reason = unread or error.message
            if header is None:
                reason = f"at byte {at}: {reason}"
            name = header.name if header is not None else error.tensor
            self.result.lost.append(LostTensor(name, reason, chunk=error.chunk))

    def _read_end(self, at: int, line: bytes) -> None:
        seal = _SEAL.search(line, max(0, len(line) - TRAILER_MAX))
        if seal is None:
            return
        self.result.ended = True
        skeleton = self._records.skeleton
        if skeleton is not None:
            skeleton.update(line[: seal.start()])
            found = f"{self._records.algorithm}:{skeleton.hexdigest()}"
            self.result.sealed = seal[1].decode() == found
        # Damage moves nothing. If the tensors are all there, but not where they were, someone
        # edited the text before them.
        stated = index_offset(line[-TRAILER_MAX:])
        moved = stated not in (None, at + len(b'],"index":'))
        self.result.rewritten = moved and not (self.result.sealed or self.result.lost)
