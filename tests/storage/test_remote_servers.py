"""Checkpoints on servers of this machine: web servers with and without ranges, and S3."""

from __future__ import annotations

import http.server
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
import torch

import jsonckpt
from jsonckpt import training
from tests.support import lacking, same

STATE = {"w": torch.arange(40_000.0), "b": [torch.ones(3)], "epoch": 1}
NEW = {**STATE, "epoch": 2}


# --- web servers ------------------------------------------------------------------------------


class _Web(http.server.BaseHTTPRequestHandler):
    root: ClassVar[Path]
    ranges: ClassVar[bool] = True
    claims_ranges: ClassVar[bool] = True
    sizes: ClassVar[bool] = True
    token: ClassVar[str] = ""
    status: ClassVar[int] = 200
    sent: ClassVar[list[int]] = []

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        url = urlsplit(self.path)
        path = self.root / url.path.lstrip("/")
        if self.token and url.query != self.token:
            return self.send_error(403)
        if self.status != 200:
            return self.send_error(self.status)
        if not path.is_file():
            return self.send_error(404)
        data = path.read_bytes()
        wanted = self.headers.get("Range")
        if wanted and self.ranges:
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            stop = min(int(last) + 1 if last else len(data), len(data))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{stop - 1}/{len(data)}")
            data = data[int(first) : stop]
        else:
            self.send_response(200)
        if self.claims_ranges:
            self.send_header("Accept-Ranges", "bytes")
        if self.sizes:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body:
            self.sent.append(len(data))
            try:
                self.wfile.write(data)
            except OSError:
                return None  # it has seen enough
        return None

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[tuple[type[_Web], str]]:
    try:
        import aiohttp  # noqa: F401
        import fsspec  # noqa: F401
    except ImportError:
        lacking("aiohttp", "a web server is read through fsspec and aiohttp")

    class Web(_Web):
        root = tmp_path
        sent: ClassVar[list[int]] = []

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Web)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield Web, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(30)


def check_reads(url: str) -> None:
    assert same(jsonckpt.load(url), STATE)
    assert dict(jsonckpt.stream(url)).keys() == {"/w", "/b/0"}
    with jsonckpt.open(url) as checkpoint:
        assert checkpoint["/w"][39_998:].tolist() == [39_998, 39_999]
    assert same(jsonckpt.load(url, include="b")["b"], STATE["b"])
    report = jsonckpt.verify(url)
    assert report.ok, report
    target = {"w": torch.zeros(40_000), "b": [torch.zeros(3)], "epoch": 0}
    jsonckpt.load_into(target, url)
    assert same(target, STATE)


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst", "model.ckpt"])
@pytest.mark.parametrize(
    ("ranges", "claims"), [(True, True), (True, False), (False, False), (False, True)]
)
def test_a_web_server(
    web: tuple[type[_Web], str], tmp_path: Path, name: str, ranges: bool, claims: bool
) -> None:
    jsonckpt.save(STATE, tmp_path / name.replace("ckpt", "json"), max_shard_size=100_000)
    if name == "model.ckpt":
        os.rename(tmp_path / "model.json", tmp_path / name)
    handler, url = web
    handler.ranges, handler.claims_ranges = ranges, claims
    check_reads(f"{url}/{name}")


def test_without_ranges_and_sizes_a_single_file_is_read_forward(
    web: tuple[type[_Web], str], tmp_path: Path
) -> None:
    handler, url = web
    handler.ranges = handler.claims_ranges = handler.sizes = False
    jsonckpt.save(STATE, tmp_path / "c.json")
    check_reads(f"{url}/c.json")
    jsonckpt.save(STATE, tmp_path / "c")
    with pytest.raises(jsonckpt.JsonckptError, match=r"does not say how long.*Download"):
        jsonckpt.load(f"{url}/c")


def test_damage_is_found_without_ranges(web: tuple[type[_Web], str], tmp_path: Path) -> None:
    handler, url = web
    handler.ranges = False
    jsonckpt.save(STATE, tmp_path / "c.json")
    text = bytearray((tmp_path / "c.json").read_bytes())
    at = text.index(b'"/w"') + 20_000
    text[at] = ord("A") if text[at] != ord("A") else ord("B")
    (tmp_path / "c.json").write_bytes(text)
    for read in (jsonckpt.load, lambda u: list(jsonckpt.stream(u))):
        with pytest.raises(jsonckpt.IntegrityError):
            read(f"{url}/c.json")
    (problem,) = jsonckpt.verify(f"{url}/c.json").problems
    assert isinstance(problem, jsonckpt.IntegrityError)
    (tmp_path / "c.json").write_bytes(text[:-100])
    with pytest.raises(jsonckpt.IncompleteCheckpointError):
        jsonckpt.load(f"{url}/c.json")


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst", "model.ckpt"])
@pytest.mark.parametrize("ranges", [True, False])
def test_a_signed_address(
    web: tuple[type[_Web], str], tmp_path: Path, name: str, ranges: bool
) -> None:
    jsonckpt.save(STATE, tmp_path / name.replace("ckpt", "json"))
    if name == "model.ckpt":
        os.rename(tmp_path / "model.json", tmp_path / name)
    handler, url = web
    handler.token, handler.ranges = "token=a/b.json&x=s3cr3t", ranges
    check_reads(f"{url}/{name}?{handler.token}")
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        jsonckpt.load(f"{url}/{name}?token=wr0ng")
    assert not isinstance(caught.value, jsonckpt.CheckpointNotFoundError)
    assert "wr0ng" not in str(caught.value)


def test_what_a_web_server_says_is_no_missing_file(web: tuple[type[_Web], str]) -> None:
    handler, url = web
    for name in ("c", "c.json"):
        with pytest.raises(jsonckpt.CheckpointNotFoundError):
            jsonckpt.load(f"{url}/{name}")
        handler.status = 500
        with pytest.raises(jsonckpt.JsonckptError, match="500") as caught:
            jsonckpt.load(f"{url}/{name}")
        assert not isinstance(caught.value, jsonckpt.CheckpointNotFoundError)
        handler.status = 200
        with pytest.raises(jsonckpt.JsonckptError, match="cannot read") as caught:
            jsonckpt.load(f"http://127.0.0.1:9/{name}")
        assert not isinstance(caught.value, jsonckpt.CheckpointNotFoundError)
        with pytest.raises(jsonckpt.ArgumentError, match="web server takes no files"):
            jsonckpt.save(STATE, f"{url}/{name}")
    with pytest.raises(jsonckpt.JsonckptError, match="does not list"):
        training.latest(url)


# --- S3 ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, Any]]:
    try:
        import s3fs  # noqa: F401
        from moto.server import ThreadedMotoServer
    except ImportError:
        lacking("moto", "S3 is played by moto and read through s3fs")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        options = {
            "key": "x",
            "secret": "y",
            "client_kwargs": {"endpoint_url": f"http://{host}:{port}"},
        }
        import fsspec

        fsspec.filesystem("s3", **options).mkdir("bucket")
        yield options
    finally:
        server.stop()


def test_s3_there_and_back(s3: dict[str, Any]) -> None:
    for name in ("c", "c.json", "c.json.zst"):
        url = f"s3://bucket/there/{name}"
        for state in (NEW, STATE):
            jsonckpt.save(state, url, storage_options=s3, max_shard_size=100_000)
        assert same(jsonckpt.load(url, storage_options=s3), STATE)
        assert jsonckpt.verify(url, storage_options=s3).ok
        with pytest.raises(jsonckpt.CheckpointExistsError):
            jsonckpt.save(NEW, url, storage_options=s3, overwrite=False)
    import fsspec

    fs = fsspec.filesystem("s3", **s3)
    fs.invalidate_cache()
    assert len(fs.ls("bucket/there/c")) == 3  # what was replaced is gone
    fs.copy("bucket/there/c.json", "bucket/there/model.ckpt")
    assert same(jsonckpt.load("s3://bucket/there/model.ckpt", storage_options=s3), STATE)


@pytest.mark.parametrize("name", ["c", "c.json", "a/b/c"])
def test_a_mistyped_bucket_is_not_made(s3: dict[str, Any], name: str) -> None:
    import fsspec

    with pytest.raises(jsonckpt.WriteError, match="Does this bucket exist"):
        jsonckpt.save(STATE, f"s3://bukcet/{name}", storage_options=s3)
    assert [*fsspec.filesystem("s3", **s3).ls("", refresh=True)] == ["bucket"]
    with pytest.raises(jsonckpt.CheckpointNotFoundError):
        jsonckpt.load(f"s3://bukcet/{name}", storage_options=s3)
    with pytest.raises(
        jsonckpt.CheckpointNotFoundError, match="the bucket 'bukcet' does not exist"
    ):
        training.latest(f"s3://bukcet/{name}", storage_options=s3)


def test_the_newest_on_s3(s3: dict[str, Any]) -> None:
    run = "s3://bucket/run"
    assert training.latest(run, storage_options=s3) is None
    for name in ("checkpoint-90", "checkpoint-1000", "checkpoint-200.json"):
        result = jsonckpt.save(STATE, f"{run}/{name}", storage_options=s3)
        if name == "checkpoint-1000":
            shard = result.files[0]
    assert training.checkpoints(run, storage_options=s3) == [
        f"{run}/checkpoint-90",
        f"{run}/checkpoint-200.json",
        f"{run}/checkpoint-1000",
    ]
    newest = training.latest(run, storage_options=s3)
    assert newest == f"{run}/checkpoint-1000"
    assert same(jsonckpt.load(newest, storage_options=s3), STATE)
    import fsspec

    fsspec.filesystem("s3", **s3).rm_file(f"bucket/run/checkpoint-1000/{shard}")
    with pytest.warns(RuntimeWarning, match="checkpoint-1000 is skipped.*missing"):
        assert training.latest(run, storage_options=s3) == f"{run}/checkpoint-200.json"
    assert training.latest(f"{run}/checkpoint-90", storage_options=s3) == f"{run}/checkpoint-90"
    unreachable = {**s3, "client_kwargs": {**s3["client_kwargs"], "endpoint_url": "http://[::1]:9"}}
    unreachable["config_kwargs"] = {"retries": {"max_attempts": 0}, "connect_timeout": 2}
    with pytest.raises(jsonckpt.JsonckptError):
        training.latest(run, storage_options=unreachable)


def test_an_interrupted_single_file_on_s3_leaves_the_old_one(
    s3: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "s3://bucket/interrupted/c.json"
    jsonckpt.save(STATE, url, storage_options=s3)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    # By then all is written, and nothing shows yet.
    monkeypatch.setattr("jsonckpt._src.save.plan.SavePlan.check_expansion", stop)
    with pytest.raises(KeyboardInterrupt):
        jsonckpt.save(NEW, url, storage_options=s3)
    assert same(jsonckpt.load(url, storage_options=s3), STATE)
