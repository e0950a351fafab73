"""Loading: what is asked for, where it goes, and what is said when it cannot be."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import jsonckpt
from tests.readers import Trickle, readers_for
from tests.support import same

STATE: dict[str, Any] = {
    "model": {"w": torch.arange(6.0).reshape(2, 3), "b": torch.zeros(3), "head.w": torch.ones(2)},
    "optimizer": {"state": {0: {"exp_avg": torch.full((2, 3), 0.5)}}, "lr": 0.1},
    "list": [torch.tensor(1), "x", torch.tensor(2)],
    "epoch": 3,
}
CONTAINERS = ["c", "c.json", "c.json.zst"]


@pytest.fixture(params=CONTAINERS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path: Path = tmp_path / request.param
    jsonckpt.save(STATE, path, chunk_size=8, max_shard_size=100)
    return path


def leaves(state: Any) -> list[torch.Tensor]:
    return [state["model"]["w"], state["model"]["b"], *state["list"][::2]]


# --- map_location -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [None, "cpu", torch.device("cpu"), {}, {"cuda:0": "cpu"}, {"cpu": "cpu"}, lambda s, _: s],
    ids=["None", "cpu", "device", "empty", "from cuda", "from cpu", "function"],
)
def test_to_the_cpu(path: Path, location: Any) -> None:
    for reader in readers_for(path).values():
        assert same(reader(path, map_location=location), STATE)
    assert same(jsonckpt.load(path, location), STATE)


@pytest.mark.parametrize("location", ["meta", torch.device("meta"), {"cpu": "meta"}], ids=str)
def test_to_the_meta_device(path: Path, location: Any) -> None:
    for reader in readers_for(path).values():
        state = reader(path, map_location=location)
        assert state["model"]["w"].device.type == "meta"
        assert state["model"]["w"].shape == (2, 3)
        assert state["epoch"] == 3


def test_a_callable_gets_memory_and_place(path: Path) -> None:
    for reader in readers_for(path).values():
        calls: list[tuple[int, str]] = []

        def locate(
            storage: torch.UntypedStorage, saved: str, calls: list[Any] = calls
        ) -> torch.UntypedStorage | None:
            calls.append((storage.nbytes(), saved))
            return None if len(calls) % 2 else storage.clone()  # type: ignore[no-untyped-call]

        assert same(reader(path, map_location=locate), STATE)
        assert sorted(calls) == sorted((n, "cpu") for n in (24, 12, 8, 24, 8, 8))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
def test_a_device_that_is_not_there(path: Path) -> None:
    said = r"^map_location is 'cuda', but torch\.cuda\.is_available\(\) is False\. Pass map_loc"
    for reader in readers_for(path).values():
        with pytest.raises(jsonckpt.ArgumentError, match=said) as caught:
            reader(path, map_location="cuda")
        assert isinstance(caught.value, RuntimeError)


def test_a_device_that_does_not_exist(path: Path) -> None:
    with pytest.raises(RuntimeError, match="abacus"):
        jsonckpt.load(path, "abacus")
    with pytest.raises(jsonckpt.JsonckptError, match="map_location is a int"):
        jsonckpt.load(path, 3)  # type: ignore[arg-type]


# --- include and exclude ----------------------------------------------------------------------


def names_in(state: Any, place: str = "") -> list[str]:
    if isinstance(state, torch.Tensor):
        return [place]
    if not isinstance(state, dict | list):
        return []
    items = state.items() if isinstance(state, dict) else enumerate(state)
    return [name for key, value in items for name in names_in(value, f"{place}/{key}")]


W, B, H = "/model/w", "/model/b", "/model/head.w"
E = "/optimizer/state/0/exp_avg"
CHOICES: list[tuple[Any, Any, list[str]]] = [
    (None, None, [W, B, H, E, "/list/0", "/list/2"]),
    (W, None, [W]),
    ("/model", None, [W, B, H]),
    ("/model/*", "*.w", [W, B]),
    ("*w", None, [W, H]),
    ([W, "/optimizer"], None, [W, E]),
    (["/model/?", "/list/[01]"], None, [W, B, "/list/0"]),
    (lambda name: "exp" in name, None, [E]),
    (None, "/model", [E, "/list/0", "/list/2"]),
    (None, [W, "/list/*"], [B, H, E]),
    (None, lambda name: name != B, [B]),
    ("/model", "/model", []),
    ([], None, []),
    ("model/*", "*.w", [W, B]),
    (["model/w", "optimizer/"], None, [W, E]),
    ("[mo]*", "model", [E]),
    (None, ["model/[wb]", "list"], [H, E]),
    # These are there, if not as tensors.
    (None, "/epoch", [W, B, H, E, "/list/0", "/list/2"]),
]


@pytest.mark.parametrize(("include", "exclude", "expected"), CHOICES)
def test_choosing(path: Path, include: Any, exclude: Any, expected: list[str]) -> None:
    chosen = dict(jsonckpt.stream(path, include=include, exclude=exclude))
    assert sorted(chosen) == sorted(expected)
    for reader in readers_for(path).values():
        state = reader(path, include=include, exclude=exclude)
        assert list(state) == list(STATE)
        assert (state["epoch"], state["optimizer"]["lr"]) == (3, 0.1)
        assert len(names_in(state)) == len(expected)
        for name in expected:
            if not name.startswith("/list"):
                assert name in names_in(state)
        for left_out in {W, B, H} - set(expected):
            assert left_out.removeprefix("/model/") not in state["model"]


SLIPS: list[Any] = [
    "/modle/w",
    ["/model", "/model/W"],
    "/mod",
    "//",
    "/modle/*",
    "weights/*",
    ["/model/*", "*.bais"],
    "/model/w/*",
]


def everything_that_selects(path: Path) -> list[Callable[..., Any]]:
    """What takes include= and exclude= for the checkpoint of STATE at ``path``."""

    def into(path: Path, **selectors: Any) -> Any:
        target = {"model": {"w": torch.zeros(2, 3)}}
        before = target["model"]["w"].clone()
        try:
            return jsonckpt.load_into(target, path, strict=False, **selectors)
        finally:
            assert torch.equal(target["model"]["w"], before)

    return [
        *readers_for(path).values(),
        lambda path, **selectors: list(jsonckpt.stream(path, **selectors)),
        lambda path, **selectors: jsonckpt.open(path).load(**selectors),
        into,
    ]


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("slip", SLIPS)
def test_a_selector_that_selects_nothing(path: Path, slip: Any, argument: str) -> None:
    wrong = slip if isinstance(slip, str) else slip[1]
    for read in everything_that_selects(path):
        with pytest.raises(jsonckpt.StateMismatchError) as caught:
            read(path, **{argument: slip})
        assert caught.value.missing == [wrong]
        assert f"{argument} {wrong!r} selects no tensor" in str(caught.value)


def test_the_nearest_names_are_in_the_message(path: Path) -> None:
    for slip, near in (("modle/*", "'/model'"), ("/model/head.b", "'/model/head.w'")):
        with pytest.raises(jsonckpt.StateMismatchError, match=f"Did you mean .*{near}"):
            jsonckpt.load(path, include=slip)
    with pytest.raises(jsonckpt.StateMismatchError, match="the path of keys"):
        jsonckpt.load(path, include="0")


def test_a_lone_shard_says_at_its_end_what_is_not_in_it(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path)
    shard = tmp_path / result.files[0]
    assert dict(jsonckpt.stream(shard, include="model/w")).keys() == {W}
    selectors: list[dict[str, Any]] = [{"include": "/modle/*"}, {"exclude": "/modle/*"}]
    for selector in selectors:
        with pytest.raises(jsonckpt.StateMismatchError, match="selects no tensor"):
            list(jsonckpt.stream(shard, **selector))


def test_callables_may_select_nothing(path: Path) -> None:
    for read in readers_for(path).values():
        assert names_in(read(path, include=lambda _: False)) == []
        assert len(names_in(read(path, exclude=lambda _: False))) == 6


def test_keys_that_begin_oddly_stay_reachable(tmp_path: Path) -> None:
    state = {key: torch.ones(1) for key in ("*w", "$storage", "?", "w", "~x")}
    jsonckpt.save(state, tmp_path / "c.json")
    for pattern, expected in (
        ("/[*]w", ["/*w"]),
        ("*w", ["/*w", "/w"]),
        ("/$storage", ["/$storage"]),
        ("$storage", ["/$storage"]),
        ("?", ["/?", "/w"]),
        ("[?]", ["/?"]),
        ("~0x", ["/~0x"]),
    ):
        found = dict(jsonckpt.stream(tmp_path / "c.json", include=pattern))
        assert sorted(found) == sorted(expected), pattern


def test_what_the_target_alone_has_may_be_excluded(tmp_path: Path) -> None:
    jsonckpt.save({"w": torch.ones(2)}, tmp_path / "c.json")
    target = {"w": torch.zeros(2), "new_head": torch.zeros(3)}
    assert jsonckpt.load_into(target, tmp_path / "c.json", exclude="new_*").loaded == ("/w",)
    with pytest.raises(jsonckpt.StateMismatchError, match="selects no tensor"):
        jsonckpt.load_into(target, tmp_path / "c.json", strict=False, exclude="new*x")


def test_weights_only_may_be_none_as_in_torch(path: Path) -> None:
    assert same(jsonckpt.load(path, weights_only=None), STATE)
    with pytest.raises(ValueError, match="unpickling"):
        jsonckpt.load(path, weights_only=False)


def test_what_is_left_out_is_not_read(tmp_path: Path) -> None:
    result = jsonckpt.save(STATE, tmp_path, max_shard_size=1)
    with jsonckpt.open(tmp_path) as checkpoint:
        index = checkpoint.manifest.by_name[W].shard
    for number, name in enumerate(result.files[:-1]):
        if number != index:
            os.unlink(tmp_path / name)
    assert same(jsonckpt.load(tmp_path, include=W)["model"]["w"], STATE["model"]["w"])
    with pytest.raises(jsonckpt.IncompleteCheckpointError, match="missing"):
        jsonckpt.load(tmp_path)


# --- the other arguments ----------------------------------------------------------------------


def test_nothing_is_ever_unpickled(path: Path) -> None:
    assert same(jsonckpt.load(path, weights_only=True), STATE)
    with pytest.raises(ValueError, match="unpickling"):
        jsonckpt.load(path, weights_only=False)


@pytest.mark.parametrize("threads", [None, 1, 2, 5])
def test_threads(path: Path, threads: int | None) -> None:
    assert same(jsonckpt.load(path, threads=threads), STATE)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True])
def test_threads_that_are_no_number(path: Path, threads: Any) -> None:
    with pytest.raises(ValueError, match="threads"):
        jsonckpt.load(path, threads=threads)


@pytest.mark.parametrize(
    "limits",
    [
        {"tensors": 5},
        {"chunks": 5},
        {"name_bytes": 8},
        {"rank": 1},
        {"chunk_bytes": 7},
    ],
    ids=str,
)
def test_limits(path: Path, limits: dict[str, int]) -> None:
    for reader in readers_for(path).values():
        with pytest.raises(jsonckpt.LimitError):
            reader(path, limits=jsonckpt.Limits(**limits))
        lifted = jsonckpt.Limits(**dict.fromkeys(limits))
        assert same(reader(path, limits=lifted), STATE)


def test_the_limit_of_depth(path: Path) -> None:
    for reader in readers_for(path).values():
        with pytest.raises(jsonckpt.JsonckptError, match="deeper than 3"):
            reader(path, limits=jsonckpt.Limits(depth=3))


def test_verify_false_still_checks_everything_but_the_data(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    state = {"w": torch.zeros(30, dtype=torch.uint8)}
    jsonckpt.save(state, path)
    path.write_bytes(path.read_bytes().replace(b'"AAAA', b'"BAAA', 1))
    for reader in readers_for(path).values():
        with pytest.raises(jsonckpt.IntegrityError, match="'/w'"):
            reader(path)
        assert reader(path, verify=False)["w"].tolist() == [4, *[0] * 29]
    path.write_bytes(path.read_bytes()[:-5])
    for reader in readers_for(path).values():
        with pytest.raises(jsonckpt.JsonckptError):
            reader(path, verify=False)


# --- paths ------------------------------------------------------------------------------------


def test_a_missing_path_names_its_neighbours(path: Path) -> None:
    mistyped = path.with_name("d.json")
    with pytest.raises(jsonckpt.CheckpointNotFoundError) as caught:
        jsonckpt.load(mistyped)
    assert str(mistyped) in str(caught.value)
    assert f"The same directory has {path.name}." in str(caught.value)
    assert isinstance(caught.value, FileNotFoundError)


def test_a_directory_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(jsonckpt.CheckpointNotFoundError, match=r"no manifest\.json"):
        jsonckpt.load(tmp_path)


def test_the_manifests_own_path(tmp_path: Path) -> None:
    jsonckpt.save(STATE, tmp_path)
    assert same(jsonckpt.load(tmp_path / "manifest.json"), STATE)
    assert same(jsonckpt.load(str(tmp_path / "manifest.json")), STATE)


def test_bytes_are_no_path(path: Path) -> None:
    with pytest.raises(TypeError, match="str"):
        jsonckpt.load(os.fsencode(path))


def test_a_moved_checkpoint(path: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    moved = path.rename(tmp_path / "elsewhere" / path.name)
    assert same(jsonckpt.load(moved), STATE)


@pytest.mark.parametrize("most", [1, 7, 1 << 16])
def test_file_objects(tmp_path: Path, most: int) -> None:
    buffer = io.BytesIO()
    jsonckpt.save(STATE, buffer)
    assert same(jsonckpt.load(io.BytesIO(buffer.getvalue())), STATE)
    assert same(jsonckpt.load(Trickle(io.BytesIO(buffer.getvalue()), most)), STATE)
    (tmp_path / "c.json").write_bytes(buffer.getvalue())
    with open(tmp_path / "c.json", "rb") as file:
        assert same(jsonckpt.load(file), STATE)


def test_a_pipe() -> None:
    reading, writing = os.pipe()

    def write() -> None:
        with open(writing, "wb") as file:
            jsonckpt.save(STATE, file)

    writer = threading.Thread(target=write)
    writer.start()
    with open(reading, "rb") as file:
        assert same(jsonckpt.load(file), STATE)
    writer.join()


def test_a_pipe_that_is_cut_off() -> None:
    buffer = io.BytesIO()
    jsonckpt.save(STATE, buffer)
    text = buffer.getvalue()
    for length in (0, 1, 100, len(text) // 2, len(text) - 1):
        with pytest.raises(jsonckpt.JsonckptError):
            jsonckpt.load(io.BytesIO(text[:length]))


# --- sharing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_shared_memory_shares_it_again(tmp_path: Path, name: str) -> None:
    base = torch.arange(12.0)
    tied = torch.nn.Parameter(torch.ones(3))
    state = {"a": base[:8], "b": base[4:], "t": [tied, {"again": tied}], "alone": torch.ones(3)}
    path = tmp_path / name
    jsonckpt.save(state, path)
    for reader in readers_for(path).values():
        found = reader(path)
        assert same(found, state)
        found["a"][4] = -1
        assert found["b"][0] == -1
        assert found["t"][0] is found["t"][1]["again"]
        part = reader(path, include="/b")
        assert same(part["b"], state["b"])
        again = reader(path, include="/t/1")
        assert same(again["t"][0]["again"], tied)


def test_a_small_part_of_a_large_tensor_is_stored_alone(tmp_path: Path) -> None:
    large = torch.zeros(1_000_000)
    result = jsonckpt.save({"part": large[500:510]}, tmp_path / "c.json")
    assert result.nbytes == 40
    assert jsonckpt.load(result.path)["part"].untyped_storage().nbytes() == 40


@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize(
    ("value", "says"),
    [(5, "not 'int'"), (b"/a", "not 'bytes'"), (["/a", 5], "a sequence that holds '5'")],
)
def test_what_is_no_selector(path: Path, argument: str, value: Any, says: str) -> None:
    target: Any = {}
    with jsonckpt.open(path) as checkpoint:
        for read in (
            lambda **options: jsonckpt.load(path, **options),
            lambda **options: list(jsonckpt.stream(path, **options)),
            lambda **options: jsonckpt.load_into(target, path, **options),
            checkpoint.load,
        ):
            with pytest.raises(jsonckpt.ArgumentError, match=f"^{argument} must be .*{says}"):
                read(**{argument: value})


def test_a_selector_may_be_an_iterator(path: Path) -> None:
    assert list(dict(jsonckpt.stream(path, include=iter([W]))).keys()) == [W]  # type: ignore[arg-type]


def test_every_load_has_memory_of_its_own(path: Path) -> None:
    one, two = jsonckpt.load(path), jsonckpt.load(path)
    for tensor in leaves(one):
        tensor.zero_()
    assert same(two, STATE)
