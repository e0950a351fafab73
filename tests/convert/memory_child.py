"""Measures in a process of its own how much anonymous memory a conversion takes at its peak.

``python -m tests.convert.memory_child SOURCE OUTPUT`` prints the bytes, less what was there before.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from pathlib import Path

import numpy as np

from jsonckpt.convert import convert
from tests.memory_child import Peak, _anonymous


def main(source: str, output: str) -> None:
    """Convert a small file first, so that what runs on is there already."""
    small = Path(output).with_name("small.npz")
    np.savez(small, w=np.ones(3))
    convert(small, small.with_suffix(".json"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = _anonymous()
    peak = Peak()
    with peak.watching():
        convert(source, output)
    print(peak.bytes - before)


if __name__ == "__main__":
    main(*sys.argv[1:])
