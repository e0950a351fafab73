"""How requests to a remote store are made: how many at once, how large, how long."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from ..errors import ArgumentError, quote

#: The key of ``storage_options`` that is not passed to fsspec.
OPTIONS_KEY = "jsonckpt"
_MOST = {"connections": 256, "request_bytes": 1 << 30, "deadline": 86_400}
_IN_MEMORY = 32 << 20
#: Bytes a second below which a store counts as one that does not answer.
_SLOWEST = 32 << 10


@dataclass(frozen=True)
class RemotePolicy:
    """Limits of the requests of one call.

    Attributes:
        connections: how many requests run at once.
        request_bytes: the largest range of one request. ``connections`` of them are in memory. With
            fewer than 8 connections the default is larger: 32 MiB in all.
        deadline: seconds in which a request must succeed, with its retries. A request for many
            bytes may take longer, as long as 32 KiB arrive each second.
    """

    connections: int = 8
    request_bytes: int = 4 << 20
    deadline: float = 60.0

    def seconds(self, nbytes: int) -> float:
        """Seconds in which a request for ``nbytes`` must succeed."""
        return self.deadline + nbytes / _SLOWEST

    @property
    def silence(self) -> float:
        """Seconds without a byte after which an attempt is given up and made again."""
        return min(20.0, self.deadline / 3)


def split_options(
    storage_options: Mapping[str, Any] | None,
) -> tuple[RemotePolicy, dict[str, Any]]:
    """The policy in ``storage_options["jsonckpt"]``, and the options for fsspec.

    Raises:
        ArgumentError: an option is unknown, or its value is out of range.

    >>> split_options({"anon": True, "jsonckpt": {"connections": 2}})[1]
    {'anon': True}
    >>> split_options({"jsonckpt": {"connections": 2}})[0].request_bytes >> 20
    16
    """
    others = dict(storage_options or {})
    own = others.pop(OPTIONS_KEY, {})
    if not isinstance(own, Mapping):
        raise ArgumentError(
            f"storage_options[{OPTIONS_KEY!r}] must be a dictionary, "
            f"not {quote(type(own).__name__)}"
        )
    known = [option.name for option in fields(RemotePolicy)]
    for name, value in own.items():
        if name not in known:
            raise ArgumentError(
                f"storage_options[{OPTIONS_KEY!r}] has no option {quote(name)}; "
                f"there are {', '.join(known)}"
            )
        is_number = type(value) is int or (name == "deadline" and type(value) is float)
        if not (is_number and math.isfinite(value) and 0 < value <= _MOST[name]):
            raise ArgumentError(
                f"storage_options[{OPTIONS_KEY!r}][{name!r}] must be a number above 0 and at most "
                f"{_MOST[name]}, not {quote(value)}"
            )
    policy = RemotePolicy(**own)
    if "request_bytes" not in own:
        # The same bytes are in memory whether they come by few connections or by many.
        share = _IN_MEMORY // policy.connections
        policy = replace(policy, request_bytes=max(policy.request_bytes, share))
    return policy, others
