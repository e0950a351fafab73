"""The size group: bytes on disk compared with ``.pt``, and zstd with the entropy of byte planes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import states
from benchmarks.arena import remove
from benchmarks.peers import PEERS, available, stored_bytes
from benchmarks.plots import groups
from benchmarks.settings import Settings
from benchmarks.states import State
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["entropy_ratio", "kinds", "run"]

_COLUMNS = {
    "own-file": "**base64**",
    "own-zstd": "**base64 + zstd**",
    "own-list-zstd": "**lists .json.zst**",
    "safetensors": "safetensors",
    "torch-zstd": ".pt.zst",
    "dcp-zstd": "DCP + zstd",
    "tensordict": "TensorDict",
    "hdf5": "HDF5",
    "torch-base64": "JSON of base64 of torch.save",
    "numbers": "json.dump(tolist())",
}
#: These are slow, and their ratio does not change with the size.
_SLOW = {"own-list-zstd", "torch-base64", "numbers"}
_SLOW_BYTES, _SLOW_BYTES_QUICK = 8_000_000, 1_000_000
#: Not in the plot: five times as long as all others, or equal to the next one.
_UNPLOTTED = {"dcp-zstd", "tensordict", "hdf5", "numbers"}


def run(settings: Settings) -> Section:
    """Write each kind of state with each program, and measure the files."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    most_of_slow = _SLOW_BYTES_QUICK if settings.quick else _SLOW_BYTES
    most = 16_000_000 if settings.quick else 80_000_000
    directory = settings.fast.path / "sizes"
    directory.mkdir()
    rows, planes = [], []
    plotted: dict[str, dict[str, float]] = {}
    section = Section(
        "size",
        "Size on disk",
        "Bytes of all files of a checkpoint, divided by those of `torch.save`. Number lists and "
        "JSON of base64 of torch.save are measured on the first "
        f"{bytes_text(most_of_slow)}.",
    )
    for title, make in kinds(checkpoint, most).items():
        state = make()
        row = [title, bytes_text(states.nbytes(state))]
        plotted[title] = {}
        for peer, ratio in _ratios(state, directory, most_of_slow):
            row.append("" if ratio is None else f"{ratio:.3f}")
            if ratio is not None:
                section.figures[f"size/{title}/{peer}"] = ratio
                if peer not in _UNPLOTTED:
                    plotted[title][_COLUMNS[peer]] = ratio
        rows.append(row)
        before = _zstd_ratio(state, directory)
        bound = entropy_ratio(state)
        section.figures[f"size/{title}/zstd-to-entropy"] = before / bound if bound else 0.0
        zipnn = _zipnn_ratio(state)
        planes.append(
            [title, f"{before:.3f}", f"{bound:.3f}", "" if zipnn is None else f"{zipnn:.3f}"]
        )
    remove(directory)
    section.plots["size.svg"] = groups("Size against the file of torch.save", plotted)
    notes = [f"{PEERS[peer].label}: not installed." for peer in _COLUMNS if not available(peer)]
    notes += ["HDF5 has no bfloat16."] if available("hdf5") else []
    section.tables.append(
        Table("Size against .pt", ["", "tensors", *_COLUMNS.values()], rows, notes)
    )
    section.tables.append(
        Table(
            "Compressed bytes against raw bytes, before base64 adds its third",
            ["", "**jsonckpt zstd**", "order-0 entropy of the byte planes", "ZipNN"],
            planes,
            [
                "The entropy is that of each byte plane of each 1 MiB chunk: the best that a coder "
                "can do without a model of the order of values; zstd may find repeats beyond it. "
                "Of tensors of a few KB it says too little.",
                *([] if _zipnn() else ["ZipNN: not installed."]),
            ],
            page=False,
        )
    )
    return section


def kinds(checkpoint: dict[str, Any], most: int) -> dict[str, Callable[[], State]]:
    """The functions that make each kind of state, of about ``most`` bytes, by name in tables."""
    return {
        "trained fp32 weights": lambda: _part(states.weights(checkpoint), most),
        "the same in bf16": lambda: _part(states.bfloat16_weights(checkpoint), most),
        "AdamW exp_avg": lambda: _part(states.moments(checkpoint, "exp_avg"), most),
        "AdamW exp_avg_sq": lambda: _part(states.moments(checkpoint, "exp_avg_sq"), most),
        "LoRA, 512 small fp32 tensors": lambda: states.lora(checkpoint),
        "one huge fp32 tensor": lambda: _part(_one(states.large(checkpoint, 2 * most)), 2 * most),
        "all zeros": lambda: {"zeros": torch.zeros(most // 4)},
        "incompressible random bits": lambda: {"bits": _random_bits(most)},
    }


def _part(state: State, most: int) -> State:
    """Whole tensors, and the beginning of the one that would exceed ``most`` bytes."""
    taken: State = {}
    left = most
    for name, tensor in state.items():
        if left <= 0:
            break
        rows = min(len(tensor), max(1, left // (tensor.nbytes // len(tensor))))
        taken[name] = tensor[:rows].clone()
        left -= taken[name].nbytes
    return taken


def _one(state: State) -> State:
    flat = torch.cat([tensor.flatten() for tensor in state.values()])
    return {"huge": flat[: len(flat) // 1024 * 1024].view(-1, 1024)}


def _random_bits(size: int) -> torch.Tensor:
    bits = np.random.default_rng(7).bytes(size // 4 * 4)
    return torch.frombuffer(bytearray(bits), dtype=torch.float32)


def _ratios(state: State, directory: Path, slow: int) -> Iterator[tuple[str, float | None]]:
    """``None`` if the peer is not installed, or cannot save such tensors."""
    small = _part(state, slow)
    whole, part = (_written(each, "torch", directory) for each in (state, small))
    numpy_knows = all(tensor.dtype != torch.bfloat16 for tensor in state.values())
    for peer in _COLUMNS:
        if not available(peer) or (peer == "hdf5" and not numpy_knows):
            yield peer, None
        elif peer in _SLOW:
            yield peer, _written(small, peer, directory) / part
        else:
            yield peer, _written(state, peer, directory) / whole


def _written(state: State, peer: str, directory: Path) -> int:
    path = directory / f"{peer}{PEERS[peer].suffix}"
    PEERS[peer].save(state, path)
    size = stored_bytes(path)
    remove(path)
    return size


def _zstd_ratio(state: State, directory: Path) -> float:
    """The size of the raw bytes after jsonckpt's zstd, in binary."""
    import jsonckpt

    path = directory / "zstd"
    PEERS["own-zstd"].save(state, path)
    with jsonckpt.open(path) as checkpoint:
        text = sum(length for entry in checkpoint.manifest.entries for _, length, _ in entry.chunks)
    remove(path)
    return text * 3 / 4 / states.nbytes(state)


def entropy_ratio(state: State) -> float:
    """The order-0 entropy of the byte planes of each 1 MiB chunk, divided by the raw bytes.

    >>> entropy_ratio({"zeros": torch.zeros(1000)})
    0.0
    """
    bits = 0.0
    for tensor in state.values():
        raw = tensor.contiguous().view(-1).view(torch.uint8).numpy()
        for start in range(0, len(raw), 1 << 20):
            chunk = raw[start : start + (1 << 20)]
            for plane in range(tensor.itemsize):
                counts = np.bincount(chunk[plane :: tensor.itemsize], minlength=256)
                share = counts[counts > 0] / counts.sum()
                bits -= counts.sum() * float((share * np.log2(share)).sum())
    return float(abs(bits)) / 8 / states.nbytes(state)


def _zipnn() -> bool:
    import importlib.util

    return importlib.util.find_spec("zipnn") is not None


def _zipnn_ratio(state: State) -> float | None:
    """The size of the same bytes after ZipNN; ``None`` if it is not installed."""
    if not _zipnn():
        return None
    from zipnn import ZipNN

    compressed = 0
    for tensor in state.values():
        dtype = str(tensor.dtype).removeprefix("torch.")
        coder = ZipNN(input_format="byte", bytearray_dtype=dtype, threads=1)
        compressed += len(
            coder.compress(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        )
    return compressed / states.nbytes(state)
