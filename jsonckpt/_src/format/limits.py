"""The limits on the size of a checkpoint (format section 8)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ..errors import ArgumentError, LimitError, quote
from ..shown import ShortRepr

MIB = 1 << 20
_NUMBER = re.compile("[0-9]{1,100}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Limits(ShortRepr):
    """Limits that a reader checks before it allocates memory. The writer obeys the defaults, too.

    ``None`` lifts a limit. Sizes are in bytes. The defaults are those of ``docs/format.md``
    section 8; they allow a checkpoint of several terabytes.

    Attributes:
        manifest_bytes: of the manifest, or of the text around the payloads of a file. For a
            compressed file also 4 MiB, or ``expansion`` times the bytes on disk if that is more.
        tensors, chunks, shards: how many.
        name_bytes: of a tensor's name, in UTF-8.
        rank: dimensions of a tensor.
        chunk_bytes: raw bytes of a chunk.
        depth: levels of arrays and objects.
        number_chars: characters of a number in the state.
        marks: brackets and strings of a manifest or of a file's head. They decide how much memory
            the values take. For a compressed file also 1,000,000, or four for each byte on disk if
            that is more.
        total_floor, expansion: all tensors together may have ``total_floor`` raw bytes, or
            ``expansion`` times the bytes on disk if that is more. The same holds for all copies
            that a load makes, such as NumPy arrays in another order.
        zstd_window: the memory that a zstd frame may ask for.
        links: 0 refuses files of a checkpoint that are symbolic links (download caches make
            such links). A link to the checkpoint's directory is always followed.

    >>> Limits(tensors=10).tensors
    10
    """

    manifest_bytes: int | None = 64 * MIB
    tensors: int | None = 500_000
    chunks: int | None = 4_000_000
    shards: int | None = 100_000
    name_bytes: int | None = 1_024
    rank: int | None = 64
    chunk_bytes: int | None = 64 * MIB
    depth: int | None = 200
    number_chars: int | None = 1_000
    marks: int | None = 10_000_000
    total_floor: int | None = 1 << 30
    expansion: int | None = 1_000
    zstd_window: int | None = 64 * MIB
    links: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is not None and (type(value) is not int or value < 0):
                raise ArgumentError(
                    f"{field.name} must be a non-negative integer or None, not {quote(value)}"
                )
        if self.links not in (None, 0):
            raise ArgumentError(f"links must be 0 or None, not {self.links!r}")

    @property
    def follow(self) -> bool:
        """Whether symbolic links to files are followed."""
        return self.links is None

    def most_chunks(self, on_disk: int | None) -> int | None:
        """The most chunks that a checkpoint of ``on_disk`` bytes (if known) may have.

        A chunk takes some microseconds to read, and a few hundred bytes of compressed text can
        name millions. In text that is not compressed a chunk takes more than 50 bytes.
        """
        if self.chunks is None or on_disk is None:
            return self.chunks
        return min(self.chunks, max(_FEW_CHUNKS, on_disk // _LEAST_PER_CHUNK))

    def for_text(self, on_disk: int | None) -> Limits:
        """These limits for the text around the payloads in a file of ``on_disk`` bytes (if known).

        Compressed text can be thousands of times as long as its file, and its values take even
        more memory. Text that is not compressed never meets these limits.
        """
        if on_disk is None:
            return self
        marks, text = self.marks, self.manifest_bytes
        if marks is not None:
            marks = min(marks, max(_FEW_MARKS, _MARKS_PER_BYTE * on_disk))
        if text is not None and self.expansion is not None:
            text = min(text, max(_SHORT_TEXT, self.expansion * on_disk))
        if (marks, text) == (self.marks, self.manifest_bytes):
            return self
        return replace(self, marks=marks, manifest_bytes=text)

    def total_bytes(self, on_disk: int) -> int | None:
        """The most raw bytes that a checkpoint of ``on_disk`` bytes may have."""
        if self.total_floor is None or self.expansion is None:
            return None
        return max(self.total_floor, self.expansion * on_disk)


def checked_limits(limits: object) -> Limits:
    """The public argument ``limits``; ``None`` means the defaults.

    Raises:
        ArgumentError: neither ``Limits`` nor ``None``.
    """
    if limits is None:
        return DEFAULT_LIMITS
    if not isinstance(limits, Limits):
        raise ArgumentError(
            f"limits must be jsonckpt.Limits(...) or None, not {quote(type(limits).__name__)}"
        )
    return limits


#: Files of any size may have this many chunks, which take a second at most.
_FEW_CHUNKS = 50_000
_LEAST_PER_CHUNK = 32
#: Files of any size may have this many marks and this much text, which take some 100 MiB.
_FEW_MARKS = 1_000_000
_MARKS_PER_BYTE = 4
_SHORT_TEXT = 4 * MIB
DEFAULT_LIMITS = Limits()


class Copies:
    """Counts the memory that one load takes in addition to the records, before it is taken.

    A file of a few hundred bytes can ask for any number of copies of a record, or for a copy of a
    view whose elements are all the same byte. All copies together may be as large as all tensors
    may be. A state that was saved needs one copy of each record at most, and never meets the limit.

    Args:
        limits: what is too large.
        on_disk: bytes of the files; may be changed as more of them arrives.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, on_disk: int = 0) -> None:
        self.limits = limits
        self.on_disk = on_disk
        self._taken = 0
        self._files: set[str] = set()

    def found(self, file: str, nbytes: int) -> None:
        """Count the bytes of one of the files, once for each file."""
        if file not in self._files:
            self._files.add(file)
            self.on_disk += nbytes

    def charge(self, nbytes: int, place: str) -> None:
        """Count ``nbytes`` that are about to be allocated or read for ``place``.

        Raises:
            LimitError: together with the others they are over the limit.
        """
        self._taken += nbytes
        most = self.limits.total_bytes(self.on_disk)
        if exceeds(self._taken, most):
            raise LimitError(
                f"this needs {nbytes} bytes of memory, with that of others {self._taken} for "
                f"{self.on_disk} bytes of files; the limit is {most}",
                tensor=place,
                hint=way_over("total_floor"),
            )


def way_over(name: str, value: str = "...") -> str:
    """The hint of an error about a limit.

    >>> way_over("chunks", "None")
    'Pass limits=jsonckpt.Limits(chunks=None) if it is meant.'
    """
    return f"Pass limits=jsonckpt.Limits({name}={value}) if it is meant."


def exceeds(value: int, limit: int | None) -> bool:
    """Whether ``value`` is over the limit, if there is one."""
    return limit is not None and value > limit


def check_beside(length: int, limits: Limits) -> None:
    """Check the length of the text around the payloads.

    Raises:
        LimitError: ``length`` is over the limit.
    """
    if exceeds(length, limits.manifest_bytes):
        raise LimitError(
            f"over {limits.manifest_bytes} bytes of text beside the tensors",
            hint=way_over("manifest_bytes", "None"),
        )


def parse_limits(pairs: Iterable[str]) -> Limits:
    """Limits from ``NAME=VALUE`` texts of a command line; ``NAME=none`` lifts one.

    Raises:
        ArgumentError: an unknown name, or not a number.

    >>> parse_limits(["tensors=10", "rank=none"]).tensors
    10
    """
    known = [field.name for field in fields(Limits)]
    values: dict[str, int | None] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if name not in known:
            raise ArgumentError(f"no limit {quote(name)}; there are {', '.join(known)}")
        if value.lower() != "none" and not _NUMBER.fullmatch(value):
            raise ArgumentError(f"{name} must be a number or none, not {quote(value)}")
        values[name] = None if value.lower() == "none" else int(value)
    return Limits(**values)
