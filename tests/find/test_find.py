"""``jsonckpt.find``: every checkpoint below a directory, the newest whole one first."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import training
from jsonckpt._src.find import walk, zstd_frames
from jsonckpt._src.find.look import look_at, options_for
from jsonckpt._src.find.numbers import numbers_in_state
from jsonckpt._src.find.walk import METADATA_NAMES, Place

GUIDE = Path(__file__).parents[1] / "data" / "guide_checkpoint.json"


def make(path: Path, **state: Any) -> Path:
    jsonckpt.save({"model": {"w": torch.ones(300)}, **state}, path)
    return path


def kaggle_input(root: Path) -> dict[str, Path]:
    """Both mounts of data sets, and the output of a notebook, with what uploads bring along."""
    places = {
        "old mount": make(root / "text-gen-checkpoint", step=500, epoch=1),
        "new mount": make(root / "datasets" / "me" / "text-gen-checkpoint-2", step=600),
        "notebook": make(root / "notebooks" / "me" / "train" / "checkpoint_epoch1.json", step=550),
    }
    for place in places.values():
        folder = place if place.is_dir() else place.parent
        for name in METADATA_NAMES:
            (folder / name).write_text('{"id": "me/text-gen-checkpoint", "title": "Text"}')
        (folder / "training_history.json").write_text('{"train_loss": [5.1, 4.2, 3.3]}')
    return places


def test_both_mounts_of_kaggle_are_searched(tmp_path: Path) -> None:
    places = kaggle_input(tmp_path)
    found = jsonckpt.find(tmp_path)
    assert [one.path for one in found] == [
        places["new mount"], places["notebook"], places["old mount"],
    ]  # fmt: skip
    assert [(one.kind, one.step, one.epoch, one.valid) for one in found] == [
        ("directory", 600, None, True),
        ("file", 550, 1, True),
        ("directory", 500, 1, True),
    ]
    assert found.newest is found[0]
    assert repr(found[2]).startswith(f"<FoundCheckpoint {found[2].path}: directory, step 500, ")
    assert found.newest.saved_at is not None
    assert found.newest.bytes == sum(
        file.stat().st_size
        for file in places["new mount"].iterdir()
        if file.name == "manifest.json" or file.name.startswith("shard-")
    )
    assert jsonckpt.load(found.newest)["step"] == 600
    assert training.latest(tmp_path) == places["new mount"]


def test_each_of_the_two_mounts_alone(tmp_path: Path) -> None:
    places = kaggle_input(tmp_path)
    for name, below in (("old mount", "text-gen-checkpoint"), ("new mount", "datasets")):
        newest = jsonckpt.find(tmp_path / below).newest
        assert newest is not None
        assert newest.path == places[name]
    one = jsonckpt.find(places["notebook"])
    assert [item.path for item in one] == [places["notebook"]]


def test_the_step_in_the_state_beats_the_one_in_the_name(tmp_path: Path) -> None:
    make(tmp_path / "checkpoint_epoch1", step=500, epoch=1)
    newest = make(tmp_path / "checkpoint_step0600.json", step=600)
    make(tmp_path / "checkpoint_step0900.json", step=90)
    found = jsonckpt.find(tmp_path)
    assert [one.step for one in found] == [600, 500, 90]
    assert training.latest(tmp_path) == newest


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"step": 5, "epoch": 2}, (5, 2)),
        ({"global_step": 7, "step": 3}, (7, None)),
        ({"trainer": {"global_step": 9, "epoch": 1}}, (9, 1)),
        ({"progress": {"iteration": 4}, "epoch": 8}, (4, 8)),
        ({"step": np.int64(6)}, (6, None)),
        ({3: "x", "step": 5}, (5, None)),
        ({"step": 5.5, "epoch": True}, (None, None)),
        ({"optimizer": {"step": 12}}, (None, None)),
        ({"step": torch.tensor(5)}, (None, None)),
    ],
)
@pytest.mark.parametrize("name", ["run", "run.json", "run.json.zst"])
def test_where_step_and_epoch_come_from(
    tmp_path: Path, name: str, state: Any, expected: tuple[Any, Any]
) -> None:
    jsonckpt.save({**state, "w": torch.ones(2)}, tmp_path / name)
    (one,) = jsonckpt.find(tmp_path)
    assert (one.step, one.epoch) == expected


@pytest.mark.parametrize(
    "tree", [None, 5, [], {"$dict": 5}, {"$dict": [[1], [[], 2]]}, {"$ordered_dict": []}]
)
def test_any_tree_has_numbers_or_none(tree: Any) -> None:
    assert numbers_in_state(tree, {"trainer": tree, "step": {"$scalar": tree}}) == (None, None)


def test_the_metadata_says_it_where_the_state_does_not(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "run", metadata={"step": 3, "epoch": 1})
    (one,) = jsonckpt.find(tmp_path)
    assert (one.step, one.epoch) == (3, 1)


def test_equal_steps_are_sorted_by_time_and_the_best_comes_last(tmp_path: Path) -> None:
    for name in ("a.json", "best_model.json", "b.json"):
        make(tmp_path / name, step=5)
        head, _, rest = (tmp_path / name).read_bytes().partition(b'"created_at":"')
        second = b"1" if name == "b.json" else b"2"
        text = head + b'"created_at":"2026-11-27T10:00:0' + second + b"Z" + rest[20:]
        (tmp_path / name).write_bytes(text)
    assert [one.name for one in jsonckpt.find(tmp_path)] == ["a.json", "best_model.json", "b.json"]


def harm(path: Path, way: str) -> None:
    """Make a checkpoint what a save, a copy or an upload that did not finish leaves."""
    if path.is_dir():
        (shard,) = path.glob("shard-*")
        if way == "gone":
            shard.unlink()
        elif way == "no manifest":
            (path / "manifest.json").unlink()
        elif way == "manifest":
            text = (path / "manifest.json").read_bytes()
            (path / "manifest.json").write_bytes(text[: len(text) // 2])
        else:
            shard.write_bytes(shard.read_bytes()[:-1])
    else:
        path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize(
    ("name", "way"),
    [
        ("run-2", "cut"),
        ("run-2", "gone"),
        ("run-2", "no manifest"),
        ("run-2", "manifest"),
        ("run-2.json", "cut"),
        ("run-2.json.zst", "cut"),
    ],
)
def test_a_torn_one_is_named_and_passed_over(tmp_path: Path, name: str, way: str) -> None:
    good = make(tmp_path / "run-1", step=1)
    torn = make(tmp_path / name, step=2)
    harm(torn, way)
    found = jsonckpt.find(tmp_path)
    assert [one.path for one in found] == [good, torn]
    assert found.newest is found[0]
    assert [one.path for one in found.torn] == [torn]
    assert found[1].problem
    assert repr(found[1]).startswith(f"<FoundCheckpoint {torn}: ")
    assert ", torn: " in repr(found[1])
    assert not found[1].valid
    assert "1 torn" in repr(found)
    with pytest.warns(RuntimeWarning, match=f"{name} is skipped: "):
        assert training.latest(tmp_path) == good


@pytest.mark.parametrize("name", ["run.json", "run.json.zst"])
def test_a_file_cut_anywhere_is_never_whole(tmp_path: Path, name: str) -> None:
    text = make(tmp_path / name, step=2).read_bytes()
    place = Place(tmp_path / name, name, False, 0.0)
    options = options_for(None, None)
    whole = look_at(place, options)
    assert whole is not None
    assert whole.valid
    for length in range(len(text)):
        (tmp_path / name).write_bytes(text[:length])
        one = look_at(place, options)
        assert one is None or not one.valid, length


def test_a_manifest_cut_anywhere_is_never_whole(tmp_path: Path) -> None:
    run = make(tmp_path / "run", step=2)
    text = (run / "manifest.json").read_bytes()
    for length in range(len(text) - 1):
        (run / "manifest.json").write_bytes(text[:length])
        (one,) = jsonckpt.find(run)
        assert one.torn, length


@pytest.mark.parametrize("name", ["run.json", "run.json.zst", "run"])
def test_a_changed_byte_raises_nothing(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, step=2)
    file = path / "manifest.json" if path.is_dir() else path
    text = file.read_bytes()
    for at in range(0, len(text), 7):
        file.write_bytes(text[:at] + bytes([text[at] ^ 0x15]) + text[at + 1 :])
        assert len(jsonckpt.find(tmp_path)) <= 1


def test_several_frames_are_followed(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    text = make(tmp_path / "run.json", step=2).read_bytes()
    packed = [zstandard.ZstdCompressor().compress(part) for part in (text[:99], text[99:])]
    (tmp_path / "run.json").unlink()
    (tmp_path / "run.json.zst").write_bytes(b"".join(packed))
    (one,) = jsonckpt.find(tmp_path)
    assert one.valid
    (tmp_path / "run.json.zst").write_bytes(b"".join(packed)[:-1])
    (one,) = jsonckpt.find(tmp_path)
    assert "ends inside a zstd frame" in str(one.problem)


def test_edited_files_are_whole(tmp_path: Path) -> None:
    path = make(tmp_path / "run.json", step=2)
    edited = {**json.loads(path.read_text()), "seal": None}
    edited["state"]["step"] = 3
    path.write_text(json.dumps(edited, indent=2))
    (one,) = jsonckpt.find(tmp_path)
    assert (one.valid, one.step) == (True, 3)
    del edited["seal"]
    path.write_text(json.dumps(edited, indent=2))
    (one,) = jsonckpt.find(tmp_path)
    assert one.torn
    assert "seal" in str(one.problem)


def test_files_of_other_programs_are_convertible(tmp_path: Path) -> None:
    newest = make(tmp_path / "run", step=1)
    shutil.copy(GUIDE, tmp_path / "checkpoint_epoch1_step6500.json")
    torch.save({"w": torch.ones(2)}, tmp_path / "checkpoint_epoch2_step7000.pt")
    np.savez(tmp_path / "weights.npz", w=np.ones(2))
    (tmp_path / "plain.json").write_text('{"layer.weight": [[0.25, -1], [2, 1e-3]]}')
    (tmp_path / "config.json").write_text('{"n_layer": 2, "architectures": ["GPT2"]}')
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 1}}, "merges": []}')
    (tmp_path / "history.json").write_text('{"train_loss": [5.1, 4.2], "lr": [0.1, 0.2]}')
    unpacked = tmp_path / "best"
    with subprocess.Popen(
        [sys.executable, "-m", "zipfile", "-e", "checkpoint_epoch2_step7000.pt", "."], cwd=tmp_path
    ) as process:
        assert process.wait() == 0
    (tmp_path / "checkpoint_epoch2_step7000").rename(unpacked)
    found = jsonckpt.find(tmp_path)
    assert [one.path for one in found.valid] == [newest]
    assert {one.name: one.kind for one in found.convertible} == {
        "checkpoint_epoch2_step7000.pt": "PyTorch file",
        "checkpoint_epoch1_step6500.json": "JSON number lists",
        "weights.npz": "NumPy archive",
        "plain.json": "JSON number lists",
        "best": "unpacked PyTorch file",
    }
    assert found.convertible[0].step == 7000
    assert not found.torn
    assert found[0].path == newest  # ours first


def test_one_json_list_of_any_dialect_is_convertible(tmp_path: Path) -> None:
    dialects = [
        '{"w": {"data": [1.0, 2.0], "shape": [2], "dtype": "float32"}}',
        '{"w": {"shape": [2], "dtype": "torch.float32", "data": [1, 2]}}',
        '{"w": {"__tensor__": true, "dtype": "float32", "data": [1]}}',
        '{"w": {"_type": "tensor", "values": [0.5]}}',
        '{"w": {"type": "torch.Tensor", "data": [[-1e-5]]}}',
        '{"w": {"__ndarray__": [1.0], "dtype": "float64", "shape": [1]}}',
        '{"w": {"py/object": "numpy.ndarray", "values": [1]}}',
        '{"w": {"@module": "torch", "@class": "Tensor", "dtype": "torch.FloatTensor"}}',
        '{"state_dict": {"fc.bias": [0.1, 0.2]}}',
    ]
    for number, text in enumerate(dialects):
        (tmp_path / f"{number}.json").write_text(text)
    assert len(jsonckpt.find(tmp_path).convertible) == len(dialects)


def test_the_walk_is_bounded_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "a" / "run", step=1)
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    found = jsonckpt.find(tmp_path)
    assert [one.name for one in found] == ["run"]
    assert len(found.unread) == 1
    assert "circle: cannot open" in found.unread[0]
    monkeypatch.setattr(walk, "DEEPEST", 1)
    found = jsonckpt.find(tmp_path)
    assert not found.items
    assert any("1 levels deep" in said for said in found.unread)
    monkeypatch.undo()
    monkeypatch.setattr(walk, "MOST_ENTRIES", 3)
    found = jsonckpt.find(tmp_path)
    assert any("the search stopped here, after 3 files" in said for said in found.unread)


def test_a_link_to_a_checkpoint_is_not_listed_twice(tmp_path: Path) -> None:
    newest = make(tmp_path / "run-600", step=600)
    (tmp_path / "latest").symlink_to(newest)
    assert [one.path for one in jsonckpt.find(tmp_path)] == [newest]
    assert [one.path for one in jsonckpt.find(tmp_path, "*")] == [newest]
    assert [one.step for one in jsonckpt.find(tmp_path / "latest")] == [600]


def frame(*blocks: bytes, descriptor: int = 0x20, rest: bytes = b"\x05") -> bytes:
    return b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + rest + b"".join(blocks)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty|ends inside"),
        (frame(), "ends inside"),
        (frame(b"\x07\x00\x00"), "damaged|zstd"),
        (frame(b"\xff\xff\xff"), "damaged|ends inside|zstd"),
        (frame(b"\x01\x00\x00", rest=b"\x00") + b"x", "zstd|checkpoint|ends"),
        (frame(b"\x00\x00\x00" * 50, rest=b"\x00"), "zstd|ends"),
        (frame(b"\x01\x00\x00", descriptor=0x00, rest=b"\xf8"), "window|zstd"),
    ],
)
def test_hostile_frames_are_torn(tmp_path: Path, data: bytes, said: str) -> None:
    (tmp_path / "checkpoint_1.json.zst").write_bytes(data)
    (one,) = jsonckpt.find(tmp_path)
    assert one.torn
    assert re.search(said, str(one.problem))


def test_where_blocks_are_too_many_the_text_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = make(tmp_path / "run.json.zst", step=1)
    monkeypatch.setattr(zstd_frames, "_MOST_BLOCKS", 0)
    (one,) = jsonckpt.find(tmp_path)
    assert one.valid
    path.write_bytes(path.read_bytes()[:-1])
    (one,) = jsonckpt.find(tmp_path)
    assert one.torn


@pytest.mark.parametrize(
    "text",
    ["[" * 5000, '{"data":' + "[" * 5000, '"' * 5000, '{"w.weight":' + " " * 5000, '{"a' * 2000],
)
def test_any_beginning_is_looked_at_quickly(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert not jsonckpt.find(tmp_path).valid


@pytest.mark.skipif(os.geteuid() == 0, reason="root may list everything")
def test_a_directory_that_cannot_be_listed_is_named(tmp_path: Path) -> None:
    newest = make(tmp_path / "run", step=1)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0)
    found = jsonckpt.find(tmp_path)
    assert [one.path for one in found] == [newest]
    assert "closed: cannot list: Permission denied" in found.unread[0]


def test_a_refused_listing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = make(tmp_path / "run", step=1)
    (tmp_path / "closed").mkdir()
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = jsonckpt.find(tmp_path)
    assert [one.path for one in found] == [newest]
    assert found.unread == (f"{tmp_path}/closed: cannot list: Permission denied",)
    with pytest.warns(RuntimeWarning, match="closed is skipped: cannot list"):
        assert training.latest(tmp_path) == newest


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match="no such directory"):
        jsonckpt.find(tmp_path / "inptu")
    assert training.latest(tmp_path / "inptu") is None
    empty = jsonckpt.find(tmp_path)
    assert (list(empty), empty.newest) == ([], None)
    assert repr(empty) == f"<FoundCheckpoints below {tmp_path}: 0 checkpoints>"


def test_it_needs_no_torch_and_reads_no_payload(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.rand(1 << 20), "step": 3}, tmp_path / "run.json")
    code = (
        "import sys, jsonckpt; found = jsonckpt.find(sys.argv[1]);"
        "print(found.newest.step, 'torch' in sys.modules)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "3 False\n"
