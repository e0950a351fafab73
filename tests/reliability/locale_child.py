"""Loads and saves under whatever locale the environment asks for, and prints digests.

Usage: ``python -m tests.reliability.locale_child FOLDER CHECKPOINT…``.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import locale
import sys
from pathlib import Path

import torch

import jsonckpt
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from tests.readers import indexed, streaming


def main(folder: str, *paths: str) -> None:
    """Print one line of JSON under the locale of the environment, then one under ``C``."""
    for name in ("", "C"):
        locale.setlocale(locale.LC_ALL, name)
        print(json.dumps(digests(folder, *paths)))


def digests(folder: str, *paths: str) -> dict[str, str]:
    """What is read and written under the present locale."""
    found = {"point": str(locale.localeconv()["decimal_point"])}
    for path, reader in itertools.product(paths, (indexed, streaming)):
        state = reader(path)
        text = hashlib.sha256(repr({k: v for k, v in state.items() if k == "floats"}).encode())
        for name in ("w", "d", "h"):
            text.update(state[name].view(torch.uint8).numpy().tobytes())
        found[f"{path} {reader.__name__}"] = text.hexdigest()
    buffer = io.BytesIO()
    jsonckpt.save(state, buffer, encoding="list")
    payload = buffer.getvalue().partition(b'"tensors":[\n')[2].partition(b'],"index"')[0]
    found["written"] = hashlib.sha256(payload).hexdigest()
    foreign = b'{"data":[[1.5,-2.0],[2.75e3,0.1]],"shape":[2,2],"dtype":"torch.float32"}'
    tensor, _ = read_foreign(io.BytesIO(foreign), Path(folder), ForeignOptions())
    found["foreign"] = repr(tensor)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
