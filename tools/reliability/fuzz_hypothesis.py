"""Whole checkpoints from Hypothesis: structure, values and faults. Hypothesis shrinks failures.

    python -m tools.reliability.fuzz_hypothesis [--full] [--seed N] [--count N] [--keep DIR]
    python -m tools.reliability.fuzz_hypothesis --replay FILE

:mod:`tools.reliability.fuzz` changes one good checkpoint. Here each checkpoint has its own dtypes,
shapes, codecs, chunks, files and state, and perhaps some lies: wrong statements with checksums,
digests, indexes and seals that fit (:mod:`tools.reliability.drawn`). All readers must give the same
verdict. A checkpoint without a lie must be accepted, and the result must equal what was drawn and
what the independent reader of the tests returns. If the specification decides about a lie, all
readers must follow it.

Readers run in a forked child with limits on time and memory, so that a crash and a hang are
verdicts, too, and Hypothesis can shrink them. A failure is kept as a JSON file for ``--replay``,
before and after shrinking.
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
#: Examples of one run of Hypothesis. It draws the first of several choices more often, so the next
#: run has another order.
_BLOCK = 50
#: Shrinking is slow, and more failures than this usually have one cause.
_MOST_FAILURES = 5
_MOST_LIES = 3
#: One of this many examples is also read by all other functions.
_EVERY_DOOR = 16
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Example:
    """A checkpoint as files, and the expected verdict.

    Attributes:
        form: one of :data:`FORMS`.
        files: by name.
        lies: in words.
        expects: ``"accept"``, ``"refuse"`` or None.
        raw: the bytes of each record, if it must be accepted.
        doors: whether all other functions read it, too.
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
        """As JSON, for a file."""
        coded = {
            name: {key: base64.b64encode(data).decode() for key, data in table.items()}
            for name, table in (("files", self.files), ("raw", self.raw))
        }
        return {"form": self.form, "lies": self.lies, "expects": self.expects, **coded}

    @classmethod
    def from_json(cls, case: dict[str, Any]) -> Example:
        """The inverse of :meth:`to_json`. All other functions read it, too."""
        files, raw = (
            {key: base64.b64decode(data) for key, data in case[name].items()}
            for name in ("files", "raw")
        )
        return cls(case["form"], files, tuple(case["lies"]), case["expects"], raw, doors=True)


@st.composite
def examples(draw: st.DrawFn, turn: int = 0) -> Example:
    """A checkpoint, mostly with one lie.

    Args:
        turn: which form and which lie come first. Hypothesis draws these much more often.
    """
    form = draw(st.sampled_from(_turned(FORMS, turn)))
    # Failures shrink to the first choice: no lie.
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
    """All lies for a checkpoint of this form."""
    lies = FILE_LIES + STATE_LIES + RECORD_LIES
    if form.startswith("directory"):
        lies = lies + DIRECTORY_LIES
    return lies + COMPRESSED_LIES if form.endswith("zst") else lies


def _turned(items: Sequence[_Item], turn: int) -> list[_Item]:
    """A list that is rotated."""
    at = turn % len(items)
    return [*items[at:], *items[:at]]


# --- judging, in a child ------------------------------------------------------------------------


def verdict(example: Example, folder: Path) -> str:
    """The verdict on an example."""
    with warnings.catch_warnings():
        # The independent reader does not suppress torch's warnings about sparse tensors.
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
        # It is not written for such files, and may refuse what it does not know.
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
    """An example that failed, before and after shrinking, each with its verdict."""

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
        keep: where examples that failed are kept for ``--replay``.
        seconds: stop after about so long.
        most_failures: stop after this many failures.
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
    """One run of Hypothesis. It ends with the first example that fails, after shrinking."""
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

    # Some crashes and hangs depend on the machine and do not repeat (Flaky). The failure counts all
    # the same.
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
    """The command line. Returns 1 if anything failed."""
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
