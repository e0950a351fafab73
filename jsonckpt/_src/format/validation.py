"""The rules that manifest and shards share (format sections 2, 3.2 and 8). Pure."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from ..errors import (
    FormatError,
    JsonckptError,
    LimitError,
    UnsafePathError,
    UnsupportedVersionError,
    quote,
)
from . import regions
from .checksums import ALGORITHMS
from .chunk_codec import longest_payload
from .dtypes import DTYPES
from .limits import Limits, exceeds, way_over
from .model import (
    COMPRESSIONS,
    ENCODINGS,
    FILTERS,
    FORMAT_VERSION,
    MAX_SIZE,
    PLAIN,
    SHARD_FORMAT,
    SHARED_SHARDS,
    Codec,
    Entry,
    Layout,
    chunk_count,
    element_count,
    is_size,
    parse_layout,
)

#: Features that ``requires`` may name.
KNOWN_FEATURES: Final = frozenset({SHARED_SHARDS, regions.FEATURE})
#: What names of records that are not places begin with.
_OTHER: Final = ("$storage/", regions.PREFIX)
_SAVE_ID = re.compile(r"[0-9a-f]{32}")
_BAD_NAME = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
#: Problems that one message shows.
_PROBLEMS_SHOWN = 3
_SAID_VERSION = re.compile(rb'("version"[ \t]*:[ \t]*)[0-9]+')
#: Members that say which version a file has. They stand before ``_BEHIND``.
_FIRST_MEMBERS = re.compile(
    rb'"(format|version|requires|readable_by|created_by)"[ \t\r\n]*:[ \t\r\n]*'
    rb'("[^"\\]{0,200}"|-?[0-9]{1,20}|\[[^\[\]{}]{0,1000}\])'
)
_BEHIND = re.compile(rb'"(?:state|metadata|tensors)"[ \t\r\n]*:')
LONGEST_BEGINNING = 16 << 10
#: Longest ``readable_by`` and ``created_by`` that a message repeats.
_LONGEST_RELEASE = 80
#: Bytes of a record's first line, and of its last line without the checksums.
LONGEST_LINE = 1 << 20


class Problems:
    """Collects problems with their paths, and raises them as one error."""

    def __init__(self) -> None:
        self.found: list[str] = []
        self._hints: dict[type[JsonckptError], str | None] = {}

    def add(
        self,
        path: str,
        message: str,
        error: type[JsonckptError] = FormatError,
        hint: str | None = None,
    ) -> None:
        """Note a problem and the class of its error."""
        self.found.append(f"{path}: {message}" if path else message)
        if self._hints.get(error) is None:
            self._hints[error] = hint

    def over(self, path: str, message: str, hint: str | None) -> None:
        """Note that a limit is exceeded; ``hint`` is the way out."""
        self.add(path, message, LimitError, hint)

    def note(self, path: str, error: JsonckptError) -> None:
        """Note an error that was raised at ``path``."""
        self.add(path, error.message, type(error), error.hint)

    def raise_if_any(self) -> None:
        """Raise the problems, if there are any.

        Raises:
            UnsafePathError, LimitError, FormatError: the first of these classes that was noted.
        """
        shown = "; ".join(self.found[:_PROBLEMS_SHOWN])
        more = len(self.found) - _PROBLEMS_SHOWN
        if more > 0:
            shown += f"; and {more} more"
        if UnsafePathError in self._hints:
            raise UnsafePathError(shown, hint="Do not trust this file.")
        if LimitError in self._hints:
            raise LimitError(shown, hint=self._hints[LimitError])
        if self.found:
            raise FormatError(shown, hint="Run jsonckpt.verify on it, or take another copy.")


def check_header(value: object, expected_format: str) -> dict[str, Any]:
    """Check the first members of a file: format, version, requires, save_id.

    Raises:
        UnsupportedVersionError: a newer version, or an unknown feature.
        FormatError: a member is missing or wrong.
    """
    if not isinstance(value, dict):
        raise FormatError(f"expected a JSON object, found {kind(value)}")
    found = value.get("format")
    if found != expected_format:
        raise FormatError(
            f"format is {quote(found)}, expected {expected_format!r}",
            hint="This is not a jsonckpt file; python -m jsonckpt.convert reads other programs'.",
        )
    check_version(value)
    check_save_id(value.get("save_id"))
    return value


def check_save_id(save_id: object) -> str:
    """``save_id`` itself, if it is one. Raises :class:`FormatError`."""
    if not isinstance(save_id, str) or not _SAVE_ID.fullmatch(save_id):
        raise FormatError(f"save_id is {quote(save_id)}, expected 32 hexadecimal digits")
    return save_id


def check_version(header: dict[str, Any]) -> None:
    """Check the members ``version`` and ``requires``.

    Raises:
        UnsupportedVersionError: a newer version, or an unknown feature.
        FormatError: a member is missing or wrong.
    """
    version = header.get("version")
    if type(version) is not int or version < 1:
        raise FormatError(f"version is {quote(version)}, expected a positive integer")
    if version > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"format version {quote(version).strip(chr(39))} is newer than {FORMAT_VERSION}, "
            f"the newest that this release reads{_reader_of(header)}",
            hint="Upgrade: pip install -U jsonckpt.",
        )
    check_requires(header.get("requires", []))


def known_versions(text: bytes) -> Iterator[bytes]:
    """Copies of a text of an unknown version, each with a known version instead."""
    for version in range(FORMAT_VERSION, 0, -1):
        yield _SAID_VERSION.sub(rb"\g<1>%d" % version, text, count=1)


def check_not_newer(beginning: bytes) -> None:
    """Check that a text which cannot be read is not of a later version.

    This release does not know the layout of later versions, but the first members give the version
    (format section 9).

    Args:
        beginning: the first bytes of a file, some hundred or more.

    Raises:
        UnsupportedVersionError: it is of a later version.
    """
    said: dict[str, Any] = {}
    head = _BEHIND.split(beginning[:LONGEST_BEGINNING], maxsplit=1)[0]
    for match in _FIRST_MEMBERS.finditer(head):
        try:
            said.setdefault(match[1].decode(), json.loads(match[2]))
        except ValueError:
            return  # damaged: the caller has an error to raise
    if said.get("format") != SHARD_FORMAT or "version" not in said:
        return
    try:
        check_version(said)
    except UnsupportedVersionError:
        raise
    except FormatError:
        return  # damaged, too


def _reader_of(header: dict[str, Any]) -> str:
    """For a message: which release reads a file of a later version, if the file says so."""
    for member, words in (
        ("readable_by", "; {} and later read it"),
        ("created_by", "; it was written by {}"),
    ):
        value = header.get(member)
        if isinstance(value, str) and 0 < len(value) <= _LONGEST_RELEASE:
            return words.format(quote(value))
    return ""


def check_requires(requires: object) -> None:
    """Check that this release knows all features in ``requires``.

    Raises:
        UnsupportedVersionError: it does not; the message names the features.
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
    """The name of a known checksum algorithm."""
    if not isinstance(value, str) or value not in ALGORITHMS:
        raise FormatError(f"checksum is {quote(value)}, expected one of {', '.join(ALGORITHMS)}")
    return value


def parse_codec(item: object, limits: Limits) -> Codec:
    """The codec that the members of ``item`` describe.

    Raises:
        FormatError, LimitError: a member is wrong or over a limit; the message names it.
    """
    if not isinstance(item, dict):
        raise FormatError(f"expected an object, found {kind(item)}")
    for member, known in (
        ("encoding", ENCODINGS),
        ("compression", COMPRESSIONS),
        ("filter", FILTERS),
    ):
        found = item.get(member)
        if not isinstance(found, str) or found not in known:
            raise FormatError(
                f"unknown {member} {quote(found)}, this release knows {', '.join(known)}"
            )
    codec = Codec(item["encoding"], item["compression"], item["filter"], item.get("chunk_bytes", 0))
    if codec.encoding == "list" and (codec.compression, codec.filter) != ("none", "none"):
        raise FormatError("encoding list goes with compression none and filter none only")
    if type(codec.chunk_bytes) is not int or codec.chunk_bytes < 1:
        found = quote(item.get("chunk_bytes"))
        raise FormatError(f"chunk_bytes is {found}, expected a positive integer")
    if exceeds(codec.chunk_bytes, limits.chunk_bytes):
        raise LimitError(
            f"chunk_bytes is {codec.chunk_bytes}, over the limit of {limits.chunk_bytes}",
            hint=way_over("chunk_bytes"),
        )
    return codec


def check_name(name: str, limits: Limits) -> None:
    """Check the name of a tensor.

    Raises:
        FormatError, LimitError: no tensor may have this name.
    """
    if _BAD_NAME.search(name):
        raise FormatError(f"name {quote(name)} holds control characters or surrogates")
    if limits.name_bytes is not None and 4 * len(name) > limits.name_bytes:
        size = len(name.encode())
        if size > limits.name_bytes:
            raise LimitError(
                f"name {quote(name)} has {size} bytes, the limit is {limits.name_bytes}",
                hint="Use shorter keys in the state.",
            )


def parse_identity(
    item: dict[str, Any], limits: Limits
) -> tuple[str, str, tuple[int, ...], str, Layout]:
    """``(name, dtype, shape, device, layout)`` of a record or a manifest entry.

    Raises:
        FormatError, LimitError: a member is wrong or over a limit; the message names it.
    """
    name, dtype, shape = item.get("name"), item.get("dtype"), item.get("shape")
    if not isinstance(name, str) or (name and name[0] != "/" and not name.startswith(_OTHER)):
        raise FormatError(f"name is {quote(name)}, expected a JSON Pointer")
    try:
        check_name(name, limits)
    except LimitError as error:
        error.hint = way_over("name_bytes")  # a reader cannot choose the names
        raise
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"unknown dtype {quote(dtype)}", tensor=name)
    if type(shape) is not list or not all(map(is_size, shape)):
        raise FormatError(
            f"shape is {quote(shape)}, expected an array of integers from 0 to 2^63-1", tensor=name
        )
    if exceeds(len(shape), limits.rank):
        raise LimitError(
            f"{len(shape)} dimensions, the limit is {limits.rank}",
            tensor=name,
            hint=way_over("rank"),
        )
    # A zero hides the other sizes from the byte count, but torch still multiplies them.
    if math.prod([size for size in shape if size]) > MAX_SIZE:
        raise LimitError(f"shape {quote(shape)} has over 2^63-1 elements", tensor=name)
    device = "cpu"
    if "device" in item:
        device = item["device"]
        if not isinstance(device, str) or not re.fullmatch(r"[a-z]{1,20}(:[0-9]{1,5})?", device):
            raise FormatError(f"device is {quote(device)}, expected e.g. cuda:0", tensor=name)
    layout = PLAIN
    if "stride" in item or "storage" in item:
        try:
            layout = parse_layout(item, shape, DTYPES[dtype].itemsize)
        except FormatError as error:
            raise error.at(tensor=name)  # noqa: B904, the same error with its place
    if name.startswith(regions.PREFIX):
        regions.check_region_record(name, shape, is_plain=layout is PLAIN)
    return name, dtype, tuple(shape), device, layout


def check_chunking(dtype: str, shape: Sequence[int], codec: Codec, chunks: int) -> int:
    """Check the number of chunks of a record; returns its raw bytes.

    Raises:
        FormatError: the shape makes another number of chunks.
    """
    itemsize = DTYPES[dtype].itemsize
    if codec.chunk_bytes % itemsize:
        raise FormatError(
            f"chunk_bytes {codec.chunk_bytes} is not a multiple of {itemsize} ({dtype})"
        )
    nbytes = element_count(shape) * itemsize
    expected = chunk_count(nbytes, codec.chunk_bytes)
    if chunks != expected:
        raise FormatError(
            f"shape {quote(list(shape))} of {dtype} makes {nbytes} bytes in {expected} chunks, "
            f"found {chunks} chunks"
        )
    return nbytes


#: The program of each compression, by the first bytes of a file.
_COMPRESSED = {b"\x28\xb5\x2f\xfd": "zstd", b"\x1f\x8b": "gzip"}


def no_checkpoint(start: bytes | bytearray) -> FormatError:
    """The error for a file that is not a checkpoint and begins with ``start``."""
    if start.startswith(b"version https://git-lfs"):
        return FormatError(
            "this is a Git LFS pointer, not the file itself",
            hint="Get the file with: git lfs pull",
        )
    begins = f"it begins with {quote(bytes(start[:24]))}" if start else "it is empty"
    text = f"not a jsonckpt checkpoint ({begins})"
    hint = "jsonckpt convert turns .pt, .safetensors and other JSON into one."
    for magic, program in _COMPRESSED.items():
        if start.startswith(magic):
            text = f"compressed with {program}, and only files named .json.zst are decompressed"
            hint = f"Decompress it with: {program} -dc"
    error = FormatError(text, hint=hint)
    error.is_foreign = True
    return error


def longest_tail(chunks: int, algorithm: str | None) -> int:
    """The most bytes of a record's last line: its checksums, each in quotes with a comma."""
    digits = ALGORITHMS[algorithm].digits if algorithm else 0
    return LONGEST_LINE + chunks * (digits + 3)


def check_layout(
    entries: Iterable[Entry], sizes: Sequence[int], limits: Limits, problems: Problems
) -> None:
    """Check that records and payloads follow the layout in lines and do not overlap.

    The text between two payloads must be no longer than a reader accepts.
    """
    ends = [0] * len(sizes)
    way = way_over("manifest_bytes")
    shard = -1
    for entry in entries:
        stop = entry.offset + entry.length
        if entry.shard < shard:
            problems.add(quote(entry.name), "the tensors are not in the order of the shards")
            return
        begins = ends[entry.shard] + 2  # a comma and a line feed
        if entry.shard == shard and entry.offset != begins:
            problems.add(
                quote(entry.name),
                f"it begins at byte {entry.offset}, where it overlaps the tensor before it or "
                f"leaves a gap; expected {begins}",
            )
        if stop > sizes[entry.shard]:
            problems.add(
                quote(entry.name), f"it ends at byte {stop}, the file ends at {sizes[entry.shard]}"
            )
        if entry.shard > shard and exceeds(entry.offset, limits.manifest_bytes):
            problems.over(quote(entry.name), f"{entry.offset} bytes of text before it", way)
        shard = entry.shard
        ends[shard] = stop
        _check_chunks(entry, problems)
    for number, (size, end) in enumerate(zip(sizes, ends)):
        if exceeds(size - end, limits.manifest_bytes):
            problems.over(f"shards[{number}]", f"{size - end} bytes of text after its tensors", way)


def _check_chunks(entry: Entry, problems: Problems) -> None:
    """Check the ranges of a record's payloads."""
    at, stop = entry.offset, entry.offset + entry.length
    longest = longest_payload(min(entry.codec.chunk_bytes, entry.nbytes), entry.codec, entry.dtype)
    last = len(entry.chunks) - 1
    for number, (offset, length, _) in enumerate(entry.chunks):
        if number == last > 0:
            start, end = entry.raw_range(number)
            longest = longest_payload(end - start, entry.codec, entry.dtype)
        # The record's head precedes the first payload. Two payloads are separated by a quote, a
        # comma, a line feed and a quote.
        near = offset == at + 4 if number else at + 2 <= offset <= at + LONGEST_LINE
        if not near or offset + length + 2 > stop:
            fault = "its range overlaps another, leaves a gap or leaves the record"
        elif length > longest:
            fault = f"{length} characters, it can have {longest} at most"
        else:
            at = offset + length
            continue
        problems.add(quote(entry.name), f"chunk {number}: {fault}")
        return
    if stop - at > longest_tail(len(entry.chunks), "sha256") + LONGEST_LINE:
        problems.add(quote(entry.name), f"{stop - at} bytes of text after its data")


def check_storages(entries: Iterable[Entry], problems: Problems) -> None:
    """Check that the records of one storage agree on its size and do not overlap."""
    places = [(e.layout.storage, e.nbytes, e.name) for e in entries if e.layout.storage]
    places.sort()
    for (one, nbytes, _), (other, _, name) in itertools.pairwise(places):
        if one[0] != other[0]:
            continue
        if one[2] != other[2]:
            problems.add(quote(name), f"storage {one[0]} has {one[2]} bytes, or {other[2]}")
        elif one[1] + nbytes > other[1]:
            problems.add(quote(name), f"it overlaps another tensor in storage {one[0]}")


_HEX_DIGITS = frozenset("0123456789abcdef")


def is_hex(value: object, digits: int) -> bool:
    """Whether ``value`` is a string of that many lower-case hexadecimal digits."""
    return isinstance(value, str) and len(value) == digits and _HEX_DIGITS.issuperset(value)


#: The types of JSON values in messages.
KINDS: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "nothing",
}


def kind(value: object) -> str:
    return KINDS.get(type(value), "something else")
