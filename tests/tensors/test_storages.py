"""Tensors that share a storage come back sharing it, and repeated memory is stored once."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt._src.load.api import load_selected
from jsonckpt._src.load.options import ReadOptions
from jsonckpt._src.load.selection import TensorSelection
from tests import independent_reader
from tests.readers import readers_for
from tests.schemas import validate_checkpoint
from tests.support import difference, examples
from tests.tensor_states import pieces


def storages(state: dict[str, torch.Tensor]) -> list[tuple[int, int]]:
    """Which tensors share a storage, by the position of its first one, and how far from it."""
    first: dict[int, tuple[int, int]] = {}
    found = []
    for number, tensor in enumerate(state.values()):
        key = tensor.untyped_storage().data_ptr()
        position, address = first.setdefault(key, (number, tensor.data_ptr()))
        found.append((position, tensor.data_ptr() - address))
    return found


def flat_buffer() -> dict[str, torch.Tensor]:
    """What unflattening a buffer gives: pieces with a gap between two of them."""
    buffer = torch.arange(1000, dtype=torch.float32)
    return {
        "a": buffer[:300].view(30, 10),
        "own": torch.ones(7),
        "b": buffer[310:700].view(39, 10).t(),
        "c": buffer[700:],
        "none": buffer[:0],
    }


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_pieces_of_a_buffer_are_records_that_share_a_storage_again(
    tmp_path: Path, name: str
) -> None:
    state, path = flat_buffer(), tmp_path / name
    jsonckpt.save(state, path, chunk_size=64, max_shard_size=2000, checksum="sha256")
    with jsonckpt.open(path) as checkpoint:
        assert list(checkpoint) == ["/a", "/own", "/b", "/c", "/none"]
        assert all(not record.startswith("$") for record in checkpoint.manifest.by_name)
        assert difference(state, checkpoint.load()) is None
        assert storages(checkpoint.load())[:4] == storages(state)[:4]
    for reader in readers_for(path).values():
        found = reader(path)
        assert difference(state, found) is None
        assert storages(found)[:4] == storages(state)[:4] == [(0, 0), (1, 0), (0, 1240), (0, 2800)]
    room = found["a"].untyped_storage()
    assert room.nbytes() == 4000
    assert list(room)[1200:1240] == [0] * 40
    again = independent_reader.load(path)
    assert storages(again)[:4] == storages(state)[:4]
    assert all(torch.equal(again[key], value) for key, value in state.items())
    assert jsonckpt.verify(path, deep=True).ok
    validate_checkpoint(path)


def test_one_piece_alone_gets_memory_of_its_own(tmp_path: Path) -> None:
    state = flat_buffer()
    jsonckpt.save(state, tmp_path / "c")
    found = jsonckpt.load(tmp_path / "c", include=["/c", "/own"])
    assert found["c"].untyped_storage().nbytes() == state["c"].nbytes
    with jsonckpt.open(tmp_path / "c") as checkpoint:
        assert checkpoint["/c"].load().untyped_storage().nbytes() == state["c"].nbytes
    for name, tensor in jsonckpt.stream(tmp_path / "c"):
        assert tensor.untyped_storage().nbytes() == state[name[1:]].nbytes
    # Two of them share again, in memory for no more than what is between them.
    found = jsonckpt.load(tmp_path / "c", include=["/b", "/c"])
    assert storages(found) == [(0, 0), (0, 1560)]
    assert found["b"].untyped_storage().nbytes() <= 690 * 4 + 16


def test_a_storage_that_is_mostly_not_saved_is_not_made_again(tmp_path: Path) -> None:
    buffer = torch.arange(100_000.0)
    state = {"a": buffer[:10], "b": buffer[-10:]}
    jsonckpt.save(state, tmp_path / "c.json")
    assert b'"storage"' not in (tmp_path / "c.json").read_bytes()
    assert storages(jsonckpt.load(tmp_path / "c.json")) == [(0, 0), (1, 0)]


def test_devices_and_places_of_other_kinds_part_them(tmp_path: Path) -> None:
    state = flat_buffer()
    jsonckpt.save(state, tmp_path / "c")
    made = []

    def allocate(nbytes: int) -> Any:
        made.append(nbytes)
        return torch.empty(nbytes, dtype=torch.uint8).untyped_storage()

    found = load_selected(tmp_path / "c", TensorSelection.of(allocate=allocate), ReadOptions())
    assert storages(found)[:4] == storages(state)[:4]
    assert sorted(made) == [0, 28, 4000]

    def copied(storage: Any, _: str) -> Any:
        return storage.clone()

    found = jsonckpt.load(tmp_path / "c", map_location=copied)
    assert difference(state, found) is None
    assert storages(found)[:4] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    meta = jsonckpt.load(tmp_path / "c", map_location="meta")
    assert meta["b"].shape == state["b"].shape


def test_interleaved_tensors_share_a_storage_again(tmp_path: Path) -> None:
    x, w = torch.arange(20.0), torch.arange(24.0).view(4, 6)
    state = {"even": x[::2], "odd": x[1::2], "q": w[:, :2], "k": w[:, 2:4], "v": w[:, 4:]}
    jsonckpt.save(state, tmp_path / "c.json")
    for reader in readers_for(tmp_path / "c.json").values():
        found = reader(tmp_path / "c.json")
        assert difference(state, found) is None
        assert storages(found) == storages(state)
        assert [tensor.stride() for tensor in found.values()] == [
            (2,),
            (2,),
            (6, 1),
            (6, 1),
            (6, 1),
        ]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.tensor([1.5]).expand(1000),
        torch.arange(6.0).view(3, 1, 2).expand(3, 40, 2),
        torch.arange(6.0)[1::2].expand(50, 3),
        torch.arange(9, dtype=torch.int16).as_strided((5, 5), (1, 1)),
        torch.tensor(True).expand(20, 20),
        torch.nn.Parameter(torch.tensor(2.0).expand(30)),
    ],
)
def test_repeated_memory_is_stored_once(tensor: torch.Tensor, tmp_path: Path) -> None:
    jsonckpt.save({"w": tensor, "x": 1}, tmp_path / "c.json")
    memory = io.BytesIO()
    torch.save(tensor, memory)
    memory.seek(0)
    for reader in readers_for(tmp_path / "c.json").values():
        found = reader(tmp_path / "c.json")["w"]
        assert difference(tensor, found) is None
        assert found.stride() == tensor.stride() == torch.load(memory).stride()
        memory.seek(0)
    with jsonckpt.open(tmp_path / "c.json") as checkpoint:
        assert checkpoint.manifest.nbytes < 40
    again = independent_reader.load(tmp_path / "c.json")["w"]
    assert torch.equal(again, tensor)


def test_overlapping_windows_that_take_more_memory_than_they_show_are_written_out(
    tmp_path: Path,
) -> None:
    tensor = torch.arange(1000.0).as_strided((2, 2, 2), (500, 1, 1))
    jsonckpt.save(tensor, tmp_path / "c.json")
    found = jsonckpt.load(tmp_path / "c.json")
    assert torch.equal(found, tensor)
    with jsonckpt.open(tmp_path / "c.json") as checkpoint:
        assert checkpoint.manifest.nbytes == 32


@settings(max_examples=examples(60))
@given(pieces(), st.sampled_from(["c", "c.json", "c.json.zst"]))
def test_any_pieces_of_one_storage_share_it_as_torch_shares_it(
    tmp_path_factory: pytest.TempPathFactory, state: dict[str, torch.Tensor], name: str
) -> None:
    path = tmp_path_factory.mktemp("s") / name
    jsonckpt.save(state, path, sync=False)
    loaded = [reader(path) for reader in readers_for(path).values()]
    for found in [*loaded, independent_reader.load(path)]:
        assert difference(state, found) is None
        # In one storage they are as far from each other as they were; which ones are in one storage
        # depends on how much of it is saved.
        for (one, at), (other, then) in zip(storages(found), storages(state), strict=True):
            if one == other:
                assert at == then
        for first, second in shared_pairs(state):
            assert found[first].untyped_storage().data_ptr() == (
                found[second].untyped_storage().data_ptr()
            )


def shared_pairs(state: dict[str, torch.Tensor]) -> list[tuple[str, str]]:
    """Pairs of tensors that have a byte in common."""
    seen = {
        name: {
            tensor.data_ptr() + int(at) * tensor.itemsize
            for at in torch.arange(1000).as_strided(tensor.shape, tensor.stride()).flatten()
        }
        for name, tensor in state.items()
        if tensor.numel()
    }
    names = list(seen)
    return [(a, b) for i, a in enumerate(names) for b in names[i + 1 :] if seen[a] & seen[b]]


def test_a_rescue_keeps_values_and_strides_but_no_storages(tmp_path: Path) -> None:
    state = flat_buffer()
    jsonckpt.save(state, tmp_path / "c.json")
    text = (tmp_path / "c.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(text[: text.rindex(b'"index_offset"')])
    jsonckpt.recover(tmp_path / "cut.json", tmp_path / "new.json")
    assert difference(state, jsonckpt.load(tmp_path / "new.json")) is None
    assert b'"storage"' not in (tmp_path / "new.json").read_bytes()


def test_a_manifest_that_differs_from_its_shard_is_refused(tmp_path: Path) -> None:
    jsonckpt.save(flat_buffer(), tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    text = manifest.read_text()
    for member, other in (
        ('"storage":[0,0,4000]', '"storage":[0,16,4000]'),
        (',"stride":[1,10]', ""),
    ):
        assert text.count(member) == 1
        seal = json.loads(text)["seal"]
        manifest.write_text(text.replace(member, other).replace(f'"{seal}"', "null"))
        with pytest.raises(jsonckpt.FormatError, match=r"the manifest says|storage"):
            jsonckpt.load(tmp_path / "c")
        assert not jsonckpt.verify(tmp_path / "c").ok
