"""The copy of a state's tensors for a background save, in memory that is reused.

Fresh memory costs more than the copy itself, because each page is faulted in on its first use. So
the next save uses the memory again.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from ..parallel import default_threads, run_all
from ..tensors.buffers import Source
from ..tensors.memory import borrow_range

#: Bytes that one thread copies at a time: enough for the C library to bypass the caches, and few
#: enough that the threads end at about the same time.
_PIECE = 32 << 20
#: Each copy begins at a multiple of this: a cache line, and a multiple of every item size.
_ALIGNMENT = 64
#: Copying less than this takes less time than starting threads, or using torch's.
_WORTH_THREADS, _WORTH_TORCH = 8 << 20, 256 << 10
#: The dtype of copies. As ``uint8`` the same bytes take torch a tenth longer.
_WORDS = (torch.int64, torch.int32, torch.int16, torch.uint8)
#: From the kernel's headers (Linux 4.14); the ``mmap`` module does not have it.
_MADV_WIPEONFORK = 18
#: ``cudaHostRegisterPortable``: pinned for every device.
_PORTABLE = 1
#: ``(source, memory, start, stop)``.
_Piece = tuple[Source, "np.ndarray[Any, Any]", int, int]


class Buffers:
    """Host memory for one copy of a state, as large as the largest state so far.

    Not for use by several threads at once. A copy is valid until the next call of :meth:`stage`.

    >>> buffers, w = Buffers(), torch.arange(3, dtype=torch.uint8)
    >>> source = Source.of("/w", w)
    >>> buffers.stage([source])
    >>> _ = w.fill_(9)
    >>> bytes(source.read(0, 3))
    b'\\x00\\x01\\x02'
    """

    def __init__(self) -> None:
        self._forget()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        # A forked child makes its own buffers when it saves. The parent unpins what it pinned.
        self._pairs = _Pairs()
        self._plain = _Arena(pinned=False)
        self._pinned = _Arena(pinned=True)

    def stage(self, sources: Sequence[Source]) -> None:
        """Copy the bytes of all sources. The sources then refer to the copy.

        Returns when the copies are complete, also those from a CUDA device. They run in the
        device's current stream, after the work that the training has queued there.

        Raises:
            MemoryError: there is not enough memory for a copy of the state.
        """
        for arena in (self._plain, self._pinned):
            chosen = [source for source in sources if source.on_cuda is arena.pinned]
            offsets, total = _lay_out([source.nbytes for source in chosen])
            if not arena.pinned and total > arena.size:
                self._pairs = _Pairs()  # they keep the memory alive that is freed here
            memory = arena.take(total)
            if arena.pinned:
                _copy_from_devices(_pieces(chosen, offsets, memory))
            elif torch.get_num_threads() > 1:
                # In a training loop torch's threads busy-wait for work. Other threads would share
                # their processors.
                self._pairs.copy(chosen, offsets, memory)
            else:
                threads = default_threads() if total >= _WORTH_THREADS else 1
                run_all(_pieces(chosen, offsets, memory), _copy, threads=threads)
            owner, start = torch.from_numpy(memory), memory.ctypes.data
            for source, offset in zip(chosen, offsets):
                source.relocate(owner, start + offset)

    def release(self) -> None:
        """Free the memory. The copy is not valid any more."""
        self._pairs = _Pairs()
        self._plain.release()
        self._pinned.release()


def detach(sources: Sequence[Source]) -> None:
    """Drop the copy. The sources cannot be read any more."""
    nothing = torch.empty(0)
    for source in sources:
        source.relocate(nothing, 0)


def _lay_out(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Where each copy begins, and where the last one ends."""
    offsets = []
    end = 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // _ALIGNMENT) * _ALIGNMENT
    return offsets, end


def _pieces(
    sources: Sequence[Source], offsets: Sequence[int], memory: np.ndarray[Any, Any]
) -> Iterator[list[_Piece]]:
    """Jobs of about :data:`_PIECE` bytes: part of one large tensor, or several small ones."""
    job: list[_Piece] = []
    size = 0
    for source, offset in zip(sources, offsets):
        for start in range(0, source.nbytes, _PIECE):
            stop = min(source.nbytes, start + _PIECE)
            job.append((source, memory[offset + start : offset + stop], start, stop))
            size += stop - start
            if size >= _PIECE:
                yield job
                job, size = [], 0
    if job:
        yield job


def _copy(job: list[_Piece]) -> None:
    for source, memory, start, stop in job:
        if source.address:
            ctypes.memmove(memory.ctypes.data, source.address + start, stop - start)
        else:
            source.copy_to(memory, start, stop)


class _Pairs:
    """Copies with torch's threads. Remembers the pairs of tensors from one save to the next.

    A training loop saves the same memory again and again. With tensors of some hundred kilobytes,
    making these pairs takes a fifth of the time of a copy.
    """

    def __init__(self) -> None:
        self._places: list[tuple[int, int]] = []
        self._begin = 0
        self._large: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._rest: list[int] = []

    def copy(
        self, sources: Sequence[Source], offsets: Sequence[int], memory: np.ndarray[Any, Any]
    ) -> None:
        """Copy all of ``sources``. They keep alive what is read here by address."""
        places = [(source.address, source.nbytes) for source in sources]
        begin = memory.ctypes.data
        if places != self._places or begin != self._begin:
            self._places = []  # an error leaves it incomplete
            # Tensors that are made in inference mode could not be written to outside of it later.
            with torch.inference_mode(False):
                self._prepare(places, offsets, memory)
            self._places, self._begin = places, begin
        for copy, original in self._large:
            copy.copy_(original)
        for number in self._rest:
            (address, nbytes), offset = places[number], offsets[number]
            if address:
                ctypes.memmove(begin + offset, address, nbytes)
            else:
                sources[number].copy_to(memory[offset : offset + nbytes], 0, nbytes)

    def _prepare(
        self,
        places: Sequence[tuple[int, int]],
        offsets: Sequence[int],
        memory: np.ndarray[Any, Any],
    ) -> None:
        self._large, self._rest = [], []
        whole = torch.from_numpy(memory)
        for number, ((address, nbytes), offset) in enumerate(zip(places, offsets)):
            if address and nbytes >= _WORTH_TORCH:
                word = next(w for w in _WORDS if not (address | nbytes) % w.itemsize)
                target = whole[offset : offset + nbytes].view(word)
                self._large.append((target, borrow_range(address, nbytes, None).view(word)))
            else:
                self._rest.append(number)


def _copy_from_devices(jobs: Iterator[list[_Piece]]) -> None:
    devices: set[str] = set()
    try:
        for job in jobs:
            devices.update(source.device for source, _, _, _ in job)
            _copy(job)
    finally:
        # After an error, too: a late copy must not overwrite memory that is used for something
        # else.
        for device in devices:
            torch.cuda.current_stream(torch.device(device)).synchronize()


class _Arena:
    """One block of memory that grows when more is asked for."""

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._memory: np.ndarray[Any, Any] = np.empty(0, np.uint8)
        self._registered = False

    @property
    def size(self) -> int:
        """The bytes that it has now."""
        return len(self._memory)

    def take(self, nbytes: int) -> np.ndarray[Any, Any]:
        """The first ``nbytes`` of it. What was taken before is overwritten or freed."""
        if nbytes > len(self._memory):
            # Freed first, so that there is never a second copy.
            self.release()
            self._memory = _fresh(nbytes)
            if self.pinned:
                # If the system refuses to pin so much, the copy is slower, but correct.
                self._registered = _register(self._memory)
        return self._memory[:nbytes]

    def release(self) -> None:
        """Free it."""
        if self._registered:
            self._registered = False
            _cuda_runtime().cudaHostUnregister(self._memory.ctypes.data)
        self._memory = np.empty(0, np.uint8)


def _fresh(nbytes: int) -> np.ndarray[Any, Any]:
    """Private memory that forked children see as zeros."""
    size = -(-nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    try:
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(
            f"not enough memory for a copy of the state: {nbytes} bytes. Use jsonckpt.save, which"
            " needs no copy"
        ) from error
    if sys.platform.startswith("linux"):
        # A hint that the system may refuse. Without it, the kernel would copy every page that is
        # written while a child process lives (a DataLoader's worker), for a child that never reads
        # it.
        with suppress(OSError):
            mapped.madvise(_MADV_WIPEONFORK)
    return np.frombuffer(mapped, np.uint8)


def _register(memory: np.ndarray[Any, Any]) -> bool:
    """Pin memory, so that devices can copy to it directly. Returns whether that was possible.

    torch's own allocator of pinned memory rounds each size up to a power of two, which would be
    nearly two copies of the state.
    """
    status = _cuda_runtime().cudaHostRegister(memory.ctypes.data, memory.nbytes, _PORTABLE)
    if int(status) == 0:
        return True
    # CUDA reports the error at the next launch of a kernel. Make that launch here, not in the
    # training.
    with suppress(RuntimeError):
        torch.ones(1, device="cuda")
    return False


def _cuda_runtime() -> Any:
    return torch.cuda.cudart()  # type: ignore[no-untyped-call]
