"""Few bytes must not claim very many chunks: each takes time, whatever it holds."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt

COUNT = 60_000
LIFTED = jsonckpt.Limits(chunks=None)
DOORS: dict[str, Callable[[Path], Any]] = {
    "load": jsonckpt.load,
    "open": lambda path: jsonckpt.open(path).state(),
    "stream": lambda path: list(jsonckpt.stream(path)),
    "load_into": lambda path: jsonckpt.load_into({"w": torch.ones(COUNT).byte()}, path),
    "recover": lambda path: jsonckpt.recover(path, path.with_name("out")),
}


@pytest.fixture(scope="module")
def bomb(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("many") / "c.json.zst"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", LIFTED)
        jsonckpt.save({"w": torch.zeros(COUNT).byte()}, path, encoding="list", chunk_size=1)
    assert path.stat().st_size < COUNT
    return path


@pytest.mark.parametrize("door", DOORS)
def test_many_chunks_in_few_bytes(bomb: Path, door: str) -> None:
    began = time.process_time()
    with pytest.raises(jsonckpt.LimitError, match=r"60000 chunks") as caught:
        DOORS[door](bomb)
    assert time.process_time() - began < 2
    assert "limit" in str(caught.value)


def test_verify_says_so(bomb: Path) -> None:
    report = jsonckpt.verify(bomb)
    assert any("60000 chunks" in str(problem) for problem in report.problems)


def test_the_limit_can_be_lifted(bomb: Path) -> None:
    assert not jsonckpt.load(bomb, limits=LIFTED)["w"].any()


def test_of_a_pipe_only_the_count_is_bounded(bomb: Path) -> None:
    """Its size is not known, and what takes time must really come."""
    assert not jsonckpt.load(io.BytesIO(_text(bomb)))["w"].any()


def _text(path: Path) -> bytes:
    import zstandard

    with path.open("rb") as file:
        return zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True).read()


def test_what_is_not_compressed_is_always_small_enough(tmp_path: Path) -> None:
    state = {"w": torch.zeros(COUNT).byte()}
    for name in ("c", "c.json"):
        jsonckpt.save(state, tmp_path / name, chunk_size=1, sync=False)
        assert torch.equal(jsonckpt.load(tmp_path / name)["w"], state["w"])


def test_the_writer_obeys(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.LimitError, match="Pass a larger chunk_size"):
        jsonckpt.save(
            {"w": torch.zeros(COUNT).byte()}, tmp_path / "c.json.zst", encoding="list", chunk_size=1
        )
    assert list(tmp_path.iterdir()) == []
