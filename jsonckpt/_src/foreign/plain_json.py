"""Reads a JSON text as plain values, with large binary members as tensors of bytes."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import FormatError, JsonckptError, LimitError, quote
from ..format.limits import Limits, exceeds
from ..json_stream.encoded import byte_pieces
from ..json_stream.lift import Lifter
from ..json_stream.plain_values import MAX_PLAIN, PlainValues
from ..json_stream.scratch import Numbers, Ragged, References, Scratch, Text
from ..json_stream.text_reader import ByteSource
from ..storage.spool import Spool
from ..tensors.pieces import over
from .payloads import Payload
from .read_json import MAX_DEPTH
from .tensor_values import TensorBuilder

_DATA_URL = re.compile(rb"data:[\w/.+-]{0,60}(?:;[\w=.+-]{0,40}){0,4},")


def read_plain(
    source: ByteSource,
    directory: Path,
    spool: Spool,
    limits: Limits,
    *,
    binary: frozenset[str] = frozenset(),
) -> Any:
    """Read a JSON text.

    Args:
        source: the text.
        directory: for temporary files.
        spool: memory for the bytes of binary members.
        limits: on the number of values.
        binary: names of members whose value is base64, or an array of bytes. Each becomes a flat
            tensor of uint8.

    Raises:
        FormatError, LimitError, IncompleteCheckpointError: the text is refused.
    """
    references = References()
    pieces: list[bytes] = []
    with Scratch(directory) as scratch:
        Lifter(source, scratch, references, pieces.append, lambda _: None).run()
        text = b"".join(pieces)
        marks = text.count(b"{") + text.count(b"[") + text.count(b",")
        if exceeds(marks, limits.marks):
            raise LimitError(
                f"over {limits.marks:,} values and brackets",
                hint="Pass --limit marks=none if it is meant.",
            )
        try:
            root = json.loads(
                text.decode(), object_pairs_hook=_unique, parse_constant=_refuse_constant
            )
        except JsonckptError:
            raise
        except RecursionError as error:
            raise LimitError(f"nested deeper than {MAX_DEPTH} levels") from error
        except ValueError as error:
            raise FormatError(f"not JSON ({quote(str(error))})") from error
        return _Settler(references, scratch, spool, binary).settle(root, "", 0)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        for name, _ in pairs:
            if name not in found:
                raise FormatError(f"the member {quote(name)} stands twice in one object")
            del found[name]
    return found


def _refuse_constant(word: str) -> Any:
    raise FormatError(f"{word} is not JSON")


class _Settler:
    """Puts values in the place of the references to what was lifted."""

    def __init__(
        self, references: References, scratch: Scratch, spool: Spool, binary: frozenset[str]
    ) -> None:
        self._references = references
        self._scratch = scratch
        self._spool = spool
        self._binary = binary
        self._plain = PlainValues(scratch)

    def settle(self, value: Any, key: str, depth: int) -> Any:
        """The value in place of ``value``, the member ``key``."""
        if depth > MAX_DEPTH:
            raise LimitError(f"nested deeper than {MAX_DEPTH} levels")
        if isinstance(value, str):
            value = self._references.take(value)
        if key in self._binary and (found := self._bytes(value)) is not None:
            return found
        if isinstance(value, Text | Numbers | Ragged):
            return self._plain.take(value, "")
        if isinstance(value, list):
            below = key if key in self._binary else ""
            return [self.settle(item, below, depth + 1) for item in value]
        if isinstance(value, dict):
            return {name: self.settle(item, name, depth + 1) for name, item in value.items()}
        return value

    def _builder(self) -> TensorBuilder:
        return TensorBuilder(self._spool, self._scratch, MAX_PLAIN)

    def _bytes(self, value: Any) -> torch.Tensor | None:
        """A binary member as bytes, or ``None`` if it has no form that is known."""
        if isinstance(value, Text | str):
            return self._decoded(value)
        if isinstance(value, dict) and value.keys() == {"type", "data"}:  # a Buffer of Node.js
            value = value["data"]
            value = self._references.take(value) if isinstance(value, str) else value
        if isinstance(value, dict) and value and list(value) == [*map(str, range(len(value)))]:
            value = list(value.values())  # a typed array that JSON.stringify wrote
        if isinstance(value, list) and value and all(type(x) is int for x in value):
            if not all(0 <= x < 256 for x in value):
                raise FormatError("a byte is a number from 0 to 255")
            return torch.from_numpy(np.array(value, np.uint8))
        if isinstance(value, Numbers):
            return self._builder().build(Payload(value, "uint8")).reshape(-1)
        return None

    def _decoded(self, text: Text | str) -> torch.Tensor:
        """Base64, decoded into the spool."""
        head = text.encode() if isinstance(text, str) else b"".join(self._first(text))
        start = 0 if (found := _DATA_URL.match(head[:256])) is None else found.end()
        most = (len(text) if isinstance(text, str) else text.stretch.length) * 3 // 4 + 3
        storage = self._spool.allocate(most)
        memory, done = over(storage, torch.uint8, (most,)).numpy(), 0
        for piece in byte_pieces(
            text[start:] if isinstance(text, str) else text.after(start), self._scratch
        ):
            memory[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
            done += len(piece)
        if isinstance(text, Text):
            self._scratch.release()
        return over(storage, torch.uint8, (done,))

    def _first(self, text: Text) -> Iterator[bytes]:
        return self._scratch.read(text.stretch.offset, min(text.stretch.length, 256))
