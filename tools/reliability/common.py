"""Helpers of the tools: a directory in memory, a count of open files, a command line."""

from __future__ import annotations

import argparse
import functools
import os

#: Verdicts that begin with this are failures.
BAD = "BAD: "


@functools.cache
def memory_directory() -> str | None:
    """A directory in memory, if the system has one: the tools write thousands of small files."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def open_descriptors() -> int:
    """The number of open files of this process; 0 if the system does not tell."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


def command_line(name: str, full: str) -> argparse.ArgumentParser:
    """The arguments that every tool takes.

    Args:
        name: the name of the tool's module.
        full: what ``--full`` does.
    """
    parser = argparse.ArgumentParser(prog=f"python -m tools.reliability.{name}")
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--seed", type=int, default=1)
    return parser
