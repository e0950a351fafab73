"""How large a checkpoint may be before a reader refuses it, in one frozen object."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from ..errors import ArgumentError, LimitError, quote

MIB = 1 << 20
_NUMBER = re.compile("[0-9]{1,100}")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds that a reader applies before it allocates; the writer obeys the defaults, too.

    ``None`` lifts a limit. Sizes are in bytes. The defaults are those of ``docs/format.md``
    section 8; they allow a checkpoint of several terabytes. ``marks`` counts the brackets and the
    strings of a manifest or of a single file's head, which decide what its values take in memory.

    Attributes:
        manifest_bytes: of the manifest, or of the text beside the payloads of a file. Of a
            compressed file also no more than 4 MiB, or ``expansion`` times the bytes on disk.
        tensors, chunks, shards: how many.
        name_bytes: of a tensor's name, in UTF-8.
        rank: dimensions of a tensor.
        chunk_bytes: raw bytes of a chunk.
        depth: levels of arrays and objects.
        number_chars: characters of a number in the state.
        marks: brackets and strings of a manifest or of a file's head. Of a compressed file also
            no more than 1,000,000, or four for each byte on disk.
        total_floor, expansion: all tensors may have ``total_floor`` raw bytes, or ``expansion``
            times the bytes on disk where that is more. So may what is copied to make something
            of them, such as NumPy arrays in another order.
        zstd_window: the memory that a zstd frame may ask for.
        links: 0 refuses files of a checkpoint that are symbolic links, as download caches make
            them. Links to the directory that holds them are followed: the caller names it.

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
                    f"{field.name} must be an integer from 0 on, or None, not {quote(value)}"
                )
        if self.links not in (None, 0):
            raise ArgumentError(f"links must be 0 or None, not {self.links!r}")

    @property
    def follow(self) -> bool:
        """Whether symbolic links to files are followed."""
        return self.links is None

    def most_chunks(self, on_disk: int | None) -> int | None:
        """The most chunks that a checkpoint of ``on_disk`` bytes, if known, may claim to have.

        Each takes some microseconds, and text that compresses well could claim millions in a few
        hundred bytes. In text that is not compressed a chunk takes more than 50 bytes.
        """
        if self.chunks is None or on_disk is None:
            return self.chunks
        return min(self.chunks, max(_FEW_CHUNKS, on_disk // _LEAST_PER_CHUNK))

    def for_text(self, on_disk: int | None) -> Limits:
        """These limits for the text of a file of ``on_disk`` bytes, if known, beside its payloads.

        Compressed text can be thousands of times as long as its file, and what a parser makes of
        it is longer still. In text that is not compressed this changes nothing.
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
        """The most raw bytes that a checkpoint of ``on_disk`` bytes may claim to hold."""
        if self.total_floor is None or self.expansion is None:
            return None
        return max(self.total_floor, self.expansion * on_disk)


def checked_limits(limits: object) -> Limits:
    """The argument ``limits`` of the face: ``None`` stands for the defaults.

    Raises:
        ArgumentError: something else.
    """
    if limits is None:
        return DEFAULT_LIMITS
    if not isinstance(limits, Limits):
        raise ArgumentError(
            f"limits must be jsonckpt.Limits(...) or None, not {quote(type(limits).__name__)}"
        )
    return limits


#: So many take a second at most.
_FEW_CHUNKS = 50_000
_LEAST_PER_CHUNK = 32
#: So many, and so much text, take some 100 MiB until they are part of a state.
_FEW_MARKS = 1_000_000
_MARKS_PER_BYTE = 4
_SHORT_TEXT = 4 * MIB
DEFAULT_LIMITS = Limits()


class Copies:
    """What one load makes beside the records' own memory, counted before it is made.

    A file of some hundred bytes can ask for any number of copies of one record, or for one of a
    view whose elements all lie in one place. Copies may be as large in all as the tensors may be:
    whoever copies each record once, as every state does that was saved, never meets the limit.

    Args:
        limits: what is too large.
        on_disk: bytes of the files; may be set anew as more of them comes.
    """

    def __init__(self, limits: Limits = DEFAULT_LIMITS, on_disk: int = 0) -> None:
        self.limits = limits
        self.on_disk = on_disk
        self._taken = 0
        self._files: set[str] = set()

    def found(self, file: str, nbytes: int) -> None:
        """One of the files is there and has so many bytes; each counts once."""
        if file not in self._files:
            self._files.add(file)
            self.on_disk += nbytes

    def charge(self, nbytes: int, place: str) -> None:
        """Count ``nbytes`` that are about to be made, or gone through, for what is at ``place``.

        Raises:
            LimitError: they are too many.
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
    """The way out for what is over a limit, as a hint of an error.

    >>> way_over("chunks", "None")
    'Pass limits=jsonckpt.Limits(chunks=None) if it is meant.'
    """
    return f"Pass limits=jsonckpt.Limits({name}={value}) if it is meant."


def exceeds(value: int, limit: int | None) -> bool:
    """Whether ``value`` is over a limit that may have been lifted."""
    return limit is not None and value > limit


def check_beside(length: int, limits: Limits) -> None:
    """Refuse too much text beside the payloads.

    Raises:
        LimitError: ``length`` bytes are too many.
    """
    if exceeds(length, limits.manifest_bytes):
        raise LimitError(
            f"over {limits.manifest_bytes} bytes of text beside the tensors",
            hint=way_over("manifest_bytes", "None"),
        )


def parse_limits(pairs: Iterable[str]) -> Limits:
    """Limits from ``NAME=VALUE`` texts, as the command lines take them; ``none`` lifts one.

    Raises:
        ArgumentError: an unknown name, or no number.

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
