"""Edits of any state: what comes out is what the same change in Python gives."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt import edit
from tests.golden.cases import CASES, Case
from tests.golden.make_v1 import FOLDER
from tests.support import difference, examples
from tests.tensor_states import options, states

KNOWN = [case for case in CASES if not (case.needs or case.needs_zones)]


def intact(path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        report = jsonckpt.verify(path, deep=True)
    assert report.ok, report


def loaded(path: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return jsonckpt.load(path)


@pytest.mark.parametrize("case", KNOWN, ids=lambda case: case.path)
def test_golden_files(case: Case, tmp_path: Path) -> None:
    """Every golden file: under a name, with a value changed, renamed, taken apart and joined."""
    source = FOLDER / case.path
    ending = "".join(source.suffixes)
    path, extra = tmp_path / f"in{ending}", tmp_path / "extra.json"
    if case.earlier:
        shutil.copytree(FOLDER / case.earlier, tmp_path / case.earlier)
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
    jsonckpt.save({"lr": 1.0}, extra)
    expected = loaded(path)

    joined = tmp_path / f"joined{ending}"
    edit.merge({"all": path, "x": extra}, joined)
    intact(joined)
    assert difference(loaded(joined), {"all": expected, "x": {"lr": 1.0}}) is None

    edit.set_value(joined, "/x/lr", 2)
    intact(joined)
    name = "all"
    with jsonckpt.open(joined) as checkpoint:
        has_tensors = bool(list(checkpoint))
    if has_tensors:
        name = "whole"
        edit.rename(joined, replace=("^all$", "whole"), regex=True)
        intact(joined)
    assert difference(loaded(joined), {name: expected, "x": {"lr": 2.0}}) is None

    parts = [part.path for part in edit.split(joined, tmp_path / "parts", by="top-level").parts]
    for part in parts:
        intact(part)
    if len(parts) == 2:
        edit.merge(parts, tmp_path / f"again{ending}")
        intact(tmp_path / f"again{ending}")
        assert difference(loaded(tmp_path / f"again{ending}"), loaded(joined)) is None
    else:
        assert not has_tensors


@settings(max_examples=examples(120))
@given(state=states, chosen=options(), name=st.sampled_from(["c", "c.json", "c.json.zst"]))
def test_any_state(state: Any, chosen: dict[str, Any], name: str) -> None:
    if chosen["encoding"] == "list":
        chosen["filter"] = "none"
        if name == "c.json":
            chosen["compression"] = None
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = folder / name
        jsonckpt.save({"all": state, "note": 1.5}, path, **chosen)
        key = "all"
        edit.set_value(path, "note", 2, sync=False)
        intact(path)
        assert difference(loaded(path), {key: state, "note": 2.0}) is None
        with jsonckpt.open(path) as checkpoint:
            has_tensors = bool(list(checkpoint))
        if has_tensors:
            key = "whole"
            edit.rename(path, replace=("^all$", key), regex=True, sync=False)
            intact(path)
            assert difference(loaded(path), {key: state, "note": 2.0}) is None
        parts = [part.path for part in edit.split(path, folder / "p", by=40, sync=False).parts]
        for part in parts:
            intact(part)
        if len(parts) > 1:
            edit.merge(parts, folder / "whole.json", sync=False)
            intact(folder / "whole.json")
            # Ties across parts are copies now; the values are the same.
            assert difference(loaded(folder / "whole.json"), {key: state, "note": 2.0}) is None
