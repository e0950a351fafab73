"""What people ask of a training state: epoch, step, rates, schedule, history, RNG. Pure.

:func:`facts_of_state` walks the state once. A rule looks at the keys of each dictionary and
recognises an optimizer, a schedule, a scaler or generators; what a rule has described is not walked
again. The type of an optimizer or a schedule is in no ``state_dict``: it is guessed by its keys.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, TypeAlias

from ..errors import counted
from ..format.json_text import Json
from .plain_values import (
    Member,
    brief,
    is_mapping,
    is_registered,
    is_tensor,
    kind_of,
    members_of,
    number,
    scalar,
    short,
    size_of,
)


@dataclass(frozen=True, slots=True)
class StateFact:
    """One fact of a state.

    Attributes:
        what: ``"epoch"``, ``"step"``, ``"learning rate"``, ``"optimizer"``, ``"schedule"``,
            ``"history"``, ``"scaler"``, ``"rng"``, ``"object"`` (of a registered class), or
            ``"value"`` (any other plain value at the top or one level below).
        path: where it is in the state: a JSON Pointer, as names of tensors are.
        text: on one line, for people.
        value: the number, string or bool itself; ``None`` if it is not one plain value.
    """

    what: str
    path: str
    text: str
    value: str | int | float | bool | None = None


_Keys: TypeAlias = dict[str, Member]
_EPOCH = re.compile(r"(current_|last_)?epochs?(_idx|_num|_number)?", re.IGNORECASE)
_STEP = re.compile(
    r"((global|total|optimizer|train|current|micro)_?)?(steps?|iter(ation)?s?|updates?|batches)"
    r"(_?(num|idx|count|in_epoch|number))?|num_updates|samples_seen|tokens_seen",
    re.IGNORECASE,
)
_HISTORY = re.compile(r"(\w+_)?(history|histories|losses|logs?|curve)", re.IGNORECASE)
_RNG = re.compile(r"(\w+_)?rngs?(_\w+)?|random_states?|\w+_random_state", re.IGNORECASE)
_GENERATORS: Final = ("python", "numpy", "torch", "cuda")
_RNG_SIZES: Final = {625: 624}
#: Keys that only the ``state_dict`` of one schedule has.
_SCHEDULES: Final = (
    ("_schedulers", "SequentialLR"), ("num_bad_epochs", "ReduceLROnPlateau"),
    ("T_0", "CosineAnnealingWarmRestarts"), ("T_max", "CosineAnnealingLR"),
    ("milestones", "MultiStepLR"), ("step_size", "StepLR"), ("total_steps", "OneCycleLR"),
    ("lr_lambdas", "LambdaLR"), ("start_factor", "LinearLR"), ("power", "PolynomialLR"),
    ("factor", "ConstantLR"), ("gamma", "ExponentialLR"),
)  # fmt: skip
_SCHEDULE_DETAILS: Final = ("last_epoch", "_last_lr", "base_lrs", "best", "num_bad_epochs",
                            "T_max", "total_steps", "milestones", "step_size", "gamma")  # fmt: skip
#: Curves of a history that get a line each, and values of one dictionary that do.
_MOST_CURVES, _MOST_VALUES = 50, 200


def facts_of_state(state: Json) -> Iterator[StateFact]:
    """The facts of a state, in its order.

    >>> [(fact.what, fact.text) for fact in facts_of_state({"epoch": 3, "lr_history": [0.1, 0.01]})]
    [('epoch', '3'), ('history', '2 values, last 0.01')]
    """
    pending = [(Member("", "", state), 0)]
    while pending:
        member, depth = pending.pop()
        value = member.value
        if members_of(value) is None:
            yield from _plain(member, depth)
            continue
        if is_registered(value):
            yield StateFact("object", member.path, f"object of {kind_of(value)}")
        rule = _rule_for_key(member) if depth else None
        facts = rule(member) if rule is not None else None
        if facts is None:
            facts, rest = _by_keys(member)
            yield from facts
            pending += [(below, depth + 1) for below in reversed(rest)]
            if not facts and not rest and size_of(value) == 0:
                yield from _plain(member, depth)
        else:
            yield from facts


def _plain(member: Member, depth: int) -> Iterator[StateFact]:
    """A fact for a value that is no container."""
    key, path, value = member
    found = scalar(value)
    if number(value) is not None and depth <= 3:
        for what, pattern in (("epoch", _EPOCH), ("step", _STEP)):
            if pattern.fullmatch(key):
                yield StateFact(what, path, brief(value), found)
                return
    if depth and _RNG.fullmatch(key):
        yield StateFact("rng", path, _generator_text(value))
    elif depth <= 2 and not is_tensor(value):
        yield StateFact("value", path, brief(value), found)


def _rule_for_key(member: Member) -> Callable[[Member], list[StateFact] | None] | None:
    if _RNG.fullmatch(member.key):
        return _generators
    return _history if _HISTORY.fullmatch(member.key) else None


def _by_keys(member: Member) -> tuple[list[StateFact], list[Member]]:
    """What the keys of a container say, and the members that are still to be looked at."""
    value, path = member.value, member.path
    members = list(members_of(value, path) or ())
    if not is_mapping(value):
        return _sequence(member, members)
    keys = {below.key: below for below in members}
    if "param_groups" in keys and type(keys["param_groups"].value) is list:
        return _optimizer(path, keys), []
    if "last_epoch" in keys and keys.keys() & {"_last_lr", "base_lrs", "_step_count", "best"}:
        inner = keys.get("_schedulers")
        return [_schedule(path, keys)], [inner] if inner is not None else []
    if {"scale", "growth_factor"} <= keys.keys():
        shown = [name for name in ("scale", "growth_factor", "_growth_tracker") if name in keys]
        detail = [f"{name.strip('_')} {brief(keys[name].value)}" for name in shown]
        return [StateFact("scaler", path, ", ".join(detail), number(keys["scale"].value))], []
    if len(keys.keys() & set(_GENERATORS)) >= 2:
        return _generators(member) or [], []
    return [], [below for below in keys.values() if not _says_nothing(below)]


def _says_nothing(member: Member) -> bool:
    """Whether a member is a tensor, and no generator: nearly all members of most states."""
    return is_tensor(member.value) and "rng" not in member.key and "random" not in member.key


def _sequence(member: Member, members: list[Member]) -> tuple[list[StateFact], list[Member]]:
    """A list: one line if it is short and plain, else its containers."""
    value, path = member.value, member.path
    inner = [below for below in members if type(below.value) in (dict, list)]
    if not inner and path.count("/") <= 2:
        return [StateFact("value", path, _curve(value, members))], []
    return [], inner


def _optimizer(path: str, keys: _Keys) -> list[StateFact]:
    groups = [dict_of(group.value) for group in members_of(keys["param_groups"].value) or ()]
    parameters = sum(size_of(group.get("params")) for group in groups)
    said = [counted(len(groups), "group"), counted(parameters, "parameter")]
    if "state" in keys:
        first = next(members_of(keys["state"].value) or iter(()), None)
        if first is not None:
            kept = short(", ".join(dict_of(first.value)))
            said.append(f"state of {size_of(keys['state'].value):,}: {kept}".removesuffix(": "))
    facts = [StateFact("optimizer", path, "; ".join(said))]
    for position, group in enumerate(groups):
        shown = [f"{name} {brief(group[name])}"
                 for name in ("betas", "momentum", "weight_decay") if name in group]  # fmt: skip
        if "lr" in group:
            lr = group["lr"]
            text = ", ".join([brief(lr), *shown])
            at = f"{keys['param_groups'].path}/{position}/lr"
            facts.append(StateFact("learning rate", at, text, number(lr)))
    return facts


def _schedule(path: str, keys: _Keys) -> StateFact:
    kind = next((name for key, name in _SCHEDULES if key in keys), None)
    said = [f"like {kind}"] if kind else []
    said += [f"{name.strip('_')} {brief(keys[name].value)}"
             for name in _SCHEDULE_DETAILS if name in keys]  # fmt: skip
    return StateFact("schedule", path, ", ".join(said), number(keys["last_epoch"].value))


def _history(member: Member) -> list[StateFact] | None:
    """The facts of a history: a list of values or rows, or a dictionary of such lists."""
    value, path = member.value, member.path
    members = members_of(value, path)
    if members is None:
        return None
    below = list(members)
    if not is_mapping(value):
        return [StateFact("history", path, _curve(value, below), _last(below))]
    facts = []
    for curve in below[:_MOST_CURVES]:
        points = members_of(curve.value, curve.path)
        if points is None:
            facts.append(StateFact("history", curve.path, brief(curve.value), scalar(curve.value)))
        else:
            inner = list(points)
            facts.append(StateFact("history", curve.path, _curve(curve.value, inner), _last(inner)))
    if len(below) > _MOST_CURVES:
        facts.append(StateFact("history", path, f"and {len(below) - _MOST_CURVES:,} more"))
    return facts


def _last(members: list[Member]) -> str | int | float | bool | None:
    return scalar(members[-1].value) if members else None


def _curve(value: Json, members: list[Member]) -> str:
    """Length and last value of a list."""
    if not members:
        return f"{kind_of(value)} of 0"
    if is_mapping(value):
        return brief(value)
    last = members[-1].value
    row = dict_of(last) if is_mapping(last) else None
    if row is not None:
        shown = ", ".join(f"{key} {brief(item, 20)}" for key, item in list(row.items())[:6])
        return f"{counted(len(members), 'entry', 'entries')}, last: {shown}"
    if len(members) <= 4 and number(last) is None:
        return brief(value)
    return f"{counted(len(members), 'value')}, last {brief(last)}"


def _generators(member: Member) -> list[StateFact] | None:
    """A line for each random number generator."""
    value, path = member.value, member.path
    if is_mapping(value) and "bit_generator" not in dict_of(value):
        below = list(members_of(value, path) or ())[:_MOST_CURVES]
        return [StateFact("rng", one.path, f"{one.key}: {_generator_text(one.value)}")
                for one in below]  # fmt: skip
    return [StateFact("rng", path, _generator_text(value))]


def _generator_text(value: Json) -> str:
    """The state of a generator in a few words."""
    if value is None:
        return "none"
    if is_tensor(value):
        return "state of a torch generator"
    if is_mapping(value):
        row = dict_of(value)
        if "bit_generator" in row:
            inner = dict_of(row.get("state")) if is_mapping(row.get("state")) else {}
            at = f" at position {brief(inner['pos'])}" if "pos" in inner else ""
            return f"{scalar(row['bit_generator'])}{at}"
        return brief(value)
    below = [one.value for one in members_of(value) or ()]
    if len(below) == 3 and size_of(below[1]) in _RNG_SIZES:  # random.getstate()
        position = list(members_of(below[1]) or ())[-1].value
        return f"Mersenne Twister at {brief(position)} of {_RNG_SIZES[size_of(below[1])]}"
    if below and all(map(is_tensor, below)):
        return f"states of {counted(len(below), 'torch generator')}"
    if below and scalar(below[0]) == "MT19937" and len(below) >= 3:
        return f"MT19937 at position {brief(below[2])}"
    return brief(value)


def dict_of(value: Json) -> dict[str, Json]:
    """The members of a mapping by their keys' texts; empty for other values."""
    return {member.key: member.value for member in members_of(value) or ()}
