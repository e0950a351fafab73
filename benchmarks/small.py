"""The small group: many small tensors, one tensor of very many, a few rows of a large one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks import states
from benchmarks.arena import Arena, Turn, installed, ratios, remove, spread
from benchmarks.peers import PEERS, available
from benchmarks.probe import Watched, watch
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text, mib, times

__all__ = ["run"]

_ROUNDS = 3
_LAZY = {
    "own": "**jsonckpt**.open",
    "safetensors": "safetensors safe_open",
    "torch": "torch.load mmap=True",
}


def run(settings: Settings) -> Section:
    """Measure all three."""
    section = Section(
        "small",
        "Many small tensors, and parts of checkpoints",
        f"Files {settings.fast.label}, in the page cache.",
    )
    _many(section, settings)
    _first_of(section, settings)
    _rows_of(section, settings)
    return section


def _many(section: Section, settings: Settings) -> None:
    """Save and load 20,000 tensors of 1 KB."""
    count = 2_000 if settings.quick else 20_000
    state = states.write_state(_small(settings, count), settings.fast.path / f"small-{count}.pt")
    peers = ["own", "torch", "safetensors", *([] if settings.quick else ["own-file"])]
    turns, notes = installed([Turn(peer, peer, "save") for peer in peers])
    seconds: dict[str, dict[str, list[float]]] = {}
    with Arena(state, settings.fast.path / "small", on_disk=settings.fast.on_disk) as arena:
        for do in ("save", "load"):
            seconds[do] = arena.compare([Turn(t.key, t.peer, do) for t in turns], _ROUNDS)
    rows = []
    for turn in turns:
        row = [PEERS[turn.peer].label]
        for do in ("save", "load"):
            own, peer = seconds[do]["own"], seconds[do][turn.key]
            ratio = ratios(peer, own)
            row.append(f"{spread([second * 1e3 for second in peer]):,.0f}")
            row.append(
                ""
                if turn.key == "own"
                else f"{times(ratio.median)} ({ratio.low:.2f}–{ratio.high:.2f})"
            )
            section.figures[f"small/{do}/{turn.key}"] = spread(peer).median
            section.figures[f"small/{do}/{turn.key}/ratio"] = ratio.median
        rows.append(row)
    section.tables.append(
        Table(
            f"{count:,} tensors of 1 KB: milliseconds",
            ["", "save, not synced", "jsonckpt is", "load", "jsonckpt is"],
            rows,
            notes,
        )
    )
    remove(state)


def _first_of(section: Section, settings: Settings) -> None:
    """Open a checkpoint of 100,000 tensors and read one."""
    count = 5_000 if settings.quick else 100_000
    state = _small(settings, count)
    rows, notes = [], []
    for peer, label in _LAZY.items():
        if settings.quick and peer == "torch":
            continue
        if not available(peer):
            notes.append(f"{label}: not installed.")
            continue
        path = _saved(state, peer, settings.fast.path)
        runs = [watch("first_tensor", peer=peer, path=path) for _ in range(_runs(settings, peer))]
        remove(path)
        seconds, extra = _medians(runs)
        rows.append([label, f"{spread([run.seconds for run in runs]):.2f}", mib(extra)])
        section.figures[f"open/{peer}/seconds"] = seconds
        section.figures[f"open/{peer}/mib"] = extra / (1 << 20)
    section.tables.append(
        Table(
            f"From the path to the first of {count:,} tensors, in a fresh process",
            ["", "seconds", "extra MiB"],
            rows,
            notes,
        )
    )


def _rows_of(section: Section, settings: Settings) -> None:
    """Read ten rows of one large tensor, then slices of growing size, and of growing tensors."""
    size = 100_000_000 if settings.quick else 1_000_000_000
    state = _one(size)
    total = size // 4096
    rows, notes = [], []
    for peer, label in _LAZY.items():
        if not available(peer) or (settings.quick and peer != "own"):
            continue
        path = _saved(state, peer, settings.fast.path)
        runs = [
            watch("rows", peer=peer, path=path, start=total // 2, stop=total // 2 + 10)
            for _ in range(_runs(settings))
        ]
        if peer != "own":
            remove(path)
        milliseconds = spread([run.seconds * 1e3 for run in runs])
        read = runs[0].facts["read"]
        rows.append([label, f"{milliseconds:.1f}", bytes_text(read), mib(_medians(runs)[1])])
        section.figures[f"slice/{peer}/seconds"] = milliseconds.median / 1e3
        section.figures[f"slice/{peer}/bytes"] = read
    notes.append("Bytes read are those of system calls; what is mapped is not in them.")
    notes.append("A fresh process: the first use of a library is in its time.")
    section.tables.append(
        Table(
            f"Ten rows of 4 KiB from the middle of a tensor of {bytes_text(size)}",
            ["", "milliseconds", "bytes read", "extra MiB"],
            rows,
            notes,
        )
    )
    _slices(section, settings, size)


def _slices(section: Section, settings: Settings, size: int) -> None:
    """Shows that the cost of a slice grows with the slice, and not with its tensor."""
    rows = []
    small, more = 10, (1_000,) if settings.quick else (1_000, 10_000, 100_000)
    cases = [(size, count) for count in (small, *more) if 4096 * count < size // 2]
    others = (size // 10,) if settings.quick else (size // 10, size // 100)
    cases += [(other, small) for other in others]
    path = settings.fast.path / "one-own"
    for whole, count in cases:
        if whole != size:
            remove(path)
            path = _saved(_one(whole), "own", settings.fast.path)
        total = whole // 4096
        run = watch("rows", peer="own", path=path, start=total // 2, stop=total // 2 + count)
        wanted = 4096 * count
        read = run.facts["read"]
        # The most that a reader needs: the chunks of the slice, one more at each side, and the text
        # that locates them.
        allowed = 4 * (wanted + (2 << 20)) / 3 + _told(path)
        rows.append(
            [
                f"{bytes_text(wanted)} of {bytes_text(whole)}",
                f"{run.seconds * 1e3:.1f}",
                bytes_text(read),
                mib(run.extra),
            ]
        )
        name = f"slice/growth/{count}-of-{whole}"
        section.figures[name] = read / allowed
        section.figures["slice/growth/most"] = max(
            read / allowed, section.figures.get("slice/growth/most", 0.0)
        )
    remove(path)
    section.tables.append(
        Table(
            "jsonckpt: slices of growing size, and of growing tensors",
            ["", "milliseconds", "bytes read", "extra MiB"],
            rows,
            ["A fresh process each: some 5 ms are the first use of the library."],
            page=False,
        )
    )


def _told(path: Path) -> int:
    """Bytes of the manifest, and of the records' text beside the payloads."""
    manifest = (path / "manifest.json").stat().st_size
    return 2 * manifest + (64 << 10)


def _one(size: int) -> states.State:
    """A state of one tensor."""
    return {"weight": states.half_random(size).view(-1, 1024)}


def _small(settings: Settings, count: int) -> states.State:
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    return states.small(checkpoint, count)


def _saved(state: states.State, peer: str, directory: Path) -> Path:
    """A peer's checkpoint of a state, written by this process."""
    path = directory / f"one-{peer}{PEERS[peer].suffix}"
    with torch.no_grad():
        PEERS[peer].save(state, path)
    return path


def _runs(settings: Settings, peer: str = "own") -> int:
    """The number of fresh processes. Their imports take longer than the measurement.

    For torch one is enough if it takes several times as long as all others.
    """
    return 1 if settings.quick or peer == "torch" else 2


def _medians(runs: Sequence[Watched]) -> tuple[float, float]:
    return spread([run.seconds for run in runs]).median, spread([run.extra for run in runs]).median
