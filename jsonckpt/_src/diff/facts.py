"""What :func:`jsonckpt.diff` gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import counted, printable
from ..shown import ShortRepr

#: ``"value"``: of a plain value. ``"data"``: the elements of a tensor. The others are of tensors.
Kind = Literal[
    "added", "removed", "type", "value", "data", "dtype", "shape", "strides", "sharing", "device"
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two tensors of one shape are apart: over the elements that are finite in both.

    Attributes:
        norm_before, norm_after: their L2 norms.
        norm: L2 norm of the difference.
        largest: the largest absolute difference.
        cosine: of the angle between them; ``None`` if one is zero.
        changed: elements that are not equal; NaN is equal to NaN.
        count: all elements.
    """

    norm_before: float
    norm_after: float
    norm: float
    largest: float
    cosine: float | None
    changed: int
    count: int

    @property
    def relative(self) -> float | None:
        """The norm of the difference, relative to the norm before."""
        return self.norm / self.norm_before if self.norm_before else None

    def __str__(self) -> str:
        relative = "" if self.relative is None else f" ({100 * self.relative:.3g}%)"
        cosine = "" if self.cosine is None else f", cosine {self.cosine:.6g}"
        return (
            f"norm {self.norm_before:.4g} → {self.norm_after:.4g}, "
            f"difference {self.norm:.4g}{relative}, at most {self.largest:.4g}{cosine}, "
            f"{self.changed:,} of {counted(self.count, 'element')}"
        )


@dataclass(frozen=True, slots=True)
class Change:
    """One difference.

    Attributes:
        name: the place in the state, a JSON Pointer.
        kind: what differs.
        before, after: what was there, in short; ``""`` for nothing.
        tensor: whether it is about a tensor.
        distance: with ``stats=True``, of tensors whose data differs.
    """

    name: str
    kind: Kind
    before: str
    after: str
    tensor: bool = False
    distance: Distance | None = None

    def __str__(self) -> str:
        name = printable(self.name) or "the state"
        if self.kind == "added":
            return f"+ {name}  {printable(self.after)}"
        if self.kind == "removed":
            return f"- {name}  {printable(self.before)}"
        if self.kind == "data":
            distance = "" if self.distance is None else f"  {self.distance}"
            return f"~ {name}  {printable(self.after)}{distance}"
        label = "" if self.kind == "value" else f"{self.kind} "
        return f"~ {name}  {label}{printable(self.before)} → {printable(self.after)}"


@dataclass(frozen=True, repr=False)
class Diff(ShortRepr):
    """The differences of two checkpoints. False in a boolean context when there are none.

    Attributes:
        a, b: their paths.
        changes: in the order of ``b``; what only ``a`` has comes last.
        same: tensors that are the same on both sides.
        read: tensors whose bytes had to be read, because no stored checksums decide.
    """

    a: str
    b: str
    changes: tuple[Change, ...]
    same: int = 0
    read: int = 0

    def __bool__(self) -> bool:
        return bool(self.changes)

    def __str__(self) -> str:
        a, b, same = printable(self.a), printable(self.b), counted(self.same, "tensor")
        if not self.changes:
            return f"{a} and {b}: the same state, {same}"
        count = counted(len(self.changes), "difference")
        lines = [f"{a} → {b}: {count}; {same} the same"]
        return "\n".join([*lines, *map(str, self.changes)])
