"""Why the names of a checkpoint and a target differ: a prefix, another place, a spelling.

What is said here was tried: names and shapes are compared again after the change, and counted.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import torch
from torch.nn.parameter import is_lazy

from ..errors import StateMismatchError, listed, quote
from ..format.pointer import join
from .aliases import with_tied_names
from .names import WRAPPERS, Prefixes
from .pairing import parameter_names
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
_CONTAINERS: Final = (Mapping, list, tuple, torch.nn.Module, torch.optim.Optimizer)
#: Stands for the tensors of an optimizer, whose shapes do not count.
_NAMED: Final = torch.empty(0)


@dataclass(frozen=True)
class _Part:
    """A state dict of one side: its path, and its tensors by name."""

    path: _Path
    tensors: Mapping[str, Any]


@dataclass(frozen=True)
class _Fit:
    """How a state dict of the checkpoint fits one of the target, after a change.

    Attributes:
        saved, own: the state dicts.
        prefixes: that are stripped.
        found: names of the checkpoint's tensors that have the shapes of the target's.
        count: tensors of the target that have one.
        rest: names that still differ.
        others: other changes after which as many tensors fit.
    """

    saved: _Part
    own: _Part
    prefixes: tuple[str, ...]
    found: frozenset[str]
    count: int
    rest: tuple[str, ...]
    others: tuple[_Fit, ...] = ()

    @property
    def is_here(self) -> bool:
        """Whether both are in the same place."""
        return self.saved.path == self.own.path


def why_names_differ(value: Any, target: Any, plan: Plan) -> str:
    """What explains names that differ, in sentences; empty if nothing was found.

    Args:
        value: the state of the checkpoint, with placeholders.
    """
    saved = list(islice(_parts(value, ()), _MOST_PARTS))
    loaders = {one.pointer for one in plan.own_loaders}
    given = plan.prefixes.given
    fits = []
    for own in islice(_parts(target, ()), _MOST_PARTS):
        pointer = _pointer(own.path)
        # An object with its own loader says itself what it lacks.
        if pointer in loaders or any(name.startswith(f"{pointer}/") for name in plan.missing):
            fits.append(_best(saved, own, given))
    here = [fit for fit in fits if fit is not None and fit.is_here]
    moved = [fit for fit in fits if fit is not None and not fit.is_here]
    said = [_moved(fit, target, plan.unexpected) for fit in moved]
    # One call has one strip_prefix.
    together = tuple(dict.fromkeys((*given, *(prefix for fit in here for prefix in fit.prefixes))))
    again = [_fit(fit.saved, fit.own, together) for fit in here]
    if all(one is not None and one.count >= fit.count for one, fit in zip(again, here)):
        said += [_prefixed(here, together, target)] if here else []
    else:
        said += [_prefixed([fit], fit.prefixes, target) for fit in here]
    return " ".join(said) or _moved_optimizer(value, target) or _nearest(plan)


def _parts(value: Any, path: _Path) -> Iterator[_Part]:
    """The state dicts in a value, and the named parameters of optimizers."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if isinstance(value, torch.optim.Optimizer):
        value = {"param_groups": value.param_groups}
    pairs: Any = value.items() if isinstance(value, Mapping) else ()
    tensors = {
        key: item
        for key, item in pairs
        if isinstance(key, str) and isinstance(item, (torch.Tensor, Placeholder))
    }
    if tensors:
        yield _Part(path, tensors)
    if isinstance(value, Mapping) and isinstance(value.get("param_groups"), list):
        names = parameter_names(value["param_groups"])
        if names:
            yield _Part((*path, "state"), dict.fromkeys(names, _NAMED))
        return
    if isinstance(value, (list, tuple)):
        pairs = enumerate(value)
    if len(path) < _DEPTH:
        for key, item in pairs:
            if isinstance(item, _CONTAINERS):
                yield from _parts(item, (*path, key))


def _best(saved: list[_Part], own: _Part, given: tuple[str, ...]) -> _Fit | None:
    """The simplest change after which most tensors fit, and the others that do as much.

    More must fit than now: at least half, and all if the checkpoint has many more.
    """
    now = next((_fit(part, own, given) for part in saved if part.path == own.path), None)
    most = now.count if now is not None else 0
    best: list[_Fit] = []
    for part in sorted(saved, key=lambda part: part.path != own.path):
        if 2 * len(part.tensors) < len(own.tensors):
            continue
        for prefixes in _guesses(part.tensors.keys(), own.tensors.keys()):
            fit = _fit(part, own, prefixes)
            if fit is None or fit.count < most or (fit.count == most and not best):
                continue
            if fit.count > most:
                most, best = fit.count, []
            best.append(fit)
            if not fit.rest:
                break
    if not best:
        return None
    first, size = best[0], len(own.tensors)
    if 2 * most < size or (most < size and 2 * most < len(first.saved.tensors)):
        return None
    others: dict[object, _Fit] = {}
    for fit in best:
        alike = fit.is_here == first.is_here and len(fit.prefixes) == len(first.prefixes)
        if alike and (fit.saved.path, fit.found) != (first.saved.path, first.found):
            others.setdefault((fit.saved.path, fit.found), fit)
    return replace(first, others=tuple(others.values()))


def _fit(saved: _Part, own: _Part, prefixes: tuple[str, ...]) -> _Fit | None:
    """What would fit; ``None`` if the prefixes cannot be stripped."""
    try:
        aligned = Prefixes(prefixes).align(saved.tensors, own.tensors, "")
    except StateMismatchError:
        return None
    full = with_tied_names(aligned, own.tensors)
    fitting = {name for name, tensor in own.tensors.items() if _alike(full.get(name), tensor)}
    if not fitting:
        return None
    names = list(zip(saved.tensors, aligned))
    rest = [join(_pointer(own.path), name) for name in own.tensors if name not in fitting]
    rest += [join(_pointer(saved.path), name) for name, new in names if new not in own.tensors]
    found = frozenset(name for name, new in names if new in fitting)
    return _Fit(saved, own, prefixes, found, len(fitting), tuple(rest))


def _alike(item: Any, tensor: Any) -> bool:
    return item is not None and (_has_none(tensor) or tuple(item.shape) == tuple(tensor.shape))


def _has_none(tensor: Any) -> bool:
    """Whether it has no shape to compare: it takes one when it is loaded, or has several."""
    return isinstance(tensor, torch.Tensor) and (is_lazy(tensor) or tensor.is_nested)


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
    wrapped: list[tuple[str, ...]] = (
        [(chain,)] if set(chain.split(".")[:-1]) == {part[:-1] for part in present} else []
    )
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


def _prefixed(fits: list[_Fit], prefixes: tuple[str, ...], target: Any) -> str:
    """The sentence for names that differ by prefixes only."""
    causes = []
    for fit in fits:
        where = f" of {_expression(fit.own.path, target)}" if fit.own.path else ""
        shown = " and ".join(quote(prefix) for prefix in fit.prefixes)
        if fit.rest:
            causes.append(f"{_count(fit)} tensors{where} fit without the prefix {shown}")
        elif any(_all_begin(part.tensors, fit.prefixes) for part in (fit.saved, fit.own)):
            causes.append(f"all names{where} differ by the prefix {shown}")
        else:
            causes.append(f"all names{where} are the same without {shown}")
    text = f"{'; '.join(causes)}: pass {Prefixes(prefixes)}{_rest(fits)}."
    for other in (other for fit in fits for other in fit.others):
        text += f" As many fit with {Prefixes(other.prefixes)}: the names do not tell which."
    return text[0].upper() + text[1:]


def _all_begin(names: Iterable[str], prefixes: tuple[str, ...]) -> bool:
    return all(name.startswith(prefixes) for name in names)


def _moved(fit: _Fit, target: Any, unexpected: Iterable[str]) -> str:
    """The sentence for names that are in another place."""
    shown = _expression(fit.own.path, target)
    place = fit.saved.path
    pointer = _pointer(place)
    others = bool(fit.own.path) and len(target) > 1
    given = f"{shown}, ..." if others else shown
    for key in reversed(place):
        given = f"{{{key!r}: {given}}}"
    which = f"the names of {shown}" if fit.own.path else "these names"
    if fit.count < len(fit.own.tensors):
        which = f"{_count(fit)} of {which}"
    text = f"The checkpoint has {which} {f'below {quote(pointer)}' if place else 'at its top'}: "
    text += f"pass {given if place else shown} as the target"
    if fit.prefixes:
        text += f", and {Prefixes(fit.prefixes)}"
    if place and not others and any(not n.startswith(f"{pointer}/") for n in unexpected):
        text += f", and include={pointer!r}"
    text = f"{text}{_rest([fit])}."
    if fit.others:
        where = " and ".join(quote(_pointer(other.saved.path) or "/") for other in fit.others)
        text += f" It has them below {where}, too: the names do not tell which."
    return text


def _count(fit: _Fit) -> str:
    count, every = fit.count, len(fit.own.tensors)
    return f"all {count}" if count == every else f"{count} of {every}"


def _rest(fits: list[_Fit]) -> str:
    """What still differs, and what to do with it."""
    names = [name for fit in fits for name in fit.rest]
    shown = listed(names, _SHOWN)
    return f"; what still differs may be left out with exclude=: {shown}" if names else ""


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
