"""Completes a command line: commands, options, their values, names of tensors in a checkpoint.

The scripts of ``jsonckpt completion`` call :func:`complete` at each press of the key. Where it says
nothing, the shell completes names of files.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from ..errors import JsonckptError, printable
from ..terminal.console import EXIT_FAILURE, EXIT_OK

#: Metavars of arguments that are names of tensors; but for globs, also other places in a state.
_NAMES = frozenset({"NAME", "NAME VALUE", "GLOB"})
#: Names that are offered at once.
_MOST = 200
_LONGEST_HELP = 60
Candidate = tuple[str, str]


@dataclass
class _Line:
    """What stands before the word that is completed.

    Attributes:
        parser: of the command.
        paths: the positional arguments so far.
        option: the option whose value comes next, or ``None``.
    """

    parser: argparse.ArgumentParser
    paths: list[str]
    option: argparse.Action | None = None


def complete(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Print candidates, one a line: the word, a tab, what it is.

    Args:
        arguments: the position of the word, and all words from the name of the program on.
    """
    try:
        position, words = int(arguments[0]), list(arguments[1:])
    except (IndexError, ValueError):
        return EXIT_FAILURE
    if position < 1:
        return EXIT_FAILURE
    before, word = words[1:position], (words[position] if position < len(words) else "")
    found = False
    try:
        for text, help in islice(candidates(parser, before, word), _MOST):
            if printable(text) == text:
                print(f"{text}\t{help}" if help else text)
                found = True
    except (JsonckptError, OSError, RecursionError, MemoryError):
        pass  # a press of a key is no place for a message
    return EXIT_OK if found else EXIT_FAILURE


def candidates(
    parser: argparse.ArgumentParser, before: Sequence[str], word: str
) -> Iterator[Candidate]:
    """What may stand in place of ``word`` after the words before it."""
    line = _read(parser, before)
    if line.option is not None:
        return _starting(word, _values(line.option, line.paths))
    if word.startswith("-"):
        return _starting(word, _options(line.parser))
    return _starting(word, _positionals(line))


def _read(parser: argparse.ArgumentParser, before: Sequence[str]) -> _Line:
    line = _Line(parser, [])
    for word in before:
        if line.option is not None:
            line.option = None
        elif word in line.parser._option_string_actions:
            action = line.parser._option_string_actions[word]
            line.option = None if action.nargs == 0 else action
        elif word.startswith("-") and word != "-":
            continue
        elif (chosen := (_commands(line.parser) or {}).get(word)) is not None:
            line = _Line(chosen, [])
        else:
            line.paths.append(word)
    return line


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser] | None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    return None


def _starting(word: str, found: Iterable[Candidate]) -> Iterator[Candidate]:
    plain = word.lstrip("\"'")
    return ((text, help) for text, help in found if text.startswith(plain))


def _options(parser: argparse.ArgumentParser) -> Iterator[Candidate]:
    for action in parser._actions:
        for name in action.option_strings:
            if name.startswith("--") and action.help != argparse.SUPPRESS:
                yield name, _shortened(action.help)


def _positionals(line: _Line) -> Iterator[Candidate]:
    for action in line.parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for row in action._choices_actions:
                yield row.dest.partition(" ")[0], _shortened(row.help)
            return
    rows = [action for action in line.parser._actions if not action.option_strings]
    # The last one takes what follows, too, if it takes several.
    if rows and (len(line.paths) < len(rows) or rows[-1].nargs in {"+", "*"}):
        if rows[-1].metavar == "NAME VALUE" and len(line.paths) > 1 and len(line.paths) % 2 == 0:
            return  # a value
        yield from _values(rows[min(len(line.paths), len(rows) - 1)], line.paths)


def _values(action: argparse.Action, paths: Sequence[str]) -> Iterator[Candidate]:
    if action.choices is not None:
        yield from ((str(choice), "") for choice in action.choices)
    elif action.dest == "limit":
        from ..format.limits import Limits

        yield from ((f"{field.name}=", "") for field in fields(Limits))
    elif action.metavar in _NAMES and paths:
        from ..inspect.api import inspect

        facts = inspect(paths[0])
        for tensor in facts.tensors:
            yield tensor.name, f"{tensor.dtype} {list(tensor.shape)}"
        if action.metavar != "GLOB":
            yield from _places(facts.manifest.state)


def _places(state: Any) -> Iterator[Candidate]:
    """The places in a state that are no tensors, and what is there."""
    from ..inspect.plain_values import is_tensor, members_of, text_of

    pending = [("", state)]
    while pending:
        place, value = pending.pop()
        members = [] if is_tensor(value) else [*(members_of(value, place) or ())]
        pending += [(member.path, member.value) for member in reversed(members)]
        if place and not is_tensor(value):
            yield place, _shortened(text_of(value))


def _shortened(help: str | None) -> str:
    text = printable((help or "").replace("%(prog)s", "jsonckpt"))
    return text if len(text) <= _LONGEST_HELP else f"{text[: _LONGEST_HELP - 1]}…"
