"""The coordinator's part of a save by many ranks, and each rank's part of a load, without data.

``python -m benchmarks.many_ranks 10000 50000 200000`` makes up what ranks say that they wrote: so
many regions, of tensors that 64 ranks share, each of 4 MiB in one chunk. It measures the messages,
the merge, the manifest and its reading. Each number of regions has a process of its own.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import TensorProperties, TensorStorageMetadata

from benchmarks.dcp import reset_peak, status
from jsonckpt import Limits
from jsonckpt._src.distributed.merge import RankResult, merged_state
from jsonckpt._src.distributed.state import Place
from jsonckpt._src.format.manifest import dump_manifest, parse_manifest
from jsonckpt._src.format.model import Codec, Entry, Manifest, ShardFile
from jsonckpt._src.format.regions import region_name
from jsonckpt._src.save.write import WrittenPart
from jsonckpt.integrations.dcp import JsonStorageReader

__all__ = ["main"]

_RANKS, _COLUMNS = 64, 1_024
_NO_LIMITS = Limits(manifest_bytes=None, tensors=None, marks=None)


@dataclass(frozen=True)
class Figures:
    """One number of regions. Times in processor seconds; memory in bytes, beside what was there.

    Attributes:
        messages: bytes of the ranks' results.
        merge: time to make the state with its regions.
        write: time to make the manifest's text.
        parse: time to read it.
        open: time until a rank of a load knows what is there.
    """

    regions: int
    messages: int
    messages_memory: int
    merge: float
    write: float
    write_memory: int
    manifest: int
    parse: float
    open: float
    open_memory: int


def main(arguments: list[str] | None = None) -> None:
    """Measure, and print a JSON object for each number of regions."""
    context = get_context("spawn")
    for count in map(int, arguments or sys.argv[1:] or ["10000"]):
        with context.Pool(1) as pool:
            print(json.dumps(asdict(pool.apply(_measure, (count,)))))


def _result(rank: int, tensors: int) -> RankResult:
    """What a rank says that it wrote: its part of each tensor."""
    codec = Codec("base64", "none", "none", 4 << 20)
    entries: list[Entry] = []
    regions: dict[str, tuple[str, tuple[int, ...]]] = {}
    shape = (_COLUMNS, _COLUMNS)
    for number in range(tensors):
        leaf = f"model.layers.{number}.feed_forward.w1.weight"
        offset = (rank * _COLUMNS, 0)
        name = region_name(offset, f"/model/layers/{number}/feed_forward/w1/weight")
        at, text = 119 + 5_592_666 * number, 5_592_408
        chunks = ((at + 200, text, f"{number:016x}{rank:016x}"),)
        row = Entry(name, "float32", shape, "cpu", codec, 4 << 20, 0, at, text + 256, chunks)
        entries.append(row)
        regions[name] = (leaf, offset)
    save_id = f"{rank + 1:032x}"
    file = f"shard-{save_id[:12]}-r{rank:05}-00001.json"
    size = 1_000 + 5_592_666 * tensors
    shard = ShardFile(file, size, size, f"xxh3_128:{0:032x}")
    return RankResult(WrittenPart(rank, save_id, "xxh3_128", (shard,), tuple(entries)), regions)


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.process_time()
    return work(), time.process_time() - began


def _measure(count: int) -> Figures:
    tensors = count // _RANKS
    sent = [pickle.dumps(_result(rank, tensors)) for rank in range(_RANKS)]
    before = reset_peak()
    ranks = [pickle.loads(one) for one in sent]
    messages_memory = status("VmHWM") - before
    text, merge, write, write_memory = _written(ranks, tensors)
    del ranks
    _, parse = _timed(lambda: parse_manifest(text, _NO_LIMITS))
    opened, open_memory = _opened(text, tensors)
    return Figures(tensors * _RANKS, sum(map(len, sent)), messages_memory, merge, write,
                   write_memory, len(text), parse, opened, open_memory)  # fmt: skip


def _written(ranks: list[RankResult], tensors: int) -> tuple[bytes, float, float, int]:
    """The manifest, the times of the merge and of its text, and the memory of both."""
    before = reset_peak()
    places, facts = dict(_places(tensors)), dict(_facts(tensors))
    state, merge = _timed(lambda: merged_state(places, facts, ranks))
    shards = tuple(shard for rank in ranks for shard in rank.part.shards)
    entries = tuple(
        replace(entry, shard=rank.part.rank) for rank in ranks for entry in rank.part.entries
    )
    date = "2026-01-01T00:00:00Z"
    whole = Manifest("1" * 32, date, "", "xxh3_128", {}, state, shards, entries)
    text, write = _timed(lambda: dump_manifest(whole))
    return text, merge, write, status("VmHWM") - before


def _opened(text: bytes, tensors: int) -> tuple[float, int]:
    """Time and memory of a rank that opens the checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        (Path(directory) / "manifest.json").write_bytes(text)
        before = reset_peak()
        reader = JsonStorageReader(directory, limits=_NO_LIMITS)
        metadata, seconds = _timed(reader.read_metadata)
        reader.set_up_storage_reader(metadata, True)
        assert len(metadata.state_dict_metadata) == tensors
        return seconds, status("VmHWM") - before


def _places(tensors: int) -> Iterator[tuple[str, Place]]:
    for number in range(tensors):
        keys = ("model", "layers", str(number), "feed_forward", "w1", "weight")
        yield ".".join(keys), Place(keys, json.dumps({"$tensor": "/" + "/".join(keys)}))


def _facts(tensors: int) -> Iterator[tuple[str, TensorStorageMetadata]]:
    size = torch.Size((_RANKS * _COLUMNS, _COLUMNS))
    for number in range(tensors):
        name = f"model.layers.{number}.feed_forward.w1.weight"
        yield name, TensorStorageMetadata(TensorProperties(), size, [])


if __name__ == "__main__":
    main()
