"""``--tensors`` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from jsonckpt._src.commands.convert import main


def test_lists_that_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "a.json", tmp_path / "b.pt"
    source.write_text(json.dumps({"table": [[1.5, 2.0]], "other": [1.5]}))
    assert main([str(source), "-o", str(output)]) == 1
    assert "--tensors" in capsys.readouterr().err
    assert main([str(source), "-o", str(output), "--tensors", "table"]) == 0
    found = torch.load(output)
    assert torch.equal(found["table"], torch.tensor([[1.5, 2.0]]))
    assert found["other"] == [1.5]
