"""Requests for a range of a file, with the checks that fsspec leaves out.

A server may ignore the range, send another one, or send another file than the one whose size is
known. So the answer is checked before its bytes are read, and it is never longer in memory than
what was asked for.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from .requests import Requests

Fetch = Callable[[int, int], Awaitable[Any]]
_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")


class NoRangesError(ValueError):
    """A server sent something else than the range that was asked for."""


class ReplacedError(ValueError):
    """The file is not the one whose size and tag were read."""


@dataclass(frozen=True)
class RemoteFacts:
    """What a store says of a file.

    Attributes:
        tag: changes with the content (``ETag``), or with the time of the change; ``""`` if unknown.
        etag: for ``If-Match``; ``""`` if the store gives no strong one.
    """

    size: int | None
    is_directory: bool
    tag: str
    etag: str
    partial: bool


def size_of(value: Any) -> int | None:
    """A size that a store says; ``None`` if it is none.

    >>> size_of(5), size_of("5"), size_of(-5), size_of("x")
    (5, 5, None, None)
    """
    try:
        size = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return size if 0 <= size < 1 << 63 else None


def facts_of(info: Mapping[str, Any]) -> RemoteFacts:
    """The facts in what ``fs.info`` returns."""
    etag = str(info.get("ETag") or info.get("etag") or "")
    times = [info.get(key) for key in ("LastModified", "Last-Modified", "mtime", "updated")]
    size = info.get("size")
    tag = etag or str(next((time for time in [*times, info.get("created")] if time), ""))
    return RemoteFacts(
        size=size_of(size),
        is_directory=info.get("type") == "directory",
        tag=f"{tag} {size}" if tag else "",
        etag="" if etag.startswith("W/") else etag,
        partial=info.get("partial") is not False,
    )


def fetcher(requests: Requests, path: str, facts: RemoteFacts) -> Fetch | None:
    """The request for a range of a file; ``None`` if the file system has no event loop."""
    fs = requests.fs
    if not requests.is_async:
        return None
    if hasattr(fs, "set_session") and hasattr(fs, "encode_url"):
        return partial(_from_web, requests, path, facts)
    if hasattr(fs, "_call_s3") and hasattr(fs, "split_path"):
        return partial(_from_s3, fs, path, facts)
    return partial(_from_any, fs, path)


async def _from_any(fs: Any, path: str, start: int, stop: int) -> bytes:
    data: bytes = await fs._cat_file(path, start=start, end=stop)
    return data


async def _from_web(
    requests: Requests, path: str, facts: RemoteFacts, start: int, stop: int
) -> bytearray:
    import aiohttp

    fs = requests.fs
    options = dict(fs.kwargs)
    headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{stop - 1}"}
    headers["Accept-Encoding"] = "identity"
    if facts.etag:
        headers["If-Match"] = facts.etag
    silence = requests.policy.silence
    options.setdefault(
        "timeout", aiohttp.ClientTimeout(total=None, sock_connect=silence, sock_read=silence)
    )
    session = await fs.set_session()
    async with session.get(fs.encode_url(path), headers=headers, **options) as answer:
        if answer.status == 412:
            raise ReplacedError
        fs._raise_not_found_for_status(answer, path)
        etag = answer.headers.get("ETag", facts.etag)
        if facts.etag and etag != facts.etag:
            raise ReplacedError
        _check_range(answer.status, answer.headers.get("Content-Range"), facts, start, stop)
        length = answer.content_length
        if length is not None and length != stop - start:
            raise NoRangesError(f"the server sends {length} bytes instead of {stop - start}")
        data, done = bytearray(stop - start), 0
        async for piece in answer.content.iter_any():
            if done + len(piece) > len(data):
                raise NoRangesError(f"the server sends more than {len(data)} bytes")
            data[done : done + len(piece)] = piece
            done += len(piece)
    if done < len(data):
        raise EOFError(f"the answer ended after {done} of {len(data)} bytes")
    return data


def _check_range(
    status: int, content_range: str | None, facts: RemoteFacts, start: int, stop: int
) -> None:
    if status != 206:
        if status == 200 and (start, stop) == (0, facts.size):
            return
        raise NoRangesError("the server sent the whole file instead of a range")
    match = _CONTENT_RANGE.fullmatch(content_range or "")
    if match is None or (int(match[1]), int(match[2])) != (start, stop - 1):
        raise NoRangesError(f"the server sent the range {content_range!r:.100}")
    if match[3] != "*" and facts.size is not None and int(match[3]) != facts.size:
        raise ReplacedError


async def _from_s3(fs: Any, path: str, facts: RemoteFacts, start: int, stop: int) -> bytes:
    bucket, key, version = fs.split_path(path)
    options = {"VersionId": version} if version else {}
    if facts.etag:
        options["IfMatch"] = facts.etag
    answer = await fs._call_s3(
        "get_object",
        Bucket=bucket,
        Key=key,
        Range=f"bytes={start}-{stop - 1}",
        **options,
        **getattr(fs, "req_kw", {}),
    )
    body = answer["Body"]
    try:
        if answer.get("ETag", facts.etag) != facts.etag and facts.etag:
            raise ReplacedError
        length = answer.get("ContentLength")
        if length is not None and length != stop - start:
            raise NoRangesError(f"the server sends {length} bytes instead of {stop - start}")
        data: bytes = await body.read()
    finally:
        body.close()
    if len(data) < stop - start:
        raise EOFError(f"the answer ended after {len(data)} of {stop - start} bytes")
    return data
