"""Makes requests to a store, and makes them again while that may help."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import Future
from typing import Any

from .faults import asked_wait, is_passing
from .policy import RemotePolicy

#: Seconds before the second attempt, and the most before any attempt.
FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
#: Attempts as long as the store has not answered once. Then the address may be wrong.
_FIRST_ATTEMPTS = 4

#: The types of answers, where they are used without another check.
_ANSWERS: Mapping[str, Any] = {
    "cat_file": (bytes, bytearray, memoryview),
    "info": Mapping,
    "ls": (list, tuple),
}


class OddAnswerError(ValueError):
    """A file system answered with what is no answer."""


class Requests:
    """The requests of one call to one file system.

    Every request may be made twice: a read changes nothing, a write has the same bytes, and what a
    removal does not find is gone.

    Args:
        fs: a file system of fsspec. One that runs on an event loop answers many requests at once.

    Attributes:
        answered: whether it has answered once.
        gave_up: whether a request failed until its deadline.
    """

    def __init__(self, fs: Any, policy: RemotePolicy) -> None:
        self.fs = fs
        self.policy = policy
        self.answered = False
        self.gave_up = False
        self.is_async = _runs_on_a_loop(fs)

    def call(self, method: str, *args: Any, nbytes: int = 0, **options: Any) -> Any:
        """Call a method of the file system.

        Args:
            nbytes: how many bytes it moves, for the deadline.

        Raises:
            OddAnswerError: the answer is of a type that is none.
            Exception: whatever the file system raises, at the last attempt.
        """
        inner = getattr(self.fs, f"_{method}", None) if self.is_async else None
        if asyncio.iscoroutinefunction(inner):
            found = result_of(self.start(lambda: inner(*args, **options), nbytes))
        else:
            found = self.blocking(lambda: getattr(self.fs, method)(*args, **options), nbytes)
        if not isinstance(found, _ANSWERS.get(method, object)):
            kind = type(found).__name__
            raise OddAnswerError(f"the file system answered {method} with a value of type {kind}")
        return found

    def start(self, request: Callable[[], Awaitable[Any]], nbytes: int = 0) -> Future[Any]:
        """Begin a request on the event loop of the file system."""
        return asyncio.run_coroutine_threadsafe(self._until_done(request, nbytes), self.fs.loop)

    def blocking(self, request: Callable[[], Any], nbytes: int = 0) -> Any:
        """As :meth:`call`, for any function. A request that hangs is up to the file system."""
        attempts = _Attempts(self, nbytes)
        while True:
            try:
                found = request()
            except Exception as error:
                time.sleep(attempts.wait_after(error))
            else:
                self.answered = True
                return found

    async def _until_done(self, request: Callable[[], Awaitable[Any]], nbytes: int) -> Any:
        attempts = _Attempts(self, nbytes)
        while True:
            try:
                found = await asyncio.wait_for(request(), attempts.left)
            except Exception as error:
                if isinstance(error, asyncio.TimeoutError) and attempts.left <= 0:
                    error = TimeoutError(f"no answer within {attempts.allowed:.3g} seconds")
                await asyncio.sleep(attempts.wait_after(error))
            else:
                self.answered = True
                return found


def _runs_on_a_loop(fs: Any) -> bool:
    """Whether a file system, and those that it is built on, have coroutines to call from here."""
    while hasattr(fs, "protocol"):
        if not getattr(fs, "async_impl", False) or getattr(fs, "asynchronous", False):
            return False
        fs = getattr(fs, "fs", None)
    return True


class _Attempts:
    """Counts the attempts of one request."""

    def __init__(self, requests: Requests, nbytes: int) -> None:
        self._requests = requests
        self.allowed = requests.policy.seconds(nbytes)
        self._began = time.monotonic()
        self._count = 0

    @property
    def left(self) -> float:
        """Seconds until the deadline."""
        return max(self._began + self.allowed - time.monotonic(), 0.0)

    def wait_after(self, error: Exception) -> float:
        """Seconds to wait before the next attempt.

        Raises:
            Exception: ``error``, if another attempt would not help or comes too late.
        """
        self._count += 1
        if not is_passing(error):
            self._requests.answered |= isinstance(error, FileNotFoundError)
            raise error
        asked = asked_wait(error)
        # Not all at once, and each time later.
        longest = min(FIRST_WAIT * 2 ** (self._count - 1), _LONGEST_WAIT)
        wait = asked if asked is not None else longest * random.uniform(0.5, 1)
        unknown = asked is None and not self._requests.answered
        if wait >= self.left or (unknown and self._count >= _FIRST_ATTEMPTS):
            self._requests.gave_up = True
            seconds = time.monotonic() - self._began
            error.jsonckpt_attempts = f"{self._count} attempts in {seconds:.3g} s"  # type: ignore[attr-defined]
            raise error
        return wait


def result_of(future: Future[Any]) -> Any:
    """What a request returns. An interrupt ends the request."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise
