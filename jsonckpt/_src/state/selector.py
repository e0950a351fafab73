"""The tensors that ``include=`` and ``exclude=`` select, by their names (section 6.3)."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from ..errors import StateMismatchError, quote

Selector = str | Sequence[str] | Callable[[str], bool]
#: A wrong name is compared with at most this many names. Each takes about 10 µs.
_MOST_COMPARED = 5_000
#: ``("include" or "exclude", pattern)`` of each pattern that selects nothing.
Unmatched = list[tuple[str, str]]


def selector(
    include: Selector | None, exclude: Selector | None
) -> tuple[Callable[[str], bool], Callable[..., Unmatched]]:
    """The meaning of ``include=`` and ``exclude=``, as two functions.

    A selector is a name, a glob (``*``, ``?``, ``[…]``; ``*`` crosses ``/``), a sequence of these,
    or a callable on names. A plain name also selects everything below it. The slash at the start
    of a name is optional.

    Returns:
        ``chosen(name)``, and ``unmatched(names, places=())``: the patterns that match none of
        ``names``, which is nearly always a typing error. A pattern in ``exclude`` may also match
        one of ``places``, which hold no tensor. Callables are not checked.

    >>> chosen, unmatched = selector(["/model/*", "/epoch"], "*.bias")
    >>> chosen("/model/w"), chosen("/model/w.bias"), chosen("/optimizer/0")
    (True, False, False)
    >>> unmatched(["/model/w"])
    [('include', '/epoch'), ('exclude', '*.bias')]
    >>> selector("model/*", None)[0]("/model/w")
    True
    """
    included = _matcher(include) if include is not None else None
    excluded = _matcher(exclude) if exclude is not None else None

    def chosen(name: str) -> bool:
        if included is not None and not included(name):
            return False
        return excluded is None or not excluded(name)

    def unmatched(names: Iterable[str], places: Iterable[str] = ()) -> Unmatched:
        wanted = [("include", pattern) for pattern in _patterns(include)]
        wanted += [("exclude", pattern) for pattern in _patterns(exclude)]
        known = set(names) if wanted else set()
        beside = list(places) if wanted else []
        return [
            (argument, pattern)
            for argument, pattern in wanted
            # Looked up first: there may be as many patterns as names.
            if not (pattern in known or f"/{pattern}" in known)
            and not any(map(_matcher(pattern), known))
            and not (argument == "exclude" and any(map(_matcher(pattern), beside)))
        ]

    return chosen, unmatched


def refuse_unmatched(unmatched: Unmatched, names: Iterable[str], *, option: str = "") -> None:
    """Refuse patterns that select nothing, and suggest names.

    Args:
        unmatched: from :func:`selector`.
        names: all names.
        option: the prefix of the argument's name on a command line.

    Raises:
        StateMismatchError: there is such a pattern.
    """
    if not unmatched:
        return
    argument, pattern = unmatched[0]
    raise StateMismatchError(
        f"{option}{argument} {quote(pattern, 200)} selects no tensor",
        missing=[pattern for _, pattern in unmatched],
        hint=near_names(pattern, names),
    )


def near_names(wanted: str, names: Iterable[str]) -> str:
    """A hint for a name that does not exist: the names near it, of tensors and of what holds them.

    >>> near_names("wiehgt", ["/weight", "/bias"])
    "Did you mean '/weight'?"
    """
    known = list(islice(names, _MOST_COMPARED))
    above = {name[:end]: None for name in known for end in _container_ends(name)}
    candidates = list(dict.fromkeys([*above, *known]))[:_MOST_COMPARED]
    start = wanted if wanted.startswith("/") else f"/{wanted}"
    near = difflib.get_close_matches(start.rstrip("*").rstrip("/") or "/", candidates, 3, 0.6)
    if near:
        return f"Did you mean {' or '.join(quote(name) for name in near)}?"
    if not known:
        return "There are no tensors."
    shown = ", ".join(map(quote, known[:3])) + (", …" if len(known) > 3 else "")
    return (
        f"There {'is' if len(known) == 1 else 'are'} {shown}; a name is the path of keys to a "
        "tensor, /model/layer.weight for example."
    )


def _container_ends(name: str) -> Iterator[int]:
    """Where, in a tensor's name, the names of its containers end."""
    return (match.start() for match in re.finditer("(?<=.)/", name, re.DOTALL))


def _patterns(select: Selector | None) -> list[str]:
    if select is None or callable(select):
        return []
    return [select] if isinstance(select, str) else list(select)


def _is_glob(pattern: str) -> bool:
    return any(character in pattern for character in "*?[")


def _matcher(select: Selector) -> Callable[[str], bool]:
    if callable(select):
        return select
    # Most names begin with a slash. Exceptions are the empty name of a state that is one tensor,
    # and the records of shared memory in a lone shard.
    patterns = _patterns(select)
    patterns += [f"/{pattern}" for pattern in patterns if pattern and pattern[0] != "/"]
    exact = set(patterns)
    below = tuple(f"{p.removesuffix('/')}/" for p in patterns if not _is_glob(p))
    globs = [re.compile(fnmatch.translate(p)).match for p in patterns if _is_glob(p)]

    def matches(name: str) -> bool:
        return (
            name in exact
            or (bool(below) and name.startswith(below))
            or any(glob(name) is not None for glob in globs)
        )

    return matches
