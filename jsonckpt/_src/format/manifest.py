"""Writes and reads the text of ``manifest.json`` (format sections 3 and 5). Pure: no I/O."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, TypeVar

import orjson

from ..errors import (
    FormatError,
    JsonckptError,
    LimitError,
    UnsupportedVersionError,
    line_endings,
    quote,
    rewritten,
    seal_differs,
    seal_missing,
)
from . import filenames, json_text, regions
from .checksums import ALGORITHMS, seal_of
from .json_text import Json
from .limits import Limits, exceeds, way_over
from .model import (
    FORMAT_VERSION,
    MANIFEST_FORMAT,
    SHARED_SHARDS,
    Codec,
    Entry,
    Manifest,
    ShardFile,
    claimed_bytes,
    is_size,
    optional_members,
)
from .validation import (
    KINDS,
    Problems,
    check_chunking,
    check_header,
    check_layout,
    check_requires,
    check_storages,
    checksum_name,
    is_hex,
    kind,
    known_versions,
    parse_codec,
    parse_identity,
)

#: More than any save needs.
_MOST_CODECS = 10_000
_Row = TypeVar("_Row")
_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z")
#: Longest ``created_at`` and ``created_by``.
_LONGEST_TEXT = 1_000
#: ``created_at``, ``created_by``, ``metadata`` and ``state``.
Description = tuple[str, str, dict[str, Any], Any]
_SEAL_TAIL = re.compile(rb',\n"seal":"([a-z0-9_]{1,16}):([0-9a-f]{1,128})"\}\s*\Z')


def dump_manifest(manifest: Manifest) -> bytes:
    """The bytes of ``manifest.json``, sealed."""
    codecs = list(dict.fromkeys(entry.codec for entry in manifest.entries))
    number = {codec: position for position, codec in enumerate(codecs)}
    text = json_text.dump
    needed = [*manifest.features, *regions.required_features(e.name for e in manifest.entries)]
    features: dict[str, Json] = {"requires": [*needed]} if needed else {}
    first: dict[str, Json] = {
        "format": MANIFEST_FORMAT,
        "version": FORMAT_VERSION,
        **features,
        "save_id": manifest.save_id,
        "created_at": manifest.created_at,
        "created_by": manifest.created_by,
        "totals": dict(manifest.totals()),
        "checksum": manifest.checksum,
    }
    parts = [text(key) + b":" + text(value) for key, value in first.items()]
    parts[0] = b"{" + parts[0]
    parts += [
        b'"metadata":' + json_text.dump_pretty(manifest.metadata),
        b'"state":' + json_text.dump_pretty(manifest.state),
    ]
    _add_rows(parts, b'"shards":', [text(shard.row()) for shard in manifest.shards])
    _add_rows(parts, b'"codecs":', [text(asdict(codec)) for codec in codecs])
    _add_rows(parts, b'"tensors":', [_entry_text(e, number[e.codec]) for e in manifest.entries])
    body = b",\n".join(parts)
    parts.clear()  # they can be as large as the body
    return body + b',\n"seal":' + text(seal_of(manifest.checksum, body)) + b"}\n"


def _add_rows(parts: list[bytes], key: bytes, rows: list[bytes]) -> None:
    """Add a member that is an array, with one line for each element."""
    if not rows:
        parts.append(key + b"[]")
        return
    rows[0] = key + b"[\n" + rows[0]
    rows[-1] += b"\n]"
    parts += rows


def _entry_text(entry: Entry, codec: int) -> bytes:
    sizes = ",".join(map(str, entry.shape))
    chunks = ",".join([f'[{start},{size},"{checksum}"]' for start, size, checksum in entry.chunks])
    return (
        f'{{"name":{json_text.quoted(entry.name)},"dtype":"{entry.dtype}","shape":[{sizes}]'
        f'{optional_members(entry)},"shard":{entry.shard},"offset":{entry.offset},"length":{entry.length},'
        f'"codec":{codec},"chunks":[{chunks}]}}'
    ).encode()


@json_text.collector_paused()
def parse_manifest(text: bytes, limits: Limits, *, trust: bool = False) -> Manifest:
    """Read and validate a whole ``manifest.json``. The error lists several problems, if there are.

    If its seal is null, it may have any layout.

    Args:
        trust: read it although the text does not match its seal.

    Raises:
        FormatError, LimitError, UnsafePathError, UnsupportedVersionError: the text breaks a rule.
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
    sealed = not trust and _check_seal(text, header)
    problems = Problems()
    about = _parse_description(header, problems)
    checksum = checksum_name(header.get("checksum"))
    shards = _parse_shards(header, checksum, limits, problems)
    codecs = _parse_rows(
        header, "codecs", _MOST_CODECS, lambda item: parse_codec(item, limits), problems
    )
    problems.raise_if_any()
    digits = ALGORITHMS[checksum].digits
    entries = _parse_rows(
        header,
        "tensors",
        limits.tensors,
        lambda item: _parse_entry(item, codecs, len(shards), digits, limits),
        problems,
    )
    problems.raise_if_any()
    manifest = _checked(
        header,
        about,
        shards,
        entries,
        [shard.text_bytes for shard in shards],
        sum(shard.bytes for shard in shards),
        limits,
    )
    return replace(manifest, sealed=sealed, digest=f"sha256:{hashlib.sha256(text).hexdigest()}")


def _parse_description(header: dict[str, Any], problems: Problems) -> Description:
    """What a manifest or the head of a single file says about the save, and its state."""
    expected: type
    for member, expected in (("created_at", str), ("created_by", str), ("metadata", dict)):
        value: Any = header.get(member)
        if type(value) is not expected:
            problems.add(member, f"expected {KINDS[expected]}, found {kind(value)}")
        elif expected is str and len(value) > _LONGEST_TEXT:
            problems.add(member, f"has {len(value)} characters, over {_LONGEST_TEXT}")
        elif member == "created_at" and not _TIME.fullmatch(str(value)):
            problems.add(member, f"{quote(value)} is not YYYY-MM-DDTHH:MM:SSZ")
    if "state" not in header:
        problems.add("state", "is missing")
    get = header.get
    return get("created_at", ""), get("created_by", ""), get("metadata", {}), get("state")


def parse_head(head: dict[str, Any]) -> Description:
    """What the head of a single file says about the save, and its state.

    Raises:
        FormatError: a member is missing or wrong.
    """
    if "state" not in head:
        raise FormatError(
            "the file has no member state: it is one shard of a directory",
            hint="Open the directory that holds its manifest.json, or use jsonckpt.stream.",
        )
    problems = Problems()
    about = _parse_description(head, problems)
    problems.raise_if_any()
    return about


def manifest_of_head(
    head: dict[str, Any],
    entries: Sequence[Entry],
    size: int,
    limits: Limits,
    *,
    on_disk: int | None = None,
    head_digest: str = "",
    seal: str = "",
    any_layout: bool = False,
) -> Manifest:
    """The manifest that a single file would have.

    Args:
        size: bytes of the text.
        on_disk: bytes of the file, if it is compressed.
        seal: empty if it is null.
        any_layout: the ranges need not be those of the layout in lines.

    Raises:
        FormatError, LimitError: the entries break a rule.
    """
    manifest = _checked(
        head,
        parse_head(head),
        (),
        entries,
        [size],
        size if on_disk is None else on_disk,
        limits,
        totals=("tensors", "bytes"),
        any_layout=any_layout,
    )
    return replace(manifest, head_digest=head_digest, sealed=bool(seal), digest=seal)


def _checked(
    header: dict[str, Any],
    about: Description,
    shards: Sequence[ShardFile],
    entries: Sequence[Entry],
    sizes: Sequence[int],
    on_disk: int,
    limits: Limits,
    *,
    totals: Iterable[str] = ("tensors", "bytes", "stored_bytes", "shards"),
    any_layout: bool = False,
) -> Manifest:
    """The manifest, after checking that its records fit together and into their files.

    Args:
        sizes: bytes of the text of each file.
        totals: the members of ``totals`` that must be there and agree.
    """
    problems = Problems()
    if not any_layout:
        check_layout(entries, sizes, limits, problems)
    _check_totals(entries, on_disk, limits, problems)
    check_storages(entries, problems)
    created_at, created_by, metadata, state = about
    manifest = Manifest(
        header["save_id"],
        created_at,
        created_by,
        header["checksum"],
        metadata,
        state,
        tuple(shards),
        tuple(entries),
    )
    if len(manifest.by_name) != len(entries):
        problems.add("tensors", f"the name {quote(_first_double(entries))} occurs twice")
    for name in regions.required_features(manifest.by_name):
        if name not in header.get("requires", ()):
            problems.add("requires", f"{quote(name)} is missing, and a record is a region")
    found, said = manifest.totals(), header.get("totals")
    expected = {key: found[key] for key in totals}
    if not isinstance(said, dict) or any(
        type(said.get(key)) is not int or said[key] != value for key, value in expected.items()
    ):
        problems.add("totals", f"{quote(said)} does not agree with the rest: {expected}")
    problems.raise_if_any()
    if regions.FEATURE in header.get("requires", ()):
        manifest = replace(manifest, wholes=regions.wholes(state, manifest.by_name))
    return manifest


def _check_totals(
    entries: Sequence[Entry], on_disk: int, limits: Limits, problems: Problems
) -> None:
    """Check the limits on the whole checkpoint."""
    chunks = sum(len(entry.chunks) for entry in entries)
    most = limits.most_chunks(on_disk)
    if exceeds(chunks, most):
        problems.over(
            "tensors",
            f"{chunks} chunks in {on_disk} bytes of files, the limit is {most}",
            # A larger number does not lift the limit that follows from the bytes on disk.
            way_over("chunks") if exceeds(chunks, limits.chunks) else way_over("chunks", "None"),
        )
    total = claimed_bytes((entry.nbytes, entry.layout) for entry in entries)
    if exceeds(total, limits.total_bytes(on_disk)):
        problems.over(
            "tensors",
            f"{total} bytes of tensors in {on_disk} bytes of files is over the limit",
            way_over("total_floor"),
        )


def shard_files(text: bytes, limits: Limits) -> list[ShardFile]:
    """The shards that a manifest names. Its tensors are not checked.

    Raises:
        JsonckptError: the text is not a whole manifest.
    """
    # The count is slow, and a text has at most one mark for each byte.
    if exceeds(len(text), limits.marks) and exceeds(json_text.marks_of(text), limits.marks):
        raise LimitError(
            f"the manifest has over {limits.marks} brackets and strings",
            hint=way_over("marks", "None"),
        )
    try:
        # A lenient parser will do: only file names are used, and they are checked.
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise FormatError(f"the manifest is not JSON: {error}") from error
    header = check_header(value, MANIFEST_FORMAT)
    _check_seal(text, header)
    problems = Problems()
    shards = _parse_shards(header, checksum_name(header.get("checksum")), limits, problems)
    problems.raise_if_any()
    return shards


def parse_misread(text: bytes, limits: Limits) -> tuple[Manifest, bytes]:
    """As :func:`parse_manifest`, but repairs a damaged version number.

    Returns:
        The manifest, and the text that matches its seal.

    Raises:
        UnsupportedVersionError: the seal matches with no known version.
        JsonckptError: as :func:`parse_manifest`.
    """
    try:
        return parse_manifest(text, limits), text
    except UnsupportedVersionError:
        if _SEAL_TAIL.search(text) is not None:
            for guess in known_versions(text):
                with suppress(JsonckptError):
                    return parse_manifest(guess, limits), guess
        raise


def _check_seal(text: bytes, header: dict[str, Any]) -> bool:
    """Check a text against its seal. False if its seal is null: then it may have any layout."""
    if "seal" not in header:
        raise seal_missing()
    seal = header["seal"]
    if seal is None:
        return False
    if not isinstance(seal, str):
        raise FormatError(f"seal is {quote(seal)}, expected a string or null")
    algorithm = seal.partition(":")[0]
    if algorithm not in ALGORITHMS:
        raise FormatError(f"seal names the algorithm {quote(algorithm)}, which is not known")
    found = _seal_found(text, algorithm)
    if found == seal:
        return True
    if b"\r\n" in text and _seal_found(text.replace(b"\r\n", b"\n"), algorithm) == seal:
        raise line_endings()
    raise rewritten() if found is None else seal_differs(quote(seal).strip("'"), found)


def _seal_found(text: bytes, algorithm: str) -> str | None:
    """The seal that a text should have; ``None`` if its last line is not that of a writer."""
    match = _SEAL_TAIL.search(text, max(0, len(text) - 400))
    return None if match is None else seal_of(algorithm, text[: match.start()])


def _parse_rows(
    header: dict[str, Any],
    member: str,
    most: int | None,
    parse: Callable[[object], _Row],
    problems: Problems,
) -> list[_Row]:
    """The parsed elements of an array. A problem with one does not stop the others."""
    value = header.get(member)
    if not isinstance(value, list):
        problems.add(member, f"expected an array, found {kind(value)}")
        return []
    if exceeds(len(value), most):
        problems.over(member, f"{len(value)} {member}, the limit is {most}", way_over(member))
        return []
    rows = []
    for position, item in enumerate(value):
        try:
            rows.append(parse(item))
        except UnsupportedVersionError:
            raise
        except (FormatError, LimitError) as error:
            name = f" ({quote(error.tensor)})" if error.tensor else ""
            problems.note(f"{member}[{position}]{name}", error)
    return rows


def _parse_shards(
    header: dict[str, Any], checksum: str, limits: Limits, problems: Problems
) -> list[ShardFile]:
    shared = SHARED_SHARDS in header.get("requires", [])

    def parse(item: object) -> ShardFile:
        return filenames.parse_shard_row(item, checksum, shared=shared)

    shards = _parse_rows(header, "shards", limits.shards, parse, problems)
    if len({shard.path for shard in shards}) != len(shards):
        problems.add("shards", "a file occurs twice")
    return shards


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
        name,
        dtype,
        shape,
        device,
        codecs[codec],
        nbytes,
        shard,
        offset,
        length,
        rows,
        layout=layout,
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
