"""``manifest.json``, written and read.

Pure: nothing here opens a file or encodes a chunk. ``docs/format.md`` sections 3 and 5 are the
rules; :func:`parse_manifest` reports every problem it finds with its path, not only the first.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

import orjson

from ..errors import (
    FormatError,
    IntegrityError,
    JsonckptError,
    LimitError,
    UnsafePathError,
    UnsupportedVersionError,
    quote,
)
from . import filenames, json_text
from .checksums import ALGORITHMS, seal_of
from .limits import Limits, exceeds, way_over
from .model import (
    FORMAT_VERSION,
    MANIFEST_FORMAT,
    PLAIN,
    Codec,
    Entry,
    Manifest,
    ShardFile,
    is_size,
)
from .validation import (
    Problems,
    check_chunking,
    check_header,
    check_layout,
    check_requires,
    check_storages,
    check_totals,
    checksum_name,
    creation_time,
    is_hex,
    kind,
    known_versions,
    parse_codec,
    parse_identity,
    same_totals,
    text_member,
)

_SEAL_TAIL = re.compile(rb',\n"seal":("([a-z0-9_]{1,16}):([0-9a-f]{1,128})"|null)\}\s*\Z')


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, sealed."""
    codecs = list(dict.fromkeys(entry.codec for entry in manifest.entries))
    number = {codec: position for position, codec in enumerate(codecs)}
    text = json_text.dump
    parts = [
        b'{"format":' + text(MANIFEST_FORMAT),
        b'"version":' + text(FORMAT_VERSION),
        b'"save_id":' + text(manifest.save_id),
        b'"created_at":' + text(manifest.created_at),
        b'"created_by":' + text(manifest.created_by),
        b'"totals":' + text(dict(manifest.totals())),
        b'"checksum":' + text(manifest.checksum),
        b'"metadata":' + json_text.dump_pretty(manifest.metadata),
        b'"state":' + json_text.dump_pretty(manifest.state),
    ]
    _add_rows(parts, b'"shards":', [text(_shard_json(shard)) for shard in manifest.shards])
    _add_rows(parts, b'"codecs":', [text(codec.to_json()) for codec in codecs])
    _add_rows(parts, b'"tensors":', [_entry_text(e, number[e.codec]) for e in manifest.entries])
    body = b",\n".join(parts)
    parts.clear()  # of many tensors they are as large as the body
    return body + b',\n"seal":' + text(seal_of(manifest.checksum, body)) + b"}\n"


def _add_rows(parts: list[bytes], key: bytes, rows: list[bytes]) -> None:
    """Add a member that is an array, which has a line for each of its elements."""
    if not rows:
        parts.append(key + b"[]")
        return
    rows[0] = key + b"[\n" + rows[0]
    rows[-1] += b"\n]"
    parts += rows


def _shard_json(shard: ShardFile) -> dict[str, Any]:
    return {
        "file": shard.file,
        "bytes": shard.bytes,
        "text_bytes": shard.text_bytes,
        "seal": shard.seal,
    }


def _entry_text(entry: Entry, codec: int) -> bytes:
    place = "" if entry.device == "cpu" else f',"device":"{entry.device}"'
    if entry.layout is not PLAIN:
        place += entry.layout.to_text()
    sizes = ",".join(map(str, entry.shape))
    chunks = ",".join([f'[{start},{size},"{checksum}"]' for start, size, checksum in entry.chunks])
    return (
        f'{{"name":{json_text.quoted(entry.name)},"dtype":"{entry.dtype}","shape":[{sizes}]{place},'
        f'"shard":{entry.shard},"offset":{entry.offset},"length":{entry.length},'
        f'"codec":{codec},"chunks":[{chunks}]}}'
    ).encode()


@json_text.collector_paused()
def parse_manifest(text: bytes, limits: Limits) -> Manifest:
    """Read and validate ``manifest.json`` whole, before any payload is touched.

    Raises:
        FormatError, LimitError, UnsafePathError, UnsupportedVersionError: what the text breaks.
        IntegrityError: the text does not match its own seal.
    """
    if exceeds(len(text), limits.manifest_bytes):
        raise LimitError(
            f"the manifest has {len(text)} bytes, the limit is {limits.manifest_bytes}",
            hint=way_over("manifest_bytes"),
        )
    try:
        value = json_text.parse(
            text,
            what="the manifest",
            max_depth=limits.depth or 1_000,
            max_number=limits.number_chars or 1 << 20,
            max_marks=limits.marks,
        )
    except JsonckptError as error:
        error.at(hint="After an edit by hand, mend it there; else take another copy.")
        raise
    header = check_header(value, MANIFEST_FORMAT)
    _check_seal(text, header)
    problems = Problems()
    created_at = creation_time(header, problems)
    created_by = text_member(header, "created_by", problems)
    checksum = checksum_name(header.get("checksum"))
    metadata = header.get("metadata")
    if not isinstance(metadata, dict):
        problems.add("metadata", f"expected an object, found {kind(metadata)}")
    if "state" not in header:
        problems.add("state", "is missing")
    shards = _parse_shards(header.get("shards"), checksum, limits, problems)
    codecs = _parse_codecs(header.get("codecs"), limits, problems)
    problems.raise_if_any()
    assert isinstance(metadata, dict)
    entries = _parse_entries(header.get("tensors"), codecs, shards, checksum, limits, problems)
    problems.raise_if_any()
    check_layout(entries, [shard.text_bytes for shard in shards], limits, problems)
    on_disk = sum(shard.bytes for shard in shards)
    check_totals(entries, on_disk, limits, problems)
    check_storages(entries, problems)
    manifest = Manifest(
        header["save_id"],
        created_at,
        created_by,
        checksum,
        metadata,
        header.get("state"),
        shards,
        entries,
    )
    if len(manifest.by_name) != len(entries):
        problems.add("tensors", f"the name {quote(_first_double(entries))} stands twice")
    if not same_totals(header.get("totals"), manifest.totals()):
        problems.add("totals", f"{quote(header.get('totals'))} does not agree with the rest")
    problems.raise_if_any()
    return manifest


def shard_files(text: bytes, limits: Limits) -> list[str]:
    """The shards that a manifest names, without a look at its tensors.

    Raises:
        JsonckptError: the text is not a whole manifest.
    """
    # No text has more of them than bytes.
    if exceeds(len(text), limits.marks) and exceeds(json_text.marks_of(text), limits.marks):
        raise LimitError(
            f"the manifest has over {limits.marks} brackets and strings",
            hint=way_over("marks", "None"),
        )
    try:
        # Nothing but names of files is taken from it, and these are checked: no need to be strict.
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"the manifest is no JSON: {error}") from error
    header = check_header(value, MANIFEST_FORMAT)
    _check_seal(text, header)
    problems = Problems()
    checksum = checksum_name(header.get("checksum"))
    shards = _parse_shards(header.get("shards"), checksum, limits, problems)
    problems.raise_if_any()
    return [shard.file for shard in shards]


def parse_misread(text: bytes, limits: Limits) -> tuple[Manifest, bytes]:
    """As :func:`parse_manifest`, also where the version that it says is damaged.

    Returns:
        The manifest, and the text that its seal vouches for.

    Raises:
        UnsupportedVersionError: of no version that is known does the seal fit.
        JsonckptError: as :func:`parse_manifest`.
    """
    try:
        return parse_manifest(text, limits), text
    except UnsupportedVersionError:
        tail = _SEAL_TAIL.search(text)
        if tail is not None and tail[2] is not None:
            for guess in known_versions(text):
                with suppress(JsonckptError):
                    return parse_manifest(guess, limits), guess
        raise


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


def _parse_shards(
    value: object, checksum: str, limits: Limits, problems: Problems
) -> tuple[ShardFile, ...]:
    if not isinstance(value, list):
        problems.add("shards", f"expected an array, found {kind(value)}")
        return ()
    if exceeds(len(value), limits.shards):
        problems.over(
            "shards", f"{len(value)} shards, the limit is {limits.shards}", way_over("shards")
        )
        return ()
    shards = []
    for position, item in enumerate(value):
        path = f"shards[{position}]"
        if not isinstance(item, dict):
            problems.add(path, f"expected an object, found {kind(item)}")
            continue
        file, size, text_size = item.get("file"), item.get("bytes"), item.get("text_bytes")
        if not isinstance(file, str):
            problems.add(f"{path}.file", f"expected a string, found {kind(file)}")
            continue
        try:
            filenames.check_shard_name(file)
        except UnsafePathError as error:
            problems.unsafe = True
            problems.add(f"{path}.file", error.message)
            continue
        if not is_size(size) or not is_size(text_size):
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


def _parse_codecs(value: object, limits: Limits, problems: Problems) -> list[Codec]:
    if not isinstance(value, list) or len(value) > 10_000:
        problems.add("codecs", f"expected a short array, found {kind(value)}")
        return []
    codecs = []
    for position, item in enumerate(value):
        codec = parse_codec(item, limits)
        if not isinstance(codec, str):
            codecs.append(codec)
        elif "over the limit" in codec:
            problems.over(f"codecs[{position}]", codec, way_over("chunk_bytes"))
        else:
            problems.add(f"codecs[{position}]", codec)
    return codecs


def _parse_entries(
    value: object,
    codecs: Sequence[Codec],
    shards: Sequence[ShardFile],
    checksum: str,
    limits: Limits,
    problems: Problems,
) -> tuple[Entry, ...]:
    if not isinstance(value, list):
        problems.add("tensors", f"expected an array, found {kind(value)}")
        return ()
    if exceeds(len(value), limits.tensors):
        problems.over(
            "tensors", f"{len(value)} tensors, the limit is {limits.tensors}", way_over("tensors")
        )
        return ()
    entries = []
    digits = ALGORITHMS[checksum].digits
    for position, item in enumerate(value):
        try:
            entries.append(_parse_entry(item, codecs, len(shards), digits, limits))
        except UnsupportedVersionError:
            raise
        except (FormatError, LimitError) as error:
            path = f"tensors[{position}]" + (f" ({quote(error.tensor)})" if error.tensor else "")
            if isinstance(error, LimitError):
                problems.over(path, error.message, error.hint)
            else:
                problems.add(path, error.message)
    return tuple(entries)


def _parse_entry(
    item: object, codecs: Sequence[Codec], shards: int, digits: int, limits: Limits
) -> Entry:
    if not isinstance(item, dict):
        raise FormatError(f"expected an object, found {kind(item)}")
    if "requires" in item:
        check_requires(item["requires"])
    name, dtype, shape, device, layout = parse_identity(item, limits)
    try:
        shard, codec = item.get("shard"), item.get("codec")
        if type(shard) is not int or not 0 <= shard < shards:
            raise FormatError(f"shard is {quote(shard)}, there are {shards}")
        if type(codec) is not int or not 0 <= codec < len(codecs):
            raise FormatError(f"codec is {quote(codec)}, there are {len(codecs)}")
        offset, length, chunks = item.get("offset"), item.get("length"), item.get("chunks")
        if not is_size(offset) or not is_size(length) or not isinstance(chunks, list):
            raise FormatError("offset and length must be integers, chunks an array")
        nbytes = check_chunking(dtype, shape, codecs[codec], len(chunks))
        rows = tuple([_parse_chunk(chunk, digits) for chunk in chunks])
    except FormatError as error:
        error.at(tensor=name)
        raise
    return Entry(
        name, dtype, shape, device, codecs[codec], shard, offset, length, rows, nbytes, layout
    )


def _parse_chunk(chunk: object, digits: int) -> tuple[int, int, str]:
    if isinstance(chunk, list) and len(chunk) == 3:
        offset, length, checksum = chunk
        if is_size(offset) and is_size(length) and is_hex(checksum, digits):
            return offset, length, checksum
    raise FormatError(f"chunk {quote(chunk)} is not [offset, length, checksum of {digits} digits]")


def _first_double(entries: Iterable[Entry]) -> str:
    seen: set[str] = set()
    for entry in entries:
        if entry.name in seen:
            return entry.name
        seen.add(entry.name)
    return ""
