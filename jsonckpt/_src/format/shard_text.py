"""The text of a shard, written: what stands around the payloads (format section 3).

Pure text in, pure text out; :class:`ShardText` keeps count of positions while the pieces pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from . import json_text
from .checksums import hasher, hexdigest
from .model import FORMAT_VERSION, PLAIN, SHARD_FORMAT, Codec, Entry, Layout, identity_lines

#: No seal and index offset take more bytes at the end of a file than this.
TRAILER_MAX = 256
_OFFSET_WIDTH = 20
_OFFSET = re.compile(
    rb',"seal":"[a-z0-9_]{1,16}:[0-9a-f]{1,128}","index_offset":( *[0-9]{1,20})\}\n\Z'
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


def shard_head(save_id: str, checksum: str, members: Mapping[str, bytes] | None = None) -> bytes:
    """Everything before the first record.

    Args:
        members: further members as JSON text, by name: those of a single-file checkpoint.
    """
    parts = [
        b'{"format":' + json_text.dump(SHARD_FORMAT),
        b'"version":' + json_text.dump(FORMAT_VERSION),
        b'"save_id":' + json_text.dump(save_id),
        b'"checksum":' + json_text.dump(checksum),
    ]
    text = b",".join(parts)
    for name, value in (members or {}).items():
        text += b",\n" + json_text.dump(name) + b":" + value
    return text + b',\n"tensors":[\n'


def record_head(
    name: str,
    dtype: str,
    shape: Sequence[int],
    device: str,
    codec: Codec,
    layout: Layout = PLAIN,
) -> bytes:
    """A record up to its first payload's line."""
    place = "" if device == "cpu" else f',"device":"{device}"'
    if layout is not PLAIN:
        place += layout.to_text()
    sizes = ",".join(map(str, shape))
    return (
        f'{{"name":{json_text.quoted(name)},"dtype":"{dtype}","shape":[{sizes}]{place},'
        f'"encoding":"{codec.encoding}","compression":"{codec.compression}",'
        f'"filter":"{codec.filter}","chunk_bytes":{codec.chunk_bytes},"chunks":[\n'
    ).encode()


def record_tail(algorithm: str, sums: Sequence[str], digest: str) -> bytes:
    """A record after its last payload's line."""
    quoted = '","'.join(sums)
    listed = f'["{quoted}"]' if sums else "[]"
    return f'],"{algorithm}":{listed},"digest":"{digest}"}}'.encode()


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
        self._record: tuple[str, str, tuple[int, ...], str, Codec, int, Layout] | None = None
        self._start = 0
        self._chunks: list[tuple[int, int, str]] = []

    def begin(self, head: bytes) -> bytes:
        """The first bytes of the file."""
        return self._skeletal(head)

    def open_record(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        device: str,
        codec: Codec,
        nbytes: int,
        layout: Layout = PLAIN,
    ) -> bytes:
        """The head of the next record."""
        separator = b",\n" if self.entries else b""
        self._start = self.position + len(separator)
        self._record = (name, dtype, shape, device, codec, nbytes, layout)
        self._chunks = []
        return self._skeletal(separator + record_head(name, dtype, shape, device, codec, layout))

    def add_chunk(self, payload_length: int, checksum: str) -> tuple[bytes, bytes]:
        """What stands before and after the next payload."""
        assert self._record is not None
        opening, closing = (b"[", b"]") if self._record[4].encoding == "list" else (b'"', b'"')
        before = (b",\n" if self._chunks else b"") + opening
        self._skeletal(before)
        self._chunks.append((self.position, payload_length, checksum))
        self.position += payload_length
        return before, self._skeletal(closing)

    def add_record(
        self,
        name: str,
        dtype: str,
        shape: tuple[int, ...],
        device: str,
        codec: Codec,
        nbytes: int,
        payload: Sequence[bytes | memoryview],
        checksum: str,
        layout: Layout = PLAIN,
    ) -> bytes:
        """A whole record of one chunk: what the three calls make, in a third of their time."""
        marks = b"[]" if codec.encoding == "list" else b'""'
        separator = b",\n" if self.entries else b""
        before = separator + record_head(name, dtype, shape, device, codec, layout) + marks[:1]
        lines = identity_lines(name, dtype, shape, device, codec, (checksum,))
        tail = record_tail(self._algorithm, (checksum,), hexdigest(self._algorithm, lines))
        after = marks[1:] + b"\n" + tail
        self._skeleton.update(before + after)
        start = self.position + len(separator)
        place = self.position + len(before)
        text = b"".join((before, *payload, after))
        self.position += len(text)
        chunks = ((place, len(text) - len(before) - len(after), checksum),)
        length = self.position - start
        self.entries.append(
            Entry(
                name,
                dtype,
                shape,
                device,
                codec,
                self._shard,
                start,
                length,
                chunks,
                nbytes,
                layout,
            )
        )
        return text

    def close_record(self) -> bytes:
        """The tail of the record."""
        assert self._record is not None
        name, dtype, shape, device, codec, nbytes, layout = self._record
        sums = [checksum for _, _, checksum in self._chunks]
        lines = identity_lines(name, dtype, shape, device, codec, sums)
        tail = record_tail(self._algorithm, sums, hexdigest(self._algorithm, lines))
        text = self._skeletal((b"\n" if self._chunks else b"") + tail)
        length = self.position - self._start
        entry = Entry(
            name,
            dtype,
            shape,
            device,
            codec,
            self._shard,
            self._start,
            length,
            tuple(self._chunks),
            nbytes,
            layout,
        )
        self.entries.append(entry)
        self._record = None
        return text

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

    def _skeletal(self, text: bytes) -> bytes:
        self._skeleton.update(text)
        self.position += len(text)
        return text
