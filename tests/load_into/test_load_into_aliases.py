"""``load_into`` tensors that lie in one memory: one value for each piece of it, or nothing."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt import StateMismatchError
from jsonckpt._src.tensors.overlap import overlaps_itself
from tests.support import examples


def full(value: float, *shape: int) -> torch.Tensor:
    return torch.full(shape, float(value))


def refused(target: Any, path: Path, *names: str, **options: Any) -> str:
    """``load_into`` is refused, the message has the names, and nothing was written."""
    tensors = [item for item in target.values() if isinstance(item, torch.Tensor)]
    before = [tensor.clone() for tensor in tensors]
    with pytest.raises(StateMismatchError, match="nothing has been changed") as caught:
        jsonckpt.load_into(target, path, **options)
    for tensor, old in zip(tensors, before, strict=True):
        assert torch.equal(tensor, old)
    assert all(name in str(caught.value) for name in names)
    return str(caught.value)


# --- one memory -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_two_values_for_one_tensor_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save({"a": full(1, 300), "b": full(2, 300), "c": full(3, 2)}, path, chunk_size=64)
    one = torch.zeros(300)
    target = {"a": one, "b": one, "c": torch.zeros(2)}
    assert "/b: in the same memory as /a" in refused(target, path)
    result = jsonckpt.load_into(target, path, strict=False)
    assert len(result.mismatched) == 1
    assert result.loaded == ("/c",)
    assert one.tolist() == [0.0] * 300
    assert target["c"].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_equal_values_for_one_tensor_are_fine(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save({"a": torch.arange(300.0), "b": torch.arange(300.0)}, path, chunk_size=64)
    one = torch.zeros(300)
    assert jsonckpt.load_into({"a": one, "b": one}, path).loaded == ("/a", "/b")
    assert torch.equal(one, torch.arange(300.0))


class Tied(torch.nn.Module):
    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.one = torch.nn.Linear(3, 3, bias=False)
        self.two = torch.nn.Linear(3, 3, bias=False)
        if tied:
            self.two.weight = self.one.weight


def test_an_untied_checkpoint_and_a_tied_model(tmp_path: Path) -> None:
    apart = Tied(tied=False)
    jsonckpt.save(apart.state_dict(), tmp_path / "c")
    target = Tied(tied=True)
    before = target.one.weight.detach().clone()
    with pytest.raises(StateMismatchError, match=r"/two\.weight: in the same memory as /one"):
        jsonckpt.load_into(target, tmp_path / "c")
    assert torch.equal(target.one.weight, before)
    with torch.no_grad():
        apart.two.weight.copy_(apart.one.weight)
    jsonckpt.save(apart.state_dict(), tmp_path / "c")
    jsonckpt.load_into(target, tmp_path / "c")
    assert torch.equal(target.two.weight, apart.one.weight)
    assert target.one.weight is target.two.weight


SEEN: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "detached": lambda t: t.detach(),
    "view": lambda t: t.view(t.shape),
    "slice": lambda t: t[:],
    "storage": lambda t: torch.empty(0).set_(
        t.untyped_storage(), t.storage_offset(), t.shape, t.stride()
    ),
    "numpy": lambda t: torch.from_numpy(t.numpy()),
}


@pytest.mark.parametrize("kind", SEEN)
def test_the_same_memory_by_any_way(tmp_path: Path, kind: str) -> None:
    jsonckpt.save({"a": full(1, 4, 5), "b": full(2, 4, 5), "c": full(1, 4, 5)}, tmp_path)
    one = torch.zeros(4, 5)
    refused({"a": one, "b": SEEN[kind](one)}, tmp_path, "/a", "/b", exclude="/c")
    jsonckpt.load_into({"a": one, "c": SEEN[kind](one)}, tmp_path, exclude="/b")
    assert torch.equal(one, full(1, 4, 5))


def test_what_checksums_cannot_tell_is_compared(tmp_path: Path) -> None:
    """Views of one record, other dtypes under ``cast``: read a part at a time, and compared."""
    base = torch.arange(24.0)
    base[12:] = base[:12]
    views = {"all": base, "a": base[:12], "b": base[12:], "c": base[6:18]}
    views["columns"], views["again"] = base.view(4, 6).t()[:, :2], base.view(4, 6).t()[:, 2:]
    jsonckpt.save(views, tmp_path / "c", chunk_size=16)
    jsonckpt.save(views, tmp_path / "c.json.zst", chunk_size=16)
    for path in (tmp_path / "c", tmp_path / "c.json.zst"):
        one, two = torch.zeros(12), torch.zeros(6, 2)
        jsonckpt.load_into({"a": one, "b": one}, path, include=["/a", "/b"])
        assert torch.equal(one, base[:12])
        refused({"a": one, "c": one}, path, "/a", "/c", include=["/a", "/c"])
        names = ["/columns", "/again"]
        jsonckpt.load_into({"columns": two, "again": two}, path, include=names)
        assert torch.equal(two, views["columns"])
    jsonckpt.save({"a": torch.arange(4.0), "b": torch.arange(4.0).double()}, tmp_path / "d")
    one = torch.zeros(4)
    jsonckpt.load_into({"a": one, "b": one}, tmp_path / "d", cast=True)
    assert torch.equal(one, torch.arange(4.0))
    jsonckpt.save({"a": torch.arange(4.0), "b": torch.arange(1.0, 5.0).double()}, tmp_path / "d")
    refused({"a": one, "b": one}, tmp_path / "d", "/a", "/b", cast=True)


# --- memory that overlaps ---------------------------------------------------------------------


def shared(kind: str) -> dict[str, torch.Tensor]:
    """Tensors that share memory: the structure saved, and a structure to load into."""
    whole = torch.zeros(4, 6)
    flat = whole.view(-1)
    return {
        "row": {"a": whole, "b": whole[1]},
        "column": {"a": whole, "b": whole[:, 2]},
        "overlapping": {"a": flat[:10], "b": flat[5:]},
        "chain": {"a": flat[:10], "b": flat[8:16], "c": flat[14:]},
        "other shape": {"a": whole, "b": flat},
        "transposed": {"a": whole, "b": whole.t()},
        "other dtype": {"a": whole, "b": flat.view(torch.int32)},
        "complex": {"a": flat.view(12, 2), "b": torch.view_as_complex(flat.view(12, 2))},
        "interleaved": {"a": flat[::2], "b": flat[1::2], "c": flat[3::4]},
    }[kind]


KINDS = ["row", "column", "overlapping", "chain", "other shape", "transposed", "other dtype"]
KINDS += ["complex", "interleaved"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_was_saved_shared_loads_into_the_same_structure(tmp_path: Path, kind: str) -> None:
    saved, target = shared(kind), shared(kind)
    values = torch.arange(24.0)
    saved["a"].untyped_storage().copy_(values.untyped_storage())
    jsonckpt.save(saved, tmp_path, chunk_size=16)
    result = jsonckpt.load_into(target, tmp_path)
    assert set(result.loaded) == {f"/{name}" for name in saved}
    for name, tensor in saved.items():
        assert torch.equal(target[name], tensor)


@pytest.mark.parametrize("kind", KINDS)
def test_overlapping_targets_and_records_of_their_own_are_refused(
    tmp_path: Path, kind: str
) -> None:
    saved = {name: tensor.clone() + 1 for name, tensor in shared(kind).items()}
    jsonckpt.save(saved, tmp_path)
    overlapping = "/c" if kind == "interleaved" else "/b"
    assert "memory with" in refused(shared(kind), tmp_path, overlapping)


def test_views_that_only_touch_are_filled(tmp_path: Path) -> None:
    """As the weights of a flattened recurrent network: side by side in one storage."""
    saved = {"a": full(1, 2, 3), "b": full(2, 4), "even": full(3, 5), "odd": full(4, 5)}
    jsonckpt.save(saved, tmp_path)
    flat, mixed = torch.zeros(10), torch.zeros(10)
    target = {
        "a": flat[:6].view(2, 3), "b": flat[6:], "even": mixed[::2], "odd": mixed[1::2],
    }  # fmt: skip
    jsonckpt.load_into(target, tmp_path)
    assert flat.tolist() == [1.0] * 6 + [2.0] * 4
    assert mixed.tolist() == [3.0, 4.0] * 5


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(1).expand(6),
        lambda: torch.zeros(6, 1).expand(6, 3),
        lambda: torch.zeros(7).as_strided((6, 2), (1, 1)),
        lambda: torch.zeros(20).unfold(0, 4, 2),
    ],
    ids=["expanded", "expanded columns", "windows", "unfolded"],
)
def test_a_target_that_overlaps_itself(tmp_path: Path, make: Callable[[], torch.Tensor]) -> None:
    target = {"a": make()}
    numbers = torch.arange(float(target["a"].numel())).view(target["a"].shape)
    jsonckpt.save({"a": numbers}, tmp_path / "c")
    assert "/a: several elements" in refused(target, tmp_path / "c")
    assert jsonckpt.load_into(target, tmp_path / "c", strict=False).loaded == ()
    assert not target["a"].any()


def test_a_target_that_overlaps_itself_as_the_checkpoint_does(tmp_path: Path) -> None:
    """A window over a record is a view of it, with the same overlap."""

    def windows() -> dict[str, torch.Tensor]:
        flat = torch.zeros(12)
        seen = {"flat": flat, "windows": flat.unfold(0, 4, 2), "same": flat[3:4].expand(5)}
        return {**seen, "both": flat[:3].view(3, 1).expand(3, 4)}

    saved, target = windows(), windows()
    saved["flat"].copy_(torch.arange(12.0))
    jsonckpt.save(saved, tmp_path)
    jsonckpt.load_into(target, tmp_path)
    for name, tensor in saved.items():
        assert torch.equal(target[name], tensor)
    only = {"windows": torch.zeros(12).unfold(0, 4, 2)}
    jsonckpt.load_into(only, tmp_path, include="/windows")
    assert torch.equal(only["windows"], saved["windows"])


def test_overlaps_itself_is_exact() -> None:
    for shape in itertools.product((1, 2, 3), repeat=3):
        for stride in itertools.product(range(6), repeat=3):
            places = [
                sum(index * step for index, step in zip(at, stride, strict=True))
                for at in itertools.product(*map(range, shape))
            ]
            assert overlaps_itself(shape, stride) == (len(set(places)) < len(places))
    assert not overlaps_itself((0, 2), (0, 0))
    assert not overlaps_itself((), ())


def test_an_optimizer_at_two_places(tmp_path: Path) -> None:
    def stepped(times: int) -> Any:
        weight = torch.nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([weight])
        for _ in range(times):
            weight.grad = torch.ones(2)
            optimizer.step()
        return optimizer.state_dict()

    once, twice = stepped(1), stepped(2)
    jsonckpt.save({"a": once, "b": twice}, tmp_path / "c")
    jsonckpt.save({"a": once, "b": once}, tmp_path / "d")
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.ones(2))])
    with pytest.raises(StateMismatchError, match="/b: the same Adam as at /a"):
        jsonckpt.load_into({"a": optimizer, "b": optimizer}, tmp_path / "c")
    assert not optimizer.state
    jsonckpt.load_into({"a": optimizer, "b": optimizer}, tmp_path / "d")
    assert optimizer.state_dict()["state"][0]["step"] == 1


# --- autograd ---------------------------------------------------------------------------------

LEAVES: dict[str, Callable[[], torch.Tensor]] = {
    "contiguous": lambda: torch.ones(3, 4),
    "transposed": lambda: torch.ones(4, 3).t(),
    "strided": lambda: torch.ones(3, 8)[:, ::2],
    "channels": lambda: torch.ones(1, 3, 4, 1).to(memory_format=torch.channels_last)[0, :, :, 0],
    "double": lambda: torch.ones(3, 4, dtype=torch.float64),
    "complex": lambda: torch.ones(3, 4, dtype=torch.complex64),
    "bfloat16": lambda: torch.ones(4, 3, dtype=torch.bfloat16).t(),
}


@pytest.mark.parametrize("saved", ["alone", "as a view", "as a column"])
@pytest.mark.parametrize("kind", LEAVES)
def test_autograd_notices_as_with_copy(tmp_path: Path, kind: str, saved: str) -> None:
    leaf = LEAVES[kind]().requires_grad_()
    values = torch.full((3, 4), 7, dtype=leaf.dtype)
    if saved == "alone":
        state = {"w": values}
    else:
        base = torch.full((6, 8), 7, dtype=leaf.dtype)
        state = {"base": base, "w": base[:3, :4] if saved == "as a column" else base.view(-1)[4:16]}
        state["w"] = state["w"].view(3, 4) if saved == "as a view" else state["w"]
    jsonckpt.save(state, tmp_path, chunk_size=32)
    before = leaf._version
    loss = (leaf * leaf.detach().clone().requires_grad_()).abs().sum()
    jsonckpt.load_into({"w": leaf}, tmp_path, include="/w")
    assert leaf._version > before
    assert leaf.requires_grad
    assert leaf.is_leaf
    assert torch.equal(leaf, values)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.backward(loss)


def test_autograd_notices_in_every_tensor_over_the_memory(tmp_path: Path) -> None:
    jsonckpt.save({"a": full(2, 3), "b": full(2, 3), "row": full(4, 2, 3)}, tmp_path)
    one, base = torch.zeros(3), torch.zeros(4, 3)
    target = {"a": one, "b": one.data, "row": base[:2]}
    versions = [tensor._version for tensor in target.values()]
    jsonckpt.load_into(target, tmp_path)
    assert all(one._version > old for one, old in zip(target.values(), versions, strict=True))
    assert base._version == target["row"]._version > 0


def test_autograd_notices_a_fill_that_fails(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(64)}, tmp_path / "c.json", chunk_size=64)
    text = (tmp_path / "c.json").read_bytes()
    (tmp_path / "c.json").write_bytes(text.replace(b"AACAPwAAgD8", b"AACAQwAAgD8", 1))
    leaf = torch.zeros(64)
    with pytest.raises(jsonckpt.IntegrityError):
        jsonckpt.load_into({"w": leaf}, tmp_path / "c.json", threads=1)
    assert leaf._version > 0


# --- any arrangement ----------------------------------------------------------------------------

#: ``(offset, shape, stride)`` of a view of one small buffer.
Window = tuple[int, tuple[int, ...], tuple[int, ...]]
_BUFFER = 60


@st.composite
def windows(draw: st.DrawFn) -> list[Window]:
    """Views of one buffer: apart, touching, overlapping, expanded, turned, empty."""
    found = []
    for _ in range(draw(st.integers(1, 4))):
        shape = tuple(draw(st.lists(st.integers(0, 4), min_size=1, max_size=2)))
        stride = tuple(draw(st.integers(0, 6)) for _ in shape)
        found.append((draw(st.integers(0, 20)), shape, stride))
    return found


def seen(buffer: torch.Tensor, found: list[Window]) -> dict[str, torch.Tensor]:
    """The views, by name."""
    return {
        str(number): buffer.as_strided(shape, stride, offset)
        for number, (offset, shape, stride) in enumerate(found)
    }


@settings(max_examples=examples(300))
@given(windows(), st.sampled_from(["arranged", "own", "equal"]))
def test_every_target_has_its_values_or_nothing_is_changed(found: list[Window], how: str) -> None:
    """Values are saved in the target's own arrangement, apart from each other, or all equal."""
    state = seen(torch.arange(float(_BUFFER)), found)
    if how == "own":
        state = {name: tensor.clone() + 100 * int(name) for name, tensor in state.items()}
    if how == "equal":
        state = {name: torch.full(tensor.shape, 7.0) for name, tensor in state.items()}
    buffer = torch.full((_BUFFER,), -1.0)
    target = seen(buffer, found)
    cells = seen(torch.arange(_BUFFER), found)
    used = [cell for view in cells.values() for cell in view.flatten().tolist()]
    with tempfile.TemporaryDirectory() as directory:
        jsonckpt.save(state, directory + "/c", sync=False, chunk_size=16)
        try:
            jsonckpt.load_into(target, directory + "/c")
        except StateMismatchError:
            repeats = [view.numel() != len(set(view.flatten().tolist())) for view in cells.values()]
            # A view that meets itself is written in full where that is no longer than its memory.
            assert how != "arranged" or any(repeats)
            assert len(used) != len(set(used))
            assert (buffer == -1.0).all()
            return
    assert all(torch.equal(target[name], state[name]) for name in target)
    untouched = [cell for cell in range(_BUFFER) if cell not in used]
    assert (buffer[untouched] == -1.0).all()
