"""``recover``: all that is intact, nothing that is not, whatever byte is damaged."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.format.model import Entry
from jsonckpt._src.rescue.scan import scan
from jsonckpt._src.storage.local import LocalStream
from tests.recovered import check_recovered, entries_of, small, tensors_of
from tests.support import difference, slow


def _damages(data: bytes, step: int = 1) -> Iterator[tuple[bytes, int, int]]:
    """``(text, first damaged byte, end of the damage)``: every byte flipped, every truncation."""
    for position in range(0, len(data), step):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 7
        yield bytes(flipped), position, position + 1
        yield data[:position], position, len(data)


#: Of so many damages one is tried. CI tries all.
THIN = pytest.mark.parametrize("thin", [4, slow(1)])


@THIN
@pytest.mark.parametrize("options", [{}, {"encoding": "list"}, {"compression": "zstd"}], ids=str)
def test_every_intact_record_is_found_whatever_byte_is_damaged(
    tmp_path: Path, options: dict[str, Any], thin: int
) -> None:
    path = tmp_path / "c.json"
    state = {"a": torch.arange(300, dtype=torch.int16), "b": torch.tensor([True, False]), "x": {}}
    jsonckpt.save({**state, "m": {"name": "/x"}}, path, chunk_size=100, **options)
    entries = entries_of(path)
    sums = {entry.name: [chunk[2] for chunk in entry.chunks] for entry in entries}
    damaged = tmp_path / "d.json"
    with LocalStream(path) as stream:
        head = scan(stream, DEFAULT_LIMITS).head
    count = 0
    for text, start, stop in _damages(path.read_bytes(), thin * (4 if options else 1)):
        damaged.write_bytes(text)
        with LocalStream(damaged) as stream:
            result = scan(stream, DEFAULT_LIMITS)  # also where the version is what is damaged
        found = {record.header.name: record for record in result.found}
        for entry in entries:
            untouched = stop <= entry.offset or start >= entry.offset + entry.length
            cut = start < entry.offset + entry.length + 1 and stop == start + 1
            if untouched:
                assert entry.name in found or (cut and start == entry.offset + entry.length)
            elif entry.name in found:
                pytest.fail(f"byte {start} is damaged in {entry.name}")
        for name, record in found.items():
            assert [chunk[2] for chunk in record.chunks] == sums[name]
        assert not result.sealed or result.head == head
        assert result.sealed or not _in_a_payload(entries, start, stop)
        count += 1
    assert count > 800 // thin


def _in_a_payload(entries: list[Entry], start: int, stop: int) -> bool:
    return any(
        offset <= start and stop <= offset + length
        for entry in entries
        for offset, length, _ in entry.chunks
    )


@THIN
@pytest.mark.parametrize("container", ["c.json", "c", "c.json.zst"])
def test_nothing_is_made_up_whatever_byte_is_damaged(
    tmp_path: Path, container: str, thin: int
) -> None:
    path = tmp_path / container
    jsonckpt.save(small(), path, chunk_size=8)
    original, whole = tensors_of(path), jsonckpt.load(path)
    recovered = raised = verified = 0
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    for file in files:
        data = file.read_bytes()
        for number, (text, _, _) in enumerate(_damages(data, thin * (9 if path.is_file() else 23))):
            file.write_bytes(text)
            out = tmp_path / f"out-{number}.json"
            try:
                report = jsonckpt.recover(path, out, sync=False)
            except jsonckpt.IncompleteCheckpointError:
                assert not out.exists()
                raised += 1
                continue
            check_recovered(out, report, original)
            lost = {item.name for item in report.lost}
            assert not lost & set(report.recovered)
            state = jsonckpt.load(out)
            if report.state == "verified":
                verified += 1
                assert lost | set(report.recovered) >= set(original) - {"/model/tied"}
                kept = [n for n in original if n in report.recovered]
                if "/model/w" in kept:
                    kept.append("/model/tied")
                else:
                    assert "/model/tied" in lost
                assert difference(_without(whole, kept), state) is None
                assert report.complete == (not lost)
            recovered += 1
            out.unlink()
        file.write_bytes(data)
    # A small compressed file is one block of zstd: most damage takes all of it.
    if container != "c.json.zst":
        assert recovered > 50 // thin
        assert verified > 2 // thin
    elif thin == 1:
        assert recovered > 2
    assert [name for name in os.listdir(tmp_path) if name.startswith(".")] == []


def _without(state: Any, kept: list[str]) -> Any:
    """What ``load(include=kept)`` would give."""
    text = io.BytesIO()
    jsonckpt.save(state, text)
    return jsonckpt.load(io.BytesIO(text.getvalue()), include=lambda name: name in kept)
