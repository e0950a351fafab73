"""Writes the golden checkpoints of version 1 of the format: ``python -m tests.golden.make_v1``.

To be run by hand, and once: a golden checkpoint that exists is never written again, for what it is
there to show is that files of the past stay readable. Prints the lines for ``digests.json``.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

from tests.golden.cases import CASES

FOLDER = Path(__file__).parent / "v1"
DIGESTS = Path(__file__).parent / "v1.sha256.json"


def files() -> dict[str, str]:
    """Every file of the golden checkpoints with its SHA-256."""
    return {
        path.relative_to(FOLDER).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(FOLDER.rglob("*"))
        if path.is_file()
    }


def main() -> None:
    """Write the checkpoints that are missing, and list all files with their digests."""
    FOLDER.mkdir(exist_ok=True)
    known = json.loads(DIGESTS.read_text()) if DIGESTS.exists() else {}
    found = files()
    changed = [name for name, digest in known.items() if found.get(name) != digest]
    if changed:
        raise SystemExit(f"refused: golden files are missing or changed: {', '.join(changed)}")
    for case in CASES:
        path = FOLDER / case.path
        if path.exists():
            print(f"kept     {case.path}")
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
            case.save(path, overwrite=False)
        print(f"written  {case.path}")
    DIGESTS.write_text(json.dumps(files(), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
