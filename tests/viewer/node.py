"""Runs the JavaScript of docs/viewer under Node."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

from tests.support import lacking

HERE = Path(__file__).parent
VIEWER = HERE.parents[1] / "docs" / "viewer"


def node() -> str:
    """The path of Node; the test is left out where there is none of version 20 or later."""
    found = shutil.which("node")
    if found is None:
        lacking("node", "there is no Node here")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.lstrip("v").split(".")[0]) < 20:
        lacking("node", f"Node {version.stdout.strip()} is older than 20")
    return found


def run(script: str, *arguments: Any, data: bytes = b"", heap: int = 256) -> bytes:
    """What a script of this folder prints; it has a heap of ``heap`` MiB."""
    command = [node(), f"--max-old-space-size={heap}", str(HERE / script), *map(str, arguments)]
    done = subprocess.run(command, input=data, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


def run_json(script: str, *arguments: Any, data: bytes = b"", heap: int = 256) -> Any:
    return json.loads(run(script, *arguments, data=data, heap=heap))


def packed(parts: list[bytes]) -> bytes:
    """Byte strings as one: each after its length in four bytes."""
    return b"".join(struct.pack("<I", len(part)) + part for part in parts)


def unpacked(data: bytes) -> list[bytes]:
    parts, at = [], 0
    while at < len(data):
        (size,) = struct.unpack_from("<I", data, at)
        parts.append(data[at + 4 : at + 4 + size])
        assert len(parts[-1]) == size
        at += 4 + size
    return parts
