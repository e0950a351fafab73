"""Accidents: every bit flipped, every cut, every line lost, doubled or misplaced.

No damage may give another state, and no damage but one kind may pass: a flipped bit inside a zstd
frame that decodes to the same bytes (the frame has bits that mean nothing). Each reader sees one
bit of every byte flipped, and some, in a slow test, every bit; with ``JSONCKPT_LONG=1`` all do.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from tests.hostile.cases import write
from tests.hostile.forge import good
from tests.readers import indexed, streaming
from tests.support import difference, slow
from tools.reliability.common import memory_directory

LONG = bool(os.environ.get("JSONCKPT_LONG"))
Load = Callable[[bytes], Any]


class Damaged:
    """One file of a checkpoint, in memory and on disk, to be read with other bytes in it."""

    def __init__(self, path: Path, file: Path, load: Load) -> None:
        self.path = path
        self.data = file.read_bytes()
        self.load = load
        self.expected = indexed(path, threads=1)
        assert difference(self.expected, load(self.data)) is None

    def verdict(self, data: bytes) -> str | None:
        """The class of the error, or None where the damaged file loads as the good one did.

        Raises:
            AssertionError: it loads as something else.
            Exception: anything that is not ours.
        """
        try:
            state = self.load(data)
        except jsonckpt.JsonckptError as error:
            return type(error).__name__
        found = difference(self.expected, state)
        assert found is None, f"another state: {found}"
        return None


def _in_place(path: Path, file: Path, reader: Callable[..., Any]) -> Load:
    """Write the bytes to the file, then read the checkpoint."""

    def load(data: bytes) -> Any:
        file.write_bytes(data)
        return reader(path)

    return load


def _one_thread(path: Path) -> Any:
    return indexed(path, threads=1)


def _shard(path: Path, number: int) -> Path:
    return sorted(path.glob("shard-*"))[number]


TARGETS = {
    "piped": ("single", None),
    "single": ("single", None),
    "single_streaming": ("single", None),
    "zst": ("zst", None),
    "manifest": ("directory", "manifest.json"),
    "first_shard": ("directory", 0),
    "second_shard": ("directory", 1),
    "first_shard_streaming": ("directory", 0),
    "second_shard_streaming": ("directory", 1),
    "shard_zst": ("directory_zst", 0),
}
#: Read by the same code as the others.
LIKE_OTHERS = (
    "single_streaming",
    "second_shard",
    "first_shard_streaming",
    "second_shard_streaming",
)
#: Each bit of these is flipped in the slow test; of the others one bit of each byte.
THOROUGH = ("piped", "manifest")


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, where there is one: thousands of files are written."""
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        yield Path(directory)


@pytest.fixture(params=[slow(name) if name in LIKE_OTHERS else name for name in TARGETS])
def target(request: pytest.FixtureRequest, memory: Path) -> tuple[str, Damaged]:
    """Each file of a small checkpoint with each reader."""
    name = request.param
    form, part = TARGETS[name]
    path = write(good(), form, memory)
    file = path if part is None else path / part if isinstance(part, str) else _shard(path, part)
    if name == "piped":
        return name, Damaged(path, file, lambda data: jsonckpt.load(io.BytesIO(data)))
    reader = streaming if name.endswith("streaming") else _one_thread
    return name, Damaged(path, file, _in_place(path, file, reader))


def _silent(damaged: Damaged, files: Iterable[tuple[int, bytes]]) -> list[int]:
    """Where damage passed without a word."""
    return [place for place, data in files if damaged.verdict(data) is None]


def _flipped(data: bytes, bits: Callable[[int], Iterable[int]]) -> Iterator[tuple[int, bytes]]:
    for place in range(len(data)):
        for bit in bits(place):
            changed = bytearray(data)
            changed[place] ^= 1 << bit
            yield place, bytes(changed)


def _frames(data: bytes) -> set[int]:
    """The places of the payloads that are zstd frames, or of all bytes where the file is one."""
    if data[:4] == b"\x28\xb5\x2f\xfd":
        return set(range(len(data)))
    start = data.find(b'"compression":"zstd"')
    if start < 0 or not data.startswith(b'{"format":"jsonckpt.shard"'):
        return set()
    start = data.index(b"\n", start)
    return set(range(start, data.index(b"\n],", start)))


def test_a_bit_of_every_byte(target: tuple[str, Damaged]) -> None:
    _check_bits(target[1], every=LONG)


@pytest.mark.slow
@pytest.mark.parametrize("target", THOROUGH, indirect=True)
def test_every_bit(target: tuple[str, Damaged]) -> None:
    _check_bits(target[1], every=True)


def _check_bits(damaged: Damaged, *, every: bool) -> None:
    flips = _flipped(damaged.data, lambda place: range(8) if every else [place % 8])
    silent = set(_silent(damaged, flips))
    assert silent <= _frames(damaged.data), f"a flip passes at {sorted(silent)}"
    # Of the bits that mean nothing there are few.
    assert len(silent) < len(damaged.data) // 20


def test_every_cut(target: tuple[str, Damaged]) -> None:
    name, damaged = target
    data = damaged.data
    silent = _silent(damaged, ((size, data[:size]) for size in range(len(data))))
    # Only white space stands behind the seal of a manifest, and it may be missing.
    assert silent == ([len(data) - 1] if name == "manifest" else [])


def test_every_byte_lost(target: tuple[str, Damaged]) -> None:
    _, damaged = target
    data = damaged.data
    step = 1 if LONG else 3
    places = range(0, len(data) - 1, step)
    assert _silent(damaged, ((place, data[:place] + data[place + 1 :]) for place in places)) == []


def _lines(data: bytes) -> Iterator[tuple[int, bytes]]:
    lines = data.splitlines(keepends=True)
    for number in range(len(lines)):
        before, line, after = lines[:number], lines[number], lines[number + 1 :]
        yield number, b"".join([*before, *after])
        yield number, b"".join([*before, line, line, *after])
        yield number, b"".join([*before, b"\n", line, *after])
        if after and after[0] != line:
            yield number, b"".join([*before, after[0], line, *after[1:]])


def test_every_line(target: tuple[str, Damaged]) -> None:
    name, damaged = target
    if name.endswith("zst"):
        pytest.skip("no lines")
    assert _silent(damaged, _lines(damaged.data)) == []


def test_pieces_of_another_save(tmp_path: Path) -> None:
    """Files of two checkpoints that differ in one value, mixed in every way."""
    paths = []
    for number in range(2):
        forgery = good()
        forgery.head["save_id"] = f"{number}" * 32
        forgery.single["state"]["epoch"] = number
        forgery["/i"].payloads[0] = b"%d,0,1" % number
        forgery["/i"].fill(number.to_bytes(8, "little") + bytes(8) + b"\1" + bytes(7))
        paths.append(forgery.write_directory(tmp_path / str(number)))
    files = sorted(file.name for file in paths[0].iterdir())
    for mask in range(1, 2 ** len(files) - 1):
        mixed = tmp_path / f"mixed-{mask}"
        mixed.mkdir()
        for bit, name in enumerate(files):
            (mixed / name).write_bytes((paths[mask >> bit & 1] / name).read_bytes())
        for reader in (indexed, streaming):
            with pytest.raises(jsonckpt.JsonckptError):
                reader(mixed)
