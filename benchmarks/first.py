"""The first group: one operation in a new process, which is what a person waits for.

A run that resumes loads once. So each figure here is the first operation of a new process, with
fresh memory: nothing is warmed up before it. The same operation again, in the same process, has its
own column.

``python -m benchmarks.first STATE PATH DO PEER`` is such a process.
"""

from __future__ import annotations

import importlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import states
from benchmarks.arena import ROOT, child_environment, ratios, remove, spread
from benchmarks.peers import PEERS, available
from benchmarks.settings import Place, Settings
from benchmarks.tables import Section, Table, bytes_text, times
from benchmarks.worker import private_output

__all__ = ["run"]

#: How often the operation is done in one process: the first counts, the last is "again".
_TIMES = 3


@dataclass(frozen=True)
class Race:
    """One operation and the programs that do it. The first one is jsonckpt."""

    do: str
    title: str
    peers: Sequence[str]
    everywhere: bool = False


RACES = (
    Race("load", "Load", ("own", "own-zstd", "torch", "safetensors"), everywhere=True),
    Race("load_into", "Load into a model that exists", ("own", "torch")),
    Race("save", "Save, without waiting for the disk", ("own", "own-zstd", "torch")),
    Race("save_async", "How long a save in the background holds the loop", ("own", "clone")),
)
LABELS = {
    ("load_into", "own"): "**jsonckpt**.load_into",
    ("load_into", "torch"): "torch.load, then copy_",
    ("save_async", "own"): "**jsonckpt**.save_async",
    ("save_async", "clone"): "clone() of each tensor",
}


def run(settings: Settings) -> Section:
    """Measure each operation in new processes, which take turns."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    sizes = (72_000_000,) if settings.quick else (16_000_000, 180_000_000, 720_000_000)
    middle = sizes[len(sizes) // 2]
    places = settings.places[:1] if settings.quick else settings.places
    rounds = 2 if settings.quick else 5
    section = Section(
        "first",
        "First operation of a new process",
        "A run that resumes waits for this. Each figure is from a new process, after its imports; "
        f"files are in the page cache. Again is the {_TIMES}rd time in the same process.",
    )
    for place in places:
        for size in sizes if place is settings.fast else sizes[-1:]:
            state = states.large(checkpoint, size)
            path = states.write_state(state, settings.fast.path / "first.pt")
            for race in RACES:
                if race.everywhere or (place is settings.fast and size == middle):
                    _add(section, rounds, place, race, path, size)
            remove(path)
    return section


def _add(section: Section, rounds: int, place: Place, race: Race, state: Path, size: int) -> None:
    peers = [peer for peer in race.peers if peer == "clone" or available(peer)]
    first, again = _seconds(rounds, place, race, state, peers)
    rows = []
    own = peers[0]
    stem = f"first/{place.key}/{size // 1_000_000}/{race.do}"
    for peer in peers:
        row = [LABELS.get((race.do, peer)) or PEERS[peer].label_of(race.do)]
        for name, seconds_of in (("first", first), ("again", again)):
            row.append(f"{spread([1e3 * second for second in seconds_of[peer]]):,.1f}")
            ratio = ratios(seconds_of[peer], seconds_of[own])
            row.append("" if peer == own else f"{times(ratio.median)}")
            section.figures[f"{stem}/{peer}/{name}"] = statistics.median(seconds_of[peer])
            section.figures[f"{stem}/{peer}/{name}/ratio"] = ratio.median
        rows.append(row)
    if "own-zstd" in peers and "torch" in peers:
        zstd = ratios(first["torch"], first["own-zstd"])
        section.figures[f"{stem}/zstd-to-torch/first"] = zstd.median
    if "clone" in peers:
        section.figures[f"{stem}/held/first"] = ratios(first["own"], first["clone"]).median
    title = f"{race.title}: {bytes_text(size)}, {place.label}"
    columns = ["", "first, ms", "jsonckpt is", "again, ms", "jsonckpt is"]
    section.tables.append(Table(title, columns, rows))


def _seconds(
    rounds: int, place: Place, race: Race, state: Path, peers: Sequence[str]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Of each peer in each round: the first operation of its process, and the last."""
    files = {peer: place.path / f"first-{peer}" for peer in peers}
    if race.do.startswith("load"):
        for peer, path in files.items():
            PEERS[peer].save(states.map_state(state), path)
    first: dict[str, list[float]] = {peer: [] for peer in peers}
    again: dict[str, list[float]] = {peer: [] for peer in peers}
    for _ in range(rounds):
        for peer in peers:
            seconds = _in_new_process(state, files[peer], race.do, peer)
            first[peer].append(seconds[0])
            again[peer].append(seconds[-1])
    for path in files.values():
        remove(path)
    return first, again


def _in_new_process(state: Path, path: Path, do: str, peer: str) -> list[float]:
    command = [sys.executable, "-m", "benchmarks.first", str(state), str(path), do, peer]
    shown = subprocess.run(
        command, cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[float] = json.loads(shown.stdout)
    return found


# --- in the new process -------------------------------------------------------------------------


def _operation(do: str, peer: str, state: states.State, path: Path) -> Callable[[], object]:
    """The timed operation. It returns what must stay alive until the time is taken."""
    if do == "load":
        return lambda: PEERS[peer].load(path)
    if do == "load_into":
        # Not torch.load with mmap=True, which works in another way.
        return lambda: _torch_into(state, path) if peer == "torch" else _own_into(state, path)
    if do == "save":
        return lambda: PEERS[peer].save(state, path)
    if peer == "clone":
        return lambda: [tensor.clone() for tensor in state.values()]
    import jsonckpt

    return lambda: jsonckpt.save_async(state, path, sync=False)


def _own_into(state: states.State, path: Path) -> None:
    load = PEERS["own"].load_into
    assert load is not None
    load(state, path)


def _torch_into(state: states.State, path: Path) -> None:
    for name, tensor in PEERS["torch"].load(path).items():
        state[name].copy_(tensor)


def main() -> None:
    """Do it :data:`_TIMES` times, and print the seconds of each as JSON."""
    answers = private_output()
    state_path, path, do, peer = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
    if peer != "clone":
        importlib.import_module(PEERS[peer].module)
    state: states.State = {}
    if do != "load":
        state = {name: tensor.clone() for name, tensor in states.map_state(state_path).items()}
    operation = _operation(do, peer, state, path)
    seconds = []
    for _ in range(_TIMES):
        if do == "save":
            remove(path)
        began = time.perf_counter()
        kept = operation()
        seconds.append(time.perf_counter() - began)
        wait = getattr(kept, "result", None)
        if wait is not None:
            wait()
        del kept, wait
    print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main()
