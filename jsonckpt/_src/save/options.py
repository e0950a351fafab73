"""The options of a save, made and checked once from the public arguments."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from ..errors import ArgumentError, quote
from ..format.checksums import ALGORITHMS, hasher
from ..format.filenames import is_single
from ..format.model import COMPRESSIONS, ENCODINGS, MANIFEST_NAME
from ..parallel import thread_count
from ..state.selector import Selector
from ..storage.path_arguments import check_storage_options, is_url, path_text
from . import reader_limits

_LARGEST_FILE = (1 << 63) - 1
#: A shard gets no larger: of a save, and of one by content, which a repository keeps.
_SHARD_SIZE, _CONTENT_SHARD_SIZE = 5_000_000_000, 32_000_000
#: The most characters of a size. A number with more digits is larger than any file.
_LONGEST_SIZE = 100
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?\s*", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """The options of a save, checked.

    Attributes:
        save_id: ``"content"``: the bytes depend on the state only. ``None``: a random id.
        shared: the most that group and others may do with the files (mode bits).
        sized: whether the caller has named ``max_shard_size``.
        unchanged_from: an earlier checkpoint directory beside the new one. Shards without changed
            tensors are used again.
        frozen: selects the tensors that are expected not to change; they get shards of their own.
        single_file: one file or a directory, whatever the name; ``None``: its ending decides.
    """

    encoding: str = "base64"
    compression: str = "none"
    level: int | None = None
    filter: str = "auto"
    chunk_bytes: int = 1 << 20
    max_shard_size: int = _SHARD_SIZE
    checksum: str = "xxh3_128"
    overwrite: bool = True
    delete_first: bool = False
    threads: int = 1
    progress: bool = False
    storage_options: Mapping[str, Any] | None = None
    sync: bool = True
    with_reader: bool = False
    save_id: str | None = None
    shared: int = 0o077
    sized: bool = False
    unchanged_from: Path | None = None
    frozen: Selector | None = None
    single_file: bool | None = None

    def is_single(self, name: str) -> bool:
        """Whether a checkpoint of this name is one file: as asked, else by its ending."""
        return is_single(name) if self.single_file is None else self.single_file

    @property
    def by_content(self) -> bool:
        """Whether equal states give equal bytes, and shards are named by their content."""
        return self.save_id is not None

    @property
    def compresses_files(self) -> bool:
        """Whether whole files are compressed. Base64 holds compressed chunks instead."""
        return self.encoding == "list" and self.compression == "zstd"

    @classmethod
    def of(
        cls,
        *,
        compression: str | None = None,
        compression_level: int | None = None,
        chunk_size: int | str = "1MiB",
        max_shard_size: int | str | None = None,
        save_id: str | None = None,
        threads: int | None = None,
        unchanged_from: str | os.PathLike[str] | None = None,
        **others: Any,
    ) -> SaveOptions:
        """The options from the public arguments of :func:`jsonckpt.save`.

        Args:
            others: arguments that need no check.

        Raises:
            ArgumentError: an argument is not valid. The message says what is allowed.
        """
        usual = _SHARD_SIZE if save_id is None else _CONTENT_SHARD_SIZE
        options = cls(
            compression="none" if compression is None else compression,
            level=compression_level,
            chunk_bytes=parse_size(chunk_size, "chunk_size"),
            max_shard_size=usual
            if max_shard_size is None
            else parse_size(max_shard_size, "max_shard_size"),
            sized=max_shard_size is not None,
            save_id=save_id,
            threads=thread_count(threads),
            unchanged_from=None if unchanged_from is None else _earlier(unchanged_from),
            **others,
        )
        options._check()
        return options

    def _check(self) -> None:
        if self.encoding not in ENCODINGS:
            raise ArgumentError(
                f"encoding={quote(self.encoding)}; this release writes {', '.join(ENCODINGS)}"
            )
        if self.compression not in COMPRESSIONS:
            raise ArgumentError(
                f"compression={quote(self.compression)}; this release writes None and 'zstd'"
            )
        if self.filter not in ("auto", "none", "shuffle"):
            raise ArgumentError(
                f"filter={quote(self.filter)}; it may be 'auto', 'none' or 'shuffle'"
            )
        if self.encoding == "list" and self.filter == "shuffle":
            raise ArgumentError("filter='shuffle' needs encoding='base64'")
        if self.save_id not in (None, "content"):
            raise ArgumentError(
                f"save_id={quote(self.save_id)}; it may be None (a random id) or 'content'"
            )
        for argument, other in (
            ("delete_first=True", self.delete_first),
            ("save_id='content'", self.by_content),
        ):
            if other and self.unchanged_from is not None:
                raise ArgumentError(f"unchanged_from cannot be combined with {argument}")
        if self.single_file not in (None, True, False):
            raise ArgumentError(
                f"single_file={quote(self.single_file)}; it may be None (the name decides), True "
                "or False"
            )
        reader_limits.check_chunk_size(self.chunk_bytes)
        if not isinstance(self.checksum, str) or self.checksum not in ALGORITHMS:
            raise ArgumentError(
                f"checksum={quote(self.checksum)}; it may be {', '.join(ALGORITHMS)}"
            )
        hasher(self.checksum)  # raises now if its package is missing
        level = self.level
        if level is not None and (type(level) is not int or not -100 <= level <= 22):
            raise ArgumentError(
                f"compression_level must be a zstd level from -100 to 22, not {quote(level)}"
            )
        check_storage_options(self.storage_options)


def _earlier(path: str | os.PathLike[str]) -> Path:
    """The directory that ``unchanged_from`` names. Raises :class:`ArgumentError`."""
    text = path_text(path, "unchanged_from")
    if is_url(text):
        raise ArgumentError(
            "unchanged_from is a URL, and shards are shared on local paths only",
            hint="Leave it out: then the save writes everything.",
        )
    place = Path(text).absolute()  # the training may change the working directory meanwhile
    return place.parent if place.name == MANIFEST_NAME and not place.is_dir() else place


def parse_size(value: int | str, what: str) -> int:
    """A number of bytes from an ``int`` or a string: ``"5GB"`` is decimal, ``"1MiB"`` binary.

    Raises:
        ArgumentError: it is neither, or not positive, or larger than any file.

    >>> parse_size("1MiB", "chunk_size"), parse_size("5GB", "max_shard_size"), parse_size(7, "x")
    (1048576, 5000000000, 7)
    """
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ArgumentError(f"{what} must be an int or a string such as '5GB', not {quote(value)}")
    if isinstance(value, str):
        match = _SIZE.fullmatch(value)
        if match is None or len(value) > _LONGEST_SIZE:
            raise ArgumentError(
                f"{what}={quote(value)} is not a size; write e.g. 1048576, '1MiB' or '5GB'"
            )
        base = 1024 if match[3] else 1000
        value = int(Fraction(match[1]) * base ** " kmgt".index(match[2].lower() or " "))
    if value < 1:
        raise ArgumentError(f"{what} must be positive, not {_in_short(value)}")
    if value > _LARGEST_FILE:
        raise ArgumentError(
            f"{what} is {_in_short(value)}; no file is larger than {_LARGEST_FILE} bytes"
        )
    return value


def _in_short(value: int) -> str:
    # Python refuses to print an integer of thousands of digits.
    return str(value) if value.bit_length() < 256 else hex(value)[:20] + "..."
