"""Arguments that cannot be: an error of ours that names them, whatever Python would say."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import training
from jsonckpt.convert import convert

STATE = {"w": torch.ones(3)}


@pytest.fixture
def room(tmp_path: Path) -> Path:
    jsonckpt.save(STATE, tmp_path / "ok")
    torch.save(STATE, tmp_path / "x.pt")
    for name in ("loop", "loop.json"):
        (tmp_path / name).symlink_to(tmp_path / name)
    return tmp_path


DOORS: dict[str, Callable[[Path, Any], object]] = {
    "save": lambda _, p: jsonckpt.save(STATE, p),
    "save_async": lambda _, p: jsonckpt.save_async(STATE, p).result(),
    "load": lambda _, p: jsonckpt.load(p),
    "load_into": lambda _, p: jsonckpt.load_into({"w": torch.zeros(3)}, p),
    "open": lambda _, p: jsonckpt.open(p),
    "stream": lambda _, p: list(jsonckpt.stream(p)),
    "verify": lambda _, p: jsonckpt.verify(p),
    "recover": lambda room, p: jsonckpt.recover(p, room / "r"),
    "recover to": lambda room, p: jsonckpt.recover(room / "ok", p),
    "gc": lambda _, p: jsonckpt.gc(p),
    "convert": lambda room, p: convert(p, room / "c.json"),
    "convert to": lambda room, p: convert(room / "x.pt", p),
    "convert spool": lambda room, p: convert(room / "x.pt", room / "d.json", spool=p),
    "checkpoints": lambda _, p: training.checkpoints(p),
}
NO_PATHS: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "int": lambda: 5,
    "dict": lambda: {"a": 1},
    "list": lambda: ["a"],
    "bytes": lambda: b"a",
    "NUL": lambda: "a\0b",
    "NUL.json": lambda: "a\0b.json",
    "surrogate": lambda: "\ud800.json",
    "text": lambda: io.StringIO("a"),
    "closed": lambda: _closed(),
}


def _closed() -> Any:
    with open(os.devnull, "rb") as stream:
        return stream


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("kind", NO_PATHS)
def test_what_is_no_path(room: Path, door: str, kind: str) -> None:
    if kind == "None" and door in ("convert to", "convert spool"):
        pytest.skip("means the default")
    with pytest.raises(jsonckpt.ArgumentError) as caught:
        DOORS[door](room, NO_PATHS[kind]())
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, TypeError)
    assert any(
        name in str(caught.value) for name in ("path", "out", "source", "spool", "directory")
    )
    assert not (room / "r").exists()


@pytest.mark.parametrize("door", [door for door in DOORS if door not in ("gc", "checkpoints")])
@pytest.mark.parametrize("path", ["loop", "loop.json", "loop/x", "loop/x.json"])
def test_links_that_lead_in_a_circle(room: Path, door: str, path: str) -> None:
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        DOORS[door](room, room / path)
    if door in ("save", "save_async"):
        assert "form a circle" in str(caught.value)
    with pytest.raises(jsonckpt.JsonckptError):
        convert(room / "x.pt", room / path, overwrite=True)
    assert (room / "loop").is_symlink()


@pytest.mark.parametrize("door", [door for door in DOORS if door != "checkpoints"])
@pytest.mark.parametrize("path", ["rel", "rel.json", "./rel.json"])
def test_a_working_directory_that_is_gone(
    room: Path, monkeypatch: pytest.MonkeyPatch, door: str, path: str
) -> None:
    (room / "gone").mkdir()
    monkeypatch.chdir(room / "gone")
    (room / "gone").rmdir()
    try:
        with pytest.raises(jsonckpt.JsonckptError) as caught:
            DOORS[door](room, path)
        if door in ("save", "save_async", "recover to", "convert to"):
            assert "the working directory of this process does not exist any more" in str(
                caught.value
            )
        with pytest.raises(jsonckpt.JsonckptError, match=r"working directory|no such file"):
            convert("x.pt")
        jsonckpt.save(STATE, room / "absolute.json")
    finally:
        os.chdir(room)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_shard_size", "9" * 400),
        ("max_shard_size", "9" * 60),
        ("max_shard_size", 10**400),
        ("max_shard_size", float("nan")),
        ("max_shard_size", float("inf")),
        ("max_shard_size", -1),
        ("max_shard_size", 0),
        ("max_shard_size", "5GBB"),
        ("max_shard_size", "nan"),
        ("max_shard_size", True),
        ("chunk_size", "9" * 400),
        ("chunk_size", "65MiB"),
        ("chunk_size", []),
        ("threads", "2"),
        ("threads", True),
        ("threads", 0),
        ("threads", 1.5),
        ("metadata", [1]),
        ("metadata", "ab"),
        ("metadata", {"a": object()}),
        ("metadata", {1: 2}),
        ("checksum", []),
        ("checksum", None),
        ("encoding", []),
        ("encoding", None),
        ("compression", 5),
        ("compression", []),
        ("compression_level", "3"),
        ("compression_level", True),
        ("compression_level", 23),
        ("filter", None),
        ("storage_options", 5),
    ],
    ids=lambda value: str(value)[:12],
)
def test_options_of_a_save(tmp_path: Path, name: str, value: Any) -> None:
    saves: list[Callable[..., Any]] = [jsonckpt.save, jsonckpt.save_async]
    for save in saves:
        with pytest.raises(jsonckpt.ArgumentError, match=name) as caught:
            save(STATE, tmp_path / "c", **{name: value})
        assert len(str(caught.value)) < 400
    assert not list(tmp_path.iterdir())


def test_sizes_are_exact() -> None:
    from jsonckpt._src.save.options import parse_size

    assert parse_size("9007199254740993", "x") == 9007199254740993
    assert parse_size("0.1GB", "x") == 100_000_000
    assert parse_size(str((1 << 63) - 1), "x") == (1 << 63) - 1


@pytest.mark.parametrize(
    "where",
    [
        "nonsense",
        "cuda:999",
        "cpu:-1",
        "",
        "\x1b[31m",
        {"cpu": "abacus"},
        3,
        [1],
        b"cpu",
        {"cpu": 5},
    ],
    ids=repr,
)
def test_map_location(room: Path, where: Any) -> None:
    with jsonckpt.open(room / "ok") as checkpoint:
        for read in (
            lambda: jsonckpt.load(room / "ok", where),
            lambda: list(jsonckpt.stream(room / "ok", where)),
            lambda: checkpoint["/w"].load(where),
        ):
            with pytest.raises(jsonckpt.ArgumentError, match="map_location") as caught:
                read()
            text = (
                where
                if isinstance(where, str)
                else next(iter(where.values()), "")
                if (isinstance(where, dict))
                else None
            )
            assert isinstance(caught.value, RuntimeError) == isinstance(text, str)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("threads", "2"),
        ("threads", True),
        ("threads", 0),
        ("limits", 5),
        ("limits", {}),
        ("storage_options", 5),
        ("expected_digest", 5),
    ],
)
def test_options_of_a_read(room: Path, name: str, value: Any) -> None:
    reads: list[Callable[..., Any]] = [
        jsonckpt.load,
        jsonckpt.open,
        jsonckpt.verify,
        lambda path, **options: jsonckpt.load_into({"w": torch.zeros(3)}, path, **options),
    ]
    for read in reads:
        with pytest.raises(jsonckpt.ArgumentError, match=name):
            read(room / "ok", **{name: value})


OTHERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "limits": ("tensors", lambda _: jsonckpt.Limits(tensors="x")),  # type: ignore[arg-type]
    "a negative limit": ("rank", lambda _: jsonckpt.Limits(rank=-1)),
    "save_id": ("save_id", lambda r: jsonckpt.recover(r / "ok", r / "z", save_id=5)),  # type: ignore[arg-type]
    "recover threads": ("threads", lambda r: jsonckpt.recover(r / "ok", r / "z", threads=0)),
    "weights_only": ("weights_only", lambda r: jsonckpt.load(r / "ok", weights_only=False)),
    "register": ("takes a class", lambda _: jsonckpt.register(5)),  # type: ignore[arg-type]
    "tag": ("tag", lambda _: jsonckpt.register(type("X", (), {}), 5, repr, repr)),  # type: ignore[arg-type]
    "to": ("to is", lambda r: convert(r / "x.pt", r / "y", to="xyz")),  # type: ignore[arg-type]
    "option": ("wings", lambda r: convert(r / "x.pt", r / "y", wings=2)),  # type: ignore[call-arg]
    "convert limits": ("limits", lambda r: convert(r / "x.pt", r / "y", limits=5)),  # type: ignore[arg-type]
    "order": ("n must", lambda _: training.SeededOrder("5")),  # type: ignore[arg-type]
    "advance": ("count", lambda _: training.SeededOrder(5).advance("1")),  # type: ignore[arg-type]
    "deadline": ("seconds", lambda _: training.Deadline("1")),  # type: ignore[arg-type]
    "no deadline": ("seconds", lambda _: training.Deadline(float("nan"))),
    "pattern": ("pattern", lambda r: training.checkpoints(r, "")),
    "absolute": ("pattern", lambda r: training.checkpoints(r, "/*")),
}
AGES: list[Any] = [None, "x", -1, float("nan"), [], "9" * 400 + "d", 10**400]


@pytest.mark.parametrize("age", AGES, ids=lambda age: str(age)[:8])
def test_ages(room: Path, age: Any) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match="age"):
        jsonckpt.gc(room / "ok", older_than=age)


@pytest.mark.parametrize("name", OTHERS)
def test_other_arguments(room: Path, name: str) -> None:
    said, act = OTHERS[name]
    with pytest.raises(jsonckpt.ArgumentError, match=said):
        act(room)


def test_numbers_of_numpy_are_numbers() -> None:
    order = training.SeededOrder(np.int64(5))
    order.advance(np.int64(2))
    assert len(order) == 3


def test_swapped_arguments(room: Path) -> None:
    save: Any = jsonckpt.save
    with pytest.raises(jsonckpt.ArgumentError, match="they are swapped"):
        save(str(room / "new"), STATE)
    with pytest.raises(jsonckpt.ArgumentError, match=r"load_into\(target, path\)"):
        jsonckpt.load_into(room / "ok", STATE)  # type: ignore[arg-type]


def test_file_objects(room: Path) -> None:
    stream = io.BytesIO()
    jsonckpt.save(STATE, stream)
    for read in (jsonckpt.load, lambda source: list(jsonckpt.stream(source))):
        with pytest.raises(jsonckpt.ArgumentError, match=r"seek\(0\)"):
            read(stream)
    stream.seek(0)
    assert torch.equal(jsonckpt.load(stream)["w"], STATE["w"])
    with pytest.raises(jsonckpt.FormatError, match="it is empty"):
        jsonckpt.load(io.BytesIO())
    with (room / "text.json").open("w") as text:
        for target in (io.StringIO(), text):
            with pytest.raises(jsonckpt.ArgumentError, match='"wb"'):
                jsonckpt.save(STATE, target)
    with (room / "text.json").open() as text, pytest.raises(jsonckpt.ArgumentError, match='"rb"'):
        jsonckpt.load(text)
