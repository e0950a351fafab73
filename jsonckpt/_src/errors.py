"""Every error that jsonckpt raises on purpose, in one tree::

    JsonckptError
    ├── FormatError(ValueError)                   the file does not follow the specification
    │   ├── UnsupportedVersionError               of a newer release, or with an unknown feature
    │   └── UnsafePathError                       a shard name that leads out of the checkpoint
    ├── ArgumentError(ValueError, TypeError)      an argument is invalid
    ├── LimitError(ValueError)                    larger than the limits allow
    ├── IntegrityError                            the bytes are not the bytes that were saved
    ├── IncompleteCheckpointError                 a part is missing, or the file ends too early
    ├── CheckpointNotFoundError(FileNotFoundError)
    ├── CheckpointExistsError(FileExistsError)
    ├── SaveCancelledError                        PendingSave.cancel() was called
    ├── StateMismatchError                        .missing, .unexpected, .mismatched
    ├── UnsupportedTypeError(TypeError)           a value that no rule can write
    └── WriteError(OSError)                       the system refused a write; .errno says why
        └── DurabilityUncertainError              written and visible, but the last fsync failed

A message reads "file: tensor: chunk: what is wrong. The way out.". :func:`quote` escapes and
shortens text from files. :func:`printable` escapes whatever could control a terminal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

#: The hint for damaged data.
DAMAGED = (
    "The file was damaged or changed: take another copy, or restore what is intact with: "
    "jsonckpt recover PATH NEW"
)
#: The hint for a file that ends too early.
CUT_OFF = "It was cut off: copy it again, or restore what is intact with: jsonckpt recover PATH NEW"
#: Longest piece of foreign text that a message repeats.
_QUOTE_LIMIT = 80
#: Names that a message lists. The error's attributes have all names.
_NAMES_SHOWN = 5


def quote(text: object, limit: int = _QUOTE_LIMIT) -> str:
    """Foreign text for a message: escaped, in quotes, at most ``limit`` characters.

    >>> quote("a\\x1b[31m")
    "'a\\\\x1b[31m'"
    """
    if isinstance(text, bytes):
        text = text[: limit + 1].decode("utf-8", "backslashreplace")
    plain = text if isinstance(text, str) else repr(text)[: limit + 1]
    shown = ascii(plain[: limit + 1])
    if len(shown) <= limit:
        return shown
    return shown[: limit - 4] + "..." + shown[0]


def printable(text: object, keep: str = "") -> str:
    """Text for a terminal: control characters, bidirectional marks and the like are escaped.

    Escapes all that Python calls not printable: C0, DEL, C1, formatting characters, line and
    paragraph separators, lone surrogates, unassigned characters.

    Args:
        keep: characters that are not escaped, such as the line feeds of a report.

    >>> printable("\\x1b[31m \\u202e é"), printable("a\\nb", keep="\\n") == "a\\nb"
    ('\\\\x1b[31m \\\\u202e é', True)
    """
    plain = str(text)
    if plain.isprintable():
        return plain
    return "".join(c if c.isprintable() or c in keep else ascii(c)[1:-1] for c in plain)


class JsonckptError(Exception):
    """The base of all errors of this package.

    Args:
        message: what is wrong, what was expected.
        file, tensor, chunk: where; :meth:`at` can add each later.
        hint: the way out, as a sentence.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: object = None,
        tensor: str | None = None,
        chunk: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.file = None if file is None else str(file)
        self.tensor = tensor
        self.chunk = chunk
        self.hint = hint

    def at(
        self,
        *,
        file: object = None,
        tensor: str | None = None,
        chunk: int | None = None,
        hint: str | None = None,
    ) -> JsonckptError:
        """Add the place and the hint, each unless it is there already. Returns the error."""
        if self.file is None and file is not None:
            self.file = str(file)
        if self.tensor is None:
            self.tensor = tensor
        if self.chunk is None:
            self.chunk = chunk
        if self.hint is None:
            self.hint = hint
        return self

    def _render_traceback_(self) -> list[str]:
        """The traceback that IPython and Jupyter show. Theirs has the source of each frame."""
        from .shown import short_traceback

        return short_traceback(self)

    def __str__(self) -> str:
        place = []
        if self.file is not None:
            place.append(_printable(self.file))
        if self.tensor is not None:
            place.append(f"tensor {quote(self.tensor)}")
        if self.chunk is not None:
            place.append(f"chunk {self.chunk}")
        text = ": ".join([*place, self.message])
        if self.hint:
            text = f"{text.rstrip('.')}. {self.hint}"
        return printable(text, keep="\n")


def counted(count: int, noun: str, plural: str = "") -> str:
    """A number and what it counts.

    >>> counted(1, "tensor"), counted(2000, "tensor"), counted(2, "list of numbers", "lists of it")
    ('1 tensor', '2,000 tensors', '2 lists of it')
    """
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def listed(names: Sequence[str], most: int) -> str:
    """The first names, quoted, and the number of the others.

    >>> listed(["a", "b", "c"], 2)
    "'a', 'b' and 1 more"
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(quote, names[:most])) + more


def is_refusal(error: BaseException) -> bool:
    """True for errors that do not mean damage: a limit, an unsupported version, a missing package.

    A caller must not treat what is refused as broken or as empty.
    """
    return isinstance(error, LimitError | UnsupportedVersionError) or isinstance(
        error.__cause__, ImportError
    )


def _printable(path: str) -> str:
    """A path for a message: escaped if it is not printable, shortened if it is long."""
    return path if path.isprintable() and len(path) <= 300 else quote(path, 300)


class FormatError(JsonckptError, ValueError):
    """The file does not follow ``docs/format.md``.

    Attributes:
        is_foreign: nothing in the file says that it is a checkpoint of this package.
    """

    is_foreign = False


class UnsupportedVersionError(FormatError):
    """The file has a format version, or requires a feature, that this release does not know."""


class UnsafePathError(FormatError):
    """A shard's file name is not a plain name inside the checkpoint's directory."""


class ArgumentError(JsonckptError, ValueError, TypeError):
    """An argument is invalid; the message names it."""


class LimitError(JsonckptError, ValueError):
    """Something is larger than :class:`jsonckpt.Limits` allows."""


class IntegrityError(JsonckptError):
    """A checksum does not match: these are not the bytes that were saved."""


class IncompleteCheckpointError(JsonckptError):
    """A file of the checkpoint is missing or ends too early."""


class CheckpointNotFoundError(JsonckptError, FileNotFoundError):
    """There is no checkpoint at this path."""


class CheckpointExistsError(JsonckptError, FileExistsError):
    """There is something at this path that must not be overwritten."""


class SaveCancelledError(JsonckptError):
    """The save was cancelled before its commit: what was at its path before has not changed."""


class StateMismatchError(JsonckptError):
    """The checkpoint and the target do not have the same tensors.

    Attributes:
        missing: names that only the target has.
        unexpected: names that only the checkpoint has.
        mismatched: ``"name: what differs"`` for names that both have.
    """

    def __init__(
        self,
        message: str = "",
        *,
        missing: Sequence[str] = (),
        unexpected: Sequence[str] = (),
        mismatched: Sequence[str] = (),
        file: object = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, file=file, hint=hint)
        self.missing = list(missing)
        self.unexpected = list(unexpected)
        self.mismatched = list(mismatched)

    def __str__(self) -> str:
        lines = [super().__str__()]
        for label in ("missing", "unexpected", "mismatched"):
            names: list[str] = getattr(self, label)
            if names:
                shown = ", ".join(quote(name, 300) for name in names[:_NAMES_SHOWN])
                rest = len(names) - _NAMES_SHOWN
                more = f" and {rest} more" if rest > 0 else ""
                lines.append(f"  {label}: {shown}{more}")
        return "\n".join(lines)


class UnsupportedTypeError(JsonckptError, TypeError):
    """The state holds a value of a type that no rule covers."""


class WriteError(JsonckptError, OSError):
    """The system refused a write. ``errno`` is the system's number, or ``None``."""

    def __init__(
        self,
        message: str = "",
        *,
        errno: int | None = None,
        file: object = None,
        tensor: str | None = None,
        chunk: int | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, file=file, tensor=tensor, chunk=chunk, hint=hint)
        self.errno = errno


class DurabilityUncertainError(WriteError):
    """The new checkpoint is complete and visible, but the last fsync of its directory failed."""


def full_name(kind: type) -> str:
    """A type's name with its module.

    >>> import collections
    >>> full_name(collections.OrderedDict), full_name(int)
    ('collections.OrderedDict', 'int')
    """
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


# --- texts that were changed as a whole -----------------------------------------------------------

_LINE_ENDINGS = (
    "Undo it with: jsonckpt recover PATH NEW. Or clone the repository again after the line "
    "*.json -text is in its .gitattributes."
)
_ACCEPT = "set \"seal\":null in it: jq '.seal=null' FILE > NEW"
_EDITED = (
    f"If it was edited on purpose or a JSON tool wrote it again, {_ACCEPT}. Else take another copy"
)
_REWRITTEN = f"To accept that, {_ACCEPT}. Or restore what is intact with: jsonckpt recover PATH NEW"
_REWRITTEN_SHARD = "Read it with: jsonckpt recover PATH NEW"
_REWRITTEN_PIPE = "A pipe cannot be read in this layout: write it to a file, and give its path."


def line_endings() -> FormatError:
    """The error for a file whose line feeds became CRLF."""
    return FormatError(
        "line endings were changed from LF to CRLF, as Git does with core.autocrlf",
        hint=_LINE_ENDINGS,
    )


def rewritten(way: Literal["file", "shard", "pipe"] = "file") -> IntegrityError:
    """The error for a file that a JSON tool wrote again, or that was edited."""
    hints = {"file": _REWRITTEN, "shard": _REWRITTEN_SHARD, "pipe": _REWRITTEN_PIPE}
    return IntegrityError(
        "the file was edited by hand, or written again by a JSON tool", hint=hints[way]
    )


def as_shard(error: JsonckptError) -> JsonckptError:
    """An error that says that a text was changed, with the way out for a shard of a directory."""
    if error.message == rewritten().message:
        return rewritten("shard")
    if error.hint == _REWRITTEN_PIPE:
        error.hint = _REWRITTEN_SHARD
    if error.hint == _EDITED:  # its seal is in the manifest, too
        error.hint = DAMAGED
    return error


def is_change_of_text(error: JsonckptError) -> bool:
    """Whether an error says that the text as a whole was changed, so that nothing in it is lost."""
    ways = (_LINE_ENDINGS, _REWRITTEN_SHARD, _REWRITTEN_PIPE)
    return error.hint in ways or error.message == rewritten().message


def seal_missing() -> FormatError:
    """The error for a text without the member ``seal``."""
    return FormatError(
        "the member seal is missing", hint='After an edit by hand it must be there: "seal":null'
    )


def seal_differs(expected: str, found: str, what: str = "the text") -> IntegrityError:
    """The error for a text that does not match its seal."""
    return IntegrityError(
        f"{what} does not match its seal (expected {expected}, found {found})", hint=_EDITED
    )
