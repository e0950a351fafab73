"""The inputs group: the speed of other states than fp32 weights with their moments."""

from __future__ import annotations

from benchmarks import states
from benchmarks.arena import Arena, Turn, installed, ratios, speeds
from benchmarks.settings import Settings
from benchmarks.sizes import kinds
from benchmarks.tables import Section, Table, bytes_text, times

__all__ = ["INPUTS", "run"]

#: Those of :func:`benchmarks.sizes.kinds` that differ most from what the speed group saves.
INPUTS = (
    "the same in bf16",
    "LoRA, 512 small fp32 tensors",
    "one huge fp32 tensor",
    "all zeros",
    "incompressible random bits",
)
_OWN = {"own": "base64", "own-zstd": "base64 + zstd"}
_PEERS = {
    "save": {"torch": "torch.save", "safetensors": "save_file"},
    "load": {"torch": "torch.load", "safetensors": "load_file + clone"},
}


def run(settings: Settings) -> Section:
    """Save and load each of them, jsonckpt in turn with two peers."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    made = kinds(checkpoint, 8_000_000 if settings.quick else 40_000_000)
    turns, notes = installed([Turn(peer, peer, "save") for peer in (*_OWN, *_PEERS["save"])])
    rounds = 1 if settings.quick else 3
    section = Section(
        "inputs",
        "Other states",
        f"Smaller states, files {settings.fast.label}; {rounds} rounds. MB of tensors a second, "
        "and how many times as fast as its peers jsonckpt is.",
    )
    path = settings.fast.path / "inputs.pt"
    rows: dict[str, list[list[str]]] = {do: [] for do in _PEERS}
    with Arena(path, settings.fast.path / "inputs", on_disk=settings.fast.on_disk) as arena:
        for name in INPUTS[:2] if settings.quick else INPUTS:
            state = made[name]()
            size = states.nbytes(state)
            arena.use(states.write_state(state, path))
            del state
            for do in rows:
                seconds = arena.compare([Turn(t.key, t.peer, do) for t in turns], rounds)
                rows[do].append(
                    [_title(name), bytes_text(size), *_cells(section, name, do, seconds, size)]
                )
    path.unlink()
    for do, peers in _PEERS.items():
        beside = [f"x {label}" for label in peers.values()]
        columns = [cell for label in _OWN.values() for cell in (f"**{label}** MB/s", *beside)]
        title = {"save": "Save other states", "load": "Load other states"}[do]
        section.tables.append(Table(title, ["", "tensors", *columns], rows[do], notes))
    return section


def _cells(
    section: Section, name: str, do: str, seconds: dict[str, list[float]], size: int
) -> list[str]:
    """Of one state: the speed of each setting of jsonckpt, and its ratio to each peer."""
    speed = speeds(seconds, size)
    cells = []
    for own in _OWN:
        cells.append(f"{speed[own]:,.0f}")
        section.figures[f"inputs/{name}/{do}/{own}"] = speed[own].median
        for peer in _PEERS[do]:
            if peer not in seconds:
                cells.append("")
                continue
            ratio = ratios(seconds[peer], seconds[own])
            cells.append(f"{times(ratio.median)} ({ratio.low:.2f}–{ratio.high:.2f})")
            section.figures[f"inputs/{name}/{do}/{own}/{peer}"] = ratio.median
    return cells


def _title(name: str) -> str:
    """Without the row that ``the same`` speaks of."""
    return name.replace("the same", "trained weights")
