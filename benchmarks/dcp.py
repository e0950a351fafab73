"""A sharded state on several ranks: ``jsonckpt.integrations.dcp`` beside torch's own storage.

``python -m benchmarks.dcp`` starts the ranks on this machine, with gloo. The programs take turns,
so that a busy moment meets all of them. ``torch_checkpointing`` is measured where it is installed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.multiprocessing.spawn import spawn

from jsonckpt.integrations import dcp

__all__ = ["main"]


@dataclass(frozen=True)
class Figures:
    """One program: medians over the rounds, of the slowest rank.

    Attributes:
        save, load: seconds until all ranks are done.
        held: seconds that a save in the background holds the loop; ``None`` if there is none.
        save_memory, load_memory: bytes at the peak, beside what the rank had before.
        stored: bytes of all files.
    """

    name: str
    save: float
    load: float
    held: float | None
    save_memory: int
    load_memory: int
    stored: int


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--mib", type=int, default=256, help="MiB of the whole state")
    parser.add_argument("--tensors", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where the checkpoints go; default: temporary")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    directory = tempfile.mkdtemp(dir=options.directory)
    try:
        spawn(_rank, (options, directory), nprocs=options.ranks)  # type: ignore[no-untyped-call]
        found = json.loads(Path(directory, "figures.json").read_text())
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    print(f"{options.mib} MiB in {options.tensors} tensors on {options.ranks} ranks, medians of "
          f"{options.rounds} rounds; in brackets: torch's figure divided by it")  # fmt: skip
    base = next(one for one in found if one["name"] == "torch")
    for one in found:
        print(one["name"])
        for key in ("save", "load", "held", "save_memory", "load_memory", "stored"):
            if one[key] is not None:
                unit = f"{one[key]:.3f} s" if isinstance(one[key], float) else f"{one[key]:,} B"
                ratio = f" ({base[key] / one[key]:.2f}x)" if one[key] and base[key] else ""
                print(f"  {key:12} {unit:>20}{ratio}")


def _rank(rank: int, options: argparse.Namespace, directory: str) -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{directory}/store", rank=rank, world_size=options.ranks
    )
    rows = options.mib * (1 << 18) // options.tensors // 1024 // options.ranks
    mesh = init_device_mesh("cpu", (options.ranks,))
    torch.manual_seed(rank)
    state = {
        f"layer{number}": DTensor.from_local(torch.randn(rows, 1024), mesh, [Shard(0)])
        for number in range(options.tensors)
    }
    programs: dict[str, Any] = {"jsonckpt": _Json(), "torch": _Torch()}
    with suppress(ImportError):
        programs["torch_checkpointing"] = _Successor()
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in programs}
    for number in range(options.rounds + 1):
        for name, program in programs.items():
            path = Path(directory, f"{name}-{number}")
            one = _measure(program, state, path)
            if number:  # the first round warms up
                results[name].append(one)
            if rank == 0:
                shutil.rmtree(path)
                shutil.rmtree(f"{path}-held", ignore_errors=True)
            dist.barrier()
    if rank == 0:
        found = [asdict(_median(name, rounds)) for name, rounds in results.items()]
        Path(directory, "figures.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def _median(name: str, rounds: list[dict[str, Any]]) -> Figures:
    middle = {key: statistics.median(one[key] for one in rounds)
              for key in rounds[0] if rounds[0][key] is not None}  # fmt: skip
    sizes = {key: int(middle[key]) for key in ("save_memory", "load_memory", "stored")}
    return Figures(name, middle["save"], middle["load"], middle.get("held"), **sizes)


def _measure(program: Any, state: dict[str, Any], path: Path) -> dict[str, Any]:
    saved = _timed(lambda: program.save(state, str(path)))
    loaded = _timed(lambda: program.load(state, str(path)))
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    held = None
    if hasattr(program, "begin"):
        dist.barrier()
        began = time.perf_counter()
        future = program.begin(state, f"{path}-held")
        held = _slowest(time.perf_counter() - began)
        future.result()
    return {"save": saved[0], "save_memory": saved[1], "load": loaded[0],
            "load_memory": loaded[1], "stored": stored, "held": held}  # fmt: skip


def _timed(do: Callable[[], object]) -> tuple[float, int]:
    """Seconds and bytes of the slowest and of the largest rank."""
    dist.barrier()
    before = reset_peak()
    began = time.perf_counter()
    do()
    seconds = time.perf_counter() - began
    return _slowest(seconds), int(_slowest(float(status("VmHWM") - before)))


def _slowest(value: float) -> float:
    tensor = torch.tensor(value, dtype=torch.float64)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.item()


def reset_peak() -> int:
    """Forget the peak so far (Linux); return the memory that this process has."""
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {name} in /proc/self/status")


class _Json:
    def save(self, state: dict[str, Any], path: str) -> None:
        dcp.save(state, path)

    def load(self, state: dict[str, Any], path: str) -> None:
        dcp.load(state, path)

    def begin(self, state: dict[str, Any], path: str) -> Any:
        return dcp.async_save(state, path)


class _Torch:
    def __init__(self) -> None:
        self._group = dist.new_group(backend="gloo")

    def save(self, state: dict[str, Any], path: str) -> None:
        state_dict_saver.save(state, checkpoint_id=path)

    def load(self, state: dict[str, Any], path: str) -> None:
        state_dict_loader.load(state, checkpoint_id=path)

    def begin(self, state: dict[str, Any], path: str) -> Any:
        return state_dict_saver.async_save(state, checkpoint_id=path, process_group=self._group)


class _Successor:
    """``torch_checkpointing``: a torch file of each rank, for as many ranks as before.

    It does not fsync. Its metadata for other numbers of ranks needs CUDA, so there is none here.
    """

    def __init__(self) -> None:
        from torch_checkpointing.checkpoint_manager import CheckpointManager
        from torch_checkpointing.config import SyncCheckpointSaverConfig
        from torch_checkpointing.storage.filesystem import LocalFileSystemStorageConfig

        self._manager = CheckpointManager(
            CheckpointManager.Config(
                save=SyncCheckpointSaverConfig(),
                storage_config=LocalFileSystemStorageConfig(use_direct_io=False),
            )
        )

    def save(self, state: dict[str, Any], path: str) -> None:
        self._manager.save(path, {"model": state})

    def load(self, state: dict[str, Any], path: str) -> None:
        self._manager.load(path, into={"model": state})


if __name__ == "__main__":
    main()
