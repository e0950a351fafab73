"""The tools of ``tools/reliability``, each for some seconds. ``--full`` does them at length."""

from __future__ import annotations

import collections
import os
import re
import signal
import time
from functools import partial
from pathlib import Path

import pybase64
import pytest

from jsonckpt._src.errors import FormatError
from jsonckpt._src.format import chunk_codec, number_list, validation
from jsonckpt._src.load import record_stream
from jsonckpt._src.tensors import view
from tests.support import THOROUGH, slow
from tools.reliability import flips, forked, fuzz, fuzz_hypothesis, interrupts, races, soak
from tools.reliability.common import BAD
from tools.reliability.forked import Answerer, run_trials

SEED = int(os.environ.get("JSONCKPT_SEED", "1"))


@pytest.mark.parametrize("count", [1_000, slow(fuzz.CI)])
def test_fuzz(count: int, tmp_path: Path) -> None:
    found = fuzz.fuzz(SEED, count, keep=tmp_path)
    failures = {name: tally.failures for name, tally in found.items() if tally.failures}
    assert not failures
    assert sum(tally.trials for tally in found.values()) == count
    for name, tally in found.items():
        # Mutants that nobody accepts, or nobody refuses, test nothing.
        assert tally.verdicts["accepted"] > tally.trials // 50, name
        assert tally.verdicts["refused"] > tally.trials // 5, name


@pytest.mark.parametrize("count", [150, slow(fuzz_hypothesis.CI)])
def test_fuzz_hypothesis(count: int, tmp_path: Path) -> None:
    tally, failures = fuzz_hypothesis.fuzz(SEED, count, keep=tmp_path)
    assert not failures
    assert tally.trials == count
    assert tally.verdicts["accepted"] > tally.trials // 8
    assert tally.verdicts["refused"] > tally.trials // 4


@pytest.mark.parametrize("sample", [12, slow(120)])
def test_flips(sample: int) -> None:
    found = flips.flips(SEED, sample=sample)
    assert not [failure for tally in found.values() for failure in tally.failures]
    assert sum(tally.trials for tally in found.values()) > 10 * sample


@pytest.mark.parametrize("name", ["run", "run.json", "run.json.zst", "content"])
def test_races(name: str, tmp_path: Path) -> None:
    found = races.race(SEED, name, 1.5, tmp_path)
    assert not [what for what in found if what.startswith(BAD)], found
    assert found["saved"] > 0
    assert found["loaded"] > 0


def test_swaps(tmp_path: Path) -> None:
    found = races.swaps(SEED, 1.5, tmp_path)
    assert not [what for what in found if what.startswith(BAD)], found
    assert found["refused"] > 0


@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("directory, 2 threads",), id="some"),
        pytest.param(tuple(interrupts.KINDS), id="all", marks=THOROUGH),
    ],
)
def test_interrupts(kinds: tuple[str, ...], tmp_path: Path) -> None:
    found = interrupts.run(full=False, seed=SEED, scratch=tmp_path, most=4, kinds=kinds)
    assert not found.words
    assert found.tried["KeyboardInterrupt"] >= 3 * len(kinds)
    assert found.tried["MemoryError"] >= 2 * len(kinds)
    assert found.tried["thread"] >= len(kinds)


@pytest.mark.slow
def test_soak(tmp_path: Path) -> None:
    found = soak.soak(SEED, 8.0, tmp_path, pause=0.05)
    counts: collections.Counter[str] = found["counts"]
    assert not [what for what in counts if what.startswith(BAD)], counts
    assert not [what for what in found["growth"].values() if what], found["growth"]
    assert counts["resumed"] > 0
    assert counts["loaded"] > 0


# --- the machinery sees what it is there to see ---------------------------------------------------


def _trial(number: int, folder: Path) -> str:
    if number == 3:
        os.kill(os.getpid(), signal.SIGSEGV)
    if number == 5:
        until = time.process_time() + 60
        while time.process_time() < until:
            pass
    if number == 7:
        raise ValueError("foreign")
    if number == 8:
        bytearray(1 << 40)
    (folder / str(number)).touch()
    return f"{BAD}wrong" if number == 9 else "fine"


def test_crashes_hangs_and_foreign_exceptions_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "MOST_SECONDS", 0.2)
    tally = run_trials(_trial, range(12), tmp_path, workers=2, batch=4)
    failures = dict(tally.failures)
    assert sorted(failures) == [3, 5, 7, 8, 9]
    assert "crash" in failures[3]
    assert "hangs" in failures[5]
    assert "ValueError" in failures[7]
    assert "MemoryError" in failures[8]
    assert failures[9] == f"{BAD}wrong"
    assert len(list(tmp_path.glob("*/*"))) == 12 - 4
    assert tally.trials == 12


def test_an_answerer_outlives_what_kills_its_child(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "MOST_SECONDS", 0.2)
    with Answerer(_trial, tmp_path) as answerer:
        found = [answerer.ask(number) for number in range(10)]
    assert found[0] == found[1] == found[2] == found[4] == found[6] == "fine"
    assert "crash" in found[3]
    assert "hangs" in found[5]
    assert "ValueError" in found[7]
    assert "MemoryError" in found[8]
    assert found[9] == f"{BAD}wrong"


def _die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def _foreign(*_: object, **__: object) -> None:
    raise KeyError("foreign")


def _lenient(payload: memoryview) -> bytes:
    try:
        return pybase64.b64decode(bytes(payload), validate=True)
    except ValueError as error:
        raise FormatError("damaged base64 text") from error


@pytest.mark.parametrize(
    ("place", "name", "fault", "says"),
    [
        # The forward reader, the only one of compressed files, does not compare checksums.
        pytest.param(
            record_stream, "compare_checksums", lambda *_: None,
            "loads it|accepts what must be refused", id="checksum", marks=THOROUGH),
        # No reader knows that a feature is unknown: they agree, and are wrong.
        pytest.param(
            validation, "KNOWN_FEATURES", ("x",), "accepts what must be refused", id="requires",
            marks=THOROUGH,
        ),
        # No reader sees the bits behind the last byte.
        pytest.param(
            chunk_codec, "_from_base64", _lenient, "accepts what must be refused", id="base64",
            marks=THOROUGH,
        ),
        # No reader can look through a view.
        pytest.param(view, "contiguous_stride", _foreign, "KeyError", id="foreign"),
        # A native parser crashes.
        pytest.param(number_list, "decode_into", _die, "crash", id="crash"),
        # All readers take a shuffled chunk for one that is not.
        pytest.param(
            chunk_codec,
            "_plane_count",
            lambda *_: 1,
            "refuses what must be accepted",
            id="shuffle",
            marks=THOROUGH,
        ),
    ],
)  # fmt: skip
def test_hypothesis_finds_and_shrinks_a_planted_fault(
    place: object,
    name: str,
    fault: object,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fault)
        tally, failures = fuzz_hypothesis.fuzz(1, 6_000, keep=tmp_path, most_failures=1)
    (failure,) = failures
    what, example = failure.shrunken
    assert tally.failures == [(failure.number, what)]
    assert re.search(says, what)
    assert len(example.lies) <= 1  # a lie that has nothing to do with it is shrunk away
    # Without the fault, what was kept is judged rightly.
    (kept,) = tmp_path.iterdir()
    assert fuzz_hypothesis.main(["--replay", str(kept)]) == 0


def test_hypothesis_draws_the_same_for_the_same_seed() -> None:
    one, two = (fuzz_hypothesis.fuzz(SEED + 1, 40)[0] for _ in range(2))
    assert one == two


def test_a_mix_is_seen() -> None:
    state = races.state_of(5)
    assert races.number_of(state) == 5
    state["w"][17, 1] = 6
    with pytest.raises(AssertionError, match="mix"):
        races.number_of(state)


def test_a_leak_is_seen() -> None:
    assert soak._flat([(10 << 20, 5)] * 100) is None
    assert soak._flat([((10 << 20) + (number << 17), 5) for number in range(100)])
    assert soak._flat([(10 << 20, 5 + number // 9) for number in range(100)])


def test_a_mutant_is_the_same_every_time(tmp_path: Path) -> None:
    trial = partial(fuzz._checkpoint, SEED)
    assert trial(12, tmp_path) == trial(12, tmp_path)
