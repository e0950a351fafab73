"""Which errors of a store pass, so that a request may be made again."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping
from typing import Any

#: Answers that mean "not now".
_NOT_NOW = frozenset([408, 425, 429, 500, 502, 503, 504, 509, 520, 521, 522, 523, 524])
_PASSING = frozenset(
    getattr(errno, name)
    for name in (
        *("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EHOSTDOWN"),
        *("EHOSTUNREACH", "EINTR", "ENETDOWN", "ENETRESET", "ENETUNREACH", "ENOTCONN"),
        *("EPIPE", "EREMOTEIO", "ETIMEDOUT"),
    )
    if hasattr(errno, name)
)
#: Words in the names of the errors of libraries for a connection that was lost.
_LOST = (
    "Timeout",
    "Connect",
    "Disconnected",
    "Payload",
    "IncompleteRead",
    "HTTPClientError",
    "ResponseParserError",
    "TransferEncoding",
    "ProtocolError",
    "ServiceUnavailable",
)
#: Libraries whose errors are judged by their names.
_LIBRARIES = frozenset(
    [
        *("aiobotocore", "aiohttp", "asyncio", "azure", "botocore", "fsspec", "gcsfs", "google"),
        *("httpcore", "httpx", "requests", "urllib3"),
    ]
)
#: Libraries whose errors have the status of the answer as ``code``.
_WITH_CODES = frozenset(["gcsfs", "google"])
_LONGEST_WAIT = 3_600.0


def status_of(error: BaseException) -> int | None:
    """The status of the answer that an error stands for, if there was an answer."""
    return next((status for one in _causes(error) if (status := _status(one)) is not None), None)


def is_passing(error: BaseException) -> bool:
    """Whether the same request may succeed a moment later.

    >>> is_passing(ConnectionResetError()), is_passing(PermissionError())
    (True, False)
    """
    for one in _causes(error):
        if _is_lost(one):
            return True
        if (status := _status(one)) is not None:
            return status in _NOT_NOW
    return False


def asked_wait(error: BaseException) -> float | None:
    """The seconds that the server asks to wait (``Retry-After``)."""
    for one in _causes(error):
        headers = getattr(one, "headers", None) or _metadata(one).get("HTTPHeaders")
        if isinstance(headers, Mapping):
            text = headers.get("Retry-After") or headers.get("retry-after")
            try:
                return min(max(float(text), 0.0), _LONGEST_WAIT)  # type: ignore[arg-type]
            except (TypeError, ValueError):
                continue
    return None


def _status(error: BaseException) -> int | None:
    """The status in one error."""
    # Errors of aiohttp about a body that was cut have a ``code``, too, which nobody sent.
    named = ["status", "status_code"] + ["code"] * (_library(type(error)) in _WITH_CODES)
    values = [getattr(error, name, None) for name in named]
    for value in [*values, _metadata(error).get("HTTPStatusCode")]:
        if isinstance(value, int) and 100 <= value < 600:
            return value
    return None


def _library(kind: type) -> str:
    return kind.__module__.partition(".")[0]


def _is_lost(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError | EOFError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    kinds = [kind for kind in type(error).__mro__ if _library(kind) in _LIBRARIES]
    return any(word in kind.__name__ for kind in kinds for word in _LOST)


def _causes(error: BaseException) -> Iterator[BaseException]:
    """An error and what led to it, as far as libraries say."""
    for _ in range(4):
        yield error
        if error.__cause__ is None:
            return
        error = error.__cause__


def _metadata(error: BaseException) -> Mapping[str, Any]:
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata") if isinstance(response, Mapping) else None
    return found if isinstance(found, Mapping) else {}
