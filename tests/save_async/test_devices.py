"""save_async: copies from devices. What only a GPU has is played by fakes."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from jsonckpt._src.save import staging
from jsonckpt._src.tensors.buffers import Source
from tests.save_async.obstacles import fail


class FakeSource:
    """Looks like a tensor on a CUDA device; its copy arrives when the stream is waited for."""

    on_cuda = True
    address = 0

    def __init__(self, name: str, device: str, data: bytes, cuda: FakeCuda) -> None:
        self.name, self.device, self._data, self._cuda = name, device, data, cuda
        self.nbytes = len(data)

    def copy_to(self, memory: Any, start: int, stop: int) -> None:
        def arrive() -> None:
            memory[:] = np.frombuffer(self._data[start:stop], np.uint8)

        self._cuda.queues.setdefault(self.device, []).append(arrive)

    def relocate(self, memory: torch.Tensor, address: int) -> None:
        start = address - memory.data_ptr() if self.nbytes else 0
        self.copy = bytes(memory[start : start + self.nbytes].tolist())


class FakeCuda:
    """Streams, and a runtime that pins memory."""

    def __init__(self, status: int) -> None:
        self.queues: dict[str, list[Callable[[], None]]] = {}
        self.log: list[str] = []
        self.status = status

    def current_stream(self, device: torch.device) -> Any:
        def synchronize() -> None:
            for arrive in self.queues.pop(str(device), []):
                arrive()

        return argparse.Namespace(synchronize=synchronize)

    def cudart(self) -> Any:
        def register(_address: int, nbytes: int, flags: int) -> int:
            self.log.append(f"pin {nbytes} {flags}")
            return self.status

        def unregister(_address: int) -> int:
            self.log.append("unpin")
            return 0

        return argparse.Namespace(cudaHostRegister=register, cudaHostUnregister=unregister)


@pytest.mark.parametrize("status", [0, 2])
def test_copies_from_devices(monkeypatch: pytest.MonkeyPatch, status: int) -> None:
    cuda = FakeCuda(status)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    monkeypatch.setattr(torch.cuda, "cudart", cuda.cudart)
    monkeypatch.setattr(torch, "ones", lambda *_, **__: cuda.log.append("clear the error"))
    monkeypatch.setattr(staging, "_PIECE", 128)
    buffers = staging.Buffers()
    data = [bytes([number]) * size for number, size in enumerate((5, 300, 0, 64))]
    sources: list[Any] = [
        FakeSource(f"/{n}", f"cuda:{n % 2}", content, cuda) for n, content in enumerate(data)
    ]
    host = Source.of("/host", torch.arange(5.0))
    expected = bytes(host.read(0, 20))
    buffers.stage([*sources, host])
    assert [source.copy for source in sources] == data
    assert bytes(host.read(0, 20)) == expected
    assert cuda.queues == {}
    buffers.stage(sources)
    pinned = "pin 4096 1" if status == 0 else "pin 4096 1 clear the error"
    assert " ".join(cuda.log) == pinned
    buffers.release()
    assert cuda.log[-1] == ("unpin" if status == 0 else "clear the error")


def test_copies_that_failed_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda(0)
    monkeypatch.setattr(torch.cuda, "current_stream", cuda.current_stream)
    monkeypatch.setattr(torch.cuda, "cudart", cuda.cudart)
    good, bad = (FakeSource(name, "cuda:0", b"x", cuda) for name in ("/good", "/bad"))
    monkeypatch.setattr(bad, "copy_to", fail(RuntimeError("out of memory")))
    sources: list[Any] = [good, bad]
    with pytest.raises(RuntimeError, match="out of memory"):
        staging.Buffers().stage(sources)
    assert cuda.queues == {}
