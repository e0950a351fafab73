"""Why the names of a checkpoint and a target differ: a prefix, another place, a spelling.

What is said here was tried: names and shapes are compared again after the change, and counted.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

import torch

from ..errors import StateMismatchError, quote
from ..format.pointer import join
from .names import WRAPPERS, Prefixes
from .placeholders import Placeholder
from .plan import Plan

_Path = tuple[Any, ...]
#: How deep, and how many, state dicts are looked for on each side.
_DEPTH: Final = 3
_MOST_PARTS: Final = 16
#: Names of each side from which prefixes are guessed, and guesses that are tried.
_SAMPLE: Final = 32
_TRIED: Final = 4
#: Names that a spelling is compared with. Each takes about 10 µs.
_MOST_COMPARED: Final = 2_000
_SHOWN: Final = 3


@dataclass(frozen=True)
class _Fit:
    """How a state dict of the checkpoint fits one of the target, after a change.

    Attributes:
        path: of the checkpoint's state dict.
        prefixes: that are stripped.
        fitting: tensors of the target for which the checkpoint has one of the same shape.
        missing, unexpected: names that still differ.
    """

    path: _Path
    prefixes: tuple[str, ...]
    fitting: int
    missing: list[str]
    unexpected: list[str]


def why_names_differ(value: Any, target: Any, plan: Plan) -> str:
    """What explains names that differ, in sentences; empty if nothing was found.

    Args:
        value: the state of the checkpoint, with placeholders.
    """
    saved = list(islice(_parts(value, ()), _MOST_PARTS))
    loaders = {one.pointer for one in plan.own_loaders}
    said = []
    for path, own in islice(_parts(target, ()), _MOST_PARTS):
        pointer = _pointer(path)
        # An object with its own loader says itself what it lacks.
        differs = pointer in loaders or any(n.startswith(f"{pointer}/") for n in plan.missing)
        best = _best(saved, path, own, plan.prefixes.given) if differs else None
        if best is not None:
            said.append(_sentence(best, path, target, own, saved))
    if said:
        return " ".join(dict.fromkeys(said))
    return _moved_optimizer(value, target) or _nearest(plan)


def _parts(value: Any, path: _Path) -> Iterator[tuple[_Path, dict[str, Any]]]:
    """The state dicts in a value: their paths, and their tensors by name."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    pairs = value.items() if isinstance(value, Mapping) else ()
    tensors = {
        key: item
        for key, item in pairs
        if isinstance(key, str) and isinstance(item, (torch.Tensor, Placeholder))
    }
    if tensors:
        yield path, tensors
    if isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    if len(path) < _DEPTH:
        for key, item in pairs:
            if isinstance(item, (Mapping, list, tuple, torch.nn.Module)):
                yield from _parts(item, (*path, key))


def _best(
    saved: list[tuple[_Path, dict[str, Any]]],
    path: _Path,
    own: Mapping[str, Any],
    given: tuple[str, ...],
) -> _Fit | None:
    """The change after which most tensors fit: at least half, and more than now."""
    now = next((_fit(path, items, own, given) for place, items in saved if place == path), None)
    best = now
    for place, items in sorted(saved, key=lambda part: part[0] != path):
        for prefixes in _guesses(items.keys(), own.keys()):
            if place == path and not prefixes:
                continue
            fit = _fit(place, items, own, prefixes)
            if fit is not None and fit.fitting > (best.fitting if best else 0):
                best = fit
    return best if best is not now and best and 2 * best.fitting >= len(own) else None


def _fit(
    path: _Path, items: Mapping[str, Any], own: Mapping[str, Any], prefixes: tuple[str, ...]
) -> _Fit | None:
    """What would fit; ``None`` if the prefixes cannot be stripped."""
    try:
        found = Prefixes(prefixes).align(items, own, "")
    except StateMismatchError:
        return None
    missing = [name for name, tensor in own.items() if not _alike(found.get(name), tensor)]
    unexpected = [name for name in found if name not in own]
    return _Fit(path, prefixes, len(own) - len(missing), missing, unexpected)


def _alike(item: Any, tensor: Any) -> bool:
    return item is not None and tuple(item.shape) == tuple(tensor.shape)


def _guesses(theirs: Iterable[str], own: Iterable[str]) -> Iterator[tuple[str, ...]]:
    """Prefixes after which the names of both sides may be the same; the simplest first."""
    theirs, own = list(theirs), list(own)
    yield ()
    present = [
        f"{part}."
        for part in WRAPPERS
        if any(name.startswith(f"{part}.") or f".{part}." in name for name in (*theirs, *own))
    ]
    chain = _common_beginning(theirs) or _common_beginning(own)
    wrapped = [(chain,)] if set(chain.split(".")[:-1]) == {part[:-1] for part in present} else []
    wrapped += [(part,) for part in present]
    if len(present) > 1:
        wrapped.append(tuple(present))
    yield from wrapped
    strip = Prefixes(present).strip
    saved, mine = [strip(name) for name in theirs], [strip(name) for name in own]
    counts: Counter[str] = Counter()
    for names, others in ((saved, set(mine)), (mine, set(saved))):
        for name in names[:: len(names) // _SAMPLE + 1]:
            parts = name.split(".")
            for cut in range(1, len(parts)):
                if ".".join(parts[cut:]) in others:
                    counts[".".join(parts[:cut]) + "."] += 1
    found = [prefix for prefix, _ in counts.most_common(_TRIED)]
    both = [_common_beginning(names) for names in (saved, mine)]
    for some in [*((prefix,) for prefix in found), tuple(filter(None, both))]:
        if some:
            yield some
            if present:
                yield (*some, *present)


def _common_beginning(names: list[str]) -> str:
    """The whole parts with which all names begin.

    >>> _common_beginning(["module.fc.weight", "module.fc.bias", "module.n"])
    'module.'
    """
    if not names:
        return ""
    low, high = min(names).split(".")[:-1], max(names).split(".")[:-1]
    count = next((i for i, (a, b) in enumerate(zip(low, high)) if a != b), min(len(low), len(high)))
    return "".join(f"{part}." for part in low[:count])


def _sentence(
    fit: _Fit,
    path: _Path,
    target: Any,
    own: Mapping[str, Any],
    saved: list[tuple[_Path, dict[str, Any]]],
) -> str:
    shown = _expression(path, target)
    strip = str(Prefixes(fit.prefixes)) if fit.prefixes else ""
    count = f"{fit.fitting} of {len(own)}"
    if fit.path == path:
        where = f" of {shown}" if path else ""
        names = " and ".join(quote(prefix) for prefix in fit.prefixes)
        if fit.missing or fit.unexpected:
            text = f"{count} tensors{where} fit without the prefix {names}: pass {strip}"
        else:
            text = f"All names{where} differ by the prefix {names}: pass {strip}"
    else:
        if fit.path:
            below = f"below {quote(_pointer(fit.path))}"
            given = shown
            for key in reversed(fit.path):
                given = f"{{{key!r}: {given}}}"
        else:
            below, given = "at its top", shown
        which = "these names" if not path else f"the names of {shown}"
        if fit.missing:
            which = f"{count} of {which}" if not path else f"{count} tensors of {shown}"
        text = f"The checkpoint has {which} {below}: pass {given} as the target"
        if strip:
            text += f", and {strip}"
        if any(place[: len(fit.path)] != fit.path for place, _ in saved):
            text += f", and include={_pointer(fit.path)!r}"
    for label, found in (("missing", fit.missing), ("unexpected", fit.unexpected)):
        if found:
            more = ", …" if len(found) > _SHOWN else ""
            text += f"; still {label}: {', '.join(map(quote, found[:_SHOWN]))}{more}"
    return f"{text}."


def _expression(path: _Path, target: Any) -> str:
    """A part of the target, as the caller may write it."""
    root = "model" if isinstance(target, torch.nn.Module) else "target"
    root = "optimizer" if isinstance(target, torch.optim.Optimizer) else root
    return root + "".join(f"[{key!r}]" for key in path)


def _pointer(path: _Path) -> str:
    pointer = ""
    for key in path:
        pointer = join(pointer, str(key))
    return pointer


def _moved_optimizer(value: Any, target: Any) -> str:
    """For an optimizer alone: where the checkpoint has states of optimizers."""
    if not isinstance(target, torch.optim.Optimizer) or not isinstance(value, Mapping):
        return ""
    found = [
        key
        for key, item in value.items()
        if isinstance(item, Mapping) and {"state", "param_groups"} <= item.keys()
    ]
    if len(found) != 1:
        return ""
    return (
        f"The checkpoint has the state of one optimizer, below {quote(_pointer((found[0],)))}: "
        f"pass {{{found[0]!r}: optimizer}} as the target."
    )


def _nearest(plan: Plan) -> str:
    """For names that nothing explains: the nearest name of the same shape."""
    pairs = []
    for name, tensor in islice(plan.missing.items(), _SHOWN):
        if tensor is None:
            continue
        same = (other for other, item in plan.unexpected.items() if _alike(item, tensor))
        near = difflib.get_close_matches(name, list(islice(same, _MOST_COMPARED)), 1)
        pairs += [f"{quote(near[0])} for {quote(name)}"] if near else []
    return f"The nearest names in the checkpoint: {', '.join(pairs)}." if pairs else ""
