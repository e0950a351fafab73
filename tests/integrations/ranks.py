"""Processes that take part in distributed jobs. They start once, and each job has its own group."""

from __future__ import annotations

import itertools
import multiprocessing
import traceback
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

#: Seconds that a job may take, also on a busy machine.
TIMEOUT = 120
_MOST = 4
_numbers = itertools.count()


class RankError(Exception):
    """A job failed on a rank. ``errors`` are the exceptions, by rank."""

    def __init__(self, errors: dict[int, BaseException], texts: list[str]) -> None:
        super().__init__("\n".join(texts))
        self.errors = errors


class Ranks:
    """Up to four processes. A job is a function of a module, and runs on as many as it asks for."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._workers: list[tuple[Any, Connection]] = []

    def run(self, count: int, job: Callable[..., Any], *args: Any) -> list[Any]:
        """The results of a job on each rank.

        Raises:
            RankError: it raised an error on some.
        """
        store = self._directory / f"store-{next(_numbers)}"
        self._start(count)
        workers = self._workers[:count]
        for rank, (_, pipe) in enumerate(workers):
            pipe.send((str(store), rank, count, job, args))
        results, errors, texts = [], {}, []
        for rank, (_, pipe) in enumerate(workers):
            if not pipe.poll(TIMEOUT):
                self.stop()
                raise TimeoutError(f"rank {rank} did not answer in {TIMEOUT} s")
            try:
                result, error, text = pipe.recv()
            except EOFError:
                result, error, text = None, ProcessLookupError("the process has died"), "died"
            results.append(result)
            if error is not None:
                errors[rank] = error
                texts.append(f"rank {rank}: {text}")
        if any(isinstance(error, ProcessLookupError) for error in errors.values()):
            self.stop()
        if errors:
            raise RankError(errors, texts)
        return results

    def stop(self) -> None:
        """End all processes."""
        for process, pipe in self._workers:
            pipe.close()
            process.kill()
            process.join(10)
        self._workers.clear()

    def _start(self, count: int) -> None:
        context = multiprocessing.get_context("spawn")
        while len(self._workers) < min(count, _MOST):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,))
            process.start()
            theirs.close()
            self._workers.append((process, ours))


def _serve(pipe: Connection) -> None:
    import torch

    torch.set_num_threads(1)
    with suppress(EOFError):
        while True:
            answer = _answer(*pipe.recv())
            try:
                pipe.send(answer)
            except Exception as error:  # an error that cannot be pickled
                pipe.send((None, RuntimeError(f"{error}: {answer[2]}"), answer[2]))


def _answer(
    store: str, rank: int, count: int, job: Callable[..., Any], args: tuple[Any, ...]
) -> tuple[Any, BaseException | None, str]:
    import torch.distributed as dist

    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=60),
    )
    try:
        return job(*args), None, ""
    except BaseException as error:
        return None, error, traceback.format_exc()
    finally:
        with suppress(Exception):
            dist.destroy_process_group()
