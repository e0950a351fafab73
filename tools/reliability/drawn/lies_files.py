"""Lies about the text of files: heads, indexes, seals, unknown members, frames."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import checksum, zstd
from tools.reliability.drawn.frames import FAULTS, sound_frame
from tools.reliability.drawn.plain import TEXT
from tools.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller, named
from tools.reliability.drawn.twists import VALUE, changed_object, edited, shown

_SINGLE = ["created_at", "created_by", "metadata"]
#: Objects that may have the member ``requires``, and those of a manifest only.
_WITH_REQUIRES = ["head", "record", "tail", "manifest", "entry"]
_IN_MANIFEST = ["manifest", "entry", "shards", "codecs"]
_SOUND_VALUE = st.one_of(
    st.none(), st.booleans(), st.integers(), TEXT, st.just({"a": [1, {}]}), st.just([[], "x"])
)


# --- heads, indexes, seals ----------------------------------------------------------------------


def _head(teller: Teller) -> None:
    """The members that every file has, changed in all files."""
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
    """The members of a single file and a manifest other than the tensors."""
    if teller.number(0, 3) == 3:
        totals = teller.forgery._totals()
        changed = teller.twist(totals, "totals")
        if changed is not totals:  # else they follow records that other lies have added
            teller.forgery.totals = changed
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


def _mixed(teller: Teller) -> None:
    """A file of another save among those of this one."""
    if not teller.form.startswith("directory"):
        return
    other = teller.pick(["0" * 32, teller.forgery.head.get("save_id")])
    checksum_ = teller.pick(["xxh3_128", "sha256", "blake3"])
    same = other == teller.forgery.head.get("save_id")

    def edit(members: Any) -> Any:
        if not isinstance(members, dict) or (same and checksum_ == members.get("checksum")):
            return members
        teller.note(f"a file of another save: {shown([other, checksum_])}", REFUSE)
        return {**members, "save_id": other, "checksum": checksum_}

    teller.hook("edit_head", edit, once=True)


def _index_offset(teller: Teller) -> None:
    def edit(text: bytes) -> bytes:
        start = text.rfind(b":") + 1
        number = text[start:].rstrip(b"}\n")
        if not number.strip().isdigit():
            return text
        right = int(number)
        wrong = teller.pick([0, right - 1, right + 1, right + 1000, 10**19, 10**20 - 1, 2**63])
        teller.note(f"index_offset: {right} becomes {wrong}", REFUSE)
        return text[:start] + b"%20d}\n" % wrong

    teller.hook("edit_trailer", edit, once=True)


def _cut(teller: Teller) -> None:
    """A file that ends too early."""

    def edit(data: bytes) -> bytes:
        if not data:
            return data
        left = teller.number(0, len(data) - 1)
        teller.note(f"{left} of {len(data)} bytes of a file", REFUSE)
        return data[:left]

    teller.hook("edit_file" if teller.draw(st.booleans()) else "edit_shard", edit, once=True)


# --- what must be ignored, and what must be known -----------------------------------------------


def _unknown_member(teller: Teller) -> None:
    """A member that this version does not name."""
    pair = {teller.pick(["later", "x", "$x", "Name", "ä"]): teller.draw(_SOUND_VALUE)}
    _put_member(teller, pair, ACCEPT, [*_WITH_REQUIRES, "totals", "shards", "codecs"])


def _requires(teller: Teller) -> None:
    value: Any = teller.pick([["x"], ["", "x"], "x", None, [], [1], {}, ["jsonckpt"]])
    _put_member(teller, {"requires": value}, ACCEPT if value == [] else REFUSE, _WITH_REQUIRES)


def _put_member(teller: Teller, pair: dict[str, Any], expects: str, places: Sequence[str]) -> None:
    """An additional member in an object at one of the places."""
    if not teller.form.startswith("directory"):
        places = [place for place in places if place not in _IN_MANIFEST]
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


def _known_member(teller: Teller) -> None:
    """A known member, repeated in the wrong place."""
    if teller.draw(st.booleans()):
        name = teller.pick(["index", "seal", "index_offset"])
        _put_member(teller, {name: teller.pick([None, [], "x"])}, REFUSE, ["head"])
    elif (record := teller.record()) is not None:
        name = teller.pick(["name", "dtype", "chunk_bytes", "chunks", "digest"])
        record.tail[name] = record.members.get(name)
        told = f"{named(record)}: {name} in its tail line, too"
        teller.note(told, teller.if_needed(record, REFUSE))


# --- compressed files ---------------------------------------------------------------------------


def _compressed(teller: Teller) -> None:
    """A compressed file with other frames. One of them may have a fault."""
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


FILE_LIES: list[Lie] = [
    _head, _shard_head, _mixed, _about, _index, _index, _trailer, _index_offset, _seal, _shard_text,
    _file, _cut, _unknown_member, _requires, _known_member,
]  # fmt: skip
COMPRESSED_LIES: list[Lie] = [_compressed, _compressed, _compressed_bytes]
