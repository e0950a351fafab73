"""One row of ``history.json``: a saved step. Pure: no I/O."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import FormatError, quote
from ..format import json_text
from ..shown import ShortRepr

HISTORY = "history.json"
#: The member of a checkpoint's metadata that says which run wrote it.
MEMBER = "checkpoint_manager"
KEPT, SAVING, FAILED, DAMAGED, REMOVING, REMOVED = (
    "kept", "saving", "failed", "damaged", "removing", "removed",
)  # fmt: skip
_STATUSES = {KEPT, SAVING, FAILED, DAMAGED, REMOVING, REMOVED}
#: Of rows whose names are free again.
GONE = {FAILED, REMOVED}
#: ``step-00000500``; a step that is saved again: ``step-00000500-2``; as files: ``….json``.
_NAME = re.compile(r"step-([0-9]{8,19})(?:-([0-9]{1,9}))?(?:\.json(?:\.zst)?)?")
_RUN = re.compile(r"[0-9a-f]{12}")
_LARGEST = (1 << 63) - 1
#: Of the numbers of saves. No run counts so far.
MOST_SAVES = (1 << 53) - 1
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


@dataclass(frozen=True, kw_only=True, repr=False)
class SavedStep(ShortRepr):
    """A step of a run that was saved. ``jsonckpt.load(saved)`` takes it as a path.

    Attributes:
        step: the number that was given to the manager.
        path: of the checkpoint; a URL if the run's directory is one.
        metrics: as they were given.
        time: of the commit, UTC: ``"2026-11-27T22:31:05Z"``.
        seconds: how long the save took; ``None`` if that was not recorded.
        bytes: on disk.
        status: ``"kept"``, ``"saving"``, ``"failed"``, ``"damaged"``, ``"removing"`` or
            ``"removed"``.
        after: the step that the run was at before: the one saved or restored last.
        save: counts the saves of a run. The greatest is the newest, whatever its step is.
        run: 12 hexadecimal digits, the same for all saves in one directory.
        problem: why the save failed, or what is damaged.
    """

    step: int
    path: str
    save: int
    run: str
    status: str = KEPT
    metrics: Mapping[str, float] = field(default_factory=dict)
    time: str = ""
    seconds: float | None = None
    bytes: int = 0
    after: int | None = None
    problem: str | None = None

    def __fspath__(self) -> str:
        return self.path

    @property
    def name(self) -> str:
        """The last part of the path."""
        return re.split(r"[/\\]", self.path)[-1]

    def now(self, **changes: Any) -> SavedStep:
        """The same save, with other facts."""
        return replace(self, **changes)


def name_of(step: int, taken: Sequence[str] | set[str], suffix: str) -> str:
    """A name for a step that nothing has.

    >>> name_of(500, [], ""), name_of(500, ["step-00000500.json"], ".json")
    ('step-00000500', 'step-00000500-2.json')
    """
    stems = {name.partition(".")[0] for name in taken}
    stem, number = f"step-{step:08}", 1
    while (name := stem if number == 1 else f"{stem}-{number}") in stems:
        number += 1
    return name + suffix


def step_in(name: str) -> int | None:
    """The step in a name that a manager gives; ``None`` for other names.

    >>> step_in("step-00000500-2.json"), step_in("step500")
    (500, None)
    """
    match = _NAME.fullmatch(name)
    return None if match is None else int(match[1])


def marks(row: SavedStep) -> dict[str, Any]:
    """What a checkpoint's metadata says of its save."""
    return {
        "run": row.run,
        "step": row.step,
        "save": row.save,
        "after": row.after,
        "metrics": _metrics_json(row.metrics),
    }


def from_marks(value: object, path: str, name: str) -> SavedStep | None:
    """The save that a checkpoint's metadata names; ``None`` if no manager wrote it."""
    if not isinstance(value, dict):
        return None
    try:
        return _row({**value, "path": name, "status": KEPT}, path)
    except FormatError:
        return None


def dump(rows: Sequence[SavedStep]) -> bytes:
    """The text of ``history.json``: a list with one row on each line.

    >>> print(dump([SavedStep(step=5, path="r/step-00000005", save=1, run="0" * 12)]).decode())
    [
    {"step": 5, "path": "step-00000005", "status": "kept", "metrics": {}, "save": 1, \
"run": "000000000000", "check": "1f2f8f3d"}
    ]
    <BLANKLINE>
    """
    lines = [json_text.dump_pretty(_json(row), width=1 << 30) for row in rows]
    return b"[\n" + b",\n".join(lines) + (b"\n]\n" if lines else b"]\n")


def _json(row: SavedStep) -> dict[str, Any]:
    members = {
        "step": row.step,
        "path": row.name,
        "status": row.status,
        "time": row.time or None,
        "metrics": _metrics_json(row.metrics),
        "seconds": None if row.seconds is None else round(row.seconds, 3),
        "bytes": row.bytes or None,
        "after": row.after,
        "save": row.save,
        "run": row.run,
        "problem": None if row.problem is None else _encodable(row.problem),
    }
    found = {member: value for member, value in members.items() if value is not None}
    return {**found, "check": _check(found)}


def _check(members: Mapping[str, Any]) -> str:
    """A checksum of a row: a changed digit is a number, too, and only this tells."""
    known = {member: value for member, value in sorted(members.items()) if member != "check"}
    return f"{zlib.crc32(json_text.dump(known)):08x}"


def _encodable(text: str) -> str:
    """A text of the system in UTF-8: names of files need not be text."""
    return text.encode("utf-8", "backslashreplace").decode()


def _metrics_json(metrics: Mapping[str, float]) -> dict[str, Any]:
    """JSON has no NaN and no infinity: these become their names."""
    return {
        name: value
        if math.isfinite(value)
        else ("NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity")
        for name, value in metrics.items()
    }


def parse(text: bytes, root: str) -> list[SavedStep]:
    """The rows of ``history.json``, in the order of the saves.

    Args:
        root: the run's directory, with a separator at its end.

    Raises:
        FormatError, LimitError: it is damaged.
    """
    value = json_text.parse(text, what=HISTORY, max_depth=4)
    if not isinstance(value, list):
        raise FormatError(f"{HISTORY}: expected a list of rows")
    rows = []
    for number, item in enumerate(value):
        try:
            rows.append(_row(item, root + str(item["path"] if isinstance(item, dict) else "")))
            if isinstance(item, dict) and item.get("check", None) not in (None, _check(item)):
                raise FormatError("its content does not match its member check")
        except (FormatError, KeyError) as error:
            raise FormatError(f"{HISTORY}: row {number}: {_reason(error)}") from error
    if len({row.save for row in rows}) != len(rows):
        raise FormatError(f"{HISTORY}: two rows have the same number of the save")
    names = [row.name for row in rows if row.status not in GONE]
    if len(set(names)) != len(names):
        raise FormatError(f"{HISTORY}: two rows have the same path")
    if len({row.run for row in rows}) > 1:
        raise FormatError(f"{HISTORY}: rows of different runs")
    return sorted(rows, key=lambda row: row.save)


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, FormatError) else f"a member {error} is missing"


def _row(item: object, path: str) -> SavedStep:
    """A checked row.

    Raises:
        FormatError: a member is wrong.
    """
    if not isinstance(item, dict):
        raise FormatError("expected an object")
    name, step = item.get("path"), _number(item, "step")
    if not isinstance(name, str) or step_in(name) != step:
        raise FormatError(f"path: {quote(name)} is not the name of step {step}")
    run, status = item.get("run"), item.get("status")
    if not isinstance(run, str) or _RUN.fullmatch(run) is None:
        raise FormatError("run: expected 12 hexadecimal digits")
    if not isinstance(status, str) or status not in _STATUSES:
        raise FormatError(f"status: {quote(status)} is not one of {', '.join(sorted(_STATUSES))}")
    texts = {member: item.get(member) or "" for member in ("time", "problem")}
    if not all(isinstance(text, str) for text in texts.values()):
        raise FormatError("time and problem must be strings")
    save = _number(item, "save")
    if save > MOST_SAVES:
        raise FormatError(f"save: {save} is more than any run counts")
    seconds = item.get("seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not 0 <= seconds < 1e12):
        raise FormatError("seconds: expected a number")
    return SavedStep(
        step=step,
        path=path,
        save=save,
        run=run,
        status=status,
        metrics=_metrics(item.get("metrics", {})),
        time=texts["time"],
        seconds=seconds,
        bytes=_number(item, "bytes") if "bytes" in item else 0,
        after=None if item.get("after") is None else _number(item, "after"),
        problem=texts["problem"] or None,
    )


def _number(item: Mapping[str, Any], member: str) -> int:
    value = item.get(member)
    if type(value) is not int or not 0 <= value <= _LARGEST:
        raise FormatError(f"{member}: expected an integer from 0 to 2^63-1, found {quote(value)}")
    return value


def _metrics(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise FormatError("metrics: expected an object")
    found: dict[str, float] = {}
    for name, number in value.items():
        if isinstance(number, str) and number in _NOT_FINITE:
            number = _NOT_FINITE[number]
        if type(number) not in (int, float) or (type(number) is int and abs(number) > _LARGEST):
            raise FormatError(f"metrics: {quote(name)} is not a number")
        found[name] = number
    return found
