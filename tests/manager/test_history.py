"""``history.json`` and rotation, as pure code: hostile texts, and what stays."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import FormatError, JsonckptError
from jsonckpt._src.manager.rotation import Best, Rotation
from jsonckpt._src.manager.saved_step import (
    DAMAGED,
    KEPT,
    REMOVED,
    SavedStep,
    dump,
    from_marks,
    marks,
    name_of,
    parse,
    step_in,
)

RUN = "0123456789ab"


def row(save: int, step: int | None = None, **facts: Any) -> SavedStep:
    step = save if step is None else step
    return SavedStep(step=step, path=f"run/step-{step:08}", save=save, run=RUN, **facts)


ROWS = [
    row(1, metrics={"loss": 0.5, "n": 3, "nan": float("nan"), "inf": -float("inf")}, seconds=1.25),
    row(2, status=REMOVED, time="2026-11-27T22:31:05Z", bytes=12, after=1),
    row(3, status=DAMAGED, problem='no "manifest.json": \u2028 é', after=2),
]


def test_rows_come_back() -> None:
    text = dump(ROWS)
    assert repr(parse(text, "run/")) == repr(ROWS)
    assert len(json.loads(text)) == 3
    assert dump([]) == b"[\n]\n"
    assert parse(b"[\n]\n", "run/") == []


def test_marks_come_back() -> None:
    found = from_marks(json.loads(json.dumps(marks(ROWS[0]))), ROWS[0].path, ROWS[0].name)
    assert found is not None
    assert repr(found) == repr(ROWS[0].now(seconds=None))
    wrongs: list[Any] = [None, [], {}, {"run": RUN}, {**marks(ROWS[0]), "save": -1}, {1: 2}]
    for wrong in wrongs:
        assert from_marks(wrong, ROWS[0].path, ROWS[0].name) is None
    assert from_marks(marks(ROWS[0]), "run/step-00000002", "step-00000002") is None


GOOD: dict[str, Any] = {"step": 5, "path": "step-00000005", "status": "kept", "save": 1, "run": RUN}


@pytest.mark.parametrize(
    "changes",
    [
        {"path": "../step-00000005"}, {"path": "step-00000005/.."}, {"path": "step-00000006"},
        {"path": "/step-00000005"}, {"path": "step-5"}, {"path": ""}, {"path": None}, {"path": 5},
        {"path": "step-00000005\n"}, {"path": "step-00000005.json.gz"}, {"path": ["step-00000005"]},
        {"step": -1}, {"step": 1 << 63}, {"step": 5.0}, {"step": True}, {"step": None},
        {"save": "1"}, {"save": -1}, {"save": None}, {"run": "x"}, {"run": None}, {"run": RUN * 2},
        {"status": "gone"}, {"status": ["kept"]}, {"status": None}, {"metrics": []},
        {"metrics": {"a": "high"}}, {"metrics": {"a": None}}, {"metrics": {"a": [1]}},
        {"metrics": {"a": 10**400}}, {"seconds": -1}, {"seconds": "1"}, {"seconds": 10**400},
        {"bytes": -5}, {"bytes": 0.5}, {"bytes": None}, {"after": "4"}, {"time": 5},
        {"problem": {"a": 1}},
    ],
)  # fmt: skip
def test_wrong_rows_are_refused(changes: dict[str, Any]) -> None:
    assert parse(json.dumps([GOOD]).encode(), "run/")[0].step == 5
    with pytest.raises(JsonckptError):
        parse(json.dumps([{**GOOD, **changes}]).encode(), "run/")


@pytest.mark.parametrize(
    "text",
    [
        b"", b"{}", b"null", b"[1]", b"[[]]", b"[{}]", b"\xff", b"[" * 100_000, b'[{"step":1e999}]',
        b'[{"step":5,"step":5}]', b'{"steps":[]}', b"[" + b"9" * 100_000 + b"]",
        json.dumps([GOOD, {**GOOD, "save": 2}]).encode(),  # one path twice
        json.dumps([GOOD, {**GOOD, "path": "step-00000005-2"}]).encode(),  # one save twice
        json.dumps([GOOD, {**GOOD, "save": 2, "step": 6, "path": "step-00000006", "run": "0" * 12}])
        .encode(),
    ],
    ids=range(15),
)  # fmt: skip
def test_wrong_texts_are_refused(text: bytes) -> None:
    with pytest.raises(JsonckptError):
        parse(text, "run/")


def test_a_text_that_is_cut_anywhere_is_refused() -> None:
    text = dump(ROWS)
    for length in range(len(text) - 1):
        with pytest.raises(FormatError):
            parse(text[:length], "run/")


def test_changed_bytes_raise_nothing_else() -> None:
    draw, text = random.Random(1), dump(ROWS)
    for _ in range(2_000):
        changed = bytearray(text)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(len(changed))] = draw.randrange(256)
        try:
            rows = parse(bytes(changed), "run/")
        except JsonckptError:
            continue
        assert all(step_in(one.name) == one.step for one in rows)
        dump(rows)


def test_names() -> None:
    assert name_of(5, {"step-00000005", "step-00000005-2.json"}, ".json") == "step-00000005-3.json"
    assert step_in(name_of((1 << 63) - 1, [], "")) == (1 << 63) - 1
    for name in (
        "step-5",
        "step-00000005x",
        "step-00000005-",
        "checkpoint-00000005",
        ".step-00000005",
    ):
        assert step_in(name) is None


# --- rotation -------------------------------------------------------------------------------------

SAVES = st.lists(
    st.tuples(
        st.integers(0, 12),
        st.sampled_from([KEPT, KEPT, KEPT, DAMAGED, REMOVED]),
        st.sampled_from([None, 0.0, 1.0, 2.0, float("nan")]),
    ),
    max_size=14,
)


@given(
    SAVES,
    st.one_of(st.none(), st.integers(1, 4)),
    st.one_of(st.none(), st.integers(1, 3)),
    st.sampled_from(["min", "max"]),
    st.one_of(st.none(), st.integers(1, 5)),
)
def test_rotation_keeps_what_it_promises(
    saves: list[Any], last: int | None, best: int | None, mode: str, every: int | None
) -> None:
    rows = [
        row(save, step, status=status, metrics={} if loss is None else {"loss": loss})
        for save, (step, status, loss) in enumerate(saves, 1)
    ]
    rule = None if best is None else Best("loss", mode, best)
    victims = Rotation(last, rule, every).victims(rows)
    gone = {one.save for one in victims}
    whole = [one for one in rows if one.status == KEPT]
    assert gone <= {one.save for one in rows if one.status in (KEPT, DAMAGED)}
    current = [
        one for one in whole if not any(o.step == one.step and o.save > one.save for o in whole)
    ]
    newest = current if last is None else current[-last:]
    stay = {one.save for one in newest}
    if every is not None:
        stay |= {one.save for one in current if one.step % every == 0}
    if best is not None:
        having = [one for one in whole if one.metrics.get("loss", float("nan")) >= 0]
        having.sort(key=lambda one: (one.metrics["loss"] * (1 if mode == "min" else -1), one.save))
        stay |= {one.save for one in having[:best]}
    assert {one.save for one in whole} - gone == stay
    # The newest is always there, and after the removal nothing more is to be removed.
    if whole:
        assert whole[-1].save not in gone
    left = [one.now(status=REMOVED) if one.save in gone else one for one in rows]
    assert Rotation(last, rule, every).victims(left) == []


def test_any_changed_character_of_a_row_is_found() -> None:
    """A digit that became another one would be another order, or another best step."""
    text = dump([ROWS[0], row(2, metrics={"loss": 0.25}, seconds=1.0, bytes=12, after=1)])
    whole = repr(parse(text, "run/"))
    for place in range(len(text)):
        for bit in (1, 2, 4, 16):
            changed = bytearray(text)
            changed[place] ^= bit
            try:
                rows = parse(bytes(changed), "run/")
            except JsonckptError:
                continue
            assert repr(rows) == whole


def test_a_row_that_somebody_edits_needs_no_checksum() -> None:
    rows = json.loads(dump([row(1, metrics={"loss": 0.5})]))
    rows[0]["metrics"]["loss"] = 0.75
    with pytest.raises(FormatError, match="does not match its member check"):
        parse(json.dumps(rows).encode(), "run/")
    del rows[0]["check"]
    assert parse(json.dumps(rows, indent=4).encode(), "run/")[0].metrics == {"loss": 0.75}


def test_a_number_of_a_save_that_none_can_follow_is_refused() -> None:
    with pytest.raises(FormatError, match="more than any run counts"):
        parse(dump([row(2**53, step=1)]), "run/")
