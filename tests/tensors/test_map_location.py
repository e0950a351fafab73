"""tensors.map_location: map_location in all its forms. Devices are played by ``meta``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from jsonckpt._src.errors import ArgumentError, FormatError, JsonckptError
from jsonckpt._src.tensors.map_location import placement

CPU = torch.device("cpu")
META = torch.device("meta")


def pretend_cuda(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    module = SimpleNamespace(is_available=lambda: count > 0, device_count=lambda: count)
    monkeypatch.setattr("torch.get_device_module", lambda _: module)


def test_none_goes_back_to_the_saved_device(monkeypatch: pytest.MonkeyPatch) -> None:
    assert placement(None).device_for("cpu") == CPU
    pretend_cuda(monkeypatch, 2)
    assert placement(None).device_for("cuda:1") == torch.device("cuda:1")
    with pytest.raises(JsonckptError, match=r"saved on cuda:2, but there are 2 such devices"):
        placement(None).device_for("cuda:2")


def test_none_without_the_device_says_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_cuda(monkeypatch, 0)
    expected = r"saved on cuda:0, but torch\.cuda\.is_available\(\) is False.*map_location='cpu'"
    with pytest.raises(JsonckptError, match=expected):
        placement(None).device_for("cuda:0")
    with pytest.raises(JsonckptError, match=expected):
        placement({"cuda:1": "cpu"}).device_for("cuda:0")
    with pytest.raises(JsonckptError, match=expected):
        placement(lambda _storage, _saved: None).relocate(torch.zeros(1), "cuda:0")


def test_device_type_that_torch_was_not_built_with() -> None:
    with pytest.raises(JsonckptError, match="saved on hpu:0"):
        placement(None).device_for("hpu:0")


@pytest.mark.parametrize("saved", ["gpu", "cuda:999", "cuda:128", "cuda:-1", "", "CUDA", "cpu\n"])
def test_what_is_no_device_is_refused(saved: str) -> None:
    with pytest.raises(FormatError, match="is not a device"):
        placement(None).device_for(saved)


def test_nothing_was_saved_on_meta() -> None:
    with pytest.raises(FormatError, match="meta"):
        placement(None).device_for("meta")


@pytest.mark.parametrize("where", ["meta", META])
def test_one_device_for_all(where: Any) -> None:
    assert placement(where).device_for("cpu") == META
    assert placement(where).device_for("cuda:0") == META
    assert placement(where).device_for("nonsense") == META
    tensor = torch.zeros(2)
    assert placement(where).relocate(tensor, "cpu") is tensor


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
@pytest.mark.parametrize("name", ["cuda", "cuda:7", "mps", "xpu", "xla"])
def test_a_device_that_is_not_here(name: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("has it")
    said = rf"map_location is '{name}', but .*(is False|no device xla)\. Pass map_location='cpu'"
    for where in (name, torch.device(name)):
        with pytest.raises(ArgumentError, match=said) as caught:
            placement(where)
        assert isinstance(caught.value, RuntimeError)
    mapping = placement({"cuda:0": name})
    assert mapping.device_for("cpu") == CPU
    with pytest.raises(ArgumentError, match=said):
        mapping.device_for("cuda:0")


def test_what_is_no_device() -> None:
    with pytest.raises(RuntimeError, match="gpu"):
        placement("gpu")


def test_mapping_moves_what_it_names() -> None:
    where = placement({"cuda:0": "cpu", torch.device("cpu"): META})
    assert where.device_for("cuda:0") == CPU
    assert where.device_for("cpu") == META


def test_callable_gets_memory_and_location() -> None:
    seen: list[tuple[torch.UntypedStorage, str]] = []

    def move(storage: torch.UntypedStorage, saved: str) -> torch.UntypedStorage:
        seen.append((storage, saved))
        return torch.UntypedStorage(storage.tolist())  # type: ignore[no-untyped-call]

    where = placement(move)
    tensor = torch.arange(6, dtype=torch.int16).view(2, 3)
    assert where.device_for("cuda:3") == CPU
    moved = where.relocate(tensor, "cuda:3")
    assert seen[0][0].data_ptr() == tensor.data_ptr()
    assert seen[0][1] == "cuda:3"
    assert torch.equal(moved, tensor)
    assert moved.data_ptr() != tensor.data_ptr()


def test_callable_may_decline_keep_or_leave_the_cpu() -> None:
    tensor = torch.arange(6).view(2, 3)
    assert placement(lambda _storage, _saved: None).relocate(tensor, "cpu") is tensor
    assert placement(lambda storage, _saved: storage).relocate(tensor, "cuda:0") is tensor
    moved = placement(
        lambda storage, _saved: torch.empty(
            storage.nbytes(), dtype=torch.uint8, device="meta"
        ).untyped_storage()
    ).relocate(tensor, "cpu")
    assert (moved.device, moved.shape, moved.dtype) == (META, (2, 3), torch.int64)


def test_callable_that_returns_nonsense() -> None:
    wrong: Any = lambda _storage, _saved: torch.zeros(2)  # noqa: E731
    with pytest.raises(JsonckptError, match="returned 'Tensor'"):
        placement(wrong).relocate(torch.zeros(2), "cpu")
    small = torch.zeros(1).untyped_storage()
    with pytest.raises(JsonckptError, match="4 bytes for a tensor of 8"):
        placement(lambda _storage, _saved: small).relocate(torch.zeros(2), "cpu")


def test_anything_else_is_refused() -> None:
    wrong: Any = 0
    with pytest.raises(JsonckptError, match="map_location is a int"):
        placement(wrong)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_callable_to_cuda() -> None:
    tensor = torch.arange(6).view(2, 3)
    moved = placement(lambda storage, _saved: storage.cuda()).relocate(tensor, "cpu")
    assert moved.is_cuda
    assert torch.equal(moved.cpu(), tensor)
