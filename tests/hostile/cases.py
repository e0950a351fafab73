"""Bad inputs with names, and what every reader must say of each."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from tests.hostile.child import RESCUE
from tests.hostile.forge import Forgery, good
from tests.hostile.runner import Child, Outcome
from tests.readers import READERS, readers_for

__all__ = ["Case", "Cases", "check", "refused"]

Edit = Callable[[Forgery], Any]
Errors = type[jsonckpt.JsonckptError] | tuple[type[jsonckpt.JsonckptError], ...]

#: Processor seconds that no bad input may take. The slowest, 80 MB of text to be read in each of
#: two shards, take half a second, and 1.3 s on a host at its slowest; what hangs takes minutes.
MOST_SECONDS = 5.0
#: Bytes of resident memory that no bad input may take.
MOST_GROWTH = 64 << 20
#: Characters that a message has for each problem, beside the file's path.
MOST_CHARACTERS = 320

FORMS = ("directory", "single", "zst", "directory_zst")
PLAIN = ("directory", "single")


@dataclass(frozen=True)
class Case:
    """One bad input.

    Attributes:
        name: of the test.
        edit: makes a good forgery bad.
        expects: the errors that a load may raise.
        says: a regular expression that the message must hold.
        forms: the kinds of checkpoint that it can be written as.
        limits: arguments of :class:`jsonckpt.Limits` to load with.
        growth: bytes of memory that it may take.
        doors: ways in that do not come across it.
    """

    name: str
    edit: Edit
    expects: Errors
    says: str
    forms: tuple[str, ...]
    limits: dict[str, Any] | None
    growth: int
    blind: tuple[str, ...]


class Cases:
    """The bad inputs of one module, gathered by decorators."""

    def __init__(self) -> None:
        self._cases: dict[str, Case] = {}

    def add(
        self,
        expects: Errors,
        says: str,
        *,
        forms: tuple[str, ...] = PLAIN,
        limits: dict[str, Any] | None = None,
        growth: int = MOST_GROWTH,
        blind: tuple[str, ...] = (),
        name: str = "",
    ) -> Callable[[Edit], Edit]:
        """A decorator for a function that makes a good forgery bad."""

        def keep(edit: Edit) -> Edit:
            called = name or edit.__name__
            assert called not in self._cases, f"{called} stands twice"
            self._cases[called] = Case(called, edit, expects, says, forms, limits, growth, blind)
            return edit

        return keep

    def __iter__(self) -> Iterator[Case]:
        return iter(self._cases.values())

    def parameters(self) -> pytest.MarkDecorator:
        """For the test of a module: each case in each of its forms."""
        return pytest.mark.parametrize(
            ("case", "form"),
            [
                pytest.param(case, form, id=f"{case.name}-{form}")
                for case in self
                for form in case.forms
            ],
        )


def write(forgery: Forgery, form: str, directory: Path) -> Path:
    """A forgery in one of :data:`FORMS`."""
    if form.startswith("directory"):
        return forgery.write_directory(directory / "run", compressed=form.endswith("zst"))
    return forgery.write_single(directory / ("run.json" if form == "single" else "run.json.zst"))


def doors_of(path: Path) -> tuple[str, ...]:
    """The ways in that a path has; the first ones are the readers."""
    return (*readers_for(path), "stream", "verify", "open", "load_into")


def check(case: Case, form: str, child: Child, directory: Path) -> None:
    """Write a bad input and try every door."""
    forgery = good()
    changed = case.edit(forgery)
    path = write(forgery if changed is None else changed, form, directory)
    refused(
        child, path, case.expects, case.says,
        limits=case.limits, growth=case.growth, blind=case.blind,
    )  # fmt: skip


def refused(
    child: Child,
    path: Path,
    expects: Errors,
    says: str,
    *,
    limits: dict[str, Any] | None = None,
    growth: int = MOST_GROWTH,
    blind: tuple[str, ...] = (),
    rescue: bool = True,
) -> None:
    """Every door refuses what lies at ``path``, and the readers say why.

    Args:
        blind: ways in that do not come across what is wrong.
        rescue: whether what looks for the rest of it must end, too, soon and with nothing done.
    """
    expected = expects if isinstance(expects, tuple) else (expects,)
    names = {kind.__name__ for kind in expected}
    for door in doors_of(path):
        if door in blind:
            continue
        outcome = child.ask(path, door, limits)
        assert outcome.error, f"{door} loads it: {outcome.value[:200]}"
        assert "JsonckptError" in outcome.error, f"{door}: {outcome.error[0]}: {outcome.message}"
        assert_modest(outcome, door, path, growth)
        if door in READERS:
            assert names & set(outcome.error), f"{door}: {outcome.error[0]}: {outcome.message}"
            assert re.search(says, outcome.message), f"{door}: {outcome.message}"
    if rescue:
        rescued(child, path, limits)


def rescued(child: Child, path: Path, limits: dict[str, Any] | None = None) -> None:
    """Nothing is run, nor written elsewhere, by what looks into a checkpoint that is damaged."""
    for door in RESCUE:
        outcome = child.ask(path, door, limits)
        assert not outcome.events, f"{door}: {outcome.events}"
        known = not outcome.error or "JsonckptError" in outcome.error
        assert known, f"{door}: {outcome.error[0]}: {outcome.message}"
        assert outcome.seconds < MOST_SECONDS, f"{door} took {outcome.seconds:.1f} s"


def assert_modest(outcome: Outcome, door: str, path: Path, growth: int = MOST_GROWTH) -> None:
    """An outcome that took little, did nothing else, and whose message can be printed."""
    assert not outcome.events, f"{door}: {outcome.events}"
    assert outcome.seconds < MOST_SECONDS, f"{door} took {outcome.seconds:.1f} s"
    assert outcome.growth < growth, f"{door} took {outcome.growth >> 20} MiB"
    message = outcome.message
    if door != "piped":
        assert str(path) in message, f"{door} does not name the file: {message}"
        message = message.replace(str(path), "")
    assert message.isprintable(), f"{door}: {message!r}"
    most = MOST_CHARACTERS * (1 + message.count("; "))
    assert len(message) <= most, f"{door}: {len(message)} characters: {message}"
