"""``docs/benchmarks.md``: the tables and plots of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.tables import Section, Table

__all__ = ["write_report"]

_HEAD = """# Benchmarks

All figures are from one run of `python -m benchmarks`, which writes this page. What they mean for
you, and how to measure on your machine: [performance.md](performance.md).

- Each program runs in a process of its own, at the best setting that it documents. They take turns.
- A cell is the median, with the least and the most in parentheses. A ratio compares two programs
  in one round.
- Above 1.00x jsonckpt is the faster one. Ratios carry over to other machines better than speeds.
"""
#: Facts about the machine that only the terminal shows.
_LEFT_OUT = ("transparent huge pages", "load average at the start")


def write_report(
    path: Path, machine: Table, sections: Sequence[Section], seconds: Mapping[str, float]
) -> None:
    """Write the page, and its plots into the directory of the same name beside it.

    Args:
        seconds: that each group took.
    """
    plots = path.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    facts = replace(machine, rows=[row for row in machine.rows if row[0] not in _LEFT_OUT])
    took = f"The run took {sum(seconds.values()) / 60:.0f} minutes."
    parts = [_HEAD, facts.markdown(), f"{took}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n\n{section.text}\n")
        parts += [table.markdown() for table in section.tables if table.page]
        for name, svg in section.plots.items():
            (plots / name).write_text(svg, encoding="utf-8")
            parts.append(f"![{name.removesuffix('.svg')}]({plots.name}/{name})\n")
    path.write_text("\n".join(parts), encoding="utf-8")
