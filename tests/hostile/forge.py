"""Forges checkpoints: takes everything apart that a writer puts together, and lies at any place.

A :class:`Forgery` is written from its parts with every checksum, digest, range, index and seal
computed anew, so that a lie reaches the check it is aimed at and no checksum catches it before.
Written from ``docs/format.md`` alone; nothing of the package is used.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import blake3
import xxhash
import zstandard

from tests.hostile.spelling import ITEMSIZE, listed

__all__ = ["AUTO", "Forgery", "Members", "Raw", "Record", "dumps", "encode", "good", "zstd"]

SAVE_ID = "0123456789abcdef0123456789abcdef"
Hook = Callable[[Any], Any]


class Raw(bytes):
    """JSON text that is written as it is, right or wrong."""


class Members(list[tuple[Any, Any]]):
    """The members of an object; a name may stand twice."""


class _Auto:
    """The type of :data:`AUTO`, which is itself in every copy."""

    def __deepcopy__(self, _: object) -> _Auto:
        return self


#: What is computed when it is written.
AUTO: Any = _Auto()


def dumps(value: Any) -> bytes:
    """JSON text without white space; surrogates are written as they are, which is no UTF-8."""
    if isinstance(value, Raw):
        return bytes(value)
    if isinstance(value, dict | Members):
        pairs = value.items() if isinstance(value, dict) else value
        return b"{" + b",".join(dumps(name) + b":" + dumps(item) for name, item in pairs) + b"}"
    if isinstance(value, list | tuple):
        return b"[" + b",".join(map(dumps, value)) + b"]"
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def checksum(algorithm: str, data: bytes) -> str:
    """The checksum of bytes in hexadecimal."""
    if algorithm == "sha256":
        return hashlib.sha256(data).hexdigest()
    if algorithm == "blake3":
        return blake3.blake3(data).hexdigest()
    return xxhash.xxh3_128_hexdigest(data)


def zstd(data: bytes, **options: Any) -> bytes:
    """One frame."""
    return zstandard.ZstdCompressor(**options).compress(data)


def encode(raw: bytes, members: dict[str, Any]) -> bytes:
    """The payload of a chunk as the members of its record ask for it."""
    dtype = members["dtype"]
    if members["encoding"] == "list":
        return listed(raw, dtype)
    data = raw
    if members["filter"] == "shuffle":
        size = ITEMSIZE[dtype]
        data = b"".join(data[start::size] for start in range(size))
    if members["compression"] == "zstd":
        data = zstd(data)
    return base64.b64encode(data)


@dataclass
class Record:
    """One tensor, apart.

    Attributes:
        members: what stands before the chunks, in order.
        payloads: the text of each chunk.
        sums: the member with the checksums.
        digest: AUTO, or a lie.
        tail: members after the digest.
        head_line, chunk_lines, tail_line: the whole lines, where those that follow from the rest
            are not wanted; ``tail_line`` without the comma to the next record. The seal does not
            know of ``chunk_lines``.
        around: what stands before and after each payload, where it is not as it should be; the
            seal and the ranges follow it.
        shard: the file that holds it, in a directory.
    """

    members: dict[str, Any]
    payloads: list[bytes]
    sums: list[Any]
    digest: Any = AUTO
    tail: dict[str, Any] = field(default_factory=dict)
    head_line: bytes | None = None
    chunk_lines: list[bytes] | None = None
    tail_line: bytes | None = None
    around: list[tuple[bytes, bytes]] | None = None
    shard: int = 0

    @classmethod
    def of(
        cls,
        name: str,
        dtype: str,
        shape: Sequence[int],
        raw: bytes,
        *,
        encoding: str = "base64",
        compression: str = "none",
        filter: str = "none",
        chunk_bytes: int = 1 << 20,
        algorithm: str = "xxh3_128",
        shard: int = 0,
    ) -> Record:
        """An honest record."""
        assert math.prod(shape) * ITEMSIZE[dtype] == len(raw)
        members = {
            "name": name, "dtype": dtype, "shape": list(shape), "encoding": encoding,
            "compression": compression, "filter": filter, "chunk_bytes": chunk_bytes,
        }  # fmt: skip
        record = cls(members, [], [], shard=shard)
        record.fill(raw, algorithm)
        return record

    def fill(self, raw: bytes, algorithm: str = "xxh3_128") -> None:
        """Other bytes, encoded and with their checksums."""
        size = self.members["chunk_bytes"]
        chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
        self.payloads = [encode(chunk, self.members) for chunk in chunks]
        self.sums = [checksum(algorithm, chunk) for chunk in chunks]

    def surroundings(self) -> list[tuple[bytes, bytes]]:
        """What stands before and after each payload in its line."""
        if self.around is not None:
            return self.around
        marks = b"[]" if self.members.get("encoding") == "list" else b'""'
        last = len(self.payloads) - 1
        commas = [b"" if number == last else b"," for number in range(last + 1)]
        return [(marks[:1], marks[1:] + comma + b"\n") for comma in commas]

    def identity(self) -> bytes:
        """The text whose checksum is the digest."""
        members = self.members
        shape = members.get("shape")
        sizes = [_plain(size) for size in shape] if isinstance(shape, list) else [_plain(shape)]
        items = [
            members.get("name"), members.get("dtype"), ",".join(sizes),
            members.get("device", "cpu"), members.get("encoding"), members.get("compression"),
            members.get("filter"), _plain(members.get("chunk_bytes")), *self.sums,
        ]  # fmt: skip
        return "".join(f"{item}\n" for item in items).encode("utf-8", "surrogatepass")


def _plain(value: Any) -> str:
    return dumps(value).decode("utf-8", "replace")


@dataclass
class _Text:
    """A written shard: its text, ``[offset, length, [[offset, length], …]]`` of each record."""

    text: bytes
    rows: list[Any]
    seal: str


@dataclass
class Forgery:
    """A checkpoint, apart. The hooks get a value and return another, or change it and return None.

    Attributes:
        head: members before ``"tensors":[`` that every file has.
        single: those that a single file has besides; a manifest has them, too.
        records: the tensors.
        edit_head: the members of a shard's head.
        edit_index: the rows of a shard's index.
        edit_trailer: the last line of a shard.
        edit_shard: a shard's finished text; the manifest's sizes follow it.
        edit_manifest: the members of the manifest but for its seal.
        edit_body: the manifest's text before it is sealed.
        edit_sealed: the manifest's finished text.
        edit_file: the bytes of a file on disk, once compressed; sizes in the manifest follow it.
    """

    head: dict[str, Any]
    single: dict[str, Any]
    records: list[Record]
    totals: Any = AUTO
    seal: Any = AUTO
    edit_head: Hook | None = None
    edit_index: Hook | None = None
    edit_trailer: Hook | None = None
    edit_shard: Hook | None = None
    edit_manifest: Hook | None = None
    edit_body: Hook | None = None
    edit_sealed: Hook | None = None
    edit_file: Hook | None = None
    compress: Callable[[bytes], bytes] = zstd
    #: For what a Forgery cannot say: called with the finished checkpoint's path.
    afterwards: Callable[[Path], None] | None = None

    def __getitem__(self, name: str) -> Record:
        return next(record for record in self.records if record.members["name"] == name)

    @property
    def algorithm(self) -> str:
        """The checksum in use, as far as it is one."""
        said = self.head.get("checksum")
        return said if said in ("sha256", "blake3") else "xxh3_128"

    @property
    def state(self) -> Any:
        """The state tree."""
        return self.single["state"]

    def shard_name(self, number: int) -> str:
        """The file name of a shard, without what a compressed one has besides."""
        return f"shard-{SAVE_ID[:12]}-{number + 1:05d}.json"

    # --- one shard ----------------------------------------------------------------------------

    def _totals(self) -> Any:
        if self.totals is not AUTO:
            return self.totals
        return {"tensors": len(self.records), "bytes": sum(map(_nbytes, self.records))}

    def _head(self, single: bool) -> bytes:
        members = dict(self.head)
        if single:
            for name, value in self.single.items():
                members[name] = self._totals() if name == "totals" else value
        edited = _edited(self.edit_head, members)
        pairs = edited.items() if isinstance(edited, dict) else edited
        text = b",\n".join(dumps(name) + b":" + dumps(value) for name, value in pairs)
        return b"{" + text + b',\n"tensors":[\n'

    def text(self, records: Sequence[Record], *, single: bool) -> _Text:
        """The text of a shard or of a single file."""
        algorithm = self.algorithm
        text, skeleton = bytearray(), bytearray()

        def put(line: bytes, lifted: bytes | None = None) -> None:
            text.extend(line)
            skeleton.extend(line if lifted is None else lifted)

        put(self._head(single))
        rows: list[Any] = []
        for position, record in enumerate(records):
            start = len(text)
            put(record.head_line or dumps(record.members)[:-1] + b',"chunks":[\n')
            places = []
            for number, (payload, (before, after)) in enumerate(
                zip(record.payloads, record.surroundings(), strict=True)
            ):
                places.append([len(text) + len(before), len(payload)])
                line = before + payload + after
                lines = record.chunk_lines
                put(line if lines is None else lines[number], before + after)
            put(record.tail_line or self._tail(record))
            rows.append([start, len(text) - start, places])
            put(b",\n" if position + 1 < len(records) else b"\n")
        index = dumps(_edited(self.edit_index, copy.deepcopy(rows)))
        skeleton += b'],"index":' + index
        seal = f"{algorithm}:{checksum(algorithm, bytes(skeleton))}"
        seal = seal if self.seal is AUTO else self.seal
        offset = len(text) + len(b'],"index":')
        trailer = b'],"index":' + index
        trailer += b',"seal":' + dumps(seal) + b',"index_offset":%20d}\n' % offset
        text += _edited(self.edit_trailer, trailer)
        return _Text(bytes(_edited(self.edit_shard, bytes(text))), rows, str(seal))

    def _tail(self, record: Record) -> bytes:
        digest = record.digest
        if digest is AUTO:
            digest = checksum(self.algorithm, record.identity())
        sums = {str(self.head.get("checksum")): record.sums, "digest": digest}
        return b"]," + dumps({**sums, **record.tail})[1:]

    # --- files --------------------------------------------------------------------------------

    def write_single(self, path: Path) -> Path:
        """A single file, compressed if the name says so."""
        data = self.text(self.records, single=True).text
        if path.suffix == ".zst":
            data = self.compress(data)
        path.write_bytes(_edited(self.edit_file, data))
        self._afterwards(path)
        return path

    def write_directory(self, path: Path, *, compressed: bool = False) -> Path:
        """A directory of shards and a manifest."""
        path.mkdir()
        shards: list[Any] = []
        entries: list[Any] = []
        codecs: list[Any] = []
        for number in range(1 + max((record.shard for record in self.records), default=0)):
            records = [record for record in self.records if record.shard == number]
            written = self.text(records, single=False)
            data, name = written.text, self.shard_name(number)
            if compressed:
                data, name = self.compress(data), name + ".zst"
            data = _edited(self.edit_file, data)
            (path / name).write_bytes(data)
            sizes = {"bytes": len(data), "text_bytes": len(written.text)}
            shards.append({"file": name, **sizes, "seal": written.seal})
            for record, row in zip(records, written.rows, strict=True):
                entries.append(self._entry(record, row, number, codecs))
        (path / "manifest.json").write_bytes(self._manifest(shards, codecs, entries))
        self._afterwards(path)
        return path

    def _afterwards(self, path: Path) -> None:
        if self.afterwards is not None:
            self.afterwards(path)

    def _entry(self, record: Record, row: list[Any], shard: int, codecs: list[Any]) -> Any:
        members = record.members
        codec = {
            name: members[name]
            for name in ("encoding", "compression", "filter", "chunk_bytes")
            if name in members
        }
        if codec not in codecs:
            codecs.append(codec)
        entry = {
            name: members[name]
            for name in ("name", "dtype", "shape", "device", "stride", "storage")
            if name in members
        }
        offset, length, places = row
        return entry | {
            "shard": shard, "offset": offset, "length": length, "codec": codecs.index(codec),
            "chunks": [[*place, total] for place, total in zip(places, record.sums)],
        }  # fmt: skip

    def _manifest(self, shards: list[Any], codecs: list[Any], entries: list[Any]) -> bytes:
        members = {
            **self.head, "format": "jsonckpt.manifest", **self.single, "shards": shards,
            "codecs": codecs, "tensors": entries,
        }  # fmt: skip
        totals = self._totals()
        if isinstance(totals, dict):
            stored = sum(len(payload) for record in self.records for payload in record.payloads)
            totals = totals | {"stored_bytes": stored, "shards": len(shards)}
        members["totals"] = totals
        members = _edited(self.edit_manifest, members)
        pairs = members.items() if isinstance(members, dict) else members
        body = b"{" + b",\n".join(dumps(k) + b":" + dumps(v) for k, v in pairs)
        body = _edited(self.edit_body, body)
        algorithm = self.algorithm
        sealed = body + b',\n"seal":"%s:%s"}\n' % (
            algorithm.encode(), checksum(algorithm, body).encode()
        )  # fmt: skip
        return bytes(_edited(self.edit_sealed, sealed))


def _edited(hook: Hook | None, value: Any) -> Any:
    if hook is None:
        return value
    changed = hook(value)
    return value if changed is None else changed


def _nbytes(record: Record) -> int:
    """Raw bytes that a record claims, as far as its members make sense."""
    shape = record.members.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return 0
    return math.prod(shape) * ITEMSIZE.get(str(record.members.get("dtype")), 1)


# --- an honest checkpoint -----------------------------------------------------------------------


def good(algorithm: str = "xxh3_128") -> Forgery:
    """A small checkpoint with every encoding, several chunks a tensor, an empty tensor, a view."""
    floats = struct.pack("<12f", *(number / 4 for number in range(12)))
    halves = struct.pack("<24H", *([0x3F80, 0x4000, 0xC040] * 8))
    make = Record.of
    records = [
        make("/w", "float32", [3, 4], floats, chunk_bytes=16, algorithm=algorithm),
        make("/mask", "bool", [6], b"\1\0\0\1\1\0", chunk_bytes=4, algorithm=algorithm),
        make(
            "/h", "bfloat16", [24], halves, compression="zstd", filter="shuffle", chunk_bytes=32,
            algorithm=algorithm,
        ),
        make(
            "/l", "float32", [5], floats[:20], encoding="list", chunk_bytes=8, shard=1,
            algorithm=algorithm,
        ),
        make(
            "/i", "int64", [3], struct.pack("<3q", -1, 0, 2**62), encoding="list", shard=1,
            algorithm=algorithm,
        ),
        make("/e", "float32", [0, 3], b"", shard=1, algorithm=algorithm),
    ]  # fmt: skip
    state: dict[str, Any] = {name[1:]: {"$tensor": name} for name in _names(records)}
    state |= {
        "tied": {"$tied": {"name": "/tied", "of": "/w"}},
        "row": {
            "$view": {
                "name": "/row", "of": "/w", "dtype": "float32", "shape": [4], "stride": [1],
                "offset": 4,
            }
        },
        "epoch": 3,
        "lr": 0.5,
        "betas": {"$tuple": [0.5, 0.25]},
        "note": "text",
    }  # fmt: skip
    head = {"format": "jsonckpt.shard", "version": 1, "save_id": SAVE_ID, "checksum": algorithm}
    single = {
        "created_at": "2025-01-02T03:04:05Z", "created_by": "a test", "totals": AUTO,
        "metadata": {"run": 1}, "state": state,
    }  # fmt: skip
    return Forgery(head, single, records)


def _names(records: Sequence[Record]) -> list[str]:
    return [record.members["name"] for record in records]
