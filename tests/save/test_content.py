"""Saves by content: the same state gives the same bytes, in every way to write it."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import jsonckpt
from jsonckpt._src.cli.main import main
from jsonckpt._src.format import filenames
from jsonckpt._src.format.model import CONTENT_ID, NO_TIME
from jsonckpt._src.save.plan import assign_by_name
from jsonckpt._src.storage import commit as commit_module
from jsonckpt.convert import convert
from tests import independent_reader
from tests import states as plain_states
from tests.golden.cases import CASES, Case
from tests.golden.fresh import can_be_made
from tests.readers import readers_for
from tests.support import difference, same
from tests.tensor_states import options as drawn_options
from tests.tensor_states import states as tensor_states

save = functools.partial(jsonckpt.save, save_id="content")


def state(epoch: int = 1) -> dict[str, Any]:
    """A frozen body and a head that differs from epoch to epoch."""
    chance = torch.Generator().manual_seed(7)
    body = {f"body.{i}.weight": torch.randn(60, 50, generator=chance) for i in range(6)}
    head = {"head.weight": torch.full((3, 50), float(epoch)), "head.bias": torch.zeros(3)}
    return {
        "model": {**body, **head, "tied": body["body.0.weight"]},
        "names": {"b", "a", "c"},
        "epoch": epoch,
    }


#: Each tensor of the body has a shard to itself.
SHARDS: dict[str, Any] = {"max_shard_size": 40_000, "chunk_size": 4_096}


def content(path: Path) -> dict[str, str]:
    """The digest of each file."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return {
        "" if file == path else file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


def places(path: Path) -> dict[str, tuple[int, int]]:
    """What changes where a file is written again."""
    found = {file.name: file.stat() for file in path.iterdir()}
    return {name: (facts.st_ino, facts.st_mtime_ns) for name, facts in found.items()}


# --- the same bytes -------------------------------------------------------------------------------

NAMES = ("run", "run.json", "run.json.zst")
FORMS: list[dict[str, Any]] = [
    {},
    {"checksum": "sha256"},
    {"checksum": "blake3"},
    {"encoding": "list"},
    {"compression": "zstd"},
    {"compression": "zstd", "compression_level": 9, "filter": "shuffle"},
    {"encoding": "list", "compression": "zstd"},
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_whatever_changes_no_value_changes_no_byte(
    tmp_path: Path, name: str, form: dict[str, Any]
) -> None:
    if name == "run.json" and form.get("encoding") and form.get("compression"):
        pytest.skip("a .json is not compressed as a whole")
    source = tmp_path / name
    write = functools.partial(save, chunk_size=4_096, max_shard_size=40_000, **form)

    def in_background(path: Path) -> None:
        options: dict[str, Any] = {**write.keywords, "save_id": "content"}
        jsonckpt.save_async(state(), path, **options).result()

    def over(before: Callable[..., object], **options: Any) -> Callable[[Path], object]:
        def way(path: Path) -> None:
            before(state(2), path)
            write(state(), path, **options)

        return way

    ways: dict[str, Callable[[Path], object]] = {
        "one thread": lambda path: write(state(), path, threads=1),
        "five threads": lambda path: write(state(), path, threads=5),
        "without fsync": lambda path: write(state(), path, sync=False),
        "never over another": lambda path: write(state(), path, overwrite=False),
        "in the background": in_background,
        "over another": over(write),
        "over one by chance": over(jsonckpt.save),
        "another removed first": over(write, delete_first=True),
        "over itself": lambda path: (write(state(), path), write(state(), path)),
        "what was loaded": lambda path: write(jsonckpt.load(source), path),
    }
    result = write(state(), source)
    expected = content(source)
    for number, (way, act) in enumerate(ways.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        act(folder / name)
        assert content(folder / name) == expected, way
    assert result.save_id == CONTENT_ID
    assert not result.notes or name != "run"
    assert same(jsonckpt.load(source), state())
    assert same(independent_reader.load(source), state())


def test_a_file_object_gets_what_a_file_gets(tmp_path: Path) -> None:
    stream = io.BytesIO()
    save(state(), stream)
    save(state(), tmp_path / "c.json")
    assert stream.getvalue() == (tmp_path / "c.json").read_bytes()


def test_metadata_order_and_values_are_content(tmp_path: Path) -> None:
    seen = set()
    for number, (value, metadata) in enumerate(
        [
            ({"a": 1, "b": 2}, None),
            ({"b": 2, "a": 1}, None),
            ({"a": 1, "b": 2}, {"run": 3}),
            ({"a": 1.0, "b": 2}, None),
        ]
    ):
        seen.add(save(value, tmp_path / f"{number}.json", metadata=metadata).digest)
    assert len(seen) == 4


_CHILD = """
import sys, torch, jsonckpt
words = ["alpha", "beta", "gamma", "delta"]
state = {
    "sets": [set(words), frozenset(words), {(1, w) for w in words}],
    frozenset(words): torch.ones(2),
    ("key", frozenset(words)): {"w": torch.zeros(3)},
    "w": torch.arange(4.0),
}
print(jsonckpt.save(state, sys.argv[1], save_id="content").digest)
"""


def test_another_process_with_other_hashes_writes_the_same(tmp_path: Path) -> None:
    def run(seed: str) -> str:
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", _CHILD, str(tmp_path / f"{seed}.json")]
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    assert len({run(seed) for seed in ("1", "2", "3")}) == 1
    with jsonckpt.open(tmp_path / "1.json") as checkpoint:
        assert "/frozenset({'alpha', 'beta', 'delta', 'gamma'})" in checkpoint


@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.needs_types], ids=lambda case: case.path
)
def test_what_was_loaded_is_written_as_it_was(tmp_path: Path, case: Case) -> None:
    if not can_be_made(case):
        pytest.skip("this torch has not all dtypes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        paths = [tmp_path / str(number) / case.path for number in range(3)]
        save(case.state(), paths[0], **case.options)
        save(case.state(), paths[1], **case.options)
        save(jsonckpt.load(paths[0]), paths[2], **case.options)
    assert content(paths[1]) == content(paths[0])
    assert content(paths[2]) == content(paths[0])


@given(tensor_states | plain_states.states, drawn_options(), st.sampled_from(NAMES))
def test_two_saves_of_any_state_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, value: Any, form: dict[str, Any], name: str
) -> None:
    if name == "run.json" and form["encoding"] == "list":
        form = {**form, "compression": None}
    if form["encoding"] == "list" and form["filter"] == "shuffle":
        form = {**form, "filter": "auto"}
    folder = tmp_path_factory.mktemp("content")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            save(value, folder / "one" / name, **form)
        except (jsonckpt.LimitError, jsonckpt.UnsupportedTypeError):
            return  # too many shards; or a tensor that is none
        save(value, folder / "two" / name, **{**form, "threads": 3 - form["threads"]})
        expected = content(folder / "one" / name)
        assert content(folder / "two" / name) == expected
        save(value, folder / "two" / name, **form)
        assert content(folder / "two" / name) == expected
        save(jsonckpt.load(folder / "one" / name), folder / "three" / name, **form)
    assert content(folder / "three" / name) == expected
    assert difference(jsonckpt.load(folder / "two" / name), value) is None


# --- what is written again ------------------------------------------------------------------------


def test_only_the_shard_of_a_changed_tensor_is_written(tmp_path: Path) -> None:
    save(state(1), tmp_path / "c", **SHARDS)
    before = places(tmp_path / "c")
    save(state(1), tmp_path / "c", **SHARDS)
    again = places(tmp_path / "c")
    assert {name for name in again if again[name] != before[name]} == {"manifest.json"}
    assert len(again) > 6
    result = save(state(2), tmp_path / "c", **SHARDS)
    after = places(tmp_path / "c")
    new = {name for name in after if after[name] != before.get(name)}
    assert [name[:23] for name in sorted(new)] == ["manifest.json", "shard-model-head-weight"]
    assert len(before) == len(after)
    assert set(result.files) == set(after)
    assert jsonckpt.verify(tmp_path / "c", deep=True)
    assert same(jsonckpt.load(tmp_path / "c"), state(2))


def test_a_state_that_comes_back_has_its_files_back(tmp_path: Path) -> None:
    save(state(1), tmp_path / "c", **SHARDS)
    first = content(tmp_path / "c")
    save(state(2), tmp_path / "c", **SHARDS)
    assert content(tmp_path / "c") != first
    save(state(1), tmp_path / "c", **SHARDS)
    assert content(tmp_path / "c") == first


def test_no_shard_depends_on_another_tensor(tmp_path: Path) -> None:
    def shards(value: dict[str, Any]) -> set[str]:
        save(value, tmp_path / "c", **SHARDS)
        return {name for name in content(tmp_path / "c") if name.startswith("shard-")}

    plain = shards(state())
    body = {name for name in plain if name.startswith("shard-model-body")}
    assert len(body) == 6
    grown = state()
    grown["model"]["body.2.weight"] = torch.randn(90, 50)
    assert len(plain - shards(grown)) == 1
    more = state()
    more["model"] = {"embedding": torch.randn(70, 50), **more["model"]}
    assert body < shards(more)
    less = state()
    del less["model"]["head.weight"], less["model"]["head.bias"]
    assert body <= shards(less)


@given(
    st.lists(st.tuples(st.text("abc/.", max_size=5), st.integers(1, 90_000)), max_size=40),
    st.integers(1, 200_000),
)
def test_shards_hold_every_record_once_in_order(records: list[tuple[str, int]], most: int) -> None:
    names, sizes = [name for name, _ in records], [size for _, size in records]
    shards = assign_by_name(names, sizes, most)
    assert [position for shard in shards for position in shard] == list(range(len(records)))
    assert all(shards)
    assert all(len(shard) == 1 or sum(sizes[i] for i in shard) <= most for shard in shards)


def test_a_change_of_size_moves_no_distant_cut() -> None:
    names = [f"/model/body.{number}" for number in range(2_000)]
    sizes = [10_000 + number for number in range(2_000)]
    before = assign_by_name(names, sizes, 4_000_000)
    assert 10 < len(before) < 60
    sizes[1_000] += 300_000
    after = assign_by_name(names, sizes, 4_000_000)
    assert len(set(before) ^ set(after)) <= 6


def test_small_sections_share_a_shard() -> None:
    names = [f"/group{number}/part/w" for number in range(10_000)]
    sizes = [500] * 10_000
    shards = assign_by_name(names, sizes, 32_000_000)
    assert 30 < len(shards) < 45


# --- what lies under a name already ---------------------------------------------------------------


def _head_shard(path: Path) -> Path:
    [found] = path.glob("shard-model-head-weight-*")
    return found


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _gone(path: Path) -> None:
    path.unlink()


SPOILS = [_cut, _flip, _empty, _longer, _fifo, _dangling, _gone]


@pytest.mark.parametrize("spoil", SPOILS)
@pytest.mark.parametrize("orphan", [False, True], ids=["named", "orphan"])
def test_a_spoilt_file_under_the_name_is_replaced(
    tmp_path: Path, spoil: Callable[[Path], None], orphan: bool
) -> None:
    path = tmp_path / "c"
    save(state(), path, **SHARDS)
    expected = content(path)
    spoil(_head_shard(path))
    if orphan:
        (path / "manifest.json").unlink()
    result = save(state(), path, **SHARDS)
    assert not result.notes
    assert content(path) == expected
    assert jsonckpt.verify(path, deep=True)


def test_a_directory_under_the_name_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(state(), path, **SHARDS)
    found = _head_shard(path)
    found.unlink()
    found.mkdir()
    with pytest.raises(jsonckpt.WriteError, match="shard-model-head-weight"):
        save(state(), path, **SHARDS)
    assert found.is_dir()
    found.rmdir()
    save(state(), path, **SHARDS)
    assert jsonckpt.verify(path, deep=True)


def test_links_to_the_same_bytes_stay(tmp_path: Path) -> None:
    path, cache = tmp_path / "c", tmp_path / "cache"
    save(state(), path, **SHARDS)
    cache.mkdir()
    shards = [file for file in path.iterdir() if file.name.startswith("shard-")]
    for file in shards:
        file.rename(cache / file.name)
        file.symlink_to(cache / file.name)
    save(state(2), path, **SHARDS)
    kept = [file for file in path.iterdir() if file.is_symlink()]
    assert len(kept) == len(shards) - 1
    assert len(list(cache.iterdir())) == len(shards)  # nothing is written or removed through them
    assert same(jsonckpt.load(path), state(2))


def test_a_file_that_more_may_read_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(state(), path, **SHARDS)
    (path / "manifest.json").chmod(0o600)
    before = places(path)
    save(state(), path, **SHARDS)
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o600}
    assert not {*before.items()} & {*places(path).items()}


def test_two_shards_never_get_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if somebody had found two tensors with one checksum."""
    name = filenames.content_name("x", "xxh3_128:0", 1, compressed=False)
    monkeypatch.setattr(filenames, "content_name", lambda *_, **__: name)
    for epoch in (1, 2):
        result = save(state(epoch), tmp_path / "c", **SHARDS)
        assert len(set(result.files)) == len(result.files) > 7
        assert same(jsonckpt.load(tmp_path / "c"), state(epoch))


def test_another_level_of_zstd_keeps_the_old_checkpoint_whole_until_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text and its seal are the same, the files are not."""
    options: dict[str, Any] = {**SHARDS, "encoding": "list", "compression": "zstd"}
    path = tmp_path / "c"
    save(state(), path, compression_level=1, **options)

    def refuse(*_: object, **__: object) -> bool:
        assert same(jsonckpt.load(path), state())
        raise jsonckpt.WriteError("refused")

    with monkeypatch.context() as patch:
        patch.setattr("jsonckpt._src.storage.commit.commit", refuse)
        with pytest.raises(jsonckpt.WriteError, match="refused"):
            save(state(), path, compression_level=19, **options)
    first = content(path)
    assert same(jsonckpt.load(path), state())
    save(state(), path, compression_level=19, **options)
    assert len(content(path)) == len(first)
    assert not {*content(path).items()} & {*first.items()}
    assert jsonckpt.verify(path, deep=True)


# --- beside other saves ---------------------------------------------------------------------------


def test_a_save_that_finds_the_lock_taken_shares_nothing(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "c"
    save(state(1), path, **SHARDS)
    alone = content(path)
    held = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        result = save(state(1), path, **SHARDS)
        assert "another save was writing here" in result.notes[0]
        named = [name for name in result.files if name.startswith("shard-")]
        assert not any(filenames.is_content_name(name) for name in named)
        assert {*named, *alone} <= {*content(path)}  # what the other may be about to use stays
        assert same(jsonckpt.load(path), state(1))
        jsonckpt.save(state(2), path, **SHARDS)
        assert {*alone} <= {*content(path)}
        left = jsonckpt.gc(path, older_than=0)
        assert {*left.kept} == {*alone} - {"manifest.json"}
    finally:
        os.close(held)
    save(state(1), path, **SHARDS)
    assert jsonckpt.gc(path, older_than=0).removed == ()
    assert content(path) == alone


def test_a_save_inside_a_save_does_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a signal handler does it, right before the commit of what it interrupts."""
    pytest.importorskip("fcntl")
    path = tmp_path / "c"
    save(state(1), path, **SHARDS)
    commit, inner = commit_module.commit, []

    def interrupted(*arguments: Any, **named: Any) -> bool:
        monkeypatch.undo()
        inner.append(save(state(3), path, **SHARDS))
        assert same(jsonckpt.load(path), state(3))
        return commit(*arguments, **named)

    monkeypatch.setattr(commit_module, "commit", interrupted)
    outer = save(state(2), path, **SHARDS)
    assert "another save was writing here" in inner[0].notes[0]
    assert outer.notes == ()
    assert same(jsonckpt.load(path), state(2))
    assert jsonckpt.verify(path, deep=True)
    jsonckpt.gc(path, older_than=0)
    assert set(content(path)) == set(outer.files)


def test_a_save_frees_the_lock_however_it_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "c"

    def is_free() -> bool:
        opened = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(opened)
        return True

    save(state(), path)
    assert is_free()
    with monkeypatch.context() as patch:
        patch.setattr("jsonckpt._src.storage.commit.commit", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save(state(), path)
    assert is_free()
    jsonckpt.save(state(), path)
    jsonckpt.gc(path)
    assert is_free()


def test_a_save_in_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert save(state(), tmp_path / "c", **SHARDS).notes == ()
    before = places(tmp_path / "c")
    assert save(state(), tmp_path / "c", **SHARDS).notes == ()
    after = places(tmp_path / "c")
    assert [name for name in after if after[name] != before[name]] == ["manifest.json"]


def test_a_save_that_fails_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c"
    save(state(1), path, **SHARDS)
    before = places(path)
    monkeypatch.setattr("jsonckpt._src.storage.commit.commit", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(state(2), path, **SHARDS)
    assert places(path) == before


def test_other_saves_over_it_and_it_over_other_saves(tmp_path: Path) -> None:
    path = tmp_path / "c"
    for number in range(1, 7):
        written = (save if number % 2 else jsonckpt.save)(state(number), path, **SHARDS)
        assert set(written.files) == set(content(path))
        assert same(jsonckpt.load(path), state(number))


def test_gc_removes_orphans_by_content(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(state(1), path, **SHARDS)
    text = (path / "manifest.json").read_bytes()
    kept = {name: (path / name).read_bytes() for name in content(path)}
    save(state(2), path, **SHARDS)
    for name in kept:
        (path / name).write_bytes(kept[name])
    (path / "manifest.json").write_bytes(text)
    [orphan] = set(content(path)) - set(kept)
    (path / "shard-my-notes.json").write_text("{}")
    assert jsonckpt.gc(path, older_than="1h").kept == (orphan,)
    assert jsonckpt.gc(path, older_than=0, dry_run=True).removed == (orphan,)
    assert jsonckpt.gc(path, older_than=0).removed == (orphan,)
    assert set(content(path)) == {*kept, "shard-my-notes.json"}
    (path / "manifest.json").unlink()
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="no manifest"):
        jsonckpt.gc(path, older_than=0)


# --- recover --------------------------------------------------------------------------------------


def test_recover_without_a_manifest(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(state(), path, **SHARDS)
    (path / "manifest.json").unlink()
    report = jsonckpt.recover(path, tmp_path / "new")
    assert report.save_id == CONTENT_ID
    assert len(report.recovered) == 8
    assert report.lost == ()
    assert not any("several saves" in note for note in report.notes)


@pytest.mark.parametrize("newer", [1, 2])
def test_recover_says_that_shards_are_of_several_saves(tmp_path: Path, newer: int) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    save(state(1), one, **SHARDS)
    save(state(2), two, **SHARDS)
    heads = {1: _head_shard(one), 2: _head_shard(two)}
    name = _head_shard(two).name
    heads[2] = heads[2].rename(one / name)
    (one / "manifest.json").unlink()
    os.utime(heads[newer], (4e9, 4e9))
    report = jsonckpt.recover(one, tmp_path / "new")
    assert any("shards of several saves by content" in note for note in report.notes)
    assert not report
    lost = {item.name: item.reason for item in report.lost}
    assert "/model/head.weight" in lost
    assert heads[newer].name in lost["/model/head.weight"]
    head = jsonckpt.load(tmp_path / "new")["model"]["head.weight"]
    assert head.unique().tolist() == [float(newer)]


def test_recover_knows_a_shard_without_a_head_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save(state(), path, **SHARDS)
    (path / "manifest.json").unlink()
    found = _head_shard(path)
    found.write_bytes(b"#" + found.read_bytes()[1:])
    report = jsonckpt.recover(path, tmp_path / "new")
    assert "/model/head.weight" in report.recovered
    assert len(report.recovered) == 8


# --- readers, conversion, arguments ---------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_reader_reads_it(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    save(state(), path, **SHARDS)
    for reader in readers_for(path).values():
        assert same(reader(path), state())
    target = state(2)
    jsonckpt.load_into(target, path)
    assert target["epoch"] == 1
    assert torch.equal(target["model"]["head.weight"], state(1)["model"]["head.weight"])
    assert [name for name, _ in jsonckpt.stream(path)][-1] == "/model/head.bias"
    text = path / "manifest.json" if path.is_dir() else path
    if name != "run.json.zst":
        found = json.loads(text.read_text())
        assert (found["save_id"], found["created_at"]) == (CONTENT_ID, NO_TIME)


@pytest.mark.parametrize("name", NAMES)
def test_convert_writes_the_same_twice(tmp_path: Path, name: str) -> None:
    torch.save(state(), tmp_path / "x.pt")
    for number in "12":
        (tmp_path / number).mkdir()
        convert(tmp_path / "x.pt", tmp_path / number / name, save_id="content", test_load=True)
    assert content(tmp_path / "1" / name) == content(tmp_path / "2" / name)
    save(torch.load(tmp_path / "x.pt"), tmp_path / "3" / name)
    assert content(tmp_path / "1" / name) == content(tmp_path / "3" / name)


def test_convert_on_the_command_line(tmp_path: Path) -> None:
    torch.save(state(), tmp_path / "x.pt")
    for name in ("1.json", "2.json"):
        command = ["convert", str(tmp_path / "x.pt"), "-o", str(tmp_path / name), "-q"]
        assert main([*command, "--save-id", "content"]) == 0
    assert content(tmp_path / "1.json") == content(tmp_path / "2.json")
    command = ["convert", str(tmp_path / "x.pt"), "-o", str(tmp_path / "3.safetensors")]
    assert main([*command, "--save-id", "content"]) == 2


@pytest.mark.parametrize("value", ["random", "", "Content", 1, True, b"content", "0" * 32])
def test_other_ids_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(jsonckpt.ArgumentError, match=r"it may be None .* or 'content'"):
        jsonckpt.save({}, tmp_path / "c", save_id=value)
    assert not (tmp_path / "c").exists()


def test_remote_directories_are_refused_and_remote_files_are_the_same(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    with pytest.raises(jsonckpt.ArgumentError, match="local paths only"):
        save(state(), "memory://content/run")
    save(state(), "memory://content/run.json")
    save(state(), tmp_path / "run.json")
    found = fsspec.filesystem("memory").cat_file("/content/run.json")
    assert found == (tmp_path / "run.json").read_bytes()


def test_the_size_of_a_shard(tmp_path: Path) -> None:
    large = {"a": torch.zeros(5_000_000), "b": {f"{i}": torch.zeros(100_000) for i in range(9)}}
    result = save(large, tmp_path / "c")
    assert result.notes == ()  # nobody asked for 32 MB
    sizes = sorted(file.stat().st_size for file in (tmp_path / "c").glob("shard-*"))
    assert sizes[-1] < 32_000_000
    assert len(sizes) == 2
    result = save(large, tmp_path / "c", max_shard_size="1MB")
    assert "larger than max_shard_size=1000000" in result.notes[0]
    assert len(result.files) == 11


def test_latest_goes_by_the_time_of_the_file(tmp_path: Path) -> None:
    from jsonckpt.training import latest

    for number, name in enumerate(["b", "a", "c"]):
        save({"w": torch.ones(1)}, tmp_path / f"checkpoint_{name}.json")
        os.utime(tmp_path / f"checkpoint_{name}.json", (1e9 + number, 1e9 + number))
    assert Path(str(latest(tmp_path))).name == "checkpoint_c.json"
    jsonckpt.save({"w": torch.ones(1)}, tmp_path / "checkpoint_d.json")
    assert Path(str(latest(tmp_path))).name == "checkpoint_d.json"


def test_git_sees_no_change(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        found = subprocess.run(
            ["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True, text=True
        )
        return found.stdout

    try:
        git("init", "-q")
    except FileNotFoundError:
        pytest.skip("git is not installed")
    git("config", "user.email", "a@example.org")
    git("config", "user.name", "a")
    save(state(1), tmp_path / "c", **SHARDS)
    save(state(1), tmp_path / "x.json")
    git("add", ".")
    git("commit", "-qm", "1")
    save(state(1), tmp_path / "c", **SHARDS)
    save(state(1), tmp_path / "x.json")
    assert git("status", "--porcelain") == ""
    save(state(2), tmp_path / "c", **SHARDS)
    changed = sorted(line.split("/")[-1][:23] for line in git("status", "--porcelain").splitlines())
    assert changed == ["manifest.json", *["shard-model-head-weight"] * 2]
