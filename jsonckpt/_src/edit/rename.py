"""``rename``: other keys for the dictionaries of a state, and with them other names of tensors."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from ..errors import ArgumentError, StateMismatchError, counted, printable, quote
from ..format.json_text import Json
from ..format.limits import Limits
from ..inspect.plain_values import contents
from ..load.options import ReadOptions
from ..state.references import has_references, references_in
from .places import Rebuild, is_dictionary, places_in, value_at, with_records
from .records import Opened, StoredRecord
from .write import Draft, WriteOptions, check_out, local, unique_names, write_draft

_MOST_LISTED = 20


@dataclass(frozen=True, repr=False)
class RenameResult:
    """What :func:`rename` did.

    Attributes:
        path: of the new checkpoint.
        renamed: ``(old, new)`` for each tensor with another name.
        written: false for a dry run.
    """

    path: str
    renamed: tuple[tuple[str, str], ...]
    written: bool

    def __repr__(self) -> str:
        return f"<RenameResult {self.path!r}: {counted(len(self.renamed), 'tensor')} renamed>"

    def __str__(self) -> str:
        lines = [f"{printable(old)} -> {printable(new)}" for old, new in self.renamed]
        if self.written and len(lines) > _MOST_LISTED:
            lines[_MOST_LISTED:] = [f"… and {len(lines) - _MOST_LISTED} more"]
        done = "renamed" if self.written else "to rename; dry run: nothing was written"
        lines.append(f"{printable(self.path)}: {counted(len(self.renamed), 'tensor')} {done}")
        return "\n".join(lines)


def rename(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    strip_prefix: str | None = None,
    add_prefix: str | None = None,
    replace: tuple[str, str] | None = None,
    regex: bool = False,
    at: str = "",
    dry_run: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    limits: Limits | None = None,
    sync: bool = True,
) -> RenameResult:
    """Give the keys of dictionaries that hold tensors other names, and the tensors with them.

    Each key is taken by itself: a pattern cannot reach over two levels of the state. Keys that hold
    no tensor stay, and so do integers. The payloads are copied undecoded.

    Args:
        path: of the checkpoint.
        out: the new checkpoint; ``None`` replaces the one at ``path``.
        strip_prefix: remove this beginning of keys: ``"module."``.
        add_prefix: add this beginning to the keys of one dictionary: the one at ``at``, or the only
            one that holds tensors directly.
        replace: ``(pattern, replacement)``: replace each occurrence in a key.
        regex: the pattern is a regular expression, and the replacement may use groups.
        at: change only what is below this place: ``"/model"``.
        dry_run: only say what would change.
        overwrite: replace a checkpoint at ``out``.
        threads, limits, sync: as for :func:`jsonckpt.save` and :func:`jsonckpt.load`.

    Raises:
        StateMismatchError: two keys of one dictionary would become one, or nothing matches.
        ArgumentError: not exactly one of the three ways is asked for.
        JsonckptError: the checkpoint cannot be read or written; nothing was changed.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"model": {"module.w": torch.ones(2)}}, directory + "/c.json")
    ...     print(jsonckpt.edit.rename(directory + "/c.json", strip_prefix="module.").renamed)
    ...     jsonckpt.load(directory + "/c.json")
    (('/model/module.w', '/model/w'),)
    {'model': {'w': tensor([1., 1.])}}
    """
    change = _change(strip_prefix, add_prefix, replace, regex=regex)
    text = local(path, "path") if out is None else os.fspath(path)
    target = text if out is None else local(out, "out")
    options = WriteOptions(overwrite=overwrite or out is None, threads=threads, sync=sync)
    if not dry_run:
        check_out(target, options)
    with ExitStack() as stack:
        opened = Opened(text, ReadOptions.of(limits=limits), stack)
        with opened.container.errors():
            manifest = opened.manifest
            state = opened.state
            list(references_in(state))  # refuses a malformed one
            below = _below(state, at, add_prefix)
            rebuild = Rebuild(_renamer(change, below, direct=add_prefix is not None))
            made = rebuild.state(state)
            names = {old: new for old, new in rebuild.names.items() if old != new}
            if not names:
                raise _nothing(state, strip_prefix, replace)
            new_names = rebuild.names
            records = [
                StoredRecord(opened, entry, new_names.get(entry.name, entry.name), entry.layout)
                for entry in opened.records
            ]
            unique_names([(record.name, record.entry.name) for record in records])
            result = RenameResult(target, tuple(names.items()), not dry_run)
            if dry_run:
                return result
            draft = Draft(
                inputs=[opened],
                state=with_records(made, lambda name: new_names.get(name, name)),
                metadata=manifest.metadata,
                records=records,
                plans={},
                created_at=manifest.created_at,
            )
            write_draft(draft, target, options)
    return result


def _change(
    strip_prefix: str | None,
    add_prefix: str | None,
    replace: tuple[str, str] | None,
    *,
    regex: bool,
) -> Callable[[str], str]:
    """The new text of a key."""
    asked = [way for way in (strip_prefix, add_prefix, replace) if way is not None]
    if len(asked) != 1 or not asked[0] or (replace is not None and not replace[0]):
        raise ArgumentError(
            "rename takes exactly one of strip_prefix, add_prefix and a pattern with its "
            "replacement",
            hint="jsonckpt rename PATH --strip-prefix module., for example.",
        )
    if strip_prefix is not None:
        return lambda key: key.removeprefix(strip_prefix)
    if add_prefix is not None:
        return lambda key: add_prefix + key
    assert replace is not None
    pattern, new = replace
    if not regex:
        return lambda key: key.replace(pattern, new)
    try:
        compiled = re.compile(pattern)
        compiled.sub(new, "")
    except (re.error, IndexError) as error:
        raise ArgumentError(
            f"{quote(pattern)} with {quote(new)} is no regular expression: {error}"
        ) from error
    return lambda key: compiled.sub(new, key)


def _renamer(
    change: Callable[[str], str], below: str, *, direct: bool
) -> Callable[[Json, Json, str], Json]:
    """The rule for a key of a dictionary.

    Args:
        direct: only the keys of the dictionary at ``below`` itself.
    """

    def renamed(key: Json, value: Json, path: str) -> Json:
        above = path.rpartition("/")[0]
        inside = above == below if direct else path.startswith(f"{below}/")
        if type(key) is not str or not inside or not has_references(value):
            return key
        return change(key)

    return renamed


def _below(state: Json, at: str, add_prefix: str | None) -> str:
    """The place whose keys are changed."""
    at = f"/{at}" if at and at[:1] != "/" else at
    if at:
        if not is_dictionary(value_at(state, at)) and add_prefix is not None:
            raise ArgumentError(f"at={quote(at)} is no dictionary, and only these have keys")
        return at
    if add_prefix is None:
        return ""
    found = list(_holders(state, ""))
    if len(found) != 1:
        listed = ", ".join(map(quote, found[:5])) + (", …" if len(found) > 5 else "")
        raise ArgumentError(
            f"{counted(len(found), 'dictionary', 'dictionaries')} hold tensors: {listed}",
            hint="Say which one gets the prefix: --at /model (in Python: at='/model').",
        )
    return found[0]


def _holders(value: Json, path: str) -> list[str]:
    """The dictionaries that hold tensors as their own values."""
    places = list(places_in(value, path))
    own = is_dictionary(value) and any(
        contents(place.value) is None and has_references(place.value) for place in places
    )
    found = [path] if own else []
    for place in places:
        found += _holders(place.value, place.path)
    return found


def _nothing(
    state: Json, strip_prefix: str | None, replace: tuple[str, str] | None
) -> StateMismatchError:
    names = [reference.name for reference in references_in(state)][:3]
    if strip_prefix is not None:
        what = f"no key of a tensor begins with {quote(strip_prefix)}"
    else:
        what = f"no key of a tensor has {quote(replace[0] if replace else '')}"
    shown = ", ".join(map(quote, names))
    return StateMismatchError(
        what,
        hint=f"Nothing was written. There are {shown}, …" if shown else "There are no tensors.",
    )
