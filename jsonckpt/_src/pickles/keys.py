"""Bounds the time that the keys and arguments of a pickle take.

Few bytes of a pickle can use a large value again and again. Each use takes time, and a copy takes
memory, too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Sequence, Sized
from itertools import chain
from typing import Any, Final

import numpy as np
import torch

from ..errors import FormatError
from .values import unfit

#: Python takes the hash of a number modulo this. Larger keys could all have one hash.
_MODULUS: Final = (1 << 61) - 1
#: Python hashes nested tuples and compares nested sets without a limit of its own.
_KEY_DEPTH: Final = 32
_KEY_PARTS: Final = 100
_MOST_WITH_ONE_HASH: Final = 1_000
_SIZED: Final = frozenset(
    {str, bytes, bytearray, tuple, list, set, frozenset, dict, deque}
    | {OrderedDict, defaultdict, Counter}
)
_TEXTS: Final = frozenset({str, bytes, bytearray})


def key(value: Any) -> Any:
    """The value, if it may be a key: its hash takes little time.

    Raises:
        FormatError: it may not.
    """
    if type(value) is str or (type(value) is int and -_MODULUS < value < _MODULUS):
        return value  # by far the most frequent keys
    level, left = [value], _KEY_PARTS
    for _ in range(_KEY_DEPTH + 1):
        below: list[Any] = []
        for part in level:
            if type(part) in (tuple, frozenset):
                left -= len(part)
                if left < 0:
                    raise unfit(f"a key of more than {_KEY_PARTS} parts")
                below += part
            elif type(part) in (int, float) and _MODULUS <= abs(part) != float("inf"):
                raise unfit("a number as a key that is too large for one")
        if not below:
            return value
        level = below
    raise unfit("a key that is nested too deeply")


def keys(values: Iterable[Any]) -> list[Any]:
    """Values that become the keys of one dictionary or the elements of one set.

    Raises:
        FormatError: one may not be a key, or too many have one hash.
    """
    found = [key(value) for value in values]
    if len(found) > _MOST_WITH_ONE_HASH:
        _check_hashes(found)
    return found


def check_growth(container: Iterable[Any], before: int, after: int) -> None:
    """Check the hashes of a container, each time that its size has doubled.

    Raises:
        FormatError: too many have one hash.
    """
    if after > _MOST_WITH_ONE_HASH and before.bit_length() != after.bit_length():
        _check_hashes(container)


def _check_hashes(values: Iterable[Any]) -> None:
    if max(Counter(map(hash, values)).values(), default=0) > _MOST_WITH_ONE_HASH:
        raise FormatError(
            f"a damaged pickle: more than {_MOST_WITH_ONE_HASH} keys have the same hash",
            hint="They were chosen to make a program hang; do not trust this file.",
        )


def dictionary(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """A dictionary of checked keys."""
    items = [(name, value) for name, value in pairs]
    keys(name for name, _ in items)
    return dict(items)


def weight(values: Sequence[Any]) -> int:
    """About how many bytes a copy of these arguments takes."""
    inner = [value for value in values if type(value) is tuple]
    return len(values) + sum(map(_weight, chain(values, *inner)))


def _weight(value: Any) -> int:
    if type(value) in _SIZED:
        sized: Sized = value
        return len(sized) if type(value) in _TEXTS else 8 * len(sized)
    if type(value) is int:
        return value.bit_length() ** 2 >> 14  # such is the time of a greatest common divisor
    if isinstance(value, np.ndarray):
        return value.nbytes
    if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
        return min(value.numel() * value.itemsize, value.untyped_storage().nbytes())
    return 0
