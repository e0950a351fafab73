"""A parser of arguments that says what was meant, and prints as all commands print."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn

from ..errors import quote
from .console import EXIT_USAGE, complain, complain_with, say

EXIT_CODES = (
    "Exit codes: 0 done, 1 it could not be done, 2 wrong usage, 3 done, but the data is not what "
    "it should be, 4 done, but the report could not be printed. With several paths, the largest."
)


class Parser(argparse.ArgumentParser):
    """A parser that prints with :func:`say` and :func:`complain`.

    Errors are reported by the parser of the command that was chosen, with the names that are near a
    wrong one. Each help text ends with examples and the exit codes.
    """

    def __init__(self, *args: Any, examples: Sequence[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self._examples = examples
        self.set_defaults(parser=self)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse, but arguments that nothing takes are errors of the command."""
        parsed, extra = self.parse_known_args(args, namespace)
        if extra:
            chosen: Parser = parsed.parser
            chosen.refuse(extra)
        return parsed

    def format_help(self) -> str:
        """As argparse, with the examples and the exit codes."""
        text = super().format_help()
        if self._examples:
            text += "\n".join(["\nexamples:", *(f"  {line}" for line in self._examples), ""])
        if (self.epilog or "").startswith("Exit codes: "):
            return text
        formatter = self._get_formatter()
        formatter.add_text(EXIT_CODES)
        return f"{text}\n{formatter.format_help()}"

    def refuse(self, extra: Sequence[str]) -> NoReturn:
        """The error for arguments that nothing takes."""
        shown = " ".join(quote(argument, 200).strip("'") for argument in extra)
        wrong = next((a.partition("=")[0] for a in extra if a.startswith("--")), None)
        meant = "" if wrong is None else did_you_mean(wrong, self._option_string_actions)
        self.error(f"unrecognized arguments: {shown}{meant}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            meant = did_you_mean(str(value), action.choices)
            names = ", ".join(map(str, action.choices))
            raise argparse.ArgumentError(action, f"there is no {quote(value)}{meant} ({names})")

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit."""
        self.print_usage(sys.stderr)
        complain_with(f"{self.prog}: error: ", "", message)
        raise SystemExit(EXIT_USAGE)

    def _print_message(self, message: str, file: Any = None) -> None:
        show = complain if file is not None and file is sys.stderr else say
        if message:
            show(message, end="")


class CommandGroups(argparse.HelpFormatter):
    """Lists commands in groups.

    Attributes:
        groups: names of commands by the heading they stand under.
    """

    groups: Mapping[str, Sequence[str]] = {}

    def _format_action(self, action: argparse.Action) -> str:
        if not isinstance(action, argparse._SubParsersAction):
            return super()._format_action(action)
        rows = {row.dest.partition(" ")[0]: row for row in action._choices_actions}
        text = []
        self._indent()
        for heading, names in self.groups.items():
            text.append(f"  {heading}:\n")
            text += [self._format_action(rows[name]) for name in names]
        self._dedent()
        return "".join(text)


def did_you_mean(wrong: str, names: Iterable[Any]) -> str:
    """The names near a wrong one, to append to a message; empty if there are none.

    >>> did_you_mean("shwo", ["show", "verify"]), did_you_mean("x", ["show"])
    ("; did you mean 'show'?", '')
    """
    near = difflib.get_close_matches(wrong, [str(name) for name in names], 3, 0.6)
    return f"; did you mean {' or '.join(map(quote, near))}?" if near else ""
