"""Foreign JSON of very many small values: seconds and bounded memory, or a LimitError."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from tests.support import THOROUGH, slow

#: Repeated to so many bytes of text; compressed, a few kilobytes.
SIZE = 8_000_000
UNITS = (
    "{}", '""', "[]", "1", "true", "null", "-0.5", '"a"', "[1]", '"",[1]', "[[],[]]", '{"a":1}',
    "[1,{}]", '{"a":[1]}', '{"data":[1]}', '{"data":[[1,2]]}', '"\\"",1', '{"a":{"b":{}}}',
    '{"data":[1],"dtype":"int8"}', "NaN", '"\\u0061"', '{"data":"AAAA","dtype":"int8"}',
)  # fmt: skip
CHILD = """
import json, resource, sys, time
from pathlib import Path
from jsonckpt import JsonckptError, Limits
from jsonckpt._src.convert.options import ConvertOptions
from jsonckpt._src.convert.read import read
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmHWM"))
for line in sys.stdin:
    path, directory = json.loads(line)
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before, began, error, message = peak(), time.process_time(), None, ""
    try:
        read(Path(path), ConvertOptions(), Path(directory))
    except JsonckptError as caught:
        error, message = type(caught).__name__, str(caught)
    seconds = time.process_time() - began
    print(json.dumps([error, message, seconds, peak() - before]), flush=True)
"""


def _ask(paths: list[Path], directory: Path) -> list[tuple[str | None, str, float, int]]:
    asked = "".join(json.dumps([str(path), str(directory)]) + "\n" for path in paths)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD],
        input=asked, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [(error, message, seconds, growth) for error, message, seconds, growth in answers]


def _text(unit: str, size: int) -> bytes:
    values = ",".join([unit] * (size // (len(unit) + 1)))
    return ('{"w":{"data":[1.0],"dtype":"float32","shape":[1]},"x":["a",%s]}' % values).encode()  # noqa: UP031


@pytest.mark.parametrize(
    ("pack", "units"),
    [
        pytest.param(zstandard.compress, ("{}", '"a"'), id="zstd"),
        pytest.param(zstandard.compress, ('""', '{"a":1}'), id="zstd more", marks=THOROUGH),
        pytest.param(gzip.compress, ("{}", '"a"'), id="gzip", marks=THOROUGH),
    ],
)
def test_repeated_small_values_compressed(
    pack: Callable[[bytes], bytes], units: tuple[str, ...], tmp_path: Path
) -> None:
    paths = []
    for number, unit in enumerate(units):
        path = tmp_path / f"{number}.json"
        path.write_bytes(pack(_text(unit, SIZE)))
        paths.append(path)
    for unit, (error, message, seconds, growth) in zip(units, _ask(paths, tmp_path), strict=True):
        assert error == "LimitError", f"{unit}: {message}"
        assert "marks=none" in message
        # A second or two; the machine that runs the tests may be slow.
        assert seconds < 10, f"{unit} took {seconds:.1f} s"
        assert growth < 300 << 20, f"{unit} took {growth >> 20} MiB"


@pytest.mark.parametrize("size", [10_000, slow(50_000)])
def test_time_grows_with_the_text_alone(tmp_path: Path, size: int) -> None:
    """Four times the text takes about four times as long, whatever stands in it."""
    paths = []
    units = (*UNITS, '"\\\\', '\\"', "[", "[1,[", '{"a":', "9", "-", " ", "\\u", "\n", '"data":[')
    for number, unit in enumerate(units):
        for factor in (1, 4):
            path = tmp_path / f"{number}-{factor}.json"
            path.write_bytes(_text(unit, size * factor))
            paths.append(path)
    found = _ask(paths, tmp_path)
    for unit, small, large in zip(units, found[::2], found[1::2], strict=True):
        assert large[2] < 10 * small[2] + 1, f"{unit}: {small[2]:.2f} s, then {large[2]:.2f} s"
