"""The compared programs: how each saves and loads a flat dict of tensors at its best.

Heavy imports are inside the functions, so the process of one peer imports nothing of the others.
"""

from __future__ import annotations

import importlib.util
import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.states import State

__all__ = ["CHUNK_SIZES", "PEERS", "Peer", "available", "stored_bytes"]

Save = Callable[[State, Path], object]
Load = Callable[[Path], State]
LoadInto = Callable[[State, Path], object]

_THREADS = len(os.sched_getaffinity(0))
#: Compared with each other in the growth group.
CHUNK_SIZES = ("64KiB", "256KiB", "1MiB", "4MiB", "16MiB")


@dataclass(frozen=True)
class Peer:
    """One program at one setting.

    Attributes:
        label: program and setting, as tables show it.
        save: does not wait for the disk.
        save_synced: returns once the bytes are on the disk.
        load: all tensors, in new memory, every page touched.
        load_into: into existing tensors.
        stream: all tensors from a binary file object, forward only.
        needs: modules that it needs. Without them it is left out.
        module: the module to import first if the import is not timed.
        suffix: of the path that it writes to; ``""`` is a directory.
    """

    label: str
    save: Save
    load: Load
    save_synced: Save | None = None
    load_into: LoadInto | None = None
    stream: Callable[[Any], State] | None = None
    needs: tuple[str, ...] = ()
    suffix: str = ""
    module: str = "torch"

    def label_of(self, do: str) -> str:
        """The half of the label for this operation, if the label is ``SAVE / LOAD``."""
        halves = self.label.split(" / ")
        return halves[0] if do.startswith("save") else halves[-1]


def available(name: str) -> bool:
    """Whether all modules that a peer needs are installed."""
    return all(importlib.util.find_spec(module) is not None for module in PEERS[name].needs)


def stored_bytes(path: Path) -> int:
    """Bytes of a file, or of all files of a directory."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    return path.stat().st_size


def _then_sync(save: Save, state: State, path: Path) -> None:
    save(state, path)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


# --- jsonckpt ---------------------------------------------------------------------------------


def _own_save(state: State, path: Path, **options: Any) -> None:
    import jsonckpt

    jsonckpt.save(state, path, **options)


def _own_load(path: Path, threads: int | None = None) -> State:
    import jsonckpt

    state: State = jsonckpt.load(path, threads=threads)
    return state


def _own_load_into(state: State, path: Path) -> None:
    import jsonckpt

    jsonckpt.load_into(state, path)


def _own_stream(source: Any) -> State:
    import jsonckpt

    # Kept, so that it needs memory for all tensors, like every other way of loading.
    return dict(jsonckpt.stream(source))


def _own(label: str, suffix: str = "", threads: int | None = None, **options: Any) -> Peer:
    options["threads"] = threads
    return Peer(
        label,
        save=partial(_own_save, sync=False, **options),
        save_synced=partial(_own_save, sync=True, **options),
        load=partial(_own_load, threads=threads),
        load_into=_own_load_into,
        stream=_own_stream,
        suffix=suffix,
        module="jsonckpt",
    )


# --- torch.save -------------------------------------------------------------------------------


def _torch_save(state: State, path: Path, *, crc32: bool = True) -> None:
    torch.serialization.set_crc32_options(crc32)
    torch.save(state, path)


def _torch_load(path: Path) -> State:
    state: State = torch.load(path, weights_only=True)
    return state


def _torch_load_mapped(path: Path) -> State:
    state: State = torch.load(path, mmap=True, weights_only=True)
    for tensor in state.values():
        tensor.view(-1).view(torch.uint8)[::4096].sum()
    return state


def _torch_load_into(state: State, path: Path) -> None:
    loaded = torch.load(path, mmap=True, weights_only=True)
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(loaded[name])


def _torch_zstd_save(state: State, path: Path) -> None:
    import zstandard

    compressor = zstandard.ZstdCompressor(level=1, threads=_THREADS)
    with path.open("wb") as file, compressor.stream_writer(file) as stream:
        torch.save(state, stream)


def _torch_zstd_load(path: Path) -> State:
    import io

    import zstandard

    held = io.BytesIO()
    with path.open("rb") as file:
        # A third faster than stream_reader().read().
        zstandard.ZstdDecompressor().copy_stream(file, held, read_size=1 << 20, write_size=1 << 20)
    held.seek(0)
    state: State = torch.load(held, weights_only=True)
    return state


def _torch_base64_save(state: State, path: Path) -> None:
    import base64
    import io

    held = io.BytesIO()
    torch.save(state, held)
    with path.open("w", encoding="ascii") as file:
        json.dump({"torch_save": base64.b64encode(held.getbuffer()).decode("ascii")}, file)


def _torch_base64_load(path: Path) -> State:
    import base64
    import io

    with path.open(encoding="ascii") as file:
        held = base64.b64decode(json.load(file)["torch_save"])
    state: State = torch.load(io.BytesIO(held), weights_only=True)
    return state


# --- safetensors ------------------------------------------------------------------------------


def _safetensors_save(state: State, path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state, path)


def _safetensors_load(path: Path) -> State:
    from safetensors.torch import load_file

    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def _safetensors_load_into(state: State, path: Path) -> None:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file, torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(file.get_tensor(name))


# --- torch.distributed.checkpoint -------------------------------------------------------------


def _dcp_save(state: State, path: Path, *, sync: bool = False, zstd: bool = False) -> None:
    from torch.distributed.checkpoint._extension import ZStandard
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    writer = FileSystemWriter(
        path,
        sync_files=sync,
        thread_count=_THREADS,
        _extensions=[ZStandard()] if zstd else None,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save(state, storage_writer=writer, no_dist=True)


def _dcp_load_into(state: State, path: Path) -> None:
    from torch.distributed.checkpoint.state_dict_loader import load

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        load(state, checkpoint_id=path, no_dist=True)


def _dcp_load(path: Path) -> State:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata

    found = FileSystemReader(path).read_metadata().state_dict_metadata
    state = {
        name: torch.empty(entry.size, dtype=entry.properties.dtype)
        for name, entry in found.items()
        if isinstance(entry, TensorStorageMetadata)
    }
    _dcp_load_into(state, path)
    return state


# --- others -----------------------------------------------------------------------------------


def _tensordict_save(state: State, path: Path) -> None:
    from tensordict import TensorDict

    tensors: Any = TensorDict(dict(state))
    tensors.memmap(path, num_threads=_THREADS)


def _tensordict_load(path: Path) -> State:
    from tensordict import TensorDict

    loaded: Any = TensorDict.load_memmap(path)
    return {str(name): tensor.clone() for name, tensor in loaded.items()}


def _hdf5_save(state: State, path: Path) -> None:
    import h5py

    with h5py.File(path, "w", libver="latest") as file:
        for name, tensor in state.items():
            file.create_dataset(name, data=tensor.numpy())


def _hdf5_load(path: Path) -> State:
    import h5py

    state: State = {}
    with h5py.File(path, "r") as file:
        for name, dataset in file.items():
            tensor = torch.empty(dataset.shape)
            if tensor.numel():
                dataset.read_direct(tensor.numpy())
            state[name] = tensor
    return state


def _numbers_save(state: State, path: Path) -> None:
    from benchmarks.guide_script import write_json

    write_json(state, path)


def _numbers_load(path: Path) -> State:
    from benchmarks.guide_script import load_json_checkpoint

    state: State = load_json_checkpoint(path)
    return state


#: All peers by a short name. Those of jsonckpt begin with ``own``.
PEERS: dict[str, Peer] = {
    "own": _own("**jsonckpt** base64, directory"),
    "own-file": _own("**jsonckpt** base64, one .json", ".json"),
    "own-zstd": _own("**jsonckpt** base64 + zstd", compression="zstd"),
    "own-list": _own("**jsonckpt** number lists", encoding="list"),
    "own-list-zstd": _own(
        "**jsonckpt** number lists, .json.zst", ".json.zst", encoding="list", compression="zstd"
    ),
    **{
        f"own-{threads}-threads": _own(f"**jsonckpt** base64, threads={threads}", threads=threads)
        for threads in (1, 2, 4)
    },
    **{
        f"own-chunks-{size}": _own(f"**jsonckpt** base64, chunks of {size}", chunk_size=size)
        for size in CHUNK_SIZES
    },
    "torch": Peer(
        "torch.save / torch.load",
        _torch_save,
        _torch_load,
        save_synced=partial(_then_sync, _torch_save),
        load_into=_torch_load_into,
        suffix=".pt",
    ),
    "torch-fast": Peer(
        "torch.save without CRC-32 / torch.load mmap=True, every page touched",
        partial(_torch_save, crc32=False),
        _torch_load_mapped,
        save_synced=partial(_then_sync, partial(_torch_save, crc32=False)),
        suffix=".pt",
    ),
    "safetensors": Peer(
        "safetensors save_file / safetensors load_file + clone",
        _safetensors_save,
        _safetensors_load,
        save_synced=partial(_then_sync, _safetensors_save),
        load_into=_safetensors_load_into,
        needs=("safetensors",),
        module="safetensors.torch",
        suffix=".safetensors",
    ),
    "dcp": Peer(
        f"torch.distributed.checkpoint, {_THREADS} threads",
        _dcp_save,
        _dcp_load,
        save_synced=partial(_dcp_save, sync=True),
        load_into=_dcp_load_into,
    ),
    "dcp-zstd": Peer(
        f"torch.distributed.checkpoint + its ZStandard, {_THREADS} threads",
        partial(_dcp_save, zstd=True),
        _dcp_load,
    ),
    "tensordict": Peer(
        f"TensorDict.memmap, {_THREADS} threads / TensorDict.load_memmap + clone",
        _tensordict_save,
        _tensordict_load,
        needs=("tensordict",),
    ),
    "hdf5": Peer(
        "HDF5 (h5py, libver latest)", _hdf5_save, _hdf5_load, needs=("h5py",), suffix=".h5"
    ),
    "torch-zstd": Peer(
        f"torch.save through zstd -1, {_THREADS} threads",
        _torch_zstd_save,
        _torch_zstd_load,
        suffix=".pt.zst",
    ),
    "torch-base64": Peer(
        "JSON of base64 of torch.save (standard library)",
        _torch_base64_save,
        _torch_base64_load,
        suffix=".json",
    ),
    "numbers": Peer(
        "the guide: json.dump(tolist()) / the guide: json.load + torch.tensor",
        _numbers_save,
        _numbers_load,
        suffix=".json",
    ),
}
