"""Recognises files that ``convert`` reads by their first bytes. Pure."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Final

from ..sources.kinds import JSON, NPZ, SAFETENSORS, SHARDED, TORCH, Look, kind_of

#: What :func:`convertible_kind` calls the JSON of another program that holds tensors.
NUMBER_LISTS: Final = "JSON number lists"
UNPACKED: Final = "unpacked PyTorch file"
_NUMBER = rb"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?"
#: What stands near the beginning of a state dict in JSON, in the order of how common it is.
_TENSORS = re.compile(
    # {"data": [0.1, ...], "shape": ...}, also in another order or as base64
    rb'"(?:data|values)"\s*:\s*(?:\[\s*)*(?:' + _NUMBER + rb"\s*[,\]]|\"?[-A-Za-z0-9+/=]{32})"
    rb'|"shape"\s*:\s*\[[\d\s,]*\]\s*,\s*"d(?:ata|type)"|"dtype"\s*:\s*"(?:torch\.)?[bf]?float\d+'
    rb'|"dtype"\s*:\s*"torch\.\w+Tensor"|"(?:__torch_tensor__|__tensor__|__ndarray__|__numpy__)"'
    rb'|"_?_?(?:type|class)_?_?"\s*:\s*"(?:torch\.)?(?:Float)?(?:[tT]ensor|ndarray)"'
    rb'|"py/object"\s*:\s*"numpy\.|"@module"\s*:\s*"torch"'
    # {"layer.weight": [[0.1, ...]]}
    rb'|"[\w./]*(?:weight|bias|running_mean|running_var|embedding|kernel)"\s*:\s*(?:\[\s*)+'
    + _NUMBER
)


def convertible_kind(look: Look) -> str | None:
    """What ``convert`` would read, in words; ``None`` for anything else.

    JSON counts only if its first bytes show tensors: ``config.json`` is no checkpoint.

    >>> from pathlib import Path
    >>> text = b'{"model_state_dict": {"w.weight": {"data": [[0.1, -0.2'
    >>> convertible_kind(Look(Path("a.json"), text, 5000))
    'JSON number lists'
    >>> convertible_kind(Look(Path("config.json"), b'{"n_layer": 12}', 15)) is None
    True
    """
    kind = kind_of(replace(look, members=_first_member(look.head)))
    if kind is JSON:
        return NUMBER_LISTS if _TENSORS.search(look.text) else None
    return kind.name if kind in (TORCH, SAFETENSORS, NPZ, SHARDED) else None


def _first_member(head: bytes) -> tuple[str, ...]:
    """The first name in a ZIP archive, if it is one that tells the kind."""
    if not head.startswith(b"PK\x03\x04"):
        return ()
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
    return (name.decode("ascii", "replace"),) if name.endswith(b".npy") else ()
