"""Statistics of the viewer against NumPy, and the examples of its page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

import jsonckpt
from tests.viewer.node import VIEWER, node, run_json


def test_statistics_of_every_kind_of_number(tmp_path: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    base = torch.randn(12, 8, generator=draw)
    state = {
        "float32": base,
        "view": base[3:9:2],
        "bfloat16": torch.randn(40, generator=draw).bfloat16(),
        "far": torch.randn(1000, generator=draw, dtype=torch.float64) * 1e-3 + 1e6,
        "int64": torch.arange(-50, 50) * 2**40,
        "complex64": torch.randn(6, 6, generator=draw, dtype=torch.complex64),
        "bool": torch.tensor([[True, False], [True, True]]),
        "broken": torch.tensor([[1.0, float("nan")], [float("-inf"), 0.0]]),
        "one": torch.tensor(3.5),
    }
    jsonckpt.save(state, tmp_path / "c.json", chunk_size=64)
    found = run_json("summarize.mjs", tmp_path / "c.json")
    for name, tensor in state.items():
        wide = tensor.to(torch.complex128).abs() if tensor.is_complex() else tensor.double()
        values = wide.numpy()
        finite = values[np.isfinite(values)]
        facts = found[f"/{name}"]
        expected = {
            "count": finite.size,
            "nan": int(np.isnan(values).sum()),
            "infinite": int(np.isinf(values).sum()),
            "zeros": int((values == 0).sum()),
            "min": finite.min(),
            "max": finite.max(),
            "mean": finite.mean(),
            "std": finite.std(),
            "norm": np.linalg.norm(finite),
        }
        for key, value in expected.items():
            assert facts[key] == pytest.approx(value, rel=1e-6), (name, key)
        if finite.max() > finite.min():
            assert sum(facts["histogram"]) == finite.size
            if name != "int64":  # a number on an edge may be rounded to either side
                counts, _ = np.histogram(finite, bins=10)
                np.testing.assert_allclose(facts["histogram"], counts, atol=1)
    heat = found["/float32"]
    assert (heat["rows"], heat["columns"]) == (4, 4)
    means = base.double().numpy().reshape(4, 3, 4, 2).mean((1, 3)).ravel()
    np.testing.assert_allclose(heat["means"], means, rtol=1e-5)
    assert found["/broken"]["means"] == [1, None, None, 0]


def test_the_examples_of_the_page(tmp_path: Path) -> None:
    page = (VIEWER.parent / "viewer.md").read_text("utf-8")
    [script] = re.findall(r"```javascript\n(.*?)```", page, re.DOTALL)
    [expected] = re.findall(r"<!-- output -->\n```text\n(.*?)```", page, re.DOTALL)
    shutil.copytree(VIEWER, tmp_path / "docs" / "viewer")
    (tmp_path / "read.mjs").write_text(script)
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / "model")
    command = [node(), "read.mjs"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert shown == expected
