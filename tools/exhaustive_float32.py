"""Proof that every float32 bit pattern survives the ``list`` encoding.

All 2**32 patterns, NaN payloads included, go through ``encode`` and ``decode_into`` and are
compared bit for bit. The list of floats is read through binary64, so this also finds texts that
give another float32 after rounding twice. Without the writer's exception for them there are exactly
two, ``7.038531e-26`` and its negative.

    python -m tools.exhaustive_float32 [--part K --of N] [--processes P]

Part K (from 0) of N covers the bit patterns from K * 2**32 // N up to (K+1) * 2**32 // N. Prints
what was checked and the mismatches; exits with 1 if there are any. The whole took 283
seconds on one core of a 2.6 GHz AMD EPYC (Zen 5) with other work beside it, at the lowest priority.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from jsonckpt._src.format import number_list

#: The number of bit patterns, and how many are checked at once.
PATTERNS = 1 << 32
BATCH = 1 << 18


@dataclass
class Outcome:
    """The result for a range: patterns checked, wrong ones, length of the longest text."""

    checked: int = 0
    mismatches: list[str] = field(default_factory=list)
    longest: int = 0

    def add(self, other: Outcome) -> None:
        self.checked += other.checked
        self.mismatches += other.mismatches
        self.longest = max(self.longest, other.longest)


def check(start: int, stop: int) -> Outcome:
    """Encode and decode the bit patterns from ``start`` up to ``stop``."""
    outcome = Outcome()
    for first in range(start, stop, BATCH):
        last = min(first + BATCH, stop)
        patterns = np.arange(first, last, dtype=np.uint64).astype("<u4")
        text = number_list.encode(patterns.tobytes(), "float32")
        returned = np.zeros_like(patterns)
        number_list.decode_into(text, "float32", returned.data.cast("B"))
        for place in np.flatnonzero(returned != patterns).tolist():
            written = text.split(b",")[place].decode()
            outcome.mismatches.append(
                f"0x{patterns[place]:08x} -> {written} -> 0x{returned[place]:08x}"
            )
        commas = np.flatnonzero(np.frombuffer(text, np.uint8) == ord(","))
        ends = np.concatenate([[-1], commas, [len(text)]])
        outcome.longest = max(outcome.longest, int(np.diff(ends).max()) - 1)
        outcome.checked += last - first
    return outcome


def part_range(part: int, of: int) -> tuple[int, int]:
    """The first bit pattern of a part, and the one after its last."""
    return part * PATTERNS // of, (part + 1) * PATTERNS // of


def _pieces(start: int, stop: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(start, stop, size):
        yield first, min(first + size, stop)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check all float32 bit patterns.")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--of", type=int, default=1)
    parser.add_argument("--processes", type=int, default=1)
    options = parser.parse_args()
    if not 0 <= options.part < options.of:
        parser.error("--part is from 0 up to, but not including, --of")
    start, stop = part_range(options.part, options.of)
    began, outcome = time.monotonic(), Outcome()
    with ProcessPoolExecutor(options.processes) as pool:
        starts, stops = zip(*_pieces(start, stop, 64 * BATCH))
        for found in pool.map(check, starts, stops):
            outcome.add(found)
            for mismatch in found.mismatches[:20]:
                print(mismatch)
            done = start + outcome.checked
            print(f"0x{start:08x} to 0x{done - 1:08x}: {outcome.checked:,} checked", flush=True)
    print(
        f"{outcome.checked:,} bit patterns, {len(outcome.mismatches):,} mismatches, longest text "
        f"{outcome.longest} characters, {time.monotonic() - began:.0f} s"
    )
    return 1 if outcome.mismatches or outcome.checked != stop - start else 0


if __name__ == "__main__":
    sys.exit(main())
