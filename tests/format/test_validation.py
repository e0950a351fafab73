"""Rules that manifest and shards share, where no file is needed to see them."""

from __future__ import annotations

import pytest

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.format.model import Codec, Entry
from jsonckpt._src.format.validation import Problems, check_layout


@pytest.mark.parametrize(("length", "refused"), [(4, False), (8, True)])
def test_the_last_chunk_is_as_long_as_its_own_bytes_ask_for(length: int, refused: bool) -> None:
    """Seven bools in chunks of six: the last one has a byte, and four characters.

    A reader that decodes the record finds out anyway; one that has no need for it must not differ.
    """
    codec = Codec("base64", "none", "none", 6)
    chunks = ((220, 8, "0" * 32), (232, length, "0" * 32))
    entry = Entry("/mask", "bool", (7,), "cpu", codec, 7, 0, 100, 232 + length + 120, chunks)
    problems = Problems()
    check_layout([entry], [10_000], DEFAULT_LIMITS, problems)
    if not refused:
        problems.raise_if_any()
        return
    with pytest.raises(FormatError, match="chunk 1: 8 characters, it can have 4 at most"):
        problems.raise_if_any()
