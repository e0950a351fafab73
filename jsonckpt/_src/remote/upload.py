"""Uploads to S3 in parts, several parts at once. Each part may be sent again."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from .requests import Requests, result_of

#: S3 takes no smaller parts, and no more than 10,000 of them.
_PART = 5 << 20
_PARTS_OF_A_SIZE = 1_000


def can_upload_in_parts(requests: Requests) -> bool:
    """Whether this is a file system whose parts can be sent from here."""
    fs = requests.fs
    return requests.is_async and hasattr(fs, "_call_s3") and hasattr(fs, "split_path")


class PartsUpload:
    """One file. It appears when it is closed. At most ``connections`` parts are in memory."""

    def __init__(self, requests: Requests, path: str) -> None:
        self._requests = requests
        bucket, key, _ = requests.fs.split_path(path)
        self._place = {"Bucket": bucket, "Key": key}
        self._path = path
        self._upload_id = ""
        self._held = bytearray()
        self._sent: list[dict[str, Any]] = []
        self._waiting: deque[tuple[dict[str, Any], Future[Any]]] = deque()
        self.closed = False

    def write(self, data: memoryview) -> int:
        """Take all of ``data``."""
        self._held += data
        while len(self._held) >= (size := self._part_size()):
            with memoryview(self._held) as held:
                part = bytes(held[:size])
            del self._held[:size]
            self._send(part)
        return len(data)

    def close(self) -> None:
        """Send the rest. Then the file appears."""
        if self.closed:
            return
        self.closed = True
        if not self._upload_id:
            self._call("put_object", Body=bytes(self._held))
        else:
            if self._held:
                self._send(bytes(self._held))
            while self._waiting:
                self._take()
            parts = {"Parts": self._sent}
            self._call("complete_multipart_upload", UploadId=self._upload_id, MultipartUpload=parts)
        self._held = bytearray()
        self._requests.fs.invalidate_cache(self._path)

    def discard(self) -> None:
        """End it without a trace, as far as the store answers."""
        self.closed = True
        self._held = bytearray()
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        if self._upload_id:
            with suppress(Exception):
                self._call("abort_multipart_upload", UploadId=self._upload_id)

    def _part_size(self) -> int:
        doubled = (len(self._sent) + len(self._waiting)) // _PARTS_OF_A_SIZE
        return int(_PART << doubled)

    def _send(self, part: bytes) -> None:
        if not self._upload_id:
            self._upload_id = self._call("create_multipart_upload")["UploadId"]
        if len(self._waiting) >= self._requests.policy.connections:
            self._take()
        number = len(self._sent) + len(self._waiting) + 1
        facts = {"UploadId": self._upload_id, "PartNumber": number}
        self._waiting.append(({"PartNumber": number}, self._begin("upload_part", part, facts)))

    def _take(self) -> None:
        """Wait for the oldest part."""
        facts, future = self._waiting.popleft()
        answer = result_of(future)
        checks = {name: answer[name] for name in answer if name.startswith("ChecksumSHA")}
        self._sent.append({**facts, "ETag": answer["ETag"], **checks})

    def _begin(self, method: str, body: bytes, facts: dict[str, Any]) -> Future[Any]:
        fs = self._requests.fs
        return self._requests.start(
            lambda: fs._call_s3(method, Body=body, **self._place, **facts), len(body)
        )

    def _call(self, method: str, **facts: Any) -> Any:
        fs, body = self._requests.fs, facts.get("Body", b"")
        return result_of(
            self._requests.start(lambda: fs._call_s3(method, **self._place, **facts), len(body))
        )
