"""Whether files follow the JSON Schemas of the specification (``docs/schema``)."""

from __future__ import annotations

import functools
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import referencing
import zstandard

__all__ = ["SMALL", "problems", "validate_checkpoint", "validate_text"]

_FOLDER = Path(__file__).parents[1] / "docs" / "schema"
_NAMES = ("manifest", "shard")

#: Bytes of text that are validated whole; of larger ones a part of each long array is.
SMALL = 300_000
_SHORT = 200
_SHOWN = 300


def schema(name: str) -> Any:
    """The schema of ``"manifest"`` or ``"shard"``."""
    return json.loads((_FOLDER / f"{name}.schema.json").read_text(encoding="utf-8"))


@functools.cache
def _validator(name: str) -> Any:
    registry: Any = referencing.Registry()
    for other in _NAMES:
        resource = referencing.Resource.from_contents(schema(other))
        registry = registry.with_resource(f"{other}.schema.json", resource)
    return jsonschema.Draft202012Validator(schema(name), registry=registry)


def problems(document: Any) -> list[str]:
    """What the schema for a document's ``format`` finds wrong with it, each with its place."""
    found = document.get("format") if isinstance(document, dict) else None
    name = "manifest" if found == "jsonckpt.manifest" else "shard"
    return [
        f"{error.json_path}: {error.message[:_SHOWN]}"
        for error in _validator(name).iter_errors(document)
    ]


def validate_text(text: bytes, what: str = "text") -> None:
    """Fail unless the text of a manifest, a shard or a single file follows its schema."""
    document = json.loads(text)
    if len(text) > SMALL:
        document = _shortened(document)
    found = problems(document)
    assert not found, f"{what} breaks the schema: {'; '.join(found[:5])}"


def validate_checkpoint(path: str | os.PathLike[str]) -> None:
    """Fail unless every file of a checkpoint follows its schema.

    Args:
        path: a directory, a ``.json`` or a ``.json.zst``.
    """
    for file in checkpoint_files(Path(path)):
        validate_text(_text(file), str(file))


def checkpoint_files(path: Path) -> Iterator[Path]:
    """The files that belong to the checkpoint at ``path``."""
    if not path.is_dir():
        yield path
        return
    yield path / "manifest.json"
    for shard in json.loads((path / "manifest.json").read_bytes())["shards"]:
        yield path / shard.get("directory", "") / shard["file"]


def _text(file: Path) -> bytes:
    raw = file.read_bytes()
    if file.suffix != ".zst":
        return raw
    stream = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(raw), read_across_frames=True)
    return stream.read()


def _shortened(node: Any) -> Any:
    """A document with the middle of its long arrays left out, and long strings of payloads."""
    if isinstance(node, dict):
        return {key: _shortened(member) for key, member in node.items()}
    if isinstance(node, list):
        if len(node) > _SHORT:
            node = node[: _SHORT // 2] + node[-_SHORT // 2 :]
        return [_shortened(element) for element in node]
    if isinstance(node, str) and len(node) > 4 * _SHORT:
        return node[: 2 * _SHORT] + node[-2 * _SHORT :]
    return node
