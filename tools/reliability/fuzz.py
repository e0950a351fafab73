"""A million mutants: no crash, no hang, no foreign exception, and all readers agree.

    python -m tools.reliability.fuzz [--full] [--seed N] [--from N] [--count N] [--target NAME]
    python -m tools.reliability.fuzz --replay FILE

Targets: ``checkpoint`` (files of every form, all readers), and the parsers alone: ``manifest``,
``lists``, ``codecs``, ``foreign`` (JSON of other programs). A trial depends only on the seed and
its number. A mutant that fails is kept as a JSON file for ``--replay``.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import functools
import io
import json
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import jsonckpt
from jsonckpt._src.foreign.read_json import read_foreign
from jsonckpt._src.foreign.values import ForeignOptions
from jsonckpt._src.format.chunk_codec import ChunkCodec
from jsonckpt._src.format.limits import Limits
from jsonckpt._src.format.manifest import parse_manifest
from jsonckpt._src.format.model import Codec
from jsonckpt._src.state.references import references_in
from tests.foreign.dialects import DIALECTS
from tests.hostile.child import DOORS, Watch
from tests.hostile.forge import good, zstd
from tests.list_reference import reference
from tests.readers import readers_for
from tests.support import difference
from tools.reliability.common import BAD, command_line, memory_directory
from tools.reliability.forked import Tally, Trial, run_trials
from tools.reliability.mutants import Files, mutant, put, shaken
from tools.reliability.mutations import changed_bytes

FULL = 1_000_000
CI = 5_000
#: One of this many mutants of the checkpoint is also read by all other functions.
_EVERY_DOOR = 16
_MOST_CHARACTERS = 2_000
_LIMITS = Limits()
_UNSOUND = re.compile(r": (state '|the state: )|is not a device|saved on ")


# --- a whole checkpoint ---------------------------------------------------------------------------


def judge(files: Files, form: str, folder: Path, *, doors: bool) -> str:
    """The verdict of all readers on a mutant."""
    path = put(files, form, folder)
    states: dict[str, Any] = {}
    errors: dict[str, jsonckpt.JsonckptError] = {}
    for name, reader in readers_for(path).items():
        options = {"threads": 1} if name == "indexed" else {}
        try:
            states[name] = reader(path, **options)
        except jsonckpt.JsonckptError as error:
            errors[name] = error
    problem = _messages(errors, path)
    if problem:
        return BAD + problem
    if states and errors:
        said = "; ".join(f"{name}: {error}" for name, error in errors.items())
        return f"{BAD}{', '.join(states)} loads it, {said}"
    first = next(iter(states.values()), None)
    for other in states.values():
        found = difference(first, other)
        if found is not None:
            return f"{BAD}readers return different states: {found}"
    if doors:
        # The bytes of a checkpoint may be valid while a tag of its state is not, or while a device
        # does not exist. verify checks only bytes.
        sound = bool(states) or any(_UNSOUND.search(str(error)) for error in errors.values())
        problem = _other_doors(path, first, bool(states), sound)
        if problem:
            return BAD + problem
    return "accepted" if states else "refused"


def _messages(errors: dict[str, jsonckpt.JsonckptError], path: Path) -> str | None:
    for name, error in errors.items():
        message = str(error)
        if name != "piped" and str(path) not in message:
            return f"{name} does not name the file: {message}"
        if not message.replace("\n", "").isprintable() or len(message) > _MOST_CHARACTERS:
            return f"{name}: a message that cannot be printed: {message!r}"
    return None


@functools.cache
def _watch() -> Watch:
    """One for the process: an audit hook cannot be removed."""
    return Watch()


def _watched(path: Path) -> str | None:
    """Finds forbidden actions of a load: running code, imports, writes, network calls."""
    watch = _watch()
    for name, reader in readers_for(path).items():
        watch.begin()
        try:
            with contextlib.suppress(jsonckpt.JsonckptError):
                reader(path)
        finally:
            events = watch.end()
        if events:
            return f"{name}: {events}"
    return None


def _needed(path: Path) -> set[str]:
    """The records that a state refers to."""
    state = jsonckpt.open(path).manifest.state
    return {reference.record for reference in references_in(state)}


def _other_doors(path: Path, state: Any, accepted: bool, sound: bool) -> str | None:
    if events := _watched(path):
        return events
    for name in ("verify", "stream", "open", "load_into"):
        try:
            value = DOORS[name](str(path))
        except jsonckpt.JsonckptError as error:
            # load_into may refuse a state whose structure differs from the target. verify may
            # refuse the data of a record that the state does not need.
            unneeded = name == "verify" and accepted and error.tensor not in _needed(path)
            if accepted and name != "load_into" and not unneeded:
                return f"{name} refuses what load accepts: {error}"
            continue
        if (name == "open" and not accepted) or (name == "verify" and not sound):
            return f"{name} accepts what load refuses"
        if name == "open" and (found := difference(state, value)) is not None:
            return f"open() gives another state: {found}"
    return None


def _checkpoint(seed: int, number: int, folder: Path) -> str:
    made = mutant(seed, number)
    if made is None:
        return "not told"
    return judge(made[1], made[0], folder, doors=number // 4 % _EVERY_DOOR == 0)


# --- parsers alone ------------------------------------------------------------------------------


def _chance(seed: int, target: str, number: int) -> random.Random:
    return random.Random(f"{seed}:{target}:{number}")


def _refuses(call: Callable[[], Any]) -> bool:
    try:
        call()
    except jsonckpt.JsonckptError as error:
        str(error)
        return True
    return False


def _manifest(seed: int, number: int, folder: Path) -> str:
    del folder  # nothing is written
    chance = _chance(seed, "manifest", number)
    text = manifest_text()
    for _ in range(chance.choice([1, 2])):
        text = shaken(chance, text) if chance.random() < 0.7 else changed_bytes(chance, text)
    return "refused" if _refuses(lambda: parse_manifest(text, _LIMITS)) else "accepted"


_texts: dict[str, bytes] = {}


def manifest_text() -> bytes:
    """A manifest without a seal, so that an edit is not damage."""
    if "manifest" not in _texts:
        with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
            path = good().write_directory(Path(directory) / "run")
            text = (path / "manifest.json").read_bytes()
        at = text.rindex(b'"seal":')
        _texts["manifest"] = text[:at] + b'"seal":null}\n'
    return _texts["manifest"]


#: Items of a list: numbers, and texts that are not numbers.
LIST_ITEMS = [
    b"0", b"1", b"-1", b"-0", b"-0.0", b"1.5", b"255", b"256", b"-128", b"65504", b"65520", b"448",
    b"1e5", b"3.4028235e38", b"3.4028236e38", b"1e-45", b"7e-46", b"1e308", b"1e309", b"5e-324",
    b"9223372036854775807", b"9223372036854775808", b"18446744073709551615", b'"NaN"',
    b'"Infinity"', b'"-Infinity"', b'"0x7fc00001"', b'"0x7f"', b'"0xff"', b"true", b"null", b"",
    b" 1", b"1 ", b"\t2", b"01", b"+1", b"1.", b".5", b"1e", b"0x1", b"1" * 64, b"0." + b"3" * 61,
    b"2" * 65, b"[1]", b"\n3", b"NaN", b"\xff", b'"', b"1e-400", b"0.1", b"16777217", b"1E2",
]  # fmt: skip
_LIST_DTYPES = [
    "bool", "uint8", "int8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float64",
    "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz",
    "float8_e5m2fnuz", "float8_e8m0fnu", "complex64", "uint4", "float4_e2m1fn_x2",
]  # fmt: skip


def _lists(seed: int, number: int, folder: Path) -> str:
    del folder  # nothing is written
    chance = _chance(seed, "lists", number)
    dtype = chance.choice(_LIST_DTYPES)
    count = chance.choice([1, 2, 2, 4, 8])
    simple = [b"0", b"1"] if chance.random() < 0.3 else [b"0", b"1", b"0.5", b"2", b"-1", b"6"]
    items = [chance.choice(simple) for _ in range(count)]
    for _ in range(chance.choice([0, 1, 1, 2])):
        items[chance.randrange(count)] = chance.choice(LIST_ITEMS)
    text = b",".join(items)
    if chance.random() < 0.15:
        text = changed_bytes(chance, text)
    sizes = {"float64": 8, "int64": 8, "uint64": 8, "complex64": 4, "float32": 4, "int32": 4,
             "uint32": 4, "int16": 2, "uint16": 2, "float16": 2, "bfloat16": 2}  # fmt: skip
    size = sizes.get(dtype, 1) * count
    if dtype == "float4_e2m1fn_x2":
        size = max(1, count // 2)
    if dtype == "complex64":
        size = max(8, size // 8 * 8)
    out = bytearray(size)
    coder = ChunkCodec()
    codec = Codec("list", "none", "none", 1 << 20)
    refused = _refuses(lambda: coder.decode_into(memoryview(text), codec, dtype, memoryview(out)))
    if dtype.startswith(("float64", "float32", "float16", "bfloat16", "float8")):
        expected = reference(text, dtype, count)
        if refused != (expected is None):
            return f"{BAD}{dtype} {text!r}: refused {refused}, the reference says {expected!r}"
        if not refused and bytes(out) != expected:
            return f"{BAD}{dtype} {text!r}: {out.hex()}, the reference says {expected!r}"
    return "refused" if refused else "accepted"


def _codecs(seed: int, number: int, folder: Path) -> str:
    del folder  # nothing is written
    chance = _chance(seed, "codecs", number)
    size = chance.choice([1, 2, 3, 4, 31, 32, 64, 1000])
    raw = bytes(size) if chance.random() < 0.3 else chance.randbytes(size)
    compression = chance.choice(["none", "zstd"])
    data = zstd(raw, write_checksum=chance.random() < 0.5) if compression == "zstd" else raw
    if chance.random() < 0.6:
        data = changed_bytes(chance, data)
    text = base64.b64encode(data)
    if chance.random() < 0.5:
        text = changed_bytes(chance, text)
    out = bytearray(size)
    codec = Codec("base64", compression, "none", 1 << 20)
    if _refuses(
        lambda: ChunkCodec(zstd_window=1 << 26).decode_into(
            memoryview(text), codec, "uint8", memoryview(out)
        )
    ):
        return "refused"
    if compression == "none" and base64.b64encode(out) != text:
        return f"{BAD}{text!r} is not the one spelling of {bytes(out)!r}"
    return "accepted"


def _foreign(seed: int, number: int, folder: Path) -> str:
    chance = _chance(seed, "foreign", number)
    names = sorted(DIALECTS)
    text = DIALECTS[chance.choice(names)].encode()
    if chance.random() < 0.4:
        other = DIALECTS[chance.choice(names)].encode()
        text = b'{"model":{"a":%s,"b":%s},"epoch":1}' % (text, other)
    for _ in range(chance.choice([1, 1, 2])):
        text = shaken(chance, text) if chance.random() < 0.7 else changed_bytes(chance, text)
    options = ForeignOptions(plain_lists=chance.random() < 0.3, limit=1 << 20)
    try:
        read_foreign(io.BytesIO(text), folder, options)
    except jsonckpt.JsonckptError as error:
        str(error)
        return "refused"
    return "accepted"


_Target = Callable[[int, int, Path], str]
#: By name, with the percentage of the trials.
TARGETS: dict[str, tuple[_Target, int]] = {
    "checkpoint": (_checkpoint, 60),
    "manifest": (_manifest, 10),
    "lists": (_lists, 10),
    "codecs": (_codecs, 10),
    "foreign": (_foreign, 10),
}


# --- running ------------------------------------------------------------------------------------


def _share(count: int, start: int, name: str) -> range:
    share = TARGETS[name][1]
    return range(start * share // 100, (start + count) * share // 100)


def fuzz(
    seed: int,
    count: int,
    *,
    start: int = 0,
    targets: tuple[str, ...] = tuple(TARGETS),
    workers: int = 1,
    keep: Path | None = None,
    seconds: float | None = None,
) -> dict[str, Tally]:
    """Run the trials ``start`` to ``start + count`` of a seed, distributed over the targets.

    Args:
        targets: names in :data:`TARGETS`. A single target gets all trials.
        keep: where failed mutants are kept for ``--replay``.
        seconds: stop after about so long.
    """
    found = {}
    with tempfile.TemporaryDirectory(dir=memory_directory(), prefix="fuzz-") as directory:
        for name in targets:
            numbers = (
                range(start, start + count) if len(targets) == 1 else _share(count, start, name)
            )
            trial: Trial = partial(TARGETS[name][0], seed)
            share = None if seconds is None else seconds * len(numbers) / count
            tally = run_trials(trial, numbers, Path(directory), workers=workers, seconds=share)
            found[name] = tally
            for number, what in tally.failures:
                print(f"{name} {number}: {what}", file=sys.stderr)
                if keep is not None:
                    _keep(keep, name, seed, number, what)
    return found


def _keep(keep: Path, target: str, seed: int, number: int, what: str) -> None:
    keep.mkdir(parents=True, exist_ok=True)
    case: dict[str, Any] = {"target": target, "seed": seed, "number": number, "what": what}
    if target == "checkpoint":
        made = mutant(seed, number)
        if made is not None:
            case["form"] = made[0]
            case["files"] = {
                name: base64.b64encode(data).decode() for name, data in made[1].items()
            }
    (keep / f"{target}-{seed}-{number}.json").write_text(json.dumps(case))


def replay(file: Path) -> int:
    """Read a kept mutant again, in this process; tracebacks are not caught."""
    case = json.loads(file.read_text())
    print(case["what"])
    with tempfile.TemporaryDirectory(dir=memory_directory()) as directory:
        if "files" in case:
            files = {name: base64.b64decode(data) for name, data in case["files"].items()}
            verdict = judge(files, case["form"], Path(directory), doors=True)
        else:
            target = TARGETS[case["target"]][0]
            verdict = target(case["seed"], case["number"], Path(directory))
    print(verdict)
    return int(verdict.startswith(BAD))


def options(name: str, full: str) -> argparse.ArgumentParser:
    """The command line of every fuzzer.

    Args:
        name: of the module.
        full: what ``--full`` does.
    """
    parser = command_line(name, full)
    parser.add_argument("--count", type=int)
    parser.add_argument("--seconds", type=float, help="stop after about so long")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--replay", type=Path)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns 1 if anything failed."""
    parser = options("fuzz", f"{FULL} mutants, not {CI}")
    parser.add_argument("--from", dest="start", type=int, default=0)
    parser.add_argument("--target", choices=sorted(TARGETS))
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args(argv)
    if arguments.replay:
        return replay(arguments.replay)
    torch.set_num_threads(1)
    began = time.perf_counter()
    count = arguments.count or (FULL if arguments.full else CI)
    found = fuzz(
        arguments.seed,
        count,
        start=arguments.start,
        targets=(arguments.target,) if arguments.target else tuple(TARGETS),
        workers=arguments.workers,
        keep=arguments.keep,
        seconds=arguments.seconds,
    )
    for name, tally in found.items():
        print(f"  {name}: {tally}")
    total = sum(tally.trials for tally in found.values())
    failures = sum(len(tally.failures) for tally in found.values())
    print(
        f"fuzz: seed {arguments.seed}, from {arguments.start}: {total} mutants, "
        f"{failures} failures, {time.perf_counter() - began:.0f} s"
    )
    return int(failures > 0 or total == 0)


if __name__ == "__main__":
    sys.exit(main())
