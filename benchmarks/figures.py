"""The comparisons of the speed group: for each figure the turns of jsonckpt and its peers."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from benchmarks import states
from benchmarks.arena import Arena, Turn
from benchmarks.peers import PEERS
from benchmarks.settings import Place, Settings

__all__ = ["FIGURES", "Figure", "Stage", "label_of"]


@dataclass(frozen=True)
class Figure:
    """One comparison.

    Attributes:
        key: in the names of figures.
        title: of its table.
        turns: the first one is jsonckpt's. The others are compared with it.
        where: the places that it is measured in.
        state: ``"large"``, or ``"lists"``, a smaller one for programs of some MB/s.
        group: figures with the same group share their processes and files. Both end with the group.
        full_only: keys of turns that a quick run leaves out.
        most_rounds: the most rounds of a figure that takes long.
    """

    key: str
    title: str
    turns: tuple[Turn, ...]
    where: Literal["all", "first", "last"] = "all"
    state: Literal["large", "lists"] = "large"
    group: str = "base64"
    note: str = ""
    full_only: tuple[str, ...] = ()
    most_rounds: int = 4

    def measured_at(self, position: int, settings: Settings) -> bool:
        """Whether it is measured in the place of that position."""
        last = len(settings.places) - 1
        where = "first" if settings.quick and self.where == "all" else self.where
        return position <= last and {"first": 0, "last": last}.get(where, position) == position

    def rounds_at(self, position: int, settings: Settings) -> int:
        """How many rounds. The second place has fewer, because it only confirms the first."""
        return min(settings.rounds, self.most_rounds, 4 if position == 0 else 2)

    def turns_of(self, settings: Settings, position: int = 0) -> tuple[Turn, ...]:
        """All turns; the most important ones in a second place, or in a quick run."""
        second = position > 0 and self.where == "all"
        if not (settings.quick or second):
            return self.turns
        return tuple(turn for turn in self.turns if turn.key not in self.full_only)


def _turns(do: str, *peers: str) -> tuple[Turn, ...]:
    return tuple(Turn(peer, peer, do) for peer in peers)


_BINARY: tuple[str, ...] = (
    "own",
    "own-file",
    "torch",
    "torch-fast",
    "safetensors",
    "dcp",
    "tensordict",
    "hdf5",
)
_BINARY_FULL_ONLY = ("own-file", "torch-fast", "tensordict", "hdf5")
_ZSTD = ("own-zstd", "torch-zstd", "dcp-zstd")
_LISTS = ("own-list", "own-list-zstd", "numbers", "torch-base64", "own-file")

FIGURES = (
    Figure(
        "save",
        "Save, without waiting for the disk",
        _turns("save", *_BINARY),
        full_only=_BINARY_FULL_ONLY,
    ),
    Figure(
        "save-sync",
        "Save, and wait until the bytes are on the disk (fsync)",
        _turns("save_synced", "own", "torch", "torch-fast", "safetensors", "dcp"),
        where="last",
        note="jsonckpt syncs files and directories in the order that survives a power failure; "
        "the peers sync their files.",
        full_only=("torch-fast", "safetensors"),
    ),
    Figure(
        "load",
        "Load everything, the file in the page cache",
        _turns("load", *(peer for peer in _BINARY if peer != "own-file")),
        note="torch.load with mmap=True copies nothing: its tensors stay pages of the file. "
        "jsonckpt's one .json is in the table of streams.",
        full_only=_BINARY_FULL_ONLY,
    ),
    Figure(
        "load-cold",
        "Load everything, cold: the file is not in the page cache",
        _turns("load_cold", "own", "torch", "safetensors"),
        where="last",
        note="What the disk of this machine gives, with whatever its host keeps in memory.",
        full_only=("safetensors",),
        most_rounds=2,
    ),
    Figure(
        "load-into",
        "Load into tensors that exist",
        _turns("load_into", "own", "dcp", "torch", "safetensors"),
        where="first",
        full_only=("torch", "safetensors"),
    ),
    Figure(
        "stream",
        "Read forward only: jsonckpt.stream, all tensors kept",
        (
            Turn("stream_pipe", "own-file", "stream_pipe"),
            Turn("stream", "own-file", "stream"),
            Turn("load", "own-file", "load"),
            Turn("torch", "torch", "load"),
            Turn("drain_cat", "own-file", "drain_cat"),
            Turn("drain_wide", "own-file", "drain_wide"),
        ),
        where="first",
        note="MB/s of tensor bytes in every row; the pipe carries 4/3 of them.",
        full_only=("stream", "load"),
    ),
    Figure(
        "zstd-save",
        "Save with compression, without waiting for the disk",
        _turns("save", *_ZSTD, "torch"),
        where="first",
        full_only=("dcp-zstd",),
        most_rounds=3,
    ),
    Figure(
        "zstd-load",
        "Load compressed",
        _turns("load", *_ZSTD, "torch"),
        where="first",
        full_only=("dcp-zstd",),
        most_rounds=3,
    ),
    Figure(
        "list-save",
        "Save as number lists, and other JSON",
        _turns("save", *_LISTS),
        where="first",
        state="lists",
        group="lists",
        note="The last row is there for the one above it: both are base64.",
        full_only=("own-list-zstd", "torch-base64", "own-file"),
        most_rounds=2,
    ),
    Figure(
        "list-load",
        "Load number lists, and other JSON",
        _turns("load", *_LISTS),
        where="first",
        state="lists",
        group="lists",
        note="The last row is there for the one above it: both are base64.",
        full_only=("own-list-zstd", "torch-base64", "own-file"),
        most_rounds=2,
    ),
)

#: Labels of turns that differ from the label of their peer, by what they do.
_LABELS = {
    "own load_into": "**jsonckpt**.load_into",
    "dcp load_into": "torch.distributed.checkpoint.load",
    "torch load_into": "torch.load mmap=True, then copy_",
    "safetensors load_into": "safetensors safe_open, get_tensor, copy_",
    "own-file stream_pipe": "**jsonckpt**.stream from a pipe: cat FILE |",
    "own-file stream": "**jsonckpt**.stream from a file",
    "own-file drain_cat": "the pipe alone: cat FILE | cat >/dev/null",
    "own-file drain_wide": "the same, the pipe as wide as jsonckpt makes its own (1 MiB)",
}


def label_of(turn: Turn) -> str:
    """The label of a turn in tables and plots."""
    return _LABELS.get(f"{turn.peer} {turn.do}", PEERS[turn.peer].label_of(turn.do))


class Stage:
    """The arena of the current group of figures. Leaving a group ends its processes."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._now: tuple[str, str] | None = None
        self._arena: Arena | None = None
        self._open = ExitStack()

    def arena(self, figure: Figure, place: Place) -> tuple[Arena, int]:
        """Where a figure is measured, and the bytes of its tensors."""
        wanted = figure.group, place.key
        if self._now != wanted or self._arena is None:
            self.close()
            self._now = wanted
            directory = place.path / figure.group
            self._arena = self._open.enter_context(
                Arena(self._state(figure), directory, on_disk=place.on_disk)
            )
        return self._arena, self.size(figure)

    def size(self, figure: Figure) -> int:
        """Bytes of the tensors of a figure's state."""
        return states.nbytes(states.map_state(self._state(figure)))

    def close(self) -> None:
        """End the processes."""
        self._open.close()
        self._open = ExitStack()
        self._arena, self._now = None, None

    def _state(self, figure: Figure) -> Path:
        settings = self._settings
        size = {"large": settings.state_bytes, "lists": settings.list_bytes}[figure.state]

        def make() -> states.State:
            checkpoint = states.trained(settings.cache, quick=settings.quick)
            return states.large(states.map_state(checkpoint), size)

        return states.cached(settings.fast.path / f"{figure.state}.pt", make)
