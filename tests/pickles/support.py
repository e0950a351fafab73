"""What the tests of pickles share: how a pickle is read, and what a state is compared with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jsonckpt._src.sources.torch_files import PickleOptions, load_torch_file
from jsonckpt._src.tensors.compare import compare


def loaded(data: bytes, directory: Path, **options: Any) -> Any:
    """The state in a file with these bytes."""
    path = directory / "state.pt"
    path.write_bytes(data)
    return load_torch_file(path, directory, PickleOptions(**options))


def same(expected: Any, found: Any) -> None:
    assert compare(expected, found).differences == []
