"""An adapter whose framework is not installed says which extra brings it."""

from __future__ import annotations

import importlib
import sys

import pytest

from jsonckpt._src.errors import JsonckptError


@pytest.mark.parametrize(
    ("module", "framework", "extra"),
    [("transformers", "transformers", "hf"), ("accelerate", "accelerate", "accelerate")],
)
def test_the_message_names_the_extra(
    module: str, framework: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = f"jsonckpt.integrations.{module}"
    gone = (public, framework, f"{framework}.", "jsonckpt._src.frameworks.")
    for name in list(sys.modules):
        if name in gone or name.startswith(gone[2:]):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, framework, None)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(public)
    assert f'{public} needs {framework}: pip install "jsonckpt[{extra}]"' == str(caught.value)
    assert not isinstance(caught.value, JsonckptError)
