"""save_async: the moment that is saved, the order of saves, errors, exits, forks and kills."""

from __future__ import annotations

import argparse
import copy
import errno
import gc
import os
import random
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jsonckpt
from jsonckpt import background, destinations, jsontext, registry, saving, staging
from jsonckpt.tensors import Source
from tests.schemas import validate_checkpoint
from tests.states import LITERAL, numpy_arrays
from tests.support import difference, same
from tests.tensor_states import options as any_options
from tests.tensor_states import states as any_states
from tests.two_states import KINDS, NEW, OLD, OPTIONS, files


@pytest.fixture(autouse=True)
def nothing_under_way() -> Iterator[None]:
    """No test leaves a save, or an error, to the next one."""
    yield
    with saving._background.turn():
        pass


class Blocked:
    """Holds up every save in the background between the copy and the first byte written."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self.go = threading.Event()
        write = saving._write

        def held_up(contents: Any, target: Any, options: Any, gate: Any, began: float) -> Any:
            if threading.current_thread().name == "jsonckpt-save":
                self.reached.set()
                assert self.go.wait(30)
            return write(contents, target, options, gate, began)

        patch.setattr(saving, "_write", held_up)


@pytest.fixture
def blocked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Blocked]:
    made = Blocked(monkeypatch)
    yield made
    made.go.set()


# --- what is saved is the state at the moment of the call --------------------------------------


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
    check_moment(zoo(), tmp_path, "c")


def test_every_plain_type(tmp_path: Path) -> None:
    check_moment(copy.deepcopy([value for value, _ in LITERAL]), tmp_path, "c")


@settings(
    deadline=None,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
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
    assert pending.result().path == str(tmp_path / "one" / "c")
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


# --- the loop goes on, and saves stand in line -------------------------------------------------


def test_the_call_returns_before_anything_is_written(tmp_path: Path, blocked: Blocked) -> None:
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    assert not pending.done()
    assert "under way" in repr(pending)
    with pytest.raises(TimeoutError, match="under way"):
        pending.result(timeout=0)
    assert files(tmp_path) == []
    blocked.go.set()
    pending.result(timeout=30)
    assert pending.done()


def test_a_second_call_waits_and_saves_its_own_moment(tmp_path: Path, blocked: Blocked) -> None:
    w = torch.zeros(1000)
    first = jsonckpt.save_async({"w": w}, tmp_path / "one")
    w.fill_(1)
    seconds: list[jsonckpt.PendingSave[jsonckpt.SaveResult]] = []
    thread = threading.Thread(
        target=lambda: seconds.append(jsonckpt.save_async({"w": w}, tmp_path / "two"))
    )
    thread.start()
    thread.join(0.1)
    assert not seconds
    w.fill_(2)
    blocked.go.set()
    thread.join()
    assert first.done()
    assert seconds[0].result().tensors == 1
    assert jsonckpt.load(tmp_path / "one")["w"].unique().tolist() == [0]
    assert jsonckpt.load(tmp_path / "two")["w"].unique().tolist() == [2]


def test_many_calls_from_many_threads(tmp_path: Path) -> None:
    def loop(number: int) -> None:
        for step in range(5):
            state = {"w": torch.full((999,), 10.0 * number + step)}
            jsonckpt.save_async(state, tmp_path / f"{number}-{step}", sync=False)
            state["w"].fill_(-1)

    threads = [threading.Thread(target=loop, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with saving._background.turn():
        for number in range(4):
            for step in range(5):
                found = jsonckpt.load(tmp_path / f"{number}-{step}")["w"]
                assert found.unique().tolist() == [10 * number + step]


def test_the_memory_of_the_copy_is_used_again(tmp_path: Path) -> None:
    saving._buffers.release()
    arena = saving._buffers._plain

    def saved(count: int, **options: Any) -> tuple[int, int]:
        jsonckpt.save_async({"w": torch.ones(count)}, tmp_path / "c", **options).result()
        return arena._memory.ctypes.data, len(arena._memory)

    first = saved(50_000)
    assert 200_000 <= first[1] <= 210_000
    assert saved(50_000) == first
    assert saved(10) == first
    assert saved(100_000)[1] >= 400_000
    assert saved(100_000, keep_buffers=False)[1] == 0
    assert same(jsonckpt.load(tmp_path / "c"), {"w": torch.ones(100_000)})


def test_the_state_itself_is_let_go(tmp_path: Path, blocked: Blocked) -> None:
    array = np.ones(10)
    alive = weakref.ref(array)
    state = {"array": array, "tensor": torch.from_numpy(array), "t": torch.from_numpy(array)[::2]}
    jsonckpt.save_async(state, tmp_path / "c")
    assert blocked.reached.wait(30)
    del array, state
    gc.collect()
    assert alive() is None


def test_an_error_does_not_keep_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, tmp_path / "c")
        with pytest.raises(jsonckpt.WriteError):
            pending.result()
    alive = weakref.ref(saving._buffers._plain._memory)
    saving._buffers.release()
    gc.collect()
    assert alive() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="niceness of threads")
def test_the_background_is_nice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def niceness() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    found = []
    write = saving._write

    def noted(*arguments: Any) -> Any:
        found.append(niceness())
        return write(*arguments)

    monkeypatch.setattr(saving, "_write", noted)
    mine = niceness()
    jsonckpt.save_async(NEW, tmp_path / "c").result()
    assert found == [min(19, mine + 10)]
    assert niceness() == mine
    with monkeypatch.context() as patch:
        patch.setattr(os, "setpriority", fail(PermissionError(errno.EPERM, "no")))
        jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_garbage_collection_is_switched_by_the_main_thread_only() -> None:
    found = []

    def look() -> None:
        with jsontext.collector_paused():
            found.append(gc.isenabled())

    thread = threading.Thread(target=look)
    thread.start()
    thread.join()
    look()
    assert found == [True, False]
    assert gc.isenabled()


# --- errors ----------------------------------------------------------------------------------


def fail(error: BaseException) -> Callable[..., Any]:
    def failing(*_: Any, **__: Any) -> Any:
        raise error

    return failing


def test_what_the_call_itself_raises(tmp_path: Path) -> None:
    class Mine:
        pass

    (tmp_path / "file").write_text("mine")
    for state, name, options, error in [
        ({"w": torch.ones(1), "deep": [Mine()]}, "c", {}, jsonckpt.UnsupportedTypeError),
        ({"k" * 1024: torch.ones(1)}, "c", {}, jsonckpt.LimitError),
        (NEW, "c", {"encoding": "hex"}, ValueError),
        (NEW, "c", {"threads": 0}, ValueError),
        (NEW, "c", {"chunk_size": "1 parsec"}, ValueError),
        (NEW, "c.json", {"encoding": "list", "compression": "zstd"}, ValueError),
        (NEW, "c", {"metadata": {"x": torch.ones(1)}}, TypeError),
        (NEW, "file", {}, jsonckpt.CheckpointExistsError),
    ]:
        with pytest.raises(error):
            jsonckpt.save_async(state, tmp_path / name, **options)  # type: ignore[arg-type]
    with open(tmp_path / "stream", "wb") as stream, pytest.raises(TypeError, match="takes a path"):
        jsonckpt.save_async(NEW, stream)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="path must be"):
        jsonckpt.save_async(NEW, b"c")  # type: ignore[arg-type]
    assert files(tmp_path) == ["file", "stream"]


def test_overwrite_false_sees_what_the_save_before_has_written(tmp_path: Path) -> None:
    jsonckpt.save_async(OLD, tmp_path / "c", overwrite=False)
    with pytest.raises(jsonckpt.CheckpointExistsError):
        jsonckpt.save_async(NEW, tmp_path / "c", overwrite=False)
    assert same(jsonckpt.load(tmp_path / "c"), OLD)


@pytest.mark.parametrize("name", KINDS)
def test_an_error_at_the_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    path = tmp_path / name
    jsonckpt.save(OLD, path)
    where = path if path.is_dir() else tmp_path
    before = files(where)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, path)
        for _ in range(2):
            with pytest.raises(jsonckpt.WriteError) as caught:
                pending.result()
    assert caught.value.errno == errno.ENOSPC
    assert "failed: WriteError" in repr(pending)
    assert pending.cancel() is False
    assert same(jsonckpt.load(path), OLD)
    assert files(where) == before
    # It has been seen: the next call has nothing to tell.
    jsonckpt.save_async(NEW, path).result()
    assert same(jsonckpt.load(path), NEW)


def test_an_error_that_nobody_asked_for_is_raised_by_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", fail(OSError(errno.ENOSPC, "No space left on device")))
        pending = jsonckpt.save_async(NEW, tmp_path / "one")
        with pytest.raises(jsonckpt.WriteError, match="saved nothing") as caught:
            jsonckpt.save_async(NEW, tmp_path / "two")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.file == str(tmp_path / "one")
    assert "No space left" in str(caught.value)
    assert isinstance(caught.value.__cause__, jsonckpt.WriteError)
    assert not (tmp_path / "two").exists()
    jsonckpt.save_async(NEW, tmp_path / "two").result()
    assert same(jsonckpt.load(tmp_path / "two"), NEW)
    with pytest.raises(jsonckpt.WriteError):
        pending.result()


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (RuntimeError("boom"), jsonckpt.JsonckptError),
        (SystemExit(3), jsonckpt.JsonckptError),
        (jsonckpt.LimitError("too much"), jsonckpt.LimitError),
        (jsonckpt.DurabilityUncertainError("eh", errno=5), jsonckpt.DurabilityUncertainError),
    ],
)
def test_errors_of_all_kinds_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    kind: type[jsonckpt.JsonckptError],
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(saving, "_write", fail(error))
        pending = jsonckpt.save_async(NEW, tmp_path / "one")
        with pytest.raises(kind, match=r"save before this one.*saved nothing") as caught:
            jsonckpt.save_async(NEW, tmp_path / "two")
    assert type(caught.value) is kind
    assert caught.value.__cause__ is error
    with pytest.raises(type(error)):
        pending.result()


def test_a_thread_that_cannot_be_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail(RuntimeError("can't start new thread")))
        pending = jsonckpt.save_async(OLD, tmp_path / "c")
        assert pending.done()
        assert pending.result().tensors == 2
        assert same(jsonckpt.load(tmp_path / "c", threads=1), OLD)
        patch.setattr(threading.Thread, "start", fail(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            jsonckpt.save_async(NEW, tmp_path / "c")
    assert same(jsonckpt.load(tmp_path / "c"), OLD)
    jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_no_memory_for_the_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saving._buffers.release()
    with monkeypatch.context() as patch:
        patch.setattr("mmap.mmap", fail(OSError(errno.ENOMEM, "Cannot allocate memory")))
        with pytest.raises(MemoryError, match=r"260|bytes.*jsonckpt\.save"):
            jsonckpt.save_async(NEW, tmp_path / "c")
    assert files(tmp_path) == []
    jsonckpt.save_async(NEW, tmp_path / "c").result()


def test_a_save_inside_a_save(tmp_path: Path) -> None:
    class Inner:
        pass

    def save(_: Inner) -> object:
        return jsonckpt.save_async(OLD, tmp_path / "inner")

    registry.register(Inner, "tests.Inner", save, lambda _: Inner())
    with pytest.raises(jsonckpt.JsonckptError, match="preparing another save"):
        jsonckpt.save_async([Inner()], tmp_path / "c")
    assert files(tmp_path) == []
    jsonckpt.save_async(NEW, tmp_path / "c").result()


# --- interrupted and cancelled -----------------------------------------------------------------


def test_ctrl_c_while_the_state_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jsonckpt.save(OLD, tmp_path / "c")
    before = files(tmp_path / "c")
    for threads in (1 << 40, 0):
        with monkeypatch.context() as patch:
            patch.setattr(staging, "_WORTH_THREADS", threads)
            patch.setattr(Source, "copy_to", fail(KeyboardInterrupt()))
            with pytest.raises(KeyboardInterrupt):
                jsonckpt.save_async(NEW, tmp_path / "c")
        assert files(tmp_path / "c") == before
        jsonckpt.save_async(OLD, tmp_path / "c").result()
        before = files(tmp_path / "c")


@pytest.fixture
def alarm() -> Iterator[None]:
    """A Ctrl-C that comes soon; what is interrupted would otherwise last for ever."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, previous)


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_while_waiting_for_the_result(tmp_path: Path, blocked: Blocked) -> None:
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    with pytest.raises(KeyboardInterrupt):
        pending.result()
    assert not pending.done()
    blocked.go.set()
    assert pending.result().tensors == 2
    assert same(jsonckpt.load(tmp_path / "c"), NEW)


@pytest.mark.usefixtures("alarm")
def test_ctrl_c_while_waiting_for_the_save_before(tmp_path: Path, blocked: Blocked) -> None:
    first = jsonckpt.save_async(OLD, tmp_path / "one")
    with pytest.raises(KeyboardInterrupt):
        jsonckpt.save_async(NEW, tmp_path / "two")
    blocked.go.set()
    first.result()
    assert same(jsonckpt.load(tmp_path / "one"), OLD)
    assert not (tmp_path / "two").exists()
    jsonckpt.save_async(NEW, tmp_path / "two").result()


class Canceller:
    """Cancels at the call of the system with the number ``at`` that the background makes."""

    def __init__(self, patch: pytest.MonkeyPatch, call: str, at: int) -> None:
        self.pending: Any = None
        self.ready = threading.Event()
        self.accepted: list[bool] = []
        self._calls = 0
        self._at = at
        self._lock = threading.Lock()
        self._real = getattr(os, call)
        patch.setattr(os, call, self)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        if threading.current_thread().name.startswith("jsonckpt"):
            with self._lock:
                self._calls += 1
                now = self._calls == self._at
            if now:
                assert self.ready.wait(30)
                self.accepted.append(self.pending._gate.cancel())
        return self._real(*arguments, **named)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("call", ["open", "pwritev", "fsync", "replace", "unlink"])
@pytest.mark.parametrize("name", KINDS)
def test_cancelled_at_every_call_of_the_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str, threads: int
) -> None:
    """Before the commit all is as it was; from the commit on it is too late."""
    path = tmp_path / name
    options = {**OPTIONS, "threads": threads}
    verdicts = []
    for at in range(1, 60):
        jsonckpt.save(OLD, path, **OPTIONS, sync=False)
        where = path if path.is_dir() else tmp_path
        before = files(where)
        with monkeypatch.context() as patch:
            canceller = Canceller(patch, call, at)
            pending = canceller.pending = jsonckpt.save_async(NEW, path, **options)
            canceller.ready.set()
            pending._wait(None)
        accepted = canceller.accepted
        if not accepted:
            assert pending.result().tensors == 2
            break
        assert pending.cancel() is accepted[0]
        verdicts.append(accepted[0])
        if accepted[0]:
            with pytest.raises(jsonckpt.SaveCancelledError, match="cancelled"):
                pending.result()
            assert same(jsonckpt.load(path), OLD)
            assert files(where) == before
        else:
            assert pending.result().tensors == 2
            assert same(jsonckpt.load(path), NEW)
    else:
        pytest.fail("the save never passed")
    assert verdicts == sorted(verdicts, reverse=True)


def test_cancel_waits_until_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.pwritev
    pendings: list[Any] = []

    def slow(*arguments: Any) -> int:
        while not (pendings and pendings[0]._gate._cancelled):
            time.sleep(0.001)
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwritev", slow)
        pendings.append(jsonckpt.save_async(NEW, tmp_path / "c", **OPTIONS))
        assert pendings[0].cancel() is True
    assert pendings[0].done()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
    assert pendings[0].cancel() is True
    # Whoever cancels knows: the next call has nothing to tell.
    pending = jsonckpt.save_async(NEW, tmp_path / "c")
    pending.result()
    assert pending.cancel() is False
    assert same(jsonckpt.load(tmp_path / "c"), NEW)


@pytest.mark.parametrize(("name", "possible"), [("c", True), ("c.json", False)])
def test_cancelling_behind_a_url(
    monkeypatch: pytest.MonkeyPatch, name: str, possible: bool
) -> None:
    pytest.importorskip("fsspec")
    url = f"memory://{uuid.uuid4().hex}/{name}"
    jsonckpt.save(OLD, url)
    verdicts = []
    write = destinations._write

    def cancelling(*arguments: Any, **named: Any) -> Any:
        verdicts.append(named["gate"].cancel())
        return write(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(destinations, "_write", cancelling)
        pending = jsonckpt.save_async(NEW, url)
        assert pending.cancel() is possible
    assert verdicts == [possible]
    assert same(jsonckpt.load(url), OLD if possible else NEW)


# --- other processes ---------------------------------------------------------------------------


class Nursery:
    """One process that has imported torch, and children of it that run scripts."""

    CODE = """
        import os, sys, threading, time, torch, warnings
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        import jsonckpt
        from jsonckpt import saving

        def hold_up(until):
            real = os.pwritev
            def pwritev(*arguments):
                while not until():
                    time.sleep(0.001)
                return real(*arguments)
            os.pwritev = pwritev

        for line in sys.stdin:
            script = line.encode().decode("unicode_escape")
            child = os.fork()
            if child == 0:
                sys.stdin.close()
                sys.stdout = sys.stderr = None
                errors = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(errors, 2)
                sys.stderr = open(2, "w")
                exec(script)
                sys.exit()
            print(child, flush=True)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """

    def __init__(self, directory: Path) -> None:
        self.errors = directory / "stderr"
        self._parent = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(self.CODE), str(self.errors)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def start(self, script: str) -> int:
        assert self._parent.stdin is not None
        code = textwrap.dedent(script).encode("unicode_escape").decode()
        self._parent.stdin.write(code + "\n")
        return self._number()

    def finish(self) -> int:
        return self._number()

    def run(self, script: str) -> tuple[int, str]:
        self.start(script)
        return self.finish(), self.errors.read_text()

    def close(self) -> None:
        assert self._parent.stdin is not None
        assert self._parent.stdout is not None
        self._parent.stdin.close()
        self._parent.wait()
        self._parent.stdout.close()

    def _number(self) -> int:
        assert self._parent.stdout is not None
        return int(self._parent.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nursery]:
    made = Nursery(tmp_path_factory.mktemp("nursery"))
    yield made
    made.close()


SAVE = """
    hold_up(lambda: not threading.main_thread().is_alive())
    state = {{"w": torch.arange(9999.0), "epoch": 7}}
    pending = jsonckpt.save_async(state, {path!r}, chunk_size=4096)
    assert not pending.done()
    state["w"].fill_(0)
"""


@pytest.mark.parametrize(
    ("name", "end", "code", "says"),
    [
        ("c", "", 0, ""),
        ("c", "sys.exit(3)", 3, ""),
        ("c.json", "raise ValueError('oh')", 1, "ValueError: oh"),
        ("c.json", "pending = None", 0, ""),
    ],
    ids=["the end", "sys.exit", "an exception", "dropped"],
)
def test_the_interpreter_waits(
    tmp_path: Path, nursery: Nursery, name: str, end: str, code: int, says: str
) -> None:
    path = tmp_path / name
    script = textwrap.dedent(SAVE.format(path=str(path))) + end
    found, errors = nursery.run(script)
    # exec() in a forked child of a loop: an exception ends the child with its traceback.
    assert found == code, errors
    assert says in errors
    assert "jsonckpt:" not in errors
    assert same(jsonckpt.load(path), {"w": torch.arange(9999.0), "epoch": 7})
    assert jsonckpt.verify(path)


def test_an_exit_function_that_saves(tmp_path: Path, nursery: Nursery) -> None:
    path = str(tmp_path / "c")
    script = f"""
        import atexit
        atexit.register(lambda: jsonckpt.save_async({{"w": torch.ones(9)}}, {path!r}))
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(path), {"w": torch.ones(9)})


@pytest.mark.parametrize("threads", [1, 2])
def test_an_interpreter_that_starts_no_more_threads(
    tmp_path: Path, nursery: Nursery, threads: int
) -> None:
    """From Python 3.12 on that is so as soon as the main thread has ended."""
    path = str(tmp_path / "c")
    script = f"""
        state = {{"w": [torch.ones(500), torch.ones(500)]}}
        go, write = threading.Event(), saving._write
        def late(*arguments):
            assert go.wait(30)
            return write(*arguments)
        def refuse(*_):
            raise RuntimeError("can't create new thread at interpreter shutdown")
        saving._write = late
        jsonckpt.save_async(state, {path!r}, threads={threads}, max_shard_size=1000)
        threading.Thread.start = refuse
        go.set()
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(path), {"w": [torch.ones(500), torch.ones(500)]})


def test_an_error_that_nobody_saw_is_printed_at_exit(tmp_path: Path, nursery: Nursery) -> None:
    path = str(tmp_path / "c")
    script = f"""
        def full(*_):
            raise OSError(28, "No space left on device")
        os.pwritev = full
        jsonckpt.save_async({{"w": torch.ones(9)}}, {path!r})
    """
    code, errors = nursery.run(script)
    assert code == 0
    assert errors.count("jsonckpt: the save to") == 1
    assert path in errors
    assert "No space left on device" in errors
    seen = textwrap.dedent(script).replace("jsonckpt.save_async", "p = jsonckpt.save_async")
    seen += "try:\n    p.result()\nexcept jsonckpt.WriteError:\n    pass\n"
    assert nursery.run(seen) == (0, "")


def test_a_forked_child_begins_anew(tmp_path: Path, nursery: Nursery) -> None:
    mine, theirs = str(tmp_path / "mine"), str(tmp_path / "theirs")
    script = f"""
        w = torch.arange(99999.0)
        jsonckpt.save_async({{"w": w}}, {mine!r}).result()
        finished = jsonckpt.save_async({{"w": w}}, {mine!r})
        finished.result()
        go = []
        hold_up(lambda: go)
        pending = jsonckpt.save_async({{"w": w + 1}}, {mine!r}, chunk_size=65536)
        child = os.fork()
        go.append(True)
        if child == 0:
            for ask in (pending.done, pending.result, pending.cancel):
                try:
                    ask()
                except jsonckpt.JsonckptError as error:
                    assert "forked" in str(error), error
                else:
                    raise AssertionError(ask)
            assert finished.done() and finished.result().tensors == 1
            assert threading.active_count() == 1
            # Its copy is its own, and the parent's is none of its business.
            assert len(saving._buffers._plain._memory) == 0
            jsonckpt.save_async({{"w": w + 2}}, {theirs!r}, chunk_size=65536).result()
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        assert status == 0, status
        pending.result()
        os._exit(0)
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(mine), {"w": torch.arange(99999.0) + 1})
    assert same(jsonckpt.load(theirs), {"w": torch.arange(99999.0) + 2})


def test_the_error_of_a_parent_is_not_the_childs(tmp_path: Path, nursery: Nursery) -> None:
    script = f"""
        real = os.pwritev
        def full(*_):
            raise OSError(28, "No space left on device")
        os.pwritev = full
        pending = jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "one")!r})
        while not pending.done():
            time.sleep(0.001)
        os.pwritev = real
        child = os.fork()
        if child == 0:
            jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "two")!r})
            sys.exit()
        assert os.waitpid(child, 0)[1] == 0
        try:
            jsonckpt.save_async({{"w": torch.ones(9)}}, {str(tmp_path / "three")!r})
        except jsonckpt.WriteError:
            pass
        else:
            raise AssertionError
        os._exit(0)
    """
    assert nursery.run(script) == (0, "")
    assert same(jsonckpt.load(tmp_path / "two"), {"w": torch.ones(9)})


def test_killed_at_any_moment(tmp_path: Path, nursery: Nursery) -> None:
    moments = random.Random(0)
    for name in ("c", "c.json"):
        path = tmp_path / name
        jsonckpt.save({"version": 0, "w": [torch.zeros(3000)] * 2}, path)
        begun = tmp_path / "begun"
        script = f"""
            version = jsonckpt.load({str(path)!r}, include=())["version"]
            open({str(begun)!r}, "w").close()
            while True:
                version += 1
                state = {{"version": version, "w": [torch.full((3000,), version * 1.0)] * 2}}
                state["w"][1] = state["w"][0].clone()
                jsonckpt.save_async(state, {str(path)!r}, chunk_size=4096, sync=version % 2 == 0)
                for w in state["w"]:
                    w.fill_(-1)
        """
        latest = 0
        for _ in range(10):
            child = nursery.start(script)
            while not begun.exists():
                time.sleep(0.001)
            begun.unlink()
            time.sleep(moments.random() * 0.04)
            os.kill(child, signal.SIGKILL)
            assert nursery.finish() == -signal.SIGKILL
            state = jsonckpt.load(path)
            assert state["version"] >= latest
            latest = state["version"]
            assert all(bool((w == latest).all()) for w in state["w"])
            assert jsonckpt.verify(path)
        assert latest > 0


# --- what only a GPU has -----------------------------------------------------------------------


class FakeSource:
    """Looks like a tensor on a CUDA device; its copy arrives when the stream is waited for."""

    on_cuda = True

    def __init__(self, name: str, device: str, data: bytes, cuda: FakeCuda) -> None:
        self.name, self.device, self._data, self._cuda = name, device, data, cuda
        self.nbytes = len(data)

    def copy_to(self, memory: Any, start: int, stop: int, *, together: bool) -> None:
        assert not together, "that is for memory of the CPU"

        def arrive() -> None:
            memory[:] = np.frombuffer(self._data[start:stop], np.uint8)

        self._cuda.queues.setdefault(self.device, []).append(arrive)

    def copied(self, memory: Any, storage: torch.UntypedStorage, offset: int) -> bytes:
        del memory
        return bytes(storage[offset : offset + self.nbytes])


class FakeCuda:
    """Streams, and a runtime that pins memory."""

    def __init__(self, status: int) -> None:
        self.queues: dict[str, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.status = status

    def current_stream(self, device: torch.device) -> Any:
        def synchronize() -> None:
            for arrive in self.queues.pop(str(device), []):
                arrive()

        return argparse.Namespace(synchronize=synchronize)

    def cudart(self) -> Any:
        def register(_address: int, nbytes: int, flags: int) -> int:
            self.log.append(f"pin {nbytes} {flags}")
            return self.status

        def unregister(_address: int) -> int:
            self.log.append("unpin")
            return 0

        return argparse.Namespace(cudaHostRegister=register, cudaHostUnregister=unregister)


@pytest.mark.parametrize("status", [0, 2])
def test_copies_from_devices(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    cuda = FakeCuda(status)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    monkeypatch.setattr(torch.cuda, "cudart", cuda.cudart)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: cuda.log.append("clear the error"))
    monkeypatch.setattr(staging, "_PIECE", 128)
    buffers = staging.Buffers()
    data = [bytes([number]) * size for number, size in enumerate((5, 300, 0, 64))]
    sources: list[Any] = [
        FakeSource(f"/{n}", f"cuda:{n % 2}", content, cuda) for n, content in enumerate(data)
    ]
    host = Source.of("/host", torch.arange(5.0))
    copies: list[Any] = buffers.stage([*sources, host])
    assert copies[:-1] == data
    assert bytes(copies[-1].read(0, 20)) == bytes(host.read(0, 20))
    assert cuda.queues == {}
    buffers.stage(sources)
    pinned = "pin 4096 1" if status == 0 else "pin 4096 1 clear the error"
    assert " ".join(cuda.log) == pinned
    buffers.release()
    assert cuda.log[-1] == ("unpin" if status == 0 else "clear the error")


def test_copies_that_failed_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(0)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    monkeypatch.setattr(torch.cuda, "cudart", cuda.cudart)
    good, bad = (FakeSource(name, "cuda:0", b"x", cuda) for name in ("/good", "/bad"))
    monkeypatch.setattr(bad, "copy_to", fail(RuntimeError("out of memory")))
    sources: list[Any] = [good, bad]
    with pytest.raises(RuntimeError, match="out of memory"):
        staging.Buffers().stage(sources)
    assert cuda.queues == {}


def test_a_background_tells_all_of_itself() -> None:
    """The doors that saving uses, without a file: results, errors and turns."""
    own = background.Background()
    with own.turn():
        pending = own.start("x", lambda _: 1)
    assert pending.result() == 1
    with own.turn():
        failed = own.start("x", fail(ValueError("no")))
    with pytest.raises(jsonckpt.JsonckptError, match="no"), own.turn():
        pytest.fail("not reached")
    with own.turn():
        pass
    with pytest.raises(ValueError, match="no"):
        failed.result()
