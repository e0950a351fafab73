"""The text of a shard, written: what stands around the payloads (format section 3).

Pure text in, pure text out; :class:`ShardText` keeps count of positions while the pieces pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from ..format import json_text
from ..format.checksums import hasher, hexdigest
from ..format.model import (
    FORMAT_VERSION,
    SHARD_FORMAT,
    Entry,
    Header,
    entry_of,
    identity_lines,
    optional_members,
)
from ..format.regions import FEATURE, PREFIX

#: No seal and index offset take more bytes at the end of a file than this.
TRAILER_MAX = 256
_OFFSET_WIDTH = 20
_OFFSET = re.compile(
    rb',"seal":"[a-z0-9_]{1,16}:[0-9a-f]{1,128}","index_offset":( *[0-9]{1,20})\}\n\Z'
)

#: How a file of records begins, as every writer writes it.
_BEGINNING = re.compile(
    rb'\{"format":"jsonckpt\.shard","version":[0-9]+,"save_id":"[0-9a-f]{32}",'
    rb'"checksum":"[a-z0-9_]{1,16}",\r?\n'
)


def index_row(offset: int, length: int, chunks: Sequence[tuple[int, int, str]]) -> bytes:
    """One row of ``index``."""
    places = ",".join([f"[{start},{size}]" for start, size, _ in chunks])
    return f"[{offset},{length},[{places}]]".encode()


def trailer(index: bytes | bytearray, seal: str, start: int) -> bytes:
    """The text from the bracket that closes the records to the end of the file.

    Args:
        index: the rows, joined with commas.
        start: the position of that bracket.
    """
    opening = b'],"index":'
    offset = start + len(opening)
    tail = f'],"seal":"{seal}","index_offset":{offset:{_OFFSET_WIDTH}d}}}\n'.encode()
    return opening + b"[" + index + tail


def index_offset(tail: bytes) -> int | None:
    """Where the index begins, read from the last bytes of a file; ``None`` when they do not say."""
    match = _OFFSET.search(tail)
    return int(match[1]) if match and len(match[1]) == _OFFSET_WIDTH else None


def is_laid_out(beginning: bytes) -> bool:
    """Whether a file of records begins in the layout of a writer."""
    return _BEGINNING.match(beginning) is not None


def has_crlf(tail: bytes) -> bool:
    """Whether the last bytes of a file are whole, but for CRLF instead of the line feed."""
    return tail.endswith(b"\r\n") and index_offset(tail[:-2] + b"\n") is not None


def shard_head(
    save_id: str,
    checksum: str,
    members: Mapping[str, bytes] | None = None,
    requires: Mapping[str, json_text.Json] | None = None,
) -> bytes:
    """Everything before the first record.

    Args:
        members: further members as JSON text, by name: those of a single-file checkpoint.
        requires: the member of that name, if it needs one.
    """
    first: dict[str, json_text.Json] = {
        "format": SHARD_FORMAT,
        "version": FORMAT_VERSION,
        **(requires or {}),
        "save_id": save_id,
        "checksum": checksum,
    }
    text = json_text.dump(first)[:-1]
    for name, value in (members or {}).items():
        text += b",\n" + json_text.dump(name) + b":" + value
    return text + b',\n"tensors":[\n'


def record_head(header: Header) -> bytes:
    """A record up to its first payload's line."""
    codec = header.codec
    sizes = ",".join(map(str, header.shape))
    requires = f',"requires":["{FEATURE}"]' if header.name.startswith(PREFIX) else ""
    return (
        f'{{"name":{json_text.quoted(header.name)},"dtype":"{header.dtype}","shape":[{sizes}]'
        f"{optional_members(header)}{requires},"
        f'"encoding":"{codec.encoding}","compression":"{codec.compression}",'
        f'"filter":"{codec.filter}","chunk_bytes":{codec.chunk_bytes},"chunks":[\n'
    ).encode()


def record_tail(algorithm: str, header: Header, sums: Sequence[str]) -> bytes:
    """A record after its last payload's line."""
    quoted = '","'.join(sums)
    listed = f'["{quoted}"]' if sums else "[]"
    digest = hexdigest(algorithm, identity_lines(header, sums))
    return f'],"{algorithm}":{listed},"digest":"{digest}"}}'.encode()


def marks(header: Header) -> tuple[bytes, bytes]:
    """What stands before and after each payload."""
    return (b"[", b"]") if header.codec.encoding == "list" else (b'"', b'"')


class ShardText:
    """The text of one shard as it grows: hands out what to write and notes where it lies.

    Call :meth:`begin`, then for each record :meth:`open_record`, :meth:`add_chunk` and
    :meth:`close_record` (or :meth:`add_record` for a small one), then :meth:`finish`. Each returns
    the bytes to write next; a payload itself is written by the caller between the two pieces that
    :meth:`add_chunk` returns.
    """

    def __init__(self, algorithm: str, shard: int) -> None:
        self.entries: list[Entry] = []
        self.position = 0
        self.seal = ""
        self._algorithm = algorithm
        self._shard = shard
        self._skeleton = hasher(algorithm)
        self._record: Header | None = None
        self._start = 0
        self._chunks: list[tuple[int, int, str]] = []

    def begin(self, head: bytes) -> bytes:
        """The first bytes of the file."""
        return self._skeletal(head)

    def open_record(self, header: Header) -> bytes:
        """The head of the next record."""
        separator = b",\n" if self.entries else b""
        self._start = self.position + len(separator)
        self._record, self._chunks = header, []
        return self._skeletal(separator + record_head(header))

    def add_chunk(self, payload_length: int, checksum: str) -> tuple[bytes, bytes]:
        """What stands before and after the next payload."""
        assert self._record is not None
        opening, closing = marks(self._record)
        before = (b",\n" if self._chunks else b"") + opening
        self._skeletal(before)
        self._chunks.append((self.position, payload_length, checksum))
        self.position += payload_length
        return before, self._skeletal(closing)

    def close_record(self) -> bytes:
        """The tail of the record."""
        assert self._record is not None
        text = self._skeletal((b"\n" if self._chunks else b"") + self._tail(self._record))
        self._note(self._record)
        self._record = None
        return text

    def add_record(
        self, header: Header, payload: Sequence[bytes | memoryview], checksum: str
    ) -> bytes:
        """A whole record of one chunk: what the three calls make, in a third of their time."""
        separator = b",\n" if self.entries else b""
        opening, closing = marks(header)
        before = separator + record_head(header) + opening
        self._start = self.position + len(separator)
        place, length = self.position + len(before), sum(map(len, payload))
        self._chunks = [(place, length, checksum)]
        after = closing + b"\n" + self._tail(header)
        self._skeleton.update(before + after)
        self.position = place + length + len(after)
        self._note(header)
        return b"".join((before, *payload, after))

    def finish(self) -> bytes:
        """The end of the file."""
        rows = [index_row(e.offset, e.length, e.chunks) for e in self.entries]
        index = b",".join(rows)
        before = self._skeletal(b"\n" if self.entries else b"")
        self._skeleton.update(b'],"index":[' + index + b"]")
        self.seal = f"{self._algorithm}:{self._skeleton.hexdigest()}"
        tail = trailer(index, self.seal, self.position)
        self.position += len(tail)
        return before + tail

    def _tail(self, header: Header) -> bytes:
        sums = [checksum for _, _, checksum in self._chunks]
        return record_tail(self._algorithm, header, sums)

    def _note(self, header: Header) -> None:
        """The record that ends here is written."""
        length = self.position - self._start
        self.entries.append(entry_of(header, self._shard, self._start, length, tuple(self._chunks)))

    def _skeletal(self, text: bytes) -> bytes:
        self._skeleton.update(text)
        self.position += len(text)
        return text
