"""Checkpoints of the past stay readable: every reader gives back exactly what was saved."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import json
import re
import warnings
import zoneinfo
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import jsonckpt
from tests import independent_reader
from tests.golden.cases import CASES, Case
from tests.golden.elements import DTYPES, NEWER_DTYPES
from tests.golden.make_v1 import FOLDER, files, main
from tests.schemas import validate_checkpoint
from tests.support import difference

DIGESTS = Path(__file__).parent / "v1.sha256.json"

SPECIFICATION = Path(__file__).parents[2] / "docs" / "format.md"


def _zones_are_known() -> bool:
    try:
        zoneinfo.ZoneInfo("Europe/Paris")
    except zoneinfo.ZoneInfoNotFoundError:
        return False
    return True


def only(chosen: Callable[[Case], bool]) -> pytest.MarkDecorator:
    """Parametrize a test with some of the cases."""
    cases = [case for case in CASES if chosen(case)]
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.path, indirect=True)


@pytest.fixture(params=CASES, ids=lambda case: case.path)
def case(request: pytest.FixtureRequest) -> Case:
    found: Case = request.param
    if missing := [name for name in found.needs if not hasattr(torch, name)]:
        pytest.skip(f"this torch has no {missing[0]}")
    if found.needs_zones and not _zones_are_known():
        pytest.skip("this system has no time zones")
    return found


@pytest.fixture
def expected(case: Case) -> Any:
    return _state(case.path)


@functools.cache
def _state(path: str) -> Any:
    [case] = [case for case in CASES if case.path == path]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        return case.state()


def _path(case: Case) -> Path:
    return FOLDER / case.path


# --- the files --------------------------------------------------------------------------------


def test_no_golden_file_is_missing_new_or_changed() -> None:
    assert files() == json.loads(DIGESTS.read_text())


def test_every_golden_checkpoint_has_a_case() -> None:
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(case.path for case in CASES)


def test_the_maker_refuses_to_mend_a_changed_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "v1"
    folder.mkdir()
    digests = {"a.json": hashlib.sha256(b"{}").hexdigest()}
    (tmp_path / "digests.json").write_text(json.dumps(digests))
    monkeypatch.setattr("tests.golden.make_v1.FOLDER", folder)
    monkeypatch.setattr("tests.golden.make_v1.DIGESTS", tmp_path / "digests.json")
    with pytest.raises(SystemExit, match=r"missing or changed: a\.json"):
        main()
    assert not list(folder.iterdir())


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.rglob("*")) < 1_500_000


# --- what they cover --------------------------------------------------------------------------


def _documents() -> Iterator[tuple[Case, dict[str, Any]]]:
    for case in CASES:
        path = _path(case)
        texts = sorted(path.iterdir()) if path.is_dir() else [path]
        for text in texts:
            yield case, json.loads(independent_reader.file_text(text))


def _tags(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if len(node) == 1 and next(iter(node)).startswith("$"):
            yield next(iter(node))[1:]
        for member in node.values():
            yield from _tags(member)
    elif isinstance(node, list):
        for element in node:
            yield from _tags(element)


def test_every_tag_dtype_and_codec_is_covered() -> None:
    tags: set[str] = set()
    codecs: set[str] = set()
    by_case: dict[str, set[str]] = {case.path: set() for case in CASES}
    dtypes: set[tuple[str, str]] = set()
    checksums: set[str] = set()
    for case, document in _documents():
        tags |= set(_tags(document.get("state")))
        checksums.add(document["checksum"])
        if document["format"] == "jsonckpt.manifest":
            assert len(document["shards"]) == case.shards, case.path
            continue
        for record in document["tensors"]:
            parts = [record[key] for key in ("encoding", "compression", "filter")]
            codec = " ".join(part for part in parts if part != "none")
            codecs.add(codec)
            by_case[case.path].add(codec)
            dtypes.add((record["dtype"], record["encoding"]))
            assert "device" not in record
    named = re.findall(r'`\{"\$([a-z_]+)"', SPECIFICATION.read_text(encoding="utf-8"))
    assert len(set(named)) > 40
    assert not set(named) - tags
    assert {case.path: set(case.codecs) for case in CASES} == by_case
    assert codecs == {"base64", "base64 shuffle", "base64 zstd", "base64 zstd shuffle", "list"}
    both = ("base64", "list")
    assert dtypes == {(name, one) for name in {**DTYPES, **NEWER_DTYPES} for one in both}
    assert checksums == {"xxh3_128", "sha256"}


def test_some_tensors_have_many_chunks() -> None:
    counts = [
        len(record["chunks"])
        for _, document in _documents()
        if document["format"] == "jsonckpt.shard"
        for record in document["tensors"]
    ]
    assert {0, 1, 2} < set(counts)
    assert max(counts) > 20


def agree(expected: Any, found: Any, *, memory: bool = True) -> None:
    """Fail with the first difference between two states, in memory that is shared, too."""
    problem = difference(expected, found)
    if problem is None and memory:
        problem = sharing_difference(expected, found)
    if problem is not None:
        pytest.fail(problem, pytrace=False)


# --- reading them -----------------------------------------------------------------------------


def test_they_follow_the_schemas(case: Case) -> None:
    validate_checkpoint(_path(case))


def test_they_verify(case: Case) -> None:
    report = jsonckpt.verify(_path(case))
    assert report.ok, str(report)


def test_load_gives_what_was_saved(case: Case, expected: Any) -> None:
    found = jsonckpt.load(_path(case))
    agree(expected, found)


def test_loading_tensor_by_tensor_gives_the_metadata_and_the_state(
    case: Case, expected: Any
) -> None:
    with jsonckpt.open(_path(case)) as checkpoint:
        assert checkpoint.metadata == case.options.get("metadata", {})
        agree(expected, checkpoint.load())
        for name in checkpoint:
            entry = checkpoint[name]
            tensor = entry.load()
            assert (tensor.dtype, tensor.shape) == (entry.dtype, entry.shape)


class _Pipe:
    """Bytes that come forward only, a few at a time."""

    def __init__(self, data: bytes) -> None:
        self._data = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._data.read(min(size, 1000) if size >= 0 else 1000)


@only(lambda case: case.path.endswith(".json"))
def test_a_pipe_gives_what_was_saved(case: Case, expected: Any) -> None:
    found = jsonckpt.load(_Pipe(_path(case).read_bytes()))
    agree(expected, found)


def _by_name(node: Any) -> Any:
    """A state tree whose places refer to their own names."""
    if isinstance(node, list):
        return [_by_name(element) for element in node]
    if not isinstance(node, dict):
        return node
    if list(node) in (["$view"], ["$tied"], ["$regions"]):
        [body] = node.values()
        return {"$tensor": body["name"]}
    return {key: _by_name(member) for key, member in node.items()}


@only(lambda case: not case.needs_types)
def test_the_stream_gives_what_was_saved(case: Case, expected: Any) -> None:
    tree, _ = independent_reader.read(_path(case))
    tensors = dict(jsonckpt.stream(_path(case)))
    agree(expected, _resolved(_by_name(tree), tensors), memory=False)


@only(lambda case: not case.needs_types)
def test_the_second_reader_gives_what_was_saved(case: Case, expected: Any) -> None:
    agree(expected, _resolved(*independent_reader.read(_path(case))))


def test_a_reader_without_a_registered_type_says_so_by_name() -> None:
    with pytest.raises(ValueError, match=r"registered under golden\.Color"):
        independent_reader.load(FOLDER / "registered.json")


def _resolved(tree: Any, tensors: dict[str, torch.Tensor]) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about sparse and quantized tensors
        return independent_reader.resolve(tree, tensors)


def test_a_model_and_an_optimizer_take_the_state() -> None:
    state = jsonckpt.load(FOLDER / "gpt2-adamw.json")
    model = _Model()
    model.load_state_dict(state["model_state_dict"])
    shape = model.transformer.wte.weight.shape
    assert torch.equal(model.lm_head.weight, state["model_state_dict"]["transformer.wte.weight"])
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    parameters = list(model.parameters())
    groups: Any = [{"params": parameters[:-2]}, {"params": parameters[-2:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups)
    optimizer.load_state_dict(state["optimizer_state_dict"])
    assert optimizer.state[parameters[0]]["exp_avg"].shape == shape
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert float(optimizer.state[parameters[0]]["step"]) == 13.0


class _Block(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = torch.nn.LayerNorm(width)
        self.attn = torch.nn.ModuleDict(
            {"c_attn": _Conv1D(width, 3 * width), "c_proj": _Conv1D(width, width)}
        )
        self.ln_2 = torch.nn.LayerNorm(width)
        self.mlp = torch.nn.ModuleDict(
            {"c_fc": _Conv1D(width, 4 * width), "c_proj": _Conv1D(4 * width, width)}
        )


class _Conv1D(torch.nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = torch.nn.Parameter(torch.zeros(outputs))


class _Transformer(torch.nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.wte = torch.nn.Embedding(96, width)
        self.wpe = torch.nn.Embedding(24, width)
        self.h = torch.nn.ModuleList([_Block(width), _Block(width)])
        self.ln_f = torch.nn.LayerNorm(width)


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transformer = _Transformer(16)
        self.lm_head = torch.nn.Linear(16, 96, bias=False)
        self.lm_head.weight = self.transformer.wte.weight


# --- shared memory ----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Memory:
    """Where one tensor or array lies: addresses and strides in bytes."""

    place: str
    start: int
    stop: int
    strides: tuple[int, ...]

    def overlaps(self, other: _Memory) -> bool:
        return self.start < other.stop and other.start < self.stop


def _memories(value: Any, place: str = "") -> Iterator[_Memory]:
    if isinstance(value, torch.Tensor):
        if value.layout is torch.strided and value.numel() and not value.is_quantized:
            sizes = [(size, step) for size, step in zip(value.shape, value.stride()) if size > 1]
            last = sum((size - 1) * step for size, step in sizes)
            start, width = value.data_ptr(), value.element_size()
            strides = tuple(step * width for _, step in sizes)
            yield _Memory(place, start, start + (last + 1) * width, strides)
    elif isinstance(value, np.ndarray):
        if value.size and value.dtype.kind not in "US":
            start = value.__array_interface__["data"][0]
            strides = tuple(s for n, s in zip(value.shape, value.strides) if n > 1)
            yield _Memory(place, start, start + value.nbytes, strides)
    elif isinstance(value, dict):
        for position, member in enumerate(value.values()):
            yield from _memories(member, f"{place}/{position}")
    elif isinstance(value, list | tuple):
        for position, element in enumerate(value):
            yield from _memories(element, f"{place}/{position}")


def sharing_difference(expected: Any, found: Any) -> str | None:
    """Which two values share memory in one state and not, or otherwise, in the other."""
    ours, theirs = list(_memories(expected)), list(_memories(found))
    assert [memory.place for memory in ours] == [memory.place for memory in theirs]
    for j, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        for first, second in zip(ours[:j], theirs[:j], strict=True):
            if first.overlaps(one) != second.overlaps(other):
                return f"{first.place} and {one.place}: one memory in one of the states only"
            if not first.overlaps(one):
                continue
            if one.start - first.start != other.start - second.start:
                return f"{first.place} and {one.place}: another distance"
            if (first.strides, one.strides) != (second.strides, other.strides):
                return f"{first.place} and {one.place}: other strides"
    return None


def test_the_comparison_of_memory_can_fail() -> None:
    base = torch.zeros(8)
    state = [base, base[2:4]]
    assert sharing_difference(state, [base, base[2:4]]) is None
    assert sharing_difference(state, [base, base[2:4].clone()]) is not None
    assert sharing_difference([base, base.clone()], [base, base]) is not None
    assert sharing_difference(state, [base, base[3:5]]) is not None
    assert sharing_difference(state, [base, base[2::4]]) is not None
