"""Requests to a server whose answers are late, lost, cut, refused or wrong."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.object_server import ObjectServer
from tests.support import lacking, same, slow

OLD = {"w": torch.arange(400_000.0), "b": [torch.ones(3)], "epoch": 1}
NEW = {"w": torch.arange(400_000.0) + 1, "b": [torch.zeros(3)], "epoch": 2}
FAULTS = ["drop", "lost", "cut", "500", "503", "slow"]
OWN = {"connections": 4, "request_bytes": 300_000, "deadline": 20}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jsonckpt._src.remote.requests.FIRST_WAIT", 0.001)


@pytest.fixture
def server() -> Iterator[ObjectServer]:
    try:
        import aiohttp  # noqa: F401
        import fsspec  # noqa: F401
    except ImportError:
        lacking("aiohttp", "a web server is read through fsspec and aiohttp")
    with ObjectServer().running() as running:
        yield running


def put(server: ObjectServer, folder: Path, name: str, state: Any, **options: Any) -> str:
    """Save a checkpoint, serve it, and return its URL."""
    jsonckpt.save(state, folder / name, chunk_size="64KiB", **options)
    place = folder / name
    for file in [place] if place.is_file() else sorted(place.iterdir()):
        server.objects[f"/bucket/{file.relative_to(folder)}"] = file.read_bytes()
    return f"{server.url}/bucket/{name}"


def options(**own: Any) -> dict[str, Any]:
    return {"skip_instance_cache": True, "jsonckpt": {**OWN, **own}}


def nothing(_method: str, _path: str) -> None:
    """Spoil nothing."""


def at_times(faults: list[str], share: float, seed: int) -> Callable[[str, str], str | None]:
    """Spoil a share of the requests."""
    chance = random.Random(seed)
    return lambda *_: chance.choice(faults) if chance.random() < share else None


@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_spoiled_answers_are_asked_for_again(
    server: ObjectServer, tmp_path: Path, name: str
) -> None:
    url = put(server, tmp_path, name, OLD)
    server.fault = at_times(FAULTS, 0.3, 1)
    assert same(jsonckpt.load(url, storage_options=options()), OLD)
    assert [n for n, _ in jsonckpt.stream(url, storage_options=options())] == ["/w", "/b/0"]
    with jsonckpt.open(url, storage_options=options()) as checkpoint:
        assert checkpoint["/w"][3:5].tolist() == [3, 4]
    assert jsonckpt.verify(url, storage_options=options()).ok


def test_neighbours_share_requests_and_several_run_at_once(
    server: ObjectServer, tmp_path: Path
) -> None:
    url = put(server, tmp_path, "c", OLD)
    server.wait = 0.02
    state = jsonckpt.load(url, storage_options=options())
    assert same(state, OLD)
    assert 2 <= server.most_at_once <= 6
    server.requests.clear()
    server.sent = 0
    with jsonckpt.open(url, storage_options=options(request_bytes=1 << 20)) as checkpoint:
        before = server.sent
        assert checkpoint["/w"][100_000:200_000].tolist()[:1] == [100_000]
    # 400 kB of raw bytes in 7 chunks: one request for them, and not the whole file.
    assert server.counts()["GET"] <= 6
    assert server.sent - before < 900_000


def test_one_connection_sends_one_request_at_a_time(server: ObjectServer, tmp_path: Path) -> None:
    url = put(server, tmp_path, "c", OLD)
    assert same(jsonckpt.load(url, storage_options=options(connections=1), threads=1), OLD)
    assert server.most_at_once == 1


def test_a_server_that_never_answers_is_given_up(server: ObjectServer, tmp_path: Path) -> None:
    url = put(server, tmp_path, "c", OLD)
    for fault in ("drop", "500"):
        server.fault = lambda *_, fault=fault: fault
        server.requests.clear()
        with pytest.raises(jsonckpt.JsonckptError, match=r"attempts in") as caught:
            jsonckpt.load(url, storage_options=options())
        assert not isinstance(caught.value, jsonckpt.CheckpointNotFoundError)
        assert len(server.requests) <= 16
    # One that has answered before is asked until the deadline.
    server.fault = lambda method, path: "drop" if "shard" in path and method == "GET" else None
    with pytest.raises(jsonckpt.JsonckptError, match=r"[0-9]{2,} attempts in|[5-9] attempts in"):
        jsonckpt.load(url, storage_options=options(deadline=0.5))


def test_a_server_that_says_nothing_is_given_up(server: ObjectServer, tmp_path: Path) -> None:
    url = put(server, tmp_path, "c", OLD)
    server.wait = 3
    with pytest.raises(jsonckpt.JsonckptError, match=r"no answer within|Timeout"):
        jsonckpt.load(url, storage_options=options(deadline=0.3))
    server.wait = 0


def test_what_a_server_refuses_is_not_asked_again(server: ObjectServer, tmp_path: Path) -> None:
    url = put(server, tmp_path, "c", OLD)
    server.fault = lambda _, path: "403" if "shard" in path else None
    with pytest.raises(jsonckpt.JsonckptError, match="403"):
        jsonckpt.load(url, storage_options=options())
    assert len([line for line in server.requests if "shard" in line]) <= 4


@pytest.mark.parametrize("fault", ["whole", "shifted"])
def test_another_range_than_asked_for_is_noticed(
    server: ObjectServer, tmp_path: Path, fault: str
) -> None:
    url = put(server, tmp_path, "c", OLD)
    asked: list[str] = []

    def later(method: str, path: str) -> str | None:
        asked.append(path)
        return fault if "shard" in path and method == "GET" and asked.count(path) > 4 else None

    server.fault = later
    with pytest.raises(jsonckpt.JsonckptError, match=r"range.*Download"):
        jsonckpt.load(url, storage_options=options())


@pytest.mark.parametrize("etags", [True, False])
@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_checkpoint_that_is_replaced_while_it_is_read(
    server: ObjectServer, tmp_path: Path, name: str, etags: bool
) -> None:
    server.etags = etags
    new = put(server, tmp_path / "new", name, NEW)
    new_objects = dict(server.objects)
    server.objects.clear()
    url = put(server, tmp_path / "old", name, OLD)
    assert url == new
    asked = 0

    def replace(method: str, path: str) -> str | None:
        nonlocal asked
        asked += ("shard" in path or name.endswith("json")) and method == "GET"
        if asked == 4:
            server.objects.clear()
            server.objects.update(new_objects)
        return None

    with jsonckpt.open(url, storage_options=options()) as checkpoint:
        server.fault = replace
        if name == "c" or etags:
            with pytest.raises(jsonckpt.JsonckptError, match=r"overwritten since it was opened"):
                _ = [checkpoint["/w"][:] for _ in range(5)]
    server.objects.clear()
    put(server, tmp_path / "old2", name, OLD)
    asked = 0
    if name == "c" or etags:
        assert same(jsonckpt.load(url, storage_options=options()), NEW)


def test_the_size_in_an_answer_differs_from_the_one_before(
    server: ObjectServer, tmp_path: Path
) -> None:
    server.etags = False
    url = put(server, tmp_path, "c.json", OLD)
    with jsonckpt.open(url, storage_options=options()) as checkpoint:
        server.objects["/bucket/c.json"] += b"\n"
        with pytest.raises(jsonckpt.JsonckptError, match=r"replaced|overwritten|has .* bytes"):
            checkpoint["/w"][:]


def test_retry_after_is_waited_for() -> None:
    from jsonckpt._src.remote.faults import asked_wait, is_passing

    class Answer(Exception):
        status = 503
        headers = {"Retry-After": "7"}  # noqa: RUF012

    assert asked_wait(Answer()) == 7
    assert is_passing(Answer())
    Answer.headers = {"Retry-After": "soon"}
    assert asked_wait(Answer()) is None


@pytest.mark.parametrize(
    "own",
    [
        {"conections": 3},
        {"connections": 0},
        {"connections": "8"},
        {"connections": True},
        {"deadline": float("nan")},
        {"deadline": float("inf")},
        {"request_bytes": -1},
        3,
    ],
)
def test_options_that_are_wrong(own: Any) -> None:
    pytest.importorskip("fsspec")
    with pytest.raises(jsonckpt.ArgumentError, match="storage_options"):
        jsonckpt.load("memory://x/c", storage_options={"jsonckpt": own})


# --- S3 ---------------------------------------------------------------------------------------


@pytest.fixture
def s3(server: ObjectServer) -> dict[str, Any]:
    try:
        import s3fs  # noqa: F401
    except ImportError:
        lacking("moto", "S3 is read through s3fs")
    return {**server.s3_options, "jsonckpt": OWN}


@pytest.mark.parametrize("name", ["c", "c.json"])
def test_a_save_with_spoiled_answers(server: ObjectServer, s3: dict[str, Any], name: str) -> None:
    url = f"s3://bucket/run/{name}"
    big = {"w": torch.arange(3_000_000.0), "epoch": 1}
    jsonckpt.save(OLD, url, storage_options=s3)
    server.fault = at_times(["drop", "lost", "500", "503"], 0.2, 3)
    for state in (big, NEW):
        jsonckpt.save(state, url, storage_options=s3, max_shard_size=30_000_000)
        assert same(jsonckpt.load(url, storage_options=s3), state)
    server.fault = nothing
    assert not server.uploads
    assert len(server.objects) == (1 if name == "c.json" else 2)


def test_parts_of_an_upload_are_sent_at_once(server: ObjectServer, s3: dict[str, Any]) -> None:
    big = {"w": torch.arange(6_000_000.0)}
    server.wait, server.etags = 0.05, False
    jsonckpt.save(big, "s3://bucket/c", storage_options=s3)
    assert 2 <= server.most_at_once <= 6
    server.wait = 0
    assert same(jsonckpt.load("s3://bucket/c", storage_options=s3), big)


@pytest.mark.parametrize("fault", ["lost", slow("drop"), slow("403")])
@pytest.mark.parametrize("name", ["c", "c.json"])
def test_from_one_request_of_a_save_on_all_fail(
    server: ObjectServer, s3: dict[str, Any], name: str, fault: str
) -> None:
    """Old and new versions take turns; the old one or the new one loads."""
    url = f"s3://bucket/run/{name}"
    small = [{"w": torch.full((50,), float(i)), "epoch": i} for i in range(2)]
    jsonckpt.save(small[0], url, storage_options=s3)
    server.requests.clear()
    jsonckpt.save(small[1], url, storage_options=s3)
    count = len(server.requests)
    for at in range(count):
        server.fault = nothing
        jsonckpt.save(small[0], url, storage_options=s3)
        server.requests.clear()
        server.fault = lambda *_, at=at, fault=fault: (
            fault if len(server.requests) - 1 >= at else None
        )
        saved = False
        with suppress(jsonckpt.JsonckptError):
            jsonckpt.save(
                small[1],
                url,
                storage_options={**s3, "jsonckpt": {**OWN, "deadline": 0.02}},
            )
            saved = True
        server.fault = nothing
        found = jsonckpt.load(url, storage_options=s3)
        assert same(found, small[1]) or (not saved and same(found, small[0])), (fault, at)
