"""``load`` and ``stream``: from a checkpoint back to the state."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from jsonckpt.errors import FormatError, JsonckptError, LimitError, StateMismatchError, quote
from jsonckpt.limits import DEFAULT_LIMITS, Limits, exceeds
from jsonckpt.names import Selector, selector
from jsonckpt.opening import Container, locate, open_container
from jsonckpt.pipeline import default_threads
from jsonckpt.placement import MapLocation, Placement, placement
from jsonckpt.progress import progress_bar
from jsonckpt.registry import default_rules
from jsonckpt.sharing import StateReader
from jsonckpt.single import entry_of, manifest_of_head, parse_head
from jsonckpt.skeleton import Header, Record, SkeletonReader
from jsonckpt.storage import widen_pipe
from jsonckpt.streaming import ByteSource, Sink, read_records
from jsonckpt.tensors import Target
from jsonckpt.tree import OMIT, decode_state, record_of, tensor_names

__all__ = ["load", "stream"]

Allocate = Callable[[int], torch.UntypedStorage]


def load(
    path: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    weights_only: bool = True,
    verify: bool = True,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Any:
    """Read a checkpoint back: the state as it was given to :func:`jsonckpt.save`.

    Args:
        path: a directory, a ``.json`` or ``.json.zst`` file, a URL (extra ``remote``), or a binary
            file object (a pipe), which is read forward.
        map_location: as in ``torch.load``: ``None`` (back to the device it was saved from), a
            device or its name, a dict of names, or a callable on ``(storage, location)``.
        include, exclude: names, globs (``"/model_state_dict/*"``), sequences of these, or a
            callable on names. A tensor that is left out is left out of the tree, too.
        weights_only: accepted for ``torch.load``'s sake; nothing is ever unpickled.
        verify: compare the checksums of all data. Everything else is always checked.
        threads: ``None`` takes the processors that may be used, up to 8.
        progress: show a tqdm bar.
        limits: what is too large; ``None`` is ``jsonckpt.Limits()``.
        storage_options: passed to fsspec for URLs.

    Raises:
        CheckpointNotFoundError, IncompleteCheckpointError, FormatError, IntegrityError, LimitError:
            see :mod:`jsonckpt.errors`; no tensor is returned in any of these cases.
        StateMismatchError: ``include`` names what is not there.
        ValueError: ``weights_only=False``.

    >>> import tempfile, torch, jsonckpt
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     _ = jsonckpt.save({"a": torch.arange(3), "b": torch.zeros(2)}, directory + "/c.json")
    ...     jsonckpt.load(directory + "/c.json", exclude="/b")
    {'a': tensor([0, 1, 2])}
    """
    if not weights_only:
        raise ValueError(
            "weights_only=False asks for unpickling, which jsonckpt never does; leave it out"
        )
    return _load(
        path,
        map_location,
        include=include,
        exclude=exclude,
        verify=verify,
        threads=threads,
        progress=progress,
        limits=limits,
        storage_options=storage_options,
    )


def _load(
    path: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    verify: bool = True,
    threads: int | None = None,
    progress: bool = False,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
    allocate: Allocate | None = None,
    streaming: bool = False,
) -> Any:
    """:func:`load` with what only this package asks for.

    Args:
        allocate: makes the storage of a CPU tensor from its bytes, in a mapped file for example.
        streaming: use the forward-only reader although the ranges are known.
    """
    limits = limits or DEFAULT_LIMITS
    wishes = Wishes.of(include, exclude, map_location, allocate)
    if is_file_object(path):
        with progress_bar("load", None, show=progress) as advance:
            return _load_forward(path, wishes, limits, verify, advance)
    container = open_container(path, limits=limits, storage_options=storage_options)
    return load_container(
        container,
        wishes,
        limits=limits,
        threads=threads,
        verify=verify,
        progress=progress,
        streaming=streaming,
    )


def load_container(
    container: Container,
    wishes: Wishes,
    *,
    limits: Limits,
    threads: int | None,
    verify: bool = True,
    progress: bool = False,
    streaming: bool = False,
) -> Any:
    """The state of an opened checkpoint."""
    try:
        return _load_container(
            container,
            wishes,
            limits=limits,
            threads=thread_count(threads),
            verify=verify,
            progress=progress,
            streaming=streaming,
        )
    except JsonckptError as error:
        error.at(file=container.path)
        raise


def _load_container(
    container: Container,
    wishes: Wishes,
    *,
    limits: Limits,
    threads: int,
    verify: bool,
    progress: bool,
    streaming: bool,
) -> Any:
    by_name = container.manifest.by_name
    loading = Loading(container.manifest.state, wishes)
    loading.check(by_name)
    container.check_files(entry.shard for name, entry in by_name.items() if loading.wants(name))
    targets = {
        name: allocate_target(wishes, name, entry.dtype, entry.shape, entry.device)
        for name, entry in by_name.items()
        if loading.wants(name)
    }
    sinks = {name: target for name, target in targets.items() if target.needs_data}
    total = sum(by_name[name].nbytes for name in sinks)
    with progress_bar("load", total, show=progress) as advance:
        for shard, entries in container.shards():
            container.read(
                shard,
                entries,
                sinks,
                limits=limits,
                threads=threads,
                verify=verify,
                streaming=streaming,
                progress=advance,
            )
            for entry in entries:
                target = targets.pop(entry.name, None)
                if target is not None:
                    tensor = wishes.placement.relocate(target.finish(), entry.device)
                    loading.keep(entry.name, tensor)
    return loading.finish()


@dataclass(frozen=True)
class Wishes:
    """Which tensors are asked for, and where they are to go."""

    chosen: Callable[[str], bool]
    unmatched: Callable[[Iterable[str]], list[str]]
    placement: Placement
    allocate: Allocate | None

    @classmethod
    def of(
        cls,
        include: Selector | None,
        exclude: Selector | None,
        map_location: MapLocation = None,
        allocate: Allocate | None = None,
    ) -> Wishes:
        """From the arguments of the face."""
        return cls(*selector(include, exclude), placement(map_location), allocate)


class Loading:
    """A state on its way back: which records it needs, and the tensors read so far."""

    def __init__(self, state: Any, wishes: Wishes) -> None:
        self._state = state
        self._wishes = wishes
        self._names: list[str] = []
        self._records: dict[str, None] = {}
        self._views: dict[str, list[tuple[str, str, Any]]] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        self._chosen: set[str] = set()
        for name, tag, body in tensor_names(state):
            record = record_of(name, body)
            self._names.append(name)
            if wishes.chosen(name):
                self._chosen.add(name)
                self._records[record] = None
                if tag != "$tensor":
                    self._views.setdefault(record, []).append((name, tag, body))

    def wants(self, record: str) -> bool:
        """Whether a record is needed."""
        return record in self._records

    def check(self, records: Collection[str]) -> None:
        """Whether everything that is needed is there.

        Raises:
            FormatError: the state refers to a record that is not there.
            StateMismatchError: ``include`` names what is not there.
        """
        for record in self._records:
            if record not in records:
                raise FormatError(
                    f"the state refers to the tensor {quote(record)}, which is not there"
                )
        unmatched = self._wishes.unmatched(self._names)
        if unmatched:
            raise StateMismatchError(
                "include names tensors that the checkpoint lacks",
                missing=unmatched,
                hint='List its names with: python -c "import jsonckpt; '
                "print(*jsonckpt.open(PATH), sep='\\n')\"",
            )

    def keep(self, record: str, tensor: torch.Tensor) -> None:
        """A record has been read and checked."""
        self._tensors[record] = tensor

    def done(
        self, record: str, tensor: torch.Tensor, *, keep: bool
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A record has been read and checked: its tensors under their names."""
        if keep:
            self.keep(record, tensor)
        if record in self._chosen:
            yield record, tensor
        door = StateReader({record: tensor}, self._chosen)
        for name, tag, body in self._views.get(record, ()):
            yield name, door.get(tag, body, name)

    def finish(self) -> Any:
        """The state."""
        door = StateReader(self._tensors, self._chosen)
        state = decode_state(self._state, door, rules=default_rules())
        return None if state is OMIT else state


def _load_forward(
    stream: Any,
    wishes: Wishes,
    limits: Limits,
    verify: bool,
    advance: Callable[[int], None] | None,
) -> Any:
    forward = Forward(wishes, limits, verify)
    for record in forward.records(as_source(stream)):
        for _ in forward.close(record, keep=True):
            pass
        if advance is not None:
            advance(record.header.nbytes)
    assert forward.loading is not None
    return forward.loading.finish()


def stream(
    source: str | os.PathLike[str] | Any,
    map_location: MapLocation = None,
    *,
    include: Selector | None = None,
    exclude: Selector | None = None,
    verify: bool = True,
    limits: Limits | None = None,
    storage_options: Mapping[str, Any] | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Read forward only, tensor by tensor: ``(name, tensor)`` as they come.

    Each tensor has been checked wholly when it is yielded; whether the file is whole is known at
    its end, where an error is raised otherwise. Memory is one tensor and a few chunks.

    Args:
        source: a path or URL as for :func:`load`, or a binary file object, seekable or not
            (``sys.stdin.buffer``). A lone shard can be read, too.
        map_location, include, exclude, verify, limits, storage_options: as for :func:`load`.

    >>> import io, torch, jsonckpt
    >>> pipe = io.BytesIO()
    >>> _ = jsonckpt.save({"w": torch.ones(2)}, pipe)
    >>> list(jsonckpt.stream(io.BytesIO(pipe.getvalue())))
    [('/w', tensor([1., 1.]))]
    """
    limits = limits or DEFAULT_LIMITS
    forward = Forward(Wishes.of(include, exclude, map_location), limits, verify)
    if is_file_object(source):
        yield from forward.tensors(as_source(source))
        return
    place, name = locate(source, storage_options)
    if name is not None:
        try:
            with place.stream(name, zstd_window=limits.zstd_window) as opened:
                yield from forward.tensors(opened)
        except JsonckptError as error:
            error.at(file=place.where(name))
            raise
        return
    container = open_container(source, limits=limits, storage_options=storage_options)
    forward.loading = Loading(container.manifest.state, forward.wishes)
    forward.loading.check(container.manifest.by_name)
    for shard, entries in container.shards():
        for record in container.forward(
            shard, entries, open_sink=forward.open_sink, limits=limits, verify=verify
        ):
            yield from forward.close(record, keep=False)


class Forward:
    """Reading forward only: allocates as headers come, and keeps what has been read."""

    def __init__(self, wishes: Wishes, limits: Limits, verify: bool) -> None:
        self.wishes = wishes
        self.loading: Loading | None = None
        self._limits = limits
        self._verify = verify
        self._targets: dict[str, Target] = {}
        self._size: Callable[[], int] = int
        self._claimed = 0

    def tensors(self, source: ByteSource) -> Iterator[tuple[str, torch.Tensor]]:
        """The tensors of a single file or of a lone shard, let go one by one."""
        for record in self.records(source, alone=True):
            yield from self.close(record, keep=False)

    def records(self, source: ByteSource, *, alone: bool = False) -> Iterator[Record]:
        """The records of a single file; of a lone shard, too, if ``alone``.

        When it ends without an error, the file has passed every check that the indexed reader
        makes.
        """
        readers: list[SkeletonReader] = []

        def on_head(reader: SkeletonReader) -> None:
            readers.append(reader)
            # Of a pipe nobody knows the size: what has come so far counts.
            self._size = lambda: reader.position if source.size is None else source.size
            if "state" in reader.head or not alone:
                self.loading = Loading(parse_head(reader.head)[3], self.wishes)

        entries = []
        for record, _ in read_records(
            source,
            limits=self._limits,
            open_sink=self.open_sink,
            on_head=on_head,
            verify=self._verify,
        ):
            entries.append(entry_of(record))
            yield record
        if self.loading is not None:
            reader = readers[0]
            manifest = manifest_of_head(
                reader.head, entries, reader.position, self._limits, on_disk=source.size
            )
            self.loading.check(manifest.by_name)

    def open_sink(self, header: Header) -> Sink | None:
        """Memory for the next record, where it is wanted.

        Raises:
            LimitError: all records so far claim more than a file of this size may hold.
        """
        self._claimed += header.nbytes
        if exceeds(self._claimed, self._limits.total_bytes(self._size())):
            raise LimitError(
                f"{self._claimed} bytes of tensors in a file of {self._size()} bytes so far",
                tensor=header.name,
                hint="Pass limits=jsonckpt.Limits(total_floor=...) if it is meant.",
            )
        if self.loading is not None:
            wanted = self.loading.wants(header.name)
        else:
            wanted = self.wishes.chosen(header.name)
        if not wanted:
            return None
        target = allocate_target(
            self.wishes, header.name, header.dtype, header.shape, header.device
        )
        self._targets[header.name] = target
        return target if target.needs_data else None

    def close(self, record: Record, *, keep: bool) -> Iterator[tuple[str, torch.Tensor]]:
        """A record has been read and checked: its tensors, under their names.

        Args:
            keep: hold on to them for :meth:`Loading.finish`.
        """
        target = self._targets.pop(record.header.name, None)
        if target is None:
            return
        tensor = self.wishes.placement.relocate(target.finish(), record.header.device)
        if self.loading is None:
            yield record.header.name, tensor
        else:
            yield from self.loading.done(record.header.name, tensor, keep=keep)


def allocate_target(
    wishes: Wishes, name: str, dtype: str, shape: tuple[int, ...], device: str
) -> Target:
    """Memory for a record.

    Raises:
        LimitError: there is not so much.
    """
    try:
        return Target.allocate(
            dtype, shape, device=wishes.placement.device_for(device), allocate=wishes.allocate
        )
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "alloc" not in str(error):
            raise  # torch's own complaint, about a device that is not there for example
        raise LimitError(
            f"no memory for {dtype} {quote(list(shape))}: {quote(str(error))}", tensor=name
        ) from error


def thread_count(threads: int | None) -> int:
    """The argument ``threads`` of the face, checked."""
    if threads is None:
        return default_threads()
    if type(threads) is not int or threads < 1:
        raise ValueError(f"threads must be a positive integer or None, not {threads!r}")
    return threads


def is_file_object(source: object) -> bool:
    """Whether a source is to be read as it is, not opened by name."""
    return hasattr(source, "readinto") or hasattr(source, "read")


class _ReadSource:
    """A source that only has ``read``."""

    size = None

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readinto(self, buffer: memoryview, /) -> int:
        data = self._stream.read(len(buffer))
        if not isinstance(data, bytes):
            raise TypeError("the file object must be binary: open it with 'rb'")
        buffer[: len(data)] = data
        return len(data)


class _RawSource:
    """A source with ``readinto``.

    A buffered reader would wait until the whole buffer is full; ``readinto1`` gives what has come, so
    that decoding begins while the other side still writes.
    """

    size = None

    def __init__(self, stream: Any) -> None:
        self._readinto = getattr(stream, "readinto1", stream.readinto)
        widen_pipe(stream)

    def readinto(self, buffer: memoryview, /) -> int:
        return self._readinto(buffer) or 0


def as_source(stream: Any) -> ByteSource:
    """A binary file object as a source of bytes."""
    return _RawSource(stream) if hasattr(stream, "readinto") else _ReadSource(stream)
