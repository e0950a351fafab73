"""The checksums of the viewer, against the packages."""

from __future__ import annotations

import hashlib

import blake3
import numpy as np
import xxhash

from tests.viewer.node import packed, run_json


def test_all_sizes() -> None:
    draw = np.random.default_rng(1)
    sizes = [*range(520), 1023, 1024, 1025, 1088, 2047, 2048, 2049, 3072, 3073, 5000, 8192, 70_001]
    parts = [draw.bytes(size) for size in sizes]
    expected = [
        [
            xxhash.xxh3_128(part).hexdigest(),
            hashlib.sha256(part).hexdigest(),
            blake3.blake3(part).hexdigest(),
        ]
        for part in parts
    ]
    found = run_json("hashes.mjs", data=packed(parts))
    wrong = [
        (size, index)
        for size, one, two in zip(sizes, expected, found)
        for index in range(3)
        if one[index] != two[index]
    ]
    assert wrong == []
