"""``--for-web``: a directory that every JSON tool opens with its defaults."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import jsonckpt
from jsonckpt._src.commands.convert import main
from jsonckpt._src.convert.options import WEB_SHARD_SIZE
from jsonckpt._src.errors import ArgumentError
from jsonckpt.convert import convert


@pytest.fixture
def source(tmp_path: Path) -> Path:
    state = {f"w{i}": torch.full((1_000_000,), float(i)) for i in range(8)}
    torch.save(state, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_a_directory_of_small_shards(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(source), "--for-web", "--test-load"]) == 0
    assert "larger than" not in capsys.readouterr().out
    output = source.with_name("model")
    shards = list(output.glob("shard-*.json"))
    assert len(shards) == 4
    assert max(file.stat().st_size for file in shards) <= WEB_SHARD_SIZE < 16 * 1024 * 1024
    manifest = json.loads((output / "manifest.json").read_text())
    assert {codec["compression"] for codec in manifest["codecs"]} == {"none"}
    assert torch.equal(jsonckpt.load(output)["w7"], torch.full((1_000_000,), 7.0))


def test_a_larger_tensor_is_named(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(4_000_000), "b": torch.zeros(2)}, tmp_path / "model.pt")
    result = convert(tmp_path / "model.pt", for_web=True)
    assert result.to == "dir"
    [note] = [note for note in result.notes if "larger than" in note]
    assert f"max_shard_size={WEB_SHARD_SIZE}" in note
    assert "'/w'" in note


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max-shard-size", "1GB"],
        ["--compression", "zstd"],
        ["--to", "pt"],
        ["-o", "model.json"],
    ],
    ids=" ".join,
)
def test_options_that_do_not_fit(
    arguments: list[str], source: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(source), "--for-web", *arguments]) == 2
    assert "--for-web" in capsys.readouterr().err


def test_options_that_do_not_fit_in_python(source: Path) -> None:
    with pytest.raises(ArgumentError, match="writes a directory"):
        convert(source, to="json", for_web=True)
    with pytest.raises(ArgumentError, match="sets max_shard_size itself"):
        convert(source, max_shard_size="1GB", for_web=True)
    assert not source.with_name("model").exists()
