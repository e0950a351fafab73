"""zstd's coder of single bytes, with next to no search for repetitions before it.

The search costs more than the coding and finds hardly anything in the exponents of floats. zstd's
fastest strategy can be told to look at every so many bytes only (its target length), but takes
that to mean that bytes are not to be coded either; a further parameter says that they are. The
package ``zstandard`` does not know this parameter; the standard library's module does.

What it makes are frames like any other (RFC 8878). Bytes in, bytes out.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd
#: Of the library behind this module; ``zstandard`` has one of its own.
ZSTD_VERSION: Final = zstd.zstd_version
#: ``ZSTD_c_literalCompressionMode``, whose name is not exported, and ``ZSTD_ps_enable``.
_CODE_LITERALS, _ENABLED = 1002, 1
_PARAMETER: Final = zstd.CompressionParameter
#: The smallest table of places to look at, and the longest of the shortest matches.
_HASH_LOG, _MIN_MATCH = 6, 7


class EntropyCoder:
    """Makes frames; not thread-safe.

    Args:
        window_log: of the window that the frames ask for.
        step: one place in so many bytes is looked at for what came before. Runs of zeros are found
            with 64; a larger one is hardly quicker.
        sized: whether the frames state their size.

    >>> coder = EntropyCoder(window_log=20)
    >>> frame = coder.frame([memoryview(b"abc" * 1000)])
    >>> zstd.decompress(frame) == b"abc" * 1000
    True
    """

    def __init__(self, *, window_log: int, step: int = 64, sized: bool = True) -> None:
        self._options: dict[int, int] = {
            _PARAMETER.window_log: window_log,
            _PARAMETER.hash_log: _HASH_LOG,
            _PARAMETER.min_match: _MIN_MATCH,
            _PARAMETER.strategy: zstd.Strategy.fast,
            _PARAMETER.content_size_flag: int(sized),
        }
        self._hurried: dict[int, int] = {
            _PARAMETER.target_length: step,
            _CODE_LITERALS: _ENABLED,
        }
        self._compressor = self._made()

    def frame(self, parts: Sequence[memoryview]) -> bytes:
        """One frame of all parts, whose blocks end where the parts do."""
        compressor = self._compressor
        if len(parts) == 1:
            return compressor.compress(parts[0], compressor.FLUSH_FRAME)
        try:
            compressor.set_pledged_input_size(sum(map(len, parts)))
            pieces = [compressor.compress(part, compressor.FLUSH_BLOCK) for part in parts[:-1]]
            pieces.append(compressor.compress(parts[-1], compressor.FLUSH_FRAME))
        except BaseException:
            self._compressor = self._made()  # the next call begins a frame, whatever is in this
            raise
        return b"".join(pieces)

    def _made(self) -> zstd.ZstdCompressor:
        made: zstd.ZstdCompressor
        try:
            made = zstd.ZstdCompressor(options=self._options | self._hurried)
        except (zstd.ZstdError, ValueError):
            # A zstd of the system's own that does not know the parameter: as small, but slower.
            made = zstd.ZstdCompressor(options=self._options)
        return made
