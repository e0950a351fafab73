"""Commands that make no tensors do not import torch, and ``--help`` imports not even NumPy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import jsonckpt

CHILD = """
import sys
from jsonckpt._src.cli.main import main
for line in sys.stdin.read().splitlines():
    code, *words = line.split()
    assert main(words) == int(code), line
    assert "torch" not in sys.modules, line
    assert "numpy" not in sys.modules or "--help" not in words, line
"""
COMMANDS = """\
0 --help
0 help set
0 inspect --help
0 convert --help
0 _complete 1 jsonckpt ins
0 _complete 4 jsonckpt inspect c --match /w
0 inspect c c.json
0 inspect c --tree
0 inspect c --json
0 inspect c --stats
0 inspect c c.json --html r.html
0 find .
0 find . --json
0 diff c c.json
3 diff c d.json
3 diff c d.json --stats
0 textconv c.json
0 get c /epoch
0 get c /w
0 get c /w -o w.npy
0 rename c n.json w v
0 merge a=c b=d.json -o m.json
0 split c -o s.json --include /w
0 average c d.json -o a.json
0 set c /epoch 5
0 kaggle-init c --id me/my-run-1
0 export-reader c
0 completion bash
1 inspect no.json
2 inspct
"""


def test_no_command_that_looks_imports_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {"w": torch.ones(3), "epoch": 3}
    jsonckpt.save(state, "c")
    jsonckpt.save(state, "c.json")
    jsonckpt.save(state | {"w": torch.zeros(3)}, "d.json")
    done = subprocess.run(
        [sys.executable, "-c", CHILD], input=COMMANDS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
