"""Finds the moments that an optimizer keeps for each weight.

A ``state_dict`` of an optimizer numbers the weights. Torch writes their names beside the numbers
only if the program gave names. Without these, weights and numbers are matched in order, by shape:
a weight of the model whose shape is not the next one's is a buffer, and is passed over.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from ..format.json_text import Json
from ..inspect.facts import Inspection, TensorFacts
from ..inspect.plain_values import is_mapping, members_of, number, references_at, scalar
from ..inspect.state_facts import dict_of
from ..inspect.statistics import TensorStatistics

_MOMENTS = ("exp_avg", "exp_avg_sq", "momentum_buffer", "max_exp_avg_sq")
_BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Group:
    """What a group of weights has in common: the learning rate and Adam's ``betas``."""

    rate: float | None
    betas: tuple[float, float]


@dataclass(frozen=True)
class Moments:
    """What an optimizer keeps for one weight.

    Attributes:
        weight: the name of the weight.
        moments: names of tensors, by what the optimizer calls them.
        group: of the weight.
        step: the name of the tensor that counts its steps, or the count.
    """

    weight: str
    moments: dict[str, str]
    group: Group
    step: str | float | None

    def update(self, statistics: dict[str, TensorStatistics]) -> float | None:
        """About how large the last step of Adam was, relative to the weight.

        It is ``lr * rms(m) / sqrt(mean(v)) / rms(weight)``, where ``m`` and ``v`` are the moments
        with Adam's correction for the first steps: an estimate from statistics of whole tensors.
        """
        parts = [statistics.get(self.moments.get(name, "")) for name in ("exp_avg", "exp_avg_sq")]
        weight = statistics.get(self.weight)
        first, second = parts
        if first is None or second is None or weight is None or self.group.rate is None:
            return None
        if not first.norm or not second.mean or second.mean <= 0 or not weight.norm:
            return None
        one, two = self._corrections(statistics)
        moved = self.group.rate * first.norm / one / math.sqrt(first.count * second.mean / two)
        ratio = moved / (weight.norm / math.sqrt(weight.count))
        return ratio if math.isfinite(ratio) else None

    def _corrections(self, statistics: dict[str, TensorStatistics]) -> tuple[float, float]:
        """By what the moments are too small because they began at zero."""
        step = self.step
        if isinstance(step, str):
            counter = statistics.get(step)
            step = None if counter is None or counter.max is None else float(counter.max)
        if step is None or not 1 <= step < 1e9:
            return 1.0, 1.0
        one, two = (1 - beta**step for beta in self.group.betas)
        return one, two


def moments_of(facts: Inspection) -> list[Moments]:
    """The moments of all weights of all optimizers in a state."""
    tensors = {tensor.name: tensor for tensor in facts.tensors}
    found = []
    for optimizer in _optimizers(facts.manifest.state):
        found += _matched(optimizer, tensors)
    return found


def _optimizers(state: Json) -> Iterator[dict[str, Json]]:
    pending = [(state, 0)]
    while pending:
        value, depth = pending.pop()
        if not is_mapping(value):
            continue
        keys = dict_of(value)
        if type(keys.get("param_groups")) is list and "state" in keys:
            yield keys
        elif depth < 4:
            pending += [(below, depth + 1) for below in keys.values()]


def _matched(optimizer: dict[str, Json], tensors: dict[str, TensorFacts]) -> list[Moments]:
    kept: dict[str, dict[str, str]] = {}
    steps: dict[str, str | float | None] = {}
    for member in members_of(optimizer["state"]) or ():
        moments = {
            below.key: names[0]
            for below in members_of(member.value, member.path) or ()
            if below.key in _MOMENTS and (names := references_at(below.value))
        }
        if moments:
            kept[member.key] = moments
            step = dict_of(member.value).get("step")
            steps[member.key] = next(iter(references_at(step)), None) or number(step)
    taken = {name for moments in kept.values() for name in moments.values()}
    inside = {name.rsplit("/", 2)[0] for name in taken}
    weights = [
        tensor
        for tensor in tensors.values()
        if tensor.kind == "tensor" and tensor.name.rsplit("/", 2)[0] not in inside
    ]
    found = []
    position = 0
    for key, group, name in _numbered(optimizer["param_groups"]):
        moments = kept.get(key, {})
        shape = next((tensors[name].shape for name in moments.values() if name in tensors), None)
        if shape is None:
            continue
        at = _place(weights, position, shape, name)
        if at is not None:
            found.append(Moments(weights[at].name, moments, group, steps.get(key)))
            position = at + 1
    return found


def _place(
    weights: list[TensorFacts], begin: int, shape: tuple[int, ...], name: str | None
) -> int | None:
    """The weight that has a name, or the next one of a shape."""
    for at in range(0 if name else begin, len(weights)):
        weight = weights[at]
        if weight.shape == shape and (not name or weight.name.endswith(f"/{name}")):
            return at
    return None


def _numbered(groups: Json) -> Iterator[tuple[str, Group, str | None]]:
    """The number of each weight, its group, and its name if it is there."""
    for member in members_of(groups) or ():
        keys = dict_of(member.value)
        numbers = [scalar(one.value) for one in members_of(keys.get("params")) or ()]
        names = [scalar(one.value) for one in members_of(keys.get("param_names")) or ()]
        rate = number(keys.get("lr"))
        pair = [number(one.value) for one in members_of(keys.get("betas")) or ()]
        fits = len(pair) == 2 and all(beta is not None and 0 <= beta < 1 for beta in pair)
        betas = (float(pair[0] or 0), float(pair[1] or 0)) if fits else _BETAS
        group = Group(None if rate is None or abs(rate) > 1e300 else float(rate), betas)
        for position, key in enumerate(numbers):
            named = names[position] if len(names) == len(numbers) else None
            yield str(key), group, str(named) if named else None
