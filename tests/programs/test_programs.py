"""``convert`` reads what other programs write, and finds the values that they were given.

Always: the files of ``files/``, which those programs wrote. Where the programs are installed
(``JSONCKPT_REQUIRE`` has ``programs``): files that they write now.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt.convert import convert
from tests.programs.write import FILES, HERE, WRITERS, write_javascript, write_python
from tests.support import lacking

GUIDE = HERE.parents[1] / "docs" / "guides" / "converting.md"
NAMES = sorted(path.name for path in FILES.iterdir() if path.suffix != ".expected")


def expected_of(path: Path) -> dict[str, torch.Tensor]:
    stated: dict[str, Any] = json.loads(path.with_name(f"{path.name}.expected").read_text())
    tensors = {}
    for name, entry in stated.items():
        dtype = getattr(torch, entry["dtype"])
        if dtype.is_complex:
            flat = torch.view_as_complex(torch.tensor(entry["data"]).view(-1, 2))
        else:
            flat = torch.tensor(entry["data"], dtype=dtype)
        tensors[name] = flat.view(entry["shape"])
    return tensors


def check(path: Path, output: Path) -> None:
    convert(path, output, test_load=True)
    with jsonckpt.open(output) as checkpoint:
        found = {name: checkpoint[name][...] for name in checkpoint}
    expected = expected_of(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("name", NAMES)
def test_files_that_programs_wrote(name: str, tmp_path: Path) -> None:
    check(FILES / name, tmp_path / "out.json")


def test_the_guide_names_each_of_the_files() -> None:
    table = GUIDE.read_text(encoding="utf-8").partition("<!-- programs -->")[2]
    assert set(re.findall(r"`([\w.]+)`", table.partition("<!-- end -->")[0])) >= set(NAMES)


def test_programs_in_python_that_run_now(tmp_path: Path) -> None:
    if importlib.util.find_spec("bokeh") is None:
        lacking("programs", "tests/programs/requirements.txt is not installed")
    write_python(tmp_path)
    for name in WRITERS:
        check(tmp_path / name, tmp_path / f"{name}.out.json")


def test_programs_in_javascript_that_run_now(tmp_path: Path) -> None:
    if not (HERE / "node_modules").is_dir():
        lacking("programs", "tests/programs/package.json is not installed")
    write_javascript(tmp_path)
    written = sorted(tmp_path.glob("*.json"))
    assert len(written) >= 4
    for path in written:
        check(path, tmp_path / f"{path.name}.out.json")
