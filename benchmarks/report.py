"""``docs/benchmarks.md``: the tables and plots of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.tables import Section, Table

__all__ = ["write_report"]

_HEAD = """# Benchmarks

Written by `python -m benchmarks`, all in one run. Measure it anew with

```
pip install -e ".[bench]"                # and, for all peers: pip install tensordict h5py zipnn
python -m benchmarks                     # about 15 minutes; --quick: about 3
python -m benchmarks --only first        # a group; --help lists them
pytest benchmarks --benchmark-autosave                        # jsonckpt alone: keep the figures
pytest benchmarks --benchmark-compare                         # at another commit: beside the last
```

Every peer runs at the best setting that it documents, named in its row. Figures of other machines
differ; what carries over are the ratios.
"""


def write_report(
    path: Path, machine: Table, sections: Sequence[Section], seconds: Mapping[str, float]
) -> None:
    """Write the page, and its plots into the directory of the same name beside it.

    Args:
        seconds: that each group took.
    """
    plots = path.with_suffix("")
    plots.mkdir(parents=True, exist_ok=True)
    each = ", ".join(f"{name} {taken:.0f} s" for name, taken in seconds.items())
    took = (
        f"The run took {sum(seconds.values()) / 60:.1f} minutes ({each}): all but the training of "
        "the model, which is done once for a checkout."
    )
    parts = [_HEAD, machine.markdown(), f"{took}\n"]
    for section in sections:
        parts.append(f"## {section.title}\n\n{section.text}\n")
        parts += [table.markdown() for table in section.tables]
        for name, svg in section.plots.items():
            (plots / name).write_text(svg, encoding="utf-8")
            parts.append(f"![{name.removesuffix('.svg')}]({plots.name}/{name})\n")
    path.write_text("\n".join(parts), encoding="utf-8")
