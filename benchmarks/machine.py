"""The machine and the versions of a run."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.arena import ROOT
from benchmarks.settings import Settings
from benchmarks.tables import Table

__all__ = ["machine"]

_PACKAGES = (
    "jsonckpt", "torch", "numpy", "orjson", "pysimdjson", "pybase64", "xxhash", "zstandard",
    "ijson", "safetensors", "tensordict", "h5py", "zipnn",
)  # fmt: skip


def machine(settings: Settings) -> Table:
    """One row for each fact."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    where = ", ".join(place.label for place in settings.places)
    rows = [
        ("date", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("processor", f"{_processor()}, {cores} cores, {_vector_units()}"),
        ("memory", f"{memory / (1 << 30):.1f} GiB"),
        ("kernel", f"{platform.system()} {platform.release()}"),
        ("transparent huge pages", _huge_pages()),
        ("files", where),
        ("load average at the start", " ".join(f"{load:.2f}" for load in os.getloadavg())),
        ("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        ("packages", ", ".join(_versions())),
        ("commit", _commit()),
        ("threads", f"torch {torch.get_num_threads()}, jsonckpt its default"),
    ]
    return Table("The machine", ["", ""], rows, words=True)


def _processor() -> str:
    for line in _read("/proc/cpuinfo").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _vector_units() -> str:
    flags = _read("/proc/cpuinfo")
    known = [name for name in ("avx512vbmi", "avx512f", "avx2", "asimd") if f" {name} " in flags]
    return known[0] if known else "no wide vectors"


def _huge_pages() -> str:
    text = _read("/sys/kernel/mm/transparent_hugepage/enabled")
    return text.partition("[")[2].partition("]")[0] or "unknown"


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""


def _versions() -> list[str]:
    found = []
    for package in _PACKAGES:
        try:
            found.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            if package == "jsonckpt":
                import jsonckpt

                found.append(f"jsonckpt {jsonckpt.__version__}")
            else:
                found.append(f"no {package}")
    return found


def _commit() -> str:
    """The commit that was measured, and whether files differ from it."""
    try:
        shown = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return shown.stdout.strip()
