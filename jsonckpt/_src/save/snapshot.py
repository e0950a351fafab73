"""The state at the moment of a save: its tree as JSON, and its tensors, not read yet."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

from ..._version import __version__
from ..errors import ArgumentError, JsonckptError, quote
from ..format import json_text
from ..format.manifest import dump_manifest
from ..format.model import CONTENT_ID, NO_TIME, Entry, Manifest, ShardFile
from ..format.regions import requires
from ..shards.shard_text import shard_head
from ..state.tree import encode_state
from . import reader_limits

if TYPE_CHECKING:
    from ..tensors.buffers import Source


@dataclass(frozen=True)
class Snapshot:
    """A state to be saved, encoded except for the payloads.

    Attributes:
        sources: one for each record.
        token: 12 random hexadecimal digits for the names of temporary files.
        rank: of this process, where several processes write one checkpoint.
    """

    save_id: str
    created_at: str
    state: Any
    metadata: dict[str, Any]
    sources: list[Source]
    token: str = field(default_factory=lambda: secrets.token_hex(6))
    rank: int | None = None

    @property
    def nbytes(self) -> int:
        return sum(source.nbytes for source in self.sources)

    def head(self, checksum: str, *, single: bool) -> bytes:
        """The head of a shard. In a single file it contains the state.

        Raises:
            LimitError: readers would refuse it.
        """
        if not single:
            return shard_head(self.save_id, checksum)
        text = json_text.dump
        head = shard_head(
            self.save_id,
            checksum,
            {
                "created_at": text(self.created_at),
                "created_by": text(created_by()),
                "totals": text({"tensors": len(self.sources), "bytes": self.nbytes}),
                "metadata": json_text.dump_pretty(self.metadata),
                "state": json_text.dump_pretty(self.state),
            },
            requires=requires(source.name for source in self.sources),
        )
        reader_limits.check_head(head, [source.name for source in self.sources])
        return head

    @json_text.collector_paused()
    def manifest(
        self, checksum: str, shards: Sequence[ShardFile], entries: Sequence[Entry]
    ) -> bytes:
        """The manifest of a directory.

        Raises:
            LimitError: readers would refuse it.
        """
        manifest = Manifest(
            self.save_id,
            self.created_at,
            created_by(),
            checksum,
            self.metadata,
            self.state,
            tuple(shards),
            tuple(entries),
        )
        text = dump_manifest(manifest)
        reader_limits.check_manifest(text, manifest)
        return text


@json_text.collector_paused()
def take_snapshot(
    state: object, metadata: Mapping[str, Any] | None, *, by_content: bool = False
) -> Snapshot:
    """Encode the state. No payload is read.

    The snapshot shares only the memory of the tensors with the state. Later changes of dictionaries
    and lists do not affect it.

    Args:
        by_content: the id and the time say nothing, so that equal states give equal bytes.
    """
    # A copy of records that exist, as after a rename, needs no torch.
    from ..state.registry import default_rules
    from ..tensors.aliasing import StateWriter

    writer = StateWriter()
    most = reader_limits.most_levels()
    tree = encode_state(state, writer, rules=default_rules(), max_depth=most)
    sources = writer.sources()
    reader_limits.check_tensor_count(len(sources))
    save_id, created_at = CONTENT_ID, NO_TIME
    if not by_content:
        save_id = new_save_id()
        created_at = now()
    return Snapshot(save_id, created_at, tree, plain_metadata(metadata), sources)


def plain_metadata(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the metadata, if it is plain JSON. Raises :class:`ArgumentError`."""
    if metadata is not None and not isinstance(metadata, Mapping):
        raise ArgumentError(
            f"metadata must be a dictionary, not {quote(type(metadata).__name__)}",
            hint="Pass plain JSON: metadata={'run': 3}.",
        )
    value = dict(metadata or {})
    try:
        reader_limits.require_json(value, "metadata")
    except JsonckptError as error:
        raise ArgumentError(str(error)) from error
    return copy.deepcopy(value)


def now() -> str:
    """The time of a save."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def new_save_id() -> str:
    """128 random bits."""
    return secrets.token_hex(16)


def created_by() -> str:
    """This program and its version."""
    return f"jsonckpt {__version__}"
