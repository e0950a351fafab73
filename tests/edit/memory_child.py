"""Measures in a process of its own how much memory edits take: ``DIRECTORY NAME MIB ENCODING``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from jsonckpt import edit
from tests.memory_peak import measure


def main(directory: str, name: str) -> None:
    """Edit the checkpoints that are there, and print the peaks."""
    folder = Path(directory)
    path, small = folder / name, folder / f"small-{name}"
    extra = {}
    for round_, source in enumerate((small, path)):  # the first use imports and allocates
        out = folder / f"out{round_}"
        out.mkdir()
        single = source.is_file()
        new = [out / (f"{n}{name[1:]}" if single else n) for n in "abcd"]
        extra = {
            "set": measure(lambda s=source: edit.set_value(s, "/lr", 2.0, sync=False)),
            "rename": measure(
                lambda s=source, n=new: edit.rename(s, n[0], replace=("w", "v"), sync=False)
            ),
            "split": measure(lambda s=source, o=out: edit.split(s, o / "p", by="8MB", sync=False)),
            "merge": measure(
                lambda s=source, n=new: edit.merge({"a": s, "b": s}, n[1], sync=False)
            ),
            "average": measure(
                lambda s=source, n=new: edit.average([s, folder / f"second-{s.name}"], n[2])
            ),
            "export": measure(lambda s=source, o=out: edit.export(s, "/w0", o / "x.npy")),
        }
    assert "torch" not in sys.modules
    print(json.dumps(extra))


if __name__ == "__main__":
    main(*sys.argv[1:])
