"""Whole checkpoints drawn by Hypothesis: structure, values and lies; failures come shrunken.

    python -m tools.reliability.fuzz_hypothesis [--full] [--seed N] [--count N] [--keep DIR]
    python -m tools.reliability.fuzz_hypothesis --replay FILE

Where :mod:`tools.reliability.fuzz` changes one good checkpoint, here each has dtypes, shapes,
codecs, chunks, files and a state of its own, and none, one or some lies, told with checksums,
digests, indexes and seals that fit (:mod:`tools.reliability.drawn`). All readers must give one
verdict. Beyond that, a sound checkpoint must be accepted, and what comes back must be what was
drawn and what the independent reader of the tests says; and a lie that the specification is plain
about must be refused, or accepted, by all.

Readers run in a forked child with limits on time and memory, so that a crash and a hang are
verdicts, which Hypothesis shrinks as any other. A failure is kept as a JSON file for ``--replay``,
as it was found and shrunken.
"""

from __future__ import annotations

import base64
import contextlib
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from hypothesis.errors import Flaky

import jsonckpt
from tests import independent_reader
from tests.support import difference, tensor_bytes
from tools.reliability.common import BAD, memory_directory
from tools.reliability.drawn.lies_files import COMPRESSED_LIES, FILE_LIES
from tools.reliability.drawn.lies_manifest import DIRECTORY_LIES
from tools.reliability.drawn.lies_records import RECORD_LIES
from tools.reliability.drawn.lies_state import STATE_LIES
from tools.reliability.drawn.sound import ground
from tools.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller
from tools.reliability.forked import Answerer, Tally
from tools.reliability.fuzz import judge, options
from tools.reliability.mutants import FORMS, Files, written

FULL = 200_000
CI = 600
#: Examples of one run of Hypothesis, which draws the first of each choice more often than the
#: others. The next run begins with others.
_BLOCK = 50
#: Shrinking takes its time; more failures than this are mostly one.
_MOST_FAILURES = 5
_MOST_LIES = 3
#: Of so many examples, one goes through every other door, too.
_EVERY_DOOR = 16
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Example:
    """A checkpoint as it lies on a disk, and what must become of it.

    Attributes:
        form: one of :data:`FORMS`.
        files: by name.
        lies: in words.
        expects: ``"accept"``, ``"refuse"`` or None.
        raw: the bytes of each record, where it must be accepted.
        doors: whether every other door is tried, too.
    """

    form: str
    files: Files
    lies: tuple[str, ...] = ()
    expects: str | None = None
    raw: dict[str, bytes] = field(default_factory=dict)
    doors: bool = False

    def __str__(self) -> str:
        return f"{self.form}, {'; '.join(self.lies) or 'no lie'}"

    def to_json(self) -> dict[str, Any]:
        """As JSON, for a file that is kept."""
        coded = {
            name: {key: base64.b64encode(data).decode() for key, data in table.items()}
            for name, table in (("files", self.files), ("raw", self.raw))
        }
        return {"form": self.form, "lies": self.lies, "expects": self.expects, **coded}

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Example:
        """The inverse of :meth:`to_json`; every door is tried."""
        files, raw = (
            {key: base64.b64decode(data) for key, data in case[name].items()}
            for name in ("files", "raw")
        )
        return cls(case["form"], files, tuple(case["lies"]), case["expects"], raw, doors=True)


@st.composite
def examples(draw: st.DrawFn, turn: int = 0) -> Example:
    """A checkpoint, mostly with one lie.

    Args:
        turn: which form and which lie stand first. Hypothesis draws that much more often.
    """
    form = draw(st.sampled_from(_turned(FORMS, turn)))
    # What a failure shrinks to stands first: no lie.
    count = draw(st.sampled_from([0, 1, 1, 1, 1, 1, 1, 2, 2, _MOST_LIES]))
    doors = draw(st.integers(0, _EVERY_DOOR - 1)) == _EVERY_DOOR - 1
    teller = Teller(draw, draw(ground()), form)
    for _ in range(count):
        teller.tell(_turned(_lies(form), turn))
    files = written(teller.forgery, form)  # some lies are drawn only now
    expects = teller.expects[0] if len(teller.expects) == 1 else None
    if not teller.words:
        expects = ACCEPT
    raw = teller.ground.raw if expects == ACCEPT else {}
    return Example(form, files, tuple(teller.words), expects, raw, doors)


def _lies(form: str) -> list[Lie]:
    """All that a checkpoint of that form can tell."""
    lies = FILE_LIES + STATE_LIES + RECORD_LIES
    if form.startswith("directory"):
        lies = lies + DIRECTORY_LIES
    return lies + COMPRESSED_LIES if form.endswith("zst") else lies


def _turned(items: Sequence[_Item], turn: int) -> list[_Item]:
    """A list that begins further on."""
    at = turn % len(items)
    return [*items[at:], *items[:at]]


# --- judging, in a child ------------------------------------------------------------------------


def verdict(example: Example, folder: Path) -> str:
    """The verdict on an example."""
    with warnings.catch_warnings():
        # The independent reader does not keep torch's remarks on sparse tensors to itself.
        warnings.simplefilter("ignore")
        found = judge(example.files, example.form, folder, doors=example.doors)
        if found.startswith(BAD):
            return found
        if example.expects == REFUSE and found != "refused":
            return f"{BAD}accepts what must be refused"
        if example.expects == ACCEPT and found != "accepted":
            return f"{BAD}refuses what must be accepted: {_refusal(example, folder)}"
        if found == "accepted":
            problem = _other_state(example, folder)
            if problem is not None:
                return BAD + problem
    return found


def _path(example: Example, folder: Path) -> Path:
    """Where :func:`judge` has put it."""
    if example.form.startswith("directory"):
        return folder / "run"
    return folder / next(iter(example.files))


def _refusal(example: Example, folder: Path) -> str:
    try:
        jsonckpt.load(_path(example, folder))
    except jsonckpt.JsonckptError as error:
        return str(error)
    return "only once"


def _other_state(example: Example, folder: Path) -> str | None:
    """What is loaded, if it is not what was saved."""
    path = _path(example, folder)
    state = jsonckpt.load(path)
    try:
        expected = independent_reader.load(path)
    except Exception as error:
        # It is not written for files that lie: it may refuse what it does not know.
        if example.expects == ACCEPT and not example.lies:
            return f"the independent reader refuses it: {error!r}"
    else:
        found = difference(expected, state)
        if found is not None:
            return f"the independent reader gives another state: {found}"
    if example.expects == ACCEPT:
        tensors = dict(jsonckpt.stream(path))
        with jsonckpt.open(path) as checkpoint:
            for entry in checkpoint.manifest.entries:
                raw = example.raw.get(entry.name)
                tensor = tensors.get(entry.name)
                if raw is not None and tensor is not None and tensor_bytes(tensor) != raw:
                    return f"{entry.name}: other bytes than were saved"
    return None


# --- running ------------------------------------------------------------------------------------


class _Wrong(Exception):
    """An example failed."""


@dataclass
class Failure:
    """An example that failed, as it was found and shrunken, each with its verdict."""

    number: int
    found: tuple[str, Example]
    shrunken: tuple[str, Example]


def fuzz(
    seed: int,
    count: int,
    *,
    keep: Path | None = None,
    seconds: float | None = None,
    most_failures: int = _MOST_FAILURES,
) -> tuple[Tally, list[Failure]]:
    """Draw and judge ``count`` examples.

    Args:
        keep: where examples that failed are left for ``--replay``.
        seconds: stop after about so long.
        most_failures: stop after so many.
    """
    tally = Tally()
    failures: list[Failure] = []
    began = time.monotonic()
    with (
        tempfile.TemporaryDirectory(dir=memory_directory(), prefix="fuzz-") as directory,
        Answerer(verdict, Path(directory)) as answerer,
    ):
        block = 0
        while tally.trials < count and len(failures) < most_failures:
            if seconds is not None and time.monotonic() - began > seconds:
                break
            size = min(_BLOCK, count - tally.trials)
            failure = _run(seed, block, size, answerer.ask, tally)
            block += 1
            if failure is not None:
                failures.append(failure)
                tally.failures.append((failure.number, failure.shrunken[0]))
                _report(failure)
                if keep is not None:
                    _keep(keep, seed, failure)
    return tally, failures


def _run(
    seed: int, block: int, count: int, ask: Callable[[Example], str], tally: Tally
) -> Failure | None:
    """One run of Hypothesis; it ends with the first example that fails, shrunken."""
    failure: Failure | None = None

    @seeded(f"{seed}:{block}")
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        derandomize=False,
        phases=[Phase.generate, Phase.shrink],
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @given(examples(seed + block))
    def property_(example: Example) -> None:
        nonlocal failure
        found = ask(example)
        bad = found.startswith(BAD)
        if failure is None:
            # What Hypothesis tries while it shrinks is not counted.
            tally.verdicts["failed" if bad else found] += 1
            if bad:
                failure = Failure(tally.trials - 1, (found, example), (found, example))
        elif bad:
            failure.shrunken = (found, example)
        if bad:
            raise _Wrong(found)

    # A crash that depends on memory, and a hang on the machine, may not come again (Flaky): the
    # failure counts all the same.
    with contextlib.suppress(_Wrong, Flaky):
        property_()
    return failure


def _report(failure: Failure) -> None:
    for kind, (what, example) in (("found", failure.found), ("shrunken", failure.shrunken)):
        print(f"hypothesis {failure.number}, {kind}: {what}\n    {example}", file=sys.stderr)


def _keep(keep: Path, seed: int, failure: Failure) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    what, example = failure.shrunken
    first, found = failure.found
    case = {"target": "hypothesis", "seed": seed, "number": failure.number, "what": what}
    case |= example.to_json() | {"found": {"what": first, **found.to_json()}}
    (keep / f"hypothesis-{seed}-{failure.number}.json").write_text(json.dumps(case))


def replay(file: Path) -> int:
    """Judge a kept example again, in this process; tracebacks are not caught."""
    case = json.loads(file.read_text())
    example = Example.from_json(case)
    print(f"{case['what']}\n    {example}")
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        found = verdict(example, Path(directory))
    print(found)
    return int(found.startswith(BAD))


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if anything failed."""
    arguments = options("fuzz_hypothesis", f"{FULL} examples, not {CI}").parse_args(argv)
    if arguments.replay:
        return replay(arguments.replay)
    torch.set_num_threads(1)
    began = time.perf_counter()
    count = arguments.count or (FULL if arguments.full else CI)
    tally, failures = fuzz(arguments.seed, count, keep=arguments.keep, seconds=arguments.seconds)
    print(f"  hypothesis: {tally}")
    print(
        f"fuzz_hypothesis: seed {arguments.seed}: {tally.trials} examples, "
        f"{len(failures)} failures, {time.perf_counter() - began:.0f} s"
    )
    return int(bool(failures) or tally.trials == 0)


if __name__ == "__main__":
    sys.exit(main())
