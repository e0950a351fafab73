"""Small mutations of a good checkpoint, each drawn by a ``random.Random``.

A mutation changes a member, a payload, a range, a line or some bytes of a forgery. The forger then
writes it with checksums that fit.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

from tests.hostile.forge import Forgery, Raw, Record, dumps
from tests.hostile.spelling import ITEMSIZE

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
    members[chance.choice([*members, "device", "stride", "storage", "requires", "x"])] = (
        chance.choice(VALUES)
    )


def _drop_member(chance: random.Random, forgery: Forgery) -> None:
    members = _any_record(chance, forgery).members
    del members[chance.choice(list(members))]


def _size(chance: random.Random, forgery: Forgery) -> None:
    shape = _any_record(chance, forgery).members.get("shape")
    if isinstance(shape, list) and shape:
        shape[chance.randrange(len(shape))] = chance.choice(VALUES)


def _layout(chance: random.Random, forgery: Forgery) -> None:
    """The optional members ``stride`` and ``storage``, right or nearly right."""
    members = _any_record(chance, forgery).members
    shape = members.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        return
    if chance.random() < 0.5:
        name, numbers, step = "stride", [0] * len(shape), 1
        for at in chance.sample(range(len(shape)), len(shape)):
            numbers[at], step = step, step * shape[at]
    else:
        nbytes = math.prod(shape) * ITEMSIZE.get(str(members.get("dtype")), 1)
        offset = chance.choice([0, nbytes, 2 * nbytes])
        name, numbers = "storage", [chance.choice([0, 0, 1]), offset, offset + nbytes]
    if numbers and chance.random() < 0.4:
        numbers[chance.randrange(len(numbers))] = chance.choice([0, 1, 2, 3, 8, 64, 2**62, -1])
    members[name] = numbers


def _payload(chance: random.Random, forgery: Forgery) -> None:
    record = _any_record(chance, forgery)
    if record.payloads:
        number = chance.randrange(len(record.payloads))
        record.payloads[number] = changed_bytes(chance, record.payloads[number])


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
        record.head_line = changed_bytes(chance, dumps(record.members)[:-1] + b',"chunks":[\n')
    else:
        record.tail_line = changed_bytes(chance, forgery._tail(record))


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
    forgery.edit_shard = lambda text: changed_bytes(chance, text)


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
    _member, _member, _drop_member, _size, _layout, _layout, _payload, _payload_moved,
    _checksum, _chunks, _record,
    _order, _state, _single, _tail, _line, _index, _shard, _manifest, _manifest,
]  # fmt: skip


def changed_bytes(chance: random.Random, data: bytes) -> bytes:
    """A few bytes changed, removed, doubled or inserted."""
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
