"""A new implementation of the guide's ``checkpoint_to_json.py``: tensors as lists of numbers.

Run it as ``python -m benchmarks.guide_script X.pt --output X.json --test-load``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

__all__ = ["load_json_checkpoint", "write_json"]


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return {
            "_type": "tensor",
            "dtype": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "data": value.tolist(),
        }
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get("_type") == "tensor":
            dtype = getattr(torch, value["dtype"])
            return torch.tensor(value["data"], dtype=dtype).reshape(value["shape"])
        return {key: _rebuilt(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_rebuilt(item) for item in value]
    return value


def write_json(state: dict[str, Any], path: Path) -> None:
    """Write a checkpoint as JSON, tensors as lists."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(_plain(state), file)


def load_json_checkpoint(path: Path) -> Any:
    """Read what :func:`write_json` wrote."""
    with path.open(encoding="utf-8") as file:
        return _rebuilt(json.load(file))


def main() -> None:
    """The guide's command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("input", type=Path)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--test-load", action="store_true")
    arguments = parser.parse_args()
    write_json(torch.load(arguments.input, map_location="cpu"), arguments.output)
    if arguments.test_load:
        load_json_checkpoint(arguments.output)


if __name__ == "__main__":
    main()
