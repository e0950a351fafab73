"""A server of objects on this machine: plain HTTP with ranges, and as much of S3 as s3fs asks for.

Its answers can be spoiled: late, lost, cut, refused, sent twice, or of another range. A lost answer
comes after the request is done; a dropped request is not done.
"""

from __future__ import annotations

import hashlib
import http.server
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
#: What may happen to a request. ``None``: nothing.
Fault = str | None


class ObjectServer:
    """Objects in memory behind HTTP.

    Attributes:
        objects: path (``/bucket/key``) -> bytes.
        requests: each request as ``"GET /bucket/key"``, in order.
        fault: is asked before each request, with its method and path: ``"drop"`` (the connection
            ends, nothing is done), ``"lost"`` (done, then the connection ends), ``"cut"`` (half of
            the body), ``"500"``, ``"503"`` (with ``Retry-After: 0``), ``"403"``, ``"whole"`` (no
            range), ``"shifted"`` (another range), ``"slow"`` (a pause in the body).
        wait: seconds before each answer.
        most_at_once: the largest number of requests under way.
    """

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.upload_keys: dict[str, str] = {}
        self.requests: list[str] = []
        self.sent = 0
        self.wait = 0.0
        self.most_at_once = 0
        self.etags = True
        self.fault: Callable[[str, str], Fault] = lambda _method, _path: None
        self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(_Handler):
            owner = server

        self._http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)

    @contextmanager
    def running(self) -> Iterator[ObjectServer]:
        """Serve until the end of the ``with`` statement."""
        self._thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            self._http.server_close()
            self._thread.join(30)

    @property
    def s3_options(self) -> dict[str, Any]:
        """``storage_options`` that make s3fs talk to this server, without retries of its own."""
        return {
            "key": "x",
            "secret": "y",
            "client_kwargs": {"endpoint_url": self.url, "region_name": "us-east-1"},
            "config_kwargs": {
                "retries": {"total_max_attempts": 1},
                "s3": {"addressing_style": "path"},
                "read_timeout": 5,
            },
        }

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Count a request that is under way."""
        with self._lock:
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        try:
            yield
        finally:
            with self._lock:
                self._now -= 1

    def counts(self) -> Counter[str]:
        """How many requests of each method there were."""
        return Counter(request.partition(" ")[0] for request in self.requests)


class _Handler(http.server.BaseHTTPRequestHandler):
    owner: ObjectServer
    protocol_version = "HTTP/1.1"
    timeout = 30

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_message(self, *_: Any) -> None:
        pass

    def _answer(self) -> None:
        owner = self.owner
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query, keep_blank_values=True)
        body = self._body()
        with owner.counted():
            owner.requests.append(f"{self.command} {path}")
            fault = owner.fault(self.command, path)
            time.sleep(owner.wait)
            if fault == "drop":
                self._hang_up()
            elif fault in ("403", "500", "503"):
                self._send(int(fault), b"", {"Retry-After": "0"} if fault == "503" else {})
            else:
                self._do(path, query, body, fault)

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            while self.rfile.readline().strip():
                pass
            body = b"".join(parts)
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            found, rest = [], body
            while rest:
                head, _, rest = rest.partition(b"\r\n")
                size = int(head.split(b";")[0], 16)
                if not size:
                    break
                found.append(rest[:size])
                rest = rest[size + 2 :]
            body = b"".join(found)
        return body

    def _do(self, path: str, query: dict[str, list[str]], body: bytes, fault: Fault) -> None:
        owner = self.owner
        if self.command in ("GET", "HEAD"):
            if "uploads" in query:
                return self._list_uploads(query)
            if "list-type" in query:
                return self._list(path.strip("/"), query)
            return self._read(path, fault)
        status, answer, headers = 200, b"", {}
        if self.command == "PUT" and "uploadId" in query:
            owner.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
            headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        elif self.command == "PUT":
            if path.count("/") > 1:
                owner.objects[path] = body
            headers = {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}
        elif self.command == "POST" and "uploads" in query:
            name = f"upload{random.getrandbits(60)}"
            owner.uploads[name] = {}
            answer = f"<R><UploadId>{name}</UploadId></R>".encode()
        elif self.command == "POST" and "uploadId" in query:
            parts = owner.uploads.pop(query["uploadId"][0], None)
            if parts is None:
                status, answer = 404, b"<Error><Code>NoSuchUpload</Code></Error>"
            else:
                numbers = [int(n) for n in re.findall(rb"<PartNumber>(\d+)", body)]
                owner.objects[path] = b"".join(parts[number] for number in numbers)
                answer = b"<R><ETag>x</ETag></R>"
        elif self.command == "DELETE" and "uploadId" in query:
            owner.uploads.pop(query["uploadId"][0], None)
            status = 204
        elif self.command == "DELETE":
            owner.objects.pop(path, None)
            status = 204
        if fault == "lost":
            return self._hang_up()
        return self._send(status, answer, headers)

    def _read(self, path: str, fault: Fault) -> None:
        data = self.owner.objects.get(path)
        if data is None:
            return self._send(404, b"", {})
        headers = {"Accept-Ranges": "bytes"}
        if self.owner.etags:
            etag = f'"{hashlib.md5(data).hexdigest()}"'
            headers["ETag"] = etag
            if self.headers.get("If-Match", etag) != etag:
                return self._send(412, b"", headers)
        match = _RANGE.fullmatch(self.headers.get("Range", ""))
        if match is None or fault == "whole" or self.command == "HEAD":
            return self._send(200, data, headers, fault)
        start, stop = int(match[1]), min(int(match[2] or len(data) - 1) + 1, len(data))
        if fault == "shifted" and start:
            start, stop = start - 1, stop - 1
        if start >= len(data):
            return self._send(416, b"", headers)
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        return self._send(206, data[start:stop], headers, fault)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        delimiter = query.get("delimiter", [""])[0]
        lines, seen = [], set()
        for path, data in sorted(self.owner.objects.items()):
            key = path.removeprefix(f"/{bucket}/")
            if key == path or not key.startswith(prefix):
                continue
            first, found, _ = key[len(prefix) :].partition(delimiter or "\0")
            if found and delimiter:
                seen.add(prefix + first + delimiter)
            else:
                lines.append(
                    f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
                )
        lines += [f"<CommonPrefixes><Prefix>{escape(p)}</Prefix></CommonPrefixes>" for p in seen]
        text = (
            f"<ListBucketResult><Name>{bucket}</Name><KeyCount>{len(lines)}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{''.join(lines)}</ListBucketResult>"
        )
        self._send(200, text.encode(), {"Content-Type": "application/xml"})

    def _list_uploads(self, query: dict[str, list[str]]) -> None:
        prefix = query.get("prefix", [""])[0]
        text = "".join(
            f"<Upload><Key>{escape(key)}</Key><UploadId>{name}</UploadId>"
            "<Initiated>2026-01-01T00:00:00.000Z</Initiated></Upload>"
            for name, key in self.owner.upload_keys.items()
            if key.startswith(prefix)
        )
        self._send(200, f"<R><Prefix>{escape(prefix)}</Prefix>{text}</R>".encode(), {})

    def _send(self, status: int, body: bytes, headers: dict[str, str], fault: Fault = None) -> None:
        if fault == "lost":
            return self._hang_up()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return None
        self.owner.sent += len(body)
        try:
            if fault == "cut":
                self.wfile.write(body[: len(body) // 2])
                return self._hang_up()
            if fault == "slow":
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                time.sleep(0.2)
                body = body[len(body) // 2 :]
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has seen enough
        return None

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
