"""What the writer lets pass, a reader with the same limits takes: for each limit and each form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.limits import Limits
from tests.support import slow

#: For each limit a value that the state below is over in some form, and one that it is not.
VALUES: dict[str, tuple[int, int]] = {
    "manifest_bytes": (900, 1 << 20),
    "tensors": (2, 3),
    "chunks": (9, 1_000),
    "shards": (1, 100),
    "name_bytes": (8, 40),
    "rank": (64, 64),  # no tensor of torch has more
    "chunk_bytes": (32, 1 << 20),
    "depth": (3, 20),
    "number_chars": (1_000, 1_000),  # longer integers are written in hexadecimal
    "marks": (60, 10_000),
    "total_floor": (0, 1 << 20),
    "expansion": (0, 1_000),
    "zstd_window": (64 << 20, 64 << 20),  # the levels of zstd ask for less
}


def _state() -> dict[str, Any]:
    return {
        "weight.first": torch.zeros(40, 2),
        "weight.second": torch.arange(50.0),
        "nested": [[[{"number": 3**700}]]],
        "byte": torch.zeros(1, dtype=torch.uint8),
    }


def test_every_limit_has_a_value() -> None:
    # Whether files are links is nothing that a writer chooses.
    assert {field.name for field in dataclasses.fields(Limits)} - {"links"} == set(VALUES)


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("field", VALUES)
def test_refused_or_readable(
    tmp_path: Path, field: str, which: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(**{field: VALUES[field][which]})
    if field in ("total_floor", "expansion"):
        other = "expansion" if field == "total_floor" else "total_floor"
        limits = dataclasses.replace(limits, **{other: 0})
    monkeypatch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", limits)
    path = tmp_path / name
    options: dict[str, Any] = {"max_shard_size": 500} if name == "c" else {}
    try:
        jsonckpt.save(_state(), path, chunk_size=64, sync=False, **options)
    except (jsonckpt.LimitError, ValueError):  # an argument is a ValueError
        assert which == 0
        assert list(tmp_path.iterdir()) == []
        return
    loaded = jsonckpt.load(path, limits=limits)
    assert loaded["nested"] == _state()["nested"]
    assert dict(jsonckpt.stream(path, limits=limits)).keys() == {
        "/weight.first", "/weight.second", "/byte",
    }  # fmt: skip
    assert jsonckpt.verify(path, limits=limits)


@pytest.mark.parametrize("name", ["c", "c.json"])
@pytest.mark.parametrize(
    ("state", "chunk_size", "way"),
    [
        # One chunk in each tensor: larger ones make nothing smaller.
        ({str(i): torch.ones(2) for i in range(40)}, "1MiB", "join small ones"),
        ({"w": torch.ones(2_000)}, 8, "Pass a larger chunk_size."),
        ({"w": torch.ones(2), "text": ["abcdefgh"] * 400}, "1MiB", "Put large data"),
    ],
    ids=["tensors", "chunks", "state"],
)
def test_the_way_out_helps(
    tmp_path: Path,
    name: str,
    state: dict[str, Any],
    chunk_size: Any,
    way: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of the index and the manifest as of the count of brackets and strings."""
    for limits in (Limits(manifest_bytes=1_200, marks=10_000_000), Limits(marks=90)):
        monkeypatch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", limits)
        with pytest.raises(jsonckpt.LimitError) as caught:
            jsonckpt.save(state, tmp_path / name, chunk_size=chunk_size)
        assert way in (caught.value.hint or ""), limits


@pytest.mark.parametrize(
    "state", [slow([{} for _ in range(600_000)]), [0.5] * 1_100_000], ids=["marks", "text"]
)
def test_a_state_that_compresses_too_well(tmp_path: Path, state: Any) -> None:
    """What no reader would take in a compressed file is refused there, and nothing is lost."""
    path = tmp_path / "c.json.zst"
    jsonckpt.save({"epoch": 1}, path, sync=False)
    with pytest.raises(jsonckpt.LimitError, match=r"Save without \.zst"):
        jsonckpt.save(state, path, sync=False)
    assert jsonckpt.load(path) == {"epoch": 1}
    for name in ("c", "c.json"):
        jsonckpt.save(state, tmp_path / name, sync=False)
        assert jsonckpt.load(tmp_path / name) == state
    noise = torch.randint(0, 255, (1 << 20,), dtype=torch.uint8)
    jsonckpt.save({"x": state, "noise": noise}, path, sync=False)
    assert jsonckpt.load(path)["x"] == state
