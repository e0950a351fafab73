"""What ijson must not see, refused beforehand.

Measured on ijson 3.6: its C backend crashes the process on an integer of over 4,300 digits, turns
lone surrogates into question marks, takes form feeds for white space, and lets UnicodeDecodeError
escape. Pure.
"""

from __future__ import annotations

import re

from jsonckpt.errors import FormatError

__all__ = ["guard"]

#: Longer than any number or name that the format allows, shorter than what crashes ijson.
_DIGIT_RUN = 1_100
_STRIDE = 1_000
#: All below U+0020 but the white space that JSON has.
_CONTROLS = bytes(set(range(32)) - set(b"\t\n\r"))
_DIGITS = re.compile(rb"[0-9]*")
#: ijson's backend in Python takes +1 for a number.
_PLUS = re.compile(rb"(?<![eE])\+")
_ESCAPE = re.compile(rb"\\(?:u([0-9a-fA-F]{4})|.)", re.DOTALL)


def guard(text: bytes) -> None:
    """Refuse what ijson must not see. ``text`` is whole lines.

    Raises:
        FormatError: invalid UTF-8, a control character, an endless run of digits, a lone surrogate.
    """
    if len(text.translate(None, _CONTROLS)) != len(text):
        raise FormatError("a control character, which JSON must not have")
    try:
        text.decode("utf-8", "strict")
    except UnicodeDecodeError as error:
        raise FormatError(
            f"invalid UTF-8: {error.reason} at byte {error.start} of a line"
        ) from error
    # A run of that many digits covers a multiple of the stride: look only there.
    for place in range(_STRIDE - 1, len(text), _STRIDE):
        if 48 <= text[place] <= 57:
            after = _DIGITS.match(text, place)
            assert after is not None
            before = text[max(0, place - _DIGIT_RUN) : place]
            digits = len(after[0]) + len(before) - len(before.rstrip(b"0123456789"))
            if digits >= _DIGIT_RUN:
                raise FormatError(f"a run of over {_DIGIT_RUN} digits")
    if b"\\u" in text:
        _check_escapes(text)
    if b"+" in text and _PLUS.search(_outside_strings(text)):
        raise FormatError("a plus sign before a number, which JSON must not have")


def _outside_strings(text: bytes) -> bytes:
    """What stands between the strings, in time that grows with the length alone.

    A pattern for strings would look for the end of one at every quote, where none ends. Between
    strings no backslash is JSON: what that does to the quotes behind it, ijson refuses anyway.
    """
    plain = text.replace(b"\\\\", b"__").replace(b'\\"', b"__")
    return b'"'.join(plain.split(b'"')[::2])


def _check_escapes(text: bytes) -> None:
    high_end = -1
    for match in _ESCAPE.finditer(text):
        unit = int(match[1], 16) if match[1] else 0
        if high_end >= 0:
            if not (match.start() == high_end and 0xDC00 <= unit <= 0xDFFF):
                break
            high_end = -1
        elif 0xD800 <= unit <= 0xDBFF:
            high_end = match.end()
        elif 0xDC00 <= unit <= 0xDFFF:
            high_end = 0
            break
    if high_end >= 0:
        raise FormatError("a lone surrogate escape")
