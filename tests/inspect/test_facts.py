"""``jsonckpt.inspect``: the facts of a checkpoint, against the state that was saved."""

from __future__ import annotations

import collections
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.inspect.plain_values import kind_of, members_of, text_of
from jsonckpt._src.inspect.tree import ASCII, tree_lines
from jsonckpt.training import rng_state


def training_state() -> dict[str, Any]:
    """What a training loop saves, with a tie and a view."""
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Linear(4, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    model(torch.ones(1, 8)).sum().backward()
    optimizer.step()
    schedule.step()
    weights = model.state_dict()
    weights["tied.weight"] = weights["0.weight"]
    weights["rows"] = weights["1.weight"][:1]
    return {
        "model": weights,
        "optimizer": optimizer.state_dict(),
        "scheduler": schedule.state_dict(),
        "scaler": {"scale": 65536.0, "growth_factor": 2.0, "_growth_tracker": 7},
        "rng": rng_state(cuda=False),
        "epoch": 3,
        "global_step": 1234,
        "best": np.float32(2.25),
        "history": {"train_loss": [3.0, 2.5, 2.25], "val_loss": [3.1]},
        "log": [{"epoch": 1, "loss": 3.2}, {"epoch": 2, "loss": float("nan")}],
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("inspect")
    state = training_state()
    jsonckpt.save(state, path / "c", metadata={"run": 7})
    jsonckpt.save(state, path / "c.json", checksum="sha256")
    jsonckpt.save(state, path / "c.json.zst")
    return path


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_the_state(saved: Path, name: str) -> None:
    facts = jsonckpt.inspect(saved / name)
    found = {(fact.what, fact.path): (fact.text, fact.value) for fact in facts.state}
    lr = training_state()["optimizer"]["param_groups"][0]["lr"]
    assert found["epoch", "/epoch"] == ("3", 3)
    assert found["step", "/global_step"] == ("1234", 1234)
    text, value = found["learning rate", "/optimizer/param_groups/0/lr"]
    assert value == lr
    assert "weight_decay 0.1" in text
    assert found["optimizer", "/optimizer"][0].startswith("1 group; 4 parameters; state of 4: step")
    text, value = found["schedule", "/scheduler"]
    assert text.startswith("like CosineAnnealingLR, last_epoch 1")
    assert found["scaler", "/scaler"] == (
        "scale 65536.0, growth_factor 2.0, growth_tracker 7",
        65536,
    )
    assert found["history", "/history/train_loss"] == ("3 values, last 2.25", 2.25)
    assert found["history", "/log"][0] == "2 entries, last: epoch 2, loss nan"
    assert found["value", "/best"] == ("2.25", 2.25)
    assert found["rng", "/rng/python"][0].startswith("python: Mersenne Twister at ")
    assert found["rng", "/rng/numpy"][0].startswith("numpy: MT19937 at position ")
    assert found["rng", "/rng/torch"][0] == "torch: state of a torch generator"


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_tensors_and_groups(saved: Path, name: str) -> None:
    facts = jsonckpt.inspect(saved / name)
    opened = jsonckpt.open(saved / name)
    assert [
        (tensor.name, tensor.dtype, tensor.shape, tensor.nbytes) for tensor in facts.tensors
    ] == [
        (entry.name, str(entry.dtype)[6:], tuple(entry.shape), entry.nbytes)
        for entry in opened.values()
    ]
    assert (facts.count("tied"), facts.count("view")) == (1, 1)
    assert facts.nbytes == sum(group.nbytes for group in facts.groups())
    assert facts.stored_bytes == sum(group.stored_bytes for group in facts.groups(9))
    model = facts.groups()[0]
    assert (model.name, model.tensors, model.numel) == ("/model", 6, 8 * 4 + 4 + 4 * 2 + 2)
    assert [group.name for group in facts.groups(2)][:3] == ["/model/0", "/model/1", "/model/tied"]
    assert facts.file_bytes == sum(
        file.stat().st_size
        for file in ([saved / name] if "." in name else (saved / name).iterdir())
    )
    assert (
        repr(facts)
        == f"Inspection({str(saved / name)!r}, 20 tensors, {facts.nbytes / 1000:.1f} kB)"
    )


def test_the_digest_and_whether_it_can_be_pinned(tmp_path: Path) -> None:
    for name in ("c", "c.json", "c.json.zst"):
        result = jsonckpt.save({"w": torch.ones(2)}, tmp_path / name)
        facts = jsonckpt.inspect(tmp_path / name)
        assert (facts.digest, facts.pin) == (result.digest, None)
        assert jsonckpt.verify(tmp_path / name).digest == result.digest
        result = jsonckpt.save({"w": torch.ones(2)}, tmp_path / name, checksum="sha256")
        facts = jsonckpt.inspect(tmp_path / name, expected_digest=result.pin)
        assert facts.digest == facts.pin == result.pin == jsonckpt.verify(tmp_path / name).pin
    edited = tmp_path / "c.json"
    text = edited.read_bytes()
    edited.write_bytes(text[: text.rindex(b'"seal":')] + b'"seal":null}')
    facts = jsonckpt.inspect(edited)
    assert (facts.sealed, facts.digest, facts.pin) == (False, None, None)


def test_a_pipe(saved: Path) -> None:
    text = (saved / "c.json").read_bytes()
    facts = jsonckpt.inspect(io.BytesIO(text))
    assert (facts.path, facts.kind, facts.file_bytes) == ("-", "pipe", len(text))
    assert facts.tensors == jsonckpt.inspect(saved / "c.json").tensors
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.inspect(io.BytesIO(text[:-9]))


def test_without_torch(saved: Path) -> None:
    code = (
        "import sys, jsonckpt; facts = jsonckpt.inspect(sys.argv[1]); facts.groups(); "
        "assert 'torch' not in sys.modules; print(len(facts.tensors))"
    )
    for name in ("c", "c.json", "c.json.zst"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(saved / name)], capture_output=True, text=True
        )
        assert (done.stdout, done.stderr) == ("20\n", "")


def test_every_kind_of_value_is_named(tmp_path: Path) -> None:
    import datetime
    import decimal

    state = {
        1: {"a": (1, "x"), ("t", 2): {3}},
        "deque": collections.deque([1], maxlen=3),
        "ordered": collections.OrderedDict(a=torch.ones(1)),
        "count": collections.Counter("aab"),
        "big": 10**700,
        "nan": float("-inf"),
        "when": datetime.date(2026, 1, 2),
        "decimal": decimal.Decimal("1.50"),
        "array": np.arange(3),
        "sparse": torch.eye(2).to_sparse(),
        "parameter": torch.nn.Parameter(torch.ones(1)),
        "size": torch.Size([1, 2]),
        "bytes": b"ab",
    }
    jsonckpt.save(state, tmp_path / "c.json")
    facts = jsonckpt.inspect(tmp_path / "c.json")
    lines = [f"{line.key}  {line.text}" for line in tree_lines(facts, 9)]
    assert lines[1:] == [
        "1  dict of 2",
        'a  (1, "x")',
        "('t', 2)  set of 1",
        "0  3",
        "deque  deque of 1",
        "0  1",
        "ordered  OrderedDict of 1 · 1 tensor, 4 B",
        "a  float32 [1]",
        "count  Counter of 2",
        "a  2",
        "b  1",
        "big  an integer of 2,326 bits",
        "nan  -inf",
        'when  date "2026-01-02"',
        'decimal  decimal "1.50"',
        "array  NumPy array int64 [3]",
        "sparse  sparse tensor of 2 tensors",
        "parameter  float32 [1]",
        "size  size [1, 2]",
        'bytes  bytes "YWI="',
    ]
    assert all(line.strokes.isascii() for line in tree_lines(facts, 9, ASCII))


#: Bodies that no writer writes.
MALFORMED: list[Any] = [
    {"$view": 3}, {"$tied": {}}, {"$tensor": 4}, {"$tensor": "/no"}, {"$view": {"name": "/v"}},
    {"$view": {"name": "/v", "of": "/w", "dtype": "float32", "shape": [-1], "stride": [1],
               "offset": 0}},
    {"$view": {"name": "/v", "of": "/w", "dtype": "x", "shape": [1], "stride": [1], "offset": 0}},
    {"$view": {"name": "/v", "of": "/w", "dtype": "float32", "shape": [1], "stride": [],
               "offset": 0}},
    {"a": {"$view": {"name": "/v", "of": "/w", "dtype": "float32", "shape": [1], "stride": [1],
                     "offset": 0}}, "b": {"$tied": {"name": "/v", "of": "/w"}}},
]  # fmt: skip
ODD: list[Any] = [
    {"$dict": 3}, {"$dict": [1, [2], [3, 4, 5]]}, {"$ordered_dict": []}, {"$deque": {"items": 3}},
    {"$int": "zz"}, {"$int": None}, {"$float": "x"}, {"$float": 3}, {"$scalar": []},
    {"$scalar": {"dtype": None, "value": "x"}}, {"$ndarray": 3}, {"$unknown": {"$unknown": [1]}},
    {"param_groups": [3, None, {"params": 3, "lr": [1]}], "state": 3}, {"param_groups": []},
    {"last_epoch": "x", "_last_lr": {}}, {"last_epoch": None, "base_lrs": 3, "_schedulers": 3},
    {"scale": [], "growth_factor": {}}, {"python": 3, "numpy": [], "torch": {}, "cuda": "x"},
    {"rng": [3, [0] * 625, None]}, {"rng": {"bit_generator": []}}, {"history": {"a": {"b": []}}},
    {"history": [[]]}, {"history": "x"}, {"losses": [None, {}, []]}, [[[[]]]], "", 0, None,
    {"epoch": []}, {"epoch": {"$float": "NaN"}}, {"step": 10**900},
]  # fmt: skip


def edited(tmp_path: Path, state: Any) -> Path:
    """A checkpoint with a record ``/w`` and any state."""
    import json

    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "c")
    manifest = json.loads((tmp_path / "c" / "manifest.json").read_text())
    manifest |= {"state": state, "seal": None}
    (tmp_path / "c" / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "c"


@pytest.mark.parametrize("state", MALFORMED, ids=str)
def test_malformed_references_are_refused(tmp_path: Path, state: Any) -> None:
    with pytest.raises(jsonckpt.FormatError):
        jsonckpt.inspect(edited(tmp_path, state))


@pytest.mark.parametrize("state", ODD, ids=lambda state: str(state)[:60])
def test_odd_values_are_shown_as_they_are(tmp_path: Path, state: Any) -> None:
    for value in (state, {"a": state}):
        facts = jsonckpt.inspect(edited(tmp_path, value))
        assert facts.tensors == ()
        assert all(len(fact.text) < 400 for fact in facts.state)
        assert list(tree_lines(facts, 200))
        assert kind_of(value)
        assert len(text_of(value)) <= 60
        list(members_of(value) or ())


def test_deep_states(tmp_path: Path) -> None:
    """As deep as the format allows: 200 levels, with the manifest's own."""
    state: Any = {"$tensor": "/w"}
    for depth in range(190):
        state = {"a": state} if depth % 2 else [state]
    facts = jsonckpt.inspect(edited(tmp_path, state))
    assert len(list(tree_lines(facts, 200))) == 191
    assert [tensor.name for tensor in facts.tensors] == ["/w"]


def test_a_pipe_of_compressed_text_is_told_how_to_decompress_it(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(3)}, tmp_path / "c.json.zst")
    with (
        (tmp_path / "c.json.zst").open("rb") as file,
        pytest.raises(jsonckpt.FormatError, match=r"compressed with zstd.*zstd -dc"),
    ):
        jsonckpt.inspect(file)
