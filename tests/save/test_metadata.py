"""``metadata`` must be plain JSON."""

from __future__ import annotations

import math

import pytest

from jsonckpt import UnsupportedTypeError
from jsonckpt._src.format.json_text import Json
from jsonckpt._src.save.reader_limits import require_json


def test_metadata_must_be_plain_json() -> None:
    good: Json = {"a": [1, 2.5, None, {"b": "é"}]}
    assert require_json(good, "metadata") is good
    cycle: list[object] = []
    cycle.append(cycle)
    for bad, message in (
        ({1: "a"}, "metadata: the key '1'"),
        ({"a": {"b/c": (1,)}}, "metadata '/a/b~1c': a value of type 'tuple'"),
        ({"a": [math.nan]}, "metadata '/a/0': the float nan"),
        (["\ud800"], "surrogate"),
        ([10**700], "an integer of"),
        (cycle, "cycle"),
    ):
        with pytest.raises(UnsupportedTypeError) as caught:
            require_json(bad, "metadata")
        assert message in str(caught.value)
