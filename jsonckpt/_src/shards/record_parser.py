"""One record's own text, read: its head and its tail (format section 3.2).

:class:`IncrementalReader` parses them. Where the manifest has said what a record must say, its
text is first compared with what a writer makes of that: equal bytes need no parser.

Pure: bytes in, facts out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DAMAGED, FormatError, IntegrityError, JsonckptError, LimitError, quote
from ..format.checksums import ALGORITHMS, hexdigest
from ..format.dtypes import DTYPES
from ..format.limits import Limits, exceeds, way_over
from ..format.model import Entry, Header, chunk_count, element_count, identity_lines
from ..format.regions import required_features
from ..format.validation import check_chunking, check_requires, is_hex, parse_codec, parse_identity
from .incremental import IncrementalReader
from .shard_text import record_head, record_tail


@dataclass(frozen=True, slots=True)
class Record:
    """A whole record: its header, its range in the text, its payloads' ranges and checksums."""

    header: Header
    offset: int
    length: int
    chunks: tuple[tuple[int, int, str], ...]


def parse_header(found: dict[str, Any], limits: Limits) -> Header:
    """What the members of a record before its data say, checked.

    Raises:
        FormatError, LimitError, UnsupportedVersionError: they do not make sense together, are over
            a limit, or ask for a feature that is not known.
    """
    check_requires(found.get("requires", []))
    name, dtype, shape, device, layout = parse_identity(found, limits)
    for feature in required_features([name]):
        if feature not in found.get("requires", []):
            raise FormatError(f"requires must name {quote(feature)} in a region", tensor=name)
    try:
        codec = parse_codec(found, limits)
    except JsonckptError as error:
        error.at(tensor=name)
        raise
    nbytes = element_count(shape) * DTYPES[dtype].itemsize
    check_chunking(dtype, shape, codec, chunk_count(nbytes, codec.chunk_bytes))
    return Header(name, dtype, shape, device, codec, nbytes, layout=layout)


class RecordParser:
    """Reads records, one after the other: :meth:`head`, then :meth:`tail`.

    Between the two lie the payloads, on lines of their own. The caller checks these lines; the
    parser gets the text without them, as if ``chunks`` were empty.

    Args:
        json: stands at the beginning of the array of records.
        expected: what the manifest says of the records, in order, when it has been read before.

    Attributes:
        header: of the record that is open.
    """

    def __init__(
        self,
        limits: Limits,
        json: IncrementalReader,
        algorithm: str,
        *,
        expected: Sequence[Entry],
    ) -> None:
        self.header: Header | None = None
        self._limits = limits
        self._json = json
        self._level = json.begin_elements()
        self._algorithm = algorithm
        self._expected = expected
        self._entry: Entry | None = None
        self._count = 0
        self._parsed = False

    def head(self, line: bytes) -> Header:
        """Read the line that begins a record.

        Raises:
            FormatError, LimitError: what it breaks.
        """
        self._entry = None
        if self._count < len(self._expected):
            entry = self._expected[self._count]
            if line == record_head(entry):
                self._entry = entry
        self.header = header = self._entry or self._parse_head(line)
        if exceeds(header.chunk_count, self._limits.chunks):
            raise LimitError(
                f"{header.chunk_count} chunks, the limit is {self._limits.chunks}",
                tensor=header.name,
                hint=way_over("chunks"),
            )
        return header

    def tail(self, body: bytes) -> list[str]:
        """Read the text that ends a record; return the checksums of its chunks.

        Raises:
            FormatError: what it breaks.
            IntegrityError: it does not match its digest.
        """
        header, entry = self.header, self._entry
        assert header is not None
        if entry is not None:
            sums = [checksum for _, _, checksum in entry.chunks]
            if body != record_tail(self._algorithm, header, sums):
                self._parse_head(record_head(entry))
                entry = None
        if entry is None:
            sums = self._parse_tail(header, body)
        self._count += 1
        self.header = None
        return sums

    def _parse_head(self, line: bytes) -> Header:
        json = self._json
        json.push(b"," + line if self._parsed else line)
        self._parsed = True
        records, *inside = json.open[self._level - 1 :]
        if len(records) != 1 or len(inside) != 2 or inside[1] is not inside[0].get("chunks"):
            raise FormatError('the head of a record must end in its member "chunks"')
        return parse_header(inside[0], self._limits)

    def _parse_tail(self, header: Header, body: bytes) -> list[str]:
        json = self._json
        try:
            json.push(body)
        except JsonckptError as error:
            error.at(tensor=header.name)
            raise
        records = json.open[-1]
        if len(json.open) != self._level or len(records) != 1:
            raise FormatError("the end of a record must be on one line", tensor=header.name)
        found = records.pop()
        if found["chunks"]:
            raise FormatError(f"over {header.chunk_count} chunks", tensor=header.name)
        return tail_sums(header, found, self._algorithm)


def tail_sums(header: Header, found: dict[str, Any], algorithm: str) -> list[str]:
    """The checksums of a record's chunks, from its members.

    Raises:
        FormatError: they are not what the header asks for.
        IntegrityError: the record does not match its digest.
    """
    check_requires(found.get("requires", []))
    present = [name for name in ALGORITHMS if name in found]
    if present != [algorithm]:
        raise FormatError(
            f"expected the checksums {quote(algorithm)}, found {quote(present)}",
            tensor=header.name,
        )
    sums, digits = found[algorithm], ALGORITHMS[algorithm].digits
    if (
        not isinstance(sums, list)
        or len(sums) != header.chunk_count
        or not all(is_hex(item, digits) for item in sums)
    ):
        raise FormatError(
            f"{algorithm} must be an array of {header.chunk_count} checksums",
            tensor=header.name,
        )
    digest = hexdigest(algorithm, identity_lines(header, sums))
    if found.get("digest") != digest:
        raise IntegrityError(
            f"the record does not match its digest (expected {quote(found.get('digest'))}, "
            f"found {digest!r})",
            tensor=header.name,
            hint=DAMAGED,
        )
    return sums
