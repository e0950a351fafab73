"""The step and the epoch of a checkpoint, and the order that follows from them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Any, Protocol, TypeVar

from ..format.model import NO_TIME

_NUMBER = re.compile(
    r"(epoch|step|iter(?:ation)?|checkpoint|ckpt)[-_=]?(\d{1,18})(?!\d)", re.IGNORECASE
)
_USUAL = re.compile(
    r"checkpoint_|(checkpoint|ckpt|(global_?)?step|epoch|iter(ation)?)[-_=]?\d", re.IGNORECASE
)
#: Keys that hold the step, the surest first.
_STEPS = ("global_step", "step", "iteration", "iter")
_EPOCHS = ("epoch", "current_epoch")
#: Dictionaries in which a trainer keeps its counters.
_NESTED = (
    "trainer", "trainer_state", "training", "training_state", "train_state", "state", "progress",
    "counters", "meta", "metadata", "extra_state", "info",
)  # fmt: skip
#: Tags of dictionaries (format section 6.2), and the member that holds the items.
_DICTIONARIES = {
    "$dict": None, "$counter": None, "$namespace": None, "$simple_namespace": None,
    "$ordered_dict": "items", "$defaultdict": "items",
}  # fmt: skip


class Dated(Protocol):
    """What :func:`newest_first` sorts."""

    @property
    def name(self) -> str: ...
    @property
    def step(self) -> int | None: ...
    @property
    def epoch(self) -> int | None: ...
    @property
    def saved_at(self) -> datetime | None: ...
    @property
    def changed(self) -> float: ...


_Dated = TypeVar("_Dated", bound=Dated)


def is_usual(name: str) -> bool:
    """Whether a name is that of a run's checkpoint.

    >>> is_usual("checkpoint_epoch1.json"), is_usual("step-600"), is_usual("config.json")
    (True, True, False)
    """
    return _USUAL.match(name) is not None


def is_best(name: str) -> bool:
    """Whether a name is that of a copy which is kept for its score.

    >>> is_best("best_model.json"), is_best("model-best"), is_best("bestiary.json")
    (True, True, False)
    """
    return re.search(r"(?:^|[-_.])best(?:[-_.]|$)", name, re.IGNORECASE) is not None


def numbers_in_name(name: str) -> tuple[int | None, int | None]:
    """The step and the epoch in a name. ``step5`` counts before ``checkpoint7``.

    >>> numbers_in_name("checkpoint_epoch1_step6500.json")
    (6500, 1)
    """
    found: dict[str, int] = {}
    pairs = [(key.lower(), int(number)) for key, number in _NUMBER.findall(name)]
    for key, number in sorted(pairs, key=lambda pair: pair[0] not in ("epoch", "step")):
        found.setdefault("epoch" if key == "epoch" else "step", number)
    return found.get("step"), found.get("epoch")


def numbers_in_state(*trees: Any) -> tuple[int | None, int | None]:
    """The step and the epoch in JSON trees (state, metadata), the first tree first.

    >>> numbers_in_state({"model": {}, "trainer": {"global_step": 500, "epoch": 2}})
    (500, 2)
    """
    levels = [_items(tree) for tree in trees]
    levels += [_items(level.get(key)) for level in list(levels) for key in _NESTED]
    return _first(levels, _STEPS), _first(levels, _EPOCHS)


def _first(levels: Iterable[Mapping[str, Any]], keys: tuple[str, ...]) -> int | None:
    for level in levels:
        for key in keys:
            number = _integer(level.get(key))
            if number is not None:
                return number
    return None


def _integer(value: Any) -> int | None:
    if isinstance(value, dict) and isinstance(scalar := value.get("$scalar"), dict):
        value = scalar.get("value")
    return value if type(value) is int else None


def _items(tree: Any) -> Mapping[str, Any]:
    """The dictionary that a JSON tree stands for, with its keys that are strings."""
    if not isinstance(tree, dict):
        return {}
    tag, value = next(iter(tree.items()), ("", None))
    if len(tree) != 1 or tag not in _DICTIONARIES:
        return tree
    member = _DICTIONARIES[tag]
    if member is not None:
        value = value.get(member) if isinstance(value, dict) else None
    if isinstance(value, list):
        pairs = [pair for pair in value if isinstance(pair, list) and len(pair) == 2]
        return {key: item for key, item in pairs if type(key) is str}
    return value if isinstance(value, dict) else {}


def time_of(text: str) -> datetime | None:
    """The time in ``created_at``. A save by content has none.

    >>> time_of("2026-11-27T19:02:00Z")
    datetime.datetime(2026, 11, 27, 19, 2, tzinfo=datetime.timezone.utc)
    >>> time_of("2026-99-99T00:00:00Z")
    """
    if text == NO_TIME:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=timezone.utc)
    except ValueError:
        return None


def newest_first(found: Iterable[_Dated]) -> list[_Dated]:
    """Checkpoints in the order of their steps, the latest first.

    1. If all have a step: by step.
    2. Else, if all have an epoch: by epoch, then by step. One without a step is the end of its
       epoch.
    3. Else those without any number come last. The others are sorted by these rules; if none
       applies, by time.

    Equal ones are sorted by the time of the save; then a copy that is kept as the best comes after
    the others; then by the time of the file, then by name.
    """
    items = list(found)
    numbered = [one for one in items if (one.step, one.epoch) != (None, None)]
    bare = [one for one in items if (one.step, one.epoch) == (None, None)]
    key = _key_of(numbered)
    return [
        *sorted(numbered, key=lambda one: (*key(one), *_time_of(one)), reverse=True),
        *sorted(bare, key=_time_of, reverse=True),
    ]


def _key_of(found: list[_Dated]) -> Callable[[_Dated], tuple[float, ...]]:
    if all(one.step is not None for one in found):
        return lambda one: (one.step or 0,)
    if all(one.epoch is not None for one in found):
        end = float("inf")
        return lambda one: (one.epoch or 0, end if one.step is None else one.step)
    return lambda _: ()


def _time_of(one: Dated) -> tuple[float, bool, float, str]:
    saved = one.changed if one.saved_at is None else one.saved_at.timestamp()
    return saved, not is_best(one.name), one.changed, one.name
