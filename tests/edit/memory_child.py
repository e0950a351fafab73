"""Measures in a process of its own how much memory edits take: ``DIRECTORY NAME MIB ENCODING``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonckpt import edit
from tests.memory_peak import measure


def _measured(source: Path, new: list[Path], out: Path, second: Path) -> dict[str, int]:
    """The peak of each edit of a checkpoint."""
    return {
        "set": measure(lambda: edit.set_value(source, "/lr", 2.0, sync=False)),
        "rename": measure(lambda: edit.rename(source, new[0], replace=("w", "v"), sync=False)),
        "split": measure(lambda: edit.split(source, out / "p", by="8MB", sync=False)),
        "merge": measure(lambda: edit.merge({"a": source, "b": source}, new[1], sync=False)),
        "average": measure(lambda: edit.average([source, second], new[2], sync=False)),
        "export": measure(lambda: edit.export(source, "/w0", out / "x.npy")),
    }


def main(directory: str, name: str) -> None:
    """Edit the checkpoints that are there, and print the peaks."""
    folder = Path(directory)
    path, small = folder / name, folder / f"small-{name}"
    extra: dict[str, int] = {}
    for round_, source in enumerate((small, path)):  # the first use imports and allocates
        out = folder / f"out{round_}"
        out.mkdir()
        single = source.is_file()
        new = [out / (f"{n}{name[1:]}" if single else n) for n in "abcd"]
        extra = _measured(source, new, out, folder / f"second-{source.name}")
    assert "torch" not in sys.modules
    print(json.dumps(extra))


if __name__ == "__main__":
    main(*sys.argv[1:])
