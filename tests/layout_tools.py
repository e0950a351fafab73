"""What JSON tools make of a checkpoint's text, with its seal set to null."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

Tool = Callable[[bytes], bytes]


def _python(**how: Any) -> Tool:
    return lambda text: json.dumps(json.loads(text) | {"seal": None}, **how).encode()


def _command(*command: str) -> Tool:
    def run(text: bytes) -> bytes:
        return subprocess.run(command, input=text, stdout=subprocess.PIPE, check=True).stdout

    return run


def _backwards(value: Any) -> Any:
    """Members in the opposite order, but for those of the state, whose order counts."""
    return {
        key: [_backwards(item) for item in member] if key == "tensors" else member
        for key, member in reversed(value.items())
    }


_NODE = (
    "const document = JSON.parse(require('fs').readFileSync(0)); document.seal = null;"
    "process.stdout.write(JSON.stringify(document, null, {}))"
)
TOOLS: dict[str, Tool] = {
    "compact": _python(separators=(",", ":")),
    "spaced": _python(),
    "indented": _python(indent=8, ensure_ascii=False),
    "sorted": _python(sort_keys=True, indent="\t"),
    "backwards": lambda text: json.dumps(
        _backwards(json.loads(text) | {"seal": None}), indent=0
    ).encode(),
    "escaped slashes": lambda text: _python()(text).replace(b"/", b"\\/"),
    "escaped letters": lambda text: _python()(text).replace(b"AA", b"\\u0041A"),
    "windows": lambda text: _python(indent=2)(text).replace(b"\n", b"\r\n") + b"\r\n",
}
if shutil.which("jq"):
    TOOLS |= {
        "jq": _command("jq", ".seal=null"),
        "jq -c": _command("jq", "-c", ".seal=null"),
        "jq -S": _command("jq", "-S", ".seal=null"),
    }
if shutil.which("node"):
    TOOLS |= {
        "node": _command("node", "-e", _NODE.format(0)),
        "node indented": _command("node", "-e", _NODE.format(4)),
    }
#: Tools that write every number as it was.
FAITHFUL = [name for name in TOOLS if not name.startswith(("jq", "node"))]
