"""The place in the data: ``StatefulDataLoader`` with samplers of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt import ArgumentError, StateMismatchError, TrainState, training
from jsonckpt.training import ResumableSampler, SeededOrder
from tests.support import slow

loader_module = pytest.importorskip("torchdata.stateful_dataloader")
data = torch.utils.data
pytestmark = pytest.mark.filterwarnings("ignore:.*set_vital:UserWarning")
COUNT, BATCH, EPOCHS = 11, 3, 3  # 4 batches in an epoch, the last one of 2


@pytest.fixture(autouse=True)
def _keep_generators() -> Iterator[None]:
    with training.fork_rng():
        yield


def shuffled(_: int) -> dict[str, Any]:
    return {"shuffle": True}


def own_generator(seed: int) -> dict[str, Any]:
    return {"shuffle": True, "generator": torch.Generator().manual_seed(seed)}


def seeded(seed: int) -> dict[str, Any]:
    return {"sampler": SeededOrder(COUNT, seed)}


def weighted(_: int) -> dict[str, Any]:
    weights = [1.0 + number for number in range(COUNT)]
    return {"sampler": ResumableSampler(data.WeightedRandomSampler(weights, COUNT))}


def subset(seed: int) -> dict[str, Any]:
    own = torch.Generator().manual_seed(seed)
    return {"sampler": ResumableSampler(data.SubsetRandomSampler(range(COUNT), generator=own))}


def with_replacement(_: int) -> dict[str, Any]:
    return {"sampler": ResumableSampler(data.RandomSampler(range(COUNT), replacement=True))}


def distributed(_: int) -> dict[str, Any]:
    return {"sampler": data.DistributedSampler(Numbers(), num_replicas=1, rank=0)}


def stateful_distributed(_: int) -> dict[str, Any]:
    from torchdata.stateful_dataloader.sampler import StatefulDistributedSampler

    return {"sampler": StatefulDistributedSampler(range(COUNT), num_replicas=1, rank=0)}


class Numbers(data.Dataset[int]):
    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> int:
        return index


class Loop:
    """Epochs over a loader; each batch also draws a number, as dropout does."""

    def __init__(self, make: Callable[[int], dict[str, Any]], seed: int, workers: int) -> None:
        torch.manual_seed(seed)
        options = make(seed)
        self.loader: Any = loader_module.StatefulDataLoader(
            range(COUNT), batch_size=BATCH, num_workers=workers, **options
        )
        self.sampler: Any = options.get("sampler")
        self.epoch = {"epoch": 0}
        self.state = TrainState(loader=self.loader, extra=self.epoch)

    def batches(self) -> Iterator[tuple[list[int], float]]:
        while self.epoch["epoch"] < EPOCHS:
            if hasattr(self.sampler, "set_epoch") and not isinstance(
                self.sampler, ResumableSampler
            ):
                self.sampler.set_epoch(self.epoch["epoch"])
            for batch in self.loader:
                yield batch.tolist(), torch.rand(()).item()
            self.epoch["epoch"] += 1
            if isinstance(self.sampler, SeededOrder):
                self.sampler.next_epoch()


@pytest.mark.parametrize("workers", [0, slow(2)])
@pytest.mark.parametrize("done", [0, 1, 3, 6, slow(4), slow(8), slow(11)])
@pytest.mark.parametrize(
    "make",
    [
        shuffled,
        own_generator,
        seeded,
        weighted,
        subset,
        with_replacement,
        distributed,
        stateful_distributed,
    ],
)
def test_no_sample_is_repeated_or_left_out(
    tmp_path: Path, make: Callable[[int], dict[str, Any]], done: int, workers: int
) -> None:
    straight = Loop(make, 1, workers)
    batches = straight.batches()
    for _ in range(done):
        next(batches)
    jsonckpt.save(straight.state.state_dict(), tmp_path / "c.json")
    expected = list(batches)
    assert len(expected) == EPOCHS * 4 - done

    resumed = Loop(make, 2, workers)
    resumed.state.restore(tmp_path / "c.json")
    if isinstance(resumed.sampler, SeededOrder):
        assert resumed.sampler.seed == 1
    assert list(resumed.batches()) == expected


def test_an_order_counts_for_itself_with_workers(tmp_path: Path) -> None:
    """The workers read ahead of what ``advance`` was called for."""
    order = SeededOrder(COUNT, 1)
    loader = loader_module.StatefulDataLoader(
        range(COUNT), batch_size=BATCH, num_workers=1, sampler=order
    )
    batches = iter(loader)
    order.advance(len(next(batches)))
    jsonckpt.save(TrainState(loader=loader, order=order).state_dict(), tmp_path / "c.json")
    expected = [batch.tolist() for batch in batches]

    again = SeededOrder(COUNT, 2)
    loader = loader_module.StatefulDataLoader(
        range(COUNT), batch_size=BATCH, num_workers=1, sampler=again
    )
    TrainState(loader=loader, order=again).restore(tmp_path / "c.json")
    assert (again.seed, again.position) == (1, BATCH)
    assert [batch.tolist() for batch in loader] == expected


def test_an_order_that_is_not_one_is_refused() -> None:
    samples = iter(SeededOrder(4))
    assert next(samples) == SeededOrder(4).order()[0]
    with pytest.raises(StateMismatchError, match="at 2 of 5 samples"):
        samples.load_state_dict({"n": 5, "seed": 0, "epoch": 0, "position": 2})  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "sampler",
    [
        data.WeightedRandomSampler([0.5] * COUNT, COUNT),
        data.SubsetRandomSampler(range(COUNT)),
        data.RandomSampler(range(COUNT)),
    ],
)
def test_an_order_that_cannot_resume_is_refused(sampler: Any) -> None:
    loader = loader_module.StatefulDataLoader(range(COUNT), sampler=sampler)
    kind = type(sampler).__name__
    with pytest.raises(ArgumentError, match=f"loader has a {kind}.*ResumableSampler"):
        TrainState(loader=loader)


def test_other_loaders_are_refused(tmp_path: Path) -> None:
    one = Loop(own_generator, 1, 0)
    jsonckpt.save(one.state.state_dict(), tmp_path / "c.json")
    with pytest.raises(StateMismatchError, match="/loader: only the checkpoint has a generator"):
        Loop(shuffled, 1, 0).state.restore(tmp_path / "c.json")
    two = Loop(shuffled, 1, 0)
    jsonckpt.save(two.state.state_dict(), tmp_path / "c.json")
    with pytest.raises(StateMismatchError, match="/loader: only this loader has a generator"):
        one.state.restore(tmp_path / "c.json")
    generators = torch.get_rng_state()
    other = TrainState(
        loader=loader_module.StatefulDataLoader(range(COUNT), num_workers=1), extra={"epoch": 0}
    )
    with pytest.raises(StateMismatchError, match="the loader refused its position"):
        other.restore(tmp_path / "c.json")
    assert torch.equal(torch.get_rng_state(), generators)


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"yielded": 1},
        {"yielded": 1, "start": 3},
        {"yielded": "x", "start": None},
        {"yielded": 1, "start": {"torch": torch.zeros(3), "generator": None, "epoch": None}},
    ],
)
def test_the_state_of_a_sampler_is_checked(state: Any) -> None:
    generators = torch.get_rng_state()
    samples: Any = iter(ResumableSampler([3, 1]))
    with pytest.raises(StateMismatchError, match="not a state of ResumableSampler"):
        samples.load_state_dict(state)
    assert list(samples) == [3, 1]
    assert torch.equal(torch.get_rng_state(), generators)


def test_a_sampler_of_other_data_is_refused() -> None:
    samples: Any = iter(ResumableSampler(range(5)))
    assert [next(samples) for _ in range(4)] == [0, 1, 2, 3]
    other: Any = iter(ResumableSampler(range(3)))
    with pytest.raises(StateMismatchError, match="is at 4, and the order has 3 samples"):
        other.load_state_dict(samples.state_dict())
    assert len(ResumableSampler(range(3))) == 3
    with pytest.raises(ArgumentError, match="sampler must be iterable"):
        ResumableSampler(3)  # type: ignore[arg-type]
