"""The async group: how long a background save blocks a training loop.

``python -m benchmarks.background STATE DIRECTORY ROUNDS`` is the process that trains and saves.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks import states
from benchmarks.arena import ROOT, child_environment, remove, spread
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["run"]

_STEPS_BEFORE = 20
#: Starts a save. Returns a function that waits for its end.
Start = Callable[[states.State, Path], Callable[[], object]]
LABELS = {
    "copy": "one copy of the tensors, into memory that is in use",
    "clone": "clone() of each tensor",
    "own": "**jsonckpt**.save, the loop waits for all of it",
    "own-async": "**jsonckpt**, its own save in the background",
    "own-thread": "clone() and **jsonckpt**.save in a thread",
    "torch": "torch.save, the loop waits for all of it",
    "torch-thread": "clone() and torch.save in a thread",
    "dcp-async": "torch.distributed.checkpoint.async_save, its DefaultStager kept",
}


def run(settings: Settings) -> Section:
    """Save in the background of a loop of matrix products, in a separate process."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    size = 64_000_000 if settings.quick else 250_000_000
    state = states.large(checkpoint, size)
    path = states.write_state(state, settings.fast.path / "background.pt")
    shown = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.background", str(path),
            str(settings.fast.path / "background"), str(settings.rounds),
        ],
        cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    remove(path)
    found: dict[str, dict[str, list[float]]] = json.loads(shown.stdout)
    alone = spread(found.pop("alone")["step"]).median
    copy = spread(found["copy"]["blocked"]).median
    section = Section(
        "async",
        "Saving behind the training loop",
        f"{bytes_text(states.nbytes(state))} of tensors, files {settings.fast.label}. Blocked: how "
        "long the call keeps the loop, in ms and in copies of the tensors. Whole: until the "
        "checkpoint is complete. The last column: how much longer a step of the loop takes "
        f"meanwhile ({alone * 1e3:.1f} ms with nothing beside it).",
    )
    rows = []
    for key, figures in found.items():
        slower = ""
        if figures["step"]:
            step = spread([step / alone for step in figures["step"]])
            section.figures[f"async/{key}/step"] = step.median
            slower = f"{step.median:.2f}x"
        blocked, whole = (
            spread([second * 1e3 for second in figures[name]]) for name in ("blocked", "whole")
        )
        copies = blocked.median / 1e3 / copy
        rows.append([LABELS[key], f"{blocked:,.0f}", f"{copies:.2f}x", f"{whole:,.0f}", slower])
        section.figures[f"async/{key}/copies"] = copies
        section.figures[f"async/{key}/blocked"] = blocked.median / 1e3
        section.figures[f"async/{key}/whole"] = whole.median / 1e3
    notes = [] if "own-async" in found else ["This version of jsonckpt has no save_async."]
    section.tables.append(
        Table(
            "Milliseconds of a save beside a training loop",
            ["", "blocked", "of a copy", "whole", "a step takes"],
            rows,
            notes,
        )
    )
    return section


# --- in the process that trains ------------------------------------------------------------------


def _in_thread(save: Callable[[states.State, Path], object]) -> Start:
    def start(state: states.State, path: Path) -> Callable[[], object]:
        copy = {name: tensor.clone() for name, tensor in state.items()}
        thread = threading.Thread(target=save, args=(copy, path))
        thread.start()
        return thread.join

    return start


def _at_once(save: Callable[[states.State, Path], object]) -> Start:
    def start(state: states.State, path: Path) -> Callable[[], object]:
        save(state, path)
        return lambda: None

    return start


def _kept_stager() -> Any:
    """The stager of DCP, kept for all saves: it copies into the memory of the last save.

    ``None`` for older releases of torch. Its options turn off what is for GPUs and other processes.
    """
    from torch.distributed.checkpoint import staging

    stager = getattr(staging, "DefaultStager", None)
    options = getattr(staging, "StagingOptions", None)
    return stager(options(False, False, False, False)) if stager and options else None


def _starts() -> dict[str, Start]:
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import async_save

    import jsonckpt

    def own(state: states.State, path: Path) -> object:
        return jsonckpt.save(state, path, sync=False)

    stager = _kept_stager()
    staged: dict[str, Any] = {"async_stager": stager} if stager else {}

    def dcp_async(state: states.State, path: Path) -> Callable[[], object]:
        writer = FileSystemWriter(path, sync_files=False, thread_count=torch.get_num_threads())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            future = async_save(state, storage_writer=writer, no_dist=True, **staged)
        result: Callable[[], object] = getattr(future, "result")  # noqa: B009
        return result

    kept: states.State = {}

    def copy(state: states.State, _: Path) -> None:
        for name, tensor in state.items():
            if name in kept:
                kept[name].copy_(tensor)
            else:
                kept[name] = tensor.clone()

    starts = {
        "copy": _at_once(copy),
        "clone": _at_once(lambda state, _: [tensor.clone() for tensor in state.values()]),
        "own": _at_once(own),
        "own-thread": _in_thread(own),
        "torch": _at_once(torch.save),
        "torch-thread": _in_thread(torch.save),
        "dcp-async": dcp_async,
    }
    save_async: Any = getattr(jsonckpt, "save_async", None)
    if save_async is not None:
        starts["own-async"] = lambda state, path: save_async(state, path, sync=False).result
    return starts


def main() -> None:
    """Print the seconds of all rounds as JSON."""
    from benchmarks.worker import private_output

    answers = private_output()
    state_path, directory, rounds = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    directory.mkdir()
    # Copied, because the tensors of a training loop are ordinary memory.
    state = {name: tensor.clone() for name, tensor in states.map_state(state_path).items()}
    left, right = torch.randn(512, 512), torch.randn(512, 512)

    def step() -> float:
        began = time.perf_counter()
        for _ in range(4):
            left @ right
        return time.perf_counter() - began

    starts = _starts()
    found: dict[str, dict[str, list[float]]] = {
        key: {"blocked": [], "whole": [], "step": []} for key in starts
    }
    alone = [step() for _ in range(100)][50:]
    for number in range(rounds + 1):
        for key, start in starts.items():
            path = directory / key
            remove(path)
            figures = _one(start, state, path, step)
            if number:  # the first round warms up
                for name, values in figures.items():
                    found[key][name] += values
    remove(directory)
    print(json.dumps({"alone": {"step": alone}, **found}), file=answers, flush=True)


def _one(
    start: Start, state: states.State, path: Path, step: Callable[[], float]
) -> dict[str, list[float]]:
    """One save during the loop, after some normal steps, so that torch's threads are awake."""
    for _ in range(_STEPS_BEFORE):
        step()
    steps: list[float] = []
    over = threading.Event()
    began = time.perf_counter()
    wait = start(state, path)
    blocked = time.perf_counter() - began
    waiter = threading.Thread(target=_wait_and_tell, args=(wait, over))
    waiter.start()
    while not over.is_set():
        steps.append(step())
    waiter.join()
    return {"blocked": [blocked], "whole": [time.perf_counter() - began], "step": steps[:-1]}


def _wait_and_tell(wait: Callable[[], object], over: threading.Event) -> None:
    try:
        wait()
    finally:
        over.set()


if __name__ == "__main__":
    main()
