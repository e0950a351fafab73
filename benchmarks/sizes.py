"""The size group: bytes on disk against ``.pt``, and zstd against the entropy of byte planes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks import states
from benchmarks.arena import remove
from benchmarks.peers import PEERS, available, stored_bytes
from benchmarks.settings import Settings
from benchmarks.states import State
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["entropy_ratio", "run"]

_COLUMNS = {
    "own-file": "**base64**",
    "own-zstd": "**base64 + zstd**",
    "own-list-zstd": "**lists .json.zst**",
    "safetensors": "safetensors",
    "torch-zstd": ".pt.zst",
    "dcp-zstd": "DCP + zstd",
    "numbers": "json.dump(tolist())",
}
#: Number lists are slow for the guide's script, and their ratio does not change with the size.
_LIST_PEERS = {"own-list-zstd", "numbers"}
_LIST_BYTES, _LIST_BYTES_QUICK = 8_000_000, 1_000_000


def run(settings: Settings) -> Section:
    """Write each kind of state with each program, and look at the files."""
    checkpoint = states.map_state(states.trained(settings.cache, quick=settings.quick))
    most_of_lists = _LIST_BYTES_QUICK if settings.quick else _LIST_BYTES
    most = 16_000_000 if settings.quick else 80_000_000
    kinds: dict[str, Callable[[], State]] = {
        "trained fp32 weights": lambda: _part(states.weights(checkpoint), most),
        "the same in bf16": lambda: _part(states.bfloat16_weights(checkpoint), most),
        "AdamW exp_avg": lambda: _part(states.moments(checkpoint, "exp_avg"), most),
        "AdamW exp_avg_sq": lambda: _part(states.moments(checkpoint, "exp_avg_sq"), most),
        "LoRA, 512 small fp32 tensors": lambda: states.lora(checkpoint),
        "one huge fp32 tensor": lambda: _one(states.large(checkpoint, 2 * most)),
        "all zeros": lambda: {"zeros": torch.zeros(most // 4)},
        "incompressible random bits": lambda: {"bits": _random_bits(most)},
    }
    directory = settings.fast.path / "sizes"
    directory.mkdir()
    rows, planes = [], []
    section = Section(
        "size",
        "Size on disk",
        "Bytes of all files of a checkpoint divided by those of the file of `torch.save`. Number "
        f"lists are measured on the first {bytes_text(most_of_lists)}.",
    )
    for title, make in kinds.items():
        state = make()
        row = [title, bytes_text(states.nbytes(state))]
        for peer, ratio in _ratios(state, directory, most_of_lists):
            section.figures[f"size/{title}/{peer}"] = ratio
            row.append("" if ratio != ratio else f"{ratio:.3f}")
        rows.append(row)
        before = _zstd_ratio(state, directory)
        bound = entropy_ratio(state)
        section.figures[f"size/{title}/zstd-to-entropy"] = before / bound if bound else 0.0
        zipnn = _zipnn_ratio(state)
        planes.append(
            [title, f"{before:.3f}", f"{bound:.3f}", "" if zipnn is None else f"{zipnn:.3f}"]
        )
    remove(directory)
    notes = [f"{PEERS[peer].label}: not installed." for peer in _COLUMNS if not available(peer)]
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
        )
    )
    return section


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


def _ratios(state: State, directory: Path, lists: int) -> Iterator[tuple[str, float]]:
    small = _part(state, lists)
    whole, part = (_written(each, "torch", directory) for each in (state, small))
    for peer in _COLUMNS:
        if not available(peer):
            yield peer, float("nan")
        elif peer in _LIST_PEERS:
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
    """What jsonckpt's zstd makes of the raw bytes, in binary."""
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
    """What ZipNN makes of the same bytes; ``None`` when it is not installed."""
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
