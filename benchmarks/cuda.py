"""``python -m benchmarks.cuda``: save and load of tensors on a GPU, beside peers, in one run.

Each figure of ``first`` is the first operation of a new process; ``again`` is the median of three
later ones in it. The programs take turns. ``held`` is how long a save in the background holds the
loop. Prints one table. Nothing is written into ``docs``: a machine with a GPU is a different one.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.arena import ROOT, child_environment

State = dict[str, torch.Tensor]
OPERATIONS = {
    "load": ["jsonckpt", "torch", "torch-mmap", "safetensors"],
    "load_into": ["jsonckpt", "torch"],
    "save": ["jsonckpt", "jsonckpt-zstd", "torch", "safetensors"],
    "held": ["jsonckpt", "dcp"],
}
ROUNDS, AGAIN = 3, 3


def main() -> int:
    """Run the processes in turns and print their medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda", description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2.0, help="of float32 (default: 2)")
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        operation, program = args.child
        print(json.dumps(_measure(operation, program, args.gigabytes, args.directory)))
        return 0
    if not torch.cuda.is_available():
        print("there is no CUDA device here", file=sys.stderr)
        return 1
    name, cores = torch.cuda.get_device_name(), len(os.sched_getaffinity(0))
    print(f"{name}, {cores} cores, torch {torch.__version__}, {args.gigabytes} GB of float32")
    print("\n| operation | program | first | again |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=args.directory) as directory:
        for operation, programs in OPERATIONS.items():
            found: dict[str, list[list[float]]] = {program: [] for program in programs}
            for _ in range(ROUNDS):
                for program in programs:
                    found[program].append(_child(operation, program, args.gigabytes, directory))
            for program, runs in found.items():
                first = statistics.median(run[0] for run in runs)
                again = statistics.median(statistics.median(run[1:]) for run in runs)
                print(
                    f"| {operation} | {program} | {_shown(first, args.gigabytes)} | "
                    f"{_shown(again, args.gigabytes)} |",
                    flush=True,
                )
    return 0


def _shown(seconds: float, gigabytes: float) -> str:
    return f"{seconds * 1000:,.0f} ms, {gigabytes / seconds:.1f} GB/s"


def _child(operation: str, program: str, gigabytes: float, directory: str) -> list[float]:
    done = subprocess.run(
        [
            sys.executable, "-m", "benchmarks.cuda", "--gigabytes", str(gigabytes),
            "--directory", directory, "--child", operation, program,
        ],
        cwd=ROOT, env=child_environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    times: list[float] = json.loads(done.stdout)
    return times


def _state(gigabytes: float) -> State:
    """Weights as a network has them: matrices of 4 to 64 MB with vectors between them."""
    generator = torch.Generator("cuda").manual_seed(0)
    state, left, number = {}, int(gigabytes * 1e9), 0
    while left > 0:
        rows = 1024 * (1, 4, 16)[number % 3]
        for kind, shape in (("weight", (rows, 1024)), ("bias", (rows,))):
            values = torch.randn(shape, device="cuda", generator=generator) / 32
            state[f"layer{number}.{kind}"] = values
            left -= values.nbytes
        number += 1
    return state


def _measure(operation: str, program: str, gigabytes: float, directory: Path) -> list[float]:
    importlib.import_module(program.split("-")[0] if program != "dcp" else "torch")
    state = _state(gigabytes)
    torch.cuda.synchronize()
    path = directory / f"{program}-{operation}"
    if operation.startswith("load"):
        source = directory / f"{program.split('-')[0]}-source"
        if not source.exists():
            _saver(program.split("-")[0], source)(state)
        target = state if operation == "load_into" else None
        run: Callable[[], object] = _loader(program, source, target)
        if target is None:
            state.clear()
            torch.cuda.empty_cache()
    elif operation == "held":
        run = _holder(program, path, state)
    else:
        save = _saver(program, path)
        run = lambda: save(state)  # noqa: E731
    times = []
    for _ in range(1 + AGAIN):
        start = time.perf_counter()
        result = run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if operation == "held":
            result.result()  # type: ignore[attr-defined]
        del result
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    return times


def _saver(program: str, path: Path) -> Callable[[State], object]:
    if program == "torch":
        return lambda state: torch.save(state, path)
    if program == "safetensors":
        from safetensors.torch import save_file

        return lambda state: save_file(state, path)
    import jsonckpt

    compression = "zstd" if program.endswith("zstd") else "none"
    return lambda state: jsonckpt.save(state, path, compression=compression, sync=False)


def _loader(program: str, path: Path, target: State | None) -> Callable[[], object]:
    if program == "safetensors":
        from safetensors.torch import load_file

        return lambda: load_file(path, device="cuda")
    if program.startswith("torch"):
        mmap = program.endswith("mmap") or None

        def load() -> State:
            loaded: State = torch.load(path, map_location="cuda", mmap=mmap)
            for name, tensor in (target or {}).items():
                tensor.copy_(loaded[name])
            return loaded

        return load
    import jsonckpt

    if target is not None:
        return lambda: jsonckpt.load_into(target, path)
    return lambda: jsonckpt.load(path, map_location="cuda")


def _holder(program: str, path: Path, state: State) -> Callable[[], object]:
    if program == "dcp":
        from torch.distributed.checkpoint.state_dict_saver import async_save

        return lambda: async_save(state, checkpoint_id=path, no_dist=True)
    import jsonckpt

    return lambda: jsonckpt.save_async(state, path, sync=False)


if __name__ == "__main__":
    sys.exit(main())
