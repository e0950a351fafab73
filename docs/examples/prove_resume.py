"""The proof behind ``train_text_generation.py --prove``: resuming is exact, whenever killed.

It runs the training three times as a program of its own: straight through; once more until it is
killed with SIGKILL; and on from the newest checkpoint that the killed run left. Then it compares,
bit for bit, every loss, the whole state at the end and the exported model, and puts the size and
the times of the checkpoints beside those of ``torch.save``.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

import jsonckpt
from jsonckpt import training

MODEL_FILE = "final_model/model.safetensors"


def prove(
    program: Path, output: Path, arguments: list[str], save_every: int, kill_at: int | None
) -> int:
    """Run, kill, resume, compare. Prints tables; returns 0 when all is identical, else 1.

    Args:
        program: the training program.
        output: gets the directories ``straight`` and ``interrupted``, which are emptied first.
        arguments: what the program is given in all three runs.
        save_every: the earliest kill is after the first checkpoint, at this step.
        kill_at: the step from which on the second run is killed; random by default.
    """
    began = time.monotonic()
    straight, interrupted = output / "straight", output / "interrupted"
    for folder in (straight, interrupted):
        if folder.exists():
            shutil.rmtree(folder)

    say("[1/3] straight through")
    run(program, straight, arguments)
    expected = dict(read_log(straight))
    total = max(expected)

    first = save_every + 1 if save_every else total // 2
    if kill_at is None:
        kill_at = random.SystemRandom().randint(first, max(first, total - 2))
    if not first <= kill_at < total:
        raise SystemExit(
            f"--kill-at must lie between {first}, after the first save, and {total - 1}"
        )
    pause = random_pause(straight, kill_at)
    say(f"[2/3] until SIGKILL, {pause * 1000:.0f} ms after step {kill_at} of {total}")
    run(program, interrupted, arguments, kill_at=kill_at, pause=pause)
    killed_losses = read_log(interrupted)
    newest = training.latest(interrupted)
    if newest is None:
        raise SystemExit(f"the killed run left no checkpoint in {interrupted}")
    names = [path.name for path in interrupted.iterdir()]
    unfinished = [name for name in names if name.startswith(".") or ".tmp" in name]

    say(f"[3/3] resumed from {newest.name}")
    run(program, interrupted, ["--resume=latest", *arguments])
    later_losses = read_log(interrupted)[len(killed_losses) :]

    final_straight, final_interrupted = training.latest(straight), training.latest(interrupted)
    assert final_straight is not None
    assert final_interrupted is not None
    state = jsonckpt.load(final_straight, map_location="cpu")
    other = jsonckpt.load(final_interrupted, map_location="cpu")

    rows: list[tuple[str, str, list[str]]] = [
        compare_losses("losses before the kill", expected, killed_losses),
        compare_losses("losses after the resume", expected, later_losses),
    ]
    if not later_losses or later_losses[-1][0] != total:
        rows[1][2].append(f"the resumed run did not reach step {total}")
    for key in dict.fromkeys([*state, *other]):
        wrong = differences(state.get(key), other.get(key), f"/{key}")
        rows.append((key, describe(state.get(key)), wrong))
    same_file = (straight / MODEL_FILE).read_bytes() == (interrupted / MODEL_FILE).read_bytes()
    rows.append((MODEL_FILE, "all bytes", [] if same_file else [f"{MODEL_FILE} differs"]))

    print()
    killed_after = killed_losses[-1][0] if killed_losses else 0
    left = f"; an unfinished save was left behind: {', '.join(unfinished)}" if unfinished else ""
    print(f"killed after step {killed_after} of {total}, resumed from {newest.name}{left}")
    print_table(
        ("compared bit for bit", "what", "result"),
        [(name, what, f"{len(bad)} DIFFER" if bad else "identical") for name, what, bad in rows],
    )
    print()
    print_table(
        ("the same state as", "bytes", "ratio", "save", "load", "comes back"),
        measure(state, output),
    )
    wrong = [line for _, _, lines in rows for line in lines]
    print()
    print(f"{'DIFFERENT' if wrong else 'identical'}, in {time.monotonic() - began:.0f} s")
    for line in wrong[:20]:
        print(f"  {line}")
    return 1 if wrong else 0


# Running ------------------------------------------------------------------------------------


def run(
    program: Path,
    output: Path,
    arguments: Sequence[str],
    *,
    kill_at: int | None = None,
    pause: float = 0.0,
) -> None:
    """Run the program; with ``kill_at``, kill it ``pause`` seconds after that step.

    It writes its progress bar to this process's standard error.
    """
    child = subprocess.Popen([sys.executable, str(program), f"--output={output}", *arguments])
    try:
        if kill_at is None:
            if child.wait() != 0:
                raise SystemExit(f"the run in {output} failed with exit code {child.returncode}")
            return
        while child.poll() is None:
            steps = read_log(output)
            if steps and steps[-1][0] >= kill_at:
                time.sleep(pause)
                os.kill(child.pid, signal.SIGKILL)
                break
            time.sleep(0.005)
        if child.wait() != -signal.SIGKILL:
            raise SystemExit("the run ended before it was killed: take an earlier --kill-at")
        say("")  # the killed process left its progress bar without an end of line
    finally:
        if child.poll() is None:
            child.kill()
            child.wait()


def log_lines(output: Path) -> list[dict[str, Any]]:
    path = output / "steps.jsonl"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    # What follows the last line feed is still being written, or never will be.
    return [json.loads(line) for line in text.split("\n")[:-1]]


def read_log(output: Path) -> list[tuple[int, str]]:
    """Step and loss, in hexadecimal, of each optimizer step in the order they were made."""
    return [(line["step"], line["loss_hex"]) for line in log_lines(output)]


def random_pause(straight: Path, step: int) -> float:
    """Seconds from a step to a moment that may lie anywhere, in the middle of a save, too."""
    times = {line["step"]: line["at"] for line in log_lines(straight)}
    longest = max(later - earlier for earlier, later in pairwise(times.values()))
    until_end = times[max(times)] - times[step]
    return random.SystemRandom().uniform(0.0, min(longest, until_end / 2))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# Comparing ----------------------------------------------------------------------------------


def compare_losses(
    label: str, expected: dict[int, str], found: list[tuple[int, str]]
) -> tuple[str, str, list[str]]:
    wrong = [
        f"loss of step {step}: {loss}, expected {expected.get(step)}"
        for step, loss in found
        if expected.get(step) != loss
    ]
    span = f"steps {found[0][0]} to {found[-1][0]}" if found else "none"
    return label, span, wrong


def differences(a: Any, b: Any, place: str = "") -> list[str]:
    """Where two states differ in a type or in a bit, as ``"place: what"``."""
    if type(a) is not type(b):
        return [f"{place}: {type(a).__name__} and {type(b).__name__}"]
    if isinstance(a, torch.Tensor):
        same = (a.dtype, a.shape, tensor_bytes(a)) == (b.dtype, b.shape, tensor_bytes(b))
    elif isinstance(a, np.ndarray):
        same = (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif isinstance(a, Mapping):
        if list(a) != list(b):
            return [f"{place}: other keys"]
        return [line for key in a for line in differences(a[key], b[key], f"{place}/{key}")]
    elif isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{place}: length {len(a)} and {len(b)}"]
        pairs = enumerate(zip(a, b))
        return [line for i, (x, y) in pairs for line in differences(x, y, f"{place}/{i}")]
    elif isinstance(a, float):
        same = struct.pack("<d", a) == struct.pack("<d", b)
    else:
        same = bool(a == b)
    return [] if same else [f"{place}: the values differ"]


def tensor_bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def describe(value: Any) -> str:
    tensors, elements = count_tensors(value)
    if tensors:
        return f"{tensors} tensors, {elements:,} elements"
    text = value.hex() if isinstance(value, float) else str(value)
    return text if len(text) <= 40 else f"{len(text):,} characters"


def count_tensors(value: Any) -> tuple[int, int]:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return 1, value.numel() if isinstance(value, torch.Tensor) else value.size
    if isinstance(value, Mapping):
        value = list(value.values())
    if not isinstance(value, (list, tuple)):
        return 0, 0
    counts = [count_tensors(one) for one in value]
    return sum(n for n, _ in counts), sum(n for _, n in counts)


# Beside torch.save --------------------------------------------------------------------------


def measure(state: Any, folder: Path) -> list[tuple[str, ...]]:
    """Size, and median time of three saves and loads, of the state in each format."""

    def torch_save(path: Path) -> None:
        with path.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())  # as jsonckpt does

    def torch_load(path: Path) -> Any:
        # The state holds more than tensors, and this process wrote the file itself.
        return torch.load(path, weights_only=False)

    formats: list[tuple[str, str, Callable[[Path], Any], Callable[[Path], Any]]] = [
        ("torch.save", "size.pt", torch_save, torch_load),
        ("jsonckpt.save", "size.json", lambda path: jsonckpt.save(state, path), jsonckpt.load),
        (
            "jsonckpt.save, zstd",
            "size-zstd.json",
            lambda path: jsonckpt.save(state, path, compression="zstd"),
            jsonckpt.load,
        ),
    ]
    rows: list[tuple[str, ...]] = []
    reference = 0
    for label, name, save, load in formats:
        path = folder / name
        save_times, load_times = [], []
        loaded = None
        for _ in range(3):
            started = time.perf_counter()
            save(path)
            saved = time.perf_counter()
            loaded = load(path)
            save_times.append(saved - started)
            load_times.append(time.perf_counter() - saved)
        size = path.stat().st_size
        path.unlink()
        reference = reference or size
        rows.append(
            (
                label,
                f"{size:,}",
                f"{size / reference:.2f}",
                f"{statistics.median(save_times) * 1000:.0f} ms",
                f"{statistics.median(load_times) * 1000:.0f} ms",
                "DIFFERENT" if differences(state, loaded) else "identical",
            )
        )
    return rows


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    table = io.StringIO()
    for row in [head, ["-" * width for width in widths], *rows]:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths))
        table.write(line.rstrip() + "\n")
    print(table.getvalue(), end="")
