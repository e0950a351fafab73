"""``jsonckpt.integrations.dcp`` in one process: planners, storage, and what they refuse."""

from __future__ import annotations

import collections
import dataclasses
import io
import json
import os
import pickle
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException

import jsonckpt
from jsonckpt import (
    ArgumentError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    IntegrityError,
    JsonckptError,
    StateMismatchError,
    UnsupportedTypeError,
)
from jsonckpt._src.distributed.leaves import build, leaves_of
from jsonckpt._src.distributed.merge import RankResult, check_messages, merged_state
from jsonckpt._src.distributed.state import Place
from jsonckpt._src.format.model import Codec, Entry
from jsonckpt._src.save.write import WrittenPart
from tests.support import difference

dcp = pytest.importorskip("jsonckpt.integrations.dcp")
ALONE = "ignore:torch.distributed is disabled"


def state(fill: float) -> dict[str, Any]:
    """Nearly every kind of value and container."""
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(fill)
    shared = torch.full((3, 2), fill)
    last = torch.arange(16.0).mul(fill).reshape(1, 2, 2, 4)
    return {
        "model": module.state_dict(),
        "optimizer": {
            "state": {0: {"step": 3 * fill, "moment": torch.full((2,), fill)}, "0": 1, (1, 2): 4},
            "param_groups": [{"lr": torch.tensor(fill), "betas": (fill, 2), "params": [0, 1]}],
        },
        "empty": {"dict": {}, "list": [], "ordered": collections.OrderedDict()},
        "tuple": (fill, torch.full((1,), fill), {"in": None}),
        "$odd": {"$key": fill, "a.b": 1, "a/b": [1, {"c": fill}]},
        "arrays": [np.ones(2) * fill, np.arange(3) * int(fill)],
        "rng": ("MT19937", np.arange(5, dtype=np.uint32) * int(fill), 3),
        "sparse": torch.eye(3).mul(fill).to_sparse(),
        "shared": shared,
        "tied": shared,
        "parameter": torch.nn.Parameter(torch.full((2,), fill)),
        "channels_last": last.to(memory_format=torch.channels_last),
        "bool": torch.tensor([True, False]),
        "half": torch.full((3,), fill, dtype=torch.bfloat16),
        "bytes": b"1",
        "default": collections.defaultdict(list, {"x": [fill]}),
        "nan": float("nan"),
    }


def test_every_value_comes_back_as_jsonckpt_saves_it(tmp_path: Path) -> None:
    dcp.save(state(2.0), tmp_path / "c")
    assert difference(jsonckpt.load(tmp_path / "c"), state(2.0)) is None


@pytest.mark.parametrize("name", ["dcp", "directory", "file.json", "file.json.zst"])
def test_any_checkpoint_loads_into_a_state(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    (dcp.save if name == "dcp" else jsonckpt.save)(state(3.0), path)
    target = state(1.0)
    moment = target["optimizer"]["state"][0]["moment"]
    dcp.load(target, path)
    assert difference(target, state(3.0)) is None
    assert target["optimizer"]["state"][0]["moment"] is moment


def test_placeholders_take_what_is_there(tmp_path: Path) -> None:
    saved = {"a": {"b": 1, "c": {2: [3]}}, "d": [{"e": 1}], "w": torch.ones(2)}
    dcp.save(saved, tmp_path / "c")
    target: dict[str, Any] = {"a": None, "d": 0, "w": torch.zeros(2)}
    dcp.load(target, tmp_path / "c")
    assert difference(target, saved) is None
    with pytest.raises(StateMismatchError) as caught:
        dcp.load({"a": None, "d": 0, "w": None}, tmp_path / "c")
    assert "/w" in caught.value.mismatched[0]


def test_what_does_not_fit_is_listed_and_nothing_is_changed(tmp_path: Path) -> None:
    saved = {"a": torch.ones(2), "b": torch.ones(3), "c": 1, "d": torch.ones(1), "e": 2}
    dcp.save(saved, tmp_path / "c")
    target: dict[str, Any] = {
        "a": torch.zeros(2, 1),
        "b": torch.zeros(3, dtype=torch.float64),
        "c": torch.zeros(1),
        "d": 5,
        "f": {"g": 1},
    }
    with pytest.raises(StateMismatchError) as caught:
        dcp.load(target, tmp_path / "c")
    assert caught.value.missing == ["/f/g"]
    assert [text.partition(":")[0] for text in caught.value.mismatched] == ["/a", "/b", "/c", "/d"]
    assert not target["b"].any()
    with pytest.raises(StateMismatchError) as caught:
        dcp.load({"a": torch.zeros(2), "c": 0}, tmp_path / "c")
    assert caught.value.unexpected == ["/b", "/d", "/e"]
    part = {"a": torch.zeros(2, dtype=torch.float64), "new": 7}
    dcp.load(part, tmp_path / "c", strict=False, cast=True, allow_partial_load=True)
    assert difference(part, {"a": torch.ones(2, dtype=torch.float64), "new": 7}) is None


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_torch_builds_a_state_of_tensors_from_the_names(tmp_path: Path) -> None:
    _load_from_keys = getattr(state_dict_loader, "_load_state_dict_from_keys", None)
    if _load_from_keys is None:
        pytest.skip("this torch does not have it")
    model = torch.nn.Linear(2, 3)
    moments = {"a.b": [torch.ones(2), torch.zeros(1)], 0: {"m": torch.ones(3)}}
    jsonckpt.save({"model": model.state_dict(), "optimizer": moments, "n": 1}, tmp_path / "c")
    path = tmp_path / "c"
    found = _load_from_keys("model", storage_reader=dcp.JsonStorageReader(path))
    assert difference(found, {"model": dict(model.state_dict())}) is None
    found = _load_from_keys("optimizer", storage_reader=dcp.JsonStorageReader(path))
    expected = {"a.b": moments["a.b"], "0": moments[0]}  # as torch has keys that are numbers
    assert difference(found, {"optimizer": expected}) is None
    with pytest.raises(CheckpointException, match="unpickles such values"):
        _load_from_keys(storage_reader=dcp.JsonStorageReader(path))


def test_views_of_a_checkpoint_of_one_process(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    saved = {"base": base, "row": base[1], "columns": base[:, 1:3], "flat": base.view(-1)}
    jsonckpt.save(saved, tmp_path / "c")
    target = {name: torch.zeros_like(value) for name, value in saved.items()}
    dcp.load(target, tmp_path / "c")
    assert all(torch.equal(target[name], value) for name, value in saved.items())


def test_options_of_a_save(tmp_path: Path) -> None:
    path = tmp_path / "c"
    big = torch.zeros(10_000)
    options = {"encoding": "list", "compression": "zstd", "checksum": "sha256", "chunk_size": 4096}
    dcp.save({"w": big, "v": big + 1}, path, metadata={"run": 1}, max_shard_size=8192, **options)
    assert len(list(path.glob("shard-*.json.zst"))) == 2
    assert jsonckpt.open(path).metadata == {"run": 1}
    with pytest.raises(CheckpointExistsError):
        dcp.save({"w": big}, path, overwrite=False)
    before = set(path.iterdir())
    dcp.save({"w": big}, path, with_reader=True)
    assert jsonckpt.load(path).keys() == {"w"}
    assert not before & set(path.glob("shard-*"))
    assert (path / "jsonckpt_reader.py").exists()
    target = {"w": torch.ones(10_000)}
    dcp.load(target, path, verify=False, threads=1)
    assert not target["w"].any()


@pytest.mark.parametrize("path", ["c.json", "c.json.zst", ""])
def test_paths_that_are_not_directories_are_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError):
        dcp.save({"a": 1}, str(tmp_path / path) if path else path)
    assert not list(tmp_path.iterdir())


def test_a_value_that_no_rule_covers_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedTypeError, match="/a/f"):
        dcp.save({"a": {"f": object()}, "w": torch.ones(1)}, tmp_path / "c")
    assert not list(tmp_path.iterdir())


def test_errors_of_a_load_are_those_of_jsonckpt(tmp_path: Path) -> None:
    with pytest.raises(CheckpointNotFoundError):
        dcp.load({"a": 1}, tmp_path / "none")
    dcp.save({"w": torch.ones(1000)}, tmp_path / "c")
    (shard,) = (tmp_path / "c").glob("shard-*")
    text = bytearray(shard.read_bytes())
    at = text.index(b"gD8AAIA/")
    text[at] ^= 1
    shard.write_bytes(text)
    with pytest.raises(IntegrityError):
        dcp.load({"w": torch.zeros(1000)}, tmp_path / "c")


@pytest.mark.filterwarnings(ALONE)
def test_nothing_is_ever_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("a pickle was read or written")

    for module, names in ((torch, ("save", "load")), (pickle, ("load", "loads", "dump", "dumps"))):
        for name in names:
            monkeypatch.setattr(module, name, refuse)
    dcp.save(state(2.0), tmp_path / "c")
    target = state(1.0)
    dcp.load(target, tmp_path / "c")
    assert difference(target, state(2.0)) is None
    # torch's own planners would unpickle values.
    with pytest.raises(CheckpointException, match="JsonLoadPlanner"):
        state_dict_loader.load({"bytes": b""}, storage_reader=dcp.JsonStorageReader(tmp_path / "c"))
    with pytest.raises(CheckpointException, match="JsonSavePlanner"):
        state_dict_saver.save({"a": 1}, storage_writer=dcp.JsonStorageWriter(tmp_path / "d"))
    assert not (tmp_path / "d").exists()


def test_a_planner_takes_json_of_another_storage_and_no_pickle() -> None:
    class Item:
        class dest_index:
            fqn = "a"

    planner = dcp.JsonLoadPlanner()
    planner.original_state_dict, planner._places = {"a": 0}, {"a": Place(("a",))}
    planner.load_bytes(Item, io.BytesIO(b'{"$tuple":[1,2]}'))
    assert planner.original_state_dict == {"a": (1, 2)}
    with pytest.raises(ValueError, match=r"Expecting value|utf"):
        planner.load_bytes(Item, io.BytesIO(pickle.dumps(3)))


@pytest.mark.filterwarnings(ALONE)
def test_one_writer_and_reader_for_several_checkpoints(tmp_path: Path) -> None:
    writer, reader = dcp.JsonStorageWriter(tmp_path / "0"), dcp.JsonStorageReader(tmp_path / "0")
    for number in range(2):
        path = tmp_path / str(number)
        saved = {"w": torch.full((2,), float(number)), "n": number}
        found = state_dict_saver.save(
            saved, checkpoint_id=path, storage_writer=writer, planner=dcp.JsonSavePlanner()
        )
        assert found.storage_meta.save_id == writer.result.save_id
        assert writer.result.tensors == 1
        target = {"w": torch.zeros(2), "n": -1}
        state_dict_loader.load(
            target, checkpoint_id=path, storage_reader=reader, planner=dcp.JsonLoadPlanner()
        )
        assert difference(target, saved) is None


def test_a_remote_directory(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    for url in ("memory://dcp/run", f"file://{tmp_path}/run"):
        dcp.save(state(2.0), url)
        target = state(1.0)
        dcp.load(target, url)
        assert difference(target, state(2.0)) is None


def test_a_save_of_nothing(tmp_path: Path) -> None:
    dcp.save({}, tmp_path / "c")
    assert jsonckpt.load(tmp_path / "c") == {}
    dcp.load({}, tmp_path / "c")


@pytest.mark.parametrize(
    "value",
    [{}, [], 1, {"a": {}}, {"a": [1, {"$tensor": "/a/1"}]}, {"$dict": [[0, {"$tensor": "/0"}]]},
     {"$dict": []}, {"$tuple": [{"$tensor": "/0"}, 5]}, {"a": {"$dict": [[10**30, 1]]}},
     {"$ordered_dict": {"items": {"w": {"$tensor": "/w"}}, "metadata": {"": 1}}},
     {"$defaultdict": {"factory": "list", "items": [[1, 2]]}}],
)  # fmt: skip
def test_leaves_build_the_state_they_were_taken_from(value: Any) -> None:
    leaves = [(leaf.path, leaf.json) for leaf in leaves_of(value)]
    assert difference(build(leaves), value) is None


W = {"$tensor": "/w"}
DEEP: Any = W
for _ in range(150):
    DEEP = [DEEP, 1]


@pytest.mark.parametrize(
    "forged",
    [[1], "text", None, W, {"w": {"$tensor": 5}}, {"w": {"$tensor": "/none"}}, {"w": {"$tied": W}},
     {"w": {"$tied": {"name": "/v", "of": "/none"}}}, {"w": {"$ordered_dict": {}}},
     {"w": {"$ordered_dict": {"items": [1]}}}, {"w": {"$dict": [1]}}, {"w": {"$dict": [[W, 1]]}},
     {"w": {"$dict": [[[], 1]]}}, {"w": {"$parameter": {"data": W}}}, {"w": {"$parameter": 5}},
     {"w": {"$parameter": {"data": {"$parameter": {"data": W}}}}}, {"w": {"$regions": {}}},
     {"w": {"$regions": {"name": "/w", "dtype": "float32", "shape": [2], "parts": []}}},
     {"w": {"$view": {"name": "/v", "of": "/w", "dtype": "float32", "shape": [9], "stride": [1],
                      "offset": 0}}},
     {"w": {"$unknown": 1}}, {"w": {"$tuple": W}}, {"w": {"$defaultdict": {"items": {}}}},
     {"w": {"$defaultdict": {"factory": "exec", "items": {"a": W}}}}, {"w": DEEP},
     {"w": {"$ndarray": W}}, {"w": {"$dict": [["x", W], ["x", W]]}}],
    ids=str,
)  # fmt: skip
def test_forged_states_are_refused_with_an_error_of_ours(forged: Any, tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "c")
    manifest = tmp_path / "c" / "manifest.json"
    text = json.loads(manifest.read_text())
    manifest.write_text(json.dumps({**text, "state": forged, "seal": None}))
    for target in ({"w": torch.zeros(2)}, {"w": None}, {"w": {"a": 1}}, {"w": [torch.zeros(2)]}):
        before = repr(target)
        with suppress(JsonckptError):  # anything else fails this test
            dcp.load(target, tmp_path / "c")
            assert repr(target) != before


@pytest.mark.parametrize(
    "leaves",
    [[(("a",), 1), (("a", "b"), 2)], [(("a", 0), 1), (("a", "b"), 2)], [(("a", 1), 1)],
     [((), 1), (("a",), 2)]],
)  # fmt: skip
def test_leaves_that_do_not_fit_are_refused(leaves: Any) -> None:
    with pytest.raises(StateMismatchError):
        build(leaves)


def _rank(rank: int, *boxes: tuple[tuple[int, ...], tuple[int, ...]]) -> RankResult:
    """What a rank says that it has written of the tensor ``w``."""
    codec = Codec("base64", "none", "none", 1 << 20)
    regions, entries = {}, []
    for offset, shape in boxes:
        name = f"$region/{','.join(map(str, offset))}/w"
        entries.append(Entry(name, "float32", shape, "cpu", codec, 4, 0, 0, 0, ()))
        regions[name] = ("w", offset)
    part = WrittenPart(rank, f"{rank:032x}", "xxh3_128", (), tuple(entries))
    return RankResult(part, regions, {})


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([_rank(0, ((0,), (2,)))], "not the whole"),
        ([_rank(0, ((0,), (2,))), _rank(1, ((0,), (2,)))], "ranks 0 and 1"),
        ([_rank(0, ((0,), (3,))), _rank(1, ((2,), (2,)))], "not the whole"),
        ([_rank(0)], "no rank wrote"),
    ],
)
def test_a_message_that_is_lost_or_comes_twice_is_noticed(
    ranks: list[RankResult], words: str
) -> None:
    class Facts:
        size = torch.Size([4])

    place = Place(("w",), '{"$tensor":"/w"}')
    with pytest.raises(jsonckpt.WriteError, match=words):
        merged_state({"w": place}, {"w": Facts}, ranks)


def test_a_background_save_without_a_group(tmp_path: Path) -> None:
    for number in range(2):
        w = torch.full((2,), float(number))
        future = dcp.async_save({"w": w, "n": number}, tmp_path / str(number))
        w.fill_(9)
    future.result()
    for number in range(2):
        found = jsonckpt.load(tmp_path / str(number))
        assert difference(found, {"w": torch.full((2,), float(number)), "n": number}) is None


@pytest.mark.parametrize(
    ("ranks", "tokens"), [([0], "a"), ([0, 0], "aa"), ([0, 1, 1], "aaa"), ([1, 0], "ab")]
)
def test_messages_of_other_saves_and_of_no_rank_are_refused(ranks: list[int], tokens: str) -> None:
    sent = [dataclasses.replace(_rank(rank), token=one) for rank, one in zip(ranks, tokens)]
    with pytest.raises(jsonckpt.WriteError, match="save"):
        check_messages(sent, "a", 2)
    check_messages([dataclasses.replace(_rank(rank), token="a") for rank in (1, 0)], "a", 2)


def test_threads_are_shared_by_the_ranks_of_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonckpt._src.distributed import writer

    monkeypatch.setattr(writer, "default_threads", lambda: 8)
    for local, expected in (("4", 2), ("16", 1), ("0", 8), ("x", 8)):
        monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", local)
        assert writer._share_of_threads() == expected
