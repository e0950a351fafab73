"""Checkpoints behind URLs beside fsspec reading and writing the same bytes, in one run.

A web server (aiohttp) and an S3 server run in processes of their own on this machine. They can wait
before each answer, as servers that are far away do::

    python -m benchmarks.remote --mib 256 --rounds 3 --wait-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

import jsonckpt

_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


def serve_files(root: str, wait: float, ready: Any) -> None:
    """A web server for the files below a directory."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(wait)
        path = Path(root, request.path.lstrip("/"))
        if not path.is_file():
            return web.Response(status=404)
        size = path.stat().st_size
        if request.method == "HEAD":
            return web.Response(headers={"Content-Length": str(size), "Accept-Ranges": "bytes"})
        match = _RANGE.fullmatch(request.headers.get("Range", ""))
        if match is None:
            return web.FileResponse(path)
        start, stop = int(match[1]), min(int(match[2] or size - 1) + 1, size)
        with path.open("rb") as file:
            file.seek(start)
            data = file.read(stop - start)
        where = {"Content-Range": f"bytes {start}-{stop - 1}/{size}"}
        return web.Response(body=data, status=206, headers=where)

    async def run() -> None:
        app = web.Application()
        app.router.add_route("*", "/{tail:.*}", answer)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ready.send(runner.addresses[0][1])
        await asyncio.sleep(3_600)

    asyncio.run(run())


def serve_s3(wait: float, ready: Any) -> None:
    """An S3 server in memory, which sends as fast as a web server."""
    from tests.object_server import ObjectServer

    server = ObjectServer()
    server.etags = False  # a checksum for each request would be what is measured
    server.wait = wait
    with server.running():
        ready.send(int(server.url.rpartition(":")[2]))
        time.sleep(3_600)


def started(target: Callable[..., None], *args: Any) -> tuple[Any, int]:
    """A server in a process of its own, and its port."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=target, args=(*args, there), daemon=True)
    process.start()
    if not here.poll(60):
        raise TimeoutError("the server did not start")
    return process, int(here.recv())


def timed(what: Callable[[], object]) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    what()
    return time.perf_counter() - began


def compare(name: str, nbytes: int, rounds: int, calls: dict[str, Callable[[], object]]) -> None:
    """Time calls in turns, and print medians in MB/s of the first one's bytes."""
    seconds: dict[str, list[float]] = {label: [] for label in calls}
    for _ in range(rounds):
        for label, call in calls.items():
            seconds[label].append(timed(call))
    medians = {label: statistics.median(times) for label, times in seconds.items()}
    first = next(iter(medians.values()))
    for label, median in medians.items():
        rate = nbytes / median / 1e6
        print(f"{name:12} {label:34} {median:7.3f} s {rate:8.0f} MB/s {first / median:6.2f}x")


def options_for(base: dict[str, Any], connections: int) -> dict[str, Any]:
    """The storage options of a number of connections."""
    return {**base, "jsonckpt": {"connections": connections}}


def forward(url: str, options: dict[str, Any]) -> None:
    """Stream a checkpoint."""
    for _ in jsonckpt.stream(url, storage_options=options):
        pass


def readers(
    url: str, base: dict[str, Any], names: list[str], raw: dict[str, Any]
) -> dict[str, Callable[[], object]]:
    """What is compared on reading. The first is fsspec."""
    import fsspec

    fs, path = fsspec.core.url_to_fs(url, **raw)
    files = [f"{path}/{name}" for name in names]

    def all_at_once() -> None:
        fs.invalidate_cache()
        for file in files:
            fs.cat_file(file)

    def in_blocks() -> None:
        for file in files:
            with fs.open(file, "rb") as opened:
                while opened.read(4 << 20):
                    pass

    calls: dict[str, Callable[[], object]] = {"fsspec cat_file": all_at_once}
    calls["fsspec open, read 4 MiB"] = in_blocks
    for count in (1, 2, 4, 8):
        options = options_for(base, count)
        calls[f"load, {count} connections"] = partial(jsonckpt.load, url, storage_options=options)
    for count in (1, 8):
        options = options_for(base, count)
        calls[f"stream, {count} connections"] = partial(forward, url, options)
    return calls


def compare_s3(
    place: str, state: dict[str, torch.Tensor], nbytes: int, port: int, name: str, rounds: int
) -> None:
    """Write and read through s3fs."""
    import fsspec

    base = {
        "key": "x",
        "secret": "y",
        "client_kwargs": {"endpoint_url": f"http://127.0.0.1:{port}"},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    fs = fsspec.filesystem("s3", **base)

    def put() -> None:
        for file in sorted(Path(place).iterdir()):
            fs.put_file(str(file), f"bucket/raw/{file.name}")

    saves: dict[str, Callable[[], object]] = {"fsspec put_file": put}
    for count in (1, 2, 4, 8):
        save = partial(
            jsonckpt.save, state, "s3://bucket/c", storage_options=options_for(base, count)
        )
        saves[f"save, {count} connections"] = partial(save, max_shard_size=64_000_000)
    compare(f"s3 put {name}", nbytes, rounds, saves)
    names = [name.rpartition("/")[2] for name in fs.ls("bucket/c", refresh=True)]
    compare(f"s3 get {name}", nbytes, rounds, readers("s3://bucket/c", base, names, base))


def main() -> None:
    """Run all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wait-ms", type=float, default=20)
    args = parser.parse_args()
    state = {f"layer{i}": torch.randn(args.mib << 14) for i in range(16)}
    root = tempfile.mkdtemp()
    processes = []
    try:
        result = jsonckpt.save(state, f"{root}/c", max_shard_size=64_000_000)
        nbytes = sum((Path(root) / "c" / name).stat().st_size for name in result.files)
        for wait in (0.0, args.wait_ms / 1_000):
            process, port = started(serve_files, root, wait)
            processes.append(process)
            url = f"http://127.0.0.1:{port}/c"
            calls = readers(url, {}, list(result.files), {})
            compare(f"http {wait * 1e3:.0f} ms", nbytes, args.rounds, calls)
        for wait in (0.0, args.wait_ms / 1_000):
            process, port = started(serve_s3, wait)
            processes.append(process)
            compare_s3(f"{root}/c", state, nbytes, port, f"{wait * 1e3:.0f} ms", args.rounds)
    finally:
        for process in processes:
            process.kill()
            process.join()
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
