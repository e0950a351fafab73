"""An open checkpoint in a notebook: what it shows, what it completes, and how its entries act."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.load.container import Shard
from jsonckpt._src.shown import short_traceback
from tests.support import same

EVIL = "<img src=x onerror=alert(1)>\u202e\x1b[31m"


def a_state() -> dict[str, Any]:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "epoch": 3,
        "history": [1.5, 1.25],
        EVIL: EVIL,
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    jsonckpt.save(a_state(), tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.add(tag)
        assert not attrs


def test_a_checkpoint_shows_itself(path: Path) -> None:
    checkpoint = jsonckpt.open(path)
    assert repr(checkpoint) == f"Checkpoint({str(path)!r}, 9 tensors, 50 elements, 194 B)"
    shown = checkpoint._repr_html_()
    tags = Tags()
    tags.feed(shown)
    assert tags.found == {"div", "b", "br", "table", "tr", "th", "td"}
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    for text in ("/optimizer/param_groups/0/lr</td><td>0.001", "/epoch</td><td>3", "[1.5, 1.25]"):
        assert text in shown


def test_what_a_notebook_shows_is_bounded(tmp_path: Path) -> None:
    state = {f"k{number}": "x" * 1_000 for number in range(1_000)}
    jsonckpt.save(state, tmp_path / "large")
    assert len(jsonckpt.open(tmp_path / "large")._repr_html_()) < 20_000


def test_keys_are_completed(path: Path) -> None:
    keys = jsonckpt.open(path)._ipython_key_completions_()
    assert "/model/weight" in keys
    assert "/optimizer/state/0/exp_avg" in keys


def test_parts_of_the_state(path: Path) -> None:
    checkpoint = jsonckpt.open(path)
    assert checkpoint.at("/optimizer/param_groups/0/lr") == 0.001
    assert checkpoint.at("epoch") == 3
    assert checkpoint.at("/optimizer/param_groups/0/betas/1") == 0.999
    assert list(checkpoint.at("/optimizer/state/0")) == ["step", "exp_avg", "exp_avg_sq"]
    assert checkpoint.at("/model/weight") == checkpoint["/model/weight"]
    assert checkpoint.at("") == checkpoint.state()
    with pytest.raises(KeyError, match=r"nothing at '/optimizer/stat/0'. Did you mean '/optimi"):
        checkpoint.at("/optimizer/stat/0")
    with pytest.raises(KeyError, match=r"at\('/model'\) lists"):
        checkpoint["/model"]


def test_keys_that_look_alike_are_told_apart(tmp_path: Path) -> None:
    jsonckpt.save({0: torch.zeros(1), "0": torch.ones(1), "a/b": 5}, tmp_path / "alike")
    checkpoint = jsonckpt.open(tmp_path / "alike")
    for name, entry in checkpoint.items():
        assert checkpoint.at(name) == entry
    assert checkpoint.at("/a~1b") == 5


def test_entries_have_what_tensors_have(path: Path) -> None:
    state = a_state()
    jsonckpt.save(state, path)
    entry = jsonckpt.open(path)["/model/weight"]
    assert (entry.numel(), entry.ndim) == (12, 2)
    assert same(entry.numpy(), state["model"]["weight"].numpy())
    assert [row.tolist() for row in entry] == state["model"]["weight"].tolist()
    assert all(re.fullmatch("xxh3_128:[0-9a-f]{32}", text) for text in entry.checksums)
    with pytest.raises(TypeError, match=r"'/half': NumPy has no bfloat16. Use .load\(\).to\("):
        jsonckpt.open(path)["/half"].numpy()


def test_an_array_is_one_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    read = Shard.read

    def counting(*args: Any, **kwargs: Any) -> None:
        reads.append(args)
        read(*args, **kwargs)

    monkeypatch.setattr(Shard, "read", counting)
    entry = jsonckpt.open(path)["/model/weight"]
    for make in (np.asarray, np.array, torch.as_tensor, torch.asarray, list):
        reads.clear()
        assert len(make(entry)) == 3
        assert len(reads) == 1
    assert np.asarray(entry, dtype=np.float64).dtype == np.float64
    with pytest.raises(ValueError, match="always copied"):
        entry.__array__(copy=False)


def test_states_of_one_checkpoint_are_equal(path: Path, tmp_path: Path) -> None:
    assert jsonckpt.open(path).state() == jsonckpt.open(path).state()
    state = jsonckpt.load(path)
    jsonckpt.save(state, tmp_path / "again.json", compression="zstd", encoding="base64")
    assert jsonckpt.open(path).state() == jsonckpt.open(tmp_path / "again.json").state()
    state["model"]["weight"][0, 0] += 1
    jsonckpt.save(state, tmp_path / "again.json")
    assert jsonckpt.open(path).state() != jsonckpt.open(tmp_path / "again.json").state()


def test_equal_checksums_need_no_reading(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = jsonckpt.open(path), jsonckpt.open(path)
    monkeypatch.setattr(Shard, "read", None)
    assert one.state() == two.state()
    assert hash(one["/model/weight"]) == hash(two["/model/weight"])
    assert one["/model/weight"] != two["/model/bias"]
    assert one["/model/weight"] != 5


@pytest.mark.parametrize("chunk_size", ["1MiB", "1KiB"])
@pytest.mark.parametrize("checksum", ["xxh3_128", "sha256"])
def test_other_pieces_are_compared_by_their_bits(
    tmp_path: Path, chunk_size: str, checksum: str
) -> None:
    state = {"w": torch.randn(1_000), "v": torch.arange(5)}
    jsonckpt.save(state, tmp_path / "a")
    jsonckpt.save(state, tmp_path / "b", chunk_size=chunk_size, checksum=checksum)
    one, two = jsonckpt.open(tmp_path / "a"), jsonckpt.open(tmp_path / "b")
    assert one["/w"] == two["/w"]
    assert one["/v"] == two["/v"]
    state["w"][-1] += 1
    jsonckpt.save(state, tmp_path / "b", chunk_size=chunk_size, checksum=checksum)
    assert one["/w"] != jsonckpt.open(tmp_path / "b")["/w"]


def test_views_are_compared_by_their_bits(tmp_path: Path) -> None:
    base = torch.arange(12.0)
    jsonckpt.save({"base": base, "part": base[2:5]}, tmp_path / "a")
    jsonckpt.save({"part": base[2:5].clone()}, tmp_path / "b")
    assert jsonckpt.open(tmp_path / "a")["/part"] == jsonckpt.open(tmp_path / "b")["/part"]


def test_results_are_one_line(path: Path) -> None:
    result = jsonckpt.load_into(jsonckpt.load(path), path)
    assert repr(result).startswith("LoadResult(loaded=('/model/weight', '/model/bias', … 9 in all")
    assert "\n" not in repr(jsonckpt.verify(path))
    assert repr(jsonckpt.Limits(tensors=5)) == "Limits(tensors=5)"
    assert repr(jsonckpt.save({"a": 1}, path)).startswith(f"SaveResult(path={str(path)!r}, ")


def test_tracebacks_in_a_notebook_end_at_the_users_code(path: Path) -> None:
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        jsonckpt.open(path)["/model"]
    lines = caught.value._render_traceback_()
    assert lines == short_traceback(caught.value)
    assert len(lines) < 8
    assert "_src" not in "\n".join(lines)
    assert lines[-1].startswith("jsonckpt.ArgumentError: ")
    assert 'jsonckpt.open(path)["/model"]' in "\n".join(lines)


def test_what_an_entry_refuses_is_short_too(path: Path) -> None:
    """An error of Python's own would show 13 to 30 lines."""
    checkpoint = jsonckpt.open(path)
    weight, half = checkpoint["/model/weight"], checkpoint["/half"]
    step = checkpoint["/optimizer/state/0/step"]
    cases: list[tuple[Callable[[], object], type[Exception], str]] = [
        (lambda: weight[3], IndexError, "index '3' is out of bounds for dimension 0 with size 3"),
        (lambda: weight[0, 9], IndexError, "index '9' is out of bounds for dimension 1"),
        (lambda: weight[None, 9], IndexError, "index 9 is out of bounds for dimension 1"),
        (lambda: weight["a"], IndexError, "."),
        (lambda: weight["a":], IndexError, "slice indices must be integers"),
        (lambda: weight[::0], IndexError, "slice step cannot be zero"),
        (lambda: weight[::-1], IndexError, "must be greater than zero"),
        (lambda: step[0], IndexError, "0-dim"),
        (lambda: len(step), TypeError, "without dimensions has no len"),
        (lambda: half.numpy(), TypeError, r"NumPy has no bfloat16.*\.to\(torch\.float32\)"),
        (lambda: np.asarray(half), TypeError, "NumPy has no bfloat16"),
        (lambda: weight.__array__(copy=False), ValueError, "always copied"),
        (lambda: checkpoint[3], KeyError, "name is a str"),  # type: ignore[index]
        (lambda: checkpoint.at(["a"]), KeyError, "place is a str"),  # type: ignore[arg-type]
    ]
    for call, kind, match in cases:
        with pytest.raises(jsonckpt.ArgumentError, match=match) as caught:
            call()
        assert isinstance(caught.value, kind)
        assert len(caught.value._render_traceback_()) < 12


def test_a_name_of_a_plain_value_says_how_to_get_it(path: Path) -> None:
    with pytest.raises(KeyError, match=r"not a tensor: \.at\('/epoch'\) gives it"):
        jsonckpt.open(path)["/epoch"]


class _Picky:
    """Its decoder fails, in code of the user."""


def _fail(_: Any) -> _Picky:
    raise ValueError("the decoder is broken")


def test_the_users_own_code_is_in_the_traceback(tmp_path: Path) -> None:
    jsonckpt.register(_Picky, "test.Picky", to_json=lambda _: {}, from_json=_fail)
    jsonckpt.save({"a": _Picky()}, tmp_path / "picky")
    with pytest.raises(jsonckpt.FormatError) as caught:
        jsonckpt.load(tmp_path / "picky")
    text = "\n".join(caught.value._render_traceback_())
    assert "in _fail" in text
    assert "ValueError: the decoder is broken\nThe above caused:" in text
    assert "_src" not in text


def test_sparse_and_quantized_tensors_are_their_parts(tmp_path: Path) -> None:
    def saved(name: str, value: float, scale: float) -> jsonckpt.Checkpoint:
        with warnings.catch_warnings():  # torch says that these layouts may change
            warnings.simplefilter("ignore")
            state = {
                "sparse": torch.nn.Parameter((torch.eye(3) * value).to_sparse()),
                "quantized": torch.quantize_per_tensor(torch.ones(3), scale, 0, torch.qint8),
            }
            jsonckpt.save(state, tmp_path / name)
        return jsonckpt.open(tmp_path / name)

    one = saved("one", 1.0, 0.5)
    assert one.at("/sparse/values") == one["/sparse/values"]
    assert one.at("/sparse")["shape"] == [3, 3]
    assert one.at("/quantized/scale") == 0.5
    assert one.state() == saved("same", 1.0, 0.5).state()
    assert one.state() != saved("values", 2.0, 0.5).state()
    assert one.state() != saved("scale", 1.0, 0.25).state()


def test_what_jsonckpt_completes_is_its_own() -> None:
    names = dir(jsonckpt)
    assert {"load", "convert", "training", "edit", "Checkpoint"} <= {*names}
    assert {"Any", "sys", "importlib", "TYPE_CHECKING"}.isdisjoint(names)
