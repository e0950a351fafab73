"""Any state, any options, any container: every way back gives the same, or the same refusal."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import jsonckpt
from tests.readers import indexed, readers_for
from tests.support import difference, examples, same
from tests.tensor_states import options, states, tensors

CONTAINERS = ["checkpoint", "one.json", "one.json.zst", "pipe.json"]


def write(state: Any, directory: Path, container: str, chosen: dict[str, Any]) -> Path:
    """Save; what cannot be combined is changed to what can."""
    whole_files = chosen["encoding"] == "list" and chosen["compression"] == "zstd"
    if whole_files and container in ("one.json", "pipe.json"):
        chosen = {**chosen, "compression": None}
    if chosen["encoding"] == "list" and chosen["filter"] == "shuffle":
        chosen = {**chosen, "filter": "none"}
    path = directory / container
    if container == "pipe.json":
        pipe = io.BytesIO()
        jsonckpt.save(state, pipe, **chosen)
        path.write_bytes(pipe.getvalue())
    else:
        jsonckpt.save(state, path, **chosen)
    return path


@contextmanager
def scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        yield Path(directory)


@settings(max_examples=examples(60))
@given(states, options(), st.sampled_from(CONTAINERS))
def test_every_way_back_is_the_same(state: Any, chosen: dict[str, Any], container: str) -> None:
    with scratch() as directory:
        path = write(state, directory, container, chosen)
        for reader in readers_for(path).values():
            assert difference(reader(path), state) is None
        with jsonckpt.open(path) as checkpoint:
            assert difference(checkpoint.load(), state) is None
            passed = dict(jsonckpt.stream(path))
            assert sorted(passed) == sorted(checkpoint)
            for name, entry in checkpoint.items():
                assert same(entry.load(), passed[name])
                assert entry.dtype == passed[name].dtype
                assert entry.shape == passed[name].shape
                assert entry.nbytes == passed[name].numel() * passed[name].element_size()
        report = jsonckpt.verify(path)
        assert report.ok, str(report)


slices = st.builds(
    slice,
    st.none() | st.integers(-7, 7),
    st.none() | st.integers(-7, 7),
    st.none() | st.integers(1, 3),
)


@settings(max_examples=examples(50))
@given(
    tensors().filter(lambda tensor: tensor.dim() > 0),
    options(),
    st.sampled_from(CONTAINERS),
    st.lists(slices | st.integers(-6, 6) | st.tuples(slices, slices), min_size=1, max_size=6),
)
def test_parts_are_the_parts_of_the_tensor(
    tensor: torch.Tensor, chosen: dict[str, Any], container: str, keys: list[Any]
) -> None:
    with scratch() as directory:
        path = write({"w": tensor}, directory, container, chosen)
        with jsonckpt.open(path) as checkpoint:
            entry = checkpoint["/w"]
            assert len(entry) == len(tensor)
            for key in keys:
                try:
                    expected = tensor[key]
                except IndexError:
                    with pytest.raises(IndexError):
                        entry[key]
                else:
                    assert difference(entry[key].contiguous(), expected.contiguous()) is None


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """A change of a file: which one, where (a fraction), what."""
    return (
        draw(st.integers(0, 9)),
        draw(st.floats(0, 1, exclude_max=True)),
        draw(st.sampled_from(["flip", "cut", "drop", "double", "put"])),
        draw(st.binary(min_size=1, max_size=3) | st.sampled_from([b" ", b'"', b",", b"}", b"0"])),
    )


def damage(path: Path, change: Any) -> None:
    number, fraction, kind, content = change
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    file = files[number % len(files)]
    data = file.read_bytes()
    at = int(fraction * len(data))
    data = {
        "flip": data[:at] + content[:1] + data[at + 1 :],
        "cut": data[:at],
        "drop": data[:at] + data[at + 1 :],
        "double": data[:at] + data[at : at + 1] + data[at:],
        "put": data[:at] + content + data[at:],
    }[kind]
    file.write_bytes(data)


def verdict(reader: Any, path: Path) -> Any:
    try:
        return reader(path)
    except jsonckpt.JsonckptError:
        return jsonckpt.JsonckptError


@settings(max_examples=examples(150))
@given(
    tensors(),
    options(),
    st.sampled_from(CONTAINERS),
    st.lists(damages(), min_size=1, max_size=2),
)
def test_both_readers_judge_a_damaged_file_alike(
    tensor: torch.Tensor, chosen: dict[str, Any], container: str, changes: list[Any]
) -> None:
    state = {"w": tensor, "b": [tensor.clone(), 1]}
    with scratch() as directory:
        path = write(state, directory, container, chosen)
        for change in changes:
            damage(path, change)
        first = verdict(indexed, path)
        for name, reader in readers_for(path).items():
            assert difference(verdict(reader, path), first) is None, name
        report = jsonckpt.verify(path)
        assert report.ok == (first is not jsonckpt.JsonckptError), str(report)
