"""Limits: on every reading call, before memory is allocated; the writer obeys them, too."""

from __future__ import annotations

import dataclasses
import inspect
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from jsonckpt._src.format.limits import DEFAULT_LIMITS, Limits

ROOT = Path(__file__).parents[2]
READING = ["load", "load_into", "open", "stream", "verify", "recover", "gc"]
#: For each limit a state and options of a save that are just beyond it.
BEYOND: dict[str, tuple[Limits, dict[str, Any]]] = {
    "manifest_bytes": (Limits(manifest_bytes=300), {}),
    "tensors": (Limits(tensors=1), {}),
    "chunks": (Limits(chunks=2), {"chunk_size": 100}),
    "name_bytes": (Limits(name_bytes=10), {}),
    "rank": (Limits(rank=1), {}),
    "chunk_bytes": (Limits(chunk_bytes=1 << 19), {}),
    "depth": (Limits(depth=2), {}),
    "number_chars": (Limits(number_chars=5), {}),
    "total": (Limits(total_floor=0, expansion=0), {}),
    "zstd_window": (Limits(zstd_window=1), {"compression": "zstd"}),
}


def _state() -> dict[str, Any]:
    return {
        "model": {"weight.one": torch.zeros(600, 2), "weight.two": torch.ones(300)},
        "deep": [[[{}]]],
        "number": 1234567,
    }


def _into(path: Path, limits: Limits) -> None:
    jsonckpt.load_into(_state(), path, limits=limits)


def _pipe(path: Path, limits: Limits) -> Any:
    with path.open("rb") as file:
        return jsonckpt.load(file, limits=limits)


READERS: dict[str, Callable[[Path, Limits], Any]] = {
    "load": lambda path, limits: jsonckpt.load(path, limits=limits),
    "load_into": _into,
    "open": lambda path, limits: jsonckpt.open(path, limits=limits).load(),
    "stream": lambda path, limits: dict(jsonckpt.stream(path, limits=limits)),
    "pipe": _pipe,
}


@pytest.mark.parametrize("name", READING)
def test_every_reading_call_takes_limits(name: str) -> None:
    parameter = inspect.signature(getattr(jsonckpt, name)).parameters["limits"]
    assert parameter.default is None
    assert parameter.kind is inspect.Parameter.KEYWORD_ONLY


def test_limits_are_frozen_and_all_described() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_LIMITS.tensors = 1  # type: ignore[misc]
    documented = inspect.getdoc(Limits) or ""
    table = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for field in dataclasses.fields(Limits):
        assert field.name in documented
        assert f"`{field.name}`" in table


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("limit", BEYOND)
@pytest.mark.parametrize("container", ["c", "c.json"])
def test_every_limit_holds_for_every_reader(
    tmp_path: Path, container: str, limit: str, reader: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reader == "pipe" and container == "c":
        return
    limits, options = BEYOND[limit]
    path = tmp_path / container
    jsonckpt.save(_state(), path, **options)
    READERS[reader](path, Limits())  # the default lets it pass
    before_payloads = limit not in ("zstd_window",) and reader not in ("stream", "pipe")
    if before_payloads:
        for module in ("api", "checkpoint", "forward"):
            name = "allocate_targets" if module == "api" else "allocate_target"
            monkeypatch.setattr(f"jsonckpt._src.load.{module}.{name}", _allocated)
    with pytest.raises(jsonckpt.LimitError) as caught:
        READERS[reader](path, limits)
    assert "limit" in str(caught.value) or "deeper" in str(caught.value)
    if limit == "zstd_window":
        return
    report = jsonckpt.verify(path, limits=limits)
    assert [type(problem) for problem in report.problems] == [jsonckpt.LimitError]


def _allocated(*_: object) -> None:
    raise AssertionError("memory was allocated before the limit was applied")


# --- the writer -----------------------------------------------------------------------------------


@pytest.mark.parametrize("container", ["c", "c.json", "c.json.zst"])
def test_the_writer_writes_nothing_that_unfolds_too_far(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Limits(total_floor=1 << 20, expansion=10)
    zeros = {"w": torch.zeros(1 << 20)}
    path = tmp_path / container
    jsonckpt.save({"old": torch.ones(2)}, path)
    before = sorted(os.listdir(tmp_path))
    jsonckpt.save(zeros, tmp_path / "by default.json", compression="zstd")
    with pytest.raises(jsonckpt.LimitError):
        jsonckpt.load(tmp_path / "by default.json", limits=small)
    (tmp_path / "by default.json").unlink()
    monkeypatch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", small)
    with pytest.raises(jsonckpt.LimitError, match="Pass compression=None"):
        jsonckpt.save(zeros, path, compression="zstd")
    assert sorted(os.listdir(tmp_path)) == before
    assert list(jsonckpt.load(path)) == ["old"]


@pytest.mark.parametrize(
    ("limits", "options", "hint"),
    [
        (Limits(tensors=1), {}, "2 tensors; readers accept at most 1"),
        (Limits(chunks=2), {"chunk_size": 100}, "Pass a larger chunk_size"),
        (Limits(shards=1), {"max_shard_size": 100}, "Pass a larger max_shard_size"),
        (Limits(name_bytes=10), {}, "Use shorter keys"),
        (Limits(manifest_bytes=300), {}, "readers accept at most 300"),
        (Limits(depth=3), {}, "nested deeper than 2 levels"),
        (Limits(marks=150), {"chunk_size": 64}, "brackets and strings"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["c", "c.json", "c.json.zst"])
def test_the_writer_obeys(
    tmp_path: Path,
    limits: Limits,
    options: dict[str, Any],
    hint: str,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if limits.shards == 1 and name != "c":
        pytest.skip("a single file has no shards")
    monkeypatch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", limits)
    with pytest.raises(jsonckpt.LimitError, match=hint):
        jsonckpt.save(_state(), tmp_path / name, **options)
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("limits", [Limits(manifest_bytes=3_000), Limits(marks=200)], ids=str)
@pytest.mark.parametrize("name", ["c.json", "c.json.zst", None])
def test_the_index_of_a_single_file_obeys(
    tmp_path: Path, limits: Limits, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its head is small here; what readers would refuse stands at its end."""
    monkeypatch.setattr("jsonckpt._src.save.reader_limits.DEFAULT_LIMITS", limits)
    state = {"w": torch.zeros(8_000)}
    target: Any = io.BytesIO() if name is None else tmp_path / name
    with pytest.raises(jsonckpt.LimitError, match="readers accept at most"):
        jsonckpt.save(state, target, chunk_size=64)
    assert list(tmp_path.iterdir()) == []
    jsonckpt.save(state, target, chunk_size=16_000)


# --- memory ---------------------------------------------------------------------------------------

FORMULA = "12·M + T·(2·P + 4·C) + 2·P + C + 32 MiB"


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(
    ("container", "chunk_mib", "encoding", "compression"),
    [
        ("c.json", 8, "base64", "zstd"),
        ("c", 1, "list", "none"),
        ("c", 8, "base64", "none"),
        ("c.json.zst", 8, "base64", "none"),
    ],
)
def test_the_documented_bound_of_memory(
    container: str, chunk_mib: int, encoding: str, compression: str, tmp_path: Path
) -> None:
    """Chunks are large here, so that what is kept of each weighs more than what Python takes."""
    assert FORMULA in (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    child = subprocess.run(
        [sys.executable, "-m", "tests.bound_child", str(tmp_path), container, str(chunk_mib),
         encoding, compression],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr
    extra = json.loads(child.stdout)
    payload, manifest, chunk = extra.pop("payload"), extra.pop("manifest"), chunk_mib << 20
    bound = 12 * manifest + 2 * (2 * payload + 4 * chunk) + 2 * payload + chunk + (32 << 20)
    if encoding == "base64":
        assert bound < 24 * chunk  # a copy of the tensors would be found
    assert sorted(extra) == ["load", "load_into", "recover", "save", "stream", "verify"]
    over = {name: f"{size >> 20} MiB" for name, size in extra.items() if size > bound}
    assert not over, f"over {bound >> 20} MiB: {over}"
