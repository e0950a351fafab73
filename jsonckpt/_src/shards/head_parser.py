"""The head of a shard, read in pieces as they come (format section 3.1)."""

from __future__ import annotations

import re
from typing import Any, Final

from ..errors import FormatError, IntegrityError, LimitError, line_endings, rewritten
from ..format.checksums import Hasher, hasher
from ..format.json_text import collector_paused
from ..format.limits import Limits, check_beside
from ..format.model import SHARD_FORMAT
from ..format.validation import (
    LONGEST_BEGINNING,
    check_header,
    check_not_newer,
    checksum_name,
    no_checkpoint,
)
from .incremental import IncrementalReader

#: Ends the head: the line feed before its last line, and that line; or what Git made of the line.
# `bytes.find` takes ten times as long in text made of the mark's own characters ("[[[[...").
HEAD_END_PATTERN: Final = re.compile(rb'\n"tensors":\[\r?\n')
#: How a text begins that a JSON tool has indented.
_SPACED: Final = re.compile(rb'\{\s|\{"[a-z_]{1,20}":\s')
LONGEST_HEAD_END: Final = len(b'\n"tensors":[\r\n')


#: Members that are needed before the text can be hashed.
_FIRST: Final = {"format", "version", "save_id", "checksum"}


class HeadParser:
    """Reads everything before the first record. Keeps the tree, and of the text one line.

    Args:
        known: algorithm and checksum of a head that was parsed before. The text is then only
            hashed and must agree; ``members`` stays empty.

    Attributes:
        members: of the head; whole once :meth:`push` has found its end.
        algorithm, skeleton: the checksum, and its state after the head.
    """

    def __init__(
        self, limits: Limits, json: IncrementalReader, known: tuple[str, str] | None = None
    ) -> None:
        self.members: dict[str, Any] = {}
        self.algorithm, self._digest = known or ("", "")
        self.skeleton: Hasher | None = hasher(self.algorithm) if known else None
        self._limits = limits
        self._json = json
        self._beginning = b""
        self._read = 0
        self._unread, self._unhashed = bytearray(), bytearray()

    def push(self, text: bytes) -> bytes | None:
        """Read the next piece of text.

        Returns:
            what stands behind the head; ``None`` while the head goes on.

        Raises:
            FormatError, LimitError: what the text breaks.
        """
        self._beginning += text[: LONGEST_BEGINNING - len(self._beginning)]
        full = len(self._beginning) == LONGEST_BEGINNING
        if not b"{".startswith(self._beginning[:64].lstrip()[:1]) or (full and self._is_foreign()):
            raise no_checkpoint(self._beginning)
        searched = max(0, len(self._unread) - LONGEST_HEAD_END)
        self._unread += text
        found = HEAD_END_PATTERN.search(self._unread, searched)
        ends = found is not None
        if found is not None and found[0].endswith(b"\r\n"):
            raise line_endings()
        # A line feed at the end may be the first byte of the mark: it is read with what follows.
        stop = self._unread.rfind(b"\n", searched) if found is None else found.end()
        del found  # the match would keep the text
        try:
            check_beside(self._read + (stop if ends else len(self._unread)), self._limits)
        except LimitError as error:
            if _SPACED.match(self._beginning):
                error.hint = rewritten("pipe").hint
            raise
        if stop > 0:
            self._take(bytes(self._unread[:stop]))
            del self._unread[:stop]
        if not ends:
            return None
        self._finish()
        return bytes(self._unread)

    def refuse_end(self) -> None:
        """Say what is wrong with a text that ends inside its head, unless it was cut off.

        Raises:
            FormatError: it is not a checkpoint, or of a later version.
            IntegrityError: it is whole, but a JSON tool wrote it again.
        """
        if self._is_foreign():
            raise no_checkpoint(self._beginning)
        check_not_newer(self._beginning)
        if self._is_whole():
            raise rewritten("pipe")

    def _is_whole(self) -> bool:
        """Whether the text is a whole JSON object."""
        try:
            self._json.push(bytes(self._unread))
        except (FormatError, LimitError):
            return False
        return len(self._json.open) == 1 and self._beginning.lstrip()[:1] == b"{"

    def _is_foreign(self) -> bool:
        return SHARD_FORMAT.encode() not in self._beginning

    @property
    def digest(self) -> str:
        """The checksum of the whole head."""
        return "" if self.skeleton is None else self.skeleton.hexdigest()

    def _take(self, text: bytes) -> None:
        if self._digest and self.skeleton is not None:
            self._read += len(text)
            self.skeleton.update(text)
            return
        try:
            with collector_paused():
                self._json.push(text)
        except (FormatError, LimitError) as error:
            if self._is_foreign():
                raise no_checkpoint(self._beginning) from error
            check_not_newer(self._beginning)
            error.message = f"the head of the shard: {error.message}"
            raise
        self._read += len(text)
        self.members = self._json.open[1] if len(self._json.open) > 1 else {}
        if self.skeleton is None:
            self._unhashed += text
            if self.members.keys() >= _FIRST:
                self._start_hash()
        else:
            self.skeleton.update(text)

    def _start_hash(self) -> None:
        check_header(self.members, SHARD_FORMAT)
        self.algorithm = checksum_name(self.members.get("checksum"))
        self.skeleton = hasher(self.algorithm)
        self.skeleton.update(self._unhashed)
        self._unhashed = bytearray()

    def _finish(self) -> None:
        if self._digest:
            if self.digest != self._digest:
                raise IntegrityError(
                    "the head of the file is not what it was when the file was opened",
                    hint="Something wrote to the file meanwhile: open it again.",
                )
            self._json.push(b"[")
            return
        if self.skeleton is None:
            self._start_hash()
        check_header(self.members, SHARD_FORMAT)
        if len(self._json.open) != 3 or self._json.open[2] is not self.members.get("tensors"):
            raise FormatError("the head of the shard: it does not end where the tensors begin")
        for member in ("index", "seal", "index_offset"):
            if member in self.members:
                raise FormatError(f"the member {member!r} occurs twice, before and after the data")
