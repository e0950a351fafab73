"""Lies at random, told consistently: every reader gives the same verdict and none crashes.

Each forgery changes a few things of a good checkpoint (members, payloads, ranges, lines, bytes) and
is written with checksums that fit. ``JSONCKPT_FUZZ=100000`` asks for that many, beginning after
``JSONCKPT_SEED``.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import jsonckpt
from tests.hostile.cases import write
from tests.hostile.forge import Forgery, Raw, Record, dumps, good
from tests.readers import readers_for
from tests.support import difference

COUNT = int(os.environ.get("JSONCKPT_FUZZ", "400"))
SEED = int(os.environ.get("JSONCKPT_SEED", "0"))

VALUES: list[Any] = [
    0, 1, -1, 2, 3, 4, 8, 12, 16, 31, 2**31, 2**32 - 1, 2**53, 2**62, 2**63 - 1, 2**63, 2**64,
    True, False, None, 0.0, 1.0, -0.5, 1e300, "", "a", "/", "/w", "/h", "$storage/0", "float32",
    "bool", "int64", "bfloat16", "complex64", "uint8", "base64", "list", "zstd", "none", "shuffle",
    "cpu", "cuda:0", "meta", [], [0], [1, 2], [[]], {}, {"a": 1}, {"$tensor": "/w"},
    {"$tied": {"name": "/t", "of": "/h"}}, {"$tuple": [1]}, {"$dict": [[1, 2]]},
    Raw(b"1e2"), Raw(b"-0"), Raw(b"1E400"), Raw(b'"\\u0041"'), Raw(b"[1,]"), "xxh3_128", "sha256",
]  # fmt: skip

Mutation = Callable[[random.Random, Forgery], Any]


def _any_record(chance: random.Random, forgery: Forgery) -> Record:
    return chance.choice(forgery.records)


def _member(chance: random.Random, forgery: Forgery) -> None:
    members = _any_record(chance, forgery).members
    members[chance.choice([*members, "device", "requires", "x"])] = chance.choice(VALUES)


def _drop_member(chance: random.Random, forgery: Forgery) -> None:
    members = _any_record(chance, forgery).members
    del members[chance.choice(list(members))]


def _size(chance: random.Random, forgery: Forgery) -> None:
    shape = _any_record(chance, forgery).members.get("shape")
    if isinstance(shape, list) and shape:
        shape[chance.randrange(len(shape))] = chance.choice(VALUES)


def _payload(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    if record.payloads:
        number = chance.randrange(len(record.payloads))
        record.payloads[number] = _bytes(chance, record.payloads[number])


def _payload_moved(chance: random.Random, forgery: Forgery) -> None:
    one, two = _any_record(chance, forgery), _any_record(chance, forgery)
    if one.payloads and two.payloads:
        one.payloads[-1], two.payloads[0] = two.payloads[0], one.payloads[-1]


def _checksum(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    if record.sums:
        record.sums[chance.randrange(len(record.sums))] = chance.choice([*VALUES, "ab" * 16])


def _chunks(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    if chance.random() < 0.5 and record.payloads:
        record.payloads.pop()
        record.sums.pop()
    else:
        record.payloads.append(chance.choice([b"", b"AAAA", b"0,1"]))
        record.sums.append("ab" * 16)


def _record(chance: random.Random, forgery: Forgery) -> None:
    position = chance.randrange(len(forgery.records))
    if chance.random() < 0.5:
        del forgery.records[position]
    else:
        forgery.records.insert(position, _any_record(chance, forgery))


def _order(chance: random.Random, forgery: Forgery) -> None:
    chance.shuffle(forgery.records)


def _state(chance: random.Random, forgery: Forgery) -> None:
    state = forgery.single["state"]
    if isinstance(state, dict):
        state[chance.choice([*state, "x"])] = chance.choice(VALUES)


def _single(chance: random.Random, forgery: Forgery) -> None:
    members = chance.choice([forgery.head, forgery.single])
    members[chance.choice([*members, "requires", "x", "index"])] = chance.choice(VALUES)


def _tail(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    record.tail[chance.choice(["x", "requires", "name", "sha256", "index"])] = chance.choice(VALUES)


def _line(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    if chance.random() < 0.5:
        record.head_line = _bytes(chance, dumps(record.members)[:-1] + b',"chunks":[\n')
    else:
        record.tail_line = _bytes(chance, forgery._tail(record))


def _index(chance: random.Random, forgery: Forgery) -> None:
    def edit(rows: list[Any]) -> None:
        place: Any = rows
        while isinstance(place, list) and place:
            number = chance.randrange(len(place))
            if not isinstance(place[number], list) or chance.random() < 0.2:
                place[number] = chance.choice(VALUES)
                return
            place = place[number]

    forgery.edit_index = edit


def _shard(chance: random.Random, forgery: Forgery) -> None:
    forgery.edit_shard = lambda text: _bytes(chance, text)


def _manifest(chance: random.Random, forgery: Forgery) -> None:
    def edit(manifest: Any) -> None:
        place = manifest
        while True:
            keys = list(place) if isinstance(place, dict) else range(len(place))
            if not keys:
                return
            key = chance.choice(list(keys))
            inner = place[key]
            if not isinstance(inner, dict | list) or not inner or chance.random() < 0.1:
                place[key] = (
                    inner + 1
                    if type(inner) is int and chance.random() < 0.5
                    else (chance.choice(VALUES))
                )
                return
            place = inner

    forgery.edit_manifest = edit


MUTATIONS: list[Mutation] = [
    _member, _member, _drop_member, _size, _payload, _payload_moved, _checksum, _chunks, _record,
    _order, _state, _single, _tail, _line, _index, _shard, _manifest, _manifest,
]  # fmt: skip


def _bytes(chance: random.Random, data: bytes) -> bytes:
    """A few bytes of it changed, lost, doubled or put in."""
    changed = bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5])):
        at = chance.randrange(len(changed) + 1)
        kind = chance.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del changed[at : at + chance.choice([1, 1, 4, 40])]
        elif kind == 2:
            changed[at:at] = chance.choice(
                [b"\n", b" ", b'"', b",", b"[", b"]", b"{", b"}", b"0", b"\\", b"\xff", b"\0", b"="]
            )
        elif kind == 3:
            piece = changed[at : at + chance.choice([1, 8, 80])]
            changed[at:at] = piece
        else:
            changed = changed[:at] if chance.random() < 0.1 else changed
    return bytes(changed)


def forged(seed: int) -> Forgery:
    """The forgery of a seed."""
    chance = random.Random(seed)
    forgery = good("sha256" if chance.random() < 0.1 else "xxh3_128")
    for _ in range(chance.choice([1, 1, 1, 2, 3])):
        chance.choice(MUTATIONS)(chance, forgery)
    return forgery


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is one."""
    if not os.path.isdir("/dev/shm"):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        yield Path(directory)


@pytest.mark.parametrize("form", ["directory", "single", "zst", "directory_zst"])
def test_readers_agree(form: str, memory: Path) -> None:
    verdicts = {"accepted": 0, "refused": 0}
    for seed in range(SEED, SEED + COUNT):
        directory = memory / str(seed)
        directory.mkdir()
        try:
            path = write(forged(seed), form, directory)
        except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):
            continue  # a lie that the forger cannot tell
        found: dict[str, Any] = {}
        messages: list[str] = []
        for name, reader in readers_for(path).items():
            try:
                found[name] = reader(path)
            except jsonckpt.JsonckptError as error:
                messages.append(str(error))
            except BaseException as error:
                raise AssertionError(f"seed {seed}, {form}, {name}: {error!r}") from error
        for message in messages:
            assert message.isprintable(), f"seed {seed}: {message}"
            assert len(message) < 2_000, f"seed {seed}: {message}"
        expected = len(readers_for(path))
        assert len(found) in (0, expected), f"seed {seed}, {form}: only {list(found)} load it"
        states = list(found.values())
        for state in states[1:]:
            assert difference(states[0], state) is None, f"seed {seed}, {form}"
        verdicts["accepted" if states else "refused"] += 1
    # Some changes mean nothing (the order of records, another metadata), most are refused.
    assert verdicts["refused"] > COUNT / 3
    assert verdicts["accepted"] > 0
