"""What the ranks do in the tests of ``jsonckpt.integrations.dcp``. A job returns plain values."""

from __future__ import annotations

import copy
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from jsonckpt.integrations import dcp


class Net(torch.nn.Module):
    """Sizes that do not divide evenly; three rows are fewer than four ranks."""

    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(8, 12)
        self.second = torch.nn.Linear(12, 8)
        self.odd = torch.nn.Linear(8, 3)
        self.norm = torch.nn.LayerNorm(3)
        self.register_buffer("count", torch.tensor(7))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.norm(self.odd(self.second(torch.relu(self.first(x)))))
        return y


def trained(mesh: DeviceMesh | None, kind: str, seed: int = 0) -> tuple[Net, Any]:
    """A model and its optimizer after two steps, sharded as ``kind`` says."""
    torch.manual_seed(seed)
    net = Net()
    if "tp" in kind:
        assert mesh is not None
        names = mesh.mesh_dim_names or ()
        plan = {"first": ColwiseParallel(), "second": RowwiseParallel()}
        parallelize_module(net, mesh["tp"] if "tp" in names else mesh, plan)
    if "fsdp" in kind:
        assert mesh is not None
        names = mesh.mesh_dim_names or ()
        fully_shard(net, mesh=mesh["dp"] if "tp" in names else mesh)  # two dimensions: HSDP
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1, foreach=False)
    for step in range(2):
        torch.manual_seed(100 + step)
        net(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return net, optimizer


def mesh_of(kind: str) -> DeviceMesh | None:
    world = dist.get_world_size()
    if kind == "plain":
        return None
    if "tp" in kind and "fsdp" in kind:
        return init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
    if kind == "hybrid fsdp":
        return init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("copies", "dp"))
    return init_device_mesh("cpu", (world,), mesh_dim_names=("tp" if "tp" in kind else "dp",))


def whole(value: Any) -> Any:
    """A state with whole tensors, on each rank."""
    if isinstance(value, DTensor):
        return value.full_tensor().detach().clone()
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        found = copy.copy(value)
        for key, item in value.items():
            found[key] = whole(item)
        return found
    if isinstance(value, list):
        return [whole(item) for item in value]
    return value


def state_of(net: Net, optimizer: Any) -> dict[str, Any]:
    model, state = get_state_dict(net, optimizer, options=StateDictOptions())
    return {"model": model, "optim": state, "step": 2, "note": {"empty": {}, 3: (1, "a")}}


def save_trained(kind: str, path: str, options: dict[str, Any]) -> Any:
    """Train, save; return the whole state."""
    net, optimizer = trained(mesh_of(kind), kind)
    state = state_of(net, optimizer)
    dcp.save(state, path, **options)
    return whole(state)


def load_trained(kind: str, path: str, options: dict[str, Any]) -> Any:
    """Load into a model with other weights; return its whole state, after set_state_dict."""
    net, optimizer = trained(mesh_of(kind), kind, seed=5)
    state = state_of(net, optimizer)
    state |= {"step": 0, "note": {"empty": {}, 3: None}}
    dcp.load(state, path, **options)
    set_state_dict(net, optimizer, model_state_dict=state["model"], optim_state_dict=state["optim"])
    return whole({**state_of(net, optimizer), "step": state["step"], "note": state["note"]})


def sharded(shape: list[int], placements: str, mesh_shape: list[int]) -> DTensor:
    """A DTensor of rising numbers. ``placements``: a dimension or ``r`` for each mesh dimension."""
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", tuple(mesh_shape))
    full = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    kinds = [Replicate() if one == "r" else Shard(int(one)) for one in placements]
    return distribute_tensor(full, mesh, kinds)


def save_dtensor(path: str, shape: list[int], placements: str, mesh_shape: list[int]) -> None:
    dcp.save({"w": sharded(shape, placements, mesh_shape)}, path)


def load_dtensor(path: str, shape: list[int], placements: str, mesh_shape: list[int]) -> Any:
    tensor = sharded(shape, placements, mesh_shape)
    tensor.to_local().zero_()
    state = {"w": tensor}
    dcp.load(state, path)
    assert state["w"] is tensor
    return tensor.full_tensor().tolist()


def save_state(make: Callable[[int], dict[str, Any]], path: str, options: dict[str, Any]) -> None:
    """Save what a function makes for the rank."""
    dcp.save(make(dist.get_rank()), path, **options)


def load_state(make: Callable[[int], dict[str, Any]], path: str, options: dict[str, Any]) -> Any:
    state = make(dist.get_rank())
    dcp.load(state, path, **options)
    return whole(state)


def stage(rank: int) -> dict[str, Any]:
    """The state of one stage of a pipeline."""
    return {
        "model": {f"layers.{rank}.weight": torch.full((2, 2), float(rank))},
        "optim": {rank: {"step": rank}},
        "common": [1, 2],
    }


def empty_stage(rank: int) -> dict[str, Any]:
    return {
        "model": {f"layers.{rank}.weight": torch.zeros(2, 2)},
        "optim": {rank: {"step": None}},
        "common": [],
    }


def same_on_all(rank: int) -> dict[str, Any]:
    """A replicated state, as DDP has it."""
    del rank
    shared = torch.arange(6.0)
    return {"w": torch.ones(100, 3), "b": shared, "tied": shared, "epoch": 4}


def same_but_empty(rank: int) -> dict[str, Any]:
    return {name: torch.zeros_like(value) if isinstance(value, torch.Tensor) else None
            for name, value in same_on_all(rank).items()}  # fmt: skip


def one_name_two_places(rank: int) -> dict[str, Any]:
    return {"a": {"b": 1}} if rank else {"a.b": 1}


def two_dtypes(rank: int) -> dict[str, Any]:
    full = sharded([4, 2], "0", [2])
    local = full.to_local().to(torch.float64 if rank else torch.float32)
    return {"w": DTensor.from_local(local, full.device_mesh, full.placements)}


def save_with_failing_rank(path: str, failing: int, step: str) -> Any:
    """Save to where there is a checkpoint; ``failing`` cannot write."""
    if dist.get_rank() == failing:
        _break(step)
    try:
        dcp.save({"w": sharded([8, 2], "0", [dist.get_world_size()]), "x": 1}, path)
    except BaseException as error:
        return type(error).__name__, str(error)
    finally:
        _mend()
    return None


_kept: list[tuple[Any, str, Any]] = []


def _break(step: str) -> None:
    from jsonckpt._src.distributed import writer
    from jsonckpt._src.storage import new_file

    def fail(*_: Any, **__: Any) -> Any:
        raise OSError(28, os.strerror(28))

    def die(*_: Any, **__: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)

    places: dict[str, tuple[Any, str, Any]] = {
        "write": (new_file.NewFile, "write_at", None),
        "die before": (writer, "write_part", die),
        "die after": (writer.JsonStorageWriter, "write_data", None),
        "die in commit": (writer, "commit_parts", die),
    }
    owner, name, replacement = places[step]
    original = getattr(owner, name)
    _kept.append((owner, name, original))

    def failing_write(self: Any, *args: Any, **options: Any) -> Any:
        if step == "die after":
            original(self, *args, **options)
            die()
        from jsonckpt._src.storage.os_errors import writing

        with writing(self.path):
            fail()

    setattr(owner, name, replacement or failing_write)


def _mend() -> None:
    while _kept:
        owner, name, original = _kept.pop()
        setattr(owner, name, original)


def three_saves_with_one_plan(path: str) -> Any:
    """Three saves with plan caching; the values of all of them."""
    from torch.distributed.checkpoint.planner import SavePlanner

    found = []
    for number in range(3):
        tensor = sharded([6, 2], "0", [dist.get_world_size()])
        tensor.to_local().add_(number)
        state = {"w": tensor, "step": number, "kept": {number: "a"} if number == 2 else {"0": "a"}}
        state_dict_saver.save(
            state,
            storage_writer=dcp.JsonStorageWriter(f"{path}/{number}"),
            planner=dcp.JsonSavePlanner(enable_plan_caching=True),
        )
        found.append(whole(state))
    for name in vars(SavePlanner):
        if name.startswith("_cached"):
            getattr(SavePlanner, name).clear()
    return found


def background_saves(path: str) -> Any:
    """Two saves in the background; the state changes at once."""
    expected = []
    for number in range(2):
        tensor = sharded([6, 2], "0", [dist.get_world_size()])
        tensor.to_local().add_(number)
        state = {"w": tensor, "n": {number: (number,)}}
        expected.append(whole(state))
        future = dcp.async_save(state, f"{path}/{number}")
        tensor.to_local().zero_()
    future.result(60)
    return expected


def own_planners(path: str, keep: bool) -> Any:
    """torch's own planners with our storage: tensors yes, values no."""
    state: dict[str, Any] = {
        "w": sharded([6, 2], "0", [dist.get_world_size()]),
        "n": {"$v": torch.ones(2)},
    }
    if keep:
        state["step"] = 3
    try:
        state_dict_saver.save(state, storage_writer=dcp.JsonStorageWriter(path))
    except BaseException as error:
        return str(error)
    state["w"].to_local().zero_()
    state_dict_loader.load(state, storage_reader=dcp.JsonStorageReader(path))
    return whole(state)


def without_collectives(path: str) -> str:
    try:
        state_dict_saver.save(
            {"w": torch.ones(1)},
            storage_writer=dcp.JsonStorageWriter(path),
            planner=dcp.JsonSavePlanner(),
            use_collectives=False,
        )
    except Exception as error:
        return str(error)
    return ""


# What torch's own tests of its file-system storage do ------------------------------------------


def _spec(dim: int, order: list[int]) -> Any:
    from torch.distributed._shard.sharding_spec import ChunkShardingSpec

    return ChunkShardingSpec(dim=dim, placements=[f"rank:{rank}/cpu" for rank in order])


def _legacy(dim: int, order: list[int], fill: float | None) -> Any:
    """A ``ShardedTensor``, of rising numbers or of one number."""
    from torch.distributed._shard import sharded_tensor

    made = sharded_tensor.zeros(_spec(dim, order), (6, 9), dtype=torch.float32)
    full = torch.arange(54.0).reshape(6, 9) if fill is None else torch.full((6, 9), fill)
    for shard in made.local_shards():
        begin, size = shard.metadata.shard_offsets, shard.metadata.shard_sizes
        box = tuple(slice(at, at + length) for at, length in zip(begin, size))
        shard.tensor.copy_(full[box])
    return made


def legacy_sharded(path: str) -> list[bool]:
    """Saved by rows, loaded by columns, by rows in another order, and whole; and back."""
    full = torch.arange(54.0).reshape(6, 9)
    dcp.save({"w": _legacy(0, [0, 1], None), "plain": full}, path)
    found = []
    for dim, order in ((1, [0, 1]), (0, [1, 0])):
        for name in ("w", "plain"):
            target = {name: _legacy(dim, order, 0.0)}
            dcp.load(target, path, strict=False)
            wanted = _legacy(dim, order, None)
            pairs = zip(target[name].local_shards(), wanted.local_shards())
            found += [torch.equal(one.tensor, two.tensor) for one, two in pairs]
    whole_target = {"w": torch.zeros(6, 9)}
    dcp.load(whole_target, path, strict=False)
    return [*found, torch.equal(whole_target["w"], full)]


class Progress:
    """An object with a state of its own."""

    def __init__(self, step: int) -> None:
        self.state: dict[str, Any] = {
            "step": step,
            "seen": [step],
            "mean": torch.full((2,), float(step)),
        }
        self.loads = 0

    def state_dict(self) -> dict[str, Any]:
        return self.state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.state, self.loads = state, self.loads + 1


def objects_with_states(path: str) -> Any:
    dcp.save({"progress": Progress(5), "other": 1}, path)
    target = Progress(0)
    state = {"progress": target, "other": 0}
    dcp.load(state, path)
    return target.state, target.loads, state["other"], state["progress"] is target


def part_of_the_ranks(path: str) -> Any:
    """A DTensor on a mesh of ranks 0 and 1; rank 2 has no part of it."""
    mesh = DeviceMesh("cpu", [0, 1])
    local = torch.full((2, 2), float(dist.get_rank()))
    tensor = DTensor.from_local(local, mesh, [Shard(0)], run_check=False)
    dcp.save({"w": tensor}, path)
    local.zero_()
    dcp.load({"w": tensor}, path)
    return local.tolist()


def faulty(path: str, step: str, failing: int) -> Any:
    """An error in one step of a save or load, on one rank; what each rank sees."""
    state = {"w": sharded([4, 2], "0", [dist.get_world_size()])}
    kind: Any = dcp.JsonStorageReader if step.startswith("read ") else dcp.JsonStorageWriter
    name = step.removeprefix("read ")
    original = getattr(kind, name)

    def broken(*args: Any, **options: Any) -> Any:
        if dist.get_rank() == failing:
            raise RuntimeError(f"failing {name}")
        return original(*args, **options)

    # torch reads the signature.
    broken.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    setattr(kind, name, broken)
    try:
        if kind is dcp.JsonStorageReader:
            dcp.load(state, path)
        else:
            dcp.save(state, path)
    except BaseException as error:
        return type(error).__name__, str(error)
    finally:
        setattr(kind, name, original)
    return None


def background_process(path: str) -> Any:
    """A save in another process."""
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType

    os.environ["MASTER_ADDR"] = "127.0.0.1"
    future = dcp.async_save(
        {"w": sharded([6, 2], "0", [dist.get_world_size()]), "n": {1: (2,)}},
        path,
        async_checkpointer_type=AsyncCheckpointerType.PROCESS,
    )
    future.result(60)


def failing_background_save(path: str) -> str:
    """The error, when what was written is removed: the future is ready a moment before that."""
    if dist.get_rank() == 1:
        _break("write")
    try:
        dcp.async_save({"w": sharded([8, 2], "0", [2])}, path).result(60)
    except BaseException as error:
        end = time.monotonic() + 20
        while any(Path(path).glob("*")) and time.monotonic() < end:
            time.sleep(0.01)
        return str(error)
    finally:
        _mend()
    return ""


class Tied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(3, 4)  # fewer rows than four ranks
        self.head = torch.nn.Linear(4, 3, bias=False)
        self.head.weight = self.embedding.weight


def tied_weights(path: str) -> Any:
    torch.manual_seed(0)
    net = Tied()
    fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    state: dict[str, Any] = {"model": net.state_dict()}
    state |= {"separate": sharded([3, 4], "0", [dist.get_world_size()])}
    dcp.save(state, path)
    expected = whole(state)
    for tensor in [*state["model"].values(), state["separate"]]:
        tensor.to_local().zero_()
    dcp.load(state, path)
    return expected, whole(state)


def meta_model(path: str) -> Any:
    """A state on the meta device is given memory by the load."""
    with torch.device("meta"):
        net = Net()
        fully_shard(net, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    state = {"model": net.state_dict()}
    dcp.load(state, path, strict=False)
    return whole(state["model"])


def ranks_see_different_checkpoints(path: str) -> str:
    """The last rank opens what has replaced the checkpoint of the others."""
    last = dist.get_rank() == dist.get_world_size() - 1
    try:
        dcp.load({"w": torch.zeros(2)}, f"{path}/{'new' if last else 'old'}")
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def late_message(path: str) -> str:
    """Rank 1 sends the result of the save before once more."""
    from jsonckpt._src.distributed.writer import JsonStorageWriter

    state = {"w": sharded([4, 2], "0", [2])}
    original, kept = JsonStorageWriter.write_data, []

    def write_data(self: Any, *args: Any) -> Any:
        result = original(self, *args)
        kept.append(result)
        return kept[0] if dist.get_rank() == 1 else result

    setattr(JsonStorageWriter, "write_data", write_data)  # noqa: B010
    try:
        dcp.save(state, path)
        state["w"].to_local().add_(1)
        dcp.save(state, path)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    finally:
        setattr(JsonStorageWriter, "write_data", original)  # noqa: B010
    return ""


def save_and_die(path: str, version: int, failing: list[int], seconds: float) -> Any:
    """Save a version; some ranks die after some time."""
    count = dist.get_world_size()
    state = {"w": sharded([64, 2048], "0", [count]) + version, "version": version}
    dist.barrier()
    if dist.get_rank() in failing:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # the kernel ends the process
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-6))
    began = time.perf_counter()
    dcp.save(state, path, chunk_size="16KiB", max_shard_size="64KiB")
    took = time.perf_counter() - began
    signal.setitimer(signal.ITIMER_REAL, 0)
    return took
