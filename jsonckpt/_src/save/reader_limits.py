"""What readers accept by default. A save does not write what they would refuse.

Everything is checked before the commit, as early as possible. The old checkpoint stays. Each
function raises :class:`LimitError` with a hint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

from ..errors import ArgumentError, LimitError, UnsupportedTypeError, full_name, quote
from ..format import json_text
from ..format.json_text import SCALARS, Json, is_text
from ..format.limits import DEFAULT_LIMITS, Limits, exceeds
from ..format.model import Manifest
from ..format.pointer import join
from ..format.validation import check_name

#: About the bytes of a reference to a tensor in the state's text, without its name.
_PLACE = 40


def most_levels() -> int:
    """How deep a state may be. In the manifest it is one level deeper."""
    return (DEFAULT_LIMITS.depth or 1_000) - 1


def check_tensor_name(name: str) -> None:
    check_name(name, DEFAULT_LIMITS)


def check_chunk_size(nbytes: int) -> None:
    if exceeds(nbytes, DEFAULT_LIMITS.chunk_bytes):
        raise ArgumentError(
            f"chunk_size is {nbytes} bytes; readers accept at most {DEFAULT_LIMITS.chunk_bytes}"
        )


def check_tensor_count(tensors: int) -> None:
    _check_count(tensors, "tensors", "Save parts of the state as checkpoints of their own.")


def check_chunk_count(tensors: int, chunks: int, chunk_bytes: int) -> None:
    _check_count(chunks, "chunks", _fewer(tensors, chunks, chunk_bytes))


def check_shard_count(shards: int) -> None:
    _check_count(shards, "shards", "Pass a larger max_shard_size.")


def _check_count(count: int, what: str, hint: str) -> None:
    most = getattr(DEFAULT_LIMITS, what)
    if exceeds(count, most):
        raise LimitError(f"{count} {what}; readers accept at most {most}", hint=hint)


def check_expansion(nbytes: int, tensors: int, chunks: int, stored: int) -> None:
    """Check that a reader accepts this ratio of compression.

    Args:
        nbytes: bytes of the tensors in memory.
        stored: bytes of the files that hold records. They are known only after writing.
    """
    limit = DEFAULT_LIMITS.total_bytes(stored)
    if exceeds(nbytes, limit):
        raise LimitError(
            f"{nbytes} bytes of tensors were compressed to {stored} bytes; readers accept "
            f"at most {limit} from that",
            hint="Pass compression=None; the previous checkpoint, if any, is untouched.",
        )
    most = DEFAULT_LIMITS.most_chunks(stored)
    if exceeds(chunks, most):
        way = "compression=None"
        if chunks > tensors:
            way = f"a larger chunk_size, or {way}"
        raise LimitError(
            f"{chunks} chunks were compressed to {stored} bytes; readers accept at most "
            f"{most} in that many bytes",
            hint=f"Pass {way}; the previous checkpoint, if any, is untouched.",
        )


def check_head(text: bytes, names: Sequence[str]) -> None:
    """The head of a single file, which holds the state."""
    _check_text("the state beside its tensors", text, _smaller(len(text), len(text), names))


def check_index(text: bytes, tensors: int, chunks: int, chunk_bytes: int) -> None:
    """The index of a single file, which a reader needs before anything else."""
    _check_text("the index of the file", text, _fewer(tensors, chunks, chunk_bytes))


def may_exceed_compressed(head: int, stored: int) -> bool:
    """Whether :func:`check_compressed_head` could refuse a head of so many bytes."""
    limits = DEFAULT_LIMITS.for_text(stored)
    # A text cannot have more marks than bytes.
    return exceeds(head, limits.marks) or exceeds(head, limits.manifest_bytes)


def check_compressed_head(text: bytes, stored: int) -> None:
    """The head of a single file that was compressed as a whole to ``stored`` bytes."""
    what = f"the text beside the tensors, compressed to {stored} bytes,"
    hint = "Save without .zst, or as a directory."
    _check_text(what, text, hint, DEFAULT_LIMITS.for_text(stored))


def check_manifest(text: bytes, manifest: Manifest) -> None:
    if len(text) < min(DEFAULT_LIMITS.manifest_bytes or 0, DEFAULT_LIMITS.marks or 0):
        return
    entries = manifest.entries
    hint = _smaller(
        len(text),
        len(json_text.dump(manifest.state)),
        [entry.name for entry in entries],
        sum(len(entry.chunks) for entry in entries),
        max((entry.codec.chunk_bytes for entry in entries), default=0),
    )
    _check_text("the manifest", text, hint)


def _check_text(what: str, text: bytes, hint: str, limits: Limits | None = None) -> None:
    """Check that a reader accepts this text: its length, and the marks in it."""
    limits = limits or DEFAULT_LIMITS
    if exceeds(len(text), limits.manifest_bytes):
        raise LimitError(
            f"{what} takes {len(text)} bytes; readers accept at most {limits.manifest_bytes}",
            hint=hint,
        )
    if len(text) < (limits.marks or 0):
        return
    marks = json_text.marks_of(text)
    if exceeds(marks, limits.marks):
        raise LimitError(
            f"the state and the tensors have {marks} brackets and strings of JSON; readers accept "
            f"at most {limits.marks}",
            hint=hint,
        )


def _fewer(tensors: int, chunks: int, chunk_bytes: int) -> str:
    """The hint for too many records, or for too many chunks."""
    if chunks > 2 * tensors and not exceeds(2 * chunk_bytes, DEFAULT_LIMITS.chunk_bytes):
        return "Pass a larger chunk_size."
    return (
        f"There are {tensors} tensors: join small ones (torch.stack, torch.cat), or save parts of "
        "the state as checkpoints of their own."
    )


def _smaller(
    text: int, state: int, names: Sequence[str], chunks: int = 0, chunk_bytes: int = 0
) -> str:
    """The hint for a text with the state that is too long. It depends on the largest part."""
    places = sum(len(name) + _PLACE for name in names)
    if 2 * (state - places) > text:
        return "Put large data into tensors or NumPy arrays."
    return _fewer(len(names), chunks, chunk_bytes)


def require_json(value: object, what: str) -> Json:
    """``value`` itself, if it is plain JSON.

    For JSON that users pass (``metadata``): a JSON encoder would write the key ``1`` as ``"1"`` and
    a tuple as a list.

    Raises:
        UnsupportedTypeError: it is not; the message gives the JSON Pointer and the type.

    >>> require_json({"epoch": 3}, "metadata")
    {'epoch': 3}
    """
    pending: list[tuple[object, str]] = [(value, "")]
    while pending:
        item, place = pending.pop()
        if type(item) is dict:
            for name, member in item.items():
                if type(name) is not str or not is_text(name):
                    raise _not_plain(what, place, f"the key {quote(name)}")
                pending.append((member, join(place, name)))
        elif type(item) is list:
            pending.extend((element, f"{place}/{i}") for i, element in enumerate(item))
        elif type(item) is float and not math.isfinite(item):
            raise _not_plain(what, place, f"the float {item}")
        elif type(item) is str and not is_text(item):
            raise _not_plain(what, place, f"the string {quote(item)} with a lone surrogate")
        elif type(item) is int and item.bit_length() > 2048:
            raise _not_plain(what, place, f"an integer of {item.bit_length()} bits")
        elif type(item) not in SCALARS:
            name = quote(full_name(type(item)), 120)
            raise _not_plain(what, place, f"a value of type {name}")
        if place.count("/") > 150:
            raise _not_plain(what, place, "nesting of more than 150 levels, or a cycle,")
    return cast(Json, value)


def _not_plain(what: str, place: str, found: str) -> UnsupportedTypeError:
    where = f" {quote(place, 200)}" if place else ""
    return UnsupportedTypeError(
        f"{what}{where}: {found} is not plain JSON",
        hint=f"Only the state may hold it; {what} may hold only JSON values.",
    )
