"""Starts a script on two ranks of one job (gloo, a file as the store), or on one that is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

#: Seconds that a script may take, also on a busy machine.
TIMEOUT = 120


def run_ranks(script: Path, directory: Path, *arguments: str, ranks: int = 2) -> list[str]:
    """What each rank printed. ``$STORE`` names a file for ``init_process_group``.

    Raises:
        AssertionError: a rank failed; with what it printed.
    """
    outputs = [open(directory / f"printed-{rank}", "w+") for rank in range(ranks)]  # noqa: SIM115
    children = []
    for rank, output in enumerate(outputs):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(ranks),
            "STORE": f"file://{directory}/store",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(sys.path),
        }
        command = [sys.executable, "-W", "ignore", str(script), *arguments]
        children.append(
            subprocess.Popen(
                command, env=environment, cwd=directory, stdout=output, stderr=subprocess.STDOUT
            )
        )
    deadline = time.monotonic() + TIMEOUT
    try:
        while any(child.poll() is None for child in children) and time.monotonic() < deadline:
            if any(child.poll() for child in children):
                time.sleep(2)  # the others may still say why
                break
            time.sleep(0.05)
    finally:
        codes = [child.poll() for child in children]
        for child in children:
            child.kill()
            child.wait()
    printed = []
    for output in outputs:
        output.seek(0)
        printed.append(output.read())
        output.close()
    assert codes == [0] * ranks, f"{codes}\n" + "\n----\n".join(text[-3000:] for text in printed)
    return printed
