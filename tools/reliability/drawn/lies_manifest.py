"""Lies about a directory: its manifest, and its other files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from tests.hostile.forge import checksum
from tools.reliability.drawn.teller import ACCEPT, REFUSE, Lie, Teller
from tools.reliability.drawn.twists import changed_object, shown, spaced


def _manifest(teller: Teller) -> None:
    def edit(members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        # Other lies change the state.
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
    """Edits of a manifest by hand."""

    def edit(text: bytes) -> bytes:
        start = text.rfind(b'"seal":')
        if start < 0:  # another edit has removed it
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
    """Additional files in the directory, and missing files."""

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


# --- what it says of files and records ----------------------------------------------------------


_KEYS = ["bytes", "text_bytes", "seal", "file", "shard", "offset", "length", "codec"]


def _number(teller: Teller) -> None:
    """A number, a range or a name that differs from the file."""

    def edit(members: Any) -> Any:
        if not isinstance(members, dict):
            return members
        places = _places(members)
        if places:
            where, holder, key = teller.pick(places)
            old = holder[key]
            holder[key] = _other(teller, old)
            teller.note(f"the manifest, {where}: {shown(old)} becomes {shown(holder[key])}", REFUSE)
        return members

    teller.hook("edit_manifest", edit)


def _places(members: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """The statements of a manifest about a file that a reader can check."""
    found: list[tuple[str, Any, Any]] = []
    for name in ("shards", "tensors"):
        rows = members.get(name)
        for at, row in enumerate(rows if type(rows) is list else []):
            if not isinstance(row, dict):
                continue
            found += [(f"{name}/{at}/{key}", row, key) for key in _KEYS if key in row]
            chunks = row.get("chunks")
            for number, chunk in enumerate(chunks if type(chunks) is list else []):
                where = f"{name}/{at}/chunks/{number}"
                if type(chunk) is list and len(chunk) > 1:
                    found += [(f"{where}/{place}", chunk, place) for place in range(2)]
    return [place for place in found if type(place[1][place[2]]) in (int, str)]


def _other(teller: Teller, value: Any) -> Any:
    if isinstance(value, int):
        more = teller.pick([1, -1, 2, 8, -value - 1, 2**31, 2**63, 2**64, value])
        return value + more if more else value + 1
    if value.startswith("shard-"):
        return teller.pick(
            [f"../{value}", f"/{value}", f"{value}\0", f"{value}/", value.upper(), f"./{value}",
             "shard-.json", "shard-x.json", "manifest.json", value.removesuffix(".zst") + ".gz", ""]
        )  # fmt: skip
    digit = teller.pick(sorted(set("0123456789abcdef") - {value[-1:]}))
    return value[:-1] + digit


def _entry_missing(teller: Teller) -> None:
    """A record that the manifest lacks, with totals that fit."""

    def edit(members: Any) -> Any:
        rows = members.get("tensors") if isinstance(members, dict) else None
        totals = members.get("totals") if rows else None
        if type(rows) is not list or not isinstance(totals, dict):
            return members
        gone = rows.pop(teller.number(0, len(rows) - 1))
        # Another lie may have removed all of this.
        with contextlib.suppress(TypeError, KeyError, IndexError):
            totals["tensors"] -= 1
            totals["bytes"] -= len(teller.ground.raw[gone["name"]])
            totals["stored_bytes"] -= sum(chunk[1] for chunk in gone["chunks"])
        teller.note(f"the manifest lacks {shown(gone)}", REFUSE)
        return members

    teller.hook("edit_manifest", edit)


DIRECTORY_LIES: list[Lie] = [
    _manifest, _manifest, _manifest_members, _manifest_text, _manifest_by_hand, _number, _number,
    _entry_missing, _directory,
]  # fmt: skip
