"""What the tests of safetensors ask of its files and of ``load_model``, in our own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import JsonckptError, StateMismatchError, UnsupportedTypeError, load_into
from tests.outside.support import alike, into, through, written
from tests.support import difference

# Shared memory --------------------------------------------------------------------------------


class Shares(torch.nn.Module):
    """Two names for one weight, and buffers that are parts of one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(3, 3)
        self.b = torch.nn.Linear(3, 3)
        self.b.weight = self.a.weight
        self.b.bias = self.a.bias
        whole = torch.arange(12.0)
        self.register_buffer("whole", whole)
        self.register_buffer("start", whole[:6])
        self.register_buffer("middle", whole[3:9])
        self.register_buffer("rows", whole.view(3, 4)[1:])


@pytest.mark.parametrize("way", ["load", "load_into"])
def test_a_model_that_shares_weights_and_parts(way: str, tmp_path: Path) -> None:
    first, other = Shares(), Shares()
    first.get_buffer("whole").mul_(2)
    path = written(first.state_dict(), tmp_path)
    if way == "load":
        assert alike(first.state_dict(), jsonckpt.load(path)) is None
        other.load_state_dict(jsonckpt.load(path))
    else:
        load_into(other, path)
    assert alike(first.state_dict(), other.state_dict()) is None
    assert other.b.weight is other.a.weight


def test_disjoint_parts_of_one_memory_are_two_tensors(tmp_path: Path) -> None:
    flat = torch.arange(10.0)
    state = {"one": flat[:3], "two": flat[3:]}
    kept = through(state)
    assert alike(state, kept) is None
    target = {"one": torch.zeros(3), "two": torch.zeros(7)}
    into(target, state, tmp_path)
    assert difference([t.tolist() for t in state.values()], [t.tolist() for t in target.values()]) \
        is None  # fmt: skip


def test_parts_of_one_memory_as_targets(tmp_path: Path) -> None:
    state = {"one": torch.full((3,), 1.0), "two": torch.full((7,), 2.0)}
    flat = torch.zeros(10)
    into({"one": flat[:3], "two": flat[3:]}, state, tmp_path)
    assert flat.tolist() == [1.0] * 3 + [2.0] * 7
    overlapping = {"one": flat[:3], "two": flat[2:9]}
    before = flat.clone()
    with pytest.raises(StateMismatchError, match="/two"):
        into(overlapping, state, tmp_path)
    assert torch.equal(flat, before)


@pytest.mark.parametrize("kind", ["expanded", "self-overlapping"])
def test_targets_that_overlap_themselves_are_refused(kind: str, tmp_path: Path) -> None:
    base = torch.zeros(5)
    target = base[:1].expand(4) if kind == "expanded" else base.as_strided((2, 2), (1, 1))
    state = {"w": torch.arange(4.0).view(target.shape)}
    with pytest.raises((StateMismatchError, UnsupportedTypeError), match="/w"):
        into({"w": target}, state, tmp_path)
    assert not base.any()


# Names ----------------------------------------------------------------------------------------


def test_missing_and_unexpected_names_are_told_and_nothing_is_changed(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    before = model.weight.detach().clone()
    state = {"weight": torch.zeros(2, 2), "more": torch.ones(1)}
    with pytest.raises(StateMismatchError) as caught:
        into(model, state, tmp_path)
    assert "/bias" in str(caught.value)
    assert "/more" in str(caught.value)
    assert torch.equal(model.weight, before)
    result = into(model, state, tmp_path, strict=False)
    assert (result.loaded, result.missing, result.unexpected) == (("/weight",), ("/bias",),
                                                                  ("/more",))  # fmt: skip
    assert not model.weight.any()


def test_shapes_that_differ_are_told_with_both(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    state = torch.nn.Linear(2, 2).state_dict()
    with pytest.raises(
        StateMismatchError, match=r"/weight.*\n?.*\[2, 2\].*\[3, 2\]|\[3, 2\].*\[2, 2\]"
    ):
        into(model, state, tmp_path)
    result = into(model, state, tmp_path, strict=False)
    assert [text.split(":")[0] for text in result.mismatched] == ["/weight", "/bias"]


@pytest.mark.parametrize("name", ["", "a/b", "a.b.c", "~", "weights 1", "ä", "名", "$tensor", "#"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    state = {name: torch.ones(2), "other": torch.zeros(1)}
    path = written(state, tmp_path)
    assert alike(state, jsonckpt.load(path)) is None
    with jsonckpt.open(path) as checkpoint:
        assert len(list(checkpoint)) == 2
        assert all(torch.equal(checkpoint[n].load(), t) for n, t in zip(checkpoint, state.values()))


# Parts of a file ------------------------------------------------------------------------------

KEYS: list[Any] = [
    slice(None), slice(2, 4), slice(-2, None), slice(None, None, 3), slice(4, 2), slice(0, 99), 0,
    -1, (1, 2), (slice(1, 3), slice(0, 2)), (slice(None), 1), (slice(None), slice(None), 0), ...,
    (..., slice(0, 1)), None, (slice(1, 2), None),
]  # fmt: skip


@pytest.mark.parametrize("layout", ["rows", "transposed", "channels_last", "view"])
def test_slices_of_an_entry_are_those_of_the_tensor(layout: str, tmp_path: Path) -> None:
    tensor = torch.arange(6 * 5 * 4 * 3.0).view(6, 5, 4, 3)
    state: dict[str, Any] = {"w": tensor}
    if layout == "transposed":
        state["w"] = tensor.transpose(0, 2).contiguous().transpose(0, 2)
    elif layout == "channels_last":
        state["w"] = tensor.contiguous(memory_format=torch.channels_last)
    elif layout == "view":
        state = {"w": tensor[1:, 1:], "whole": tensor}
    path = tmp_path / "checkpoint"
    jsonckpt.save(state, path, chunk_size=100, sync=False)
    with jsonckpt.open(path) as checkpoint:
        entry = checkpoint["/w"]
        assert entry.shape == state["w"].shape
        for key in KEYS:
            assert torch.equal(entry[key], state["w"][key]), key
        for key in (6, -7, (0, 5), (slice(None),) * 5):
            with pytest.raises(IndexError):
                entry[key]


def test_names_and_facts_without_reading_tensors(tmp_path: Path) -> None:
    state = {"b": torch.ones(2, 3, dtype=torch.bfloat16), "a": torch.zeros(0), "s": torch.ones(())}
    path = tmp_path / "c.json"
    jsonckpt.save(state, path, metadata={"framework": "pt", "note": "ä"}, sync=False)
    with jsonckpt.open(path) as checkpoint:
        assert list(checkpoint) == ["/b", "/a", "/s"]
        assert checkpoint.metadata == {"framework": "pt", "note": "ä"}
        facts = [(entry.dtype, tuple(entry.shape), entry.nbytes) for entry in checkpoint.values()]
    assert facts == [(torch.bfloat16, (2, 3), 12), (torch.float32, (0,), 0), (torch.float32, (), 4)]


@pytest.mark.parametrize("metadata", [[1], "text", {1: 2}, {"a": torch.ones(1)}, {"a": {1, 2}}])
def test_metadata_that_is_no_plain_json_is_refused(metadata: Any, tmp_path: Path) -> None:
    with pytest.raises((JsonckptError, TypeError, ValueError), match="metadata"):
        jsonckpt.save({}, tmp_path / "c.json", metadata=metadata)
    assert not list(tmp_path.iterdir())


# In place -------------------------------------------------------------------------------------


def test_the_memory_of_the_target_stays_where_it_is(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    pointers = {name: value.data_ptr() for name, value in model.state_dict().items()}
    identities = [id(parameter) for parameter in model.parameters()]
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    into(model, other.state_dict(), tmp_path)
    assert {name: value.data_ptr() for name, value in model.state_dict().items()} == pointers
    assert [id(parameter) for parameter in model.parameters()] == identities
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("layout", ["transposed", "every other", "channels_last", "offset"])
def test_targets_in_any_layout(layout: str, tmp_path: Path) -> None:
    base = torch.zeros(8, 6, 4, 4)
    target = {
        "transposed": base.transpose(0, 3),
        "every other": base[::2, :, ::2],
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "offset": base[3:],
    }[layout]
    strides = target.stride()
    values = torch.arange(float(target.numel())).view(target.shape)
    into([target], [values], tmp_path)
    assert torch.equal(target, values)
    assert target.stride() == strides


@pytest.mark.parametrize("pair", [
    ("float32", "bfloat16"), ("bfloat16", "float32"), ("float64", "float16"), ("int64", "int32"),
    ("float32", "float8_e4m3fn"), ("bool", "float32"), ("float32", "complex64"),
])  # fmt: skip
def test_another_dtype_only_when_asked(pair: tuple[str, str], tmp_path: Path) -> None:
    saved, wanted = (getattr(torch, name) for name in pair)
    values = torch.tensor([0.0, 1.0, 2.5, -3.0]).to(saved)
    target = torch.zeros(4, dtype=wanted)
    with pytest.raises(StateMismatchError, match=pair[1]):
        into([target], [values], tmp_path)
    assert not target.to(torch.complex64).any()
    into([target], [values], tmp_path, cast=True)
    assert torch.equal(target.to(torch.complex64), values.to(wanted).to(torch.complex64))


# Files that are none --------------------------------------------------------------------------

NO_CHECKPOINT = [b"", b"\0", b"{}", b"[]", b"null", b"\x80\x04.", bytes(range(64))]


@pytest.mark.parametrize("data", NO_CHECKPOINT, ids=repr)
def test_files_that_are_no_checkpoint(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(data)
    for read in (jsonckpt.load, jsonckpt.open, lambda p: load_into({}, p)):
        with pytest.raises(JsonckptError):
            read(path)


@pytest.mark.parametrize("target", [None, 5, "text", iter([torch.ones(1)]), {"w": iter([])}],
                         ids=lambda value: type(value).__name__)  # fmt: skip
def test_what_can_be_no_target_is_refused(target: Any, tmp_path: Path) -> None:
    with pytest.raises((TypeError, StateMismatchError)):
        into(target, {"w": torch.ones(1)}, tmp_path)


def test_a_file_of_safetensors_is_named_as_one(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "model.safetensors"
    save_file({"w": torch.ones(2)}, path)
    with pytest.raises(JsonckptError, match="convert"):
        jsonckpt.load(path)
