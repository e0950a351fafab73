"""The guide's case: a ``.pt`` of 221 MiB to JSON and back, by one command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import states
from benchmarks.arena import ROOT, child_environment, remove
from benchmarks.probe import Sampler
from benchmarks.settings import Settings
from benchmarks.tables import Section, Table, bytes_text

__all__ = ["run"]

#: The script's figures from an earlier run on such a machine; ``--full-guide`` measures them.
_QUOTED = ("150", "5.6 GB", "")


@dataclass(frozen=True)
class _Run:
    """What a command took; ``peak`` is anonymous bytes beyond its imports."""

    seconds: float
    peak: int
    size: int


def run(settings: Settings) -> Section:
    """Convert with jsonckpt, and with the guide's script if the settings say so."""
    source = states.trained(settings.cache, quick=settings.quick)
    output = settings.fast.path / "guide.json"
    size = source.stat().st_size
    section = Section(
        "guide",
        "The guide's case",
        "`python -m jsonckpt.convert X.pt --output X.json --test-load` on the checkpoint of a "
        f"GPT-2 with AdamW ({size / (1 << 20):.0f} MiB, 19.3 M parameters). Seconds of "
        "the whole command, imports included; peak anonymous memory without the imports.",
    )
    rows, notes = [], []
    if importlib.util.find_spec("jsonckpt.convert") is not None:
        rounds = 1 if settings.quick else 3
        arguments = ["-m", "jsonckpt.convert", str(source), "--output", str(output), "--test-load"]
        imports = _imports("jsonckpt.convert")
        runs = [_command([*arguments, "--quiet"], output, imports) for _ in range(rounds)]
        best = sorted(runs, key=lambda each: each.seconds)[len(runs) // 2]
        rows.append(_row("**jsonckpt.convert**", best, size))
        section.figures |= {
            "guide/own/seconds": best.seconds,
            "guide/own/mib": best.peak / (1 << 20),
            "guide/own/size": best.size / size,
        }
    else:
        notes.append("jsonckpt.convert: not in this version of jsonckpt.")
    if settings.full_guide:
        output = settings.scratch / "guide.json"
        arguments = ["-m", "benchmarks.guide_script", str(source), "--output", str(output)]
        found = _command([*arguments, "--test-load"], output, _imports("benchmarks.guide_script"))
        rows.append(_row("the guide's number lists", found, size))
        section.figures |= {
            "guide/script/seconds": found.seconds,
            "guide/script/mib": found.peak / (1 << 20),
            "guide/script/size": found.size / size,
        }
    else:
        rows.append(["the guide's number lists (quoted)", *_QUOTED])
        notes.append(
            "The quoted figures were measured earlier, not in this run; --full-guide measures them."
        )
    section.tables.append(
        Table(
            "A checkpoint of the guide to JSON, and read back",
            ["", "seconds", "memory", "size against .pt"],
            rows,
            notes,
        )
    )
    return section


def _row(label: str, found: _Run, size: int) -> list[str]:
    return [label, f"{found.seconds:.1f}", bytes_text(found.peak), f"{found.size / size:.3f}"]


def _imports(module: str) -> int:
    """Anonymous bytes of a process that has imported a module and torch."""
    code = (
        f"import torch, {module}\n"
        "print(next(line for line in open('/proc/self/status') if line.startswith('RssAnon:')))"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT, env=child_environment(), capture_output=True, text=True, check=True,
    )  # fmt: skip
    return int(shown.stdout.split()[1]) * 1024


def _command(arguments: list[str], output: Path, imports: int) -> _Run:
    """Run a command that writes ``output``, which is removed afterwards."""
    began = time.perf_counter()
    child = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=child_environment())
    with Sampler(child.pid) as sampler:
        code = child.wait()
    seconds = time.perf_counter() - began
    if code != 0:
        raise RuntimeError(f"{arguments[1]} ended with {code}")
    size = output.stat().st_size
    remove(output)
    return _Run(seconds, max(0, sampler.most - imports), size)
