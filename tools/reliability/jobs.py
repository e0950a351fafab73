"""A distributed save in one process: the ranks of a job, and the messages between them.

Each rank has a planner, a writer and its parts of the state. The steps are those of
``torch.distributed.checkpoint.save``, and each message between ranks is pickled, as torch does it.
There are no process groups, so that a tool decides which rank goes on, dies or hears what.
"""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.checkpoint.storage import WriteResult
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from jsonckpt.integrations.dcp import JsonSavePlanner, JsonStorageWriter

#: Whether this torch makes a mesh without a process group.
WORKS = "_rank" in inspect.signature(DeviceMesh.__init__).parameters


class Dead(BaseException):
    """This rank was killed: nothing of it runs any more."""


class Lost(Exception):
    """A message does not come any more: its sender is dead."""


class Failed(Exception):
    """A step failed on some ranks. ``failures`` are the errors, by rank."""

    def __init__(self, failures: dict[int, BaseException]) -> None:
        super().__init__(failures)
        self.failures = failures


@dataclass(frozen=True)
class Letter:
    """Which message: of a step, from a rank to a rank."""

    step: str
    sender: int
    receiver: int


#: What a rank does. It yields the message that it waits for, and gets it.
Life = Generator[Letter, Any, None]
#: Carries a message away.
Send = Callable[[Letter, Any], None]


class Rank:
    """One rank of a job. Rank 0 is the coordinator, too.

    Attributes:
        number: of the rank.
        count: of the ranks of the job.
    """

    def __init__(
        self, number: int, count: int, path: Path, state: Mapping[str, Any], **options: Any
    ) -> None:
        self.number, self.count = number, count
        self._state = parts(state, number, count)
        self._planner = JsonSavePlanner()
        self._writer = JsonStorageWriter(path, threads=1, **options)
        self._metadata: Any = None
        #: What went wrong here, with its causes. A message does not carry those.
        self.error: BaseException | None = None

    def save(self, send: Send) -> Life:
        """All steps.

        Raises:
            Failed: the save failed on some rank.
            Lost: another rank is dead.
        """
        try:
            mine = yield from self._together("plan", send, self._plan, self._decide)
            yield from self._together("results", send, lambda: self._write(mine), self._finish)
        except Failed as error:
            self._writer.abandon_after(error.failures)
            raise

    def _together(
        self,
        step: str,
        send: Send,
        work: Callable[[], Any],
        join: Callable[[list[Any]], list[Any]],
    ) -> Generator[Letter, Any, Any]:
        """All ranks work, the coordinator joins what they send, and each gets its answer."""
        send(Letter(step, self.number, 0), self._tried(work))
        if self.number == 0:
            found = []
            for sender in range(self.count):
                found.append((yield Letter(step, sender, 0)))
            failures: dict[int, BaseException] = {}
            for one in found:
                failures |= one.failures if isinstance(one, Failed) else {}
            joined = Failed(failures) if failures else self._tried(lambda: join(found))
            for receiver in range(self.count):
                answer = joined if isinstance(joined, Failed) else joined[receiver]
                send(Letter(f"answer to {step}", 0, receiver), answer)
        answer = yield Letter(f"answer to {step}", 0, self.number)
        if isinstance(answer, Failed):
            raise answer
        return answer

    def _tried(self, work: Callable[[], Any]) -> Any:
        """The result, or the error as a message to all."""
        try:
            return work()
        except Dead:
            raise
        except BaseException as error:  # as torch does
            self.error = error
            return Failed({self.number: error})

    def _plan(self) -> SavePlan:
        first = self.number == 0
        meta = self._writer.storage_meta()
        self._planner.set_up_planner(self._state, storage_meta=meta, is_coordinator=first)
        self._writer.set_up_storage_writer(first, rank=self.number, use_collectives=True)
        return self._writer.prepare_local_plan(self._planner.create_local_plan())

    def _decide(self, plans: list[SavePlan]) -> list[SavePlan]:
        found, self._metadata = self._planner.create_global_plan(plans)
        return self._writer.prepare_global_plan(found)

    def _write(self, plan: SavePlan) -> list[WriteResult]:
        final = self._planner.finish_plan(plan)
        found: list[WriteResult] = self._writer.write_data(final, self._planner).wait()
        return found

    def _finish(self, results: list[list[WriteResult]]) -> list[None]:
        self._writer.finish(self._metadata, results)
        return [None] * self.count


def parts(state: Any, rank: int, count: int) -> Any:
    """The state of one rank: it has a part of each tensor of five or more rows."""
    if isinstance(state, dict):
        return {key: parts(value, rank, count) for key, value in state.items()}
    if not isinstance(state, torch.Tensor):
        return state
    mesh = DeviceMesh("cpu", torch.arange(count), _init_backend=False, _rank=rank)
    if state.dim() == 0 or len(state) < 5:
        return DTensor.from_local(state, mesh, [Replicate()], run_check=False)
    rows = -(-len(state) // count)
    local = state[rank * rows : (rank + 1) * rows].clone()
    return DTensor.from_local(
        local, mesh, [Shard(0)], run_check=False, shape=state.shape, stride=state.stride()
    )


def sent(message: Any) -> bytes:
    """A message on its way."""
    return pickle.dumps(message)


def save_on_ranks(state: Mapping[str, Any], path: Path, *, count: int = 3, **options: Any) -> None:
    """Save a state as a job of some ranks, which take turns in this thread.

    Args:
        count: of the ranks.
        options: of :class:`JsonStorageWriter`.

    Raises:
        JsonckptError: of the first rank that failed.
    """
    mail: dict[Letter, bytes] = {}
    ranks = [Rank(number, count, path, state, **options) for number in range(count)]

    def send(letter: Letter, message: Any) -> None:
        mail[letter] = sent(message)

    lives = [rank.save(send) for rank in ranks]
    waiting: dict[int, Letter | None] = dict.fromkeys(range(count))
    while waiting:
        for number, letter in list(waiting.items()):
            if letter is not None and letter not in mail:
                continue
            try:
                message = None if letter is None else pickle.loads(mail[letter])
                waiting[number] = lives[number].send(message)
            except (StopIteration, Failed):
                del waiting[number]
    for rank in ranks:
        if rank.error is not None:
            raise rank.error
