"""Puts lies into a valid checkpoint.

A lie is a wrong statement that is otherwise consistent: the forger computes checksums, digests,
ranges, indexes and seals to fit it, unless these are the lie. If the specification is clear, a lie
also states what readers must do. Then it is not enough that all readers agree.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

from hypothesis import strategies as st

from tests.hostile.forge import Forgery, Raw, Record, dumps
from tests.hostile.spelling import ITEMSIZE
from tools.reliability.drawn.sound import Ground, raw_bytes
from tools.reliability.drawn.twists import edited, shown, twisted

ACCEPT, REFUSE = "accept", "refuse"
_MOST_TRIES = 4
_Item = TypeVar("_Item")
Lie: TypeAlias = "Callable[[Teller], None]"


@dataclass
class Teller:
    """Puts lies into one checkpoint.

    Attributes:
        form: the form in which the checkpoint is written.
        words: a description of each lie that changed anything.
        expects: the expected verdict of each: ``"accept"``, ``"refuse"``, or None if readers only
            have to agree.
        pending: edits that will be drawn when the checkpoint is written.
    """

    draw: st.DrawFn
    ground: Ground
    form: str
    words: list[str] = field(default_factory=list)
    expects: list[str | None] = field(default_factory=list)
    pending: int = 0

    @property
    def forgery(self) -> Forgery:
        """The checkpoint."""
        return self.ground.forgery

    def tell(self, lies: Sequence[Lie]) -> None:
        """Apply one of the lies. Lies that do not fit this checkpoint are skipped."""
        for _ in range(_MOST_TRIES):
            before = len(self.words) + self.pending
            self.pick(lies)(self)
            if len(self.words) + self.pending > before:
                return

    def note(self, words: str, expects: str | None = None) -> None:
        """Note that a lie was applied."""
        self.words.append(words)
        self.expects.append(expects)

    def pick(self, items: Iterable[_Item]) -> _Item:
        """One of them."""
        return self.draw(st.sampled_from(list(items)))

    def number(self, low: int, high: int) -> int:
        """An integer, both ends included."""
        return self.draw(st.integers(low, high))

    def hook(self, name: str, edit: Callable[[Any], Any], *, once: bool = False) -> None:
        """Add an edit of what the forger's hook ``name`` gets.

        Args:
            once: only in one of the files of a directory.
        """
        self.pending += 1
        before = getattr(self.forgery, name)
        shards = {record.shard for record in self.forgery.records} or {0}
        several = once and self.form.startswith("directory")
        chosen = self.number(0, max(shards)) if several else 0
        calls = 0

        def both(value: Any) -> Any:
            nonlocal calls
            if before is not None:
                changed = before(value)
                value = value if changed is None else changed
            calls += 1
            if once and calls - 1 != chosen:
                return value
            changed = edit(value)
            return value if changed is None else changed

        setattr(self.forgery, name, both)

    def twist(self, value: Any, where: str, expects: str | None = None) -> Any:
        """The value with one change inside."""
        changed, words = twisted(self.draw, value)
        if dumps(changed) == dumps(value):
            return value  # the same, perhaps as Raw text, which the forger cannot read
        self.note(f"{where}{words}", expects)
        # A hook that returns None has changed nothing.
        return Raw(b"null") if changed is None else changed

    def edit(self, text: bytes, where: str, expects: str | None = None) -> bytes:
        """The text with a single edit."""
        changed = edited(self.draw, text)
        if changed != text:
            self.note(f"{where}: {shown(text)} becomes {shown(changed)}", expects)
        return changed

    def record(self, fits: Callable[[Record], object] = lambda _: True) -> Record | None:
        """A record that fits, if there is one."""
        records = [record for record in self.forgery.records if fits(record)]
        return self.pick(records) if records else None

    def add(self, dtype: str, encoding: str, compression: str = "none") -> Record:
        """An additional record that the state needs, with the given codec."""
        count = self.number(1, 6)
        raw = self.draw(raw_bytes(dtype, count * ITEMSIZE[dtype]))
        name = f"/further/{len(self.forgery.records)}"
        record = Record.of(
            name, dtype, [count], raw,
            encoding=encoding, compression=compression,
            chunk_bytes=self.pick([1 << 10, ITEMSIZE[dtype], 2 * ITEMSIZE[dtype]]),
            algorithm=self.forgery.algorithm,
        )  # fmt: skip
        self.forgery.records.insert(0, record)  # of the first file
        self.ground.raw[name] = raw
        state = self.forgery.state
        if isinstance(state, dict):
            self.forgery.single["state"] = {**state, name: {"$tensor": name}}
        return record

    def if_needed(self, record: Record, expects: str | None) -> str | None:
        """The expected verdict on a lie about the data of a record.

        Not every reader reads data that the state does not need.
        """
        return None if self.is_loose(record) else expects

    def is_loose(self, record: Record) -> bool:
        """Whether the sound state does not refer to the record."""
        name = record.members.get("name")
        return isinstance(name, str) and name in self.ground.loose

    def raw(self, record: Record) -> bytes | None:
        """The bytes of a record, if they are known."""
        name = record.members.get("name")
        return self.ground.raw.get(name) if isinstance(name, str) else None


def named(record: Record) -> str:
    """A record for people to read."""
    return f"record {shown(record.members.get('name'))}"
