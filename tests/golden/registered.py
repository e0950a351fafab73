"""A golden state of types that a user registered."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import jsonckpt
from tests.golden.elements import floats


class Color(enum.Enum):
    """A registered enum."""

    RED = 1
    GREEN = 2


@dataclass
class Config:
    """A registered dataclass."""

    lr: float
    layers: tuple[int, ...]
    weight: Any = None


class Point(NamedTuple):
    """A registered namedtuple."""

    x: float
    y: float


jsonckpt.register(Color, "golden.Color")
jsonckpt.register(Config, "golden.Config")
jsonckpt.register(Point, "golden.Point")


def registered() -> dict[str, Any]:
    """Types of the user's own."""
    return {
        "colors": [Color.RED, Color.GREEN],
        "config": Config(0.5, (1, 2), floats(2)),
        "point": Point(1.0, -0.0),
    }
