"""Lies about files: heads, indexes, seals, the manifest, the state, the bytes on disk."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import Members, Raw, checksum, dumps, zstd
from tests.hostile.spelling import ITEMSIZE
from tests.reliability.drawn.frames import FAULTS, sound_frame
from tests.reliability.drawn.plain import TEXT
from tests.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller, named
from tests.reliability.drawn.twists import VALUE, changed_object, edited, shown, spaced, wild

__all__ = ["lies_for"]

_SINGLE = ["created_at", "created_by", "metadata"]
#: Tags that hold other values.
_HOLDERS = [
    "$parameter", "$requires_grad", "$tuple", "$set", "$dict", "$slice", "$ndarray", "$deque",
]  # fmt: skip
_SOUND_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), TEXT, st.just({"a": [1, {}]}), st.just([[], "x"])
)


# --- heads, indexes, seals ----------------------------------------------------------------------


def _head(teller: Teller) -> None:
    """The members that every file has, told everywhere."""
    name = teller.pick(teller.forgery.head)
    teller.forgery.head[name] = teller.twist(teller.forgery.head[name], f"{name} of all files")


def _shard_head(teller: Teller) -> None:
    """The members of one file's head."""

    def edit(members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        if teller.draw(st.booleans()):
            changed = changed_object(teller.draw, members)
            teller.note(f"members of a head: {shown(changed)}")
            return changed
        name = teller.pick(members)
        return members | {name: teller.twist(members[name], f"{name} of a head")}

    teller.hook("edit_head", edit, once=True)


def _about(teller: Teller) -> None:
    """What a single file and a manifest say besides their tensors."""
    if teller.number(0, 3) == 3:
        totals = teller.forgery._totals()
        teller.forgery.totals = teller.twist(totals, "totals")
        return
    name = teller.pick(_SINGLE)
    teller.forgery.single[name] = teller.twist(teller.forgery.single[name], name)


def _index(teller: Teller) -> None:
    teller.hook("edit_index", lambda rows: teller.twist(rows, "index", REFUSE), once=True)


def _trailer(teller: Teller) -> None:
    def edit(text: bytes) -> bytes:
        return teller.edit(text, "the last line", REFUSE)

    teller.hook("edit_trailer", edit, once=True)


def _seal(teller: Teller) -> None:
    algorithm = teller.forgery.algorithm
    right = checksum(algorithm, b"")
    others = [right, f"{algorithm}:{right}", f"{algorithm}:{right.upper()}", f"sha1:{right}", None]
    teller.forgery.seal = teller.draw(st.sampled_from(others) | VALUE)
    teller.note(f"seal: {shown(teller.forgery.seal)}", REFUSE)


def _shard_text(teller: Teller) -> None:
    def edit(text: bytes) -> bytes:
        return teller.edit(text, "the text of a file")

    teller.hook("edit_shard", edit, once=True)


def _file(teller: Teller) -> None:
    teller.hook("edit_file", lambda data: teller.edit(data, "the bytes of a file"), once=True)


# --- what must be ignored, and what must be known -----------------------------------------------


def _unknown_member(teller: Teller) -> None:
    """A member that this version does not name."""
    pair = {teller.pick(["later", "x", "$x", "Name", "ä"]): teller.draw(_SOUND_VALUE)}
    _put_member(teller, pair, ACCEPT, bodies=True)


def _requires(teller: Teller) -> None:
    value: Any = teller.pick([["x"], ["", "x"], "x", None, [], [1], {}, ["jsonckpt"]])
    _put_member(teller, {"requires": value}, ACCEPT if value == [] else REFUSE, bodies=False)


def _put_member(teller: Teller, pair: dict[str, Any], expects: str, *, bodies: bool) -> None:
    """A further member in an object where members that are not known are ignored.

    Args:
        bodies: in the objects below ``tensors``, ``codecs`` and the like, too.
    """
    directory = teller.form.startswith("directory")
    places = ["head", "record", "tail"] + ["manifest", "entry"] * directory
    if bodies:
        places += ["totals"] + ["shards", "codecs"] * directory
    place = teller.pick(places)
    told = f"{place} has {shown(pair)}"
    if place == "head":

        def edit_head(members: Any) -> Any:
            if not isinstance(members, dict):
                return members
            teller.note(told, expects)
            return {**members, **pair}

        teller.hook("edit_head", edit_head, once=True)
    elif place in ("record", "tail"):
        if (record := teller.record()) is not None:
            (record.members if place == "record" else record.tail).update(pair)
            teller.note(f"{named(record)}: {told}", teller.if_needed(record, expects))
    elif place == "totals":
        totals = teller.forgery._totals()
        if isinstance(totals, dict):
            teller.forgery.totals = {**totals, **pair}
            teller.note(told, expects)
    else:

        def edit_manifest(members: Any) -> Any:
            if not isinstance(members, dict):
                return members
            if place == "manifest":
                teller.note(told, expects)
                return {**members, **pair}
            rows = members.get("tensors" if place == "entry" else place)
            objects = [row for row in rows if isinstance(row, dict)] if type(rows) is list else []
            if objects:
                teller.pick(objects).update(pair)
                teller.note(told, expects)
            return members

        teller.hook("edit_manifest", edit_manifest)


# --- the manifest -------------------------------------------------------------------------------


def _manifest(teller: Teller) -> None:
    def edit(members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        # A state is drawn about elsewhere.
        names = [*(name for name in members if name != "state"), "tensors", "tensors", "shards"]
        name = teller.pick(names)
        if name not in members:
            return members
        return members | {name: teller.twist(members[name], f"{name} of the manifest")}

    teller.hook("edit_manifest", edit)


def _manifest_members(teller: Teller) -> None:
    def edit(members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        changed = changed_object(teller.draw, members)
        teller.note(f"members of the manifest: {shown(changed)}")
        return changed

    teller.hook("edit_manifest", edit)


def _manifest_text(teller: Teller) -> None:
    hook = teller.pick(["edit_body", "edit_sealed"])
    teller.hook(hook, lambda text: teller.edit(text, f"the manifest, {hook}"))


def _manifest_by_hand(teller: Teller) -> None:
    """What may be done to a manifest by hand."""

    def edit(text: bytes) -> bytes:
        start = text.rfind(b'"seal":')
        if start < 0:  # another edit has taken it away
            return text
        body, seal = text[: start - 2], text[start:]
        kind = teller.pick(["spaces", "no seal", "another algorithm", "spaces behind"])
        if kind == "spaces":
            body = spaced(teller.draw, body)
            total = checksum(teller.forgery.algorithm, body)
            seal = b'"seal":"%s:%s"}\n' % (teller.forgery.algorithm.encode(), total.encode())
        elif kind == "no seal":
            seal = b'"seal":null}\n'
        elif kind == "another algorithm":
            algorithm = teller.pick(["xxh3_128", "sha256", "blake3"])
            total = checksum(algorithm, body)
            seal = b'"seal":"%s:%s"}' % (algorithm.encode(), total.encode())
        else:
            seal += teller.pick([b"\n", b" ", b"\t\r\n"])
        teller.note(f"the manifest by hand: {kind}", ACCEPT)
        return body + b",\n" + seal

    teller.hook("edit_sealed", edit)


def _directory(teller: Teller) -> None:
    """Other files beside those of the checkpoint, and files that are not there."""

    def afterwards(path: Path) -> None:
        kind = teller.pick(["more", "missing"])
        if kind == "more":
            name = teller.pick(["shard-x.json", ".manifest-1.tmp", "notes", "manifest.json.zst"])
            (path / name).write_bytes(teller.draw(st.binary(max_size=4)))
            teller.note(f"there is a file {name}, too", ACCEPT)
        else:
            name = teller.pick(sorted(file.name for file in path.iterdir()))
            (path / name).unlink()
            teller.note(f"{name} is missing", REFUSE)

    teller.forgery.afterwards = afterwards
    teller.pending += 1


# --- the state ----------------------------------------------------------------------------------


def _state(teller: Teller) -> None:
    teller.forgery.single["state"] = teller.twist(teller.forgery.state, "state")


def _put(teller: Teller, value: Any, told: str, expects: str | None = None) -> None:
    """A further value in the state."""
    state = teller.forgery.state
    if not isinstance(state, dict) or "further" in state:
        return
    if len(state) == 1 and next(iter(state))[:1] == "$":
        expects = None  # a tag is no longer one when it has company
    # In front and behind: what is said first of a tensor counts.
    first = teller.draw(st.booleans())
    pair = {"further": value}
    teller.forgery.single["state"] = {**pair, **state} if first else {**state, **pair}
    teller.note(f"state: {told}: {shown(value)}", expects)


def _wild(teller: Teller) -> None:
    _put(teller, wild(teller.draw), "anything")


def _nested_tag(teller: Teller) -> None:
    """A part of the state inside of a tag that may not hold it, or may."""
    found = list(_nodes(teller.forgery.state))
    node = copy.deepcopy(teller.pick(found)) if found else None
    value: Any = node
    for _ in range(teller.number(1, 3)):
        tag = teller.pick(_HOLDERS)
        body: Any = value
        if tag == "$parameter":
            body = {"data": value, "requires_grad": teller.draw(st.booleans())}
        elif tag == "$ndarray":
            body = {"dtype": teller.pick(["<f4", "|u1"]), "shape": [3], "data": value}
        elif tag == "$deque":
            body = {"items": [value], "maxlen": 2}
        elif tag in ("$tuple", "$set"):
            body = [value]
        elif tag == "$dict":
            body = [[value, 1]]
        elif tag == "$slice":
            body = [value, None, value]
        value = {tag: body}
    _put(teller, value, "tags in one another")


def _nodes(node: Any) -> Any:
    """Everything in a state that is tagged."""
    if isinstance(node, dict):
        if len(node) == 1 and next(iter(node))[:1] == "$":
            yield node
        for value in node.values():
            yield from _nodes(value)
    elif isinstance(node, list) and not isinstance(node, Members):
        for value in node:
            yield from _nodes(value)


def _state_text(teller: Teller) -> None:
    text = dumps(teller.forgery.state)
    if teller.draw(st.booleans()):
        changed = spaced(teller.draw, text)
        if changed != text:
            teller.note(f"state: {shown(changed)}", ACCEPT)
    else:
        changed = teller.edit(text, "state")
    if changed != text:
        teller.forgery.single["state"] = Raw(changed)


def _view(teller: Teller) -> None:
    """A view that lies inside its record, at its edge, or beyond."""
    record = teller.record(lambda r: teller.raw(r) is not None)
    if record is None:
        return
    nbytes = len(teller.raw(record) or b"")
    dtype = teller.pick([str(record.members["dtype"]), *sorted(ITEMSIZE)])
    if dtype not in ITEMSIZE:
        return
    near = [0, 1, 2, max(0, nbytes // ITEMSIZE[dtype] - 1), nbytes // ITEMSIZE[dtype]]
    sizes = st.sampled_from([*near, nbytes + 1, 2**31, 2**62, 2**63 - 1, 2**63, -1])
    rank = teller.number(0, 3)
    shape = [teller.draw(sizes) for _ in range(rank)]
    stride = [teller.draw(sizes) for _ in range(rank)]
    offset = teller.draw(sizes)
    body = {"name": "/further", "of": record.members["name"], "dtype": dtype}
    body |= {"shape": shape, "stride": stride, "offset": offset}
    numbers = [*shape, *stride, offset]
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride))
    inside = 0 in shape or (last + 1) * ITEMSIZE[dtype] <= nbytes
    expects: str | None = REFUSE
    if all(0 <= number < 2**63 for number in numbers) and inside:
        # Many elements in one place are a view, but perhaps more than torch can count.
        small = math.prod(size for size in shape if size) < 2**20
        odd = dtype == "bool" and record.members["dtype"] != "bool"
        expects = ACCEPT if small and not odd else None
    _put(teller, {"$view": body}, f"of {nbytes} bytes", expects)


def _reference(teller: Teller) -> None:
    """References that do not go together."""
    record = teller.record(lambda r: isinstance(r.members.get("name"), str))
    if record is None:
        return
    name = record.members["name"]
    tied = {"$tied": {"name": "/tie", "of": name}}
    kind = teller.pick(["twice", "two things", "a record's name", "nowhere", "again"])
    if kind == "twice":
        _put(teller, [tied, copy.deepcopy(tied)], kind, ACCEPT)
    elif kind == "two things":
        _put(teller, [tied, {"$tied": {"name": "/tie", "of": name + "x"}}], kind, REFUSE)
    elif kind == "a record's name":
        _put(teller, [{"$tied": {"name": name, "of": name}}], kind)
    elif kind == "nowhere":
        body = {"name": "/v", "of": "/nowhere", "dtype": "uint8", "shape": [0], "stride": [1]}
        nowhere = [{"$tensor": "/nowhere"}, {"$tied": {"name": "/t", "of": "/nowhere"}}]
        _put(teller, teller.pick([*nowhere, {"$view": body | {"offset": 0}}]), kind, REFUSE)
    else:
        _put(teller, {"$tensor": name}, kind, ACCEPT)


def _limit(teller: Teller) -> None:
    """At a limit of section 8, and one beyond."""
    beyond = teller.draw(st.booleans())
    expects = REFUSE if beyond else ACCEPT
    if teller.draw(st.booleans()):
        digits = 1_000 + beyond
        start = teller.pick([b"9", b"0.", b"-"])
        spelled = Raw(start + b"3" * (digits - len(start)))
        _put(teller, spelled, f"{digits} characters", expects)
    else:
        # The file and the state are two levels.
        levels = 198 + beyond
        _put(teller, Raw(b"[" * levels + b"]" * levels), f"{2 + levels} levels", expects)


# --- compressed files ---------------------------------------------------------------------------


def _compressed(teller: Teller) -> None:
    """A compressed file in frames of its own, sound ones or one of them with a fault."""
    shards = {record.shard for record in teller.forgery.records} or {0}
    chosen = teller.number(0, max(shards)) if teller.form == "directory_zst" else 0
    calls = 0

    def compress(text: bytes) -> bytes:
        nonlocal calls
        calls += 1
        if calls - 1 != chosen:
            return zstd(text)
        cut = teller.number(0, len(text))
        pieces = [text[:cut], text[cut:]]
        made = [sound_frame(teller.draw, piece) for piece in pieces]
        fault = teller.pick([None, None, *FAULTS])
        if fault is not None:
            at = teller.number(0, 1)
            fault(teller.draw, made[at], pieces[at])
        kind = fault.__name__.strip("_") if fault is not None else "sound"
        teller.note(f"frames of a file: {kind}", ACCEPT if fault is None else REFUSE)
        return b"".join(map(bytes, made))

    teller.forgery.compress = compress
    teller.pending += 1


def _compressed_bytes(teller: Teller) -> None:
    def compress(text: bytes) -> bytes:
        checked = teller.draw(st.booleans())
        return edited(
            teller.draw, zstd(text, level=teller.pick([1, 3, 19]), write_checksum=checked)
        )

    teller.forgery.compress = compress
    teller.note("a single edit of a file's frame")


_COMMON: list[Lie] = [
    _head, _shard_head, _about, _index, _index, _trailer, _seal, _shard_text, _file,
    _unknown_member, _requires, _state, _state, _wild, _nested_tag, _state_text, _view, _view,
    _reference, _limit,
]  # fmt: skip
_DIRECTORY: list[Lie] = [
    _manifest, _manifest, _manifest, _manifest_members, _manifest_text, _manifest_by_hand,
    _directory,
]  # fmt: skip
_COMPRESSED: list[Lie] = [_compressed, _compressed, _compressed_bytes]


def lies_for(form: str) -> list[Lie]:
    """The lies of this module that a form of a checkpoint can tell."""
    found = list(_COMMON)
    if form.startswith("directory"):
        found += _DIRECTORY
    if form.endswith("zst"):
        found += _COMPRESSED
    return found
