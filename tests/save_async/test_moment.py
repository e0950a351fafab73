"""save_async: what is saved is the state at the moment of the call, whatever becomes of it."""

from __future__ import annotations

import argparse
import copy
import tempfile
import uuid
import warnings
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt._src.save import staging
from jsonckpt._src.state import registry
from jsonckpt._src.tensors import memory
from jsonckpt._src.tensors.buffers import Source
from tests.save_async.obstacles import Blocked
from tests.schemas import validate_checkpoint
from tests.states import LITERAL, numpy_arrays
from tests.support import difference, examples, same
from tests.tensor_states import options as any_options
from tests.tensor_states import states as any_states
from tests.two_states import KINDS, NEW, OPTIONS, files


class Thing:
    """A class of the user's own, whose JSON is the very list that it holds."""

    def __init__(self, values: list[Any]) -> None:
        self.values = values

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Thing) and same(self.values, other.values)

    __hash__ = None  # type: ignore[assignment]


@pytest.fixture(scope="module", autouse=True)
def things() -> None:
    registry.register(Thing, "tests.Thing", lambda thing: thing.values, Thing)


def spoil(value: Any, seen: set[int] | None = None) -> None:
    """Change whatever of a state can be changed in place, memory first."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        for part in _dense(value.detach()):
            with torch.no_grad():
                blank = torch.empty(0, dtype=torch.uint8)
                blank.set_(part.untyped_storage()).fill_(0xA5)
    elif isinstance(value, np.ndarray):
        value[...] = np.zeros((), value.dtype) if value.any() else np.ones(1, value.dtype)[0]
    elif isinstance(value, dict):
        for key, item in value.items():
            spoil(key, seen)
            spoil(item, seen)
        if hasattr(value, "_metadata"):
            value._metadata.clear()
        value.clear()
    elif isinstance(value, list | deque):
        for item in value:
            spoil(item, seen)
        value.append("late")
        value.reverse()
    elif isinstance(value, tuple | set | frozenset):
        for item in value:
            spoil(item, seen)
        if isinstance(value, set):
            value.add("late")
    elif isinstance(value, bytearray):
        value += b"late"
    elif isinstance(value, Thing | argparse.Namespace):
        spoil(vars(value), seen)


def _dense(tensor: torch.Tensor) -> list[torch.Tensor]:
    if tensor.layout is torch.sparse_coo:
        return [tensor._indices(), tensor._values()]
    if tensor.layout is torch.sparse_csr:
        return [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
    if tensor.is_quantized and tensor.qscheme() is torch.per_channel_affine:
        return [tensor, tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()]
    return [tensor]


def zoo() -> dict[str, Any]:
    """Every way in which a tensor or an array can lie in memory."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls sparse beta and quantized deprecated
        return {**_odd_tensors(), **_tensors()}


def _odd_tensors() -> dict[str, Any]:
    return {
        "coo": torch.eye(3).to_sparse(),
        "csr": torch.eye(3).to_sparse_csr(),
        "quantized": torch.quantize_per_tensor(torch.randn(4), 0.1, 3, torch.qint8),
        "per channel": torch.quantize_per_channel(
            torch.randn(2, 3), torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.quint8
        ),
    }


def _tensors() -> dict[str, Any]:
    base = torch.arange(60.0)
    odd = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)
    metadata: OrderedDict[str, Any] = OrderedDict(w=torch.ones(2))
    metadata._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    joined = torch.arange(12.0)
    return {
        "plain": torch.randn(7, 5),
        "transposed": torch.randn(6, 7).t(),
        "sliced": torch.randn(9, 10)[1::2, 2:9:3],
        "expanded": torch.randn(1, 4).expand(3, 4),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 3),
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "conj": torch.randn(3, 4, dtype=torch.complex64).conj(),
        "conj, transposed": torch.randn(3, 4, dtype=torch.complex128).conj().t(),
        "neg": torch.randn(5, dtype=torch.complex64).conj().imag,
        "half": torch.randn(4).half(),
        "bfloat16": torch.randn(4).bfloat16(),
        "float8": torch.randn(4).to(torch.float8_e5m2),
        "bool": torch.rand(9) > 0.5,
        "odd bool": odd.view(torch.bool),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "grad": torch.randn(3, requires_grad=True),
        "tied": [base, base],
        "views of one storage": [joined[:8], joined[4:]],
        "a view of a whole": [base, base[3:9], base.view(6, 10).t()],
        "array": np.arange(12.0).reshape(3, 4),
        "fortran": np.asfortranarray(np.arange(12.0).reshape(3, 4)),
        "big-endian": np.arange(5, dtype=">i4"),
        "strided": np.arange(20, dtype=np.int16)[::3],
        "text": np.array(["a", "bc"]),
        "dates": np.array([1, 2], "M8[s]"),
        "both": [array := np.arange(6.0), torch.from_numpy(array)],
        "list": [1, [2, {"x": [3]}]],
        "int keys": {0: {"step": 1}, "1": [2]},
        "tuple": ([1], {"x": 2}),
        "ordered": metadata,
        "default": defaultdict(list, a=[1]),
        "deque": deque([1, [2]], 5),
        "set": {1, "a"},
        "bytes": bytearray(b"abc"),
        "namespace": argparse.Namespace(lr=0.1, betas=[0.9, 0.99]),
        "thing": Thing([1, torch.ones(2), [np.ones(3)]]),
    }


def check_moment(state: Any, directory: Path, name: str, **options: Any) -> None:
    """What is written is what ``save`` writes of the state before it was changed."""
    plain = jsonckpt.save(state, directory / "before" / name, **options)
    before = jsonckpt.load(directory / "before" / name)
    with pytest.MonkeyPatch.context() as patch:
        blocked = Blocked(patch)
        try:
            pending = jsonckpt.save_async(state, directory / name, **options)
            assert blocked.reached.wait(30)
            spoil(state)
        finally:
            blocked.go.set()
        result = pending.result()
    validate_checkpoint(directory / name)
    found = jsonckpt.load(directory / name)
    assert difference(before, found) is None
    assert (result.tensors, result.nbytes) == (plain.tensors, plain.nbytes)
    assert _codecs(directory / name) == _codecs(directory / "before" / name)


def _codecs(path: Path) -> list[Any]:
    with jsonckpt.open(path) as checkpoint:
        return [(e.name, e.dtype, e.shape, e.codec) for e in checkpoint.manifest.entries]


@pytest.mark.parametrize("name", KINDS)
def test_the_zoo(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    check_moment(zoo(), tmp_path, name)
    check_moment(zoo(), tmp_path, name, compression="zstd", threads=2, max_shard_size=500)


@pytest.mark.parametrize("copies", [1, 4])
def test_the_zoo_copied_in_pieces_on_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, copies: int
) -> None:
    monkeypatch.setattr(staging, "_PIECE", 16 * copies)
    monkeypatch.setattr(staging, "_WORTH_THREADS", 0)
    for threads in (1, 2):  # where torch has more than one, they copy, and none of ours
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        check_moment(zoo(), tmp_path, "c")


def test_every_plain_type(tmp_path: Path) -> None:
    check_moment(copy.deepcopy([value for value, _ in LITERAL]), tmp_path, "c")


@settings(max_examples=examples(40))
@given(st.one_of(any_states, st.lists(numpy_arrays, max_size=4)), any_options())
def test_any_state(state: Any, options: dict[str, Any]) -> None:
    if options["encoding"] == "list":
        options["filter"] = "none"
    with tempfile.TemporaryDirectory() as directory:
        check_moment(state, Path(directory), "c", **options)


def test_metadata_and_path_are_those_of_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocked: Blocked
) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    metadata = {"losses": [1.0]}
    monkeypatch.chdir(tmp_path / "one")
    pending = jsonckpt.save_async(NEW, "c", metadata=metadata)
    metadata["losses"].append(2.0)
    monkeypatch.chdir(tmp_path / "two")
    blocked.go.set()
    assert pending.result().path == "c"  # as it was given
    assert jsonckpt.open(tmp_path / "one" / "c").metadata == {"losses": [1.0]}


@pytest.mark.parametrize(
    "mode", [torch.inference_mode, torch.no_grad, lambda: torch.device("meta")]
)
def test_the_modes_of_torch(tmp_path: Path, mode: Callable[[], Any]) -> None:
    jsonckpt.save_async(zoo(), tmp_path / "c").result()
    with mode():
        state = {"w": torch.arange(4.0, device="cpu"), "t": torch.ones(2, 3, device="cpu").t()}
        pending = jsonckpt.save_async(state, tmp_path / "c")
    assert pending.result().tensors == 2
    jsonckpt.save_async(zoo(), tmp_path / "c").result()


def test_the_result_is_that_of_save(tmp_path: Path) -> None:
    pending = jsonckpt.save_async(NEW, tmp_path / "c", **OPTIONS)
    result = pending.result()
    assert isinstance(result, jsonckpt.SaveResult)
    assert pending.done()
    assert pending.result() is result
    assert result.durability == "synced"
    assert sorted(result.files) == files(tmp_path / "c")
    assert (result.tensors, result.nbytes) == (2, 260)
    assert "written" in repr(pending)
    assert same(jsonckpt.load(tmp_path / "c"), NEW)


def test_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonckpt.save_async(NEW, tmp_path / "c", progress=True).result()
    assert "260" in capsys.readouterr().err


def test_a_url() -> None:
    pytest.importorskip("fsspec")
    for name in KINDS:
        url = f"memory://{uuid.uuid4().hex}/{name}"
        assert jsonckpt.save_async(NEW, url, **OPTIONS).result().path == url
        assert same(jsonckpt.load(url), NEW)
    pending = jsonckpt.save_async(NEW, "abacus://x/c")
    with pytest.raises(jsonckpt.JsonckptError, match="cannot open this URL"):
        pending.result()


# --- memory that is remembered from save to save --------------------------------------------------

#: Enough for torch's threads to copy it.
LARGE = 100_000


@pytest.fixture
def several_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("several_threads")
def test_each_save_of_a_loop_has_its_own_values(tmp_path: Path) -> None:
    """Kept in place, replaced, grown, shrunken, of another dtype, and gone."""
    w, small = torch.zeros(LARGE), torch.zeros(3)
    state: dict[str, Any] = {"w": w, "small": small, "odd": torch.zeros(4, 5).t()}
    changes: list[Callable[[], object]] = [
        lambda: w.fill_(1),
        lambda: state.update(w=torch.full((LARGE,), 2.0)),
        lambda: state.update(more=torch.full((2 * LARGE,), 3.0)),
        lambda: state.update(w=torch.full((2 * LARGE,), 4, dtype=torch.int16)),
        lambda: state.pop("small"),
        lambda: state["more"].fill_(5),
        lambda: state.pop("more"),
        lambda: state["odd"].fill_(6),
    ]
    for number, change in enumerate(changes):
        change()
        expected = copy.deepcopy(state)
        pending = jsonckpt.save_async(state, tmp_path / str(number))
        for value in state.values():
            value.add_(1)
        pending.result()
        assert difference(jsonckpt.load(tmp_path / str(number)), expected) is None
        for value in state.values():
            value.sub_(1)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("start", [0, 1, 2, 4, 6, 8])
def test_bytes_of_any_number_that_begin_anywhere(tmp_path: Path, start: int) -> None:
    """They are copied in words where they consist of such, and one by one where they do not."""
    whole = torch.arange(4 * LARGE).to(torch.uint8)
    for more in (0, 1, 2, 4, 6, 8):
        part = whole[start : 3 * LARGE + more]
        expected = part.clone()
        pending = jsonckpt.save_async({"w": part}, tmp_path / str(more))
        part.add_(1)
        pending.result()
        assert torch.equal(jsonckpt.load(tmp_path / str(more))["w"], expected)


@pytest.mark.usefixtures("several_threads")
@pytest.mark.parametrize("first", [True, False])
def test_saves_inside_and_outside_of_inference_mode(tmp_path: Path, first: bool) -> None:
    state = {"w": torch.ones(LARGE)}
    for number, inside in enumerate((first, not first)):
        state["w"].fill_(number)
        with torch.inference_mode(inside):
            jsonckpt.save_async(state, tmp_path / str(number)).result()
        assert torch.equal(jsonckpt.load(tmp_path / str(number))["w"], state["w"])


@pytest.mark.usefixtures("several_threads")
def test_an_error_on_the_way_leaves_no_half_of_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"a": torch.ones(LARGE), "b": torch.full((LARGE,), 2.0)}
    jsonckpt.save_async(state, tmp_path / "first").result()
    real = memory.borrow_range
    calls = []

    def failing(*arguments: Any) -> torch.Tensor:
        calls.append(arguments)
        if len(calls) == 2:
            raise MemoryError("no more")
        return real(*arguments)

    other = {"a": torch.full((LARGE,), 3.0), "b": torch.full((LARGE,), 4.0)}
    with monkeypatch.context() as patch:
        patch.setattr(staging, "borrow_range", failing)
        with pytest.raises(MemoryError):
            jsonckpt.save_async(other, tmp_path / "second")
    for value in state.values():
        value.mul_(10)
    jsonckpt.save_async(state, tmp_path / "third").result()
    assert difference(jsonckpt.load(tmp_path / "third"), state) is None


@pytest.mark.usefixtures("several_threads")
def test_there_is_never_a_second_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is remembered does not hold on to memory that was given back, or is too small."""
    buffers = staging.Buffers()
    buffers.stage([Source.of("/w", torch.ones(LARGE))])
    kept = weakref.ref(buffers._plain._memory.base)
    fresh = staging._fresh
    there: list[bool] = []

    def seen(nbytes: int) -> Any:
        there.append(kept() is not None)
        return fresh(nbytes)

    monkeypatch.setattr(staging, "_fresh", seen)
    buffers.stage([Source.of("/w", torch.ones(2 * LARGE))])
    assert there == [False]
    kept = weakref.ref(buffers._plain._memory.base)
    buffers.release()
    assert kept() is None
