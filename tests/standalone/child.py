"""Loads checkpoints with ``jsonckpt_reader.py`` in a process that has no jsonckpt.

Arguments: the directory of the reader, the modules that must be missing, with commas between them,
the file that gets the states (a pickle of torch), and the checkpoints.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class Missing:
    """Finds nothing under some names."""

    def __init__(self, names: set[str]) -> None:
        self._names = names

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if name in self._names or name.split(".")[0] in self._names:
            raise ImportError(f"No module named {name!r}")
        return None


def main() -> None:
    """Load each checkpoint, and save a list of pairs: the state or None, the error or None."""
    folder, missing, output, *paths = sys.argv[1:]
    sys.meta_path.insert(0, Missing({*missing.split(","), "jsonckpt", "tests"}))
    sys.path.insert(0, folder)
    warnings.simplefilter("ignore")
    import torch
    from jsonckpt_reader import CheckpointError, Registered, load

    results: list[Any] = []
    for path in paths:
        try:
            results.append((load(path), None))
        except CheckpointError as error:
            results.append((None, str(error)))
    assert "jsonckpt" not in sys.modules
    assert not {*missing.split(",")} & sys.modules.keys()
    Registered.__module__ = "jsonckpt._src.standalone.jsonckpt_reader"
    if paths == ["memory"]:
        return
    try:
        torch.save(results, output)
    except Exception as error:  # a state that pickle refuses
        raise SystemExit(f"cannot hand the states over: {error}") from error


if __name__ == "__main__":
    main()
