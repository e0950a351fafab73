"""Reads what ``load_into`` has planned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import torch

from ..format.json_text import collector_paused
from ..format.limits import Copies
from ..format.model import Entry, Part, Stored, Whole, entries_of, parts_of
from ..load.allocation import new_target
from ..load.container import Container
from ..load.sinks import PartSink, TeeSink
from ..progress import progress_bar
from ..tensors.aliasing import StateReader
from ..tensors.buffers import Source, Target, byte_count
from .aliases import InPlaceCopy, contiguous_start
from .placeholders import Placeholder, placeholders_in
from .plan import Plan

_CPU: Final = torch.device("cpu")
#: The bytes of one step of comparing or copying.
_STEP: Final = 4 * 2**20


class IntoReader:
    """Reads records of a container for ``load_into``.

    Args:
        copies: counts the memory that is allocated beside the records.
        on_write: called before any object of the caller is changed.
    """

    def __init__(self, container: Container, copies: Copies, on_write: Callable[[], None]) -> None:
        self.copies = copies
        self._container = container
        self._on_write = on_write
        self._by_name = container.manifest.tensors

    def read(
        self,
        parts: Mapping[str, list[PartSink]],
        advance: Callable[[int], None] | None = None,
    ) -> None:
        """Read records into their parts."""
        by_record: dict[str, list[PartSink]] = {}
        for name, found in parts.items():
            stored = self._by_name[name]
            if isinstance(stored, Whole):
                for part in stored.parts:
                    by_record[part.entry.name] = [_region(part, sink) for sink in found]
            else:
                by_record[name] = found
        sinks = {
            record: found[0] if len(found) == 1 else TeeSink(found)
            for record, found in by_record.items()
        }
        for shard in self._container.shards():
            shard.read(sinks, advance)

    def read_records(self, records: Iterable[str]) -> dict[str, torch.Tensor]:
        """Whole records, in new memory."""
        made = {record: self.new_target(record, _CPU) for record in records}
        self.read({record: [_whole(target)] for record, target in made.items()})
        return {record: target.finish() for record, target in made.items()}

    def load_objects(self, plan: Plan) -> None:
        """Call each ``load_state_dict``, before any tensor is filled, because it may fail."""
        if not plan.own_loaders:
            return
        wanted = {
            source.name: (source, _CPU)
            for one in plan.own_loaders
            for source in placeholders_in(one.value)
        }
        new = _NewTensors(wanted, self)
        self._read_with_progress(new.parts)
        tensors = new.tensors()
        self._on_write()
        for one in plan.own_loaders:
            one.load(tensors, plan)

    def load_tensors(self, plan: Plan, targets: list[tuple[InPlaceCopy, Target]]) -> None:
        """Fill the existing tensors, make the others, and put them in place."""
        with collector_paused():
            new = _NewTensors(plan.allocated, self)
            parts = new.parts
            strided = []
            for copy, target in targets:
                for _, other in copy.aliases:
                    torch.autograd.graph.increment_version(other)
                start = copy.start_in(self._by_name[copy.source.record])
                if start is None:
                    strided.append((copy.source, target))
                else:
                    part = PartSink(target, start, start + target.nbytes, self._on_write)
                    parts.setdefault(copy.source.record, []).append(part)
            bases = {source.record: self.new_target(source.record, _CPU) for source, _ in strided}
            for record, base in bases.items():
                parts.setdefault(record, []).append(_whole(base))
        self._read_with_progress(parts)
        for _, target in targets:
            target.finish()
        tensors = new.tensors()
        reader = StateReader(
            {record: base.finish() for record, base in bases.items()},
            {source.name for source, _ in strided},
            self.copies,
        )
        if strided or plan.actions:
            self._on_write()
        for source, target in strided:
            assert source.view is not None
            _copy(reader.get("$view", source.view.to_json(), source.name), target)
            target.finish()
        for action in plan.actions:
            action(tensors)

    def same_values(self, one: Placeholder, two: Placeholder, dtype: torch.dtype) -> bool:
        """Whether two tensors of the checkpoint have the same values, bit for bit, in ``dtype``.

        Compares the checksums in the manifest if possible, else the values.
        """
        if one.content_key() == two.content_key():
            return True
        first, second = self._by_name[one.record], self._by_name[two.record]
        alike = one.dtype == two.dtype
        whole = one.view is None and two.view is None
        if alike and whole and _pieces(first) == _pieces(second):
            return _checksums(first) == _checksums(second)
        if alike and isinstance(first, Entry) and isinstance(second, Entry):
            starts = contiguous_start(one), contiguous_start(two)
            if starts[0] is not None and starts[1] is not None:
                nbytes = byte_count(one.dtype, one.shape)
                return self._same_bytes((first, starts[0]), (second, starts[1]), nbytes)
        tensors = []
        for source in (one, two):
            records = self.read_records([source.record])
            reader = StateReader(records, {source.name}, self.copies)
            tensors.append(reader.get(source.tag, source.body, source.name).detach().to(dtype))
        raw = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in tensors]
        return torch.equal(*raw)

    def _same_bytes(self, one: tuple[Entry, int], two: tuple[Entry, int], nbytes: int) -> bool:
        """Compare a few chunks at a time."""
        step = max(_STEP, one[0].codec.chunk_bytes, two[0].codec.chunk_bytes)
        shards = [self._container.shard_of(entry) for entry, _ in (one, two)]
        if not all(shard.is_ranged for shard in shards):
            step = nbytes  # else each part would read the file from its beginning
        for done in range(0, nbytes, step):
            count = min(step, nbytes - done)
            pieces = []
            for shard, (entry, start) in zip(shards, (one, two)):
                piece = Target.allocate("uint8", (count,), device=_CPU)
                shard.read_part(entry, start + done, start + done + count, piece)
                pieces.append(piece.finish())
            if not torch.equal(*pieces):
                return False
        return True

    def new_target(self, record: str, device: torch.device) -> Target:
        """New memory for a record."""
        return new_target(self._by_name[record], device)

    def _read_with_progress(self, parts: Mapping[str, list[PartSink]]) -> None:
        total = sum(self._by_name[record].nbytes for record in parts)
        show = self._container.options.progress
        with progress_bar("load", total, show=show) as advance:
            self.read(parts, advance)


def _pieces(stored: Stored) -> list[object]:
    """What the checksums of a tensor are of."""
    return [(p.offset, p.entry.shape, p.entry.codec.chunk_bytes) for p in parts_of(stored)]


def _checksums(stored: Stored) -> list[str]:
    return [chunk[2] for entry in entries_of(stored) for chunk in entry.chunks]


def _region(part: Part, sink: PartSink) -> PartSink:
    """The part of a whole tensor's sink that a region's record fills."""
    assert isinstance(sink.sink, Target)
    target = sink.sink.part(part.offset, part.entry.shape)
    return PartSink(target, 0, target.nbytes, sink.on_write)


def _whole(target: Target) -> PartSink:
    return PartSink(target, 0, target.nbytes)


def _copy(tensor: torch.Tensor, target: Target) -> None:
    """Copy a tensor's values into a target of any dtype and strides."""
    source = Source.of("", tensor)
    step = _STEP // 16 * 16  # whole elements of every dtype
    for start in range(0, source.nbytes, step):
        stop = min(start + step, source.nbytes)
        target.write(start, source.read(start, stop))


class _NewTensors:
    """Tensors that are read into new memory.

    A record is read once for each device, so tensors share memory as in the checkpoint.
    """

    def __init__(
        self, wanted: Mapping[str, tuple[Placeholder, torch.device]], reader: IntoReader
    ) -> None:
        self._copies = reader.copies
        self._wanted = wanted
        self._targets: dict[torch.device, dict[str, Target]] = {}
        self.parts: dict[str, list[PartSink]] = {}
        for source, device in wanted.values():
            records = self._targets.setdefault(device, {})
            if source.record not in records:
                records[source.record] = target = reader.new_target(source.record, device)
                if target.needs_data:
                    self.parts.setdefault(source.record, []).append(_whole(target))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by name, once everything has been read."""
        readers = {
            device: StateReader(
                {record: target.finish() for record, target in records.items()},
                self._wanted,
                self._copies,
            )
            for device, records in self._targets.items()
        }
        return {
            name: readers[device].get(source.tag, source.body, name)
            for name, (source, device) in self._wanted.items()
        }
