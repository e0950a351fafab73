"""Lies about records: their members, their data, the text around it, and their order."""

from __future__ import annotations

import base64
import copy
import math
import re
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import Members, Record, checksum, dumps, encode
from tests.hostile.spelling import ITEMSIZE
from tests.list_reference import reference
from tools.reliability.drawn.frames import FAULTS, Frame, sound_frame
from tools.reliability.drawn.sound import raw_bytes
from tools.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller, named
from tools.reliability.drawn.twists import VALUE, changed_object, edited, shown, spaced
from tools.reliability.fuzz import LIST_ITEMS

_ALPHABET = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_OPENING = b',"chunks":[\n'


# --- members ------------------------------------------------------------------------------------


def _member(teller: Teller) -> None:
    """A member of a record is changed; the manifest and the digest agree with it."""
    if (record := teller.record()) is not None:
        name = teller.pick(record.members)
        told = f"{named(record)}: {name}"
        record.members[name] = teller.twist(record.members[name], told)


def _members(teller: Teller) -> None:
    """Members of a record are missing, more, twice, or in another order."""
    if (record := teller.record()) is not None:
        changed = changed_object(teller.draw, record.members)
        record.head_line = dumps(changed)[:-1] + _OPENING
        teller.note(f"members of {named(record)}: {shown(changed)}")
        if isinstance(changed, dict):
            record.members = changed


def _head_line(teller: Teller) -> None:
    if (record := teller.record()) is not None:
        line = record.head_line or dumps(record.members)[:-1] + _OPENING
        changed = teller.edit(line, f"head line of {named(record)}")
        if changed != line:
            record.head_line = changed


def _stride(teller: Teller) -> None:
    """Strides of a record, perhaps not those of a dense tensor."""
    if (record := teller.record(_has_sizes)) is None:
        return
    shape = record.members["shape"]
    rank = max(0, len(shape) + teller.pick([0, 0, 0, 1, -1]))
    numbers = [1, 0, 2, 3, 4, 6, 2**31, 2**62, 2**63, -1, True, 1.0, None]
    stride = [teller.pick(numbers) for _ in range(rank)]
    record.members["stride"] = stride
    wrong = rank != len(shape) or any(type(step) is not int or step < 0 for step in stride)
    told = f"stride of {named(record)}: {shown(stride)}"
    teller.note(told, REFUSE if wrong else None)


def _storage(teller: Teller) -> None:
    """A place in a storage, perhaps one where the record does not fit."""
    if (record := teller.record(_has_sizes)) is None:
        return
    item = ITEMSIZE[record.members["dtype"]]
    nbytes = math.prod(record.members["shape"]) * item
    offset = teller.pick([0, nbytes, item, 1, 3, -item, 2**63, None])
    size = teller.pick([nbytes, 2 * nbytes, nbytes + item, nbytes - 1, 2**40, 2**63, True, "1"])
    place = teller.pick([[0, offset, size], [1, offset, size], [0, offset], [-1, offset, size]])
    record.members["storage"] = place
    sound = len(place) == 3 and all(type(part) is int and 0 <= part < 2**63 for part in place)
    sound = sound and nbytes > 0 and offset % item == 0 and offset + nbytes <= size
    told = f"storage of {named(record)}: {shown(place)}"
    teller.note(told, None if sound else REFUSE)


def _has_sizes(record: Record) -> bool:
    shape, dtype = record.members.get("shape"), record.members.get("dtype")
    sizes = isinstance(shape, list) and all(type(size) is int for size in shape)
    return sizes and isinstance(dtype, str) and dtype in ITEMSIZE


def _tail_line(teller: Teller) -> None:
    if (record := teller.record()) is not None:
        line = record.tail_line or teller.forgery._tail(record)
        changed = teller.edit(line, f"tail line of {named(record)}")
        if changed != line:
            record.tail_line = changed


def _spaces(teller: Teller) -> None:
    """White space in the head line of a record, where JSON allows it."""
    if (record := teller.record()) is not None and record.head_line is None:
        line = dumps(record.members)[:-1]
        changed = spaced(teller.draw, line, marks=[b" ", b"\t", b"\r"])
        record.head_line = changed + _OPENING
        teller.note(f"head line of {named(record)}: {shown(changed)}")


def _called(teller: Teller) -> None:
    """A record has another name, everywhere."""
    record = teller.record(lambda r: isinstance(r.members.get("name"), str))
    if record is None:
        return
    name = record.members["name"]
    other = teller.pick(
        [
            "/\0", "/\x7f", "/\x1f", "/\ud800", "w", "$", "$storage", "$tensor/1", "/x\n", "/\x80",
            "/\u2028", "/#2", "//", "$storage/", "/" + "ü" * 511, "/" + "ü" * 512, "/" + "x" * 1023,
            "/" + "x" * 1024,
        ]
    )  # fmt: skip
    if any(r.members.get("name") == other for r in teller.forgery.records):
        return
    good = other.startswith(("/", "$storage/"))
    good &= len(other.encode("utf-8", "surrogatepass")) <= 1024
    good &= not any(ord(c) < 32 or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in other)
    record.members["name"] = other
    teller.forgery.single["state"] = _renamed(teller.forgery.state, name, other)
    if name in teller.ground.raw:
        teller.ground.raw[other] = teller.ground.raw.pop(name)
    if name in teller.ground.loose:
        teller.ground.loose.add(other)
    teller.note(f"{shown(name)} is called {shown(other)} everywhere", ACCEPT if good else REFUSE)


def _shape(teller: Teller) -> None:
    """A shape without elements that is beyond the limits, or just within them."""
    record = teller.add("uint8", "base64")
    shape: Any = teller.pick(
        [
            [1] * 63 + [0], [1] * 64 + [0], [2**63 - 1, 0], [2**63, 0], [2**31, 2**31, 0, 2],
            [2**32, 2**31, 0], [2**62, 0, 2], [-1, 0], [0, -1], [0, 0.0], [True, 0], [0, "1"],
            [0, None], [[0]],
        ]
    )  # fmt: skip
    record.members["shape"] = shape
    record.fill(b"", teller.forgery.algorithm)
    teller.ground.raw[record.members["name"]] = b""
    sizes = [size for size in shape if type(size) is int and 0 <= size < 2**63]
    sound = len(sizes) == len(shape) <= 64 and math.prod(size for size in sizes if size) < 2**63
    teller.note(f"shape of {named(record)}: {shown(shape)}", ACCEPT if sound else REFUSE)


def _device(teller: Teller) -> None:
    if (record := teller.record()) is not None:
        device = teller.pick(
            [
                "cpu",
                "cpu:0",
                "cuda:0",
                "CPU",
                "meta",
                "",
                "cpu:",
                "nonsense",
                "cuda:123456",
                None,
                0,
            ]
        )
        record.members["device"] = device
        # What is not a device of torch is refused if a tensor must go there.
        sound = ACCEPT if device == "cpu" else None
        told = f"device of {named(record)}: {shown(device)}"
        pattern = isinstance(device, str) and re.fullmatch("[a-z]{1,20}(:[0-9]{1,5})?", device)
        teller.note(told, teller.if_needed(record, sound if pattern else REFUSE))


def _renamed(node: Any, name: str, other: str) -> Any:
    """A state in which a record has another name."""
    if isinstance(node, list) and not isinstance(node, Members):
        return [_renamed(item, name, other) for item in node]
    if not isinstance(node, dict):
        return node
    if list(node) == ["$tensor"]:
        return {"$tensor": other} if node["$tensor"] == name else node
    result = {key: _renamed(value, name, other) for key, value in node.items()}
    if list(node) in (["$tied"], ["$view"]):
        (body,) = result.values()
        if isinstance(body, dict) and body.get("of") == name:
            body["of"] = other
    return result


# --- data ---------------------------------------------------------------------------------------


def _chunk(teller: Teller, **wanted: str) -> tuple[Record, int, bytes]:
    """A chunk of a record that no other lie has touched: its record, number and raw bytes.

    Args:
        wanted: members that the record must have. If no record has them, one is added.
    """
    found = []
    for record in teller.forgery.records:
        members, raw = record.members, teller.raw(record)
        if raw is None or record.around is not None:
            continue
        if any(members[name] != value for name, value in wanted.items()):
            continue
        size, item = members["chunk_bytes"], ITEMSIZE.get(str(members["dtype"]), 0)
        if type(size) is not int or not item or size < item or size % item or len(raw) % item:
            continue
        pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
        if pieces and record.sums == [checksum(teller.forgery.algorithm, p) for p in pieces]:
            found.append((record, pieces))
    if not found:
        dtype = wanted.get("dtype") or teller.pick(["uint8", "float32", "int64", "bool"])
        encoding = wanted.get("encoding", "base64")
        record = teller.add(dtype, encoding, wanted.get("compression", "none"))
        raw, size = teller.ground.raw[record.members["name"]], record.members["chunk_bytes"]
        found = [(record, [raw[start : start + size] for start in range(0, len(raw), size)])]
    record, pieces = teller.pick(found)
    number = teller.number(0, len(pieces) - 1)
    return record, number, pieces[number]


def _put_raw(teller: Teller, record: Record, number: int, data: bytes) -> None:
    """The chunk holds other data, with a checksum that fits. This data must come back."""
    raw, size = teller.ground.raw[record.members["name"]], record.members["chunk_bytes"]
    raw = raw[: number * size] + data + raw[(number + 1) * size :]
    teller.ground.raw[record.members["name"]] = raw
    record.sums[number] = checksum(teller.forgery.algorithm, data)


def _understood(teller: Teller) -> bool:
    """Whether the state has rules for the data beyond its dtype: indices, scales, bools."""
    text = dumps(teller.forgery.state)
    return b'"$sparse"' in text or b'"$quantized"' in text


def _data(teller: Teller) -> None:
    """Other data, correctly encoded. The checksum may fit or not."""
    kind = teller.pick(["unlike its checksum", "other", "longer", "shorter", "no bool"])
    record, number, chunk = _chunk(teller, **({"dtype": "bool"} if kind == "no bool" else {}))
    members = record.members
    item = ITEMSIZE[members["dtype"]]
    expects: str | None = REFUSE
    if kind == "longer":
        other = chunk + bytes(item * teller.number(1, 3))
    elif kind == "shorter":
        other = chunk[:-item]
    elif kind == "no bool":
        at = teller.number(0, len(chunk) - 1)
        other = chunk[:at] + bytes([teller.number(2, 255)]) + chunk[at + 1 :]
    else:
        other = teller.draw(raw_bytes(members["dtype"], len(chunk)))
        if kind != "unlike its checksum":
            expects = None if _understood(teller) else ACCEPT
    if other == chunk:
        return
    record.payloads[number] = encode(other, members)
    if kind != "unlike its checksum":
        _put_raw(teller, record, number, other)
    teller.note(
        f"chunk {number} of {named(record)}: {kind}, {shown(other)}",
        teller.if_needed(record, expects),
    )


def _sums(teller: Teller) -> None:
    record = teller.record(lambda r: r.sums)
    if record is None:
        return
    if teller.draw(st.booleans()):
        sums = teller.twist(record.sums, f"checksums of {named(record)}")
        record.sums = sums if isinstance(sums, list) else [sums]
        return
    number = teller.number(0, len(record.sums) - 1)
    right = str(record.sums[number])
    at = teller.number(0, max(0, len(right) - 1))
    digit = teller.pick(sorted(set("0123456789abcdef") - {right[at : at + 1]}))
    record.sums[number] = right[:at] + digit + right[at + 1 :]
    told = f"checksum {number} of {named(record)}: digit {at} is {digit}"
    teller.note(told, teller.if_needed(record, REFUSE))


def _digest(teller: Teller) -> None:
    if (record := teller.record()) is not None:
        right = checksum(teller.forgery.algorithm, record.identity())
        wrong = [right[:-1], right + "0", "0" * len(right), right.replace(right[0], "A")]
        record.digest = teller.draw(st.sampled_from(wrong) | VALUE)
        teller.note(f"digest of {named(record)}: {shown(record.digest)}", REFUSE)


def _base64_text(teller: Teller) -> None:
    """Faults that base64 decoders are known to accept."""
    record, number, _ = _chunk(teller, encoding="base64")
    text = record.payloads[number]
    padding = len(text) - len(text.rstrip(b"="))
    at = teller.number(0, len(text))
    kind = teller.pick(["bits", "more padding", "padding", "space", "byte", "cut", "more"])
    changed = text + b"="
    if kind == "bits" and padding:
        # The last character before the padding has two or four unused bits.
        place = len(text) - padding - 1
        code = _ALPHABET.find(text[place]) + teller.number(1, 3 if padding == 1 else 15)
        changed = text[:place] + _ALPHABET[code : code + 1] + text[place + 1 :]
    elif kind == "padding" and padding:
        changed = text[: -teller.number(1, padding)]
    elif kind == "space":
        changed = text[:at] + teller.pick([b" ", b"\t", b"\r", b"\0"]) + text[at:]
    elif kind == "byte":
        mark = teller.pick([b"\xff", b"\x80", b"\\", b"*", b"-", b"_", b"="])
        changed = text[:at] + mark + text[at + 1 :]
    elif kind == "cut":
        changed = text[:at]
    elif kind == "more":
        changed = text + teller.pick([b"AAAA", b"A", b"A===", b"QQ=="])
    if changed != text:
        record.payloads[number] = changed
        told = f"chunk {number} of {named(record)}: {shown(text)} becomes {shown(changed)}"
        teller.note(told, teller.if_needed(record, REFUSE))


def _states_no_size(_: st.DrawFn, made: Frame, __: bytes) -> None:
    made.single, made.flag = False, 0


def _frame(teller: Teller) -> None:
    """The zstd frame of a chunk: another valid form, or one with a fault."""
    record, number, chunk = _chunk(teller, encoding="base64", compression="zstd")
    if record.members["filter"] not in ("none", "shuffle"):
        return
    raw = base64.b64decode(encode(chunk, {**record.members, "compression": "none"}))
    made = sound_frame(teller.draw, raw)
    fault = teller.pick([None, None, None, _states_no_size, *FAULTS])
    if fault is not None:
        fault(teller.draw, made, raw)
    record.payloads[number] = base64.b64encode(bytes(made))
    kind = fault.__name__.strip("_") if fault is not None else "sound"
    told = f"frame {number} of {named(record)}, {kind}: {made}"
    teller.note(told, teller.if_needed(record, REFUSE if fault is not None else ACCEPT))


# --- text ---------------------------------------------------------------------------------------

_DECIMALS = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False).map(lambda number: repr(number).encode()),
    st.floats(width=32, allow_nan=False, allow_infinity=False).map(lambda x: repr(x).encode()),
    st.floats(width=16, allow_nan=False, allow_infinity=False).map(lambda x: b"%.30e" % x),
    st.integers(-(2**65), 2**65).map(lambda number: b"%d" % number),
    st.tuples(st.integers(0, 10**40), st.integers(-400, 400)).map(lambda pair: b"%de%d" % pair),
)
_REFERENCE = ("bool", "uint8", "int64", "float64", "float32", "float16", "bfloat16")


def _list_text(teller: Teller) -> None:
    """Numbers in every spelling. A slow and simple reader gives the expected values."""
    record, number, chunk = _chunk(teller, encoding="list")
    dtype = record.members["dtype"]
    items = record.payloads[number].split(b",")
    for _ in range(teller.number(1, 2)):
        items[teller.number(0, len(items) - 1)] = teller.draw(
            st.sampled_from(LIST_ITEMS) | _DECIMALS
        )
    text = b",".join(items)
    if teller.number(0, 4) == 4:
        text = edited(teller.draw, text)
    if text == record.payloads[number]:
        return
    record.payloads[number] = text
    expects: str | None = None
    # The reference reader knows few NaN payloads of the wide dtypes, and has no limit on a payload.
    if (
        (dtype in _REFERENCE or dtype.startswith("float8"))
        and len(text) <= 64
        and b"0x" not in text
    ):
        meant = reference(text, dtype, len(chunk) // ITEMSIZE[dtype])
        expects = REFUSE
        if meant is not None:
            _put_raw(teller, record, number, meant)
            expects = None if _understood(teller) else ACCEPT
    told = f"chunk {number} of {named(record)}, {dtype}: {shown(text)}"
    teller.note(told, teller.if_needed(record, expects))


def _payload_text(teller: Teller) -> None:
    if (record := teller.record(lambda r: r.payloads)) is not None:
        number = teller.number(0, len(record.payloads) - 1)
        where = f"chunk {number} of {named(record)}"
        record.payloads[number] = teller.edit(record.payloads[number], where)


def _around(teller: Teller) -> None:
    """The text around a payload. The ranges and the seal fit."""
    if (record := teller.record(lambda r: r.payloads)) is not None:
        around = list(record.surroundings())
        number = teller.number(0, len(around) - 1)
        before, after = around[number]
        where = f"around chunk {number} of {named(record)}"
        if teller.draw(st.booleans()):
            around[number] = (teller.edit(before, where), after)
        else:
            around[number] = (before, teller.edit(after, where))
        if around != record.surroundings():
            record.around = around


# --- order --------------------------------------------------------------------------------------


def _chunks(teller: Teller) -> None:
    """A chunk that is missing, doubled, or swapped with another."""
    record = teller.record(
        lambda r: r.payloads and r.around is None and len(r.sums) == len(r.payloads)
    )
    if record is None:
        return
    at = teller.number(0, len(record.payloads) - 1)
    kind = teller.pick(["missing", "twice", "moved"])
    for items in (record.payloads, record.sums):
        if kind == "twice":
            items.insert(at, items[at])
        else:
            taken = items.pop(at)
            if kind == "moved":
                items.insert(0, taken)
    if kind != "moved" or at:
        teller.note(f"chunk {at} of {named(record)}: {kind}", None if kind == "moved" else REFUSE)


def _records(teller: Teller) -> None:
    """A record that is missing, doubled, or in another place or file."""
    records = teller.forgery.records
    record = teller.record()
    if record is None:
        return
    at = next(number for number, other in enumerate(records) if other is record)
    kind = teller.pick(["missing", "twice", "moved", "in another file"])
    expects: str | None = ACCEPT
    if kind == "missing":
        del records[at]
        expects = ACCEPT if teller.is_loose(record) else REFUSE
    elif kind == "twice":
        twin = copy.deepcopy(record)
        twin.shard = teller.number(0, 2)
        records.append(twin)
        expects = REFUSE
    elif kind == "moved":
        records.insert(0, records.pop(at))
        expects = None
    else:
        record.shard = teller.number(0, 3)
    if kind != "moved":  # the entries of a manifest are in the order of its files
        records.sort(key=lambda r: r.shard)
    teller.note(f"{named(record)}: {kind}", expects)


#: In every form of a checkpoint.
RECORD_LIES: list[Lie] = [
    _member, _member, _members, _shape, _device, _stride, _storage, _head_line, _tail_line,
    _spaces, _called, _data, _data, _sums, _digest, _base64_text, _frame, _frame, _list_text,
    _list_text, _payload_text, _around, _chunks, _records,
]  # fmt: skip
