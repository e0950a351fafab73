"""``python -m benchmarks``: measure, print the tables, write ``docs/benchmarks.md``."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import (
    background,
    first,
    foreign,
    growth,
    guide_case,
    inputs,
    memory,
    sizes,
    small,
    speed,
)
from benchmarks.arena import ROOT
from benchmarks.machine import machine
from benchmarks.report import write_report
from benchmarks.settings import Settings, places
from benchmarks.states import map_state, told, trained
from benchmarks.tables import Section
from benchmarks.targets import target_table

GROUPS: dict[str, Callable[[Settings], Section]] = {
    "first": first.run,
    "speed": speed.run,
    "inputs": inputs.run,
    "small": small.run,
    "size": sizes.run,
    "memory": memory.run,
    "growth": growth.run,
    "foreign": foreign.run,
    "guide": guide_case.run,
    "async": background.run,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmarks that the arguments select. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    # A run that is ended by a signal still removes its files.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    chosen = arguments.only or list(GROUPS)
    figures: dict[str, float] = {}
    seconds: dict[str, float] = {}
    sections = []
    with places(arguments.dir) as found:
        settings = Settings.of(
            found,
            quick=arguments.quick,
            cache=arguments.dir,
            full_guide=arguments.full_guide,
        )
        facts = machine(settings)
        print(facts.text(), flush=True)
        _say("training the GPT, once for this directory" if _untrained(settings) else "")
        weights = trained(settings.cache, quick=settings.quick)
        facts = replace(facts, rows=[*facts.rows, ("weights", told(map_state(weights)))])
        for name in chosen:
            section, seconds[name] = _timed(name, settings)
            sections.append(section)
            figures |= section.figures
            for table in section.tables:
                print(table.text(), flush=True)
            _say(f"{name}: {seconds[name]:.0f} s")
        _say(f"all: {sum(seconds.values()) / 60:.1f} minutes")
    if arguments.targets:
        print(target_table(figures, quick=arguments.quick).text())
    output = arguments.output
    if output is None and chosen == list(GROUPS) and not arguments.quick:
        output = ROOT / "docs" / "benchmarks.md"
    if output is not None:
        write_report(output, facts, sections, seconds)
        _say(f"wrote {output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Compare jsonckpt with its peers. A full run takes about 15 minutes and "
        "writes docs/benchmarks.md; any other run only prints, unless --output is given.",
    )
    parser.add_argument("--quick", action="store_true", help="small states, about 3 minutes")
    parser.add_argument(
        "--only", choices=list(GROUPS), action="append", help="one group; may be repeated"
    )
    parser.add_argument(
        "--dir",
        type=Path,
        help="directory for the files (default: /dev/shm, and the disk of this directory)",
    )
    parser.add_argument(
        "--targets", action="store_true", help="print the figures and their targets"
    )
    parser.add_argument(
        "--full-guide",
        action="store_true",
        help="run the guide's number-list script, too (some minutes, 6 GB of memory)",
    )
    parser.add_argument("--output", type=Path, help="the page to write")
    return parser


def _timed(name: str, settings: Settings) -> tuple[Section, float]:
    began = time.monotonic()
    return GROUPS[name](settings), time.monotonic() - began


def _untrained(settings: Settings) -> bool:
    return not any(settings.cache.glob("gpt-*-steps.pt"))


def _say(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
