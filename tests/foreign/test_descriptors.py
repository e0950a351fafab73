"""A state that was read from another program's JSON lets go of its file when it is dropped."""

from __future__ import annotations

import gc
import io
import os
import sys
from pathlib import Path

import pytest

from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from tests.foreign.dialects import DIALECTS


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts in /proc/self/fd")
def test_nothing_waits_for_the_collector(tmp_path: Path) -> None:
    gc.collect()
    gc.disable()
    try:
        before = set(os.listdir("/proc/self/fd"))
        for name, text in DIALECTS.items():
            state = read_foreign(io.BytesIO(text.encode()), tmp_path, ForeignOptions())
            del state
            assert len(os.listdir("/proc/self/fd")) == len(before), name
    finally:
        gc.enable()
