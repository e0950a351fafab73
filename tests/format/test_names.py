"""Names of tensors and of shard files, and what selects them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jsonckpt._src.errors import UnsafePathError
from jsonckpt._src.format.filenames import check_shard_name, shard_name
from jsonckpt._src.format.pointer import escape, join, unescape
from jsonckpt._src.state.selector import selector

NAMES = ["/model/w", "/model/w.bias", "/modelx", "/optimizer/state/0/exp_avg", "/a~1b", "/epoch"]


@given(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"])))
def test_escaping_follows_rfc_6901_and_comes_back(key: str) -> None:
    assert "/" not in escape(key)
    assert unescape(escape(key)) == key


def test_control_characters_and_surrogates_are_spelled_out() -> None:
    assert escape("a\nb\x7f\ud800") == "a\\u000ab\\u007f\\ud800"
    assert join("/x", "a/b~") == "/x/a~1b~0"


@pytest.mark.parametrize(
    "name",
    ["../shard-1.json", "/shard-1.json", "shard-1.json/../x", "shard-.json.gz", "manifest.json",
     "shard-A.json", "shard-1.json\0", "shard-1.json\n", "", "shard-.json", "C:shard-1.json",
     "shard-" + "a" * 101 + ".json", "shard-1.JSON", "shard-é.json"],
)  # fmt: skip
def test_unsafe_shard_names(name: str) -> None:
    with pytest.raises(UnsafePathError):
        check_shard_name(name)


def test_own_shard_names_are_safe() -> None:
    for compressed in (False, True):
        name = shard_name("0123456789abcdef" * 2, 99_999, compressed=compressed)
        assert check_shard_name(name) == name


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (None, None, NAMES),
        ("/model", None, ["/model/w", "/model/w.bias"]),
        ("model", None, ["/model/w", "/model/w.bias"]),
        ("model/*", "model/*.bias", ["/model/w"]),
        ("/model/", None, ["/model/w", "/model/w.bias"]),
        ("/model/w", None, ["/model/w"]),
        ("/model*", None, ["/model/w", "/model/w.bias", "/modelx"]),
        (None, "/optimizer", [n for n in NAMES if "optimizer" not in n]),
        (None, "*.bias", [n for n in NAMES if "bias" not in n]),
        (["/epoch", "/optimizer/*"], "*avg", ["/epoch"]),
        ((), None, []),
        (lambda name: len(name) < 7, None, ["/a~1b", "/epoch"]),
        (None, lambda name: name.startswith("/m"), NAMES[3:]),
        ("/[ae]*", None, ["/a~1b", "/epoch"]),
    ],
)
def test_selection(include: object, exclude: object, expected: list[str]) -> None:
    chosen, _ = selector(include, exclude)  # type: ignore[arg-type]
    assert [name for name in NAMES if chosen(name)] == expected


def test_patterns_that_select_nothing_are_reported_by_argument() -> None:
    _, unmatched = selector(["/model", "/nothing", "/no*", "model/w", "[am]*"], "/nothing")
    assert unmatched(NAMES) == [
        ("include", "/nothing"),
        ("include", "/no*"),
        ("exclude", "/nothing"),
    ]
    # A place without tensors may be excluded, not included.
    assert selector("/nothing", "/nothing/*")[1](NAMES, ["/nothing/"]) == [("include", "/nothing")]
    assert selector(lambda _: False, lambda _: False)[1](NAMES) == []
    assert selector((), None)[1](NAMES) == []
