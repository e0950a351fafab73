"""The storage writer: each rank writes its shards, and the coordinator commits the manifest."""

from __future__ import annotations

import dataclasses
import os
import secrets
import time
from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem, WriteItemType
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from ..errors import ArgumentError, quote
from ..format.filenames import is_single
from ..format.model import PLAIN
from ..format.regions import region_name
from ..parallel import CancelToken, default_threads
from ..save.api import target_of
from ..save.options import SaveOptions
from ..save.plan import plan_save
from ..save.snapshot import Snapshot, new_save_id, now, plain_metadata
from ..save.target import Target
from ..save.write import SaveResult, WrittenPart, commit_parts, write_part
from ..storage.path_arguments import path_text
from ..tensors.buffers import Source
from .merge import RankResult, check_messages, merged_state
from .planners import JsonSavePlanner
from .state import JsonBytes, Place, places_of

#: The index of a rank's result among the results of a save.
_RESULT = MetadataIndex("$rank")
#: The attribute of an error that says that the commit had begun. It travels to all ranks.
_IN_COMMIT = "_in_commit"


class JsonStorageWriter(StorageWriter):
    """Writes a distributed checkpoint as JSON, for ``torch.distributed.checkpoint.save``.

    Each rank writes shards of its own into one directory that all ranks see. When all of them are
    durable, the coordinator (rank 0) writes the manifest, which makes them a checkpoint. Until then
    the checkpoint that was there before is whole. The result is opened by :func:`jsonckpt.load` as
    any other directory.

    Values that are not tensors need a :class:`JsonSavePlanner`.

    Args:
        path: a directory, or a URL of one.
        metadata: your own plain JSON object, read with ``jsonckpt.open(path).metadata``.
        threads: of each rank. ``None`` shares the processors among the ranks of this machine.
        encoding, compression, compression_level, filter, chunk_size, max_shard_size, checksum,
            overwrite, progress, storage_options, sync, with_reader: as for :func:`jsonckpt.save`.

    Attributes:
        result: on the coordinator, what the last save did: a :class:`jsonckpt.SaveResult`.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        encoding: str = "base64",
        compression: str | None = None,
        compression_level: int | None = None,
        filter: str = "auto",
        chunk_size: int | str = "1MiB",
        max_shard_size: int | str | None = None,
        checksum: str = "xxh3_128",
        metadata: Mapping[str, Any] | None = None,
        overwrite: bool = True,
        threads: int | None = None,
        progress: bool = False,
        storage_options: Mapping[str, Any] | None = None,
        sync: bool = True,
        with_reader: bool = False,
    ) -> None:
        super().__init__()
        self._options = SaveOptions.of(
            encoding=encoding,
            compression=compression,
            compression_level=compression_level,
            filter=filter,
            chunk_size=chunk_size,
            max_shard_size=max_shard_size,
            checksum=checksum,
            overwrite=overwrite,
            threads=_share_of_threads() if threads is None else threads,
            progress=progress,
            storage_options=storage_options,
            sync=sync,
            with_reader=with_reader,
        )
        self._metadata = plain_metadata(metadata)
        self.result: SaveResult | None = None
        self._path = _directory(path)
        self._rank = 0
        #: Of the present save, and the number of its ranks: what the coordinator compares.
        self._token, self._ranks = "", 0
        self._began = 0.0
        self._target: Target | None = None

    @property
    def checkpoint_id(self) -> str:
        """The path."""
        return self._path

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Begin another save, to another path if one is given."""
        if checkpoint_id is not None:
            self._path = _directory(checkpoint_id)
        self._target = None

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether a checkpoint may have this path."""
        try:
            _directory(checkpoint_id)
        except ArgumentError:
            return False
        return True

    def storage_meta(self) -> StorageMeta:
        """The path, as torch asks for it."""
        return StorageMeta(checkpoint_id=self._path)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Prepare a save. torch passes ``rank`` only to a parameter that is called ``kwargs``.

        Raises:
            ArgumentError: ``use_collectives=False``.
        """
        del is_coordinator, args
        if not kwargs.get("use_collectives", True):
            raise ArgumentError(
                "use_collectives=False makes a checkpoint of each rank, which no reader can join",
                hint="Leave it out. Or save each rank's own state with jsonckpt.save.",
            )
        rank = kwargs.get("rank")
        if rank is None:  # of torch before 2.7
            rank = dist.get_rank() if dist.is_initialized() else 0
        self._rank = rank
        self._token = ""
        self._began = time.perf_counter()
        self.result = None
        self._target = target_of(self._path, self._options, absolute=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """Refuse, on each rank, before anything is written.

        Raises:
            CheckpointExistsError: what is at the path must be kept.
            ArgumentError: the planner pickles values.
        """
        self._own_target().check()
        ours = any(isinstance(place, Place) for place in (plan.planner_data or {}).values())
        for item in plan.items:
            if item.type == WriteItemType.BYTE_IO and not ours:
                raise ArgumentError(
                    f"the value {quote(item.index.fqn)} is not a tensor, and this planner pickles "
                    "such values",
                    hint="Pass planner=JsonSavePlanner(), which writes them as JSON.",
                )
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """The plans, each with the token of this save, which comes back with each result.

        torch may use a plan of an earlier save again. So nothing is named by it, and only
        :class:`JsonSavePlanner` gives the token of the present save to such a plan.
        """
        self._token, self._ranks = secrets.token_hex(8), len(plans)
        return [dataclasses.replace(plan, storage_data=self._token) for plan in plans]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        """Write the shards of this rank, and make them durable.

        Raises:
            JsonckptError: nothing of them is left.
        """
        found = RankItems.of(plan, planner)
        # The id is new for each save. Rows of the manifest say which shard has which.
        snapshot = Snapshot(new_save_id(), now(), None, {}, found.sources, rank=self._rank)
        saved = plan_save(snapshot, self._options)
        part = write_part(saved, self._own_target(), CancelToken())
        token = plan.storage_data if isinstance(planner, JsonSavePlanner) else None
        result = RankResult(part, found.regions, found.values, token)
        size = sum(shard.bytes for shard in part.shards)
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(_RESULT, size, result)])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make one checkpoint of all ranks' shards: on the coordinator, after all have written.

        Raises:
            JsonckptError: the previous checkpoint is whole, and the new shards are removed.
        """
        try:
            self._finish(metadata, results)
        except BaseException as error:
            vars(error)[_IN_COMMIT] = True
            self._own_target().leave()
            raise

    def _finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        target = self._own_target()
        ranks = [one.storage_data for rank in results for one in rank if one.index == _RESULT]
        parts: list[WrittenPart] = [one.part for one in ranks]
        try:
            check_messages(ranks, self._token, self._ranks)
            state = merged_state(metadata.planner_data, metadata.state_dict_metadata, ranks)
        except BaseException as error:
            target.abandon(error, [shard.file for part in parts for shard in part.shards])
            raise
        snapshot = Snapshot(new_save_id(), now(), state, self._metadata, [])
        self.result = commit_parts(parts, snapshot, target, CancelToken(), self._began)
        metadata.storage_meta = self.storage_meta()
        metadata.storage_meta.save_id = self.result.save_id

    def abandon_after(self, failures: Mapping[int, BaseException]) -> None:
        """Remove the shards that this rank wrote for a save that failed before its commit began.

        Args:
            failures: the error of each rank that failed.
        """
        if self._target is None:
            return
        # The coordinator of a commit has removed what it may.
        if not any(_IN_COMMIT in vars(error) for error in failures.values()):
            self._target.abandon(next(iter(failures.values())))
        self._target.leave()

    def _own_target(self) -> Target:
        if self._target is None:
            raise ArgumentError("set_up_storage_writer was not called before the save")
        return self._target


class RankItems:
    """What a rank writes: the records, and the values without tensors.

    Attributes:
        sources: the records.
        regions: record -> the leaf that it belongs to, and where it begins in that tensor.
        values: leaf -> JSON text.
    """

    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.regions: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.values: dict[str, str] = {}

    @classmethod
    def of(cls, plan: SavePlan, planner: SavePlanner) -> RankItems:
        """What a plan has for this rank.

        Raises:
            ArgumentError: the planner gives something else than JSON for a value.
        """
        found = cls()
        names = dict.fromkeys(item.index.fqn for item in plan.items)
        places = places_of(plan.planner_data, names)
        for item in plan.items:
            data = planner.resolve_data(item)
            if item.type == WriteItemType.BYTE_IO:
                found._add_value(item.index.fqn, data)
            else:
                found._add_tensor(item, data, places[item.index.fqn])
        return found

    def _add_value(self, name: str, data: Any) -> None:
        if not isinstance(data, JsonBytes):
            raise ArgumentError(f"the planner gives no JSON for the value {quote(name)}")
        self.values[name] = data.getvalue().decode()
        self.sources += data.sources

    def _add_tensor(self, item: WriteItem, data: Any, place: Place) -> None:
        assert item.tensor_data is not None
        chunk, size = item.tensor_data.chunk, tuple(item.tensor_data.size)
        offset, sizes = tuple(chunk.offsets), tuple(chunk.sizes)
        whole = sizes == size
        if not whole and 0 in sizes:
            return  # a rank without a part of this tensor
        name = place.name if whole else region_name(offset, place.name)
        source = Source.of(name, own_memory(data))
        # Who reads the checkpoint may have other devices. A part has no strides of its own.
        source.device = "cpu"
        if not whole:
            source.layout = PLAIN
        self.sources.append(source)
        self.regions[name] = (item.index.fqn, offset)


def own_memory(tensor: torch.Tensor) -> torch.Tensor:
    """A local tensor, after the communication that may still be filling it."""
    wait = getattr(tensor, "wait", None)  # of an AsyncCollectiveTensor
    return tensor.detach() if wait is None else wait().detach()


def _directory(path: str | os.PathLike[str]) -> str:
    text = path_text(path)
    if is_single(text):
        raise ArgumentError(
            f"{quote(text, 200)} is the name of one file, and many ranks write a directory",
            hint="Leave out .json.",
        )
    return text


def _share_of_threads() -> int:
    """This process's share of the processors."""
    ranks = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, default_threads() // (int(ranks) if ranks.isdecimal() and int(ranks) else 1))
