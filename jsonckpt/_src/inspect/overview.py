"""The facts of a checkpoint as lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from ..errors import counted
from ..format.checksums import digest_text
from ..format.model import saved_text
from ..progress import human
from .facts import Group, Inspection
from .plain_values import short
from .state_facts import StateFact

#: Longest text of one metadata value, and groups that are listed.
_LONGEST, _MOST_GROUPS = 200, 30
#: Values of the state that are listed; the facts have all.
_MOST_VALUES = 40
#: What comes first in a list of facts.
_ORDER = {
    what: place
    for place, what in enumerate(
        ("epoch", "step", "learning rate", "schedule", "optimizer", "scaler", "history", "value",
         "object", "rng")
    )
}  # fmt: skip


def headline(facts: Inspection) -> str:
    """What a checkpoint is, in a line."""
    on_disk = human(facts.file_bytes)
    files = "" if facts.kind == "pipe" else f" in {counted(facts.files, 'file')}"
    ratio = "" if facts.ratio is None else f" ({facts.ratio:.2f}x)"
    return (
        f"{facts.path}: {counted(facts.manifest.tensor_count, 'tensor')}, "
        f"{counted(facts.numel, 'element')}, {human(facts.nbytes)}; {on_disk} of text{ratio}{files}"
    )


def about(facts: Inspection) -> list[tuple[str, str]]:
    """Labels and texts: the save, its digest, metadata, encodings."""
    rows = [
        ("saved", saved_text(facts.created_at, facts.created_by)),
        ("save id", facts.save_id),
        ("digest", digest_text(facts.digest, facts.pin)),
    ]
    if not facts.sealed:
        rows.append(("seal", "null: it was edited, and nothing covers the text beside the tensors"))
    rows += [("encoding", text) for text in _parts(facts.codecs())]
    rows += [("dtypes", "; ".join(_parts(facts.dtypes())))] if facts.tensors else []
    kinds = ((counted(facts.count("tied"), "tie")), counted(facts.count("view"), "view"))
    shared = [text for text in kinds if not text.startswith("0 ")]
    rows += [("shared", " and ".join(shared))] if shared else []
    for key, value in facts.metadata.items():
        text = short(json.dumps(value, ensure_ascii=False), _LONGEST)
        rows.append(("metadata", f"{short(key)}: {text}"))
    return rows


def _parts(groups: Iterable[Group]) -> list[str]:
    return [f"{g.name}: {counted(g.tensors, 'tensor')}, {human(g.nbytes)}" for g in groups]


def top(facts: Inspection, depth: int) -> list[Group]:
    """The groups, and one for those that are too many to list."""
    groups = facts.groups(depth)
    if len(groups) <= _MOST_GROUPS:
        return groups
    rest = groups[_MOST_GROUPS - 1 :]
    sums = (sum(getattr(g, name) for g in rest) for name in
            ("tensors", "numel", "nbytes", "stored_bytes"))  # fmt: skip
    return [*groups[: _MOST_GROUPS - 1], Group(f"{len(rest):,} other groups", *sums)]


def group_rows(groups: Iterable[Group], nbytes: int) -> list[tuple[str, ...]]:
    """A table of groups."""
    rows: list[tuple[str, ...]] = [("group", "tensors", "elements", "bytes", "share")]
    for g in groups:
        share = f"{100 * g.nbytes / nbytes:.1f}%" if nbytes else "-"
        rows.append((g.name, f"{g.tensors:,}", f"{g.numel:,}", human(g.nbytes), share))
    return rows


def state_rows(
    facts: Iterable[StateFact], most: int | None = _MOST_VALUES
) -> Iterator[tuple[str, str]]:
    """Labels and texts of the facts of a state.

    Args:
        most: other plain values that are listed; ``None`` for all.
    """
    values = 0
    for fact in sorted(facts, key=lambda fact: _ORDER[fact.what]):
        if fact.what == "value":
            values += 1
            if most is not None and values > most:
                continue
        yield (fact.path if fact.what == "value" else fact.what), _state_text(fact)
    if most is not None and values > most:
        yield "…", f"{values - most:,} more values: --state lists them"


def _state_text(fact: StateFact) -> str:
    return fact.text if fact.what == "value" else f"{fact.text}  ({fact.path or 'the state'})"
