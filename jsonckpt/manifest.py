"""What a checkpoint says about itself: frozen facts, their JSON, and their validation.

Pure: nothing here opens a file or encodes a chunk. ``docs/format.md`` sections 3 and 5 are the
rules; :func:`parse_manifest` reports every problem it finds with its path, not only the first.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonckpt import jsontext, names
from jsonckpt.checksums import ALGORITHMS, seal_of
from jsonckpt.dtypes import DTYPES
from jsonckpt.errors import (
    FormatError,
    IntegrityError,
    LimitError,
    UnsafePathError,
    UnsupportedVersionError,
    quote,
)
from jsonckpt.limits import Limits, exceeds

__all__ = ["Codec", "Entry", "Manifest", "ShardFile", "dump_manifest", "parse_manifest"]

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = "jsonckpt.manifest"
SHARD_FORMAT = "jsonckpt.shard"
#: Features that ``requires`` may name. Version 1 defines none.
KNOWN_FEATURES: frozenset[str] = frozenset()

ENCODINGS = ("base64", "list")
COMPRESSIONS = ("none", "zstd")
FILTERS = ("none", "shuffle")

_MAX_SIZE = (1 << 63) - 1
_SAVE_ID = re.compile(r"[0-9a-f]{32}")
_SEAL_TAIL = re.compile(rb',\n"seal":("([a-z0-9_]{1,16}):([0-9a-f]{1,128})"|null)\}\s*\Z')
_BAD_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_PROBLEMS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Codec:
    """How the chunks of a record are encoded. ``chunk_bytes`` is the raw size of all but the last."""

    encoding: str
    compression: str
    filter: str
    chunk_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The object of the manifest's ``codecs``."""
        return {
            "encoding": self.encoding,
            "compression": self.compression,
            "filter": self.filter,
            "chunk_bytes": self.chunk_bytes,
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One record: what tensor it holds and where its bytes lie.

    ``chunks`` are ``(offset, length, checksum)`` of each payload in the text of the shard;
    ``offset`` and ``length`` the range of the record itself.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    device: str
    codec: Codec
    shard: int
    offset: int
    length: int
    chunks: tuple[tuple[int, int, str], ...]
    nbytes: int

    def raw_range(self, chunk: int) -> tuple[int, int]:
        """The raw bytes ``(start, stop)`` of the tensor that a chunk holds."""
        start = chunk * self.codec.chunk_bytes
        return start, min(self.nbytes, start + self.codec.chunk_bytes)


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of records: its name, its size on disk, the size of its text, its seal."""

    file: str
    bytes: int
    text_bytes: int
    seal: str


@dataclass(frozen=True)
class Manifest:
    """A whole checkpoint but for its payloads."""

    save_id: str
    created_at: str
    created_by: str
    checksum: str
    metadata: dict[str, Any]
    state: Any
    shards: tuple[ShardFile, ...]
    entries: tuple[Entry, ...]
    by_name: Mapping[str, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_name", {entry.name: entry for entry in self.entries})

    @property
    def nbytes(self) -> int:
        """Raw bytes of all tensors."""
        return sum(entry.nbytes for entry in self.entries)

    def totals(self) -> dict[str, int]:
        """What a person reads first."""
        return {
            "tensors": len(self.entries),
            "bytes": self.nbytes,
            "stored_bytes": sum(chunk[1] for entry in self.entries for chunk in entry.chunks),
            "shards": len(self.shards),
        }


def element_count(shape: Sequence[int]) -> int:
    """Number of elements of a shape."""
    return math.prod(shape)


def chunk_count(nbytes: int, chunk_bytes: int) -> int:
    """Number of chunks that ``nbytes`` raw bytes make."""
    return -(-nbytes // chunk_bytes)


def identity_lines(
    name: str, dtype: str, shape: Iterable[int], device: str, codec: Codec, sums: Iterable[str]
) -> bytes:
    """The text whose checksum is a record's ``digest`` (format section 3.2)."""
    items = [
        name,
        dtype,
        ",".join(map(str, shape)),
        device,
        codec.encoding,
        codec.compression,
        codec.filter,
        str(codec.chunk_bytes),
        *sums,
    ]
    return "".join(f"{item}\n" for item in items).encode()


# --- writing --------------------------------------------------------------------------------


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, sealed."""
    codecs = list(dict.fromkeys(entry.codec for entry in manifest.entries))
    number = {codec: position for position, codec in enumerate(codecs)}
    text = jsontext.dump
    parts = [
        b'{"format":' + text(MANIFEST_FORMAT),
        b'"version":' + text(FORMAT_VERSION),
        b'"save_id":' + text(manifest.save_id),
        b'"created_at":' + text(manifest.created_at),
        b'"created_by":' + text(manifest.created_by),
        b'"totals":' + text(dict(manifest.totals())),
        b'"checksum":' + text(manifest.checksum),
        b'"metadata":' + jsontext.dump_pretty(manifest.metadata),
        b'"state":' + jsontext.dump_pretty(manifest.state),
        b'"shards":' + _rows(text(_shard_json(shard)) for shard in manifest.shards),
        b'"codecs":' + _rows(text(codec.to_json()) for codec in codecs),
        b'"tensors":' + _rows(text(_entry_json(e, number[e.codec])) for e in manifest.entries),
    ]
    body = b",\n".join(parts)
    return body + b',\n"seal":' + text(seal_of(manifest.checksum, body)) + b"}\n"


def _rows(rows: Iterable[bytes]) -> bytes:
    joined = b",\n".join(rows)
    return b"[\n" + joined + b"\n]" if joined else b"[]"


def _shard_json(shard: ShardFile) -> dict[str, Any]:
    return {
        "file": shard.file,
        "bytes": shard.bytes,
        "text_bytes": shard.text_bytes,
        "seal": shard.seal,
    }


def _entry_json(entry: Entry, codec: int) -> dict[str, Any]:
    value: dict[str, Any] = {
        "name": entry.name,
        "dtype": entry.dtype,
        "shape": list(entry.shape),
    }
    if entry.device != "cpu":
        value["device"] = entry.device
    value |= {
        "shard": entry.shard,
        "offset": entry.offset,
        "length": entry.length,
        "codec": codec,
        "chunks": [list(chunk) for chunk in entry.chunks],
    }
    return value


# --- reading --------------------------------------------------------------------------------


class Problems:
    """Everything that is wrong, with its path; raised together."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self.unsafe = False
        self.limit = False

    def add(self, path: str, message: str) -> None:
        """Note a problem; after the first few only their number matters."""
        self.found.append(f"{path}: {message}")

    def over(self, path: str, message: str) -> None:
        """Note that a limit is exceeded."""
        self.limit = True
        self.add(path, message)

    def raise_if_any(self) -> None:
        """Raise what was found, as one error.

        Raises:
            UnsafePathError, LimitError, FormatError: in this order of precedence.
        """
        if not self.found:
            return
        shown = "; ".join(self.found[:_PROBLEMS_SHOWN])
        more = len(self.found) - _PROBLEMS_SHOWN
        if more > 0:
            shown += f"; and {more} more problems"
        if self.unsafe:
            raise UnsafePathError(shown, hint="Do not trust this file.")
        if self.limit:
            raise LimitError(shown, hint="Pass limits=jsonckpt.Limits(...) if it is meant.")
        raise FormatError(shown, hint="Run jsonckpt.verify on it, or take another copy.")


def check_header(value: object, expected_format: str) -> dict[str, Any]:
    """The members that every file begins with: format, version, requires, save_id.

    Raises:
        UnsupportedVersionError: a newer version, or a required feature this release lacks.
        FormatError: anything else.
    """
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found {_kind(value)}")
    found = value.get("format")
    if found != expected_format:
        raise FormatError(
            f"format is {quote(found)}, expected {expected_format!r}",
            hint="This is not a jsonckpt file; python -m jsonckpt.convert reads other programs'.",
        )
    version = value.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"version is {quote(version)}, expected a positive integer")
    if version > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"format version {quote(version)} is newer than {FORMAT_VERSION}, "
            "the newest that this release reads",
            hint="Upgrade: pip install -U jsonckpt.",
        )
    check_requires(value.get("requires", []))
    save_id = value.get("save_id")
    if not isinstance(save_id, str) or not _SAVE_ID.fullmatch(save_id):
        raise FormatError(f"save_id is {quote(save_id)}, expected 32 hexadecimal digits")
    return value


def check_requires(requires: object) -> None:
    """Refuse features that this release does not know, by name.

    Raises:
        UnsupportedVersionError: one is unknown.
        FormatError: not an array of strings.
    """
    if not isinstance(requires, list) or not all(isinstance(item, str) for item in requires):
        raise FormatError(f"requires is {quote(requires)}, expected an array of strings")
    unknown = [item for item in requires if item not in KNOWN_FEATURES]
    if unknown:
        shown = ", ".join(quote(item) for item in unknown[:5])
        raise UnsupportedVersionError(
            f"the file requires {shown}, which this release does not know",
            hint="Upgrade: pip install -U jsonckpt.",
        )


def checksum_name(value: object) -> str:
    """The checksum algorithm, checked."""
    if not isinstance(value, str) or value not in ALGORITHMS:
        raise FormatError(f"checksum is {quote(value)}, expected one of {', '.join(ALGORITHMS)}")
    return value


def parse_manifest(text: bytes, limits: Limits) -> Manifest:
    """Read and validate ``manifest.json`` whole, before any payload is touched.

    Raises:
        FormatError, LimitError, UnsafePathError, UnsupportedVersionError: what the text breaks.
        IntegrityError: the text does not match its own seal.
    """
    if exceeds(len(text), limits.manifest_bytes):
        raise LimitError(
            f"the manifest has {len(text)} bytes, the limit is {limits.manifest_bytes}",
            hint="Pass limits=jsonckpt.Limits(manifest_bytes=...) if it is meant.",
        )
    value = jsontext.parse(
        text,
        what="the manifest",
        max_depth=limits.depth or 1_000,
        max_number=limits.number_chars or 1 << 20,
    )
    header = check_header(value, MANIFEST_FORMAT)
    _check_seal(text, header)
    problems = Problems()
    created_at, created_by = (
        text_member(header, key, problems) for key in ("created_at", "created_by")
    )
    checksum = checksum_name(header.get("checksum"))
    metadata = header.get("metadata", {})
    if not isinstance(metadata, dict):
        problems.add("metadata", f"expected an object, found {_kind(metadata)}")
    if "state" not in header:
        problems.add("state", "is missing")
    shards = _parse_shards(header.get("shards"), checksum, limits, problems)
    codecs = _parse_codecs(header.get("codecs"), limits, problems)
    problems.raise_if_any()
    entries = _parse_entries(header.get("tensors"), codecs, shards, checksum, limits, problems)
    problems.raise_if_any()
    check_layout(entries, [shard.text_bytes for shard in shards], problems)
    on_disk = sum(shard.bytes for shard in shards)
    check_totals(entries, on_disk, limits, problems)
    manifest = Manifest(
        header["save_id"], created_at, created_by, checksum, metadata, header.get("state"),
        shards, entries,
    )  # fmt: skip
    if len(manifest.by_name) != len(entries):
        problems.add("tensors", f"the name {quote(_first_double(entries))} stands twice")
    if header.get("totals") != manifest.totals():
        problems.add("totals", f"{quote(header.get('totals'))} does not agree with the rest")
    problems.raise_if_any()
    return manifest


def _check_seal(text: bytes, header: dict[str, Any]) -> None:
    match = _SEAL_TAIL.search(text, max(0, len(text) - 400))
    if "seal" not in header or match is None:
        raise FormatError(
            "the member seal is missing or is not the last one on a line of its own",
            hint='After an edit by hand the file must still end in ,\\n"seal":null}',
        )
    if match[1] == b"null":
        return
    algorithm = match[2].decode()
    if algorithm not in ALGORITHMS:
        raise FormatError(f"seal names the algorithm {quote(algorithm)}, which is not known")
    expected = f"{algorithm}:{match[3].decode()}"
    found = seal_of(algorithm, text[: match.start()])
    if found != expected:
        raise IntegrityError(
            f"the text does not match its seal (expected {expected}, found {found})",
            hint='If you edited it on purpose, set "seal":null in it; else take another copy.',
        )


def text_member(header: dict[str, Any], key: str, problems: Problems) -> str:
    """A required string member."""
    value = header.get(key)
    if isinstance(value, str) and len(value) <= 1_000:
        return value
    problems.add(key, f"expected a string, found {_kind(value)}")
    return ""


def _parse_shards(
    value: object, checksum: str, limits: Limits, problems: Problems
) -> tuple[ShardFile, ...]:
    if not isinstance(value, list):
        problems.add("shards", f"expected an array, found {_kind(value)}")
        return ()
    if exceeds(len(value), limits.shards):
        problems.over("shards", f"{len(value)} shards, the limit is {limits.shards}")
        return ()
    shards = []
    for position, item in enumerate(value):
        path = f"shards[{position}]"
        if not isinstance(item, dict):
            problems.add(path, f"expected an object, found {_kind(item)}")
            continue
        file, size, text_size = item.get("file"), item.get("bytes"), item.get("text_bytes")
        if not isinstance(file, str):
            problems.add(f"{path}.file", f"expected a string, found {_kind(file)}")
            continue
        try:
            names.check_shard_name(file)
        except UnsafePathError as error:
            problems.unsafe = True
            problems.add(f"{path}.file", error.message)
            continue
        if not _is_size(size) or not _is_size(text_size):
            problems.add(path, "bytes and text_bytes must be integers from 0 to 2^63-1")
            continue
        if not file.endswith(".zst") and size != text_size:
            problems.add(path, f"bytes is {size} but text_bytes is {text_size}")
        seal = item.get("seal")
        if not isinstance(seal, str) or not seal.startswith(f"{checksum}:") or len(seal) > 200:
            problems.add(f"{path}.seal", f"expected {checksum}:HEX, found {quote(seal)}")
            continue
        shards.append(ShardFile(file, size, text_size, seal))
    if len({shard.file for shard in shards}) != len(shards):
        problems.add("shards", "one file stands twice")
    return tuple(shards)


def parse_codec(item: object, limits: Limits) -> Codec | str:
    """A codec from its members, or what is wrong with them."""
    if not isinstance(item, dict):
        return f"expected an object, found {_kind(item)}"
    encoding, compression = item.get("encoding"), item.get("compression")
    filter_, chunk_bytes = item.get("filter"), item.get("chunk_bytes")
    for member, found, known in (
        ("encoding", encoding, ENCODINGS),
        ("compression", compression, COMPRESSIONS),
        ("filter", filter_, FILTERS),
    ):
        if not isinstance(found, str) or found not in known:
            return f"unknown {member} {quote(found)}, this release knows {', '.join(known)}"
    if encoding == "list" and (compression != "none" or filter_ != "none"):
        return "encoding list goes with compression none and filter none only"
    if type(chunk_bytes) is not int or chunk_bytes < 1:
        return f"chunk_bytes is {quote(chunk_bytes)}, expected a positive integer"
    if exceeds(chunk_bytes, limits.chunk_bytes):
        return f"chunk_bytes is {chunk_bytes}, over the limit of {limits.chunk_bytes}"
    return Codec(str(encoding), str(compression), str(filter_), chunk_bytes)


def _parse_codecs(value: object, limits: Limits, problems: Problems) -> list[Codec]:
    if not isinstance(value, list) or len(value) > 10_000:
        problems.add("codecs", f"expected a short array, found {_kind(value)}")
        return []
    codecs = []
    for position, item in enumerate(value):
        codec = parse_codec(item, limits)
        if isinstance(codec, str):
            problems.limit |= "over the limit" in codec
            problems.add(f"codecs[{position}]", codec)
        else:
            codecs.append(codec)
    return codecs


def parse_identity(item: dict[str, Any], limits: Limits) -> tuple[str, str, tuple[int, ...], str]:
    """``(name, dtype, shape, device)`` of a record or a manifest entry, checked.

    Raises:
        FormatError, LimitError: with a message that names the member.
    """
    name, dtype, shape = item.get("name"), item.get("dtype"), item.get("shape")
    device = item.get("device", "cpu")
    if not isinstance(name, str) or not (
        not name or name[0] == "/" or name.startswith("$storage/")
    ):
        raise FormatError(f"name is {quote(name)}, expected a JSON Pointer")
    if _BAD_NAME.search(name):
        raise FormatError(f"name {quote(name)} holds control characters or surrogates")
    if exceeds(len(name.encode()), limits.name_bytes):
        raise LimitError(f"name {quote(name)} is longer than {limits.name_bytes} bytes")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"unknown dtype {quote(dtype)}", tensor=name)
    if type(shape) is not list or not all(map(_is_size, shape)):
        raise FormatError(
            f"shape is {quote(shape)}, expected an array of integers from 0 to 2^63-1", tensor=name
        )
    if exceeds(len(shape), limits.rank):
        raise LimitError(f"{len(shape)} dimensions, the limit is {limits.rank}", tensor=name)
    # A zero hides the other sizes from the byte count, but torch still multiplies them.
    if math.prod(size for size in shape if size) > _MAX_SIZE:
        raise LimitError(f"shape {quote(shape)} has over 2^63-1 elements", tensor=name)
    if not isinstance(device, str) or not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,5})?", device):
        raise FormatError(f"device is {quote(device)}, expected e.g. cuda:0", tensor=name)
    return name, dtype, tuple(shape), device


def check_chunking(dtype: str, shape: Sequence[int], codec: Codec, chunks: int) -> int:
    """The raw bytes of a record, after checking that the number of chunks fits them.

    Raises:
        FormatError: it does not.
    """
    itemsize = DTYPES[dtype].itemsize
    if codec.chunk_bytes % itemsize:
        raise FormatError(f"chunk_bytes {codec.chunk_bytes} is no multiple of {itemsize} ({dtype})")
    nbytes = element_count(shape) * itemsize
    expected = chunk_count(nbytes, codec.chunk_bytes)
    if chunks != expected:
        raise FormatError(
            f"shape {quote(list(shape))} of {dtype} makes {nbytes} bytes in {expected} chunks, "
            f"found {chunks} chunks"
        )
    return nbytes


def _parse_entries(
    value: object,
    codecs: Sequence[Codec],
    shards: Sequence[ShardFile],
    checksum: str,
    limits: Limits,
    problems: Problems,
) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        problems.add("tensors", f"expected an array, found {_kind(value)}")
        return ()
    if exceeds(len(value), limits.tensors):
        problems.over("tensors", f"{len(value)} tensors, the limit is {limits.tensors}")
        return ()
    entries = []
    digits = ALGORITHMS[checksum].digits
    for position, item in enumerate(value):
        try:
            entries.append(_parse_entry(item, codecs, len(shards), digits, limits))
        except (FormatError, LimitError) as error:
            problems.limit |= isinstance(error, LimitError)
            name = f" ({quote(error.tensor)})" if error.tensor else ""
            problems.add(f"tensors[{position}]{name}", error.message)
    return tuple(entries)


def _parse_entry(
    item: object, codecs: Sequence[Codec], shards: int, digits: int, limits: Limits
) -> Entry:
    if not isinstance(item, dict):
        raise FormatError(f"expected an object, found {_kind(item)}")
    check_requires(item.get("requires", []))
    name, dtype, shape, device = parse_identity(item, limits)
    try:
        shard, codec = item.get("shard"), item.get("codec")
        if type(shard) is not int or not 0 <= shard < shards:
            raise FormatError(f"shard is {quote(shard)}, there are {shards}")
        if type(codec) is not int or not 0 <= codec < len(codecs):
            raise FormatError(f"codec is {quote(codec)}, there are {len(codecs)}")
        offset, length, chunks = item.get("offset"), item.get("length"), item.get("chunks")
        if not _is_size(offset) or not _is_size(length) or not isinstance(chunks, list):
            raise FormatError("offset and length must be integers, chunks an array")
        nbytes = check_chunking(dtype, shape, codecs[codec], len(chunks))
        rows = tuple(_parse_chunk(chunk, digits) for chunk in chunks)
    except FormatError as error:
        error.at(tensor=name)
        raise
    return Entry(
        name, dtype, shape, device, codecs[codec], shard, offset, length, rows, nbytes
    )  # fmt: skip


def _parse_chunk(chunk: object, digits: int) -> tuple[int, int, str]:
    if isinstance(chunk, list) and len(chunk) == 3:
        offset, length, checksum = chunk
        if _is_size(offset) and _is_size(length) and is_hex(checksum, digits):
            return offset, length, checksum
    raise FormatError(f"chunk {quote(chunk)} is not [offset, length, checksum of {digits} digits]")


def check_layout(entries: Iterable[Entry], sizes: Sequence[int], problems: Problems) -> None:
    """Records and payloads lie inside their file, in order, and none overlaps another."""
    shard, end = 0, 0
    for entry in entries:
        if entry.shard < shard:
            problems.add(quote(entry.name), "the tensors are not in the order of the shards")
            return
        if entry.shard > shard:
            shard, end = entry.shard, 0
        stop = entry.offset + entry.length
        if entry.offset < end or stop > sizes[shard]:
            problems.add(
                quote(entry.name),
                f"its range [{entry.offset}, {stop}) overlaps the tensor before it or "
                f"leaves the file of {sizes[shard]} bytes",
            )
        at = entry.offset
        for number, (offset, length, _) in enumerate(entry.chunks):
            # Two quotes and a comma stand between payloads, so touching ranges overlap, too.
            if offset <= at or offset + length >= stop:
                problems.add(
                    quote(entry.name), f"chunk {number}: its range overlaps or leaves the record"
                )
                break
            at = offset + length
        end = stop


def check_totals(
    entries: Sequence[Entry], on_disk: int, limits: Limits, problems: Problems
) -> None:
    """The limits on the whole checkpoint."""
    chunks = sum(len(entry.chunks) for entry in entries)
    if exceeds(chunks, limits.chunks):
        problems.over("tensors", f"{chunks} chunks, the limit is {limits.chunks}")
    total = sum(entry.nbytes for entry in entries)
    if exceeds(total, limits.total_bytes(on_disk)):
        problems.over(
            "tensors", f"{total} bytes of tensors in {on_disk} bytes of files is over the limit"
        )


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= _MAX_SIZE


_HEX_DIGITS = frozenset("0123456789abcdef")


def is_hex(value: object, digits: int) -> bool:
    """Whether ``value`` is a string of that many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and _HEX_DIGITS.issuperset(value)


def _first_double(entries: Iterable[Entry]) -> str:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            return entry.name
        seen.add(entry.name)
    return ""


def _kind(value: object) -> str:
    kinds: dict[type, str] = {
        dict: "an object", list: "an array", str: "a string", bool: "a boolean",
        int: "a number", float: "a number", type(None): "nothing",
    }  # fmt: skip
    return kinds.get(type(value), "something else")
