"""The random numbers, the order of the data, the optimizer and the deadline of a training loop."""

from __future__ import annotations

import copy
import doctest
import os
import random
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jsonckpt
from jsonckpt import training
from jsonckpt._src.errors import LimitError, StateMismatchError
from jsonckpt.training import Deadline, SeededOrder


def test_the_examples_in_the_docstrings() -> None:
    assert doctest.testmod(training).failed == 0


# Random number generators ---------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _keep_random_numbers() -> Any:
    with training.fork_rng():
        yield


def draw() -> tuple[Any, ...]:
    # gauss and randn keep a second number back, which is a part of the state, too.
    return (
        random.gauss(0, 1),
        random.random(),
        float(np.random.randn()),
        float(np.random.rand()),
        float(torch.randn(())),
        torch.randperm(20).tolist(),
    )


def test_random_numbers_continue_where_they_were() -> None:
    draw()
    state = copy.deepcopy(training.rng_state())
    expected = [draw() for _ in range(3)]
    training.set_rng_state(state)
    assert [draw() for _ in range(3)] == expected


def test_fork_undoes_what_the_block_draws_even_when_it_fails() -> None:
    state = training.rng_state()
    expected = draw()
    training.set_rng_state(state)
    with pytest.raises(ZeroDivisionError):
        draw_and_fail()
    assert draw() == expected


@training.fork_rng()
def draw_and_fail() -> None:
    draw()
    _ = 1 / 0


def test_another_bit_generator_of_numpy_is_kept_too() -> None:
    numpy_random: Any = np.random
    usual = numpy_random.get_bit_generator()
    numpy_random.set_bit_generator(np.random.PCG64(5))
    try:
        state = training.rng_state()
        expected = np.random.rand()
        np.random.set_state(state["numpy"])
        assert np.random.rand() == expected
    finally:
        numpy_random.set_bit_generator(usual)


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("python", [3, [1, 2], None]),
        ("python", None),
        ("numpy", {"bit_generator": "PCG64", "state": {}}),
        ("numpy", 7),
        ("torch", torch.zeros(3, dtype=torch.uint8)),
        ("torch", torch.zeros(5056)),
        ("torch", [1, 2, 3]),
        ("cuda", torch.zeros(3)),
        ("cuda", "cuda:0"),
    ],
)
def test_a_wrong_state_is_refused_and_changes_nothing(part: str, value: Any) -> None:
    state = training.rng_state()
    draw()
    before = training.rng_state()
    expected = draw()
    training.set_rng_state(before)
    with pytest.raises(StateMismatchError, match=part if part != "cuda" else "CUDA|GPUs"):
        training.set_rng_state({**state, part: value})
    assert draw() == expected


@pytest.mark.parametrize("state", [{}, {"python": None}, [1], None])
def test_what_is_no_state_at_all_is_refused(state: Any) -> None:
    with pytest.raises(StateMismatchError, match="lacks"):
        training.set_rng_state(state)


def fake_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> list[list[torch.Tensor]]:
    """A machine that seems to have GPUs. Returns what their generators are set to."""
    calls: list[list[torch.Tensor]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(
        torch.cuda,
        "get_rng_state_all",
        lambda: [torch.full((16,), i, dtype=torch.uint8) for i in range(count)],
    )
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", calls.append)
    return calls


def test_all_gpus_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = fake_gpus(monkeypatch, 2)
    state = training.rng_state()
    assert [int(one[0]) for one in state["cuda"]] == [0, 1]
    assert training.rng_state(cuda=False)["cuda"] is None
    training.set_rng_state(state)
    assert [int(one[0]) for one in calls[0]] == [0, 1]


@pytest.mark.parametrize("here", [0, 1])
def test_another_number_of_gpus_is_said(monkeypatch: pytest.MonkeyPatch, here: int) -> None:
    fake_gpus(monkeypatch, 2)
    state = training.rng_state()
    calls = fake_gpus(monkeypatch, here)
    with pytest.raises(StateMismatchError, match=f"2 GPUs, and this process sees {here}"):
        training.set_rng_state(state)
    training.set_rng_state({**state, "cuda": None})
    assert calls == []


# The order of the data ------------------------------------------------------------------------


@given(
    n=st.integers(0, 300),
    seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 1000),
    cut=st.floats(0, 1),
)
def test_an_order_is_a_permutation_and_resumes_anywhere(
    n: int, seed: int, epoch: int, cut: float
) -> None:
    order = SeededOrder(n, seed, epoch=epoch)
    whole = list(order)
    assert sorted(whole) == list(range(n))
    done = int(cut * n)
    order.advance(done)
    resumed = SeededOrder(n)
    resumed.load_state_dict(order.state_dict())
    assert whole[:done] + list(resumed) == whole
    assert len(resumed) == n - done
    resumed.next_epoch()
    assert list(resumed) == SeededOrder(n, seed).order(epoch + 1).tolist()


def test_orders_of_other_seeds_and_epochs_are_other_orders() -> None:
    seen = {tuple(SeededOrder(50, seed).order(epoch)) for seed in range(20) for epoch in range(20)}
    assert len(seen) == 400


def order_in_plain_integers(n: int, seed: int, epoch: int) -> list[int]:
    """The order's definition once more, in Python's integers: nothing in it can change."""

    def mix(word: int) -> int:
        word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
        return word ^ (word >> 31)

    golden = 0x9E3779B97F4A7C15
    base = mix(mix((seed + golden) % 2**64) ^ (epoch * golden % 2**64))
    return sorted(range(n), key=lambda i: mix((base + i) % 2**64))


@given(n=st.integers(0, 100), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 2**64 - 1))
def test_an_order_never_changes_between_releases(n: int, seed: int, epoch: int) -> None:
    assert SeededOrder(n, seed).order(epoch).tolist() == order_in_plain_integers(n, seed, epoch)


def test_every_place_is_equally_likely() -> None:
    first = np.array([SeededOrder(10, seed).order(1)[0] for seed in range(5000)])
    counts = np.bincount(first, minlength=10)
    # Chi-squared with 9 degrees of freedom is above 33.7 in one of 10,000 fair draws.
    assert ((counts - 500) ** 2 / 500).sum() < 33.7


def test_a_loader_that_reads_ahead_does_not_move_the_place() -> None:
    order = SeededOrder(20, 3)
    data = torch.arange(20)
    loader: Any = torch.utils.data.DataLoader(data, batch_size=4, sampler=order)  # type: ignore[arg-type]
    batches = iter(loader)
    seen = next(batches).tolist() + next(batches).tolist()
    order.advance(4)
    resumed = SeededOrder(20)
    resumed.load_state_dict(order.state_dict())
    assert list(resumed)[:4] == seen[4:]


def test_an_order_refuses_what_does_not_fit() -> None:
    order = SeededOrder(10, 1)
    for wrong in ({}, {**order.state_dict(), "n": 11}, {**order.state_dict(), "position": 11}):
        with pytest.raises(StateMismatchError):
            order.load_state_dict(wrong)
    with pytest.raises(StateMismatchError):
        order.load_state_dict({**order.state_dict(), "seed": True})
    with pytest.raises(LimitError):
        order.advance(11)
    with pytest.raises(LimitError):
        order.advance(-1)
    with pytest.raises(LimitError):
        SeededOrder(5, -1)
    assert order.state_dict() == {"n": 10, "seed": 1, "epoch": 0, "position": 0}


# The checkpoints of a run ---------------------------------------------------------------------


def make(path: Path, **state: Any) -> Path:
    jsonckpt.save({"model": {"w": torch.ones(3)}, **state}, path)
    return path


def test_the_newest_checkpoint_is_that_of_the_latest_step(tmp_path: Path) -> None:
    names = [
        "checkpoint_epoch1_step0040.json",
        "checkpoint_epoch1_step0100.json",
        "checkpoint_epoch1.json",
        "checkpoint_epoch2_step0120.json",
        "checkpoint_epoch10_step0990.json",
        "checkpoint_epoch10_step1000.json.zst",
    ]
    for i, name in enumerate(names):
        make(tmp_path / name)
        os.utime(tmp_path / name, (1000 - i, 1000 - i))
    folder = tmp_path / "checkpoint_epoch11_step1100"
    folder.mkdir()
    for other in (
        "checkpoint_epoch12.json.tmp",
        ".checkpoint_epoch12.json",
        "checkpoint_epoch12.tmp.json",
        "checkpoint_epoch12.pt",
        "best_model.json",
        "training_history.json",
    ):
        (tmp_path / other).write_text("{}")
    assert [path.name for path in training.checkpoints(tmp_path)] == names
    make(folder)
    assert training.latest(tmp_path) == folder
    assert training.latest(tmp_path.parent, f"{tmp_path.name}/checkpoint_*.json") == (
        tmp_path / "checkpoint_epoch10_step0990.json"
    )


@pytest.mark.parametrize(
    "form", ["checkpoint_step{}.json", "checkpoint-{}", "iter_{}", "ckpt{}.json", "global_step{}"]
)
def test_names_with_a_step_alone(tmp_path: Path, form: str) -> None:
    for step in (900, 1000, 20):
        make(tmp_path / form.format(step))
    found = training.checkpoints(tmp_path)
    assert [path.name for path in found] == [form.format(step) for step in (20, 900, 1000)]
    assert training.latest(str(tmp_path)) == tmp_path / form.format(1000)


def test_epochs_and_steps_of_one_run_are_compared_by_the_state(tmp_path: Path) -> None:
    make(tmp_path / "checkpoint_epoch1.json", epoch=1, step=500)
    newest = make(tmp_path / "checkpoint_step0600.json", epoch=1, step=600)
    assert training.latest(tmp_path) == newest
    make(tmp_path / "checkpoint_last.json")  # no number: before those that have one
    assert training.latest(tmp_path) == newest


def test_a_state_with_types_that_are_not_registered_counts(tmp_path: Path) -> None:
    class Own:
        pass

    jsonckpt.register(Own, "tests.Own", to_json=lambda _: 1, from_json=lambda _: Own())
    for name, step in (("checkpoint_a", 2), ("checkpoint_b", 1)):
        path = make(tmp_path / name, step=step, own=Own()) / "manifest.json"
        # As another process sees it, that has not called register yet.
        text = path.read_text()
        assert text.count('"$tests.Own"') == 1
        edited = text.replace('"$tests.Own"', '"$tests.NotKnown"')
        seal = edited.rindex('"seal":')
        path.write_text(edited[:seal] + '"seal":null}\n')
    assert training.latest(tmp_path) == tmp_path / "checkpoint_a"


def test_what_is_no_whole_checkpoint_is_passed_over_aloud(tmp_path: Path) -> None:
    good = make(tmp_path / "checkpoint_epoch1.json")
    text = good.read_bytes()
    (tmp_path / "checkpoint_epoch2.json").write_bytes(text[:-20])
    (tmp_path / "checkpoint_epoch3.json").write_text("")
    (tmp_path / "checkpoint_epoch4.json").write_text('{"lr": 0.1}')
    (tmp_path / "checkpoint_epoch4.json.zst").write_bytes(text[:99])
    for number, harm in ((5, "gone"), (6, "cut"), (7, "no manifest"), (8, "manifest")):
        folder = make(tmp_path / f"checkpoint_epoch{number}")
        (shard,) = folder.glob("shard-*.json")
        if harm == "gone":
            shard.unlink()
        elif harm == "cut":
            shard.write_bytes(shard.read_bytes()[:-1])
        elif harm == "no manifest":
            (folder / "manifest.json").unlink()
        else:
            (folder / "manifest.json").write_text("{}")
    for deep in (False, True):
        with pytest.warns(RuntimeWarning) as caught:
            newest = training.latest(tmp_path) if deep else training.checkpoints(tmp_path)[-1]
        assert newest == good
        said = sorted(str(warning.message) for warning in caught)
        assert len(said) == 8
        for number, text_ in zip((2, 3, 4, 4, 5, 6, 7, 8), said):
            assert f"checkpoint_epoch{number}" in text_.partition(" is skipped: ")[0]
        assert {warning.filename for warning in caught} == {__file__}


def test_the_newest_is_read_where_a_look_would_not_do(tmp_path: Path) -> None:
    good = make(tmp_path / "checkpoint_1.json.zst")
    cut = tmp_path / "checkpoint_2.json.zst"
    cut.write_bytes(good.read_bytes()[:-4])
    with pytest.warns(RuntimeWarning, match=r"checkpoint_2.json.zst is skipped"):
        assert training.latest(tmp_path) == good


def test_uploaded_directories_bear_other_names(tmp_path: Path) -> None:
    """A site makes a directory of an upload, under a name of its own, with a file of its own."""
    for name, step in (("my-run-v2", 20), ("my-run", 10)):
        make(tmp_path / name, step=step)
        (tmp_path / name / "dataset-metadata.json").write_text('{"id": "me/my-run"}')
    (tmp_path / "dataset-metadata.json").write_text("{}")
    make(tmp_path / "best.json", step=30)  # it may be kept for other reasons than to go on
    assert training.latest(tmp_path) == tmp_path / "my-run-v2"
    assert training.latest(tmp_path / "my-run") == tmp_path / "my-run"
    assert training.checkpoints(tmp_path) == []
    make(tmp_path / "checkpoint_5.json", step=5)
    assert training.latest(tmp_path) == tmp_path / "my-run-v2"
    newest = make(tmp_path / "datasets" / "me" / "my-run-v3", step=21)
    assert training.latest(tmp_path) == newest


def test_a_best_model_is_the_last_resort(tmp_path: Path) -> None:
    best = make(tmp_path / "best_model.json", step=30)
    assert training.latest(tmp_path) == best
    newest = make(tmp_path / "checkpoint_epoch1.json", step=20)
    assert training.latest(tmp_path) == newest


def test_number_lists_are_not_passed_over_in_silence(tmp_path: Path) -> None:
    text = (
        '{"model_state_dict":{"w.weight":{"data":[[0.1]],"shape":[1,1],"dtype":"torch.float32"}}}'
    )
    (tmp_path / "checkpoint_epoch1_step6500.json").write_text(text)
    with pytest.warns(RuntimeWarning, match=r"step6500.json is skipped: JSON number.*convert"):
        assert training.latest(tmp_path) is None


def test_shards_and_metadata_beside_them_are_no_checkpoints(tmp_path: Path) -> None:
    """Files of a directory that were uploaded one by one, without a manifest for one of them."""
    newest = make(tmp_path / "my-run", step=3)
    (tmp_path / "my-run" / "dataset-metadata.json").write_text("{}")
    (shard,) = newest.glob("shard-*.json")
    (tmp_path / "renamed.json").write_bytes(shard.read_bytes())
    assert training.latest(tmp_path) == newest
    assert training.checkpoints(tmp_path, "**/*.json") == []


def test_where_there_is_nothing_there_is_no_newest(tmp_path: Path) -> None:
    assert training.latest(tmp_path) is None
    assert training.latest(tmp_path / "missing") is None


def test_a_circle_of_links_is_passed_over_aloud(tmp_path: Path) -> None:
    good = make(tmp_path / "checkpoint_1")
    circle = tmp_path / "checkpoint_2"
    circle.symlink_to(circle)
    (tmp_path / "checkpoint_3.json").symlink_to("nowhere")
    for find in (training.latest, lambda run: training.checkpoints(run)[-1]):
        with pytest.warns(RuntimeWarning, match=r"checkpoint_2 is skipped: .*symbolic links"):
            assert find(tmp_path) == good
    with pytest.warns(RuntimeWarning, match=r"checkpoint_2 is skipped: .*symbolic links"):
        assert training.latest(circle) is None


def test_without_numbers_in_the_names_the_step_inside_counts(tmp_path: Path) -> None:
    for name, epoch, step in (("b", 2, 70), ("c", 1, 50), ("a", 2, 80)):
        state = {"model": {"w": torch.ones(3)}, "epoch": epoch, "step": step}
        jsonckpt.save(state, tmp_path / f"{name}.json")
    found = training.checkpoints(tmp_path, "*.json")
    assert [path.name for path in found] == ["c.json", "b.json", "a.json"]


# The optimizer --------------------------------------------------------------------------------


def model_and_optimizer(dtype: torch.dtype = torch.float32) -> tuple[torch.nn.Module, Any]:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2)).to(dtype)
    return model, torch.optim.AdamW(model.parameters(), lr=0.01)


def one_step(model: torch.nn.Module, optimizer: Any) -> None:
    first = next(model.parameters())
    loss = model(torch.linspace(-1, 1, 6, dtype=first.dtype).view(2, 3)).square().sum()
    torch.autograd.backward(loss)
    optimizer.step()
    optimizer.zero_grad()


def test_a_restored_optimizer_makes_the_same_steps() -> None:
    model, optimizer = model_and_optimizer()
    one_step(model, optimizer)
    weights, saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    one_step(model, optimizer)
    other, fresh = model_and_optimizer()
    other.load_state_dict(weights)
    training.restore_optimizer(fresh, saved)
    one_step(other, fresh)
    for a, b in zip(model.parameters(), other.parameters()):
        assert torch.equal(a, b)


def test_state_keeps_its_dtype_where_torch_would_cast_it() -> None:
    model, optimizer = model_and_optimizer(torch.bfloat16)
    one_step(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["exp_avg"] = torch.rand(entry["exp_avg"].shape)
        entry["codes"] = [torch.arange(3, dtype=torch.uint8), {"deep": torch.tensor([1.0 / 3])}]
    torch_way = model_and_optimizer(torch.bfloat16)[1]
    torch_way.load_state_dict(copy.deepcopy(saved))
    assert torch_way.state_dict()["state"][0]["exp_avg"].dtype == torch.bfloat16
    ours = model_and_optimizer(torch.bfloat16)[1]
    training.restore_optimizer(ours, saved)
    for key, entry in ours.state_dict()["state"].items():
        assert torch.equal(entry["exp_avg"], saved["state"][key]["exp_avg"])
        assert entry["exp_avg_sq"].dtype == torch.bfloat16
        assert entry["codes"][0].dtype == torch.uint8
        assert torch.equal(entry["codes"][1]["deep"], torch.tensor([1.0 / 3]))
        assert entry["step"].dtype == torch.float32


def test_state_moves_to_the_device_of_its_parameter() -> None:
    weight = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16, device="meta"))
    optimizer = torch.optim.SGD([weight], momentum=0.9)
    groups = optimizer.state_dict()["param_groups"]
    saved = {"state": {0: {"momentum_buffer": torch.ones(2)}}, "param_groups": groups}
    training.restore_optimizer(optimizer, saved)
    buffer = optimizer.state[weight]["momentum_buffer"]
    assert (buffer.device.type, buffer.dtype) == ("meta", torch.float32)


def test_an_optimizer_refuses_what_is_not_its_state() -> None:
    model, optimizer = model_and_optimizer()
    one_step(model, optimizer)
    saved = optimizer.state_dict()
    fresh = model_and_optimizer()[1]
    without_tensors = {**saved, "state": {key: {} for key in saved["state"]}}
    string_keys = {**saved, "state": {str(key): one for key, one in saved["state"].items()}}
    two_groups = {**saved, "param_groups": saved["param_groups"] * 2}
    for wrong, what in (
        ({}, "expected 'state'"),
        (without_tensors, "no tensors"),
        (string_keys, "are strings"),
        (two_groups, r"\[4, 4\]"),
    ):
        with pytest.raises(StateMismatchError, match=what):
            training.restore_optimizer(fresh, wrong)
    assert not fresh.state_dict()["state"]


def test_an_optimizer_that_has_made_no_step_can_be_restored() -> None:
    saved = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.5).state_dict()
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
    training.restore_optimizer(optimizer, saved)
    assert optimizer.param_groups[0]["lr"] == 0.5


# The deadline ---------------------------------------------------------------------------------


def test_the_deadline_leaves_time_for_the_last_save() -> None:
    now = [100.0]
    deadline = Deadline(60, clock=lambda: now[0])
    assert not deadline.reached(reserve=10)
    now[0] = 151.0
    assert not deadline.reached(reserve=8)
    assert deadline.reached(reserve=10)
    assert deadline.reason == "the time is up"
    assert Deadline(0).reached()
    assert not Deadline().reached(reserve=1e12)


def test_a_signal_asks_for_a_stop_once() -> None:
    received: list[int] = []
    usual = signal.signal(signal.SIGTERM, lambda number, _frame: received.append(number))
    try:
        with Deadline() as deadline:
            assert not deadline.reached()
            signal.raise_signal(signal.SIGTERM)
            assert deadline.reached()
            assert deadline.reason == "SIGTERM was received"
            assert received == []
            signal.raise_signal(signal.SIGTERM)
            assert received == [signal.SIGTERM]
        with Deadline():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert len(received) == 2
    finally:
        signal.signal(signal.SIGTERM, usual)


def test_in_another_thread_the_clock_alone_is_watched() -> None:
    results: list[object] = []

    def watch() -> None:
        try:
            with Deadline(0) as deadline:
                results.append(deadline.reached())
        except ValueError as error:
            results.append(error)

    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert results == [True]


def test_state_on_the_host_stays_there() -> None:
    """NAdam keeps ``mu_product`` on the host. torch moves it to the device of the parameter."""
    weight = torch.nn.Parameter(torch.zeros(2, device="meta"))
    optimizer = torch.optim.NAdam([weight])
    moments = {
        "exp_avg": torch.zeros(2, device="meta"),
        "exp_avg_sq": torch.zeros(2, device="meta"),
    }
    saved = {"step": torch.tensor(3.0), "mu_product": torch.tensor(0.5), **moments}
    groups = optimizer.state_dict()["param_groups"]
    training.restore_optimizer(optimizer, {"state": {0: saved}, "param_groups": groups})
    assert {key: str(value.device) for key, value in optimizer.state[weight].items()} == {
        "step": "cpu",
        "mu_product": "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }
    assert optimizer.state[weight]["mu_product"] == 0.5
