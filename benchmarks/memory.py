"""The memory group: the memory of each operation, without imports and the requested tensors."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.arena import remove
from benchmarks.peers import PEERS, available
from benchmarks.plots import lines
from benchmarks.probe import Crew, Watched
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text, mib

__all__ = ["run"]


@dataclass(frozen=True)
class _Size:
    """A state: its bytes, in many tensors or in a single one.

    ``reference``: measured with peers and other codecs, too; ``quick``: with few of them;
    ``all_operations``: with those of jsonckpt, too, that are not done every day.
    """

    nbytes: int
    single: bool
    reference: bool
    quick: bool = False
    all_operations: bool = False

    @property
    def label(self) -> str:
        return bytes_text(self.nbytes) + (", one tensor" if self.single else "")


def run(settings: Settings) -> Section:
    """Measure each operation in fresh processes."""
    sizes = _sizes(quick=settings.quick)
    found: dict[str, dict[str, Watched]] = {}
    notes = []
    with Crew() as crew:
        for size in sizes:
            directory = _directory(settings, size.nbytes)
            if directory is None:
                notes.append(f"{size.label}: left out, there is no room for its files.")
                continue
            for label, watched in _measure(crew.watch, directory, size):
                found.setdefault(label, {})[size.label] = watched
    if importlib.util.find_spec("jsonckpt.convert") is None:
        notes.append("convert: not in this version of jsonckpt.")
    section = Section(
        "memory",
        "Memory",
        "Peak memory of a new process in MiB, without its imports and without the tensors asked "
        "for: anonymous memory, and in parentheses all resident memory, mapped files included. "
        "`convert` reads its output back (`--test-load`); the copy that save_async makes counts as "
        "asked for; `verify` is deep; `recover` reads a file whose end is missing. One run each.",
    )
    rows = [
        [label, *(_cell(by_size.get(size.label)) for size in sizes)]
        for label, by_size in found.items()
    ]
    section.tables.append(
        Table("Extra memory in MiB", ["", *(size.label for size in sizes)], rows, notes)
    )
    own = {label: by_size for label, by_size in found.items() if "jsonckpt" in label}
    section.figures["memory/most"] = max(
        watched.extra / (1 << 20) for by_size in own.values() for watched in by_size.values()
    )
    for label, by_size in found.items():
        for title, watched in by_size.items():
            section.figures[f"memory/{label}/{title}"] = watched.extra / (1 << 20)
    series = {label: _points(by_size, sizes) for label, by_size in own.items()}
    series = {label: points for label, points in series.items() if len(points) > 1}
    if series:
        section.plots["memory.svg"] = lines(
            "Extra memory against the size of the state", "GB of tensors", "MiB", series
        )
    return section


def _sizes(*, quick: bool) -> list[_Size]:
    giga = 1_000_000_000
    if quick:
        return [_Size(giga // 8, single=False, reference=True, quick=True)]
    return [
        _Size(giga // 4, single=False, reference=True, all_operations=True),
        _Size(giga, single=False, reference=False, all_operations=True),
        _Size(4 * giga, single=False, reference=False),
        _Size(giga, single=True, reference=False),
    ]


def _directory(settings: Settings, size: int) -> Path | None:
    """Where the files of a state fit: in memory, beside the other data, or on disk."""
    for place in settings.places:
        facts = os.statvfs(place.path)
        free = facts.f_bavail * facts.f_frsize
        if not place.on_disk:
            free = min(free, _memory_available() - 2 * size)
        if free > 3 * size and _memory_available() > 2 * size:
            return place.path
    return None


def _memory_available() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _measure(
    watch: Callable[..., Watched], directory: Path, size: _Size
) -> Iterator[tuple[str, Watched]]:
    """Every operation on one state."""
    state = {"size": size.nbytes, "single": size.single}
    path = directory / "memory.json"
    yield "**jsonckpt** save", watch("save", peer="own-file", path=path, **state)
    yield "**jsonckpt** load", watch("load", peer="own-file", path=path)
    if not size.quick:
        yield "**jsonckpt** load_into", watch("load_into", peer="own-file", path=path, **state)
    yield "**jsonckpt** stream", watch("stream", path=path)
    if size.all_operations:
        yield "**jsonckpt** save_async", watch("save_async", path=path, **state)
        yield "**jsonckpt** verify", watch("verify", path=path)
        recovered = directory / "recovered.json"
        yield "**jsonckpt** recover", watch("recover", path=path, output=recovered)
        remove(recovered)
    remove(path)
    if size.nbytes > 2_000_000_000:
        return  # a conversion of that size takes half a minute, for a figure that does not grow
    source = directory / "memory.pt"
    torch_save = watch("save", peer="torch", path=source, **state)
    if importlib.util.find_spec("jsonckpt.convert") is not None:
        yield "**jsonckpt** convert from .pt", watch("convert", path=source, output=path)
        remove(path)
    if not size.reference:
        remove(source)
        return
    for peer, what in (("own-zstd", "zstd"), ("own-list", "number lists")):
        path = directory / "memory"
        if peer == "own-list" and size.quick:
            continue
        if peer == "own-list" and size.nbytes > 250_000_000:
            continue  # three bytes of text for each byte: minutes for a figure that does not grow
        yield f"**jsonckpt** save, {what}", watch("save", peer=peer, path=path, **state)
        yield f"**jsonckpt** load, {what}", watch("load", peer=peer, path=path)
        if peer == "own-zstd" and not size.quick:
            label = f"**jsonckpt** load_into, {what}"
            yield label, watch("load_into", peer=peer, path=path, **state)
        remove(path)
    yield "torch.save", torch_save
    yield "torch.load", watch("load", peer="torch", path=source)
    remove(source)
    if size.quick:
        return
    for peer in ("safetensors", "dcp"):
        if available(peer):
            path = directory / f"memory{PEERS[peer].suffix}"
            yield f"{peer} save", watch("save", peer=peer, path=path, **state)
            yield f"{peer} load", watch("load", peer=peer, path=path)
            remove(path)


def _cell(watched: Watched | None) -> str:
    """Like ``9.5 (10.1)``: the extra memory, and the kernel's high-water mark."""
    return "" if watched is None else f"{mib(watched.extra)} ({mib(watched.high_water)})"


def _points(by_size: dict[str, Watched], sizes: list[_Size]) -> list[tuple[float, float]]:
    """GB and MiB; at least 1 MiB, since the axis is logarithmic."""
    return [
        (size.nbytes / 1e9, max(1.0, by_size[size.label].extra / (1 << 20)))
        for size in sizes
        if size.label in by_size and not size.single
    ]
