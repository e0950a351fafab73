"""Several writers and readers at once: every load gives a whole checkpoint of one save.

    python -m tools.reliability.races [--full] [--seed N] [--seconds N]

Every saved state has one number in all of its tensors and in its tree, so that a mix of two saves
is seen. A reader may get the state of any save. If saves keep replacing the checkpoint during the
read, it may get an error that says so.
"""

from __future__ import annotations

import collections
import itertools
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.save.api import save
from tests.readers import indexed, streaming
from tools.reliability.common import BAD, command_line
from tools.reliability.processes import Crew

WRITERS = 8
_FORMS: dict[str, dict[str, Any]] = {
    "run": {"max_shard_size": 3_000, "chunk_size": 1_000},
    "run.json": {"chunk_size": 1_000},
    "run.json.zst": {"chunk_size": 1_000},
    "content": {"max_shard_size": 3_000, "chunk_size": 1_000, "save_id": "content"},
}
#: In these, few states are saved again and again, so that saves share files.
_FEW = {"content": 5}


def state_of(number: int) -> dict[str, Any]:
    """A state that contains only the number."""
    return {
        "w": torch.full((300, 2), float(number)),
        "h": torch.full((700,), number, dtype=torch.int64),
        "mask": torch.tensor([number >> bit & 1 for bit in range(24)], dtype=torch.bool),
        "l": [torch.full((5,), number, dtype=torch.int32) for _ in range(3)],
        "frozen": torch.arange(100.0),
        "number": number,
        "again": {"number": number},
    }


def number_of(state: Any) -> int:
    """The number of a state.

    Raises:
        AssertionError: it has two.
    """
    number = int(state["number"])
    expected = state_of(number)
    assert state["again"] == {"number": number}, f"a mix: the tree holds {number} and another"
    for name in ("w", "h", "mask"):
        assert torch.equal(state[name], expected[name]), f"a mix: {number} and another in {name}"
    assert all(torch.equal(a, b) for a, b in zip(state["l"], expected["l"])), f"a mix: {number}, l"
    return number


def _numbers(seed: int, part: int) -> itertools.count[int]:
    return itertools.count(random.Random(seed).randrange(1 << 18) + part, 64)


def _write(path: Path, seed: int, part: int) -> Callable[[], str]:
    numbers = _numbers(seed, part)
    few = _FEW.get(path.name, 1 << 30)
    # One writer of four knows nothing of the files that the others share.
    form = _FORMS["run" if path.name in _FEW and part % 4 == 3 else path.name]

    def once() -> str:
        save(state_of(next(numbers) % few), path, threads=1, sync=False, **form)
        return "saved"

    return once


def _overwritten(error: jsonckpt.JsonckptError) -> bool:
    return "overwritten" in (error.hint or "")


def _read(path: Path, reader: Callable[[Path], Any]) -> Callable[[], str]:
    def once() -> str:
        try:
            number_of(reader(path))
        except jsonckpt.JsonckptError as error:
            return "overwritten" if _overwritten(error) else f"{BAD}{error}"
        return "loaded"

    return once


def _hold_open(path: Path) -> Callable[[], str]:
    """``open`` during overwrites, without checksums: all tensors must be of one save."""

    def once() -> str:
        try:
            with jsonckpt.open(path, verify=False, threads=1) as checkpoint:
                number = checkpoint.state()["number"]
                expected = state_of(number)
                for name in ("w", "h", "mask"):
                    time.sleep(0.002)
                    assert torch.equal(checkpoint[f"/{name}"].load(), expected[name]), "a mix"
                assert torch.equal(checkpoint["/w"][7:9], expected["w"][7:9]), "a mix"
        except jsonckpt.JsonckptError as error:
            return "overwritten" if _overwritten(error) else f"{BAD}open: {error}"
        return "loaded"

    return once


def _into(path: Path) -> Callable[[], str]:
    def once() -> str:
        target = state_of(0)
        try:
            jsonckpt.load_into(target, path, threads=1)
        except jsonckpt.JsonckptError as error:
            return "overwritten" if _overwritten(error) else f"{BAD}load_into: {error}"
        number_of(target)
        return "loaded"

    return once


def race(seed: int, name: str, seconds: float, directory: Path) -> collections.Counter[str]:
    """Run writers and readers on one path for some time. Returns the outcomes."""
    path = directory / name
    save(state_of(1), path, **_FORMS[name])
    crew = Crew()
    for part in range(WRITERS):
        crew.start(_write(path, seed, part), seconds)
    for reader in (indexed, streaming):
        crew.start(_read(path, reader), seconds)
    crew.start(_hold_open(path), seconds)
    crew.start(_into(path), seconds)
    found = crew.join()
    number_of(jsonckpt.load(path))
    assert jsonckpt.verify(path)
    return found


def swaps(seed: int, seconds: float, directory: Path) -> collections.Counter[str]:
    """Replace a shard by one of another save during the read: an error, or the right state."""
    saves = []
    for number in range(2):
        path = directory / f"swap-{number}"
        save(state_of(number * 77 + 1), path, **_FORMS["run"])
        saves.append(path)
    target = saves[0]
    shards = [sorted(path.glob("shard-*")) for path in saves]
    contents = [[shard.read_bytes() for shard in files] for files in shards]
    chance = random.Random(seed)

    def swap() -> str:
        place = chance.randrange(len(shards[0]))
        data = contents[chance.randrange(2)][place]
        if chance.random() < 0.5:
            # In place, so that the open file of a reader changes.
            with open(shards[0][place], "r+b") as file:
                file.write(data)
                file.truncate()
        else:
            temporary = directory / "swapped"
            temporary.write_bytes(data)
            os.replace(temporary, shards[0][place])
        return "swapped"

    def read(reader: Callable[[Path], Any]) -> Callable[[], str]:
        def once() -> str:
            try:
                number = number_of(reader(target))
            except jsonckpt.JsonckptError:
                return "refused"
            assert number == 1, "another state"
            return "loaded"

        return once

    crew = Crew()
    crew.start(swap, seconds)
    for reader in (indexed, streaming):
        crew.start(read(reader), seconds)
    return crew.join()


def main(argv: list[str] | None = None) -> int:
    """The command line; 1 if anything failed."""
    parser = command_line("races", "60 seconds each, not 3")
    parser.add_argument("--seconds", type=float)
    arguments = parser.parse_args(argv)
    seconds = arguments.seconds or (60.0 if arguments.full else 3.0)
    torch.set_num_threads(1)
    failures = 0
    total: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory(prefix="races-") as folder:
        for name in (*_FORMS, "swaps"):
            if name == "swaps":
                found = swaps(arguments.seed, seconds, Path(folder))
            else:
                found = race(arguments.seed, name, seconds, Path(folder))
            counts = ", ".join(f"{count} {what}" for what, count in found.most_common())
            print(f"  {name}: {counts}")
            failures += sum(count for what, count in found.items() if what.startswith(BAD))
            total += found
    print(
        f"races: seed {arguments.seed}: {total['saved']} saves by {WRITERS} writers, "
        f"{total['loaded']} loads, {total['overwritten']} overwritten meanwhile, "
        f"{total['refused']} swaps refused, {failures} failures"
    )
    return int(failures > 0 or not total["loaded"] or not total["saved"])


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    sys.exit(main())
