"""``jsonckpt.diff``: each kind of difference, what decides, and what is read."""

from __future__ import annotations

import copy
import errno
import math
import os
import resource
import tracemalloc
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt._src.load.container import Shard
from tests.states import nan
from tests.support import same


def a_state() -> dict[str, Any]:
    model = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    base = torch.arange(20.0).reshape(4, 5)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "epoch": 3,
        "history": [float(number) for number in range(30)],
        "base": base,
        "part": base[1:2],
        "gaps": base[:, 1:3],
        "array": np.arange(5),
        "kinds": {"set": {1, 2}, "tuple": (1, "a"), "big": 1 << 90, 7: None},
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "sparse": torch.eye(3).to_sparse(),
        "half": torch.ones(5, dtype=torch.bfloat16),
    }


def differences(one: Any, two: Any, folder: Path, **options: Any) -> list[str]:
    jsonckpt.save(one, folder / "a")
    jsonckpt.save(two, folder / "b")
    return [str(change) for change in jsonckpt.diff(folder / "a", folder / "b", **options).changes]


OTHERS: list[dict[str, Any]] = [
    {},
    {"compression": "zstd"},
    {"encoding": "list"},
    {"chunk_size": "1KiB"},
    {"checksum": "sha256"},
]


@pytest.mark.parametrize("name", ["b", "b.json", "b.json.zst"])
@pytest.mark.parametrize("options", OTHERS, ids=str)
def test_the_same_state_has_no_differences(
    name: str, options: dict[str, Any], tmp_path: Path
) -> None:
    state = a_state()
    state["model"]["weight"] = torch.randn(40, 50)
    jsonckpt.save(state, tmp_path / "a")
    jsonckpt.save(state, tmp_path / name, **options)
    found = jsonckpt.diff(tmp_path / "a", tmp_path / name)
    assert not found
    assert found.changes == ()
    assert found.same == len(jsonckpt.inspect(tmp_path / "a").tensors)
    state["model"]["weight"][20, 20] += 1
    state["gaps"][1, 1] += 1  # an element of base, too
    jsonckpt.save(state, tmp_path / name, **options)
    changed = {change.name for change in jsonckpt.diff(tmp_path / "a", tmp_path / name).changes}
    assert changed == {"/model/weight", "/gaps", "/base", "/part"}


def test_checksums_decide_without_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = a_state()
    del state["part"], state["gaps"]
    jsonckpt.save(state, tmp_path / "a")
    state["model"]["weight"] += 1
    jsonckpt.save(state, tmp_path / "b", compression="zstd")
    for name in ("read", "read_part", "records"):
        monkeypatch.setattr(Shard, name, None)
    found = jsonckpt.diff(tmp_path / "a", tmp_path / "b")
    assert [change.name for change in found.changes] == ["/model/weight"]
    assert found.read == 0


def quantized(scale: float) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # quantized tensors are deprecated
        return torch.quantize_per_tensor(torch.ones(2) * scale, scale, 0, torch.qint8)


K = torch.ones(2)
F = torch.arange(6.0).reshape(2, 3)
CHANGES: list[tuple[str, Any, Any, list[str]]] = [
    ("value", 1, 2, ["~ /x  1 → 2"]),
    ("text", "a" * 80, "a" * 80 + "b", ["~ /x  …aaaaaaaaaa → …aaaaaaaaaab"]),
    ("type", 1, 1.0, ["~ /x  type int 1 → float 1.0"]),
    ("bool", 1, True, ["~ /x  type int 1 → bool True"]),
    ("none", None, 0, ["~ /x  type None None → int 0"]),
    ("nan", 1.0, float("nan"), ["~ /x  1.0 → nan"]),
    ("minus zero", 0.0, -0.0, ["~ /x  0.0 → -0.0"]),
    ("container", [1, 2], (1, 2), ["~ /x  type list → tuple"]),
    ("member", [1, 2], [1, 3], ["~ /x/1  2 → 3"]),
    ("longer", [1], [1, 2], ["+ /x/1  2"]),
    ("shorter", {"a": 1, 5: 2}, {"a": 1}, ["- /x/5  2"]),
    ("key's type", {5: 2}, {"5": 2}, ["~ /x/5  type key int → key str"]),
    ("order", {"a": 1, "b": 2}, {"b": 2, "a": 1}, ["~ /x  keys in one order → in another"]),
    ("subtree", {}, {"y": {"z": torch.ones(2), "k": 1}}, ["+ /x/y  dict of 2 with 1 tensor"]),
    ("added tensor", {}, {"y": torch.ones(2)}, ["+ /x/y  tensor"]),
    ("no tensor", torch.ones(2), [1, 1], ["~ /x  type tensor → list"]),
    ("data", torch.ones(2), torch.zeros(2), ["~ /x  float32 [2]"]),
    ("dtype", torch.ones(2), torch.ones(2).half(), ["~ /x  dtype float32 [2] → float16 [2]"]),
    ("shape", torch.ones(2), torch.ones(1, 2), ["~ /x  shape float32 [2] → float32 [1, 2]"]),
    (
        "parameter",
        torch.ones(2),
        torch.nn.Parameter(torch.ones(2)),
        ["~ /x  type tensor → parameter"],
    ),
    ("array", np.arange(3), np.arange(1, 4), ["~ /x  int64 [3]"]),
    ("array's kind", np.arange(3), [0, 1, 2], ["~ /x  type NumPy array → list"]),
    ("deque", deque([1, 2], 3), deque([1, 2], 4), ["~ /x  type maxlen 3 → maxlen 4"]),
    (
        "scale",
        quantized(1.0),
        quantized(2.0),
        ["~ /x  scale 1.0 → scale 2.0"],
    ),
    (
        "gradient",
        torch.nn.Parameter(torch.ones(2)),
        torch.nn.Parameter(torch.ones(2), requires_grad=False),
        ["~ /x  requires_grad True → requires_grad False"],
    ),
    (
        "array's byte order",
        np.zeros(3, "<f4"),
        np.zeros(3, ">f4"),
        ['~ /x  NumPy array "<f4" [3] → NumPy array ">f4" [3]'],
    ),
    ("slice", slice(torch.ones(2)), slice(1), ["~ /x  slice list of 3 → slice [None, 1, None]"]),
    (
        "tensor in a slice",
        slice(torch.ones(2)),
        slice(torch.ones(2) * 2),
        ["~ /x/1  float32 [2]"],
    ),
    ("tensor as a key", {K: 1}, {K * 2: 1}, ["~ /x/Tensor#key  float32 [2]"]),
    (
        "key of tuples",
        {(1, (2,)): 0},
        {(1, (3,)): 0},
        ["+ /x/(1, (3,))  0", "- /x/(1, (2,))  0"],
    ),
    (
        "nan as a key",
        {math.nan: 0},
        {nan(0x7FF0000000000001): 0},
        ['~ /x/nan  key {"$float": "NaN"} → key {"$float": "0x7ff0000000000001"}'],
    ),
    (
        "control character",
        {"\x01": 0},
        {"\\u0001": 0},
        ['~ /x/\\u0001  key "\\u0001" → key "\\\\u0001"'],
    ),
    ("strides", F.T.contiguous().T, F, ["~ /x  strides [1, 2] → [3, 1]"]),
    (
        "history",
        [0.5] * 20,
        [1.5] * 20 + [2.5] * 2,
        ["~ /x  20 values → 20 values of 20 changed, 2 values more"],
    ),
]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [row[1:] for row in CHANGES],
    ids=[row[0] for row in CHANGES],
)
def test_each_kind_of_difference(
    before: Any, after: Any, expected: list[str], tmp_path: Path
) -> None:
    found = differences({"x": before, "y": 1}, {"x": after, "y": 1}, tmp_path)
    assert found == expected
    back = differences({"x": after}, {"x": before}, tmp_path)
    assert len(back) == len(found)


def test_sharing_and_devices(tmp_path: Path) -> None:
    base = torch.ones(4)
    found = differences({"a": base, "b": base}, {"a": base, "b": base.clone()}, tmp_path)
    assert found == ["~ /b  sharing tied of /a → memory of its own"]


def test_places_are_chosen(tmp_path: Path) -> None:
    one = a_state()
    two = copy.deepcopy(one)
    two["epoch"] = 4
    two["model"]["weight"] += 1
    assert differences(one, two, tmp_path, include="/model") == ["~ /model/weight  float32 [3, 4]"]
    assert differences(one, two, tmp_path, exclude="/model") == ["~ /epoch  3 → 4"]


@pytest.mark.parametrize(
    "dtype",
    [torch.float64, torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64,
     torch.complex64, torch.bool, torch.uint8],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("form", ["b", "b.json.zst"])
def test_distances(dtype: torch.dtype, form: str, tmp_path: Path) -> None:
    one, two = torch.randn(700).round() * 5, torch.randn(700).round() * 5
    two[::2] = one[::2]
    a, b = one.to(dtype), two.to(dtype)
    jsonckpt.save({"w": a}, tmp_path / "a")
    jsonckpt.save({"w": b}, tmp_path / form, chunk_size="1KiB")
    found = jsonckpt.diff(tmp_path / "a", tmp_path / form, stats=True)
    (change,) = found.changes
    distance = change.distance
    assert distance is not None
    wide = torch.complex128 if dtype.is_complex else torch.float64
    x, y = a.to(wide), b.to(wide)
    assert distance.count == 700
    assert distance.changed == int((x != y).sum())
    for found_one, expected in (
        (distance.norm, (x - y).norm()),
        (distance.norm_before, x.norm()),
        (distance.norm_after, y.norm()),
        (distance.largest, (x - y).abs().max()),
        (distance.cosine, torch.vdot(x, y).real / x.norm() / y.norm()),
    ):
        assert found_one == pytest.approx(float(expected), rel=1e-12)


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    one, two = torch.tensor([nan, inf, 1.0, nan]), torch.tensor([nan, inf, 2.0, 5.0])
    jsonckpt.save({"w": one}, tmp_path / "a")
    jsonckpt.save({"w": two}, tmp_path / "b")
    (change,) = jsonckpt.diff(tmp_path / "a", tmp_path / "b", stats=True).changes
    assert change.distance is not None
    assert (change.distance.norm, change.distance.changed) == (1.0, 2)
    jsonckpt.save({"w": torch.zeros(0)}, tmp_path / "a")
    jsonckpt.save({"w": torch.zeros(0)}, tmp_path / "b", checksum="sha256")
    assert not jsonckpt.diff(tmp_path / "a", tmp_path / "b", stats=True)


def test_memory_is_bounded(tmp_path: Path) -> None:
    big = torch.arange(1 << 24, dtype=torch.float32)  # 64 MiB
    jsonckpt.save({"w": big}, tmp_path / "a")
    big[-1] += 5
    jsonckpt.save({"w": big}, tmp_path / "b", checksum="sha256", chunk_size="2MiB")
    tracemalloc.start()
    found = jsonckpt.diff(tmp_path / "a", tmp_path / "b", stats=True)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.changes[0].distance is not None
    assert found.changes[0].distance.changed == 1
    assert peak < 64 << 20


def test_a_manifest_alone(tmp_path: Path) -> None:
    state = a_state()
    jsonckpt.save(state, tmp_path / "a")
    alone = tmp_path / "alone" / "manifest.json"
    alone.parent.mkdir()
    (tmp_path / "a" / "manifest.json").rename(alone)
    state["epoch"] = 9
    jsonckpt.save(state, tmp_path / "b")
    found = jsonckpt.diff(alone, tmp_path / "b")
    assert [str(change) for change in found.changes] == ["~ /epoch  3 → 9"]
    jsonckpt.save(state, tmp_path / "b", checksum="sha256")
    found = jsonckpt.diff(alone, tmp_path / "b", include="/model/weight")
    assert "not known to be the same" in str(found)


def test_what_is_damaged_is_an_error(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(5)}, tmp_path / "a.json")
    jsonckpt.save({"w": torch.ones(5)}, tmp_path / "b.json", checksum="sha256")
    text = (tmp_path / "b.json").read_text().replace("AACAPwAA", "AACBPwAA")
    (tmp_path / "b.json").write_text(text)
    with pytest.raises(jsonckpt.IntegrityError, match=r"b\.json: tensor '/w': chunk 0"):
        jsonckpt.diff(tmp_path / "a.json", tmp_path / "b.json")
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.diff(tmp_path / "a.json", tmp_path / "nothing")


def test_the_states_are_told_apart_exactly(tmp_path: Path) -> None:
    """Whatever :func:`tests.support.same` calls different has a difference here."""
    state = a_state()
    for place in range(6):
        other = copy.deepcopy(state)
        match place:
            case 0:
                other["kinds"]["tuple"] = (1, "b")
            case 1:
                other["kinds"]["set"] = {1, 3}
            case 2:
                other["kinds"]["big"] += 1
            case 3:
                other["sparse"] = (torch.eye(3) * 2).to_sparse()
            case 4:
                other["array"][3] = 8
            case 5:
                other["optimizer"]["param_groups"][0]["betas"] = (0.9, 0.99)
        jsonckpt.save(state, tmp_path / "a")
        jsonckpt.save(other, tmp_path / "b")
        assert not same(jsonckpt.load(tmp_path / "a"), jsonckpt.load(tmp_path / "b"))
        assert len(jsonckpt.diff(tmp_path / "a", tmp_path / "b").changes) == 1


def test_many_views_take_few_files(tmp_path: Path) -> None:
    count = 100
    for name, add in (("a", 0), ("b", 1)):
        base = torch.arange(2.0 * count + 4).view(2, -1) + add
        jsonckpt.save({f"v{i}": base[:, i : i + 2] for i in range(count)}, tmp_path / name)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = max(map(int, os.listdir("/proc/self/fd")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 20, hard))
    try:
        found = jsonckpt.diff(tmp_path / "a", tmp_path / "b", stats=True)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert [change.distance and change.distance.norm for change in found.changes] == [2.0] * count


def test_a_full_disk_is_an_error_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    jsonckpt.save({"w": torch.ones(9)}, tmp_path / "a.json.zst")
    jsonckpt.save({"w": torch.zeros(9)}, tmp_path / "b.json.zst")
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(jsonckpt.WriteError, match="No space left"):
        jsonckpt.diff(tmp_path / "a.json.zst", tmp_path / "b.json.zst", stats=True)


def test_distances_of_any_size(tmp_path: Path) -> None:
    for scale in (1e-200, 1.0, 1e200):
        one, two = (torch.tensor(v, dtype=torch.float64) * scale for v in ([3.0, 4], [3.0, 5]))
        jsonckpt.save({"w": one}, tmp_path / "a", overwrite=True)
        jsonckpt.save({"w": two}, tmp_path / "b", overwrite=True)
        (change,) = jsonckpt.diff(tmp_path / "a", tmp_path / "b", stats=True).changes
        assert change.distance is not None
        assert change.distance.norm_before == pytest.approx(5 * scale, rel=1e-12, abs=0)
        assert change.distance.norm == pytest.approx(scale, rel=1e-12, abs=0)
        assert change.distance.cosine == pytest.approx(29 / (5 * 34**0.5), rel=1e-12)
