"""The storage reader: each rank reads the chunks that hold its part of each tensor."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from ..errors import ArgumentError, IncompleteCheckpointError, JsonckptError, quote
from ..format.json_text import Json, collector_paused
from ..format.limits import Limits
from ..format.model import Entry
from ..load.allocation import allocate_targets, read_box
from ..load.checkpoint import Checkpoint
from ..load.container import Container, open_container
from ..load.options import ReadOptions
from ..load.restore import StateBuilder
from ..load.selection import TensorSelection
from ..load.sinks import PartSink, TeeSink
from ..state.references import Reference, has_references, references_in
from ..storage.path_arguments import path_text
from ..tensors.buffers import Target
from .assign import plain_value
from .leaves import Leaf, dotted, keys_of, leaves_of, pointer
from .state import Place, place_of


class JsonStorageReader(StorageReader):
    """Reads a JSON checkpoint into a distributed state, for ``torch.distributed.checkpoint.load``.

    The checkpoint may be of any number of ranks, or one that :func:`jsonckpt.save` wrote, also a
    single file. Each rank reads the manifest, and then only the chunks that hold its own parts.

    Values that are not tensors need a :class:`JsonLoadPlanner`.

    Args:
        path: a directory, a file or a URL.
        verify, threads, limits, storage_options, expected_digest: as for :func:`jsonckpt.load`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        verify: bool = True,
        threads: int | None = None,
        limits: Limits | None = None,
        storage_options: Mapping[str, Any] | None = None,
        expected_digest: str | None = None,
    ) -> None:
        super().__init__()
        self._options = ReadOptions.of(
            verify=verify,
            threads=threads,
            limits=limits,
            storage_options=storage_options,
            expected_digest=expected_digest,
        )
        self._path = path_text(path)
        self._stored: _StoredState | None = None
        self._error: Exception | None = None

    @property
    def checkpoint_id(self) -> str:
        """The path."""
        return self._path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another load, of another path if one is given."""
        if checkpoint_id is not None:
            self._path = path_text(checkpoint_id)
        self._stored = self._error = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a checkpoint may have this path."""
        return isinstance(checkpoint_id, str | os.PathLike)

    def read_metadata(self, *args: Any, **options: Any) -> Metadata:
        """The leaves of the checkpoint. An error is raised by :meth:`set_up_storage_reader`.

        (torch takes an error here for a checkpoint of one rank, and replaces it by another one.)
        """
        del args, options
        try:
            with collector_paused():
                self._stored = _StoredState(open_container(self._path, self._options))
        except Exception as error:
            self._error = error
            return Metadata({})
        return self._stored.metadata(self._path)

    def set_up_storage_reader(
        self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any
    ) -> None:
        """Say why the checkpoint cannot be opened, if it cannot.

        Raises:
            JsonckptError: as :func:`jsonckpt.open` raises it.
        """
        del metadata, is_coordinator, args, kwargs
        if self._error is not None:
            raise self._error

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan, with the digest of what this rank has opened."""
        stored = self._stored
        digest = "" if stored is None else stored.container.manifest.digest
        return dataclasses.replace(plan, storage_data=digest)

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans as they are.

        Raises:
            IncompleteCheckpointError: a save has replaced the checkpoint while the ranks opened it.
        """
        if len({plan.storage_data for plan in plans}) > 1:
            raise IncompleteCheckpointError(
                "the ranks have opened different checkpoints: it was overwritten meanwhile",
                file=self._path,
                hint="Load again. All ranks must see one file system.",
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        """Read what the plan asks for.

        Raises:
            JsonckptError: the checkpoint is damaged, or was replaced meanwhile.
            ArgumentError: the planner unpickles values.
        """
        stored = self._stored
        if stored is None:
            raise ArgumentError("read_metadata was not called before the load")
        load_value = getattr(planner, "load_value", None)
        values = [item for item in plan.items if item.type == LoadItemType.BYTE_IO]
        if values and load_value is None:
            raise ArgumentError(
                f"the value {quote(values[0].storage_index.fqn)} is not a tensor, and this planner "
                "unpickles such values",
                hint="Pass planner=JsonLoadPlanner(), which reads them as JSON.",
            )
        with stored.container.errors():
            for item in values:
                assert load_value is not None
                load_value(item, stored.value(item.storage_index.fqn))
            stored.read_tensors([item for item in plan.items if item not in values], planner)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class _StoredState:
    """The leaves of an open checkpoint, by the names that torch's distributed checkpoints use."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self._checkpoint = Checkpoint(container)
        self._leaves: dict[str, Leaf] = {}
        with container.errors():
            for leaf in leaves_of(container.manifest.state):
                if not leaf.path and leaf.json == {}:
                    continue  # a state of nothing
                keys = keys_of(leaf.path)
                name = dotted(keys)
                # Two places may have one name. A state finds them by their places.
                self._leaves[name if name not in self._leaves else pointer(keys)] = leaf

    def metadata(self, path: str) -> Metadata:
        """What torch's planners need to know."""
        facts: dict[str, Any] = {}
        places: dict[str, Place] = {}
        for name, leaf in self._leaves.items():
            places[name] = place_of(leaf)
            facts[name] = BytesStorageMetadata()
            if leaf.reference is not None:
                entry = self._checkpoint[_referred(leaf).name]
                # One chunk, however many records hold it: each rank then reads one box of it.
                whole = ChunkStorageMetadata(torch.Size([0] * entry.ndim), entry.shape)
                properties = TensorProperties(dtype=entry.dtype)
                facts[name] = TensorStorageMetadata(properties, entry.shape, [whole])
        meta = StorageMeta(checkpoint_id=path, save_id=self.container.manifest.save_id)
        return Metadata(facts, planner_data=places, storage_meta=meta)

    def value(self, name: str) -> Any:
        """A value, with the arrays in it."""
        leaf = self._leaves[name]
        try:
            return self._with_arrays(leaf.json)
        except JsonckptError as error:
            raise error.at(tensor=pointer(keys_of(leaf.path))) from error.__cause__

    def read_tensors(self, items: Sequence[ReadItem], planner: LoadPlanner) -> None:
        """Fill the planner's tensors."""
        sinks: dict[str, list[PartSink]] = {}
        targets = []
        for item in items:
            reference = _referred(self._leaves[item.storage_index.fqn])
            tensor = planner.resolve_tensor(item).detach()
            offset, size = tuple(item.storage_offsets), tuple(item.lengths)
            stored = self.container.manifest.tensors.get(reference.record)
            if reference.tag == "$view" or stored is None:
                box = [slice(start, start + length) for start, length in zip(offset, size)]
                tensor.copy_(self._checkpoint[reference.name].load("cpu")[tuple(box)])
            elif isinstance(stored, Entry) and size == stored.shape:
                target = Target.into(tensor, stored.dtype, stored.shape, cast=True)
                part = PartSink(target, 0, target.nbytes)
                sinks.setdefault(stored.name, []).append(part)
                targets.append(target)
            else:
                read_box(self.container, stored, offset, size, tensor, cast=True)
            planner.commit_tensor(item, tensor)
        for shard in self.container.shards():
            shard.read({name: parts[0] if len(parts) == 1 else TeeSink(parts)
                        for name, parts in sinks.items()})  # fmt: skip
        for target in targets:
            target.finish()

    def _with_arrays(self, value: Json) -> Any:
        if not has_references(value):
            return plain_value(value)
        selection = TensorSelection.of(map_location="cpu")
        container = self.container
        builder = StateBuilder(value, selection, container.copies())
        builder.check(container.manifest.by_name)
        builder.check_files(container)
        wanted = [entry for entry in container.manifest.entries if builder.wants(entry.name)]
        targets = allocate_targets(selection, wanted)
        for shard in container.shards():
            shard.read(targets)
        for record, target in targets.items():
            builder.keep(record, target.finish())
        return builder.finish()


def _referred(leaf: Leaf) -> Reference:
    """The reference to the tensor that a leaf is."""
    return next(references_in(leaf.reference))
