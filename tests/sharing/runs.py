"""Runs whose steps share unchanged tensors, for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.format.limits import DEFAULT_LIMITS
from jsonckpt._src.format.manifest import parse_manifest
from jsonckpt._src.format.model import Manifest
from tests.support import difference


def state(step: int, *, body: int = 0) -> dict[str, Any]:
    """A frozen body, and what changes in each step."""
    frozen = torch.Generator().manual_seed(1000 + body)
    moving = torch.Generator().manual_seed(step)
    weight = torch.randn(40, 30, generator=frozen)
    return {
        "model": {"body": weight, "tied": weight, "norm": torch.randn(30, generator=frozen)},
        "lora": {"a": torch.randn(5, 7, generator=moving), "step": torch.tensor(step)},
        "step": step,
    }


def step_path(run: Path, step: int) -> Path:
    return run / f"step-{step}"


def save_run(run: Path, steps: int, **options: Any) -> list[jsonckpt.SaveResult]:
    """Save steps 1, 2, …, each with what is unchanged from the one before."""
    results = []
    for step in range(1, steps + 1):
        earlier = {"unchanged_from": step_path(run, step - 1)} if step > 1 else {}
        results.append(jsonckpt.save(state(step), step_path(run, step), **earlier, **options))
    return results


def manifest_of(path: Path) -> Manifest:
    return parse_manifest((path / "manifest.json").read_bytes(), DEFAULT_LIMITS)


def check_step(run: Path, step: int, **how: Any) -> None:
    """Check that a step is whole and has its values."""
    assert difference(jsonckpt.load(step_path(run, step)), state(step, **how)) is None
    report = jsonckpt.verify(step_path(run, step))
    assert report.ok, report


def files(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def shared_rows(path: Path) -> dict[str, str]:
    """The shards of a step that lie elsewhere: file -> directory."""
    rows = json.loads((path / "manifest.json").read_text())["shards"]
    return {row["file"]: row["directory"] for row in rows if "directory" in row}
