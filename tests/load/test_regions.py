"""Tensors in regions, and boxes of tensors: every way of reading gives what was saved."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt._src.format.dtypes import DTYPES
from jsonckpt._src.load.allocation import read_box
from jsonckpt._src.load.container import Container, Shard, open_container
from jsonckpt._src.load.options import ReadOptions
from jsonckpt._src.storage.local import LocalFile
from jsonckpt._src.tensors.memory import strided, torch_dtype
from tests import independent_reader
from tests.regions import grid, guillotine, same_tensors, save_in_regions
from tests.support import examples

KINDS = [name for name in DTYPES if hasattr(torch, name)]
NAMES = ["dir", "file.json", "file.json.zst"]
FORMS: list[dict[str, Any]] = [
    {"chunk_size": 64},
    {"chunk_size": 48, "compression": "zstd"},
    {"chunk_size": 256, "filter": "shuffle"},
    {},
]


def any_tensor(dtype: str, shape: list[int], source: random.Random) -> torch.Tensor:
    """Random bits of any dtype."""
    count = DTYPES[dtype].itemsize
    for size in shape:
        count *= size
    most = 1 if dtype == "bool" else 255
    raw = torch.tensor([source.randint(0, most) for _ in range(count)], dtype=torch.uint8)
    rows = torch.empty(shape, device="meta").stride()
    return strided(raw.untyped_storage(), torch_dtype(dtype), 0, shape, rows)


@settings(max_examples=examples(60))
@given(data=st.data())
def test_any_tensor_in_any_tiling(data: st.DataObject, tmp_path_factory: Any) -> None:
    source = data.draw(st.randoms(use_true_random=False))
    tilings: dict[str, list[Any]] = {}
    state: dict[str, torch.Tensor] = {}
    for number in range(data.draw(st.integers(1, 3))):
        shape = data.draw(st.lists(st.integers(0, 7), max_size=3))
        state[str(number)] = any_tensor(data.draw(st.sampled_from(KINDS)), shape, source)
        tilings[f"/{number}"] = guillotine(shape, source.randrange, data.draw(st.integers(0, 6)))
    name, form = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(FORMS))
    path = tmp_path_factory.mktemp("regions") / name
    if name == "dir":
        form = {**form, "max_shard_size": data.draw(st.sampled_from([500, 5_000]))}
    save_in_regions(state, path, lambda n, _: tilings[n], shuffle=1, **form)
    assert same_tensors(jsonckpt.load(path), state)
    assert same_tensors(independent_reader.load(path), state)
    assert same_tensors(dict(jsonckpt.stream(path)), {f"/{n}": one for n, one in state.items()})
    with jsonckpt.open(path) as checkpoint:
        assert same_tensors({n: checkpoint[f"/{n}"].load() for n in state}, state)
        assert same_tensors(checkpoint.load(include="/0"), {"0": state["0"]})
    if name == "file.json":
        assert same_tensors(jsonckpt.load(io.BytesIO(path.read_bytes())), state)
    assert jsonckpt.verify(path, deep=True).ok


@settings(max_examples=examples(80))
@given(data=st.data())
def test_any_box_of_any_tensor(data: st.DataObject, tmp_path_factory: Any) -> None:
    source = data.draw(st.randoms(use_true_random=False))
    shape = data.draw(st.lists(st.integers(0, 8), max_size=4))
    tensor = any_tensor(data.draw(st.sampled_from(KINDS)), shape, source)
    boxes = guillotine(shape, source.randrange, data.draw(st.integers(0, 5)))
    name, form = data.draw(st.sampled_from(NAMES)), data.draw(st.sampled_from(FORMS))
    path = tmp_path_factory.mktemp("box") / name
    save_in_regions({"w": tensor}, path, lambda *_: boxes if len(boxes) > 1 else None, **form)
    container = open_container(path, ReadOptions.of())
    offset = [data.draw(st.integers(0, size)) for size in shape]
    size = [data.draw(st.integers(0, most - at)) for at, most in zip(offset, shape)]
    expected = tensor[tuple(slice(at, at + n) for at, n in zip(offset, size))]
    for turned in (False, True):
        target = any_tensor(container.manifest.tensors["/w"].dtype, size, source)
        if turned and len(size) > 1:
            target = any_tensor(target_dtype(target), size[::-1], source).permute(
                *reversed(range(len(size)))
            )
        read_box(container, container.manifest.tensors["/w"], offset, size, target)
        assert same_tensors(target.contiguous(), expected.contiguous())


def target_dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    found: Path = tmp_path / request.param
    save_in_regions(state(), found, grid(2, 3), chunk_size=256, shuffle=2)
    return found


def state() -> dict[str, Any]:
    torch.manual_seed(3)
    w = torch.randn(40, 30)
    return {
        "w": w,
        "tied": w,
        "view": w[4:9],
        "column": w[:, 3],
        "p": torch.nn.Parameter(torch.randn(6, 6)),
        "mask": torch.arange(50) % 3 == 0,
        "array": np.arange(12.0).reshape(3, 4),
        "step": 3,
    }


def test_what_shared_memory_shares_it_again(path: Path) -> None:
    loaded = jsonckpt.load(path)
    assert loaded["tied"] is loaded["w"]
    loaded["w"][4, 0] = 77
    assert loaded["view"][0, 0] == 77
    loaded["w"][0, 3] = 78
    assert loaded["column"][0] == 78
    assert isinstance(loaded["p"], torch.nn.Parameter)
    assert np.array_equal(loaded["array"], state()["array"])


def test_an_open_checkpoint_has_one_entry_for_it(path: Path) -> None:
    w = state()["w"]
    with jsonckpt.open(path) as checkpoint:
        assert list(checkpoint) == ["/w", "/tied", "/view", "/column", "/p", "/mask", "/array"]
        entry = checkpoint["/w"]
        assert entry.shape == (40, 30)
        assert entry.nbytes == 4800
        assert len(entry.checksums) == 24
        assert entry == checkpoint["/tied"]
        assert entry != checkpoint["/p"]
        for key in (3, -1, slice(5, 30, 4), (slice(1, 9), slice(2, 25, 3)), (..., 4), (7, 29)):
            assert torch.equal(entry[key], w[key])
        for other in ([3, 5], (slice(2, 8), [1, 2]), (None, 4), torch.tensor([True] * 40)):
            assert torch.equal(entry[other], w[other])
        assert torch.equal(checkpoint["/mask"][10:30], state()["mask"][10:30])
        with pytest.raises(jsonckpt.ArgumentError, match="3 indices for a tensor of 2 dimensions"):
            entry[1, 2, 3]
        assert torch.equal(checkpoint.state()["w"].load(), w)


def test_it_is_loaded_in_place(path: Path) -> None:
    saved = state()
    target = {
        "w": torch.zeros(30, 40).t(),
        "tied": torch.zeros(40, 30),
        "view": torch.zeros(5, 30),
        "column": torch.zeros(40),
        "p": torch.nn.Parameter(torch.zeros(6, 6)),
        "mask": torch.zeros(50, dtype=torch.bool),
    }
    version = target["p"]._version
    jsonckpt.load_into(target, path, exclude=["/array", "/step"], strict=False)
    assert same_tensors(target, {name: saved[name] for name in target})
    assert target["p"]._version > version
    wide = {"w": torch.zeros(40, 30, dtype=torch.float64)}
    jsonckpt.load_into(wide, path, include="/w", cast=True)
    assert torch.equal(wide["w"], saved["w"].double())


def test_a_device_and_the_meta_device(path: Path) -> None:
    assert jsonckpt.load(path, "meta", exclude="/array")["w"].is_meta
    assert jsonckpt.load(path, "cpu", include="/w")["w"].shape == (40, 30)


def _damaged(path: Path, tmp_path: Path, part: bytes) -> Path:
    """A copy with one flipped bit in the first payload of a region."""
    data = bytearray(path.read_bytes())
    data[data.index(b'"chunks":[\n"', data.index(part)) + 20] ^= 1
    (tmp_path / "damaged.json").write_bytes(data)
    return tmp_path / "damaged.json"


def test_damage_is_named_and_only_what_is_read_is_checked(tmp_path: Path) -> None:
    save_in_regions(state(), tmp_path / "c.json", grid(2, 3), chunk_size=256)
    path = _damaged(tmp_path / "c.json", tmp_path, b'{"name":"$region/20,10/w"')
    with pytest.raises(jsonckpt.IntegrityError, match=r"20,10/w.*chunk 0"):
        jsonckpt.load(path)
    with jsonckpt.open(path) as checkpoint:
        assert torch.equal(checkpoint["/w"][:20], state()["w"][:20])
        with pytest.raises(jsonckpt.IntegrityError, match="20,10/w"):
            checkpoint["/w"][20:21]
        assert torch.equal(checkpoint["/w"][20:, 20:], state()["w"][20:, 20:])


class _Counting(LocalFile):
    """Counts the bytes and the requests of ranges."""

    ranges: list[tuple[int, int]]

    def read_range(self, offset: int, buffer: memoryview) -> None:
        self.ranges.append((offset, len(buffer)))
        super().read_range(offset, buffer)


@pytest.fixture
def ranges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    found: list[tuple[int, int]] = []
    monkeypatch.setattr(_Counting, "ranges", found, raising=False)
    monkeypatch.setattr("jsonckpt._src.storage.local.LocalFile", _Counting)
    return found


def test_a_box_reads_its_chunks_only(tmp_path: Path, ranges: list[tuple[int, int]]) -> None:
    w = torch.arange(512.0 * 512).reshape(512, 512)
    jsonckpt.save({"w": w}, tmp_path, chunk_size=8192)  # four rows each
    with jsonckpt.open(tmp_path) as checkpoint:
        ranges.clear()
        assert torch.equal(checkpoint["/w"][100:104, 7:9], w[100:104, 7:9])
        few = sum(size for _, size in ranges)
        assert few < 3 * 8192 * 4 / 3
        ranges.clear()
        assert torch.equal(checkpoint["/w"][64:128], w[64:128])
        middle = [one for one in ranges if one[1] > 8192]
        assert len(middle) == 1  # sixteen neighbours in one request
        assert sum(size for _, size in ranges) < 16 * 8192 * 1.4 + 8192


def test_a_box_takes_the_memory_of_a_few_chunks(tmp_path: Path) -> None:
    w = torch.zeros(2048, 2048)
    jsonckpt.save({"w": w}, tmp_path, chunk_size="64KiB")
    asked: list[int] = []
    with jsonckpt.open(tmp_path) as checkpoint:
        part = checkpoint["/w"][:, 100:110]
        asked.append(part.untyped_storage().nbytes())
    assert torch.equal(part, w[:, 100:110])
    assert asked == [2048 * 10 * 4]


def test_a_box_must_be_inside_and_fit(tmp_path: Path) -> None:
    save_in_regions({"w": torch.ones(4, 4)}, tmp_path, grid(2, 2))
    container = open_container(tmp_path, ReadOptions.of())
    w = container.manifest.tensors["/w"]
    for offset, size in (((0, 2), (4, 3)), ((-1, 0), (2, 2)), ((0,), (4,)), ((0, 0), (5, 1))):
        with pytest.raises(jsonckpt.ArgumentError, match="a box of shape"):
            read_box(container, w, offset, size, torch.zeros(size))
    with pytest.raises(jsonckpt.StateMismatchError, match="shape"):
        read_box(container, w, (0, 0), (2, 2), torch.zeros(2, 3))
    with pytest.raises(jsonckpt.StateMismatchError, match="dtype"):
        read_box(container, w, (0, 0), (2, 2), torch.zeros(2, 2, dtype=torch.float64))
    wide = torch.zeros(2, 2, dtype=torch.float64)
    read_box(container, w, (1, 1), (2, 2), wide, cast=True)
    assert torch.equal(wide, torch.ones(2, 2, dtype=torch.float64))


def test_any_range_of_the_row_major_bytes(path: Path) -> None:
    container: Container = open_container(path, ReadOptions.of())
    whole, raw = container.manifest.tensors["/w"], state()["w"].numpy().tobytes()

    class Sink:
        def __init__(self, size: int) -> None:
            self.memory = bytearray(size)

        def window(self, _: int, __: int) -> None:
            return None

        def write(self, start: int, data: memoryview) -> None:
            self.memory[start : start + len(data)] = data

    for start, stop in ((0, 4800), (400, 404), (0, 0), (1196, 3604), (4796, 4800)):
        sink = Sink(stop - start)
        container.read_range(whole, start, stop, sink)
        assert bytes(sink.memory) == raw[start:stop]


def test_a_lone_shard_gives_the_regions(tmp_path: Path) -> None:
    save_in_regions({"w": torch.ones(4)}, tmp_path, grid(2))
    [shard] = tmp_path.glob("shard-*")
    assert [name for name, _ in jsonckpt.stream(shard)] == ["$region/0/w", "$region/2/w"]
    container = open_container(tmp_path, ReadOptions.of())
    assert isinstance(container.shard_of(container.manifest.entries[0]), Shard)
