"""The page: a template, its style and its program, and the data as JSON between them.

Whatever comes from a checkpoint is in that JSON only. Its text has no ``<``, ``>`` or ``&``, so it
cannot end the element that holds it. The program puts it into text nodes and attributes, never into
markup. The policy in the page's head allows the page's own style and program by their hashes, and
nothing else: no request, no other script, no frame.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from importlib.resources import files
from typing import Any

_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
    0x7F: "\\u007f",
}
_MARK = re.compile(r"@@(\w+)@@")


def build(data: dict[str, Any]) -> str:
    """The page as text."""
    folder = files(__package__)
    style, program = (
        (folder / name).read_text(encoding="utf-8") for name in ("page.css", "page.js")
    )
    parts = {
        "style": style,
        "program": program,
        "style_hash": _hash(style),
        "program_hash": _hash(program),
        "data": as_script(data),
    }
    template = (folder / "page.html").read_text(encoding="utf-8")
    # One pass: a mark inside the data is not replaced.
    return _MARK.sub(lambda match: parts[match[1]], template)


def as_script(data: Any) -> str:
    """JSON that may stand inside a script element.

    Numbers that JSON lacks become strings or null; lone surrogates stay escaped.

    >>> as_script({"a": "</script>", "b": [float("inf"), float("nan")]})
    '{"a":"\\\\u003c/script\\\\u003e","b":["Infinity",null]}'
    """
    text = json.dumps(plain(data), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.translate(_ESCAPES)


def plain(value: Any) -> Any:
    """Data that JSON has; numbers in six digits, integers that JavaScript cannot hold as text."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if type(value) is int and abs(value) >= 1 << 53:
        return str(value)
    if type(value) is float:
        if math.isnan(value):
            return None
        if math.isinf(value):
            return "Infinity" if value > 0 else "-Infinity"
        short = float(f"{value:.6g}")
        return int(short) if short.is_integer() and abs(short) < 1e15 else short
    return value


def _hash(text: str) -> str:
    """As a content security policy names a text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
