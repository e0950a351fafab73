"""``rename``, ``merge``, ``split`` and ``average``: what they do beyond copying."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import edit
from tests.support import difference, same, tensor_bytes
from tests.two_states import KINDS, files

# --- rename ---------------------------------------------------------------------------------------


def compiled_state() -> tuple[dict[str, Any], dict[str, Any]]:
    """What a wrapped, compiled model saves, and what it would save without both."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    wrapped = OrderedDict((f"module._orig_mod.{k}", v) for k, v in model.state_dict().items())
    wrapped._metadata = OrderedDict(  # type: ignore[attr-defined]
        (f"module._orig_mod.{k}" if k else "", v)
        for k, v in model.state_dict()._metadata.items()  # type: ignore[attr-defined]
    )
    return {"model": wrapped, "epoch": 3}, {"model": model.state_dict(), "epoch": 3}


@pytest.mark.parametrize("name", KINDS)
def test_prefixes(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    wrapped, plain = compiled_state()
    jsonckpt.save(wrapped, path, metadata={"a": 1})
    with jsonckpt.open(path) as checkpoint:
        created_at = checkpoint.manifest.created_at
    result = edit.rename(path, strip_prefix="module.")
    assert result.written
    assert result.renamed[0] == ("/model/module._orig_mod.0.weight", "/model/_orig_mod.0.weight")
    edit.rename(path, replace=("_orig_mod.", ""))
    assert difference(jsonckpt.load(path), plain) is None
    assert jsonckpt.verify(path, deep=True)
    with jsonckpt.open(path) as checkpoint:
        assert checkpoint.metadata == {"a": 1}
        assert checkpoint.manifest.created_at == created_at
    edit.rename(path, tmp_path / "back.json", add_prefix="module._orig_mod.")
    back = jsonckpt.load(tmp_path / "back.json")
    assert list(back["model"]) == list(wrapped["model"])
    assert difference(jsonckpt.load(path), plain) is None


def test_patterns_ties_and_views(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    state = {
        "a.0": {"w.1": base, "w.2": base[1:], "n.3": 1},
        "b.0": [base, {7: base.t()}],
        "s": torch.sparse_coo_tensor(
            torch.tensor([[0, 1]]), torch.tensor([1.0, 2.0]), (4,), check_invariants=True
        ),
        "arr.1": np.arange(3),
    }
    path = tmp_path / "c"
    jsonckpt.save(state, path)
    edit.rename(path, replace=(r"\.(\d)", r"[\1]"), regex=True)
    new = jsonckpt.load(path)
    assert list(new) == ["a[0]", "b[0]", "s", "arr[1]"]
    assert list(new["a[0]"]) == ["w[1]", "w[2]", "n.3"]
    assert new["a[0]"]["w[1]"] is new["b[0]"][0]
    assert new["a[0]"]["w[2]"].data_ptr() == new["b[0]"][0][1:].data_ptr()
    with jsonckpt.open(path) as checkpoint:
        assert "/a[0]/w[1]" in checkpoint
        assert "/b[0]/1/7" in checkpoint
    assert jsonckpt.verify(path, deep=True)


def test_rename_collisions_name_both(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"m": {"w": torch.ones(1), "module.w": torch.zeros(1)}}, path)
    before = path.read_bytes()
    with pytest.raises(jsonckpt.StateMismatchError, match=r"'/m/w' and '/m/module\.w'"):
        edit.rename(path, strip_prefix="module.")
    with pytest.raises(jsonckpt.StateMismatchError, match=r"no key .* begins with 'modul\.'"):
        edit.rename(path, strip_prefix="modul.")
    for wrong in ({}, {"strip_prefix": "a", "add_prefix": "b"}, {"strip_prefix": ""},
                  {"replace": ("", "x")}, {"replace": ("(", "x"), "regex": True},
                  {"replace": ("a", r"\9"), "regex": True}):  # fmt: skip
        with pytest.raises(jsonckpt.ArgumentError):
            edit.rename(path, **wrong)
    with pytest.raises(jsonckpt.LimitError):
        edit.rename(path, replace=("w", "w" * 2000), at="/m")
    assert path.read_bytes() == before
    assert files(tmp_path) == ["c.json"]


def test_rename_dry_run_and_place(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"a": {"x.w": torch.ones(1)}, "b": {"x.w": torch.ones(1)}, "x.c": 1}, path)
    before = path.read_bytes()
    planned = edit.rename(path, strip_prefix="x.", dry_run=True)
    assert planned.renamed == (("/a/x.w", "/a/w"), ("/b/x.w", "/b/w"))
    assert "nothing was written" in str(planned)
    assert path.read_bytes() == before
    with pytest.raises(jsonckpt.ArgumentError, match="2 dictionaries hold tensors: '/a', '/b'"):
        edit.rename(path, add_prefix="y.")
    edit.rename(path, strip_prefix="x.", at="/a")
    edit.rename(path, add_prefix="y.", at="b")
    assert jsonckpt.load(path).keys() == {"a", "b", "x.c"}
    assert list(jsonckpt.load(path)["a"]) == ["w"]
    assert list(jsonckpt.load(path)["b"]) == ["y.x.w"]
    with pytest.raises(jsonckpt.CheckpointExistsError):
        edit.rename(path, path, strip_prefix="y.")


# --- merge and split ------------------------------------------------------------------------------

BASE = torch.arange(60.0).reshape(10, 6)


def training_state() -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(4)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [1.0, 2.0],
    }


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("options", [{}, {"compression": "zstd"}, {"checksum": "sha256"}])
def test_split_and_merge(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    state, path = training_state(), tmp_path / name
    jsonckpt.save(state, path, chunk_size=16, metadata={"run": 1}, **options)
    result = edit.split(path, tmp_path / "parts", by={"weights": "/model", "opt": "/optimizer"})
    assert repr(result) == f"<SplitResult {str(path)!r}: 3 parts>"
    assert [Path(part.path).name.partition(".")[0] for part in result.parts] == [
        "weights", "opt", "rest",
    ]  # fmt: skip
    weights, *others = [part.path for part in result.parts]
    assert difference(jsonckpt.load(weights), {"model": state["model"]}) is None
    merged = edit.merge([weights, *others], tmp_path / "whole.json")
    assert difference(jsonckpt.load(merged.path), state) is None
    assert jsonckpt.verify(merged.path, deep=True)
    with jsonckpt.open(merged.path) as checkpoint:
        assert checkpoint.metadata == {"run": 1}
        assert checkpoint.manifest.checksum == options.get("checksum", "xxh3_128")


def test_weights_to_share(tmp_path: Path) -> None:
    state, path = training_state(), tmp_path / "c.json"
    jsonckpt.save(state, path)
    result = edit.split(path, tmp_path / "w.json", exclude="/optimizer")
    assert result.left_out == ("/optimizer",)
    assert "left out: '/optimizer'" in str(result)
    del state["optimizer"]
    assert difference(jsonckpt.load(tmp_path / "w.json"), state) is None
    edit.split(path, tmp_path / "v.json", include=["/model/*.weight", "epoch"])
    assert list(jsonckpt.load(tmp_path / "v.json")["model"]) == ["0.weight", "1.weight"]
    with pytest.raises(jsonckpt.StateMismatchError, match="selects no tensor"):
        edit.split(path, tmp_path / "x.json", include="/modle")
    with pytest.raises(jsonckpt.CheckpointExistsError):
        edit.split(path, tmp_path / "w.json", include="/model")
    with pytest.raises(jsonckpt.CheckpointExistsError):
        edit.split(path, path, include="/model")
    assert files(tmp_path) == ["c.json", "v.json", "w.json"]


def test_ties_and_views_across_parts(tmp_path: Path) -> None:
    state = {
        "a": {"w": BASE}, "b": {"w": BASE, "rows": BASE[2:4], "again": BASE[2:4]},
        "c": {"turned": BASE.t()},
    }  # fmt: skip
    path = tmp_path / "c.json"
    jsonckpt.save(state, path)
    result = edit.split(path, tmp_path / "p", by="top-level")
    assert result.notes[0] == (
        "'/b/w' was tied to '/a/w', which is in 'a': it has a copy of its own now"
    )
    assert "'/c/turned' is a view of '/a/w'" in result.notes[-1]
    for part in result.parts:
        assert jsonckpt.verify(part.path, deep=True)
        [(key, expected)] = [(k, v) for k, v in state.items() if part.path.endswith(f"{k}.json")]
        assert difference(jsonckpt.load(part.path), {key: expected}) is None
    part = jsonckpt.load(tmp_path / "p" / "b.json")["b"]
    assert part["rows"] is part["again"]
    assert part["rows"].data_ptr() == part["w"][2:].data_ptr()
    kept = edit.split(path, tmp_path / "only.json", include="/c")
    assert "which is left out: all of that is in both parts" in kept.notes[0]
    assert same(jsonckpt.load(tmp_path / "only.json"), {"c": {"turned": BASE.t()}})


def test_a_list_stays_whole(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"l": [torch.ones(1), (torch.zeros(1), 2)], "w": torch.ones(1)}, path)
    with pytest.raises(jsonckpt.StateMismatchError, match="'/l' is no dictionary, and only some"):
        edit.split(path, tmp_path / "x.json", include="/l/0")
    edit.split(path, tmp_path / "x.json", include="/l")
    assert same(jsonckpt.load(tmp_path / "x.json"), {"l": [torch.ones(1), (torch.zeros(1), 2)]})


@pytest.mark.parametrize(
    "key", ["manifest", "..", "", "a/b", "con:x", "é" * 90, "shard-1", "REST", "$x"]
)
def test_names_of_parts_are_safe(key: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    state = {key: torch.ones(1), "other": torch.zeros(1), "n": 1}
    jsonckpt.save(state, path)
    parts = edit.split(path, tmp_path / "p", by="top-level").parts
    assert all(Path(part.path).parent == tmp_path / "p" for part in parts)
    assert all(Path(part.path).name.isascii() for part in parts)
    assert len({part.path.lower() for part in parts}) == 3
    merged = edit.merge([part.path for part in parts], tmp_path / "m.json")
    assert same(jsonckpt.load(merged.path), state)


@pytest.mark.parametrize(
    "by", ["x", 0, "-1", {"../x": "/w"}, {"": "/w"}, {"a": "/none"}, {3: "/w"}]
)
def test_wrong_parts(by: Any, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.ones(1)}, path)
    with pytest.raises(jsonckpt.JsonckptError):
        edit.split(path, tmp_path / "p", by=by)
    assert not (tmp_path / "p").exists()


def test_storages_that_are_cut(tmp_path: Path) -> None:
    """Pieces of one flat buffer: a part of them has memory of its own."""
    flat = torch.arange(100.0)
    state = {"a": {"x": flat[:40]}, "b": {"y": flat[40:90]}, "c": {"z": flat[90:]}}
    path = tmp_path / "c.json"
    jsonckpt.save(state, path)
    assert jsonckpt.open(path).manifest.entries[0].layout.storage
    parts = edit.split(path, tmp_path / "p", by="top-level").parts
    for part in parts:
        assert jsonckpt.verify(part.path, deep=True)
        assert jsonckpt.open(part.path).manifest.entries[0].layout.storage is None
    edit.merge({"one": path, "two": path}, tmp_path / "two.json")
    two = jsonckpt.load(tmp_path / "two.json")
    assert same(two, {"one": state, "two": state})
    pieces = [two["one"]["a"]["x"], two["one"]["b"]["y"], two["two"]["a"]["x"]]
    places = [piece.untyped_storage().data_ptr() for piece in pieces]
    assert places[0] == places[1] != places[2]


def test_merge_collisions(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b"
    jsonckpt.save({"m": {"w": torch.ones(1)}, "epoch": 1}, a, metadata={"x": 1})
    jsonckpt.save({"m": {"v": torch.ones(1)}, "epoch": 2}, b, metadata={"x": 2, "y": 3})
    with pytest.raises(jsonckpt.StateMismatchError) as caught:
        edit.merge([a, b], tmp_path / "c.json")
    assert f"{a} and {b} both have '/epoch'" in str(caught.value)
    edit.set_value(b, "/epoch", 1)
    result = edit.merge([a, b], tmp_path / "c.json")
    assert "metadata x: the value of" in result.notes[0]
    assert same(
        jsonckpt.load(result.path), {"m": {"w": torch.ones(1), "v": torch.ones(1)}, "epoch": 1}
    )
    with pytest.raises(jsonckpt.StateMismatchError, match="both have '/m/w'"):
        edit.merge([a, a], tmp_path / "d.json")
    with pytest.raises(jsonckpt.ArgumentError):
        edit.merge([a], tmp_path / "d.json")
    c = tmp_path / "list.json"
    jsonckpt.save([torch.ones(1)], c)
    with pytest.raises(jsonckpt.StateMismatchError, match="no dictionary"):
        edit.merge([a, c], tmp_path / "d.json")
    edit.merge({"$odd": c, "b": a}, tmp_path / "d.json")
    assert same(jsonckpt.load(tmp_path / "d.json")["$odd"], [torch.ones(1)])
    with pytest.raises(jsonckpt.ArgumentError):
        edit.merge([a, b], "s3://x/y.json")


def test_merge_of_two_algorithms_and_layouts(tmp_path: Path) -> None:
    a, b, c = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"
    x, y = torch.randn(40), torch.randn(40, dtype=torch.float64)
    jsonckpt.save({"x": x}, a, checksum="sha256", chunk_size=16)
    jsonckpt.save({"y": y}, b, encoding="list", chunk_size=16)
    b.write_text(json.dumps(json.loads(b.read_text()) | {"seal": None}, indent=3))
    assert edit.merge([a, b], c).digest.startswith("sha256:")
    assert same(jsonckpt.load(c), {"x": x, "y": y})
    assert jsonckpt.verify(c, deep=True)


def test_more_shards_than_open_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonckpt._src.edit import records

    monkeypatch.setattr(records, "_MOST_OPEN", 3)
    state = {str(number): torch.full((5,), float(number)) for number in range(20)}
    path = tmp_path / "c"
    jsonckpt.save(state, path, max_shard_size=1)
    assert len(files(path)) == 21
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    edit.merge({"a": path, "b": path}, tmp_path / "m.json")
    if before:
        assert len(os.listdir("/proc/self/fd")) == before
    assert same(jsonckpt.load(tmp_path / "m.json"), {"a": state, "b": state})


def test_damage_is_carried_and_found(tmp_path: Path) -> None:
    """A payload is copied undecoded, so its damage is found where its checksum is compared."""
    path, out = tmp_path / "c.json", tmp_path / "d.json"
    jsonckpt.save({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes().replace(b'"AAAA', b'"BAAA', 1))
    edit.rename(path, out, replace=("w", "v"))
    assert not jsonckpt.verify(out)
    with pytest.raises(jsonckpt.IntegrityError):
        jsonckpt.load(out)
    jsonckpt.save({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes().replace(b'"AAAA', b'"\nAAA', 1))
    with pytest.raises(jsonckpt.FormatError, match="one line"):
        edit.rename(path, tmp_path / "e.json", replace=("w", "v"))
    assert files(tmp_path) == ["c.json", "d.json"]


# --- average --------------------------------------------------------------------------------------

FLOATS = ["float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2",
          "float8_e4m3fnuz", "float8_e5m2fnuz", "complex64", "complex128"]  # fmt: skip


def runs(tmp_path: Path, count: int = 3) -> tuple[list[Path], list[dict[str, Any]]]:
    """Checkpoints of one model, each saved in another way."""
    ways: list[dict[str, Any]] = [
        {"chunk_size": 64}, {"chunk_size": 48, "encoding": "list"}, {"compression": "zstd"},
    ]  # fmt: skip
    names = ["a.json", "b", "c.json.zst"]
    paths, states = [], []
    for number in range(count):
        torch.manual_seed(number)
        w = torch.randn(50, 20)
        state: dict[str, Any] = {
            name: (torch.randn(37, 3) * 2).to(getattr(torch, name)) for name in FLOATS
        }
        state |= {
            "w": w, "tied": w, "turned": w.t(), "step": number, "count": torch.tensor(number),
            "same": torch.full((3,), 0.1), "parameter": torch.nn.Parameter(torch.randn(4)),
            "array": np.full(3, float(number)), "transposed": torch.randn(4, 5).t(),
        }  # fmt: skip
        if number == 1:  # another order, so that a compressed file is not read in order
            state = dict(sorted(state.items()))
        jsonckpt.save(state, tmp_path / names[number], **ways[number])
        paths.append(tmp_path / names[number])
        states.append(state)
    return paths, states


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0]])
def test_average(order: list[int], tmp_path: Path) -> None:
    paths, states = runs(tmp_path)
    paths, states = [paths[i] for i in order], [states[i] for i in order]
    result = edit.average(paths, tmp_path / "mean.json")
    assert result.copied == ("/count",)
    found = jsonckpt.load(result.path)
    assert jsonckpt.verify(result.path, deep=True)
    for name in [*FLOATS, "w", "parameter", "transposed"]:
        values = [state[name].detach() for state in states]
        if found[name].is_complex():  # torch divides these in another way
            values = [torch.view_as_real(value) for value in values]
            mean = sum(value.double() for value in values) / 3
            mean = torch.view_as_complex(mean.to(values[0].dtype))
        else:
            mean = (sum(value.double() for value in values) / 3).to(values[0].dtype)
        assert tensor_bytes(found[name].detach()) == tensor_bytes(mean), name
        assert found[name].dtype == states[0][name].dtype
    last = states[-1]
    assert (found["step"], found["count"]) == (last["step"], last["count"])
    assert torch.equal(found["same"], last["same"])
    np.testing.assert_array_equal(found["array"], np.full(3, 1.0))
    assert found["w"] is found["tied"]
    assert found["turned"].data_ptr() == found["w"].data_ptr()
    assert type(found["parameter"]) is torch.nn.Parameter
    assert list(found) == list(last)


def test_weights(tmp_path: Path) -> None:
    paths, states = runs(tmp_path)
    out = tmp_path / "mean.json"
    edit.average(paths, out, weights=[0, 0, 2])
    assert difference(jsonckpt.load(out), states[2]) is None
    result = edit.average(paths, out, weights=[1, 1, 2], include="/float64", overwrite=True)
    assert result.weights == (0.25, 0.25, 0.5)
    assert result.averaged == ("/float64",)
    expected = sum(s["float64"] * share for s, share in zip(states, result.weights, strict=True))
    assert torch.equal(jsonckpt.load(out)["float64"], expected)
    assert difference(jsonckpt.load(out)["w"], states[2]["w"]) is None
    for wrong in ([1, 2], [0, 0, 0], [1, float("nan"), 1], [1, -2, 0], ["a", 1, 1]):
        with pytest.raises(jsonckpt.ArgumentError):
            edit.average(paths, out, weights=wrong, overwrite=True)  # type: ignore[arg-type]
    with pytest.raises(jsonckpt.ArgumentError):
        edit.average(paths[:1], tmp_path / "x.json")


def test_special_values(tmp_path: Path) -> None:
    inf, nan = float("inf"), float("nan")
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float8_e5m2):
        jsonckpt.save({"w": torch.tensor([inf, inf, nan, 57344.0, -0.0]).to(dtype)}, a)
        jsonckpt.save({"w": torch.tensor([1.0, -inf, 1.0, 57344.0, -0.0]).to(dtype)}, b)
        edit.average([a, b], tmp_path / "m.json", overwrite=True)
        found = jsonckpt.load(tmp_path / "m.json")["w"].float()
        assert found[0] == inf
        assert found[1:3].isnan().all()
        assert found[3] == 57344
        assert torch.signbit(found[4])


def test_average_refuses(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a.json", tmp_path / "b.json", tmp_path / "m.json"
    jsonckpt.save({"w": torch.ones(3), "v": torch.ones(1)}, a)
    for other, message in (
        (
            {"w": torch.ones(4), "v": torch.ones(1)},
            r"'/w' has shape \[3\] in .*a.json and \[4\] in",
        ),
        ({"w": torch.ones(3).double(), "v": torch.ones(1)}, "dtype float32 in .*float64 in"),
        ({"w": torch.ones(3)}, "b.json has no tensor '/v', which is in .*a.json"),
        ({"w": torch.ones(3), "v": torch.ones(1), "x": torch.ones(1)}, "a.json has no tensor '/x'"),
    ):
        jsonckpt.save(other, b)
        with pytest.raises(jsonckpt.StateMismatchError, match=message):
            edit.average([a, b], out)
    jsonckpt.save({"w": torch.ones(4), "v": torch.ones(1)}, b)
    edit.average([a, b], out, exclude="/w")
    assert len(jsonckpt.load(out)["w"]) == 4
    with pytest.raises(jsonckpt.CheckpointExistsError):
        edit.average([a, b], out, exclude="/w")
    with pytest.raises(jsonckpt.StateMismatchError, match="selects no tensor"):
        edit.average([a, b], tmp_path / "n.json", include="/ww")
    assert files(tmp_path) == ["a.json", "b.json", "m.json"]


def test_sparse_and_quantized_tensors_are_copied(tmp_path: Path) -> None:
    paths = []
    for number in (1.0, 3.0):
        state = {
            "s": torch.sparse_coo_tensor(
                torch.tensor([[int(number)]]), torch.tensor([number]), (4,), check_invariants=True
            ),
            "w": torch.full((2,), number),
        }
        paths.append(tmp_path / f"{number}.json")
        jsonckpt.save(state, paths[-1])
    result = edit.average(paths, tmp_path / "m.json")
    assert result.averaged == ("/w",)
    found = jsonckpt.load(tmp_path / "m.json")
    assert found["w"].tolist() == [2, 2]
    assert found["s"].to_dense().tolist() == [0, 0, 0, 3]


def test_private_inputs_give_private_outputs(tmp_path: Path) -> None:
    a, b = tmp_path / "a.json", tmp_path / "b"
    jsonckpt.save({"w": torch.ones(3)}, a)
    jsonckpt.save({"v": torch.ones(3)}, b)
    os.chmod(a, 0o600)
    edit.merge([a, b], tmp_path / "m")
    assert all(os.stat(f).st_mode & 0o077 == 0 for f in (tmp_path / "m").iterdir())
