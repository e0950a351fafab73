"""Strides of dense tensors come back as torch.save and torch.load bring them back."""

from __future__ import annotations

import io
import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.model import is_dense, parse_layout
from jsonckpt._src.tensors.buffers import Source, Target
from tests import independent_reader
from tests.readers import readers_for
from tests.schemas import validate_checkpoint
from tests.support import difference
from tests.texts import crafted, refused_by_all

IMAGES = torch.arange(2 * 3 * 4 * 5, dtype=torch.float32).reshape(2, 3, 4, 5)


def turned() -> dict[str, torch.Tensor]:
    """Dense tensors of every order, and dimensions of one element or none."""
    found: dict[str, torch.Tensor] = {
        f"order {order}": IMAGES.permute(order).clone(memory_format=torch.preserve_format)
        for order in itertools.permutations(range(4))
    }
    found |= {
        "channels last": IMAGES.to(memory_format=torch.channels_last),
        "one channel": torch.ones(2, 1, 4, 4).contiguous(memory_format=torch.channels_last),
        "one channel, turned": torch.ones(2, 4, 4, 1).permute(0, 3, 1, 2),
        "a row of many": torch.ones(6, 3)[:1].detach(),
        "volumes": torch.ones(1, 2, 2, 2, 3).to(memory_format=torch.channels_last_3d),
        "transposed": torch.arange(12.0).reshape(3, 4).t(),
        "empty": torch.empty(0, 3).t(),
        "bool": torch.tensor([[True, False, True], [False, False, True]]).t(),
        "complex": torch.tensor([[1 + 2j, 3 - 4j, 0.5j]] * 2).t(),
        "conjugated": torch.tensor([[1 + 2j, 3 - 4j, 0.5j]] * 2).t().conj(),
        "bfloat16": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3).t(),
        "parameter": torch.nn.Parameter(torch.arange(6.0).reshape(2, 3).t()),
        "gradient": torch.arange(6.0).reshape(2, 3).t().requires_grad_(),
    }
    return found


def by_torch(state: Any) -> Any:
    memory = io.BytesIO()
    torch.save(state, memory)
    memory.seek(0)
    return torch.load(memory)


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst", "list.json"])
def test_every_reader_gives_the_strides_that_torch_gives(tmp_path: Path, name: str) -> None:
    state, path = turned(), tmp_path / name
    options: dict[str, Any] = {"encoding": "list"} if name.startswith("list") else {}
    jsonckpt.save(state, path, chunk_size=16, checksum="sha256", **options)
    expected = by_torch(state)
    for reader in readers_for(path).values():
        found = reader(path)
        assert {key: value.stride() for key, value in found.items()} == {
            key: value.stride() for key, value in expected.items()
        }
        assert difference(state, found) is None
    assert difference(list(independent_reader.load(path)), list(state)) is None
    for key, tensor in independent_reader.load(path).items():
        assert tensor.stride() == expected[key].stride()
        assert torch.equal(tensor, state[key])
    with jsonckpt.open(path) as checkpoint:
        streamed = dict(jsonckpt.stream(path))
        for key, tensor in expected.items():
            assert checkpoint[f"/{key}"].load().stride() == tensor.stride()
            assert streamed[f"/{key}"].stride() == tensor.stride()
            assert torch.equal(checkpoint[f"/{key}"][0:1].detach(), tensor[0:1].detach())
    assert jsonckpt.verify(path, deep=True).ok
    validate_checkpoint(path)


def test_row_major_records_say_nothing_of_strides(tmp_path: Path) -> None:
    jsonckpt.save({"w": IMAGES, "s": torch.tensor(1.0), "row": torch.ones(1, 3)}, tmp_path / "c")
    assert '"stride"' not in (tmp_path / "c" / "manifest.json").read_text()


def test_a_tensor_with_gaps_comes_back_row_major_as_its_clone_does(tmp_path: Path) -> None:
    state = {"w": torch.arange(24.0).reshape(4, 6)[:, ::2].t()}
    jsonckpt.save(state, tmp_path / "c")
    found = jsonckpt.load(tmp_path / "c")["w"]
    assert torch.equal(found, state["w"])
    assert found.is_contiguous()


def test_what_is_seen_through_a_dense_tensor_shares_its_memory(tmp_path: Path) -> None:
    weight = torch.arange(12.0).reshape(3, 4).t()
    state = {"w": weight, "rows": weight[1:3], "again": weight, "flat": weight.t()[1]}
    jsonckpt.save(state, tmp_path / "c")
    found = jsonckpt.load(tmp_path / "c")
    assert difference(state, found) is None
    assert found["again"] is found["w"]
    assert found["w"].stride() == (1, 4)
    assert found["rows"].stride() == (1, 4)
    found["w"].zero_()
    assert not found["rows"].any()
    assert not found["flat"].any()


def test_members_of_composite_tensors_keep_their_strides(tmp_path: Path) -> None:
    images = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, that quantized tensors are deprecated
        scales, zeros = torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long)
        state = {
            "per tensor": torch.quantize_per_tensor(images, 0.5, 0, torch.qint8),
            "per channel": torch.quantize_per_channel(images, scales, zeros, 0, torch.qint8),
            "sparse": torch.sparse_coo_tensor(
                torch.tensor([[0, 1], [2, 0], [1, 1]]).t(), torch.ones(2, 3).t()
            ),
        }
    jsonckpt.save(state, tmp_path / "c")
    found = jsonckpt.load(tmp_path / "c")
    assert difference(state, found) is None
    for name in ("per tensor", "per channel"):
        assert found[name].stride() == state[name].stride() == (12, 1, 6, 3)
    assert found["sparse"]._indices().stride() == state["sparse"]._indices().stride()
    assert found["sparse"]._values().stride() == state["sparse"]._values().stride()


def test_new_state_of_an_optimizer_gets_the_saved_strides(tmp_path: Path) -> None:
    def make() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model: Any = torch.nn.Conv2d(3, 4, 3)
        model = model.to(memory_format=torch.channels_last)
        return model, torch.optim.AdamW(model.parameters(), fused=True)

    model, optimizer = make()
    model(torch.randn(1, 3, 8, 8)).sum().backward()
    optimizer.step()
    jsonckpt.save({"opt": optimizer.state_dict()}, tmp_path / "c")
    fresh, other = make()
    jsonckpt.load_into({"opt": other}, tmp_path / "c")
    for kept, new in zip(model.parameters(), fresh.parameters(), strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            assert other.state[new][name].stride() == optimizer.state[kept][name].stride()
            assert torch.equal(other.state[new][name], optimizer.state[kept][name])


def test_a_background_save_and_a_rescue_keep_strides(tmp_path: Path) -> None:
    state = {"w": IMAGES.to(memory_format=torch.channels_last), "t": torch.arange(6).view(2, 3).t()}
    jsonckpt.save_async(state, tmp_path / "c.json").result()
    assert difference(state, jsonckpt.load(tmp_path / "c.json")) is None
    text = (tmp_path / "c.json").read_bytes()
    (tmp_path / "cut.json").write_bytes(text[: text.rindex(b'"index_offset"')])
    jsonckpt.recover(tmp_path / "cut.json", tmp_path / "new.json")
    assert difference(state, jsonckpt.load(tmp_path / "new.json")) is None


def test_a_callable_map_location_keeps_strides(tmp_path: Path) -> None:
    jsonckpt.save({"w": IMAGES.to(memory_format=torch.channels_last)}, tmp_path / "c")

    def copied(storage: Any, _: str) -> Any:
        return storage.clone()

    found = jsonckpt.load(tmp_path / "c", map_location=copied)["w"]
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, IMAGES)


# --- the rules --------------------------------------------------------------------------------


def test_strides_that_torch_calls_dense_are_dense() -> None:
    for size in itertools.product((0, 1, 2, 3), repeat=3):
        for stride in itertools.product((0, 1, 2, 3, 4, 6, 9), repeat=3):
            tensor = torch.empty_strided(size, stride)
            expected = torch.ops.aten.is_non_overlapping_and_dense.default(tensor)
            found = is_dense(size, stride)
            # Without elements anything is dense to torch; only what could hold some is kept.
            assert found == expected or (not tensor.numel() and not found), (size, stride)


WRONG = {
    "not an array": 1,
    "too few": [1],
    "too many": [1, 2, 6],
    "negative": [-3, 1],
    "a fraction": [3.0, 1],
    "gaps": [6, 2],
    "overlapping": [1, 1],
    "expanded": [0, 1],
    "nothing": None,
    "of another order of sizes": [1, 3],
}


@pytest.mark.parametrize("name", WRONG)
def test_other_strides_are_refused_by_every_reader(name: str, tmp_path: Path) -> None:
    text = crafted(
        ["1,2,3,4,5,6"], "uint8", [2, 3], [bytes(range(1, 7))], head=_member(WRONG[name])
    )
    refused_by_all(text, tmp_path)
    assert not jsonckpt.verify(tmp_path / "r.json").ok


def _member(stride: object) -> str:
    return f'"stride":{json.dumps(stride)},'


def test_strides_that_no_reader_could_count_in_bytes_are_refused(tmp_path: Path) -> None:
    head = _member([2**62, 1])
    raw = bytes(24)
    refused_by_all(crafted(["0,0,0,0,0,0"], "float32", [1, 6], [raw], head=head), tmp_path)


def test_any_reader_may_ignore_the_member(tmp_path: Path) -> None:
    text = crafted(["1,2,3,4,5,6"], "uint8", [2, 3], [bytes(range(1, 7))], head=_member([1, 2]))
    (tmp_path / "c.json").write_bytes(text)
    found = jsonckpt.load(tmp_path / "c.json")
    assert found.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert found.stride() == (1, 2)


def test_the_checked_member_is_the_one_that_is_written() -> None:
    layout = parse_layout({"stride": [1, 2]}, [2, 3], 4)
    assert layout.to_text() == ',"stride":[1,2]'
    assert Source.of("/w", torch.zeros(3, 2).t()).layout == layout


def test_a_strided_tensor_is_filled_piece_by_piece() -> None:
    wanted = torch.randn(33, 70).t()
    source = Source.of("/w", wanted)
    target = Target.allocate("float32", (70, 33), device=torch.device("cpu"), stride=(1, 70))
    for start in range(0, source.nbytes, 44):
        target.write(start, source.read(start, min(source.nbytes, start + 44)))
    assert torch.equal(target.finish(), wanted)
    assert target.finish().stride() == wanted.stride()
