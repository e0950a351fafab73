"""``set_value``: what changes, what does not, and what is refused."""

from __future__ import annotations

import collections
import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from jsonckpt import edit
from jsonckpt._src.edit.set_value import DELETE, Edit, apply_edits
from tests.layout_tools import TOOLS
from tests.save.test_save_faults import CALLS, Faults, full
from tests.support import difference, same
from tests.two_states import KINDS, files

STATE = {
    "model": {"w": torch.arange(200.0).reshape(10, 20), "b": torch.ones(3, dtype=torch.bfloat16)},
    "optimizer": {
        "state": {0: {"step": 7, "m": torch.zeros(5)}, 1: {"step": 7}},
        "param_groups": [{"lr": 0.001, "betas": (0.9, 0.999), "params": [0, 1]}],
    },
    "epoch": 3,
    "best": None,
    "name": "run",
    "ok": True,
    "history": [1.0, 0.5],
    "mixed": [1, "a"],
    "scalar": np.float32(0.5),
    "small": np.uint8(3),
    "set": {1, 2},
    "deque": collections.deque([1.0], maxlen=3),
    "ordered": collections.OrderedDict(a=1),
    "where": Path("a/b"),
    "a/b": {"~c": 1, "": 2},
}


BETAS = ("optimizer", "param_groups", 0, "betas")


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    made: Path = tmp_path / request.param
    jsonckpt.save(STATE, made, chunk_size=64, max_shard_size=600)
    return made


def at(state: Any, *keys: Any) -> Any:
    for key in keys:
        state = state[key]
    return state


@pytest.mark.parametrize(
    ("name", "value", "keys", "expected"),
    [
        ("/optimizer/param_groups/0/lr", 1e-4, ("optimizer", "param_groups", 0, "lr"), 1e-4),
        ("optimizer/param_groups/0/lr", 1, ("optimizer", "param_groups", 0, "lr"), 1.0),
        ("/optimizer/state/0/step", 9, ("optimizer", "state", 0, "step"), 9),
        ("/optimizer/param_groups/0/betas/1", 1, BETAS, (0.9, 1.0)),
        ("/optimizer/param_groups/0/betas", [1, 0.5], BETAS, (1.0, 0.5)),
        ("/epoch", -4, ("epoch",), -4),
        ("/epoch", 10**700, ("epoch",), 10**700),
        ("/best", math.inf, ("best",), math.inf),
        ("/best", {"loss": (1, None)}, ("best",), {"loss": (1, None)}),
        ("/name", 'é "\\ \n', ("name",), 'é "\\ \n'),
        ("/ok", False, ("ok",), False),
        ("/history", [1, 2, 3], ("history",), [1.0, 2.0, 3.0]),
        ("/mixed", ["a", 1], ("mixed",), ["a", 1]),
        ("/scalar", 2, ("scalar",), np.float32(2)),
        ("/small", 255, ("small",), np.uint8(255)),
        ("/deque/0", 2, ("deque",), collections.deque([2.0], maxlen=3)),
        ("/deque", [1, 2], ("deque",), collections.deque([1.0, 2.0], maxlen=3)),
        ("/ordered/a", 2, ("ordered",), collections.OrderedDict(a=2)),
        ("/where", "x/y", ("where",), Path("x/y")),
        ("/a~1b/~0c", 5, ("a/b", "~c"), 5),
        ("/a~1b/", 5, ("a/b", ""), 5),
    ],
)  # fmt: skip
def test_values(path: Path, name: str, value: Any, keys: tuple[Any, ...], expected: Any) -> None:
    result = edit.set_value(path, name, value)
    assert [change.what for change in result.changes] == ["set"]
    assert repr(result) == f"<SetResult {str(path)!r}: 1 change>"
    state = jsonckpt.load(path)
    assert same(at(state, *keys), expected)
    report = jsonckpt.verify(path, deep=True)
    assert report.ok
    assert not any("edited" in note or "seal" in note for note in report.notes)
    # Everything else is as it was.
    holder = at(state, *keys[:-1])
    holder[keys[-1]] = at(STATE, *keys)
    assert difference(state, STATE) is None


def test_tensors_are_not_touched(path: Path) -> None:
    with jsonckpt.open(path) as checkpoint:
        before = checkpoint.manifest
    shards = {file: file.read_bytes() for file in path.glob("shard-*")} if path.is_dir() else {}
    edit.set_value(path, "/epoch", 4)
    with jsonckpt.open(path) as checkpoint:
        after = checkpoint.manifest
    assert [file.read_bytes() for file in shards] == list(shards.values())
    assert (after.save_id, after.created_at) == (before.save_id, before.created_at)
    sums = [[[c[2] for c in e.chunks] for e in m.entries] for m in (before, after)]
    assert sums[0] == sums[1]
    # Back again: the same bytes, so that git sees no change.
    text = (path / "manifest.json" if path.is_dir() else path).read_bytes()
    edit.set_value(path, "/epoch", 5)
    edit.set_value(path, "/epoch", 4)
    assert (path / "manifest.json" if path.is_dir() else path).read_bytes() == text
    assert files(path.parent) == [path.name]


def test_payloads_are_copied_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jsonckpt._src.format.chunk_codec import ChunkCodec

    def refuse(*_: object) -> None:
        raise AssertionError("a payload was decoded or encoded")

    path = tmp_path / "c.json"
    jsonckpt.save(STATE, path, compression="zstd")
    with monkeypatch.context() as patch:
        patch.setattr(ChunkCodec, "decode_into", refuse)
        patch.setattr(ChunkCodec, "pieces", refuse)
        edit.set_value(path, "/epoch", 4)
        edit.rename(path, replace=("w", "weight"))
    assert jsonckpt.verify(path)


REFUSED = [
    ("/epoch", 1.5, "an int, and this is a float"),
    ("/epoch", 4.0, "Write 4."),
    ("/epoch", True, "an int, and this is true or false"),
    ("/epoch", "4", "an int, and this is a string"),
    ("/ok", 1, "true or false, and this is an int"),
    ("/name", 1, "a string, and this is an int"),
    ("/name", None, "a string, and this is null"),
    ("/history", 1.0, "a list, and this is a float"),
    ("/optimizer/param_groups/0/betas", {"a": 1}, "a tuple"),
    ("/optimizer/param_groups/0/lr", 2**53 + 1, "no float has exactly"),
    ("/small", 256, "8 bits"),
    ("/scalar", "a", "a float"),
    ("/ordered", [1], "Write {...}"),
    ("/model/w", 1.0, "is a tensor"),
    ("/model", {}, "holds tensors"),
    ("/optimizer/state/0/m/0", 1, "nothing at"),
    ("/optmizer/param_groups/0/lr", 1.0, "Did you mean '/optimizer/param_groups/0/lr'"),
    ("/epok", 1, "or '/epoch'?"),
    ("/history/2", 1.0, "nothing at"),
    ("/history/-", 1.0, "--create"),
    ("", 1, "no name"),
    ("/set/1", 1, "already"),
    ("/a\0", 1, "nothing at"),
    ("/$storage/0", 1, "nothing at"),
    ("/a/b", 1, "nothing at"),
    ("/best", torch.ones(1), "torch.Tensor"),
    ("/best", np.ones(1), "an array"),
]


@pytest.mark.parametrize(("name", "value", "message"), REFUSED)
def test_refusals_change_nothing(path: Path, name: str, value: Any, message: str) -> None:
    def content() -> dict[str, bytes]:
        return {str(f): f.read_bytes() for f in path.parent.rglob("*") if f.is_file()}

    before = content()
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        edit.set_value(path, name, value)
    assert message in str(caught.value)
    assert content() == before


def test_force_changes_a_type(path: Path) -> None:
    edit.set_value(path, "/epoch", "three", force=True)
    edit.set_value(path, "/history", (1,), force=True)
    state = jsonckpt.load(path)
    assert (state["epoch"], state["history"]) == ("three", (1,))


@pytest.mark.parametrize(
    ("name", "value", "keys", "expected"),
    [
        ("/new", 1, ("new",), 1),
        ("/history/-", 3, ("history",), [1.0, 0.5, 3]),
        ("/history/2", 3, ("history",), [1.0, 0.5, 3]),
        ("/optimizer/state/2", {"step": 0}, ("optimizer", "state", 2), {"step": 0}),
        ("/optimizer/state/x", 1, ("optimizer", "state", "x"), 1),
        ("/$odd", 1, ("$odd",), 1),
        ("/ordered/$b", 1, ("ordered",), collections.OrderedDict({"a": 1, "$b": 1})),
        ("/set/-", 3, ("set",), {1, 2, 3}),
        ("/a~1b/x~1y", 1, ("a/b", "x/y"), 1),
    ],
)
def test_create(path: Path, name: str, value: Any, keys: tuple[Any, ...], expected: Any) -> None:
    [change] = edit.set_value(path, name, value, create=True).changes
    assert change.what == "created"
    assert same(at(jsonckpt.load(path), *keys), expected)
    assert jsonckpt.verify(path, deep=True)


@pytest.mark.parametrize(
    ("name", "message"),
    [("/epoch/x", "an int"), ("/no/such", "above it"), ("/history/9", "nothing at"),
     ("/set/-", "already"), ("/model/w/x", "no members")],
)  # fmt: skip
def test_create_refuses(path: Path, name: str, message: str) -> None:
    with pytest.raises(jsonckpt.JsonckptError, match=message):
        edit.set_value(path, name, 1, create=True)


def test_delete_and_metadata_at_once(path: Path) -> None:
    edits = [Edit("/mixed", DELETE), Edit("/history/0", DELETE), Edit("/optimizer/state/1", DELETE)]
    apply_edits(path, [*edits, Edit("/epoch", 4)], metadata={"a": {"b": [1]}, "c": 2})
    result = apply_edits(path, [], metadata={"a": 1, "c": DELETE})
    assert [str(change) for change in result.changes] == [
        'metadata a: {"b":[1]} -> 1', "metadata c: 2 (deleted)",
    ]  # fmt: skip
    state = jsonckpt.load(path)
    assert "mixed" not in state
    assert state["history"] == [0.5]
    assert list(state["optimizer"]["state"]) == [0]
    with jsonckpt.open(path) as checkpoint:
        assert checkpoint.metadata == {"a": 1}
    for name in ("/model/w", "/optimizer/state/0", "/nothing"):
        with pytest.raises(jsonckpt.JsonckptError):
            apply_edits(path, [Edit(name, DELETE)])
    with pytest.raises(jsonckpt.StateMismatchError, match="no key 'zz'"):
        apply_edits(path, [], metadata={"zz": DELETE})


def test_all_or_nothing(path: Path) -> None:
    with pytest.raises(jsonckpt.StateMismatchError):
        apply_edits(path, [Edit("/epoch", 9), Edit("/nothing", 1)])
    assert jsonckpt.load(path)["epoch"] == 3


def test_a_deleted_member_leaves_no_tag(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    text = '{"all": {"$tuple": [1], "b": 2}}'
    jsonckpt.save({"all": 0}, path)
    document = json.loads(path.read_text())
    path.write_text(json.dumps(document | {"state": json.loads(text), "seal": None}))
    apply_edits(path, [Edit("/all/b", DELETE)])
    assert jsonckpt.load(path) == {"all": {"$tuple": [1]}}


def test_dry_run_and_no_change(path: Path) -> None:
    before = os.stat(path / "manifest.json" if path.is_dir() else path)
    planned = edit.set_value(path, "/epoch", 9, dry_run=True)
    assert str(planned) == "/epoch: 3 -> 9\nnote: dry run: nothing was written"
    assert "nothing was written" in str(edit.set_value(path, "/epoch", 3))
    assert os.stat(path / "manifest.json" if path.is_dir() else path) == before


def test_a_pinned_checkpoint_gets_a_new_pin(tmp_path: Path) -> None:
    for name in KINDS:
        path = tmp_path / name
        old = jsonckpt.save(STATE, path, checksum="sha256")
        result = edit.set_value(path, "/epoch", 4)
        assert result.pin
        assert jsonckpt.load(path, expected_digest=result.pin)["epoch"] == 4
        with pytest.raises(jsonckpt.IntegrityError):
            jsonckpt.load(path, expected_digest=old.pin)
    assert edit.set_value(path, "/epoch", 4).digest == ""


@pytest.mark.parametrize("tool", sorted(TOOLS))
def test_files_that_a_tool_wrote_again(tool: str, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    jsonckpt.save({"w": torch.arange(30, dtype=torch.int16), "lr": 0.25}, path, chunk_size=16)
    path.write_bytes(TOOLS[tool](path.read_bytes()))
    assert "seal is real again" in str(edit.set_value(path, "/lr", 0.5))
    assert jsonckpt.verify(path).notes == ()
    assert torch.equal(jsonckpt.load(path)["w"], torch.arange(30, dtype=torch.int16))
    assert jsonckpt.load(path)["lr"] == 0.5


def test_a_manifest_that_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "c"
    jsonckpt.save(STATE, path)
    manifest = path / "manifest.json"
    document = json.loads(manifest.read_text()) | {"seal": None}
    document["state"]["epoch"] = 4
    manifest.write_text(json.dumps(document))
    edit.set_value(path, "/epoch", 4)
    assert not any("seal" in note for note in jsonckpt.verify(path).notes)


def test_permissions_and_links(tmp_path: Path) -> None:
    for name in ("c", "c.json"):
        real, link = tmp_path / name, tmp_path / f"link-{name}"
        jsonckpt.save(STATE, real)
        file = real / "manifest.json" if real.is_dir() else real
        os.chmod(file, 0o640)
        link.symlink_to(real)
        edit.set_value(link, "/epoch", 4)
        assert link.is_symlink()
        assert os.stat(file).st_mode & 0o777 == 0o640
        assert jsonckpt.load(real)["epoch"] == 4


def test_a_checkpoint_that_changes_meanwhile(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import jsonckpt._src.edit.set_value as module

    real = module._check_text

    def save_between(value: Any) -> None:
        real(value)
        jsonckpt.save({"other": 1}, path)

    monkeypatch.setattr(module, "_check_text", save_between)
    with pytest.raises(jsonckpt.JsonckptError) as caught:
        edit.set_value(path, "/epoch", 4)
    assert "replaced" in str(caught.value) or "overwritten" in str(caught.value)
    assert jsonckpt.load(path) == {"other": 1}
    assert files(path.parent) == [path.name]


def test_too_deep_a_value_is_refused(path: Path) -> None:
    value: Any = 1
    for _ in range(199):
        value = [value]
    with pytest.raises(jsonckpt.LimitError, match="deeper"):
        edit.set_value(path, "/best", value)
    assert jsonckpt.load(path)["best"] is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("name", KINDS)
def test_a_full_disk_at_every_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, call: str
) -> None:
    path = tmp_path / name
    weights = torch.arange(50.0)
    state = {"w": weights, "lr": 0.5}
    for number in range(1, 40):
        jsonckpt.save(state, path, chunk_size=64, sync=False)
        where = path if path.is_dir() else tmp_path
        before = files(where)
        faults = Faults(number, full)
        with monkeypatch.context() as patch:
            faults.install(patch, call)
            try:
                edit.set_value(path, "/lr", 1.0)
                raised: Any = None
            except jsonckpt.JsonckptError as error:
                raised = error
        assert jsonckpt.verify(path)
        assert torch.equal(jsonckpt.load(path)["w"], weights)
        if not faults.happened:
            assert raised is None
            assert number > 1
            return
        assert isinstance(raised, jsonckpt.WriteError)
        assert raised.errno == errno.ENOSPC
        if not isinstance(raised, jsonckpt.DurabilityUncertainError):
            assert jsonckpt.load(path)["lr"] == 0.5
        assert files(where) == before
    pytest.fail("the edit never passed")


KILLED = """
import sys
from jsonckpt import edit
path = sys.argv[1]
print("ready", flush=True)
number = 0
while True:
    number += 1
    edit.set_value(path, "/lr", float(number))
    edit.rename(path, replace=("w", "v"), overwrite=True)
    edit.rename(path, replace=("v", "w"), overwrite=True)
"""


@pytest.mark.parametrize("name", KINDS)
def test_killed_at_any_moment(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    weights = torch.arange(300_000.0)
    jsonckpt.save({"w": weights, "lr": 0.0}, path, chunk_size="64KiB")
    for round_ in range(6):
        child = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(0.05 + 0.037 * round_)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        assert jsonckpt.verify(path)
        state = jsonckpt.load(path)
        assert torch.equal(state.get("w", state.get("v")), weights)
        if "v" in state:
            edit.rename(path, replace=("v", "w"))
    # What was left is removed as after a killed save.
    jsonckpt.gc(path, older_than=0) if path.is_dir() else None
    assert edit.set_value(path, "/lr", -1.0).digest


def test_read_only_directories_say_so(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    path = tmp_path / "in" / "c.json"
    jsonckpt.save(STATE, path)
    os.chmod(path.parent, 0o555)
    try:
        with pytest.raises(jsonckpt.WriteError):
            edit.set_value(path, "/epoch", 4)
    finally:
        os.chmod(path.parent, 0o755)
    assert jsonckpt.load(path)["epoch"] == 3
    shutil.rmtree(path.parent)
